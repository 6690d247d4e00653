//! Reads objects one by one through an apiserver.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use lastkey_kubernetes::cluster::{ApiError, ApiServer, Resource};
use serde::Deserialize;
use tokio::time::Instant;

use super::Outcomes;
use crate::{
    DrillError, Event, Operator,
    etcd::Etcd,
    objects::{Address, Contents, Map, kind_of},
};

/// Definitions of custom resources are served some seconds after a start.
const DEFINITIONS: Duration = Duration::from_secs(30);
/// As often is progress told.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// What failed is read again by so many: it may have been the machine.
const AGAIN: usize = 4;
const ATTEMPTS: u32 = 3;

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was read.
    Read,
    /// etcd does not have it any more either: it had expired, or the apiserver keeps house.
    Gone,
    /// No resource that is served.
    NotServed,
    /// It could not be read.
    Failed(ApiError),
}

/// One apiserver's view.
pub(crate) struct Reading<'a> {
    api: &'a ApiServer,
    etcd: &'a Etcd,
    workers: usize,
    pub(super) map: Map,
    /// The versions in which a custom resource can be read.
    versions: HashMap<usize, Vec<Resource>>,
    pub(super) unavailable: Vec<String>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(api: &'a ApiServer, etcd: &'a Etcd, workers: usize) -> Self {
        let map = Map::new(&lastkey_kubernetes::cluster::Discovery::default());
        let (versions, unavailable) = (HashMap::new(), Vec::new());
        Self { api, etcd, workers: workers.max(1), map, versions, unavailable }
    }

    /// Asks what is served, until all that is wanted is, or nothing more comes.
    pub(crate) async fn find_resources(
        &mut self,
        contents: &Contents,
        wanted: &[usize],
    ) -> Result<(), DrillError> {
        let start = Instant::now();
        loop {
            let discovery = self.api.discover().await?;
            self.map = Map::new(&discovery);
            self.unavailable = discovery.unavailable;
            // only custom resources come late
            let waits = wanted
                .iter()
                .map(|item| contents.items[*item].key.as_str())
                .any(|key| kind_of(key).contains('.') && self.map.find(key).is_none());
            if !waits || start.elapsed() > DEFINITIONS {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.find_versions().await;
        Ok(())
    }

    /// The versions of custom resources, the stored one first: another may need a webhook that is
    /// not asked.
    async fn find_versions(&mut self) {
        let definitions = "customresourcedefinitions.apiextensions.k8s.io";
        let named = |resource: &&Resource| resource.full_name() == definitions;
        let Some(definition) = self.map.resources.iter().find(named).cloned() else { return };
        let custom = self.map.resources.iter().enumerate();
        let custom = custom.filter(|(_, resource)| resource.group.contains('.'));
        for (index, resource) in custom {
            let Ok(found) = self.api.get(&definition, "", &resource.full_name()).await else {
                continue;
            };
            let names = served_versions(&found.raw());
            let all = names.into_iter().map(|version| Resource { version, ..resource.clone() });
            self.versions.insert(index, all.collect());
        }
    }

    /// Reads all of these, in their order.
    pub(crate) async fn read_all(
        &self,
        contents: &Contents,
        wanted: &[usize],
        operator: &mut dyn Operator,
    ) -> Result<Outcomes, DrillError> {
        let total = wanted.len() as u64;
        let mut outcomes = vec![Outcome::NotServed; wanted.len()];
        let mut failed = Vec::new();
        {
            let (mut done, mut told) = (0, Instant::now());
            let reads = wanted.iter().enumerate().map(|(at, item)| async move {
                (at, self.read(&contents.items[*item].key, 1).await)
            });
            let mut reads = stream::iter(reads).buffer_unordered(self.workers);
            while let Some((at, outcome)) = reads.next().await {
                if matches!(outcome, Outcome::Failed(_)) {
                    failed.push(at);
                }
                outcomes[at] = outcome;
                done += 1;
                if told.elapsed() >= TELL_EVERY || done == total {
                    told = Instant::now();
                    operator.tell(&Event::Progress { done, total });
                }
            }
        }
        let again = failed.into_iter().map(|at| async move {
            (at, self.read(&contents.items[wanted[at]].key, ATTEMPTS).await)
        });
        let mut again = stream::iter(again).buffer_unordered(AGAIN);
        while let Some((at, outcome)) = again.next().await {
            if let Outcome::Failed(
                error @ (ApiError::Unreachable { .. } | ApiError::NoAnswer { .. }),
            ) = outcome
            {
                return Err(error.into());
            }
            outcomes[at] = outcome;
        }
        Ok(outcomes)
    }

    async fn read(&self, key: &str, attempts: u32) -> Outcome {
        let Some(address) = self.map.find(key) else { return Outcome::NotServed };
        let served = &self.map.resources[address.resource];
        let versions = self.versions.get(&address.resource).filter(|versions| !versions.is_empty());
        let (first, others) = match versions.and_then(|versions| versions.split_first()) {
            Some((stored, others)) => (stored, others),
            None => (served, &[][..]),
        };
        let mut attempt = 1;
        let error = loop {
            match self.read_as(first, &address).await {
                Ok(()) => return Outcome::Read,
                Err(error) if attempt >= attempts || !is_worth_repeating(&error) => break error,
                Err(_) => tokio::time::sleep(Duration::from_millis(200) * attempt).await,
            }
            attempt += 1;
        };
        if error == ApiError::NotFound {
            return self.is_gone(key).await;
        }
        for other in others {
            if self.read_as(other, &address).await.is_ok() {
                return Outcome::Read;
            }
        }
        Outcome::Failed(error)
    }

    /// The object's memory is zeroed at once; that it is the one that was asked for is all that is
    /// looked at.
    async fn read_as(&self, resource: &Resource, address: &Address) -> Result<(), ApiError> {
        let object = self.api.get(resource, &address.namespace, &address.name).await?;
        match object.meta().name == address.name {
            true => Ok(()),
            false => Err(ApiError::Conflict),
        }
    }

    async fn is_gone(&self, key: &str) -> Outcome {
        let path = format!("{}/{key}", self.etcd.access.prefix);
        let mut there = false;
        let looked = match self.etcd.reader() {
            Ok(mut reader) => {
                reader.scan(&path, |found, _| there |= found == path.as_bytes()).await.is_ok()
            }
            Err(_) => false,
        };
        if looked && !there { Outcome::Gone } else { Outcome::Failed(ApiError::NotFound) }
    }
}

/// A failure to decrypt looks like any other of the apiserver's own.
fn is_worth_repeating(error: &ApiError) -> bool {
    error.is_transient()
}

/// The versions that a CustomResourceDefinition serves, the stored one first.
pub(crate) fn served_versions(definition: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Definition {
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        versions: Vec<Version>,
    }
    #[derive(Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Version {
        name: String,
        served: bool,
        storage: bool,
    }
    let Ok(Definition { spec }) = serde_json::from_slice(definition) else { return Vec::new() };
    let mut versions = spec.versions;
    versions.retain(|version| version.served && !version.name.is_empty());
    versions.sort_by_key(|version| !version.storage);
    versions.into_iter().map(|version| version.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_version_comes_first() {
        let definition = br#"{"spec":{"versions":[{"name":"v1alpha1","served":false},
            {"name":"v1","served":true},{"name":"v2","served":true,"storage":true}]}}"#;
        assert_eq!(served_versions(definition), ["v2", "v1"]);
        assert!(served_versions(b"{}").is_empty());
    }
}
