//! How `up` and `server` keep the audit log: the checkpoint key, the log's options, the sinks.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lastkey_crypto::{Entropy, KeyMaterial, SystemEntropy, signing::SigningKey};
use lastkey_engine::{
    SystemClock,
    audit::{AuditLog, AuditOpenError, AuditOptions, AuditSink, Checkpointing, Retention},
};
use lastkey_server::Bound;
use lastkey_sinks::{SinkMetrics, Sinks, SinksConfig};
use parking_lot::Mutex;
use serde_json::json;
use zeroize::Zeroizing;

use super::data_dir::{DataDir, replace};
use crate::{
    cli,
    output::{Failure, chain},
};

/// A key file is shorter.
const MAX_KEY_FILE: u64 = 4096;
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
    checkpoint_key: PathBuf,
    sinks: Arc<Mutex<Option<Sinks>>>,
}

impl Audit {
    /// Makes the checkpoint key if there is none, and puts its public half where people find it.
    pub(super) fn prepare(data: &DataDir, options: &cli::AuditOptions) -> Result<Self, Failure> {
        let checkpoint_key =
            options.checkpoint_key.clone().unwrap_or_else(|| data.checkpoint_key());
        let failed = |error: io::Error| Failure::file(&checkpoint_key, &error);
        let made = !checkpoint_key.exists();
        let key = if made {
            make_key(&checkpoint_key, &SystemEntropy).map_err(failed)?
        } else {
            read_key(&checkpoint_key).map_err(failed)?
        };
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
            sinks: Arc::new(Mutex::new(Some(prepare_sinks(data, options)?))),
        })
    }

    /// Opens the log; each time that the engine opens.
    pub(super) fn open(&self, key: KeyMaterial) -> Result<Arc<dyn AuditSink>, AuditOpenError> {
        let signing = read_key(&self.checkpoint_key)
            .map_err(|source| AuditOpenError::Io { path: self.checkpoint_key.clone(), source })?;
        let options = AuditOptions {
            segment_bytes: self.segment_bytes,
            compress: self.compress,
            retention: self.retention,
            checkpoints: Some(Checkpointing::new(signing, Arc::new(SystemClock))),
            alone: has_other_threads(),
            ..AuditOptions::default()
        };
        let log = AuditLog::open_with(&self.directory, &self.journal, key, options)?;
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

fn make_key(path: &Path, entropy: &dyn Entropy) -> io::Result<SigningKey> {
    let key = SigningKey::generate(entropy);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.to_pem().expose())?;
    file.sync_all()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(key)
}

fn read_key(path: &Path) -> io::Result<SigningKey> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("others can read the key (mode {mode:o}); run chmod 600 on it"),
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_KEY_FILE).read_to_string(&mut text)?;
    SigningKey::from_pem(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Whether the runtime goes on when one of its threads waits for the disk.
fn has_other_threads() -> bool {
    tokio::runtime::Handle::try_current().is_ok_and(|runtime| runtime.metrics().num_workers() > 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("checkpoint.key");
        let made = make_key(&path, &SystemEntropy).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_key(&path).unwrap().public(), made.public());
        assert!(make_key(&path, &SystemEntropy).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_key(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        assert!(read_key(&path).is_err());
    }
}
