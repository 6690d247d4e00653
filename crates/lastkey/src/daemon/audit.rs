//! How `up` and `server` keep the audit log: the checkpoint key, the log's options, the sinks.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use lastkey_crypto::{KeyMaterial, SystemEntropy};
use lastkey_engine::{
    SystemClock,
    audit::{AuditLog, AuditOpenError, AuditOptions, AuditSink, Checkpointing, KeyFile, Retention},
};
use lastkey_server::Bound;
use lastkey_sinks::{SinkMetrics, Sinks, SinksConfig};
use parking_lot::Mutex;
use serde_json::json;

use super::data_dir::{DataDir, replace};
use crate::{
    cli,
    output::{Failure, chain},
};

/// How long the sinks may take what is there when the server stops.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What the log is kept with.
#[derive(Clone)]
pub(super) struct Audit {
    segment_bytes: u64,
    compress: bool,
    retention: Retention,
    directory: PathBuf,
    journal: PathBuf,
    checkpoint_key: KeyFile,
    sinks: Arc<Mutex<Option<Sinks>>>,
}

impl Audit {
    /// Makes the checkpoint key if there is none, and puts its public half where people find it.
    pub(super) fn prepare(data: &DataDir, options: &cli::AuditOptions) -> Result<Self, Failure> {
        // First this: an option that is wrong leaves no key behind.
        let sinks = prepare_sinks(data, options)?;
        let path = options.checkpoint_key.clone().unwrap_or_else(|| data.checkpoint_key());
        let checkpoint_key = KeyFile::new(path);
        let failed = |error: io::Error| Failure::file(checkpoint_key.path(), &error);
        let (key, made) = checkpoint_key.read_or_make(&SystemEntropy).map_err(failed)?;
        let (public, public_file) = (key.public(), data.audit_public_key());
        replace(&public_file, public.to_pem().as_bytes(), 0o644)?;
        if made {
            tracing::info!(
                key = public.id(),
                file = %public_file.display(),
                "audit checkpoints are signed from now on; keep a copy of the public key, and the \
                 private one out of backups:\n{}",
                public.to_pem().trim_end()
            );
        }
        let days = |days: u32| Duration::from_secs(u64::from(days) * 86_400);
        let retention =
            Retention { bytes: options.retain_bytes, age: options.retain_days.map(days) };
        Ok(Self {
            segment_bytes: options.segment_bytes,
            compress: options.compress,
            retention,
            directory: data.audit(),
            journal: data.journal(),
            checkpoint_key,
            sinks: Arc::new(Mutex::new(Some(sinks))),
        })
    }

    /// Opens the log; each time that the engine opens.
    pub(super) fn open(&self, key: KeyMaterial) -> Result<Arc<dyn AuditSink>, AuditOpenError> {
        let signing = self.checkpoint_key.read().map_err(|source| AuditOpenError::Io {
            path: self.checkpoint_key.path().to_owned(),
            source,
        })?;
        let options = AuditOptions {
            segment_bytes: self.segment_bytes,
            compress: self.compress,
            retention: self.retention,
            checkpoints: Some(Checkpointing::new(signing, Arc::new(SystemClock))),
            alone: has_other_threads(),
            ..AuditOptions::default()
        };
        let log = AuditLog::open_with(&self.directory, &self.journal, key, options)?;
        if let Some(sinks) = self.sinks.lock().as_ref() {
            sinks.log_is_open();
        }
        Ok(Arc::new(log))
    }

    /// Shows the sinks in metrics and status.
    pub(super) fn show_sinks(&self, bound: &Bound) {
        let carriers = self.sinks.lock().as_ref().map(Sinks::carriers);
        if let Some(carriers) = carriers.filter(|carriers| !carriers.is_empty()) {
            let metrics = Box::new(SinkMetrics::new(Arc::clone(&carriers)));
            let status =
                move || json!(carriers.iter().map(|carrier| carrier.status()).collect::<Vec<_>>());
            bound.show_sinks(metrics, Arc::new(status));
        }
    }

    /// Lets the sinks begin: behind the line that says that the server is ready, for one of them
    /// may be standard output. They read the log's files, sealed or not.
    pub(super) fn start_sinks(&self) {
        if let Some(sinks) = self.sinks.lock().as_mut() {
            sinks.start();
        }
    }

    /// Lets the sinks take what is there, and ends them.
    pub(super) async fn stop_sinks(&self) {
        let sinks = self.sinks.lock().take();
        if let Some(sinks) = sinks {
            sinks.stop(PATIENCE).await;
        }
    }
}

fn prepare_sinks(data: &DataDir, options: &cli::AuditOptions) -> Result<Sinks, Failure> {
    if options.sinks.is_empty() {
        return Ok(Sinks::default());
    }
    let config = SinksConfig {
        audit: data.audit(),
        places: data.audit_sinks(),
        addresses: options.sinks.clone(),
        ca: options.sink_ca.clone(),
        token: options.sink_token.clone(),
    };
    Sinks::prepare(&config).map_err(|error| Failure::failed(chain(&error)))
}

/// Whether the runtime goes on when one of its threads waits for the disk.
fn has_other_threads() -> bool {
    tokio::runtime::Handle::try_current().is_ok_and(|runtime| runtime.metrics().num_workers() > 1)
}
