//! The guard: versions retired, overrides that a second person confirms, clusters forgotten.

use http::Method;
use lastkey_crypto::{ClusterId, KeyId};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Client, Error};

/// How to retire a version.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RetireVersion {
    /// For how many days it can be taken back.
    pub window_days: u16,
    /// Wait until nothing needs it.
    pub when_free: bool,
    /// The key's name once more, although something needs it.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    pub overriding: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Client {
    /// Retires a version of a key.
    pub async fn retire_version(
        &self,
        (key, version): (KeyId, &str),
        how: &RetireVersion,
    ) -> Result<Value, Error> {
        let path = format!("/v1/keys/{key}/versions/{version}/retire");
        self.request(Method::POST, path).json(how).answer().await
    }

    /// Takes a retirement back.
    pub async fn reinstate_version(&self, key: KeyId, version: &str) -> Result<Value, Error> {
        self.post(&format!("/v1/keys/{key}/versions/{version}/reinstate"), &json!({})).await
    }

    /// Whether overrides need a second person, and what waits for one.
    pub async fn guard(&self) -> Result<Value, Error> {
        self.get("/v1/guard", &[]).await
    }

    /// Has overrides need a second person, or no longer.
    pub async fn set_second_person(&self, on: bool, reason: &str) -> Result<Value, Error> {
        self.post("/v1/guard/second-person", &json!({ "on": on, "reason": reason })).await
    }

    /// Confirms what another person has asked for.
    pub async fn confirm_override(&self, id: &str) -> Result<Value, Error> {
        self.post(&format!("/v1/guard/requests/{id}/confirm"), &json!({})).await
    }

    /// Drops what somebody has asked for.
    pub async fn reject_override(&self, id: &str) -> Result<Value, Error> {
        self.post(&format!("/v1/guard/requests/{id}/reject"), &json!({})).await
    }

    /// Withdraws how a cluster is reached.
    pub async fn remove_cluster_access(&self, of: ClusterId, reason: &str) -> Result<Value, Error> {
        let request = self.request(Method::DELETE, format!("/v1/clusters/{of}/access"));
        request.json(&json!({ "reason": reason })).answer().await
    }

    /// Forgets a cluster; `overriding` is its name once more, although its objects need its keys.
    pub async fn forget_cluster(
        &self,
        which: ClusterId,
        (overriding, reason): (Option<&str>, &str),
    ) -> Result<Value, Error> {
        let request = self.request(Method::DELETE, format!("/v1/clusters/{which}"));
        let body = json!({ "override": overriding, "reason": reason });
        request.json(&body).answer().await
    }

    /// Sets what the server does by itself for a cluster.
    pub async fn configure_cluster(
        &self,
        which: ClusterId,
        (rotate_automatically, retire): (bool, bool),
    ) -> Result<Value, Error> {
        let request = self.request(Method::PUT, format!("/v1/clusters/{which}/settings"));
        let body = json!({ "rotate_automatically": rotate_automatically, "retire": retire });
        request.json(&body).answer().await
    }
}
