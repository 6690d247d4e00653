//! Nodes that enrol by their kubelet certificate, and the renewal of plugins' identities.

use http::Method;
use lastkey_crypto::ClusterId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Issued, Page};
use crate::{Client, Error};

/// Says which CA vouches for a cluster's nodes; what is `None` stays as it is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TrustNodes {
    /// The CA certificates (PEM), in place of those before; an empty text is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// How long the certificates of its plugins are good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_life_seconds: Option<u64>,
}

/// Lets a node enrol.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ApproveNode {
    /// Its name; may be left out where there is a fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// SHA-256 of its kubelet's certificate or public key, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// For how long an approval by name alone is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_seconds: Option<u64>,
}

/// What came of a request to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Enrolment {
    /// The plugin has an identity.
    Enrolled(Issued),
    /// Somebody has to approve it.
    Waiting {
        /// The node's name.
        node: String,
        /// SHA-256 of the kubelet's public key.
        kubelet_key: String,
    },
}

impl Client {
    /// The nodes of a cluster, or of all.
    pub async fn nodes(&self, cluster: Option<ClusterId>) -> Result<Page, Error> {
        let path = match cluster {
            Some(id) => format!("/v1/clusters/{id}/nodes"),
            None => "/v1/nodes".to_owned(),
        };
        self.request(Method::GET, path).answer().await
    }

    /// Says which CA vouches for a cluster's nodes.
    pub async fn trust_nodes(&self, of: ClusterId, trust: &TrustNodes) -> Result<Value, Error> {
        let path = format!("/v1/clusters/{of}/nodes/trust");
        self.request(Method::POST, path).json(trust).answer().await
    }

    /// Lets a node enrol, once.
    pub async fn approve_node(&self, of: ClusterId, node: &ApproveNode) -> Result<Value, Error> {
        let path = format!("/v1/clusters/{of}/nodes/approve");
        self.request(Method::POST, path).json(node).answer().await
    }

    /// Ends the identity of the `node` or `plugin` (the kind) of that name.
    pub async fn revoke_node(
        &self,
        of: ClusterId,
        (kind, name): (&str, &str),
    ) -> Result<Value, Error> {
        self.post(&format!("/v1/clusters/{of}/nodes/revoke"), &json!({ kind: name })).await
    }

    /// Asks for a plugin's identity in that cluster, as a kubelet, by a signing request (PEM).
    pub async fn enrol(&self, into: ClusterId, csr_pem: &str) -> Result<Enrolment, Error> {
        let path = format!("/v1/clusters/{into}/nodes/enrol");
        self.request(Method::POST, path).json(&json!({ "csr_pem": csr_pem })).answer().await
    }

    /// Asks for another identity over the present one, by a signing request (PEM).
    pub async fn renew_identity(&self, csr_pem: &str) -> Result<Issued, Error> {
        let request = self.request(Method::POST, "/v1/plugin/renew");
        request.json(&json!({ "csr_pem": csr_pem })).answer().await
    }

    /// Says that the present identity is the one to go by; the one before it ends.
    pub async fn confirm_identity(&self) -> Result<Value, Error> {
        self.post("/v1/plugin/confirm", &json!({})).await
    }
}
