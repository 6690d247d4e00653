//! The JSON of the native `/v1` API, and one typed call for each route.
//!
//! Identifiers are types, so an answer with a malformed id is garbage at the edge. Fields that a
//! newer server adds are ignored.

mod access;
mod audit;
mod dependants;
mod guard;
mod nodes;
mod plugin;
mod rotations;

use std::time::Duration;

use http::Method;
use lastkey_crypto::{ClusterId, KeyId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Client, Error, api::Reply};

pub use audit::AuditProgress;
pub use guard::RetireVersion;
pub use nodes::{ApproveNode, Enrolment, TrustNodes};
pub use plugin::{
    CachedAnswers, PluginDecrypt, PluginEncrypt, PluginEncrypted, PluginGeneration, PluginPin,
    PluginRecords, PluginStatus, PluginStatusRequest, Refusal,
};
pub use rotations::{
    Course, FinishRotation, FoundObjects, Rotation, RotationLease, RotationPhase, RotationProblem,
    RotationProgress, SaveRotation, StartRotation, Way,
};

/// How much longer than its own waiting time a long poll may take.
pub(crate) const LONG_POLL_GRACE: Duration = Duration::from_secs(5);

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The entries, as the server wrote them.
    pub items: Vec<Value>,
    /// Where the next page starts; `None` on the last.
    #[serde(default)]
    pub next: Option<Value>,
}

/// Registers a cluster.
#[derive(Debug, Clone, Serialize)]
pub struct AddCluster {
    /// What people call it.
    pub name: String,
    /// The key that protects it: an id or `alias/…`.
    pub key: String,
    /// A certificate signing request (PEM) of its first plugin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
    /// What that plugin is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// The CA certificates (PEM) by which its nodes may ask to enrol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_ca_pem: Option<String>,
    /// How long its plugins' certificates are good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_life_seconds: Option<u64>,
}

/// A registered cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedCluster {
    /// Its identity, bound into everything encrypted for it.
    pub id: ClusterId,
    /// What people call it.
    #[serde(default)]
    pub name: Option<String>,
    /// The key that protects it.
    pub key_id: KeyId,
    /// Whether it is the installation's own first cluster, which had no name yet.
    #[serde(default)]
    pub adopted: bool,
    /// The plugin's certificate, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_pem: Option<String>,
    /// The installation's CA.
    pub ca_pem: String,
}

/// Registers one more plugin of a cluster.
#[derive(Debug, Clone, Serialize)]
pub struct AddPlugin {
    /// What people call it, such as the node's name.
    pub name: String,
    /// Its certificate signing request, in PEM.
    pub csr_pem: String,
}

/// A certificate of our CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Until when it is valid (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// The CA that signed it.
    pub ca_pem: String,
}

/// Selects audit records; what is `None` does not restrict.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// At most so many records.
    pub limit: Option<u32>,
    /// Only records after this one.
    pub after: Option<String>,
    /// Not before this time (RFC 3339).
    pub from: Option<String>,
    /// Before this time (RFC 3339).
    pub to: Option<String>,
    /// Who called.
    pub principal: Option<String>,
    /// Which key.
    pub key: Option<String>,
    /// Which action.
    pub action: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// A name in the encryption context.
    pub context_key: Option<String>,
}

/// What checking the audit chain found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditVerification {
    /// Whether every record is in place.
    pub ok: bool,
    /// How many were checked.
    pub records: u64,
    /// The hash of the last one.
    #[serde(default)]
    pub head: Value,
    /// Where the chain breaks.
    #[serde(default)]
    pub problem: Option<AuditProblem>,
    /// All places where it breaks, up to sixteen.
    #[serde(default)]
    pub problems: Vec<AuditProblem>,
    /// What else the server says of it.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

/// Where the audit chain breaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditProblem {
    /// The file.
    #[serde(default)]
    pub segment: Value,
    /// The line in it.
    #[serde(default)]
    pub line: Value,
    /// The record's number.
    #[serde(default)]
    pub seq: Value,
    /// `changed`, `missing`, `reordered`, `truncated` or `unauthenticated`.
    #[serde(default)]
    pub kind: String,
    /// In words.
    pub what: String,
}

impl Client {
    /// The server's state, as it wrote it.
    pub async fn status(&self) -> Result<Value, Error> {
        self.get("/v1/status", &[]).await
    }

    /// An operator's order: `init`, `unseal`, `seal`, …. It may take as long as a start does.
    pub async fn operator(&self, route: &str, body: &Value) -> Result<Value, Error> {
        let request = self.request(Method::POST, format!("/v1/operator/{route}"));
        request.json(body).timeout(Duration::from_secs(300)).answer().await
    }

    /// The installation's CA, in PEM.
    pub async fn ca(&self) -> Result<String, Error> {
        self.request(Method::GET, "/v1/ca").read(Reply::text).await
    }

    /// Makes the server sign itself a new certificate.
    pub async fn renew_server_certificate(&self) -> Result<Value, Error> {
        self.post("/v1/ca/renew", &Value::Object(serde_json::Map::new())).await
    }

    /// All registered clusters.
    pub async fn clusters(&self) -> Result<Page, Error> {
        self.request(Method::GET, "/v1/clusters").answer().await
    }

    /// Registers a cluster.
    pub async fn add_cluster(&self, cluster: &AddCluster) -> Result<AddedCluster, Error> {
        self.request(Method::POST, "/v1/clusters").json(cluster).answer().await
    }

    /// Registers one more plugin of a cluster.
    pub async fn add_plugin(&self, to: ClusterId, plugin: &AddPlugin) -> Result<Issued, Error> {
        let path = format!("/v1/clusters/{to}/plugins");
        self.request(Method::POST, path).json(plugin).answer().await
    }

    /// One page of audit records, oldest first.
    pub async fn audit(&self, query: &AuditQuery) -> Result<Page, Error> {
        self.request(Method::GET, "/v1/audit").query(query.pairs()).answer().await
    }

    /// The newest records; with `after`, those that follow it, waiting up to `wait` for the first.
    pub async fn audit_tail(
        &self,
        limit: u32,
        after: Option<&str>,
        wait: Duration,
    ) -> Result<Page, Error> {
        let mut query = vec![("limit".to_owned(), limit.to_string())];
        if let Some(after) = after {
            query.push(("after".to_owned(), after.to_owned()));
            query.push(("wait".to_owned(), wait.as_secs().to_string()));
        }
        let request = self.request(Method::GET, "/v1/audit/tail").query(query);
        request.timeout(wait + LONG_POLL_GRACE).answer().await
    }

    /// Checks the audit chain; this may take as long as the log is.
    pub async fn audit_verify(&self) -> Result<AuditVerification, Error> {
        let request = self.request(Method::POST, "/v1/audit/verify");
        request.json(&serde_json::json!({})).timeout(Duration::from_secs(600)).answer().await
    }
}

/// For the fuzz target: whether it is one of the answers that are read in pieces.
pub(crate) fn parse_answer(kind: u8, reply: crate::api::Reply) -> bool {
    if kind == b'9' { plugin::parse_answer(reply) } else { audit::parse_answer(reply) }
}

impl AuditQuery {
    fn pairs(&self) -> Vec<(String, String)> {
        let limit = self.limit.map(|limit| limit.to_string());
        [
            ("limit", &limit),
            ("after", &self.after),
            ("from", &self.from),
            ("to", &self.to),
            ("principal", &self.principal),
            ("key", &self.key),
            ("action", &self.action),
            ("outcome", &self.outcome),
            ("context_key", &self.context_key),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
        .collect()
    }
}
