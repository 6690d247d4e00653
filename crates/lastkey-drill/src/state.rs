//! What the restored state has: clusters, keys, versions.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use lastkey_client::{Client, native::PluginStatusRequest};
use lastkey_crypto::{ClusterId, KeyId, KeyVersionId, Lineage};

use crate::DrillError;

const PAGE: usize = 100;

/// A cluster that the backup knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    pub(crate) name: Option<String>,
    pub(crate) keys: Vec<KeyId>,
}

/// A key that it has.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: KeyId,
    pub(crate) alias: Option<String>,
    /// Such as `Enabled`.
    pub(crate) state: String,
}

impl Key {
    pub(crate) fn is_usable(&self) -> bool {
        self.state == "Enabled"
    }

    /// As people know it.
    pub(crate) fn shown(&self) -> String {
        self.alias.clone().unwrap_or_else(|| self.id.to_string())
    }
}

/// A version that it has.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) key: KeyId,
    pub(crate) created_at: String,
    /// It decrypts no more, and its material is still there.
    pub(crate) is_retired: bool,
}

/// What the backup has, as far as it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) clusters: HashMap<ClusterId, Cluster>,
    pub(crate) keys: HashMap<KeyId, Key>,
    pub(crate) versions: HashMap<KeyVersionId, Version>,
    pub(crate) lineages: HashMap<Lineage, KeyId>,
}

impl Known {
    /// Looks at the clusters' keys, and at all others while versions that are wanted are not found.
    pub(crate) async fn of(
        client: &Client,
        wanted: &HashSet<KeyVersionId>,
    ) -> Result<Self, DrillError> {
        let mut known = Self::default();
        for cluster in client.clusters().await?.items {
            let id = cluster["id"].as_str().and_then(|id| id.parse::<ClusterId>().ok());
            let id = id.ok_or(DrillError::Answer("a cluster's id"))?;
            let keys = cluster["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
            let keys = keys.iter().filter_map(|key| key.as_str()?.parse().ok()).collect();
            let name = cluster["name"].as_str().map(str::to_owned);
            known.clusters.insert(id, Cluster { name, keys });
        }
        let granted: Vec<(ClusterId, KeyId)> = known
            .clusters
            .iter()
            .flat_map(|(id, cluster)| cluster.keys.iter().map(|key| (*id, *key)))
            .collect();
        for (cluster, key) in granted {
            known.add(client, key).await?;
            known.add_lineage(client, cluster, key).await?;
        }
        if !wanted.iter().all(|version| known.versions.contains_key(version)) {
            known.add_all(client).await?;
        }
        Ok(known)
    }

    async fn add_all(&mut self, client: &Client) -> Result<(), DrillError> {
        for page in 1_usize.. {
            let (number, size) = (page.to_string(), PAGE.to_string());
            let parameters = [("PageNumber", &*number), ("PageSize", &*size)];
            let answer = client.alibaba("ListKeys", &parameters).await?;
            let keys = answer["Keys"]["Key"].as_array().cloned().unwrap_or_default();
            for key in &keys {
                let id = key["KeyId"].as_str().and_then(|id| id.parse().ok());
                self.add(client, id.ok_or(DrillError::Answer("a key's id"))?).await?;
            }
            if keys.len() < PAGE {
                break;
            }
        }
        Ok(())
    }

    async fn add(&mut self, client: &Client, id: KeyId) -> Result<(), DrillError> {
        if self.keys.contains_key(&id) {
            return Ok(());
        }
        let text = id.to_string();
        let answer = match client.alibaba("DescribeKey", &[("KeyId", &*text)]).await {
            Ok(answer) => answer,
            // a cluster may still name a key whose deletion was carried out
            Err(error) if error.category() == lastkey_client::Category::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let state = answer["KeyMetadata"]["KeyState"].as_str().unwrap_or_default().to_owned();
        let aliases = client.alibaba("ListAliasesByKeyId", &[("KeyId", &*text)]).await?;
        let alias = aliases["Aliases"]["Alias"][0]["AliasName"].as_str().map(str::to_owned);
        self.keys.insert(id, Key { id, alias, state });
        let impact = client.key_impact(id, None).await?;
        for version in impact["versions"].as_array().into_iter().flatten() {
            let text = |field: &str| version[field].as_str().unwrap_or_default();
            if let Ok(version_id) = text("key_version_id").parse() {
                let created_at = text("created_at").to_owned();
                let is_retired = text("state") == "retired";
                self.versions.insert(version_id, Version { key: id, created_at, is_retired });
            }
        }
        Ok(())
    }

    async fn add_lineage(
        &mut self,
        client: &Client,
        cluster: ClusterId,
        key: KeyId,
    ) -> Result<(), DrillError> {
        if !self.keys.contains_key(&key) {
            return Ok(());
        }
        let question = PluginStatusRequest {
            key: &key.to_string(),
            cluster: Some(cluster),
            known: "",
            wait: Duration::ZERO,
            instance: None,
        };
        let lineage = client.plugin_status(question).await?.lineage;
        self.lineages.extend(lineage.map(|lineage| (lineage, key)));
        Ok(())
    }

    /// When the newest version was made that was there before the drill: a key whose time has come
    /// rotates at the start.
    pub(crate) fn newest_before(&self, start: &str) -> Option<String> {
        let times = self.versions.values().map(|version| version.created_at.as_str());
        times.filter(|time| !time.is_empty() && *time < start).max().map(str::to_owned)
    }

    /// The key that a plugin of that cluster encrypts with: one that can be used, and of those the
    /// first that was given.
    pub(crate) fn key_for(&self, cluster: ClusterId) -> Option<KeyId> {
        let keys = &self.clusters.get(&cluster)?.keys;
        let there = || keys.iter().filter(|id| self.keys.contains_key(id));
        let usable = there().find(|id| self.keys.get(id).is_some_and(Key::is_usable));
        usable.or_else(|| there().next()).copied()
    }
}
