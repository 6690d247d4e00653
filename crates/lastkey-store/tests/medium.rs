//! What the store asks of its disk, and what it makes of the answers: how it grows, what it does
//! without room, and that nothing is answered before it was synced.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use lastkey_store::{
    CommitError, OpenError, OpenOptions, RedbStore, Store, StoreHealth, Transaction,
    disk::{Access, Disk, DiskFile, FileSystem, Rights},
};
use parking_lot::Mutex;

/// A disk in a directory of its own, with as much room as is wished, that counts what is asked.
#[derive(Clone, Debug)]
struct Small {
    place: Arc<tempfile::TempDir>,
    wishes: Arc<Wishes>,
}

#[derive(Debug)]
struct Wishes {
    room: AtomicU64,
    /// What reserving fails with, where there is room.
    reserving: Mutex<Option<ErrorKind>>,
    reserves: AtomicBool,
    /// Opening for this fails.
    refused: Mutex<Option<Access>>,
    /// What lies behind this is not there to be read.
    readable: AtomicU64,
    syncs: AtomicUsize,
    unlocked: AtomicUsize,
    gathered: AtomicUsize,
    synced_directories: Mutex<Vec<PathBuf>>,
}

impl Small {
    fn new() -> Self {
        let wishes = Wishes {
            room: u64::MAX.into(),
            reserving: Mutex::default(),
            reserves: true.into(),
            refused: Mutex::default(),
            readable: u64::MAX.into(),
            syncs: 0.into(),
            unlocked: 0.into(),
            gathered: 0.into(),
            synced_directories: Mutex::default(),
        };
        Self { place: Arc::new(tempfile::tempdir().unwrap()), wishes: Arc::new(wishes) }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.place.path().join(path)
    }

    fn open(&self, path: &str) -> Result<RedbStore, OpenError> {
        RedbStore::open_on(self, path, OpenOptions::default())
    }

    fn names(&self) -> Vec<OsString> {
        FileSystem.list(self.place.path()).unwrap()
    }

    fn length(&self, path: &str) -> u64 {
        std::fs::metadata(self.at(Path::new(path))).unwrap().len()
    }
}

impl Disk for Small {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        FileSystem.create_directory(&self.at(path))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        FileSystem.list(&self.at(directory))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        if *self.wishes.refused.lock() == Some(access) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let file = FileSystem.open(&self.at(path), access)?;
        Ok(Arc::new(SmallFile { file, wishes: Arc::clone(&self.wishes) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename(&self.at(from), &self.at(to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileSystem.rename_new(&self.at(from), &self.at(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(&self.at(path))
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.wishes.synced_directories.lock().push(directory.to_owned());
        FileSystem.sync_directory(&self.at(directory))
    }
}

#[derive(Debug)]
struct SmallFile {
    file: Arc<dyn DiskFile>,
    wishes: Arc<Wishes>,
}

impl DiskFile for SmallFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.wishes.readable.load(SeqCst).saturating_sub(offset);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        self.file.read_at(&mut out[..most], offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<bool> {
        if length > self.wishes.room.load(SeqCst) {
            return Err(ErrorKind::StorageFull.into());
        }
        match *self.wishes.reserving.lock() {
            Some(kind) => Err(kind.into()),
            None => Ok(self.wishes.reserves.load(SeqCst)),
        }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if length > self.wishes.room.load(SeqCst) {
            return Err(ErrorKind::StorageFull.into());
        }
        self.file.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.wishes.syncs.fetch_add(1, SeqCst);
        self.file.sync()
    }

    fn is_removed(&self) -> io::Result<bool> {
        self.file.is_removed()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn unlock(&self) {
        self.wishes.unlocked.fetch_add(1, SeqCst);
        self.file.unlock();
    }

    fn restrict(&self) -> io::Result<()> {
        self.file.restrict()
    }

    fn share(&self) -> io::Result<()> {
        self.file.share()
    }

    fn rights(&self) -> io::Result<Rights> {
        self.file.rights()
    }

    fn forget_cache(&self) {
        self.file.forget_cache();
    }

    fn free_space(&self) -> Option<u64> {
        Some(self.wishes.room.load(SeqCst).saturating_sub(self.file.length().ok()?))
    }

    fn gather(&self) {
        self.wishes.gathered.fetch_add(1, SeqCst);
    }
}

fn change(n: usize, bytes: usize) -> Transaction {
    Transaction::new().put(format!("p/{n:04}"), vec![1; bytes])
}

/// Commits until there is no room; how many fitted.
async fn fill(store: &RedbStore, from: usize) -> usize {
    for n in from..from + 1000 {
        match store.commit(change(n, 100_000)).await {
            Ok(_) => {}
            Err(CommitError::Full) => return n,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("a hundred megabytes fitted in");
}

async fn until_healthy(store: &RedbStore) {
    for _ in 0..6000 {
        if store.health() == StoreHealth::Serving {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still {:?}", store.health());
}

#[tokio::test]
async fn a_full_disk_is_told_and_over_when_there_is_as_much_room_again() {
    let disk = Small::new();
    let store = disk.open("store.redb").unwrap();
    disk.wishes.room.store(8 << 20, SeqCst);
    let kept = fill(&store, 0).await;
    assert_eq!(store.health(), StoreHealth::Full);
    let length = disk.length("store.redb");
    assert!(length <= 8 << 20, "what was taken in vain was given back: {length}");
    assert_eq!(store.list("p/", None, usize::MAX).await.unwrap().len(), kept);
    // A little more room is none: a store that grows doubles. Small changes fit all the same.
    disk.wishes.room.store(length + (1 << 19), SeqCst);
    for n in 0..20 {
        store.commit(Transaction::new().put("small", vec![n; 100])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.health(), StoreHealth::Full);
    // As much again is enough, and nobody has to ask for it.
    disk.wishes.room.store(3 * length, SeqCst);
    until_healthy(&store).await;
    assert!(fill(&store, kept).await > kept);
    drop(store);
    disk.wishes.room.store(u64::MAX, SeqCst);
    let store = disk.open("store.redb").unwrap();
    assert!(store.list("p/", None, usize::MAX).await.unwrap().len() > kept);
}

#[tokio::test]
async fn a_file_system_that_cannot_reserve_is_good_enough() {
    for reserving in [None, Some(ErrorKind::Unsupported), Some(ErrorKind::InvalidInput)] {
        let disk = Small::new();
        disk.wishes.reserves.store(false, SeqCst);
        *disk.wishes.reserving.lock() = reserving;
        let store = disk.open("store.redb").unwrap();
        for n in 0..30 {
            store.commit(change(n, 100_000)).await.unwrap();
        }
        assert_eq!(store.list("p/", None, usize::MAX).await.unwrap().len(), 30);
    }
    for full in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge] {
        let disk = Small::new();
        let store = disk.open("store.redb").unwrap();
        *disk.wishes.reserving.lock() = Some(full);
        // Small commits still fit, so health may say so again a moment later.
        fill(&store, 0).await;
    }
}

#[tokio::test]
async fn nothing_is_answered_before_it_was_synced() {
    let disk = Small::new();
    let store = disk.open("store.redb").unwrap();
    for n in 0..20 {
        let (syncs, gathered) = (disk.wishes.syncs.load(SeqCst), disk.wishes.gathered.load(SeqCst));
        store.commit(change(n, 10)).await.unwrap();
        assert!(disk.wishes.syncs.load(SeqCst) > syncs, "commit {n}");
        assert!(disk.wishes.gathered.load(SeqCst) > gathered, "commit {n}");
    }
    drop(store);
    assert!(disk.wishes.unlocked.load(SeqCst) > 0, "the next process need not wait for a reader");
}

#[test]
fn the_name_of_a_new_store_is_made_durable_where_it_is() {
    let disk = Small::new();
    let synced = || std::mem::take(&mut *disk.wishes.synced_directories.lock());
    disk.create_directory(Path::new("data")).unwrap();
    for (path, directory) in [("data/store.redb", "data"), ("store.redb", ".")] {
        // Once it was made, and whenever it is opened: whoever made it may have died before that.
        for _ in 0..2 {
            drop(disk.open(path).unwrap());
            assert_eq!(synced(), [Path::new(directory)], "{path}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_opened_or_read_is_no_missing_one() {
    for access in [Access::Write, Access::Read] {
        let disk = Small::new();
        *disk.wishes.refused.lock() = Some(access);
        let refused = disk.open("store.redb").err().unwrap();
        assert!(matches!(refused, OpenError::Io { .. }), "{refused}");
        assert!(!disk.names().contains(&"store.redb".into()), "{access:?}");
        if access == Access::Write {
            assert!(disk.names().is_empty(), "nothing was begun");
        }
    }
    let disk = Small::new();
    drop(disk.open("store.redb").unwrap());
    // The file is as long as it was, but the disk gives back less.
    disk.wishes.readable.store(4096, SeqCst);
    let refused = disk.open("store.redb").err().unwrap();
    assert!(matches!(refused, OpenError::Io { .. }), "{refused}");
    disk.wishes.readable.store(u64::MAX, SeqCst);
    drop(disk.open("store.redb").unwrap());
}
