//! Whether every apiserver uses a key id.
//!
//! An apiserver counts the key ids it was told by Status, and when last
//! (`apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds`). It then has a new
//! seed encrypted, and only once that has succeeded does it write under the new key id; until then
//! its health check `kms-provider…` fails. So both have to hold, in this order. Asking for its
//! health makes it ask for Status itself if the last one is older than twenty seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use futures_util::future::join_all;
use lastkey_crypto::mac;

use super::loads::Loads;
use crate::cluster::ApiServer;

const TOLD: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{";
pub(super) const USED: &str = "apiserver_envelope_encryption_key_id_hash_total{";
const TRANSFORMED: &str = "apiserver_storage_transformation_operations_total{";

/// The hash under which an apiserver's metrics name a key id.
pub(crate) fn hash_of(key_id: &str) -> String {
    format!("sha256:{}", hex::encode(mac::sha256(&[key_id.as_bytes()])))
}

/// The apiservers that do not use this key id, each with a reason, and with the way out where that
/// shows: from their flags, or because they are `late`, and nothing comes by itself. They are to read
/// their configuration from `path`, if it is known.
pub(super) async fn behind(
    api: &ApiServer,
    key_id: &str,
    (path, late): (Option<&Path>, bool),
) -> Vec<String> {
    let path = path.unwrap_or(Path::new("FILE"));
    let hash = hash_of(key_id);
    let asked = api.urls().enumerate().map(|(index, url)| {
        let hash = &hash;
        async move {
            let why = why_behind(api, index, hash).await?;
            let hint = match why.lacks {
                Lacks::AnyProvider => Loads::of(url).if_never_told(path, late),
                Lacks::ThisOne if late => Loads::of(url).if_told_others(path),
                Lacks::ThisOne | Lacks::Nothing => String::new(),
            };
            Some(format!("{url} {}{hint}", why.said))
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Why an apiserver is behind.
struct Why {
    said: String,
    lacks: Lacks,
}

/// What an apiserver may not have loaded.
enum Lacks {
    Nothing,
    /// No plugin has ever told it any key id.
    AnyProvider,
    /// Plugins have told it others only.
    ThisOne,
}

async fn why_behind(api: &ApiServer, server: usize, hash: &str) -> Option<Why> {
    let why = |said: String| Some(Why { said, lacks: Lacks::Nothing });
    let (told, deaf) = match api.metrics(server).await {
        Ok(text) => (newest_is(&text, hash), told_last(&text).is_empty()),
        Err(error) => return why(format!("cannot be asked: {error}")),
    };
    // Asked in any case: it makes the apiserver ask its plugin.
    let health = api.readyz(server).await;
    let waits_for_plugin = matches!(
        &health, Ok(Err(failed)) if failed.iter().any(|name| name.starts_with("kms-provider"))
    );
    match told {
        // Before its plugin has answered once, one that was just started counts nothing.
        Told::Never if waits_for_plugin => {
            return why(
                "was not told the new key id yet: it cannot work with its KMS provider: is \
                        the plugin running?"
                    .to_owned(),
            );
        }
        Told::Never => {
            let said = "was not told the new key id yet".to_owned();
            let lacks = if deaf { Lacks::AnyProvider } else { Lacks::ThisOne };
            return Some(Why { said, lacks });
        }
        Told::Before => return why("was told another key id since".to_owned()),
        Told::Last => {}
    }
    match health {
        Err(error) => why(format!("cannot be asked: {error}")),
        Ok(_) if waits_for_plugin => why("has no seed under the new key id yet".to_owned()),
        Ok(_) => None,
    }
}

/// Whether any apiserver has written under this key id.
pub(super) async fn has_written(api: &ApiServer, key_id: &str) -> bool {
    let hash = hash_of(key_id);
    let asked = (0..api.urls().len()).map(|server| api.metrics(server));
    join_all(asked).await.into_iter().flatten().any(|text| wrote(&text, &hash))
}

fn wrote(text: &str, hash: &str) -> bool {
    text.lines().filter_map(|line| sample(line, USED)).any(|(labels, count)| {
        label(labels, "key_id_hash") == Some(hash)
            && label(labels, "transformation_type") == Some("to_storage")
            && count > 0.0
    })
}

/// Why it cannot be said that nothing but these kinds is under a KMS. An apiserver that is started reads
/// all that it keeps in memory, and counts that by kind and provider (1.32 and later).
pub(super) async fn why_there_may_be_more(
    api: &ApiServer,
    kinds: &BTreeSet<String>,
) -> Option<String> {
    let asked = api.urls().enumerate().map(|(index, url)| async move {
        let why = match api.metrics(index).await {
            Ok(text) => match others_under_kms(&text, kinds) {
                None => "does not count by kind what it reads under a KMS".to_owned(),
                Some(others) if others.is_empty() => return None,
                Some(others) => {
                    let others: Vec<&str> = others.into_iter().collect();
                    format!("has objects under a KMS of {}", others.join(", "))
                }
            },
            Err(error) => format!("cannot be asked: {error}"),
        };
        Some(format!("{url} {why}"))
    });
    join_all(asked).await.into_iter().flatten().next()
}

/// The other kinds that are under a KMS; `None` where not even those are known to be.
fn others_under_kms<'a>(text: &'a str, kinds: &BTreeSet<String>) -> Option<BTreeSet<&'a str>> {
    let counted = text.lines().filter_map(|line| sample(line, TRANSFORMED));
    let under = counted.filter(|(labels, count)| {
        let provider = label(labels, "transformer_prefix").unwrap_or_default();
        *count > 0.0 && provider.starts_with("k8s:enc:kms:")
    });
    let under: Option<BTreeSet<&str>> =
        under.map(|(labels, _)| label(labels, "resource")).collect();
    let (known, others): (BTreeSet<&str>, BTreeSet<&str>) =
        under?.into_iter().partition(|kind| kinds.contains(*kind));
    (!known.is_empty() || !others.is_empty()).then_some(others)
}

/// When an apiserver was told a key id.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Never,
    /// And another one since.
    Before,
    Last,
}

/// Of the providers that were ever told this key id, each has to have been told it last.
fn newest_is(text: &str, hash: &str) -> Told {
    let mut newest: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (labels, time) in text.lines().filter_map(|line| sample(line, TOLD)) {
        let provider = label(labels, "provider_name").unwrap_or_default();
        let (ours, others) = newest.entry(provider).or_default();
        let known = if label(labels, "key_id_hash") == Some(hash) { ours } else { others };
        *known = known.max(time);
    }
    let told: Vec<_> = newest.values().filter(|(ours, _)| *ours > 0.0).collect();
    match told.iter().all(|(ours, others)| ours >= others) {
        _ if told.is_empty() => Told::Never,
        true => Told::Last,
        false => Told::Before,
    }
}

/// What a provider named last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToldLast {
    /// When, by the apiserver's clock, in seconds since 1970.
    pub at: f64,
    /// The hashes of the key ids; several where they came at one moment.
    pub hashes: BTreeSet<String>,
}

/// What each provider named last.
pub(crate) fn told_last(text: &str) -> BTreeMap<String, ToldLast> {
    let mut newest: BTreeMap<String, ToldLast> = BTreeMap::new();
    for (labels, time) in text.lines().filter_map(|line| sample(line, TOLD)) {
        let Some(hash) = label(labels, "key_id_hash") else { continue };
        let provider = label(labels, "provider_name").unwrap_or_default();
        let last = newest.entry(provider.to_owned()).or_default();
        if time > last.at {
            *last = ToldLast { at: time, hashes: BTreeSet::new() };
        }
        if time >= last.at {
            last.hashes.insert(hash.to_owned());
        }
    }
    newest
}

/// Labels and value of a line of that metric.
pub(super) fn sample<'a>(line: &'a str, metric: &str) -> Option<(&'a str, f64)> {
    let (labels, value) = line.strip_prefix(metric)?.rsplit_once('}')?;
    Some((labels, value.split_whitespace().next()?.parse().ok()?))
}

/// The value of a label; those we look at have nothing to escape.
pub(super) fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split("\",").find_map(|pair| {
        let (key, value) = pair.split_once("=\"")?;
        (key.trim() == name).then_some(value.trim_end_matches('"'))
    })
}

/// For the fuzz target: reads metrics.
pub(super) fn parse(text: &str) {
    let _ = (newest_is(text, "sha256:0"), wrote(text, "sha256:0"), told_last(text));
    let _ = others_under_kms(text, &BTreeSet::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(provider: &str, hash: &str, time: &str) -> String {
        format!(
            "{TOLD}apiserver_id_hash=\"sha256:a\",key_id_hash=\"{hash}\",provider_name=\"{provider}\"}} {time}\n"
        )
    }

    #[test]
    fn who_was_told_last() {
        let text = format!(
            "# HELP x\n{}{}{}",
            line("lastkey", "sha256:old", "1.79e+09"),
            line("lastkey", "sha256:new", "1.790000001e+09"),
            line("other", "sha256:else", "1.8e+09")
        );
        assert_eq!(newest_is(&text, "sha256:new"), Told::Last);
        assert_eq!(newest_is(&text, "sha256:old"), Told::Before);
        assert_eq!(newest_is(&text, "sha256:no"), Told::Never);
        // Without the label that newer releases have.
        let old = format!("{TOLD}key_id_hash=\"sha256:new\",provider_name=\"p\"}} 5\n");
        assert_eq!(newest_is(&old, "sha256:new"), Told::Last);
        for garbage in ["", "}", TOLD, "apiserver_envelope_encryption_key_id_hash_total{} x"] {
            assert_eq!(newest_is(garbage, "sha256:new"), Told::Never);
        }
    }

    #[test]
    fn the_newest_of_each_provider() {
        let text = [
            line("lastkey", "sha256:old", "5"),
            line("lastkey", "sha256:new", "6"),
            line("other", "sha256:one", "7"),
            line("other", "sha256:two", "7"),
        ];
        let told = told_last(&text.concat());
        let of =
            |provider: &str| told[provider].hashes.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((told["lastkey"].at, of("lastkey")), (6.0, vec!["sha256:new"]));
        assert_eq!(of("other"), ["sha256:one", "sha256:two"]);
        assert!(told_last("}").is_empty());
    }

    #[test]
    fn other_kinds_under_a_kms() {
        let read = |labels: &str, prefix: &str, count: u32| {
            let status = "status=\"OK\",transformation_type=\"from_storage\"";
            format!("{TRANSFORMED}{labels}{status},transformer_prefix=\"{prefix}\"}} {count}\n")
        };
        let (secrets, others) = ("resource=\"secrets\",", "resource=\"widgets.example.org\",");
        let kms = "k8s:enc:kms:v2:lastkey:";
        let kinds = BTreeSet::from(["secrets".to_owned()]);
        let own = read(secrets, kms, 3);
        let clear = read(others, "identity", 9) + &read(others, kms, 0);
        assert_eq!(others_under_kms(&format!("{own}{clear}"), &kinds), Some(BTreeSet::new()));
        let other = read(others, "k8s:enc:kms:v1:old:", 1);
        let found = BTreeSet::from(["widgets.example.org"]);
        assert_eq!(others_under_kms(&format!("{own}{other}"), &kinds), Some(found.clone()));
        assert_eq!(others_under_kms(&other, &kinds), Some(found));
        // Up to 1.31 it is not said of which kind; and one that has just started has read nothing.
        for text in [read("", kms, 3), own + &read("", kms, 3), clear, String::new()] {
            assert_eq!(others_under_kms(&text, &kinds), None, "{text}");
        }
    }

    #[test]
    fn what_was_written() {
        let used = |kind: &str, count: &str| {
            format!(
                "{USED}key_id_hash=\"sha256:new\",provider_name=\"p\",transformation_type=\"{kind}\"}} {count}\n"
            )
        };
        assert!(wrote(&used("to_storage", "3"), "sha256:new"));
        assert!(!wrote(&used("from_storage", "3"), "sha256:new"));
        assert!(!wrote(&used("to_storage", "0"), "sha256:new"));
        assert!(!wrote(&used("to_storage", "3"), "sha256:old"));
    }

    #[test]
    fn hashes_are_those_of_an_apiserver() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hash_of(""), empty);
    }
}
