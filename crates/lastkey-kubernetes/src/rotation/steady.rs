//! Whether apiservers have written under one key id alone while a pass went on.
//!
//! Where something changes an object at each write, as a mutating webhook may, no pass is without a
//! write, however often it is made. Then the writes have to show it: an apiserver counts what it
//! encrypts by key id (`apiserver_envelope_encryption_key_id_hash_total`). If each of them was the same
//! process from the pass's beginning to its end, has encrypted nothing under another key id meanwhile,
//! and all of them together as much under this one as was written anew, then that is under this one.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::convergence::{USED, hash_of, label, sample};
use crate::cluster::ApiServer;

const STARTED: &str = "process_start_time_seconds ";

/// What one apiserver has encrypted since it was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counted {
    /// When that was, in its words.
    started: String,
    /// Under the key id.
    under: f64,
    /// Under any other.
    others: f64,
}

/// The same of all of them, by address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Writes(BTreeMap<String, Counted>);

impl Writes {
    /// What they have counted by now; `None` unless all of them say so.
    pub(super) async fn counted(api: &ApiServer, key_id: &str) -> Option<Self> {
        let hash = hash_of(key_id);
        let asked = api.urls().enumerate().map(|(server, url)| {
            let hash = &hash;
            async move { Some((url.to_string(), count(&api.metrics(server).await.ok()?, hash)?)) }
        });
        join_all(asked).await.into_iter().collect::<Option<_>>().map(Self)
    }

    /// Whether all that they have encrypted since is under the key id, and as much as this.
    pub(super) fn show(before: Option<&Self>, now: Option<&Self>, rewritten: u64) -> bool {
        let (Some(Self(before)), Some(Self(now))) = (before, now) else { return false };
        let mut under = 0.0;
        for (url, now) in now {
            let Some(before) = before.get(url) else { return false };
            let others = (now.others - before.others).abs();
            if now.started != before.started || others > 0.5 {
                return false;
            }
            under += now.under - before.under;
        }
        // A pass of more objects than a float can count is none.
        u32::try_from(rewritten).is_ok_and(|rewritten| under > f64::from(rewritten) - 0.5)
    }
}

fn count(text: &str, hash: &str) -> Option<Counted> {
    let started = text.lines().find_map(|line| line.strip_prefix(STARTED))?.trim().to_owned();
    let mut counted = Counted { started, ..Counted::default() };
    for (labels, count) in text.lines().filter_map(|line| sample(line, USED)) {
        if label(labels, "transformation_type") == Some("to_storage") {
            match label(labels, "key_id_hash") == Some(hash) {
                true => counted.under += count,
                false => counted.others += count,
            }
        }
    }
    Some(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(started: &str, under: u64, others: u64) -> Option<Writes> {
        let line = |hash: &str, kind: &str, count: u64| {
            format!(
                "{USED}apiserver_id_hash=\"sha256:f\",key_id_hash=\"sha256:{hash}\",provider_name=\"lastkey\",transformation_type=\"{kind}\"}} {count}\n"
            )
        };
        let text = [
            line("a", "to_storage", under),
            line("a", "from_storage", 900 + under),
            line("b", "from_storage", 700 + under),
            line("b", "to_storage", others),
            format!("{STARTED}{started}\n"),
        ];
        let one = count(&text.concat(), "sha256:a")?;
        Some(Writes(BTreeMap::from([("https://a/".to_owned(), one)])))
    }

    #[test]
    fn only_writes_of_the_same_process_under_the_key_id_show_it() {
        let before = counted("1.7e+09", 10, 5);
        let shows = |now: Option<Writes>| Writes::show(before.as_ref(), now.as_ref(), 3);
        assert!(shows(counted("1.7e+09", 13, 5)) && shows(counted("1.7e+09", 99, 5)));
        assert!(!shows(counted("1.7e+09", 12, 5)), "fewer than were written");
        assert!(!shows(counted("1.7e+09", 99, 6)), "one under another");
        assert!(!shows(counted("1.8e+09", 99, 5)), "another process");
        assert!(!shows(None) && !Writes::show(None, before.as_ref(), 0));
        let more = |n: u64| {
            counted("1.7e+09", n, 5).map(|Writes(one)| {
                Writes(
                    one.into_iter()
                        .chain([("https://b/".to_owned(), Counted::default())])
                        .collect(),
                )
            })
        };
        assert!(!shows(more(99)), "another apiserver");
        assert_eq!(count("", "sha256:a"), None);
        // As it is kept between two commands.
        let kept = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Option<Writes>>(&kept).unwrap(), before);
    }
}
