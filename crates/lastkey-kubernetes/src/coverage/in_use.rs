//! Which of our key versions the apiservers write under now.
//!
//! An apiserver writes with one encrypted seed for as long as it was told the same key id. Its
//! metrics name the one it was told last by its hash, and its health check fails while its seed is
//! not under that one yet. So an apiserver that is well writes under what it was told last, and
//! under nothing else. Whoever counts what rests in etcd asks *before* counting: what is written
//! under an older version later does not exist then.
//!
//! The metrics keep what a provider named last when it is taken out of the configuration, until the
//! apiserver is restarted. So once everything has left the KMS ([`Ended`]), what was not named again
//! since is what was written under last.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use lastkey_crypto::KeyVersionId;
use serde::{Deserialize, Serialize};

use super::Coverage;
use crate::{
    cluster::ApiServer,
    rotation::{ToldLast, hash_of, told_last},
};

/// What one apiserver says.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its address.
    pub server: String,
    /// What each provider named last; or why nobody knows.
    pub told: Result<BTreeMap<String, ToldLast>, String>,
}

/// Asks every apiserver.
pub async fn ask(api: &ApiServer) -> Vec<Asked> {
    let asked = api.urls().enumerate().map(|(index, url)| {
        let server = url.to_string();
        async move { Asked { server, told: ask_one(api, index).await } }
    });
    join_all(asked).await
}

async fn ask_one(api: &ApiServer, server: usize) -> Result<BTreeMap<String, ToldLast>, String> {
    let text = api.metrics(server).await.map_err(|error| format!("cannot be asked: {error}"))?;
    let told = told_last(&text);
    match api.readyz(server).await {
        Err(error) => Err(format!("cannot be asked: {error}")),
        Ok(Err(failed)) if failed.iter().any(|name| name.starts_with("kms-provider")) => {
            Err("its KMS provider is not healthy: what it writes under is not known".to_owned())
        }
        Ok(_) => Ok(told),
    }
}

/// What one apiserver uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerUse {
    /// Its address.
    pub server: String,
    /// Our versions that it writes under.
    pub key_version_ids: BTreeSet<KeyVersionId>,
    /// Those it wrote under until its provider was taken away.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub last_wrote_under: BTreeSet<KeyVersionId>,
    /// Until when at the latest it did (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Why that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// That every apiserver of the cluster has stopped to write under its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// When at the latest, in seconds since 1970.
    pub seconds: i64,
    /// The same (RFC 3339).
    pub at: String,
}

/// A provider that was taken away is asked for its status a little longer, and clocks differ. One
/// that is there is asked once a minute.
const STILL_ASKED: f64 = 60.0;

impl Ended {
    fn is_before(&self, told: &ToldLast) -> bool {
        told.at > self.seconds as f64 + STILL_ASKED
    }
}

/// The versions behind key ids, by the ids' hashes.
#[derive(Debug, Clone, Default)]
pub struct KnownIds {
    ours: BTreeMap<String, KeyVersionId>,
    /// Providers under whose name nothing of ours rests, but something else does.
    foreign: BTreeSet<String>,
}

impl KnownIds {
    /// What a count of etcd tells.
    pub fn of(coverage: &Coverage) -> Self {
        let mut known = Self::default();
        let mut ours = BTreeSet::new();
        let shares = coverage.resources.iter().flat_map(|resource| &resource.under);
        for under in shares.map(|share| &share.under).filter(|_| coverage.exact) {
            let Some(provider) = under.provider.strip_prefix("kms v2 ") else { continue };
            match (&under.key, under.key_version) {
                (Some(key_id), Some(version)) => {
                    known.learn(key_id, version);
                    ours.insert(provider.to_owned());
                }
                _ => drop(known.foreign.insert(provider.to_owned())),
            }
        }
        known.foreign = &known.foreign - &ours;
        known
    }

    /// Adds a key id whose version is known otherwise.
    pub fn learn(&mut self, key_id: &str, version: KeyVersionId) {
        self.ours.insert(hash_of(key_id), version);
    }

    /// What each apiserver uses. `ended` says that they have stopped, where that is known; what was
    /// named after it counts all the same.
    pub fn settle(&self, asked: &[Asked], ended: Option<&Ended>) -> Vec<ServerUse> {
        asked.iter().map(|one| self.settle_one(one, ended)).collect()
    }

    fn settle_one(&self, asked: &Asked, ended: Option<&Ended>) -> ServerUse {
        let mut found = ServerUse {
            server: asked.server.clone(),
            key_version_ids: BTreeSet::new(),
            last_wrote_under: BTreeSet::new(),
            until: None,
            problem: None,
        };
        let told = match &asked.told {
            Ok(told) => told,
            Err(why) => return ServerUse { problem: Some(why.clone()), ..found },
        };
        for (provider, told) in told {
            let hashes = told.hashes.iter();
            let known: Vec<_> = hashes.map(|hash| self.ours.get(hash).copied()).collect();
            if let Some(ended) = ended.filter(|ended| !ended.is_before(told)) {
                let before = found.last_wrote_under.len();
                found.last_wrote_under.extend(known.into_iter().flatten());
                if found.last_wrote_under.len() > before {
                    found.until = Some(ended.at.clone());
                }
                continue;
            }
            if known.iter().any(Option::is_none) && !self.foreign.contains(provider) {
                let why = format!("its provider {provider} uses a key id that is not known here");
                found.problem = Some(why);
            }
            found.key_version_ids.extend(known.into_iter().flatten());
        }
        found
    }
}

/// The versions that are written under, if that is known of every apiserver.
pub fn all(uses: &[ServerUse]) -> Option<BTreeSet<KeyVersionId>> {
    let known = !uses.is_empty() && uses.iter().all(|one| one.problem.is_none());
    known.then(|| uses.iter().flat_map(|one| one.key_version_ids.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::{ResourceCoverage, Share, Under};

    fn version(n: u8) -> KeyVersionId {
        KeyVersionId::from_bytes([n; 16])
    }

    fn under(provider: &str, key: &str, key_version: Option<KeyVersionId>) -> Share {
        let key = Some(key.to_owned());
        let under = Under { provider: provider.to_owned(), key, key_version, cluster: None };
        Share { under, objects: Some(1) }
    }

    fn coverage() -> Coverage {
        let under = vec![
            under("kms v2 lastkey", "old", Some(version(1))),
            under("kms v2 other", "theirs", None),
        ];
        let secrets = ResourceCoverage { resource: "secrets".to_owned(), objects: Some(2), under };
        Coverage {
            exact: true,
            resources: vec![secrets],
            unknown: vec![],
            remarks: vec![],
            partly: false,
        }
    }

    fn told(provider: &str, key_ids: &[&str]) -> (String, ToldLast) {
        told_at(1_000.0, provider, key_ids)
    }

    fn told_at(at: f64, provider: &str, key_ids: &[&str]) -> (String, ToldLast) {
        let hashes = key_ids.iter().map(|id| hash_of(id)).collect();
        (provider.to_owned(), ToldLast { at, hashes })
    }

    fn asked(told: Vec<(String, ToldLast)>) -> Asked {
        Asked { server: "https://a".to_owned(), told: Ok(told.into_iter().collect()) }
    }

    #[test]
    fn what_is_used_is_known_only_where_every_apiserver_says_so() {
        let mut known = KnownIds::of(&coverage());
        known.learn("new", version(2));
        let new = asked(vec![told("lastkey", &["new"]), told("other", &["theirs"])]);
        let old = asked(vec![told("lastkey", &["old"])]);
        let uses = known.settle(&[new.clone(), old], None);
        assert_eq!(all(&uses), Some(BTreeSet::from([version(1), version(2)])));
        let uses = known.settle(std::slice::from_ref(&new), None);
        assert_eq!(all(&uses), Some(BTreeSet::from([version(2)])));
        // Two ids at one moment: it may be either.
        let both = asked(vec![told("lastkey", &["old", "new"])]);
        assert_eq!(all(&known.settle(&[both], None)).unwrap().len(), 2);
        // One that cannot be asked, one that is unwell, and an id that nobody knows.
        let away = Asked { server: "https://b".to_owned(), told: Err("is away".to_owned()) };
        assert_eq!(all(&known.settle(&[new, away], None)), None);
        let stranger = known.settle(&[asked(vec![told("lastkey", &["never seen"])])], None);
        assert!(stranger[0].problem.as_ref().unwrap().contains("lastkey"), "{stranger:?}");
        // A provider of which nothing rests in etcd might be ours all the same.
        let unseen = known.settle(&[asked(vec![told("third", &["never seen"])])], None);
        assert_eq!(all(&unseen), None);
        // An apiserver without KMS v2 writes under none; no apiserver at all says nothing.
        assert_eq!(all(&known.settle(&[asked(vec![])], None)), Some(BTreeSet::new()));
        assert_eq!(all(&[]), None);
    }
    /// An apiserver's metrics keep what a provider named that was taken away.
    #[test]
    fn what_has_left_the_kms_is_said_to_have() {
        let known = KnownIds::of(&coverage());
        let ended = Ended { seconds: 1_000, at: "1970-01-01T00:16:40Z".to_owned() };
        let settle = |told, ended: Option<&Ended>| known.settle(&[asked(told)], ended).remove(0);
        let old = |at| told_at(at, "lastkey", &["old"]);
        // Nothing is known to have ended.
        let uses = settle(vec![old(900.0)], None);
        assert_eq!((uses.key_version_ids.len(), uses.last_wrote_under.len()), (1, 0));
        // Asked the last time before that, or moments after.
        for at in [900.0, 1_030.0] {
            let uses = settle(vec![old(at)], Some(&ended));
            assert!(uses.key_version_ids.is_empty() && uses.problem.is_none(), "{uses:?}");
            assert_eq!(uses.last_wrote_under, BTreeSet::from([version(1)]));
            assert_eq!(uses.until.as_ref(), Some(&ended.at));
            assert_eq!(all(&[uses]), Some(BTreeSet::new()));
        }
        // Somebody has put the provider back: it is asked once a minute.
        let uses = settle(vec![old(1_100.0)], Some(&ended));
        assert_eq!((uses.key_version_ids, uses.until), (BTreeSet::from([version(1)]), None));
        // Another provider has taken over, and its key ids are looked at as ever.
        let over = vec![old(990.0), told_at(2_000.0, "other", &["theirs"])];
        let uses = settle(over, Some(&ended));
        assert!(uses.key_version_ids.is_empty() && uses.problem.is_none(), "{uses:?}");
        assert_eq!(uses.last_wrote_under, BTreeSet::from([version(1)]));
        let third = vec![old(990.0), told_at(2_000.0, "third", &["never seen"])];
        assert!(settle(third, Some(&ended)).problem.is_some());
        // A key id of somebody else's that has gone is no problem any more, and not ours.
        let uses = settle(vec![told_at(900.0, "third", &["never seen"])], Some(&ended));
        assert!(uses.problem.is_none() && uses.last_wrote_under.is_empty(), "{uses:?}");
        assert_eq!(uses.until, None);
    }
}
