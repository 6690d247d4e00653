//! An engine over a store in memory and a log in a temporary directory, with a clock of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{path::Path, sync::Arc};

use lastkey_crypto::{
    EncryptionContext, KeyMaterial, SecretBytes, SystemEntropy, signing::SigningKey,
};
use lastkey_engine::{
    Anchor, BuiltinPolicy, Caller, Engine, FileSeal, Key, KeyRef, ManualClock, NoAnchor, Parts,
    Principal, Source, StartError, Timestamp,
    audit::{AuditLog, AuditOptions, Checkpointing},
    command::CreateKey,
};
use lastkey_store::{MemoryStore, Store};

/// 2026-01-01T00:00:00Z.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// Everything that outlives one engine.
pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) directory: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            clock: Arc::new(ManualClock::at(START)),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn audit_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("audit")
    }

    pub(crate) async fn start(&self) -> Engine {
        self.try_start("here").await.unwrap()
    }

    pub(crate) async fn try_start(&self, incarnation: &str) -> Result<Engine, StartError> {
        let store: Arc<dyn Store> = self.store.clone();
        start(store, self.clock.clone(), self.directory.path(), incarnation).await
    }
}

pub(crate) async fn start(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
    directory: &Path,
    incarnation: &str,
) -> Result<Engine, StartError> {
    Engine::start(parts(store, clock, directory, incarnation, Arc::new(NoAnchor))).await
}

/// An engine whose log signs checkpoints, and so reports.
pub(crate) async fn signing(world: &World) -> Engine {
    let directory = world.directory.path().to_owned();
    let store: Arc<dyn Store> = world.store.clone();
    let parts = parts(store, world.clock.clone(), &directory, "here", Arc::new(NoAnchor));
    let clock = world.clock.clone();
    let open = move |key| {
        let seed = KeyMaterial::from_slice(&[9; 32]);
        let signing = SigningKey::from_seed(seed).expect("32 bytes");
        let checkpoints = Some(Checkpointing::new(signing, clock.clone()));
        let options = AuditOptions { checkpoints, ..AuditOptions::default() };
        let (audit, journal) = (directory.join("audit"), directory.join("journal"));
        AuditLog::open_with(&audit, &journal, key, options).map(|log| Arc::new(log) as _)
    };
    Engine::start(Parts { audit: Box::new(open), ..parts }).await.unwrap()
}

#[allow(clippy::too_many_arguments, reason = "each is a thing of its own")]
pub(crate) fn parts(
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
    directory: &Path,
    incarnation: &str,
    anchor: Arc<dyn Anchor>,
) -> Parts {
    let (audit, journal) = (directory.join("audit"), directory.join("journal"));
    Parts {
        store,
        seal: Arc::new(FileSeal::new(directory.join("root.key"))),
        clock,
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| {
            AuditLog::open(&audit, &journal, key).map(|log| Arc::new(log) as _)
        }),
        anchor,
        incarnation: {
            let incarnation = incarnation.to_owned();
            Box::new(move || Ok(incarnation.clone()))
        },
    }
}

pub(crate) fn root(engine: &Engine) -> Caller {
    let principal = Principal::Root { access_key_id: "LKtest".into() };
    Caller::new(principal, Source::Internal, engine.new_request_id())
}

pub(crate) async fn create_key(engine: &Engine) -> Arc<Key> {
    engine.execute(&root(engine), CreateKey::default()).await.unwrap()
}

pub(crate) fn by_id(key: &Key) -> KeyRef {
    KeyRef::Id(key.id)
}

pub(crate) fn secret(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

pub(crate) fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::from_pairs(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
        .unwrap()
}
