//! Which of our key versions the apiservers write under now.
//!
//! An apiserver writes with one encrypted seed for as long as it was told the same key id. Its
//! metrics name the one it was told last by its hash, and its health check fails while its seed is
//! not under that one yet. So an apiserver that is well writes under what it was told last, and
//! under nothing else. Whoever counts what rests in etcd asks *before* counting: what is written
//! under an older version later does not exist then.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use lastkey_crypto::KeyVersionId;
use serde::{Deserialize, Serialize};

use super::Coverage;
use crate::{
    cluster::ApiServer,
    rotation::{hash_of, told_last},
};

/// What one apiserver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its address.
    pub server: String,
    /// The hashes of the key ids that each provider named last; or why nobody knows.
    pub told: Result<BTreeMap<String, BTreeSet<String>>, String>,
}

/// Asks every apiserver.
pub async fn ask(api: &ApiServer) -> Vec<Asked> {
    let asked = api.urls().enumerate().map(|(index, url)| {
        let server = url.to_string();
        async move { Asked { server, told: ask_one(api, index).await } }
    });
    join_all(asked).await
}

async fn ask_one(
    api: &ApiServer,
    server: usize,
) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
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
    /// Why that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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

    /// What each apiserver uses.
    pub fn settle(&self, asked: &[Asked]) -> Vec<ServerUse> {
        asked.iter().map(|one| self.settle_one(one)).collect()
    }

    fn settle_one(&self, asked: &Asked) -> ServerUse {
        let server = asked.server.clone();
        let mut found = ServerUse { server, key_version_ids: BTreeSet::new(), problem: None };
        let told = match &asked.told {
            Ok(told) => told,
            Err(why) => return ServerUse { problem: Some(why.clone()), ..found },
        };
        for (provider, hashes) in told {
            let known: Vec<_> = hashes.iter().map(|hash| self.ours.get(hash).copied()).collect();
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
        Coverage { exact: true, resources: vec![secrets], unknown: vec![], remarks: vec![] }
    }

    fn told(provider: &str, key_ids: &[&str]) -> (String, BTreeSet<String>) {
        (provider.to_owned(), key_ids.iter().map(|id| hash_of(id)).collect())
    }

    fn asked(told: Vec<(String, BTreeSet<String>)>) -> Asked {
        Asked { server: "https://a".to_owned(), told: Ok(told.into_iter().collect()) }
    }

    #[test]
    fn what_is_used_is_known_only_where_every_apiserver_says_so() {
        let mut known = KnownIds::of(&coverage());
        known.learn("new", version(2));
        let new = asked(vec![told("lastkey", &["new"]), told("other", &["theirs"])]);
        let old = asked(vec![told("lastkey", &["old"])]);
        let uses = known.settle(&[new.clone(), old]);
        assert_eq!(all(&uses), Some(BTreeSet::from([version(1), version(2)])));
        let uses = known.settle(std::slice::from_ref(&new));
        assert_eq!(all(&uses), Some(BTreeSet::from([version(2)])));
        // Two ids at one moment: it may be either.
        let both = asked(vec![told("lastkey", &["old", "new"])]);
        assert_eq!(all(&known.settle(&[both])).unwrap().len(), 2);
        // One that cannot be asked, one that is unwell, and an id that nobody knows.
        let away = Asked { server: "https://b".to_owned(), told: Err("is away".to_owned()) };
        assert_eq!(all(&known.settle(&[new, away])), None);
        let stranger = known.settle(&[asked(vec![told("lastkey", &["never seen"])])]);
        assert!(stranger[0].problem.as_ref().unwrap().contains("lastkey"), "{stranger:?}");
        // A provider of which nothing rests in etcd might be ours all the same.
        let unseen = known.settle(&[asked(vec![told("third", &["never seen"])])]);
        assert_eq!(all(&unseen), None);
        // An apiserver without KMS v2 writes under none; no apiserver at all says nothing.
        assert_eq!(all(&known.settle(&[asked(vec![])])), Some(BTreeSet::new()));
        assert_eq!(all(&[]), None);
    }
}
