//! The proof that nothing is left under an older version.
//!
//! Where etcd is registered, it is read: an apiserver writes beside each object under which key id it
//! encrypted it, so one look shows what a second pass over all objects would have to find out by
//! writing each of them back. It counts only if
//!
//! 1. every object of every resource is under the very key id of the rotation,
//! 2. it is the etcd of these apiservers: whatever they serve objects of, it has objects of (they may
//!    keep some resources elsewhere, `--etcd-servers-overrides`), and
//! 3. nothing has refused to be written.
//!
//! What lies elsewhere below the prefix under an older version of the key, as a rule that was taken out of the
//! configuration leaves it, keeps that version from becoming free. That is looked for whatever the proof
//! is; where etcd is registered and cannot be read, nothing becomes free.
//!
//! Otherwise a pass in which no apiserver writes anything is the proof, as without etcd; or, where
//! something changes objects at each write, one in which they encrypt under the key id alone
//! ([`super::steady`]).

use std::collections::BTreeMap;

use lastkey_client::native::{Rotation, Way};
use lastkey_crypto::{KeyVersionId, plugin_blob::PluginBlob};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{By, Claim, Counts, Event, RENEW_EVERY, Stop, Worker};
use crate::{
    cluster::{Etcd, EtcdAccess, EtcdError, Resource},
    coverage::{Elsewhere, Stored, Under, elsewhere, parse, place_in_etcd},
};

/// What the proof is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Proof {
    /// Whether etcd has shown it.
    pub(super) by_etcd: bool,
    /// Why it has not.
    pub(super) why: String,
    /// What it has shown to be under other versions.
    pub(super) older: BTreeMap<KeyVersionId, u64>,
    /// Whether it could not be read, although it is registered: what lies outside of what is gone
    /// through is not known, so nothing becomes free.
    pub(super) unread: bool,
    /// Whether it lets only that be read what is gone through.
    pub(super) partly: bool,
    /// Whether objects were written anew in the last pass, too, and the apiservers' counts show under
    /// which key id.
    pub(super) by_writes: bool,
}

impl Proof {
    fn not_by_etcd(why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::default() }
    }

    /// With what is under older versions outside of what is gone through.
    fn and_elsewhere(mut self, found: Elsewhere, wanted: KeyVersionId) -> Self {
        let older = |under: &Under| under.key_version.filter(|version| *version != wanted);
        for (resource, counts) in found {
            let mut objects = 0;
            for (version, count) in counts.iter().filter_map(|(u, n)| older(u).map(|v| (v, n))) {
                *self.older.entry(version).or_default() += count;
                objects += count;
            }
            if objects > 0 && self.by_etcd {
                self.by_etcd = false;
                self.why = format!(
                    "{objects} of {resource}, which is not gone through, are under an older version \
                     in etcd"
                );
            }
        }
        self
    }

    /// As reports have it.
    pub(super) fn shown(&self, by: By) -> Value {
        let mut shown = match self.by_etcd || by == By::Cluster {
            true => json!({ "by": "etcd" }),
            false if self.by_writes => json!({ "by": "writes", "why": self.why }),
            false => json!({ "by": "pass", "why": self.why }),
        };
        let older: u64 = self.older.values().sum();
        if by == By::Cluster && older > 0 {
            shown["older"] = json!(older);
        }
        if self.partly {
            shown["not_read"] = json!(
                "what lies in etcd outside of the resources: the registered user may not read it"
            );
        }
        shown
    }

    /// In a sentence.
    pub(super) fn words(&self, by: By) -> &'static str {
        match (by, self.by_etcd) {
            (By::Own, true) if self.partly => {
                "the resources were read in etcd to the end after the last write: every object is \
                 under the key id, and all apiservers use it"
            }
            (By::Own, true) => {
                "etcd was read to the end after the last write: every object is under the key id, \
                 and all apiservers use it"
            }
            (By::Own, false) if self.by_writes => {
                "something changes objects at each write, so that the last pass wrote some anew, too; \
                 all that the apiservers encrypted meanwhile is under the key id, and all use it"
            }
            (By::Own, false) => {
                "in the last pass no apiserver wrote an object anew, and all use the key id"
            }
            (By::Cluster, _) if !self.older.is_empty() => {
                "etcd was read to the end: nothing of the resources is under an older version, other \
                 objects are, and all apiservers use the key id"
            }
            (By::Cluster, _) => {
                "etcd was read to the end: nothing is under an older version, and all apiservers use \
                 the key id"
            }
        }
    }
}

/// What one resource's objects are under.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    current: u64,
    others: u64,
    older: BTreeMap<KeyVersionId, u64>,
}

impl Found {
    fn add(&mut self, value: &[u8], wanted: &Wanted<'_>) {
        let (key_id, wrapped) = match parse(value) {
            Stored::Kms { key_id, wrapped, .. } => (key_id, wrapped),
            _ => (None, &[][..]),
        };
        let version = PluginBlob::parse(wrapped).ok().map(|blob| blob.key().key_version);
        if key_id == Some(wanted.key_id) && version == Some(wanted.version) {
            self.current += 1;
            return;
        }
        self.others += 1;
        if let Some(version) = version.filter(|version| *version != wanted.version) {
            *self.older.entry(version).or_default() += 1;
        }
    }
}

/// What everything is to be under.
struct Wanted<'a> {
    key_id: &'a str,
    version: KeyVersionId,
    namespace: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    fn of(rotation: &'a Rotation) -> Self {
        let (key_id, version) = (rotation.plugin_key_id.as_str(), rotation.target);
        Self { key_id, version, namespace: rotation.namespace.as_deref() }
    }
}

impl Worker {
    /// Whether etcd shows that everything is under the key id. If so, no pass has to.
    pub(super) async fn prove(&self, claim: &mut Claim) -> Result<bool, Stop> {
        claim.state.proof = self.look(claim).await?;
        Ok(claim.state.proof.by_etcd)
    }

    async fn look(&self, claim: &mut Claim) -> Result<Proof, Stop> {
        let Some(access) = &self.etcd else {
            return Ok(Proof::not_by_etcd("etcd is not registered"));
        };
        if claim.rotation.way() == Some(Way::Disable) {
            return Ok(Proof::not_by_etcd("it is on its way to another provider"));
        }
        // What is read is of later than this.
        self.renew_look(claim).await?;
        let began = claim.rotation.now.clone();
        let served = self.count(claim).await?;
        let (resources, rotation) = (claim.state.resources.clone(), claim.rotation.clone());
        let wanted = Wanted::of(&rotation);
        let mut reading = std::pin::pin!(read(access, &resources, &wanted));
        let found = loop {
            let renew = RENEW_EVERY.saturating_sub(claim.saved.elapsed());
            tokio::select! {
                found = &mut reading => break found,
                () = tokio::time::sleep(renew) => self.renew_look(claim).await?,
            }
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "etcd cannot be read: a pass is the proof instead");
                return Ok(Proof { unread: true, ..Proof::not_by_etcd(error.to_string()) });
            }
        };
        let (found, elsewhere) = found;
        let mut proof = judge(&resources, &served, &found);
        proof.partly = elsewhere.is_none() && wanted.namespace.is_none();
        let mut proof = proof.and_elsewhere(elsewhere.unwrap_or_default(), wanted.version);
        if claim.state.total.refused > 0 && proof.by_etcd {
            let older = std::mem::take(&mut proof.older);
            let why = "something has refused to be written";
            proof = Proof { older, partly: proof.partly, ..Proof::not_by_etcd(why) };
        }
        if proof.by_etcd {
            let current = found.iter().map(|one| one.current).sum();
            claim.state.pass_began = began;
            claim.state.pass = Counts { current, ..Counts::default() };
            claim.total = current;
            let counts = claim.state.total;
            (self.watch)(&Event::Progress { done: current, total: current, counts });
        }
        Ok(proof)
    }

    async fn renew_look(&self, claim: &mut Claim) -> Result<(), Stop> {
        let phase = claim.rotation.phase;
        self.save(claim, None, false).await?;
        match claim.rotation.phase == phase {
            true => Ok(()),
            // The key was rotated once more: there is another key id to wait for.
            false => Err(Stop::Again),
        }
    }
}

async fn read(
    access: &EtcdAccess,
    resources: &[Resource],
    wanted: &Wanted<'_>,
) -> Result<(Vec<Found>, Option<Elsewhere>), EtcdError> {
    let mut etcd = Etcd::new(access)?;
    let (mut all, mut places) = (Vec::new(), Vec::new());
    for resource in resources {
        let mut place = place_in_etcd(&access.prefix, resource);
        places.push(place.clone());
        if let Some(namespace) = wanted.namespace {
            place += &format!("{namespace}/");
        }
        let mut found = Found::default();
        etcd.scan(&place, |_, value| found.add(value, wanted)).await?;
        all.push(found);
    }
    // No version becomes free by one namespace.
    let others = match wanted.namespace {
        Some(_) => None,
        None => elsewhere(&mut etcd, (&access.prefix, &places)).await?,
    };
    Ok((all, others))
}

fn judge(resources: &[Resource], served: &[u64], found: &[Found]) -> Proof {
    let mut older: BTreeMap<KeyVersionId, u64> = BTreeMap::new();
    for (version, objects) in found.iter().flat_map(|one| &one.older) {
        *older.entry(*version).or_default() += objects;
    }
    for ((resource, served), found) in resources.iter().zip(served).zip(found) {
        let name = resource.full_name();
        let why = if found.others > 0 {
            format!("{} of {name} are not under the key id in etcd", found.others)
        } else if *served > 0 && found.current == 0 {
            format!("the registered etcd has no {name}, of which the apiservers have {served}")
        } else {
            continue;
        };
        return Proof { why, older, ..Proof::default() };
    }
    Proof { by_etcd: true, older, ..Proof::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str) -> Resource {
        Resource {
            group: String::new(),
            version: "v1".to_owned(),
            name: name.to_owned(),
            kind: String::new(),
            namespaced: true,
            updatable: true,
        }
    }

    fn found(current: u64, others: u64) -> Found {
        Found { current, others, ..Found::default() }
    }

    #[test]
    fn only_everything_is_a_proof() {
        let both = [resource("secrets"), resource("configmaps")];
        let judged = |served: [u64; 2], found: [Found; 2]| judge(&both, &served, &found);
        assert!(judged([3, 1], [found(3, 0), found(1, 0)]).by_etcd);
        // Somebody has made and deleted some since.
        assert!(judged([3, 0], [found(7, 0), found(0, 0)]).by_etcd);
        let left = judged([3, 1], [found(3, 0), found(0, 1)]);
        assert_eq!(
            left.shown(By::Own),
            json!({ "by": "pass", "why": "1 of configmaps are not under the key id in etcd" })
        );
        // Another prefix, or another etcd.
        let elsewhere = judged([3, 1], [found(0, 0), found(1, 0)]);
        assert!(!elsewhere.by_etcd && elsewhere.why.contains("no secrets"), "{elsewhere:?}");
    }

    /// What our plugin makes of a seed, as far as it says of itself.
    fn wrapped(version: KeyVersionId) -> Vec<u8> {
        let head = [&[1][..], &[7; 32], version.as_bytes(), &[7; 16]].concat();
        [head, version.to_string().into_bytes(), vec![0; 64]].concat()
    }

    #[test]
    fn only_the_very_key_id_counts() {
        let [new, old] = [1, 2].map(|n| KeyVersionId::from_bytes([n; 16]));
        let wanted = Wanted { key_id: "id", version: new, namespace: None };
        let mut all = Found::default();
        for value in [
            &b"k8s\0clear"[..],
            b"k8s:enc:secretbox:v1:key1:x",
            b"k8s:enc:kms:v2:lastkey:\x0a\x01x\x12\x02id\x1a\x01w",
            b"k8s:enc:kms:v2:lastkey:broken",
            b"",
        ] {
            all.add(value, &wanted);
        }
        assert_eq!(all, found(0, 5));
        let stored = |key_id: &str, version: KeyVersionId| {
            let wrapped = wrapped(version);
            let mut value = b"k8s:enc:kms:v2:lastkey:".to_vec();
            for (number, bytes) in [(1, &b"data"[..]), (2, key_id.as_bytes()), (3, &wrapped)] {
                crate::protobuf::put_head(&mut value, number, bytes.len());
                value.extend_from_slice(bytes);
            }
            value
        };
        for (key_id, version) in [("id", new), ("other", new), ("id", old), ("older", old)] {
            all.add(&stored(key_id, version), &wanted);
        }
        assert_eq!((all.current, all.others), (1, 8));
        assert_eq!(all.older, BTreeMap::from([(old, 2)]));
        assert_eq!(judge(&[resource("secrets")], &[9], &[all]).older, BTreeMap::from([(old, 2)]));
    }

    /// The cluster's own migrations go over the resources alone; the report says no more than that.
    #[test]
    fn what_a_migration_left_elsewhere_is_in_the_report() {
        let old = KeyVersionId::from_bytes([2; 16]);
        let clean = Proof::default();
        assert_eq!(clean.shown(By::Cluster), json!({ "by": "etcd" }));
        assert!(clean.words(By::Cluster).contains("nothing is under an older version"));
        let left = Proof { older: BTreeMap::from([(old, 4)]), ..Proof::default() };
        assert_eq!(left.shown(By::Cluster), json!({ "by": "etcd", "older": 4 }));
        assert!(left.words(By::Cluster).contains("other objects are"));
    }

    /// What is outside of what is gone through counts, and what may not be read is said.
    #[test]
    fn what_lies_elsewhere_is_no_proof() {
        let [new, old] = [1, 2].map(|n| KeyVersionId::from_bytes([n; 16]));
        let all = || judge(&[resource("secrets")], &[1], &[found(1, 0)]);
        let under = |version| Under { key_version: Some(version), ..Under::only("kms v2 lastkey") };
        let elsewhere = |version| {
            Elsewhere::from([("configmaps".to_owned(), BTreeMap::from([(under(version), 4)]))])
        };
        let proof = all().and_elsewhere(elsewhere(old), new);
        assert_eq!((proof.by_etcd, proof.older), (false, BTreeMap::from([(old, 4)])));
        assert!(all().and_elsewhere(elsewhere(new), new).by_etcd);
        let partly = Proof { partly: true, ..all() };
        assert!(partly.shown(By::Own)["not_read"].is_string());
        assert!(partly.words(By::Own).starts_with("the resources were read"));
    }
}
