//! Operations on keys.

use lastkey_engine::{
    Error, Key, KeyRef, KeySpec, KeyState, KeyUsage, RotationPolicy, Taken,
    command::{
        CancelKeyDeletion, CreateKey, DescribeKey, DisableKey, EnableKey, KeyFilter, ListKeys,
        Override, ScheduleKeyDeletion, SetDeletionProtection, UpdateKeyDescription,
    },
};
use serde::Deserialize;

use super::{
    call::{Answer, Call},
    document::Document,
    refusal::Refusal,
};
use crate::taken::unconfirmed;

pub(super) async fn create_key(call: &Call<'_>) -> Answer {
    call.not_offered("DKMSInstanceId", "a dedicated instance")?;
    call.not_offered("Policy", "a key policy")?;
    call.not_offered("KeyStorageMechanism", "keeping keys in an HSM (KeyStorageMechanism)")?;
    require_value(call, "Origin", "Aliyun_KMS", "imported key material")?;
    require_value(call, "ProtectionLevel", "SOFTWARE", "the protection level HSM")?;
    let key = call
        .execute(CreateKey {
            spec: spec(call)?,
            usage: usage(call)?,
            description: call.params.get("Description").unwrap_or_default().to_owned(),
            tags: call.tags()?,
            rotation: rotation(call)?,
            alias: None,
        })
        .await?;
    call.answer(|answer| answer.object("KeyMetadata", |answer| metadata(call, &key, answer)))
}

fn spec(call: &Call<'_>) -> Result<KeySpec, Refusal> {
    match call.params.non_empty("KeySpec") {
        None => Ok(KeySpec::Aes256),
        Some(name) => Ok(KeySpec::parse(name).ok_or(Error::Unsupported("this KeySpec"))?),
    }
}

fn usage(call: &Call<'_>) -> Result<KeyUsage, Refusal> {
    let usage = KeyUsage::EncryptDecrypt;
    require_value(call, "KeyUsage", usage.name(), "this KeyUsage")?;
    Ok(usage)
}

/// Absent, or the one value that we offer.
fn require_value(
    call: &Call<'_>,
    name: &'static str,
    only: &str,
    otherwise: &'static str,
) -> Result<(), Refusal> {
    match call.params.non_empty(name) {
        Some(value) if value != only => Err(Error::Unsupported(otherwise).into()),
        _ => Ok(()),
    }
}

/// Both parameters are optional; a key for which neither is given gets the engine's default.
fn rotation(call: &Call<'_>) -> Result<Option<RotationPolicy>, Refusal> {
    let enabled = call.boolean("EnableAutomaticRotation")?;
    let interval = call.interval("RotationInterval")?;
    match (enabled, interval) {
        (None, None) => Ok(None),
        // Who names an interval wants rotation.
        (None, Some(interval)) => Ok(Some(RotationPolicy::new(true, Some(interval))?)),
        (Some(true), None) => Err(Error::MissingParameter("RotationInterval").into()),
        (Some(enabled), interval) => Ok(Some(RotationPolicy::new(enabled, interval)?)),
    }
}

pub(super) async fn describe_key(call: &Call<'_>) -> Answer {
    let key = call.execute(DescribeKey { key: call.key()? }).await?;
    call.answer(|answer| answer.object("KeyMetadata", |answer| metadata(call, &key, answer)))
}

fn metadata(call: &Call<'_>, key: &Key, answer: &mut Document) {
    answer.plain("KeyId", key.id);
    answer.plain("Arn", call.key_arn(key.id));
    answer.plain("KeyState", key.state.name());
    answer.plain("KeySpec", key.spec.name());
    answer.plain("KeyUsage", key.usage.name());
    answer.plain("Origin", key.origin.name());
    answer.plain("ProtectionLevel", key.protection.name());
    answer.text("Description", &key.description);
    answer.text("Creator", &key.creator);
    answer.plain("CreationDate", key.created.to_seconds_text());
    answer.plain("DeleteDate", optional(key.deletion_at));
    answer.plain("MaterialExpireTime", "");
    answer.plain("PrimaryKeyVersion", key.primary.version);
    answer.plain("LastRotationDate", key.rotated.to_seconds_text());
    answer.plain("AutomaticRotation", key.rotation_state());
    if key.rotation.enabled {
        answer.plain("RotationInterval", format_args!("{}s", key.rotation.interval_seconds));
        let next = key.rotated.after(key.rotation.interval());
        answer.plain("NextRotationDate", next.to_seconds_text());
    }
    let protection = if key.deletion_protection { "Enabled" } else { "Disabled" };
    answer.plain("DeletionProtection", protection);
    answer.text("DeletionProtectionDescription", &key.deletion_protection_description);
}

/// A time that may not be set: the wire has an empty text for that.
fn optional(time: Option<lastkey_engine::Timestamp>) -> String {
    time.map(lastkey_engine::Timestamp::to_seconds_text).unwrap_or_default()
}

pub(super) async fn list_keys(call: &Call<'_>) -> Answer {
    let list = call.execute(ListKeys { page: call.page()?, filter: filter(call)? }).await?;
    call.answer(|answer| {
        answer.list(("Keys", "Key"), &list.items, |entry, id| {
            entry.plain("KeyId", id);
            entry.plain("KeyArn", call.key_arn(*id));
        });
        super::paging(answer, &list);
    })
}

/// `[{"Key":"KeyState","Values":["Enabled","Disabled"]}]`: any of the values, all of the keys.
#[derive(Deserialize)]
struct Filter {
    #[serde(rename = "Key")]
    key: String,
    #[serde(rename = "Values")]
    values: Vec<String>,
}

const MAX_FILTERS: usize = 10;

/// For the fuzz target: filters in JSON.
pub(super) fn parse_parameter(text: &str) {
    let mut wanted = KeyFilter::default();
    for filter in serde_json::from_str::<Vec<Filter>>(text).unwrap_or_default() {
        for value in &filter.values {
            let _ = add_filter(&mut wanted, &filter.key, value);
        }
    }
}

fn filter(call: &Call<'_>) -> Result<KeyFilter, Refusal> {
    let filters: Vec<Filter> = call.json("Filters")?.unwrap_or_default();
    if filters.len() > MAX_FILTERS {
        return Err(Error::LimitExceeded { what: "filters", limit: MAX_FILTERS }.into());
    }
    let mut wanted = KeyFilter::default();
    for filter in &filters {
        for value in &filter.values {
            add_filter(&mut wanted, &filter.key, value)
                .ok_or_else(|| Error::invalid("Filters", "a key or value is not known here"))?;
        }
    }
    Ok(wanted)
}

fn add_filter(wanted: &mut KeyFilter, key: &str, value: &str) -> Option<()> {
    match key {
        "KeyState" => {
            let states = [KeyState::Enabled, KeyState::Disabled, KeyState::PendingDeletion];
            wanted.states.push(states.into_iter().find(|state| state.name() == value)?);
        }
        "KeySpec" => wanted.specs.push(KeySpec::parse(value)?),
        "KeyUsage" if value == KeyUsage::EncryptDecrypt.name() => {
            wanted.usages.push(KeyUsage::EncryptDecrypt);
        }
        // True of every key here.
        "ProtectionLevel" if value == "SOFTWARE" => {}
        "CreatorType" if value == "User" => {}
        _ => return None,
    }
    Some(())
}

pub(super) async fn update_key_description(call: &Call<'_>) -> Answer {
    let description =
        call.params.get("Description").ok_or(Error::MissingParameter("Description"))?;
    let command = UpdateKeyDescription { key: call.key()?, description: description.to_owned() };
    call.execute(command).await?;
    call.done()
}

pub(super) async fn enable_key(call: &Call<'_>) -> Answer {
    call.execute(EnableKey { key: call.key()? }).await?;
    call.done()
}

pub(super) async fn disable_key(call: &Call<'_>) -> Answer {
    let key = call.key()?;
    call.execute(DisableKey { key: key.clone(), overriding: overriding(call)? }).await?;
    taken(call, key).await
}

/// Answers once the plugins have confirmed, and names those that have not.
async fn taken(call: &Call<'_>, key: KeyRef) -> Answer {
    let held = unconfirmed(call.engine, &Taken::Key(key)).await?;
    call.answer(|answer| {
        // Ours alone, and only if there is something to tell.
        if !held.is_empty() {
            answer.list(("Unconfirmed", "Plugin"), &held, |entry, held| {
                entry.plain("Cluster", held.cluster);
                entry.text("ClusterName", held.cluster_name.as_ref().map_or("", |it| it.as_str()));
                entry.text("Plugin", &held.plugin);
                entry.plain("LeaseEnds", held.until);
            });
        }
    })
}

/// Ours alone: who wants it although something needs the key names the key once more, and why.
fn overriding(call: &Call<'_>) -> Result<Option<Override>, Refusal> {
    let Some(key) = call.params.non_empty("Override") else { return Ok(None) };
    let reason = call.required("OverrideReason")?.to_owned();
    Ok(Some(Override { key: key.to_owned(), reason }))
}

pub(super) async fn schedule_key_deletion(call: &Call<'_>) -> Answer {
    let days = call
        .number("PendingWindowInDays")?
        .ok_or(Error::MissingParameter("PendingWindowInDays"))?;
    // What does not fit is out of the engine's bounds too.
    let window_days = u16::try_from(days).unwrap_or(u16::MAX);
    let (key, overriding) = (call.key()?, overriding(call)?);
    call.execute(ScheduleKeyDeletion { key: key.clone(), window_days, overriding }).await?;
    taken(call, key).await
}

pub(super) async fn cancel_key_deletion(call: &Call<'_>) -> Answer {
    call.execute(CancelKeyDeletion { key: call.key()? }).await?;
    call.done()
}

pub(super) async fn set_deletion_protection(call: &Call<'_>) -> Answer {
    let key = match call.params.non_empty("ProtectedResourceArn") {
        Some(arn) => lastkey_engine::KeyRef::parse(arn)?,
        None => call.key()?,
    };
    let enable = call
        .boolean("EnableDeletionProtection")?
        .ok_or(Error::MissingParameter("EnableDeletionProtection"))?;
    let description =
        call.params.get("DeletionProtectionDescription").unwrap_or_default().to_owned();
    call.execute(SetDeletionProtection { key, enable, description }).await?;
    call.done()
}
