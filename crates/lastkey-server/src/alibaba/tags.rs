//! Operations on tags: the older ones on one key, the newer ones on several resources.

use std::collections::BTreeMap;

use lastkey_engine::{
    Error, KeyRef,
    command::{
        ListResourceTags, ListTagResources, MAX_RESOURCES, TagResource, TagResources,
        UntagResource, UntagResources, UntagWhich,
    },
};
use serde::Deserialize;

use super::{
    call::{Answer, Call, collect_tags},
    refusal::Refusal,
};

pub(super) async fn tag_resource(call: &Call<'_>) -> Answer {
    keys_alone(call)?;
    let tags = call.tags()?;
    if tags.is_empty() {
        return Err(Error::MissingParameter("Tags").into());
    }
    call.execute(TagResource { key: call.key()?, tags }).await?;
    call.done()
}

pub(super) async fn untag_resource(call: &Call<'_>) -> Answer {
    keys_alone(call)?;
    let names = call.json("TagKeys")?.ok_or(Error::MissingParameter("TagKeys"))?;
    call.execute(UntagResource { key: call.key()?, which: UntagWhich::Names(names) }).await?;
    call.done()
}

pub(super) async fn list_resource_tags(call: &Call<'_>) -> Answer {
    let tagged = call.execute(ListResourceTags { key: call.key()? }).await?;
    call.answer(|answer| {
        answer.list(("Tags", "Tag"), &tagged.tags, |entry, (name, value)| {
            entry.plain("KeyId", tagged.key_id);
            entry.text("TagKey", name);
            entry.text("TagValue", value);
        });
    })
}

pub(super) async fn tag_resources(call: &Call<'_>) -> Answer {
    let keys = resources(call)?;
    let tags = tags(call)?;
    if tags.is_empty() {
        return Err(Error::MissingParameter("Tag").into());
    }
    call.execute(TagResources { keys: require(keys)?, tags }).await?;
    call.done()
}

pub(super) async fn untag_resources(call: &Call<'_>) -> Answer {
    let keys = resources(call)?;
    let names = texts(call, "TagKey")?;
    let all = call.boolean("All")?.unwrap_or(false);
    let which = match (names.is_empty(), all) {
        (false, _) => UntagWhich::Names(names),
        (true, true) => UntagWhich::All,
        (true, false) => return Err(Error::MissingParameter("TagKey").into()),
    };
    call.execute(UntagResources { keys: require(keys)?, which }).await?;
    call.done()
}

pub(super) async fn list_tag_resources(call: &Call<'_>) -> Answer {
    let after = call
        .params
        .non_empty("NextToken")
        .map(|token| {
            token.parse().map_err(|_| Error::invalid("NextToken", "it is not one of ours"))
        })
        .transpose()?;
    let command = ListTagResources { keys: resources(call)?, tags: tag_filters(call)?, after };
    let (found, next) = call.execute(command).await?;
    call.answer(|answer| {
        let entries = found
            .iter()
            .flat_map(|key| key.tags.iter().map(move |(name, value)| (key, name, value)));
        answer.list(("TagResources", "TagResource"), entries, |entry, (key, name, value)| {
            entry.plain("ResourceId", key.key_id);
            entry.plain("ResourceType", "key");
            entry.text("TagKey", name);
            entry.text("TagValue", value);
        });
        if let Some(next) = next {
            answer.plain("NextToken", next);
        }
    })
}

/// The older operations name a secret or certificate by parameters of their own.
fn keys_alone(call: &Call<'_>) -> Result<(), Refusal> {
    call.not_offered("SecretName", "tagging a secret")?;
    call.not_offered("CertificateId", "tagging a certificate")
}

fn require(keys: Vec<KeyRef>) -> Result<Vec<KeyRef>, Refusal> {
    if keys.is_empty() {
        return Err(Error::MissingParameter("ResourceId").into());
    }
    Ok(keys)
}

fn resources(call: &Call<'_>) -> Result<Vec<KeyRef>, Refusal> {
    match call.params.non_empty("ResourceType") {
        Some(kind) if kind.eq_ignore_ascii_case("key") => {}
        Some(_) => return Err(Error::Unsupported("this ResourceType").into()),
        None => return Err(Error::MissingParameter("ResourceType").into()),
    }
    let ids = texts(call, "ResourceId")?;
    if ids.len() > MAX_RESOURCES {
        return Err(Error::LimitExceeded { what: "resources", limit: MAX_RESOURCES }.into());
    }
    Ok(ids.iter().map(|id| KeyRef::parse(id)).collect::<Result<_, _>>()?)
}

/// `Name.1`, `Name.2`, …, or `Name` with a JSON list.
fn texts(call: &Call<'_>, name: &'static str) -> Result<Vec<String>, Refusal> {
    if let Some(list) = call.json::<Vec<String>>(name)? {
        return Ok(list);
    }
    let mut flat = BTreeMap::new();
    for param in call.params.with_prefix(&format!("{name}.")) {
        let index = index(name, &param.name[name.len() + 1..])?;
        flat.insert(index, param.value.to_string());
    }
    Ok(flat.into_values().collect())
}

#[derive(Deserialize)]
struct Tag {
    #[serde(rename = "Key")]
    key: String,
    #[serde(rename = "Value")]
    value: Option<String>,
}

/// For the fuzz target: tags in JSON, and the number in a flattened list.
pub(super) fn parse_parameter(text: &str) {
    let _ = serde_json::from_str::<Vec<Tag>>(text);
    if let Ok(number) = index("Tag", text) {
        assert_eq!(number.to_string(), text, "one spelling");
    }
}

fn tags(call: &Call<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let tags = tag_filters(call)?.into_iter();
    collect_tags("Tag", tags.map(|(key, value)| (key, value.unwrap_or_default())))
}

/// `Tag.1.Key`, `Tag.1.Value`, …, or `Tag` with a JSON list of the same.
fn tag_filters(call: &Call<'_>) -> Result<Vec<(String, Option<String>)>, Refusal> {
    const NAME: &str = "Tag";
    if let Some(list) = call.json::<Vec<Tag>>(NAME)? {
        return Ok(list.into_iter().map(|tag| (tag.key, tag.value)).collect());
    }
    let mut flat: BTreeMap<u16, (Option<String>, Option<String>)> = BTreeMap::new();
    for param in call.params.with_prefix("Tag.") {
        let wrong = || Error::invalid(NAME, "give Tag.1.Key and Tag.1.Value");
        let (number, field) = param.name[NAME.len() + 1..].split_once('.').ok_or_else(wrong)?;
        let entry = flat.entry(index(NAME, number)?).or_default();
        match field {
            "Key" => entry.0 = Some(param.value.to_string()),
            "Value" => entry.1 = Some(param.value.to_string()),
            _ => return Err(wrong().into()),
        }
    }
    flat.into_values()
        .map(|(key, value)| Ok((key.ok_or(Error::MissingParameter("Tag.N.Key"))?, value)))
        .collect()
}

/// The number in a flattened list; leading zeros would be a second spelling.
fn index(name: &'static str, text: &str) -> Result<u16, Refusal> {
    let number = text.parse::<u16>().ok().filter(|number| number.to_string() == text);
    Ok(number.ok_or_else(|| Error::invalid(name, "give a list that is numbered from 1"))?)
}
