//! Lastkey's server on an engine of its own, in a process that counts allocations.

use std::{io::Write as _, path::PathBuf, sync::Arc};

use lastkey_engine::{
    AccessKey, AliasName, Engine,
    command::{CreateAccessKey, CreateKey},
};
use lastkey_server::{Server, ServerConfig};
use lastkey_store::{OpenOptions, RedbStore};
use serde_json::json;

use super::engine;
use crate::{error::Error, heap, options::CountedOptions, sides::KEY};

/// Serves until it is killed.
pub(crate) fn run(options: &CountedOptions) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &CountedOptions) -> Result<(), Error> {
    let dir = &options.dir;
    let store = RedbStore::open(dir.join("store.redb"), OpenOptions::default())?;
    let engine = engine::start(dir, Arc::new(store)).await?;
    let bound = Server::bind(ServerConfig::on("127.0.0.1:0"), engine.clone())
        .await
        .map_err(std::io::Error::other)?;
    let ca_file = dir.join("ca.pem");
    let ca = bound.pki().map_or_else(String::new, |pki| pki.ca_pem().to_owned());
    std::fs::write(&ca_file, ca)?;
    let ready = json!({
        "url": bound.url(),
        "ca_file": ca_file,
        "credentials_file": credentials(&engine, dir.join("credentials.json")).await?,
    });
    let alias = AliasName::parse(KEY)?;
    let create = CreateKey { alias: Some(alias), ..CreateKey::default() };
    engine.execute(&engine.system_caller(), create).await?;
    heap::count(&dir.join("counters.sock"))?;
    writeln!(std::io::stdout().lock(), "{ready}")?;
    bound.run(std::future::pending()).await;
    Ok(())
}

/// A key of this run's server, which lives as long as the run.
async fn credentials(engine: &Engine, path: PathBuf) -> Result<PathBuf, Error> {
    let (key, secret) = AccessKey::generate(engine.entropy(), engine.clock().now());
    let text = String::from_utf8_lossy(secret.expose()).into_owned();
    let content = json!({ "access_key_id": &*key.id, "access_key_secret": text });
    std::fs::write(&path, content.to_string())?;
    let create = CreateAccessKey { id: key.id.to_string(), secret };
    engine.execute(&engine.system_caller(), create).await?;
    Ok(path)
}
