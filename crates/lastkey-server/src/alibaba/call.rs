//! One authenticated call: what it asks for, read once into the engine's types.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lastkey_crypto::{EncryptionContext, KeyId, KeyVersionId, blob};
use lastkey_engine::{AliasName, Caller, Engine, Error, KeyRef, Page, command::Command};
use serde::Deserialize;

use super::{
    document::{Document, Format},
    refusal::Refusal,
};
use crate::params::Params;

/// What every operation answers with.
pub(super) type Answer = Result<Document, Refusal>;

/// The outermost element of an answer in XML.
pub(super) const ROOT: &str = "KMS";

/// How this server names itself in ARNs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The region's id.
    pub(crate) region: String,
    /// The account's id.
    pub(crate) account: String,
}

/// One call.
pub(super) struct Call<'a> {
    pub(super) engine: &'a Engine,
    pub(super) caller: &'a Caller,
    pub(super) params: &'a Params<'a>,
    pub(super) format: Format,
    pub(super) place: &'a Place,
    /// Whether the engine was asked, and has therefore recorded what came of it.
    pub(super) asked: AtomicBool,
}

impl Call<'_> {
    /// Asks the engine.
    pub(super) async fn execute<C: Command>(&self, command: C) -> Result<C::Output, Refusal> {
        self.asked.store(true, Ordering::Relaxed);
        Ok(self.engine.execute(self.caller, command).await?)
    }

    /// An answer that holds the request's id and what `fill` writes.
    pub(super) fn answer(&self, fill: impl FnOnce(&mut Document)) -> Answer {
        let mut document = Document::begin(self.format, ROOT);
        fill(&mut document);
        document.plain("RequestId", self.caller.request_id);
        Ok(document)
    }

    /// An answer that holds the request's id alone.
    pub(super) fn done(&self) -> Answer {
        self.answer(|_| {})
    }

    /// The ARN of a key (`key/<id>`) or an alias (`alias/<name>`).
    pub(super) fn arn(&self, resource: std::fmt::Arguments<'_>) -> String {
        format!("acs:kms:{}:{}:{resource}", self.place.region, self.place.account)
    }

    pub(super) fn key_arn(&self, id: KeyId) -> String {
        self.arn(format_args!("key/{id}"))
    }

    pub(super) fn required(&self, name: &'static str) -> Result<&str, Refusal> {
        Ok(self.params.non_empty(name).ok_or(Error::MissingParameter(name))?)
    }

    /// The key in the parameter `KeyId`.
    pub(super) fn key(&self) -> Result<KeyRef, Refusal> {
        Ok(KeyRef::parse(self.required("KeyId")?)?)
    }

    pub(super) fn alias(&self) -> Result<AliasName, Refusal> {
        Ok(AliasName::parse(self.required("AliasName")?)?)
    }

    pub(super) fn key_version(&self) -> Result<KeyVersionId, Refusal> {
        let text = self.required("KeyVersionId")?;
        Ok(text.parse().map_err(|_| Error::KeyVersionNotFound)?)
    }

    pub(super) fn blob(&self) -> Result<Vec<u8>, Refusal> {
        let text = self.required("CiphertextBlob")?;
        Ok(blob::from_base64(text).map_err(|_| Error::InvalidCiphertext)?)
    }

    /// The encryption context in that parameter; the empty one if it is absent.
    pub(super) fn context(&self, name: &'static str) -> Result<EncryptionContext, Refusal> {
        let Some(text) = self.params.non_empty(name) else {
            return Ok(EncryptionContext::empty());
        };
        Ok(EncryptionContext::parse_json(text)
            .map_err(|error| Error::invalid(name, error.to_string()))?)
    }

    /// Refuses a parameter that asks for something we do not do, rather than to ignore it.
    pub(super) fn not_offered(
        &self,
        name: &'static str,
        what: &'static str,
    ) -> Result<(), Refusal> {
        match self.params.non_empty(name) {
            Some(_) => Err(Error::Unsupported(what).into()),
            None => Ok(()),
        }
    }

    pub(super) fn boolean(&self, name: &'static str) -> Result<Option<bool>, Refusal> {
        boolean(self.params, name)
    }

    pub(super) fn number(&self, name: &'static str) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.params.non_empty(name) else { return Ok(None) };
        let number = text.parse().map_err(|_| Error::invalid(name, "give a whole number"))?;
        Ok(Some(number))
    }

    pub(super) fn page(&self) -> Result<Page, Refusal> {
        Ok(Page::new(self.number("PageNumber")?, self.number("PageSize")?)?)
    }

    /// A duration such as `365d`, `168h`, `30m` or `604800s`.
    pub(super) fn interval(&self, name: &'static str) -> Result<Option<Duration>, Refusal> {
        let Some(text) = self.params.non_empty(name) else { return Ok(None) };
        let interval = parse_interval(text)
            .ok_or_else(|| Error::invalid(name, "give a number and d, h, m or s, such as 365d"))?;
        Ok(Some(interval))
    }

    /// A parameter that holds JSON.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, Refusal> {
        let Some(text) = self.params.non_empty(name) else { return Ok(None) };
        let value = serde_json::from_str(text)
            .map_err(|_| Error::invalid(name, "it is not JSON of the documented form"))?;
        Ok(Some(value))
    }

    /// The tags of CreateKey and TagResource: `[{"TagKey":"…","TagValue":"…"}]`.
    pub(super) fn tags(&self) -> Result<BTreeMap<String, String>, Refusal> {
        let tags: Vec<Tag> = self.json("Tags")?.unwrap_or_default();
        collect_tags("Tags", tags.into_iter().map(|tag| (tag.key, tag.value)))
    }
}

/// `true` or `false`, in any case.
pub(super) fn boolean(params: &Params<'_>, name: &'static str) -> Result<Option<bool>, Refusal> {
    match params.non_empty(name) {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(_) => Err(Error::invalid(name, "give true or false").into()),
    }
}

/// A tag in JSON, by either of the names that the API uses.
#[derive(Deserialize)]
struct Tag {
    #[serde(rename = "TagKey")]
    key: String,
    #[serde(rename = "TagValue", default)]
    value: String,
}

/// Tags as a map; a key that occurs twice is a mistake.
pub(super) fn collect_tags(
    name: &'static str,
    tags: impl Iterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut map = BTreeMap::new();
    for (key, value) in tags {
        if map.insert(key, value).is_some() {
            return Err(Error::invalid(name, "a tag's key occurs twice").into());
        }
    }
    Ok(map)
}

/// For the fuzz target: a duration, and tags in JSON.
pub(super) fn parse_parameter(text: &str) {
    let _ = parse_interval(text);
    if let Ok(tags) = serde_json::from_str::<Vec<Tag>>(text) {
        let count = tags.len();
        let map = collect_tags("Tags", tags.into_iter().map(|tag| (tag.key, tag.value)));
        assert!(map.is_ok_and(|map| map.len() == count) || count > 1, "each tag or a refusal");
    }
}

fn parse_interval(text: &str) -> Option<Duration> {
    let unit = text.bytes().last()?;
    let seconds = match unit {
        b'd' => 86_400,
        b'h' => 3600,
        b'm' => 60,
        b's' => 1,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let seconds = |text| parse_interval(text).map(|interval| interval.as_secs());
        assert_eq!(seconds("7d"), Some(604_800));
        assert_eq!(seconds("604800s"), Some(604_800));
        assert_eq!(seconds("168h"), Some(604_800));
        assert_eq!(seconds("10080m"), Some(604_800));
        for bad in ["", "d", "7", "-7d", "+7d", "7 d", "7w", "1.5d", "99999999999999999999d", "é"]
        {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(seconds("18446744073709551615d"), None);
    }
}
