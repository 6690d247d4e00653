//! Lastkey's engine as `lastkey server` wires it, without a server around it.

use std::{path::Path, sync::Arc, time::Duration};

use lastkey_crypto::SystemEntropy;
use lastkey_engine::{
    BuiltinPolicy, Caller, Engine, FileSeal, Parts, Principal, Source, SystemClock,
    audit::{AuditLog, AuditOptions, AuditSink},
    command::CreateKey,
};
use lastkey_store::{OpenOptions, RedbStore, Store};

use super::tally::Tally;
use crate::{error::Error, floor::shape::Shape, heap, load};

/// Creations whose records are looked at.
const WATCHED: usize = 64;
/// Delivered parcels are deleted within a quarter of a second.
const SWEPT: Duration = Duration::from_millis(700);

/// Who makes keys, one after the other.
#[derive(Clone)]
pub(super) struct Creator(Engine);

impl Creator {
    /// Starts an engine on a new store in `dir`.
    pub(super) async fn start(dir: &Path) -> Result<Self, Error> {
        let store = RedbStore::open(dir.join("store.redb"), OpenOptions::default())?;
        Ok(Self(start(dir, Arc::new(store)).await?))
    }

    async fn create(&self) -> Result<(), Error> {
        let principal = Principal::Root { access_key_id: "LKbench".into() };
        let caller = Caller::new(principal, Source::Internal, self.0.new_request_id());
        self.0.execute(&caller, CreateKey::default()).await?;
        Ok(())
    }

    /// Ends the engine's work.
    pub(super) async fn stop(&self) {
        self.0.shutdown().await;
    }
}

impl load::Caller for Creator {
    async fn call(&mut self) -> Result<(), Error> {
        self.create().await
    }
}

/// Makes some keys in `dir`, and tells what one creation writes.
pub(super) async fn watch(dir: &Path) -> Result<Shape, Error> {
    let store = RedbStore::open(dir.join("store.redb"), OpenOptions::default())?;
    let tally = Arc::new(Tally::new(Arc::new(store)));
    let creator = Creator(start(dir, Arc::clone(&tally) as Arc<dyn Store>).await?);
    tally.begin();
    for _ in 0..WATCHED {
        creator.create().await?;
    }
    tokio::time::sleep(SWEPT).await;
    let operations = tally.end();
    creator.stop().await;
    Ok(Shape::of(operations.iter(), WATCHED))
}

/// The engine with the parts that the `lastkey` binary gives it.
pub(super) async fn start(dir: &Path, store: Arc<dyn Store>) -> Result<Engine, Error> {
    heap::guard();
    SystemEntropy.warm();
    let (audit, journal) = (dir.join("audit"), dir.join("journal"));
    let parts = Parts {
        store,
        seal: Arc::new(FileSeal::new(dir.join("root.key"))),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| {
            let options = AuditOptions { alone: true, ..AuditOptions::default() };
            let log = AuditLog::open_with(&audit, &journal, key, options)?;
            Ok(Arc::new(log) as Arc<dyn AuditSink>)
        }),
        anchor: std::sync::Arc::new(lastkey_engine::FileAnchor::new(dir.join("anchor"))),
        incarnation: Box::new(|| Ok("the benchmark's".to_owned())),
    };
    Ok(Engine::start(parts).await?)
}
