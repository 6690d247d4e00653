//! `lastkey key …`: keys over the Alibaba wire, as any other client would.

mod impact;
mod overrides;
mod versions;

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use lastkey_client::Client;
use lastkey_engine::AliasName;
use serde_json::{Value, json};

use super::wire::{snake, snake_name, without_empty};
use crate::{
    cli::{AliasAction, Connect, KeyAction},
    connect::{block_on, client},
    output::{Column, Exit, Failure, Output, fields},
};

/// Keys on one page of a list.
const PAGE: usize = 50;
/// Entries on one page of the wire, the most it allows.
const WIRE_PAGE: usize = 100;
/// Descriptions asked for at the same time.
const IN_FLIGHT: usize = 16;

pub(crate) fn run(connect: &Connect, action: KeyAction, output: &Output) -> Result<(), Failure> {
    let client = client(connect)?;
    block_on(act(&client, action, output))
}

async fn act(client: &Client, action: KeyAction, output: &Output) -> Result<(), Failure> {
    match action {
        KeyAction::Create { spec, description, alias, tags, rotate_every } => {
            let create = Create { spec, description, alias, tags, rotate_every };
            create.run(client, output).await
        }
        KeyAction::Describe { key } => {
            let described = describe(client, &key).await?;
            output.object(&described, || fields(&described));
            Ok(())
        }
        KeyAction::List { page, all } => list(client, page, all, output).await,
        KeyAction::Enable { key } => {
            change(client, output, ("EnableKey", &[("KeyId", &key)]), "is enabled").await
        }
        KeyAction::Disable { key, twice } => {
            let parameters = [vec![("KeyId", &*key)], twice.parameters()].concat();
            let done = change(client, output, ("DisableKey", &parameters), "is disabled").await;
            impact::explain(client, &key, done).await
        }
        KeyAction::Delete { key, in_days, twice } => {
            let days = in_days.to_string();
            let mut parameters = vec![("KeyId", &*key), ("PendingWindowInDays", &days)];
            parameters.extend(twice.parameters());
            let call = ("ScheduleKeyDeletion", &parameters[..]);
            let said = format!("will be destroyed in {days} days");
            let done = change(client, output, call, &said).await;
            impact::explain(client, &key, done).await
        }
        KeyAction::Impact { key, version } => {
            impact::show(client, &key, version.as_deref(), output).await
        }
        KeyAction::Dependants { key, remove: Some(which), reason } => {
            let reason = reason.unwrap_or_default();
            impact::remove(client, (&key, &which), &reason, output).await
        }
        KeyAction::Dependants { key, .. } => impact::list(client, &key, output).await,
        KeyAction::CancelDeletion { key } => {
            let call = ("CancelKeyDeletion", &[("KeyId", &*key)][..]);
            change(client, output, call, "will not be deleted, and is enabled").await
        }
        KeyAction::Protect { key, reason } => {
            protect(client, output, &key, Some(reason.as_deref().unwrap_or_default())).await
        }
        KeyAction::Unprotect { key } => protect(client, output, &key, None).await,
        KeyAction::Rotate { key } => rotate(client, &key, output).await,
        KeyAction::RotationPolicy { key, every } => {
            let rotation = Rotation::parse(&every)?;
            let mut parameters = vec![("KeyId", &*key)];
            parameters.extend(rotation.parameters());
            let call = ("UpdateRotationPolicy", &parameters[..]);
            change(client, output, call, &format!("rotates {}", rotation.said())).await
        }
        KeyAction::Versions(options) => versions::run(client, options, output).await,
        KeyAction::Overrides => overrides::list(client, output).await,
        KeyAction::ConfirmOverride { id } => overrides::confirm(client, &id, output).await,
        KeyAction::RejectOverride { id } => overrides::reject(client, &id, output).await,
        KeyAction::SetDescription { key, description } => {
            let call =
                ("UpdateKeyDescription", &[("KeyId", &*key), ("Description", &description)][..]);
            change(client, output, call, "has a new description").await
        }
        KeyAction::Tag { key, tags } => {
            let tags = tags_json(&tags);
            let call = ("TagResource", &[("KeyId", &*key), ("Tags", &tags)][..]);
            change(client, output, call, "is tagged").await
        }
        KeyAction::Untag { key, names } => {
            let names = json!(names).to_string();
            let call = ("UntagResource", &[("KeyId", &*key), ("TagKeys", &names)][..]);
            change(client, output, call, "is untagged").await
        }
        KeyAction::Alias(action) => aliases(client, action, output).await,
    }
}

type Call<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// A call that changes one key, then the key as it is now.
async fn change(
    client: &Client,
    output: &Output,
    (action, parameters): Call<'_>,
    said: &str,
) -> Result<(), Failure> {
    let answer = client.alibaba(action, parameters).await?;
    let key = parameters.iter().find(|(name, _)| *name == "KeyId").map_or("", |(_, key)| *key);
    let mut described = describe(client, key).await?;
    let unconfirmed = snake(answer["Unconfirmed"]["Plugin"].clone());
    if !unconfirmed.is_null() {
        described["unconfirmed"] = unconfirmed.clone();
    }
    output.object(&described, || format!("{key} {said}{}", still_held(&unconfirmed)));
    Ok(())
}

/// Which plugins do not know yet that a key was taken from them, and until when that may matter. What
/// runs more than once under one name, as with the files of one `cluster add`, is one line.
fn still_held(unconfirmed: &Value) -> String {
    let mut held: Vec<(String, usize, &str)> = Vec::new();
    for plugin in unconfirmed.as_array().into_iter().flatten() {
        let text = |name: &str| plugin[name].as_str().unwrap_or_default();
        let name = match (text("cluster_name"), text("cluster")) {
            ("", "") => text("plugin").to_owned(),
            ("", cluster) | (cluster, _) => format!("{} of cluster {cluster}", text("plugin")),
        };
        match held.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, count, until)) => {
                (*count, *until) = (*count + 1, (*until).max(text("lease_ends")))
            }
            None => held.push((name, 1, text("lease_ends"))),
        }
    }
    let line = |(name, count, until): (String, usize, &str)| match count {
        1 => format!("\nplugin {name} has not confirmed: it may go on reading until {until}"),
        _ => format!(
            "\nplugin {name} has not confirmed in {count} of its processes: they may go on reading \
             until {until}"
        ),
    };
    held.into_iter().map(line).collect()
}

/// Protects a key from deletion for a reason, or no longer.
async fn protect(
    client: &Client,
    output: &Output,
    key: &str,
    reason: Option<&str>,
) -> Result<(), Failure> {
    // The wire names the key by its ARN here.
    let arn = describe(client, key).await?["arn"].as_str().unwrap_or_default().to_owned();
    let parameters = [
        ("ProtectedResourceArn", &*arn),
        ("EnableDeletionProtection", if reason.is_some() { "true" } else { "false" }),
        ("DeletionProtectionDescription", reason.unwrap_or_default()),
    ];
    client.alibaba("SetDeletionProtection", &parameters).await?;
    let described = describe(client, key).await?;
    let said = if reason.is_some() { "is protected from deletion" } else { "may be deleted" };
    output.object(&described, || format!("{key} {said}"));
    Ok(())
}

async fn rotate(client: &Client, key: &str, output: &Output) -> Result<(), Failure> {
    let made = client.alibaba("CreateKeyVersion", &[("KeyId", key)]).await?;
    let version = snake(made["KeyVersion"].clone());
    output.object(&version, || {
        format!(
            "{key} has the new version {}; older versions go on decrypting",
            version["key_version_id"].as_str().unwrap_or_default()
        )
    });
    Ok(())
}

struct Create {
    spec: String,
    description: Option<String>,
    alias: Option<String>,
    tags: Vec<(String, String)>,
    rotate_every: String,
}

impl Create {
    async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        let rotation = Rotation::parse(&self.rotate_every)?;
        let spec = format!("Aliyun_{}", self.spec.to_uppercase().replace('-', "_"));
        let tags = tags_json(&self.tags);
        let mut parameters = vec![("KeySpec", spec.as_str())];
        parameters.extend(rotation.parameters());
        if let Some(description) = &self.description {
            parameters.push(("Description", description));
        }
        if !self.tags.is_empty() {
            parameters.push(("Tags", &tags));
        }
        if let Some(alias) = &self.alias {
            refuse_taken(client, alias).await?;
        }
        let made = client.alibaba("CreateKey", &parameters).await?;
        let id = made["KeyMetadata"]["KeyId"].as_str().unwrap_or_default().to_owned();
        if let Some(alias) = &self.alias {
            client.alibaba("CreateAlias", &[("AliasName", alias), ("KeyId", &id)]).await?;
        }
        let described = describe(client, &id).await?;
        output.object(&described, || match &self.alias {
            Some(alias) => format!("made {alias}, which is the key {id}"),
            None => format!("made the key {id}"),
        });
        Ok(())
    }
}

/// A name that is wrong or taken is said before a key is made that nobody asked for.
async fn refuse_taken(client: &Client, alias: &str) -> Result<(), Failure> {
    AliasName::parse(alias).map_err(|error| Failure::new(Exit::Usage, error))?;
    match client.alibaba("DescribeKey", &[("KeyId", alias)]).await {
        Ok(_) => Err(Failure::failed(format_args!(
            "{alias} exists already; `lastkey key alias update` gives it another key"
        ))),
        Err(error) if error.category() == lastkey_client::Category::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The key as it is, with its aliases.
async fn describe(client: &Client, key: &str) -> Result<Value, Failure> {
    let answer = client.alibaba("DescribeKey", &[("KeyId", key)]).await?;
    let mut described = without_empty(snake(answer["KeyMetadata"].clone()));
    let id = described["key_id"].as_str().unwrap_or_default().to_owned();
    let primary = described["primary_key_version"].as_str().unwrap_or_default().to_owned();
    let which = [("KeyId", &*id), ("KeyVersionId", &*primary)];
    let version = client.alibaba("DescribeKeyVersion", &which).await?;
    for field in ["Encryptions", "LastUsedDate", "LastUsedBy", "LastUsedFor"] {
        let said = &version["KeyVersion"][field];
        if !said.is_null() {
            described[snake_name(field)] = said.clone();
        }
    }
    let names =
        pages(client, "ListAliasesByKeyId", &[("KeyId", &id)], ("Aliases", "Alias")).await?;
    let names: Vec<Value> = names.iter().map(|alias| alias["AliasName"].clone()).collect();
    described["aliases"] = Value::Array(names);
    let tags = client.alibaba("ListResourceTags", &[("KeyId", &id)]).await?;
    let tags = tags["Tags"]["Tag"].as_array().cloned().unwrap_or_default();
    let tags = tags
        .iter()
        .filter_map(|tag| Some((tag["TagKey"].as_str()?.to_owned(), tag["TagValue"].clone())));
    described["tags"] = Value::Object(tags.collect());
    Ok(described)
}

async fn list(client: &Client, page: u64, all: bool, output: &Output) -> Result<(), Failure> {
    let (ids, total) = if all {
        let keys = pages(client, "ListKeys", &[], ("Keys", "Key")).await?;
        let total = keys.len();
        (keys, total)
    } else {
        let (number, size) = (page.to_string(), PAGE.to_string());
        let parameters = [("PageNumber", &*number), ("PageSize", &*size)];
        let answer = client.alibaba("ListKeys", &parameters).await?;
        let keys = answer["Keys"]["Key"].as_array().cloned().unwrap_or_default();
        (keys, total_of(&answer))
    };
    let names = alias_names(client).await?;
    let items: Vec<Value> = stream::iter(ids)
        .map(|key| row(client, &names, key))
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    let seen =
        if all { total } else { usize::try_from(page).unwrap_or(usize::MAX).saturating_mul(PAGE) };
    let next = if seen < total { json!(page + 1) } else { Value::Null };
    let columns = [
        Column("KEY", "key_id"),
        Column("ALIASES", "aliases"),
        Column("STATE", "key_state"),
        Column("SPEC", "key_spec"),
        Column("ROTATION", "automatic_rotation"),
        Column("CREATED", "creation_date"),
    ];
    output.list(&items, &next, &columns);
    if !next.is_null() {
        output.hint(&format!("{total} keys; --page {} shows more, --all shows all", page + 1));
    }
    Ok(())
}

async fn row(
    client: &Client,
    names: &BTreeMap<String, Vec<Value>>,
    key: Value,
) -> Result<Value, Failure> {
    let id = key["KeyId"].as_str().unwrap_or_default();
    let answer = client.alibaba("DescribeKey", &[("KeyId", id)]).await?;
    let mut item = without_empty(snake(answer["KeyMetadata"].clone()));
    item["aliases"] = Value::Array(names.get(id).cloned().unwrap_or_default());
    Ok(item)
}

/// The names of each key that has any.
async fn alias_names(client: &Client) -> Result<BTreeMap<String, Vec<Value>>, Failure> {
    let mut names: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for alias in pages(client, "ListAliases", &[], ("Aliases", "Alias")).await? {
        let key = alias["KeyId"].as_str().unwrap_or_default().to_owned();
        names.entry(key).or_default().push(alias["AliasName"].clone());
    }
    Ok(names)
}

async fn aliases(client: &Client, action: AliasAction, output: &Output) -> Result<(), Failure> {
    let (call, alias, key) = match action {
        AliasAction::Create { alias, key } => ("CreateAlias", alias, Some(key)),
        AliasAction::Update { alias, key } => ("UpdateAlias", alias, Some(key)),
        AliasAction::Delete { alias } => ("DeleteAlias", alias, None),
        AliasAction::List => {
            let found = pages(client, "ListAliases", &[], ("Aliases", "Alias")).await?;
            let items: Vec<Value> = found.into_iter().map(snake).collect();
            let columns = [Column("ALIAS", "alias_name"), Column("KEY", "key_id")];
            output.list(&items, &Value::Null, &columns);
            return Ok(());
        }
    };
    let mut parameters = vec![("AliasName", &*alias)];
    if let Some(key) = &key {
        parameters.push(("KeyId", key));
    }
    client.alibaba(call, &parameters).await?;
    let said = json!({ "alias_name": alias, "key": key });
    output.object(&said, || match &key {
        Some(key) => format!("{alias} names the key {key}"),
        None => format!("{alias} names no key any more"),
    });
    Ok(())
}

/// All entries of a list that comes in pages.
async fn pages(
    client: &Client,
    action: &str,
    parameters: &[(&str, &str)],
    (outer, inner): (&str, &str),
) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::new();
    for number in 1.. {
        let (number, size) = (u64::to_string(&number), WIRE_PAGE.to_string());
        let page = [("PageNumber", &*number), ("PageSize", &*size)];
        let parameters: Vec<(&str, &str)> = parameters.iter().chain(&page).copied().collect();
        let answer = client.alibaba(action, &parameters).await?;
        let more = answer[outer][inner].as_array().cloned().unwrap_or_default();
        let ended = more.is_empty();
        items.extend(more);
        if ended || items.len() >= total_of(&answer) {
            break;
        }
    }
    Ok(items)
}

fn total_of(answer: &Value) -> usize {
    answer["TotalCount"].as_u64().and_then(|total| usize::try_from(total).ok()).unwrap_or(0)
}

fn tags_json(tags: &[(String, String)]) -> String {
    let tags: Vec<Value> =
        tags.iter().map(|(key, value)| json!({ "TagKey": key, "TagValue": value })).collect();
    Value::Array(tags).to_string()
}

/// `--rotate-every`: a number of days, or `off`.
enum Rotation {
    Off,
    Every { text: String },
}

impl Rotation {
    fn parse(text: &str) -> Result<Self, Failure> {
        if text == "off" {
            return Ok(Self::Off);
        }
        match text.trim_end_matches('d').parse::<u32>() {
            Ok(days) => Ok(Self::Every { text: format!("{days}d") }),
            Err(_) => Err(Failure::new(Exit::Usage, "give a number of days (7–730), or `off`")),
        }
    }

    fn parameters(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Off => vec![("EnableAutomaticRotation", "false")],
            Self::Every { text } => {
                vec![("EnableAutomaticRotation", "true"), ("RotationInterval", text)]
            }
        }
    }

    fn said(&self) -> String {
        match self {
            Self::Off => "only when asked to".to_owned(),
            Self::Every { text } => format!("by itself every {} days", text.trim_end_matches('d')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_key_is_named_once() {
        let held = |plugin: &str, name: &str, ends: &str| {
            let ends = format!("2026-11-22T17:0{ends}.000Z");
            json!({"plugin": plugin, "cluster": "c", "cluster_name": name, "lease_ends": ends})
        };
        let told = json!([
            held("cp-1", "prod", "4:11"),
            held("plugin", "prod", "4:12"),
            held("plugin", "prod", "5:01"),
            held("plugin", "prod", "4:59"),
            held("plugin", "", "4:13"),
            {"plugin": "cp-9", "lease_ends": "2026-11-22T17:04:14.000Z"},
        ]);
        assert_eq!(
            still_held(&told),
            "
plugin cp-1 of cluster prod has not confirmed: it may go on reading until 2026-11-22T17:04:11.000Z
plugin plugin of cluster prod has not confirmed in 3 of its processes: they may go on reading until 2026-11-22T17:05:01.000Z
plugin plugin of cluster c has not confirmed: it may go on reading until 2026-11-22T17:04:13.000Z
plugin cp-9 has not confirmed: it may go on reading until 2026-11-22T17:04:14.000Z"
        );
        assert_eq!(still_held(&Value::Null), "");
    }
}
