//! What needs a key.

use http::Method;
use lastkey_crypto::{ClusterId, KeyId};
use serde_json::{Value, json};

use super::Page;
use crate::{Client, Error};

impl Client {
    /// What needs a key, and what has needed it.
    pub async fn dependants(&self, key: KeyId) -> Result<Page, Error> {
        self.request(Method::GET, format!("/v1/keys/{key}/dependants")).answer().await
    }

    /// Writes down what needs a key, in place of what was known of the same kind and id.
    pub async fn put_dependant(&self, key: KeyId, dependant: &Value) -> Result<(), Error> {
        let request = self.request(Method::PUT, format!("/v1/keys/{key}/dependants"));
        request.json(dependant).answer::<Value>().await.map(drop)
    }

    /// Forgets a dependant, `<kind>/<id>`, for a reason.
    pub async fn remove_dependant(
        &self,
        key: KeyId,
        which: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let path = format!("/v1/keys/{key}/dependants/{which}");
        let request = self.request(Method::DELETE, path).json(&json!({ "reason": reason }));
        request.answer::<Value>().await.map(drop)
    }

    /// What the loss of a key, or of one version, would mean.
    pub async fn key_impact(&self, key: KeyId, version: Option<&str>) -> Result<Value, Error> {
        let query = version.map(|version| ("version".to_owned(), version.to_owned()));
        let request = self.request(Method::GET, format!("/v1/keys/{key}/impact"));
        request.query(query.into_iter().collect()).answer().await
    }

    /// The same of all versions, with the key ids that the apiservers of a cluster are told.
    pub async fn key_impact_in(&self, key: KeyId, cluster: ClusterId) -> Result<Value, Error> {
        let query = vec![("cluster".to_owned(), cluster.to_string())];
        let request = self.request(Method::GET, format!("/v1/keys/{key}/impact"));
        request.query(query).answer().await
    }
}
