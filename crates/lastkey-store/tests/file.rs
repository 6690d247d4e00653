//! The file: who may open it, what it weighs, and what survives.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use lastkey_store::{
    CommitError, OpenError, OpenOptions, RedbStore, Revision, Store, StoreHealth, Transaction,
};
use redb::TableDefinition;
use tempfile::TempDir;

/// Tells a copy of this test program what to do instead of testing.
const ROLE: &str = "LASTKEY_STORE_TEST_PATH";

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    (directory, path)
}

fn open(path: &Path) -> Result<RedbStore, OpenError> {
    RedbStore::open(path, OpenOptions::default())
}

/// Runs the ignored test `name` in a process of its own, with its standard output to read.
fn child(name: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .env(ROLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_store_is_kept_and_closed_cleanly() {
    let (_directory, path) = place();
    let store = open(&path).unwrap();
    store.commit(Transaction::new().put("a", "1")).await.unwrap();
    drop(store);
    let store = open(&path).unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"1");
    let next = store.commit(Transaction::new().put("a", "2")).await.unwrap();
    assert_eq!(next, Revision(2));
}

#[tokio::test]
async fn what_waits_is_committed_before_closing() {
    let (_directory, path) = place();
    let store = Arc::new(open(&path).unwrap());
    let waiting: Vec<_> = (0..200)
        .map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store.commit(Transaction::new().put(format!("p/{i}"), "x")).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(store);
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let store = open(&path).unwrap();
    assert_eq!(store.list("p/", None, usize::MAX).await.unwrap().len(), 200);
}

#[tokio::test]
async fn too_many_waiting_are_refused_at_once() {
    let (_directory, path) = place();
    let few = OpenOptions { max_waiting: 4, ..OpenOptions::default() };
    let store = Arc::new(RedbStore::open(&path, few).unwrap());
    let tasks: Vec<_> = (0..2000)
        .map(|i| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store.commit(Transaction::new().put(format!("p/{i}"), "x")).await
            })
        })
        .collect();
    let (mut done, mut busy) = (0, 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => done += 1,
            Err(CommitError::Busy) => busy += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(done >= 4 && busy > 0, "{done} done, {busy} refused");
    assert_eq!(store.list("p/", None, usize::MAX).await.unwrap().len(), done);
}

#[test]
fn a_first_start_is_small_and_private() {
    let (directory, path) = place();
    let store = open(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.commit(Transaction::new().put("a", "1"))).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    println!("{} bytes long, {} bytes on disk", metadata.len(), metadata.blocks() * 512);
    assert!(metadata.len() < 4 << 20);
    assert!(metadata.blocks() * 512 < 4 << 20);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_open_is_refused() {
    let (_directory, path) = place();
    let store = open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::InUse { .. })));
    drop(store);
    open(&path).unwrap();
}

#[test]
fn another_process_is_refused() {
    let (_directory, path) = place();
    let store = open(&path).unwrap();
    assert!(child("child_is_refused", &path).wait().unwrap().success());
    drop(store);
    let mut holder = child("child_commits_until_killed", &path);
    read_revision(&mut BufReader::new(holder.stdout.as_mut().unwrap()));
    assert!(matches!(open(&path), Err(OpenError::InUse { .. })));
    holder.kill().unwrap();
    holder.wait().unwrap();
    open(&path).unwrap();
}

#[test]
#[ignore = "the other process of another_process_is_refused"]
fn child_is_refused() {
    let Some(path) = std::env::var_os(ROLE) else { return };
    assert!(matches!(open(Path::new(&path)), Err(OpenError::InUse { .. })));
}

#[tokio::test]
async fn acknowledged_commits_survive_kill_9() {
    let (_directory, path) = place();
    let mut acknowledged = 0;
    for round in 1..=3 {
        let mut writer = child("child_commits_until_killed", &path);
        let mut output = BufReader::new(writer.stdout.take().unwrap());
        for _ in 0..40 * round {
            acknowledged = read_revision(&mut output);
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 {
            // A line may be cut by the kill, but then it was not a whole answer.
            if let Some(whole) = line.strip_suffix('\n') {
                acknowledged = parse_revision(whole).unwrap_or(acknowledged);
            }
            line.clear();
        }
        let store = open(&path).unwrap();
        let kept = store.list("p/", None, usize::MAX).await.unwrap();
        assert!(kept.len() as u64 >= acknowledged, "{} of {acknowledged}", kept.len());
        for (i, entry) in kept.iter().enumerate() {
            assert_eq!(entry.revision, Revision(i as u64 + 1));
        }
    }
}

#[tokio::test]
#[ignore = "the other process of acknowledged_commits_survive_kill_9"]
async fn child_commits_until_killed() {
    let Some(path) = std::env::var_os(ROLE) else { return };
    let store = open(Path::new(&path)).unwrap();
    let last = store.list("p/", None, usize::MAX).await.unwrap().len() as u64;
    for i in last.. {
        let change = Transaction::new().put(format!("p/{i:08}"), vec![1; 500]);
        let revision = store.commit(change).await.unwrap();
        println!("\nrevision {revision}");
    }
}

fn read_revision(output: &mut impl BufRead) -> u64 {
    loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the other process ended");
        if let Some(revision) = parse_revision(line.trim_end()) {
            return revision;
        }
    }
}

fn parse_revision(line: &str) -> Option<u64> {
    line.strip_prefix("revision ")?.parse().ok()
}

#[test]
fn other_files_are_left_alone() {
    let (_directory, path) = place();
    for content in [b"".as_slice(), b"redb", b"not a database at all", &[0; 8192]] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(open(&path), Err(OpenError::NotOurs { .. })), "{content:?}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

#[test]
fn other_databases_are_not_ours() {
    const THEIRS: TableDefinition<u64, u64> = TableDefinition::new("theirs");
    let (_directory, path) = place();
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(THEIRS).unwrap().insert(1, 1).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(open(&path), Err(OpenError::NotOurs { .. })));
}

#[test]
fn newer_formats_are_named() {
    const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
    let (_directory, path) = place();
    drop(open(&path).unwrap());
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(META).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(open(&path), Err(OpenError::NewerFormat { found: 2, .. })));
}

#[test]
fn redb_itself_respects_our_lock() {
    let (_directory, path) = place();
    let _store = open(&path).unwrap();
    let theirs = redb::Database::create(&path);
    assert!(matches!(theirs, Err(redb::DatabaseError::DatabaseAlreadyOpen)), "{theirs:?}");
}

#[test]
fn a_damaged_file_is_named() {
    let (_directory, path) = place();
    drop(open(&path).unwrap());
    let mut content = std::fs::read(&path).unwrap();
    // Both commit slots, behind the magic number and the layout.
    content[64..320].fill(0xff);
    std::fs::write(&path, content).unwrap();
    let damaged = open(&path).err();
    assert!(matches!(damaged, Some(OpenError::Corrupt { .. })), "{damaged:?}");
}

#[test]
fn an_interrupted_creation_is_repeated() {
    let (directory, path) = place();
    let draft = directory.path().join("store.redb.new");
    for rest in [b"".as_slice(), &[0; 4096], b"half of something"] {
        std::fs::write(&draft, rest).unwrap();
        drop(open(&path).unwrap());
        assert!(!draft.exists());
        drop(open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn creators_do_not_overwrite_each_other() {
    for _ in 0..10 {
        let (directory, path) = place();
        let opened: Vec<_> = std::thread::scope(|scope| {
            let openers: Vec<_> = (0..4).map(|_| scope.spawn(|| open(&path))).collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect()
        });
        let (winners, losers): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        assert_eq!(winners.len(), 1);
        assert!(losers.iter().all(|loser| matches!(loser, Err(OpenError::InUse { .. }))));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

/// With a file system of its own (`mount -t tmpfs -o size=8m …`), because it fills it up.
#[tokio::test]
#[ignore = "needs LASTKEY_SMALL_DIR, the mount point of a file system of 4 to 64 MiB"]
async fn a_full_file_system_is_survived() {
    let place = PathBuf::from(std::env::var_os("LASTKEY_SMALL_DIR").unwrap());
    let (path, filler) = (place.join("store.redb"), place.join("filler"));
    let store = open(&path).unwrap();
    store.commit(Transaction::new().put("first", "x")).await.unwrap();
    let everything = vec![0; 65 << 20];
    assert!(std::fs::write(&filler, everything).is_err(), "the file system is not small");
    let mut kept = 0;
    let error = loop {
        let change = Transaction::new().put(format!("p/{kept}"), vec![1; 100_000]);
        match store.commit(change).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommitError::Full), "{error}");
    assert_eq!(store.health(), StoreHealth::Full);
    assert_eq!(store.list("p/", None, usize::MAX).await.unwrap().len(), kept);
    // The file has reserved what it has, so small changes go on.
    for i in 0..100 {
        store.commit(Transaction::new().put("small", vec![i; 100])).await.unwrap();
    }
    store.commit(Transaction::new().delete("first")).await.unwrap();
    drop(store);
    let store = open(&path).unwrap();
    assert_eq!(store.list("p/", None, usize::MAX).await.unwrap().len(), kept);
    assert_eq!(store.health(), StoreHealth::Serving);
    let again = store.commit(Transaction::new().put("last", vec![1; 200_000])).await;
    assert!(matches!(again, Err(CommitError::Full)), "{again:?}");
    std::fs::remove_file(&filler).unwrap();
    store.commit(Transaction::new().put("last", vec![1; 100_000])).await.unwrap();
    println!(
        "{kept} changes of 100 kB fitted in, {} bytes",
        std::fs::metadata(&path).unwrap().len()
    );
}
