//! Coverage: how many objects of a cluster rest under which provider, key and key version, or in
//! clear.
//!
//! Exactly, by reading every value's beginning in etcd ([`exact`]): an apiserver writes there by
//! whom and under which key it encrypted, so nothing has to be decrypted. Without etcd only the
//! apiservers' own counters can be asked ([`counted`]): how many objects there are, and under what
//! those were that it has read since it started.

mod counters;
mod elsewhere;
pub mod in_use;
mod stored;
mod theirs;

use std::collections::{BTreeMap, BTreeSet};

use lastkey_crypto::{ClusterId, KeyVersionId};
use serde::Serialize;

pub use counters::{Sample, samples};
pub(crate) use elsewhere::{Elsewhere, elsewhere};
pub use stored::{Stored, parse};
pub use theirs::not_theirs;

use crate::cluster::{ApiError, ApiServer, BUILT_IN, Discovery, Etcd, EtcdError, Resource};

/// More different keys than this of one resource are counted together.
const MAX_DIFFERENT: usize = 1_000;

/// What one resource's objects rest under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceCoverage {
    /// `secrets`, `widgets.example.org`.
    pub resource: String,
    /// How many there are; `None` where nobody says.
    pub objects: Option<u64>,
    /// Under what, most objects first.
    pub under: Vec<Share>,
}

/// Objects that rest under the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Under what.
    #[serde(flatten)]
    pub under: Under,
    /// How many; `None` where only the kind is known.
    pub objects: Option<u64>,
}

/// What a value rests under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Under {
    /// `clear`, `kms v2 lastkey`, `aescbc`, …: kind, and for KMS its version and the provider's name.
    pub provider: String,
    /// The local key's name, or the id that the plugin gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Our key's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<KeyVersionId>,
    /// The cluster that our plugin encrypted it for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
}

impl Under {
    /// Whether it starts as something encrypted does, and in no way that is known; or it is one of too
    /// many different ones.
    pub(crate) fn cannot_be_told(&self) -> bool {
        matches!(self.provider.as_str(), "unknown" | Self::OTHERS)
    }

    /// More different ones than are told apart.
    const OTHERS: &'static str = "others";
    /// In clear.
    pub const CLEAR: &'static str = "clear";

    pub(crate) fn only(provider: impl Into<String>) -> Self {
        Self { provider: provider.into(), key: None, key_version: None, cluster: None }
    }

    /// Whether it is in clear.
    pub fn is_clear(&self) -> bool {
        self.provider == Self::CLEAR
    }
}

/// A cluster's coverage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Whether every object was looked at.
    pub exact: bool,
    /// Each configured resource that there is.
    pub resources: Vec<ResourceCoverage>,
    /// Names in the configuration that stand for nothing that is served.
    pub unknown: Vec<String>,
    /// What could not be asked, and what was not of one moment.
    pub remarks: Vec<String>,
    /// Whether etcd lets only that be read what is configured: what is under a KMS elsewhere in it is
    /// not known.
    pub partly: bool,
}

impl Coverage {
    /// How many objects rest under each version of our keys, for this cluster's plugin or another.
    pub fn versions(&self) -> BTreeMap<KeyVersionId, u64> {
        let mut versions = BTreeMap::new();
        for share in self.resources.iter().flat_map(|resource| &resource.under) {
            if let (Some(version), Some(objects)) = (share.under.key_version, share.objects) {
                *versions.entry(version).or_default() += objects;
            }
        }
        versions
    }

    fn add_elsewhere(&mut self, found: Elsewhere) {
        for (resource, counts) in found {
            let total = counts.values().sum();
            let under = counts.into_iter().map(|(under, n)| Share { under, objects: Some(n) });
            let remark = "not configured, and something of it is under a KMS: no apiserver can read \
                          it, until a rule names it again";
            self.remarks.push(format!("{resource}: {remark}"));
            let under = under.collect();
            self.resources.push(ResourceCoverage { resource, objects: Some(total), under });
        }
    }
}

/// The resources that names of a configuration stand for, each once, and the names that stand for
/// nothing.
pub fn resources_of(names: &[String], discovery: &Discovery) -> (Vec<Resource>, Vec<String>) {
    let (mut found, mut unknown) = (BTreeSet::new(), Vec::new());
    for name in names {
        let before = found.len();
        let matching: Vec<&Resource> = discovery.matching(name).collect();
        found.extend(matching.iter().map(|resource| (*resource).clone()));
        if matching.is_empty() && found.len() == before {
            unknown.push(name.clone());
        }
    }
    (found.into_iter().collect(), unknown)
}

/// Reads every object's beginning in etcd.
///
/// # Errors
/// When etcd cannot be read to the end.
pub async fn exact(
    etcd: &mut Etcd,
    prefix: &str,
    (resources, unknown): (&[Resource], Vec<String>),
) -> Result<Coverage, EtcdError> {
    let mut coverage = Coverage {
        exact: true,
        resources: Vec::new(),
        unknown,
        remarks: Vec::new(),
        partly: false,
    };
    for resource in resources {
        let mut counts: BTreeMap<Under, u64> = BTreeMap::new();
        let mut count = |value: &[u8]| {
            let under = parse(value).under();
            match counts.len() < MAX_DIFFERENT || counts.contains_key(&under) {
                true => *counts.entry(under).or_default() += 1,
                false => *counts.entry(Under::only(Under::OTHERS)).or_default() += 1,
            }
        };
        let scan = etcd.scan(&place_in_etcd(prefix, resource), |_, value| count(value)).await?;
        let name = resource.full_name();
        if scan.moved {
            let remark = "etcd was compacted meanwhile: not all objects were counted at one moment";
            coverage.remarks.push(format!("{name}: {remark}"));
        }
        let mut under: Vec<Share> = counts
            .into_iter()
            .map(|(under, objects)| Share { under, objects: Some(objects) })
            .collect();
        under.sort_by_key(|share| std::cmp::Reverse(share.objects));
        coverage.resources.push(ResourceCoverage {
            resource: name,
            objects: Some(scan.keys),
            under,
        });
    }
    let places: Vec<String> = resources.iter().map(|one| place_in_etcd(prefix, one)).collect();
    match elsewhere(etcd, (prefix, &places)).await? {
        Some(found) => coverage.add_elsewhere(found),
        None => {
            coverage.partly = true;
            coverage.remarks.push(format!(
                "etcd lets no more be read than what is configured: what an earlier configuration \
                 encrypted is not counted. Let all below {prefix}/ be read"
            ));
        }
    }
    Ok(coverage)
}

/// Asks the apiservers' counters.
///
/// # Errors
/// When none of them can be asked.
pub async fn counted(
    api: &ApiServer,
    (resources, unknown): (&[Resource], Vec<String>),
) -> Result<Coverage, ApiError> {
    let mut remarks = vec![
        "by the apiservers' counters: register etcd with --etcd to count objects by key".to_owned(),
    ];
    let (mut asked, mut last) = (Vec::new(), None);
    for (server, url) in api.urls().enumerate() {
        match api.metrics(server).await {
            Ok(text) => asked.push(text),
            Err(error) => {
                remarks.push(format!("{url}: {error}"));
                last = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (asked.is_empty(), last) {
        return Err(error);
    }
    let resources = resources.iter().map(|resource| counters::of(resource, &asked)).collect();
    Ok(Coverage { exact: false, resources, unknown, remarks, partly: false })
}

/// Where an apiserver keeps the objects of a resource.
///
/// Kubernetes' own lie under their plain name with a few exceptions as old as it is
/// (`SpecialDefaultResourcePrefixes`); what definitions and aggregation add, under group and name.
pub fn place_in_etcd(prefix: &str, resource: &Resource) -> String {
    let (group, name) = (resource.group.as_str(), resource.name.as_str());
    let place = match (group, name) {
        ("", "replicationcontrollers") => "controllers".to_owned(),
        ("", "endpoints") => "services/endpoints".to_owned(),
        ("", "nodes") => "minions".to_owned(),
        ("", "services") => "services/specs".to_owned(),
        ("networking.k8s.io" | "extensions", "ingresses") => "ingress".to_owned(),
        _ if BUILT_IN.contains(&group) => name.to_owned(),
        _ => format!("{group}/{name}"),
    };
    format!("{}/{place}/", prefix.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, name: &str) -> Resource {
        Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            name: name.to_owned(),
            kind: String::new(),
            namespaced: true,
            updatable: true,
        }
    }

    #[test]
    fn places_are_kubernetes() {
        for (group, name, place) in [
            ("", "secrets", "/registry/secrets/"),
            ("", "services", "/registry/services/specs/"),
            ("apps", "deployments", "/registry/deployments/"),
            ("networking.k8s.io", "ingresses", "/registry/ingress/"),
            (
                "storagemigration.k8s.io",
                "storageversionmigrations",
                "/registry/storageversionmigrations/",
            ),
            ("example.org", "widgets", "/registry/example.org/widgets/"),
            (
                "apiextensions.k8s.io",
                "customresourcedefinitions",
                "/registry/apiextensions.k8s.io/customresourcedefinitions/",
            ),
        ] {
            assert_eq!(place_in_etcd("/registry/", &resource(group, name)), place);
        }
    }

    #[test]
    fn names_become_resources_once() {
        let resources = vec![resource("", "secrets"), resource("apps", "deployments")];
        let discovery = Discovery { resources, ..Discovery::default() };
        let names = ["secrets", "*.", "*.apps", "widgets.example.org"].map(str::to_owned);
        let (found, unknown) = resources_of(&names, &discovery);
        let found: Vec<String> = found.iter().map(Resource::full_name).collect();
        assert_eq!(found, ["secrets", "deployments.apps"]);
        assert_eq!(unknown, ["widgets.example.org"]);
    }
}
