//! Changes a file so that it says what a [`Draft`] says, and leaves the rest of it as it is.
//!
//! The lines of a provider, with the comments above it, are moved as a whole. Where a file is
//! written in a way that lines cannot be moved (JSON, lists in brackets, anchors), it is written anew
//! from what it says, and its comments are lost ([`Edited::comments_lost`]). Either way the outcome
//! is read again and has to say what was meant.

use zeroize::Zeroizing;

use super::{
    EncryptionConfiguration, Finding, KeyShape, Kms, LocalKey, Named, Provider, ProviderKind, Rule,
    Severity, examine, lines::Lines, write,
};
use crate::transition::bare;

/// A configuration by the parts of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// In order.
    pub rules: Vec<DraftRule>,
}

impl Draft {
    /// Whether it is the other configuration.
    pub fn is_same_as(&self, config: &EncryptionConfiguration) -> bool {
        let same = |(index, (own, other)): (usize, (&DraftRule, &Rule))| {
            let kept = |(at, item): (usize, &Item)| matches!(item, Item::Kept { rule, provider } if (*rule, *provider) == (index, at));
            own.from == Some(index)
                && own.resources.iter().eq(other.resources.iter().map(|named| &named.name))
                && own.providers.len() == other.providers.len()
                && own.providers.iter().enumerate().all(kept)
        };
        let pairs = self.rules.iter().zip(&config.rules);
        self.rules.len() == config.rules.len() && pairs.enumerate().all(same)
    }
}

/// One rule of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftRule {
    /// Which rule of the other configuration it is; `None` for a new one.
    pub from: Option<usize>,
    /// What it is for.
    pub resources: Vec<String>,
    /// In order.
    pub providers: Vec<Item>,
}

/// One provider of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// As it is in the other configuration.
    Kept {
        /// Of which rule.
        rule: usize,
        /// Which one.
        provider: usize,
    },
    /// A plugin, over KMS v2.
    Kms {
        /// What values are found again by.
        name: String,
        /// `unix:///…`
        endpoint: String,
    },
    /// A key that is made for it.
    Local {
        /// `aescbc`, `aesgcm` or `secretbox`.
        kind: String,
    },
    /// In clear.
    Identity,
}

/// The name of a local key that is made.
const KEY_NAME: &str = "lastkey";

/// What becomes of a file.
pub struct Edited {
    /// Its content. It may hold keys.
    pub text: Zeroizing<String>,
    /// Whether it had comments that it has no more.
    pub comments_lost: bool,
}

/// Why a file cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is refused as it is.
    #[error("the configuration has an error: {}", .0.message)]
    Refused(Finding),
    /// It would be refused.
    #[error("the configuration would have an error then: {}", .0.message)]
    WouldBeRefused(Finding),
    /// The outcome does not say what was meant.
    #[error("the configuration is written in a way that cannot be changed; write it anew first")]
    Unclear,
}

/// Findings that a configuration may have on its way: in clear until the next step, Secrets in clear
/// where others are all that it is for, and KMS v1, which an apiserver takes if it was told to.
const PASSABLE: [&str; 3] = ["identity-first", "secrets-uncovered", "kms-v1"];

fn first_error(findings: Vec<Finding>, more: &[&str]) -> Option<Finding> {
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    let passes = |finding: &Finding| PASSABLE.iter().chain(more).any(|code| *code == finding.code);
    findings.into_iter().filter(is_error).find(|finding| !passes(finding))
}

/// The configuration that a file has, if it can be changed at all. An absent one has no rule, and
/// one without a rule gets its first.
///
/// # Errors
/// [`EditError::Refused`] for what an apiserver would not take.
pub fn readable(text: Option<&str>) -> Result<EncryptionConfiguration, EditError> {
    let Some(text) = text else { return Ok(EncryptionConfiguration::default()) };
    let examined = examine(text);
    match first_error(examined.findings, &["no-rules"]) {
        Some(finding) => Err(EditError::Refused(finding)),
        None => Ok(examined.config),
    }
}

/// Makes a file say what `draft` says; `fresh` is the base64 of a new local key.
///
/// # Errors
/// [`EditError`]; what the doctor refuses is never answered.
pub fn apply(text: Option<&str>, draft: &Draft, fresh: &str) -> Result<Edited, EditError> {
    let config = readable(text)?;
    let old = text.unwrap_or_default();
    let meant = meant(&config, draft, fresh);
    let by_lines = text.and_then(|text| Lines::of(text, &config)?.edit(draft, fresh));
    let edited = match by_lines.filter(|new| says(new, &meant)) {
        Some(text) => Edited { text, comments_lost: false },
        None => {
            let text = write::whole(old, draft, fresh).ok_or(EditError::Unclear)?;
            Edited { text, comments_lost: has_comments(old) }
        }
    };
    if let Some(finding) = first_error(examine(&edited.text).findings, &[]) {
        return Err(EditError::WouldBeRefused(finding));
    }
    match says(&edited.text, &meant) {
        true => Ok(edited),
        false => Err(EditError::Unclear),
    }
}

fn says(text: &str, meant: &EncryptionConfiguration) -> bool {
    bare(&examine(text).config) == *meant
}

/// Not quite exact: a `#` in a name counts, which only makes a warning too many.
fn has_comments(text: &str) -> bool {
    text.contains('#')
}

/// What the outcome has to say.
fn meant(config: &EncryptionConfiguration, draft: &Draft, fresh: &str) -> EncryptionConfiguration {
    let provider = |item: &Item| match item {
        Item::Kept { rule, provider } => {
            let rule = config.rules.get(*rule);
            rule.and_then(|rule| rule.providers.get(*provider)).cloned().unwrap_or_default()
        }
        item => Provider { kinds: vec![kind(item, fresh)], line: None },
    };
    let rules = draft.rules.iter().map(|rule| Rule {
        resources: rule.resources.iter().map(|n| Named { name: n.clone(), line: None }).collect(),
        providers: rule.providers.iter().map(provider).collect(),
        line: None,
    });
    bare(&EncryptionConfiguration { rules: rules.collect() })
}

fn kind(item: &Item, fresh: &str) -> ProviderKind {
    let keys = || {
        let secret: KeyShape = super::local_keys::shape(fresh);
        vec![LocalKey { name: KEY_NAME.to_owned(), secret, line: None }]
    };
    match item {
        Item::Kms { name, endpoint } => ProviderKind::Kms(Kms {
            api_version: "v2".to_owned(),
            name: name.clone(),
            endpoint: endpoint.clone(),
            timeout: Some("3s".to_owned()),
            ..Kms::default()
        }),
        Item::Local { kind } if kind == "aescbc" => ProviderKind::AesCbc(keys()),
        Item::Local { kind } if kind == "aesgcm" => ProviderKind::AesGcm(keys()),
        Item::Local { .. } => ProviderKind::Secretbox(keys()),
        Item::Identity | Item::Kept { .. } => ProviderKind::Identity,
    }
}

/// The lines of a new provider, the first of which follows `- `.
pub(super) fn new_lines(item: &Item, fresh: &str) -> Zeroizing<String> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match item {
        Item::Kms { name, endpoint } => Zeroizing::new(format!(
            "kms:\n    apiVersion: v2\n    name: {}\n    endpoint: {}\n    timeout: 3s\n",
            quoted(name),
            quoted(endpoint)
        )),
        Item::Local { kind } => {
            let mut text = Zeroizing::new(String::with_capacity(256));
            text.push_str(kind);
            text.push_str(":\n    keys:\n    - name: ");
            text.push_str(KEY_NAME);
            text.push_str("\n      secret: \"");
            text.push_str(fresh);
            text.push_str("\"\n");
            text
        }
        Item::Identity | Item::Kept { .. } => Zeroizing::new("identity: {}\n".to_owned()),
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
