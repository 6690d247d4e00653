//! How a cluster is reached, as the server keeps it.

use http::Method;
use lastkey_crypto::ClusterId;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Client, Error};

impl Client {
    /// Keeps how a cluster is reached.
    pub async fn put_cluster_access(
        &self,
        of: ClusterId,
        access: &impl Serialize,
    ) -> Result<(), Error> {
        let request = self.request(Method::PUT, format!("/v1/clusters/{of}/access"));
        request.json(access).answer::<Value>().await.map(drop)
    }

    /// How a cluster is reached.
    pub async fn cluster_access<T: DeserializeOwned + Send>(
        &self,
        of: ClusterId,
    ) -> Result<T, Error> {
        self.request(Method::GET, format!("/v1/clusters/{of}/access")).answer().await
    }
}
