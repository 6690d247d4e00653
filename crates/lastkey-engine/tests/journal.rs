//! The audit log on a disk whose syncs fail, or its reads at a start.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ffi::OsString,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use lastkey_crypto::KeyMaterial;
use lastkey_engine::audit::{AuditError, AuditLog, AuditOpenError, AuditSink as _, Query};
use lastkey_store::disk::{Access, Disk, DiskFile, FileSystem, Rights};

/// The machine's disk, with what goes wrong on it.
#[derive(Debug, Default)]
struct Faulty(Arc<Faults>);

#[derive(Debug, Default)]
struct Faults {
    /// Files are written, but their syncs want for room.
    thin: AtomicBool,
    /// Which read fails, counted from 1; none if it is 0.
    bad_read: AtomicU64,
    reads: AtomicU64,
}

#[derive(Debug)]
struct FaultyFile(Arc<dyn DiskFile>, Arc<Faults>);

impl Disk for Faulty {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        FileSystem.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        FileSystem.list(directory)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(FaultyFile(FileSystem.open(path, access)?, Arc::clone(&self.0))))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        FileSystem.sync_directory(directory)
    }
}

impl DiskFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = self.1.reads.fetch_add(1, Ordering::SeqCst) + 1;
        match number == self.1.bad_read.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => self.0.read_at(out, offset),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<bool> {
        self.0.allocate(length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }

    fn is_removed(&self) -> io::Result<bool> {
        self.0.is_removed()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }

    fn unlock(&self) {
        self.0.unlock();
    }

    fn restrict(&self) -> io::Result<()> {
        self.0.restrict()
    }

    fn share(&self) -> io::Result<()> {
        self.0.share()
    }

    fn rights(&self) -> io::Result<Rights> {
        self.0.rights()
    }

    fn forget_cache(&self) {
        self.0.forget_cache();
    }

    fn free_space(&self) -> Option<u64> {
        self.0.free_space()
    }

    fn sync(&self) -> io::Result<()> {
        match self.1.thin.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.0.sync(),
        }
    }
}

fn try_open(disk: Arc<dyn Disk>, root: &Path) -> Result<AuditLog, AuditOpenError> {
    let key = KeyMaterial::from_slice(&[7; 32]);
    AuditLog::open_on(disk, &root.join("audit"), &root.join("journal"), key)
}

fn open(disk: Arc<dyn Disk>, root: &Path) -> AuditLog {
    try_open(disk, root).unwrap()
}

fn record(name: &str) -> Vec<u8> {
    format!(r#""time":"2026-01-01T00:00:00.000Z","action":"{name}","outcome":"ok""#).into_bytes()
}

fn actions(log: &AuditLog) -> Vec<String> {
    let page = log.query(&Query { limit: 100, ..Query::default() }).unwrap();
    page.records.iter().map(|record| record["action"].as_str().unwrap().to_owned()).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Of a full disk callers are told that nothing was done. A record whose sync failed may be in the
/// log all the same: so that is not what they are told.
#[tokio::test]
async fn a_sync_that_wants_for_room_is_no_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (here, crashed) = (directory.path().join("here"), directory.path().join("crashed"));
    let faults = Arc::new(Faults::default());
    let log = open(Arc::new(Faulty(Arc::clone(&faults))), &here);
    log.append(record("First")).await.unwrap();
    faults.thin.store(true, Ordering::SeqCst);
    let refused = log.append(record("Doubtful")).await.unwrap_err();
    assert!(matches!(refused, AuditError::Failed(_)), "{refused:?}");
    copy(&here, &crashed);

    // 1. Where the machine stops now, the record may have reached the disk.
    let after = open(Arc::new(FileSystem), &crashed);
    assert_eq!(actions(&after), ["First", "Doubtful"]);
    assert!(after.verify(&[]).unwrap().ok);
    // 2. Where it goes on, the next one takes its place.
    faults.thin.store(false, Ordering::SeqCst);
    log.append(record("Second")).await.unwrap();
    assert_eq!(actions(&log), ["First", "Second"]);
    log.close();
    assert!(open(Arc::new(FileSystem), &here).verify(&[]).unwrap().ok);
}

/// A start on a disk that cannot be read at some place is refused, or does without; whichever it
/// is, it spoils nothing for the next one.
#[tokio::test]
async fn a_read_that_fails_at_a_start_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (here, crashed) = (directory.path().join("here"), directory.path().join("crashed"));
    let log = open(Arc::new(FileSystem), &here);
    let names: Vec<String> = (0..20).map(|number| format!("Number{number}")).collect();
    for name in &names {
        log.append(record(name)).await.unwrap();
    }
    // Without its clean end, and with a segment that lost what only the journal has.
    copy(&here, &crashed);
    log.close();
    for entry in fs::read_dir(crashed.join("audit")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("segment-") {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(700).unwrap();
        }
    }
    let mut refused = 0;
    for bad_read in 1.. {
        let root = directory.path().join("again");
        copy(&crashed, &root);
        let faults = Arc::new(Faults::default());
        faults.bad_read.store(bad_read, Ordering::SeqCst);
        match try_open(Arc::new(Faulty(Arc::clone(&faults))), &root) {
            Ok(log) => drop(log),
            Err(AuditOpenError::Io { .. }) => refused += 1,
            Err(other) => panic!("read {bad_read}: {other}"),
        }
        let log = open(Arc::new(FileSystem), &root);
        assert_eq!(actions(&log), names, "read {bad_read}");
        assert!(log.verify(&[]).unwrap().ok, "read {bad_read}");
        drop(log);
        fs::remove_dir_all(root).unwrap();
        if faults.reads.load(Ordering::SeqCst) < bad_read {
            break;
        }
    }
    assert!(refused >= 3, "only {refused} reads mattered");
}
