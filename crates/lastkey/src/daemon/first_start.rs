//! What a first start makes: root credentials, a key, a cluster. Every step sees for itself
//! whether it was done before, so that a start that was interrupted is finished by the next.

use std::path::Path;

use lastkey_client::Endpoint;
use lastkey_crypto::ClusterId;
use lastkey_engine::{
    AccessKey, AliasName, Engine, Error, KeyRef,
    command::{AddCluster, CreateAccessKey, CreateKey, DescribeKey, ListClusters},
};
use lastkey_server::Reach;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::data_dir::{DataDir, replace};
use crate::output::{Exit, Failure, chain};

/// The key that `up` makes for the apiserver.
pub(super) const KUBERNETES: &str = "alias/kubernetes";

/// Makes the root credentials if there are none, and keeps the address in their file current.
/// Answers whether the file is there.
pub(super) async fn credentials(
    engine: &Engine,
    data: &DataDir,
    reach: &Reach,
) -> Result<bool, Failure> {
    if engine.has_access_keys() {
        return refresh(&data.credentials(), data, reach);
    }
    // The file comes first: credentials that nobody was told would lock everybody out.
    let (key, secret) = AccessKey::generate(engine.entropy(), engine.clock().now());
    let text = Zeroizing::new(String::from_utf8_lossy(secret.expose()).into_owned());
    let content = json!({
        "url": reach.url(),
        "ca_file": data.ca(),
        "access_key_id": &*key.id,
        "access_key_secret": &*text,
    });
    write(&data.credentials(), &content)?;
    let create = CreateAccessKey { id: key.id.to_string(), secret };
    engine.execute(&engine.system_caller(), create).await.map_err(failed)?;
    Ok(true)
}

/// The address that clients on this machine are to use: ours, unless it will not do and somebody
/// has put one in the file that does.
pub(super) fn url(data: &DataDir, reach: &Reach) -> String {
    let text = std::fs::read(data.credentials()).map(Zeroizing::new).unwrap_or_default();
    let content = serde_json::from_slice(&text).unwrap_or(Value::Null);
    url_in(&content, reach)
}

fn url_in(content: &Value, reach: &Reach) -> String {
    let theirs = content["url"].as_str().unwrap_or_default();
    match theirs.parse() {
        Ok(Endpoint::Tls { host, port }) if reach.yields_to(&host, port) => theirs.to_owned(),
        _ => reach.url(),
    }
}

/// Another start may listen elsewhere: the file follows, its secret stays.
fn refresh(path: &Path, data: &DataDir, reach: &Reach) -> Result<bool, Failure> {
    let text = match std::fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Failure::file(path, &error)),
    };
    let Ok(mut content) = serde_json::from_slice::<Value>(&text) else {
        // Somebody made something else of it; it is theirs now.
        tracing::warn!(path = %path.display(), "the credentials file is not ours any more");
        return Ok(true);
    };
    let url = url_in(&content, reach);
    if content["url"] != url || content["ca_file"] != json!(data.ca()) {
        content["url"] = json!(url);
        content["ca_file"] = json!(data.ca());
        match write(path, &content) {
            // Whoever reads it is sent to the old address until the next start.
            Err(failure) if failure.exit() == Exit::Unavailable => {
                tracing::warn!("the credentials file keeps an old address: {failure}");
            }
            written => written?,
        }
    }
    Ok(true)
}

fn write(path: &Path, content: &Value) -> Result<(), Failure> {
    let text = Zeroizing::new(format!("{content:#}\n"));
    replace(path, text.as_bytes(), 0o600)
}

/// The key `alias/kubernetes`, made if it is missing.
pub(super) async fn kubernetes_key(engine: &Engine) -> Result<String, Failure> {
    let alias = AliasName::parse(KUBERNETES).map_err(failed)?;
    let caller = engine.system_caller();
    let describe = DescribeKey { key: KeyRef::Alias(alias.clone()) };
    match engine.execute(&caller, describe).await {
        Ok(key) => return Ok(key.id.to_string()),
        Err(Error::AliasNotFound) => {}
        Err(error) => return Err(failed(error)),
    }
    let create = CreateKey {
        alias: Some(alias),
        description: "Secrets of Kubernetes clusters".to_owned(),
        ..CreateKey::default()
    };
    let key = engine.execute(&engine.system_caller(), create).await.map_err(failed)?;
    Ok(key.id.to_string())
}

/// The cluster that `up`'s own plugin acts for: the oldest one.
pub(super) async fn cluster(engine: &Engine) -> Result<ClusterId, Failure> {
    let known = engine.execute(&engine.system_caller(), ListClusters).await.map_err(failed)?;
    if let Some(oldest) = known.iter().min_by_key(|cluster| cluster.created) {
        return Ok(oldest.id);
    }
    let key = KeyRef::parse(KUBERNETES).map_err(failed)?;
    let add = AddCluster { name: None, keys: vec![key], plugin: None };
    let added = engine.execute(&engine.system_caller(), add).await.map_err(failed)?;
    Ok(added.cluster.id)
}

pub(super) fn failed(error: impl std::error::Error) -> Failure {
    Failure::failed(chain(&error))
}
