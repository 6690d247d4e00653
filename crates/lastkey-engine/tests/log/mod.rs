//! A log without an engine, and who may sign for it.
#![allow(dead_code, reason = "each test file uses its part")]

mod disk;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lastkey_crypto::{
    KeyMaterial,
    signing::{PublicKey, SigningKey},
};
use lastkey_engine::{
    ManualClock, Timestamp,
    audit::{
        AuditLog, AuditOptions, AuditSink, Checkpoint, Checkpointing, Offline, Progress, Retention,
        Verification, offline,
    },
};
use lastkey_store::disk::FileSystem;

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use disk::{Deed, Meddler};

/// A log, and who may sign for it.
pub(crate) struct World {
    pub(crate) place: tempfile::TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) seed: [u8; 32],
    pub(crate) segment_bytes: u64,
    pub(crate) every: Duration,
    pub(crate) compress: bool,
    pub(crate) retention: Retention,
    pub(crate) disk: Arc<Meddler>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            place: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(Timestamp::from_millis(1_767_225_600_000))),
            seed: [9; 32],
            segment_bytes: 4096,
            every: Duration::from_secs(3600),
            compress: false,
            retention: Retention::default(),
            disk: Arc::default(),
        }
    }

    pub(crate) fn signing_key(&self) -> SigningKey {
        SigningKey::from_seed(KeyMaterial::from_slice(&self.seed)).unwrap()
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.place.path().join("audit")
    }

    pub(crate) fn open(&self) -> AuditLog {
        let clock = self.clock.clone();
        let by =
            Checkpointing { every: self.every, ..Checkpointing::new(self.signing_key(), clock) };
        let options = AuditOptions {
            disk: self.disk.clone(),
            segment_bytes: self.segment_bytes,
            compress: self.compress,
            retention: self.retention,
            checkpoints: Some(by),
            ..AuditOptions::default()
        };
        let key = KeyMaterial::from_slice(&[5; 32]);
        AuditLog::open_with(&self.audit(), &self.place.path().join("journal"), key, options)
            .unwrap()
    }

    /// A log of this many records, closed.
    pub(crate) fn written(records: usize) -> Self {
        let world = Self::new();
        let log = world.open();
        write(&log, records);
        log.close();
        world
    }

    pub(crate) fn checkpoints(&self) -> Vec<Checkpoint> {
        let text = fs::read_to_string(self.audit().join("checkpoints.log")).unwrap();
        text.lines().map(|line| Checkpoint::parse(line).unwrap()).collect()
    }

    pub(crate) fn verify(&self) -> Verification {
        verify_by(&self.audit(), self.signing_key().public())
    }
}

pub(crate) fn verify_by(directory: &Path, key: PublicKey) -> Verification {
    let trust = Offline { keys: &[key], witnesses: &[] };
    offline(&FileSystem, directory, &trust, &Arc::new(Progress::default())).unwrap()
}

pub(crate) fn write(log: &AuditLog, records: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in 0..records {
        let body = format!(r#""time":"2026-01-01T00:00:00.000Z","action":"Encrypt","n":{n}"#);
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    }
}

pub(crate) fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("segment-"))
        .collect();
    files.sort();
    files
}
