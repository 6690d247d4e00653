//! Clusters and their plugins' certificates.
//!
//! A certificate is issued after the engine has registered its key's fingerprint: one that were
//! lost on the way is worth nothing until then, and an unregistered one is worth nothing at all.

use std::time::Duration;

use lastkey_crypto::{ClusterId, KeyId};
use lastkey_engine::{
    Cluster, ClusterName, Error, KeyRef, PluginIdentity, Timestamp,
    command::{
        AddCluster, AddClusterOnTerms, AddPlugin, DescribeKey, ListClusters, NodeTerms,
        PluginRequest,
    },
};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, Refusal, json};
use crate::tls::roots_of;

/// The name of a cluster's first plugin, where none is given.
const FIRST_PLUGIN: &str = "plugin";

#[derive(Serialize)]
struct Items<T> {
    items: Vec<T>,
    next: Option<u64>,
}

#[derive(Serialize)]
struct ClusterJson {
    id: ClusterId,
    name: Option<String>,
    keys: Vec<KeyId>,
    created_at: Timestamp,
    plugins: Vec<PluginJson>,
    /// Whether its nodes may ask to enrol.
    trusts_nodes: bool,
    /// Whether the server brings it under a new version of its key by itself.
    rotate_automatically: bool,
    /// And has the older versions retired.
    retire: bool,
}

#[derive(Serialize)]
struct PluginJson {
    name: String,
    fingerprint: String,
    created_at: Timestamp,
    /// When its newest certificate ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
}

impl From<Cluster> for ClusterJson {
    fn from(cluster: Cluster) -> Self {
        let plugin = |plugin: PluginIdentity| PluginJson {
            not_after: plugin.ends(),
            name: plugin.name,
            fingerprint: plugin.fingerprint,
            created_at: plugin.created,
        };
        Self {
            id: cluster.id,
            trusts_nodes: !cluster.node_roots.is_empty(),
            rotate_automatically: cluster.automatic.is_some(),
            retire: cluster.automatic.is_some_and(|automatic| automatic.retire),
            name: cluster.name.map(Into::into),
            keys: cluster.keys,
            created_at: cluster.created,
            plugins: cluster.plugins.into_iter().map(plugin).collect(),
        }
    }
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let clusters = call.execute(ListClusters).await?;
    json(&Items { items: clusters.into_iter().map(ClusterJson::from).collect(), next: None })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCluster {
    name: String,
    key: String,
    csr_pem: Option<String>,
    /// The first plugin's name.
    plugin: Option<String>,
    /// The CA certificates by which its nodes may ask to enrol.
    node_ca_pem: Option<String>,
    /// How long its plugins' certificates are good.
    certificate_life_seconds: Option<u64>,
}

#[derive(Serialize)]
struct Added<'a> {
    id: ClusterId,
    name: Option<String>,
    key_id: KeyId,
    adopted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_pem: Option<String>,
    ca_pem: &'a str,
}

pub(super) async fn add(call: &Call<'_>) -> Answer {
    let new: NewCluster = call.read()?;
    let key = KeyRef::parse(&new.key)?;
    let pki = call.context.pki;
    let plugin_name = ClusterName::parse(new.plugin.as_deref().unwrap_or(FIRST_PLUGIN))?;
    let csr = new.csr_pem.as_deref().map(|pem| pki.read_csr(pem)).transpose()?;
    let plugin = csr
        .as_ref()
        .map(|csr| PluginRequest { name: plugin_name.clone(), fingerprint: csr.fingerprint() });
    let name = ClusterName::parse(&new.name)?;
    let now = call.context.engine.clock().now();
    let roots = new.node_ca_pem.as_deref().map(|pem| roots_of(pem, now)).transpose()?;
    let life = new.certificate_life_seconds.map(Duration::from_secs);
    let add = AddCluster { name: Some(name), keys: vec![key.clone()], plugin };
    let terms = NodeTerms { roots, life };
    let added = call.execute(AddClusterOnTerms { add, terms }).await?;
    let id = added.cluster.id;
    let until = end_of(&added.cluster, plugin_name.as_str());
    let issued = csr
        .map(|csr| pki.issue_plugin(call.context.engine, &csr, (&id, plugin_name.as_str(), until)))
        .transpose()?;
    json(&Added {
        id,
        key_id: key_id(call, key, &added.cluster).await?,
        name: added.cluster.name.map(Into::into),
        adopted: added.adopted,
        certificate_pem: issued.map(|issued| issued.certificate_pem),
        ca_pem: pki.ca_pem(),
    })
}

/// When the certificate of the plugin that was just registered ends.
fn end_of(cluster: &Cluster, plugin: &str) -> Timestamp {
    let registered = cluster.plugin(plugin).and_then(PluginIdentity::ends);
    registered.unwrap_or(Timestamp::from_millis(0))
}

/// The id of the key that was named: a cluster may have others, too.
async fn key_id(call: &Call<'_>, key: KeyRef, cluster: &Cluster) -> Result<KeyId, Refusal> {
    match (&key, &cluster.keys[..]) {
        (KeyRef::Id(id), _) | (_, [id]) => Ok(*id),
        _ => Ok(call.execute(DescribeKey { key }).await?.id),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPlugin {
    name: String,
    csr_pem: String,
}

#[derive(Serialize)]
pub(super) struct Issued<'a> {
    pub(super) certificate_pem: String,
    pub(super) not_after: Timestamp,
    pub(super) ca_pem: &'a str,
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<NewCluster>(bytes).map(|new| KeyRef::parse(&new.key).is_ok());
    let _ = serde_json::from_slice::<NewPlugin>(bytes).map(|new| ClusterName::parse(&new.name));
}

/// The cluster in `/v1/clusters/<id>/plugins`.
pub(super) fn plugins_of(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/v1/clusters/")?.strip_suffix("/plugins")?;
    (!id.contains('/')).then_some(id)
}

pub(super) async fn add_plugin(call: &Call<'_>, path: &str) -> Answer {
    let cluster: ClusterId =
        plugins_of(path).and_then(|id| id.parse().ok()).ok_or(Error::NotFound("cluster"))?;
    let new: NewPlugin = call.read()?;
    let name = ClusterName::parse(&new.name)?;
    let pki = call.context.pki;
    let csr = pki.read_csr(&new.csr_pem)?;
    let plugin = PluginRequest { name: name.clone(), fingerprint: csr.fingerprint() };
    let registered = call.execute(AddPlugin { cluster, plugin }).await?;
    let until = end_of(&registered, name.as_str());
    let issued = pki.issue_plugin(call.context.engine, &csr, (&cluster, name.as_str(), until))?;
    json(&Issued {
        certificate_pem: issued.certificate_pem,
        not_after: issued.not_after,
        ca_pem: pki.ca_pem(),
    })
}
