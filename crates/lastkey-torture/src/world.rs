//! What outlives a crash: the disk and the clock. And what is started on it.

use std::{io, ops::Deref, path::Path, sync::Arc, time::Duration};

use lastkey_crypto::{Entropy as _, SecretBytes};
use lastkey_engine::{
    AccessKey, BuiltinPolicy, Clock as _, Engine, Error, FileAnchor, FileSeal, Instance,
    ManualClock, Parts, StartError, Timestamp,
    audit::{AuditLog, AuditOpenError, AuditOptions, Checkpointing, KeyFile, Retention},
    command::{CreateAccessKey, WriteSealed},
};
use lastkey_store::{
    OpenError, OpenOptions, RedbStore,
    disk::{self, Disk, Readers},
};

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
const CHECKPOINT_KEY: &str = "/data/checkpoint.key";
/// The anchor.
const ANCHOR: &str = "/data/anchor";
/// The root key.
const ROOT_KEY: &str = "/data/root.key";
/// The root credentials: an id and a secret, each on a line.
const CREDENTIALS: &str = "/data/credentials.json";
/// The public half of what a front end keeps behind the barrier.
const CA: &str = "/data/ca.pem";
/// Small files that are as they were for ever, once a start was answered for.
pub const KEPT: [&str; 3] = [CHECKPOINT_KEY, CREDENTIALS, CA];
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
    Start(#[from] StartError),
    /// A small file.
    #[error("a small file cannot be read or made: {0}")]
    File(#[from] io::Error),
    /// What a first start makes.
    #[error("a first start is not finished: {0}")]
    Make(#[from] Error),
}

/// What runs.
#[derive(Clone)]
pub struct Running {
    engine: Engine,
    /// What operators give orders to.
    pub instance: Instance,
}

impl Deref for Running {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
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
    retention: Retention,
}

impl World {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        let disk = SimDisk::default();
        disk.with(|state| drop(state.directories.insert(DATA.into(), Default::default())));
        let mut random = Random::fork(seed, "log");
        Self {
            disk,
            clock: Arc::new(ManualClock::at(START)),
            entropy: Arc::new(SeededEntropy::new(seed)),
            segment_bytes: [8 << 10, 32 << 10, 64 << 20][random.below(3)],
            // Closed segments are small, being compressed.
            retention: Retention {
                bytes: random.percent(50).then_some(24 << 10),
                age: random.percent(40).then_some(Duration::from_secs(600)),
            },
        }
    }

    /// Starts the engine on it, as the product does, and makes what a first start makes.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn start(&self) -> Result<Running, Failure> {
        let options = OpenOptions {
            cache_bytes: 4 << 20,
            // A failing disk is looked at again whenever the scheduler lets it.
            retry: Duration::ZERO,
            ..OpenOptions::default()
        };
        let store = RedbStore::open_on(&self.disk, STORE, options)?;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let checkpoint_key = KeyFile::on(Arc::clone(&disk), CHECKPOINT_KEY);
        checkpoint_key.read_or_make(&*self.entropy)?;
        let instance = Instance::new(self.parts(store, disk, checkpoint_key));
        instance.start().await?;
        let Ok(engine) = instance.engine() else {
            let reason = instance.status().held.unwrap_or_else(|| "it is sealed".to_owned());
            return Err(StartError::Held { reason }.into());
        };
        if let Err(failure) = self.make(&engine).await {
            engine.shutdown().await;
            return Err(failure);
        }
        Ok(Running { engine, instance })
    }

    fn parts(&self, store: RedbStore, disk: Arc<dyn Disk>, checkpoint_key: KeyFile) -> Parts {
        let (segment_bytes, retention) = (self.segment_bytes, self.retention);
        let clock = self.clock.clone();
        Parts {
            store: Arc::new(store),
            seal: Arc::new(FileSeal::on(Arc::clone(&disk), ROOT_KEY)),
            anchor: Arc::new(FileAnchor::on(Arc::clone(&disk), ANCHOR)),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            policy: Arc::new(BuiltinPolicy::default()),
            audit: Box::new(move |key| {
                let signing = checkpoint_key.read().map_err(|source| AuditOpenError::Io {
                    path: checkpoint_key.path().to_owned(),
                    source,
                })?;
                let options = AuditOptions {
                    disk: Arc::clone(&disk),
                    segment_bytes,
                    compress: true,
                    retention,
                    checkpoints: Some(Checkpointing::new(signing, clock.clone())),
                    ..AuditOptions::default()
                };
                let log = AuditLog::open_with(Path::new(AUDIT), Path::new(JOURNAL), key, options)?;
                Ok(Arc::new(log))
            }),
            incarnation: Box::new(|| Ok("this disk".to_owned())),
        }
    }

    /// What the daemon makes whenever it opens, in its order: the CA's file from the store, then
    /// the root credentials, first their file.
    async fn make(&self, engine: &Engine) -> Result<(), Failure> {
        let ca = match engine.read_sealed("ca").await? {
            Some(ca) => ca,
            None => {
                let mut ca = [0; 32];
                self.entropy.fill(&mut ca);
                let value = SecretBytes::new(hex::encode(ca).into_bytes());
                engine.execute(&engine.system_caller(), WriteSealed { name: "ca", value }).await?;
                SecretBytes::new(hex::encode(ca).into_bytes())
            }
        };
        disk::replace(&self.disk, Path::new(CA), ca.expose(), Readers::All)?;
        if !engine.has_access_keys() {
            let (key, secret) = AccessKey::generate(engine.entropy(), self.clock.now());
            let text = [key.id.as_bytes(), b"\n", secret.expose()].concat();
            disk::replace(&self.disk, Path::new(CREDENTIALS), &text, Readers::Owner)?;
            let create = CreateAccessKey { id: key.id.to_string(), secret };
            engine.execute(&engine.system_caller(), create).await?;
        }
        Ok(())
    }

    /// Whether the credentials in the file are those that the engine knows.
    pub fn credentials_fit(&self, engine: &Engine) -> bool {
        let Some(content) = self.disk.content(Path::new(CREDENTIALS)) else { return false };
        let content = String::from_utf8_lossy(&content.bytes()).into_owned();
        let Some((id, secret)) = content.split_once('\n') else { return false };
        engine.access_key(id).is_some_and(|key| key.secret.expose() == secret.as_bytes())
    }
}
