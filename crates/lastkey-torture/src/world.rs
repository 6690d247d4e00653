//! What outlives a crash: the disk, the clock, the root key. And what is started on it.

use std::{io, path::Path, sync::Arc, time::Duration};

use lastkey_crypto::{KeyMaterial, signing::SigningKey};
use lastkey_engine::{
    BuiltinPolicy, Engine, FileAnchor, FileSeal, ManualClock, Parts, StartError, Timestamp,
    audit::{AuditLog, AuditOptions, Checkpointing},
};
use lastkey_store::{OpenError, OpenOptions, RedbStore, disk::Disk};

use crate::{Random, SeededEntropy, disk::SimDisk};

/// Where everything lies.
const DATA: &str = "/data";
/// The store's file.
pub const STORE: &str = "/data/store.redb";
/// The directory of the log's segments.
pub const AUDIT: &str = "/data/audit";
/// The directory of its journal.
pub const JOURNAL: &str = "/data/journal";
/// What the log's checkpoints are signed with.
const CHECKPOINT_SEED: [u8; 32] = [7; 32];
/// The anchor.
const ANCHOR: &str = "/data/anchor";
/// 2026-01-01T00:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The store did not open.
    #[error("the store does not open: {0}")]
    Store(#[from] OpenError),
    /// The engine did not start.
    #[error("the engine does not start: {0}")]
    Engine(#[from] StartError),
}

/// A machine without power.
#[derive(Clone)]
pub struct World {
    /// Its disk.
    pub disk: SimDisk,
    /// Its clock; it runs without power, too.
    pub clock: Arc<ManualClock>,
    entropy: Arc<SeededEntropy>,
    /// The log's segments are closed when they are this large.
    segment_bytes: u64,
    /// The root key, in a real file: seals have crash tests of their own.
    seal: Arc<tempfile::TempDir>,
}

impl World {
    /// An empty one.
    ///
    /// # Errors
    /// There is no place for the root key.
    pub fn new(seed: u64) -> io::Result<Self> {
        let disk = SimDisk::default();
        disk.with(|state| drop(state.directories.insert(DATA.into(), Default::default())));
        Ok(Self {
            disk,
            clock: Arc::new(ManualClock::at(START)),
            entropy: Arc::new(SeededEntropy::new(seed)),
            segment_bytes: [8 << 10, 32 << 10, 64 << 20][Random::fork(seed, "segments").below(3)],
            seal: Arc::new(tempfile::tempdir()?),
        })
    }

    /// Starts the engine on it, as the product does.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn start(&self) -> Result<Engine, Failure> {
        let options = OpenOptions {
            cache_bytes: 4 << 20,
            // A failing disk is looked at again whenever the scheduler lets it.
            retry: Duration::ZERO,
            ..OpenOptions::default()
        };
        let store = RedbStore::open_on(&self.disk, STORE, options)?;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let (clock, segment_bytes) = (self.clock.clone(), self.segment_bytes);
        let parts = Parts {
            store: Arc::new(store),
            seal: Arc::new(FileSeal::new(self.seal.path().join("root.key"))),
            anchor: Arc::new(FileAnchor::on(Arc::new(self.disk.clone()), ANCHOR)),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            policy: Arc::new(BuiltinPolicy::default()),
            audit: Box::new(move |key| {
                let signing = SigningKey::from_seed(KeyMaterial::from_slice(&CHECKPOINT_SEED));
                let options = AuditOptions {
                    disk: Arc::clone(&disk),
                    segment_bytes,
                    compress: true,
                    checkpoints: signing.map(|key| Checkpointing::new(key, clock.clone())),
                    ..AuditOptions::default()
                };
                let log = AuditLog::open_with(Path::new(AUDIT), Path::new(JOURNAL), key, options)?;
                Ok(Arc::new(log))
            }),
            incarnation: Box::new(|| Ok("this disk".to_owned())),
        };
        Ok(Engine::start(parts).await?)
    }
}
