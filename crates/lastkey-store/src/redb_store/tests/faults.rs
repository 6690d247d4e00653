//! Disks that fill up or fail: the answers are true, and the store recovers by itself.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    super::{
        RedbStore,
        committer::open_database,
        failure::Failure,
        schema::{self, Found},
    },
    disk::{Change, Disk, Fault},
    formatted, options,
};
use crate::{CommitError, Event, OpenOptions, Store, StoreError, StoreHealth, Transaction, Watch};

fn open(disk: &Disk) -> RedbStore {
    RedbStore::on(disk.clone(), Path::new("simulated"), options()).unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// Two paths that change together, so that half a transaction would show.
fn change(i: usize, size: usize) -> Transaction {
    let number = (i as u64).to_be_bytes();
    Transaction::new().put(format!("t/{i:04}"), vec![1; size]).put("last", number)
}

async fn recovered(store: &RedbStore) {
    for _ in 0..1000 {
        if store.health() == StoreHealth::Serving {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still {:?}", store.health());
}

/// What callers were told, by number of their change.
#[derive(Default)]
struct Told(BTreeMap<usize, Result<(), CommitError>>);

impl Told {
    async fn commit(&mut self, store: &RedbStore, i: usize, size: usize) {
        self.0.insert(i, store.commit(change(i, size)).await.map(drop));
    }

    /// Holds the content of the store against it.
    async fn check(&self, store: &RedbStore, what: &str) {
        let mut last = None;
        for (i, told) in &self.0 {
            let present = store.get(&format!("t/{i:04}")).await.unwrap().is_some();
            match told {
                Ok(()) => assert!(present, "{what}: {i} was acknowledged and is lost"),
                Err(CommitError::Uncertain(_)) => {}
                Err(error) => assert!(!present, "{what}: {i} was refused ({error}) and is there"),
            }
            if present {
                last = Some((*i as u64).to_be_bytes().to_vec());
            }
        }
        let found = store.get("last").await.unwrap().map(|entry| entry.value);
        assert_eq!(found, last, "{what}: a transaction was torn");
    }
}

#[test]
fn a_full_disk_refuses_keeps_and_recovers() {
    block_on(async {
        for room in [0, 1, 3, 10, 40] {
            let disk = Disk::of(formatted());
            let store = open(&disk);
            let mut told = Told::default();
            told.commit(&store, 0, 10).await;
            disk.leave_room(room);
            let mut i = 1;
            while store.health() == StoreHealth::Serving {
                told.commit(&store, i, 100_000).await;
                i += 1;
                assert!(i < 100, "never full");
            }
            assert!(matches!(told.0[&(i - 1)], Err(CommitError::Full)), "{:?}", told.0);
            assert_eq!(store.health(), StoreHealth::Full);
            // Reads go on, and refusals stay refusals.
            told.check(&store, "while full").await;
            told.commit(&store, i, 200_000).await;
            assert!(matches!(told.0[&i], Err(CommitError::Full)), "{:?}", told.0[&i]);
            told.check(&store, "still full").await;
            tokio::time::sleep(Duration::from_millis(120)).await;
            assert_eq!(store.health(), StoreHealth::Full);
            // Room is noticed without anybody writing.
            disk.make_room();
            recovered(&store).await;
            told.commit(&store, i + 1, 100_000).await;
            assert!(told.0[&(i + 1)].is_ok());
            told.check(&store, "with room again").await;
            drop(store);
            told.check(&open(&disk), "opened again").await;
        }
    });
}

#[test]
fn a_full_disk_can_be_opened() {
    block_on(async {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        let mut told = Told::default();
        for i in 0..5 {
            told.commit(&store, i, 10_000).await;
        }
        let unclean = Disk::of(disk.durable());
        unclean.leave_room(0);
        told.check(&open(&unclean), "after a crash, on a full disk").await;
    });
}

#[test]
fn each_single_failure_is_told_and_survived() {
    // Mostly waiting for recoveries, so many at once.
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let after = next.fetch_add(1, Ordering::Relaxed);
                    if after >= 80 {
                        return;
                    }
                    block_on(survive_all(after));
                }
            });
        }
    });
}

async fn survive_all(after: usize) {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        for (times, forget) in [(1, true), (1, false), (3, true), (3, false)] {
            let what = format!("{times} × {kind} after {after}, forget: {forget}");
            let fault = Fault { forget, ..Fault::of_changes(after, times, kind) };
            survive(fault, &what).await;
        }
    }
}

async fn survive(fault: Fault, what: &str) {
    let disk = Disk::of(formatted());
    let store = open(&disk);
    let mut watch = store.watch("last");
    let mut told = Told::default();
    told.commit(&store, 0, 10).await;
    disk.fail(Some(fault));
    for i in 1..6 {
        let size = if i == 3 { 300_000 } else { 1_000 };
        told.commit(&store, i, size).await;
        let may_fail = matches!(
            told.0[&i],
            Ok(())
                | Err(CommitError::Full | CommitError::Unavailable(_) | CommitError::Uncertain(_))
        );
        assert!(may_fail, "{what}: {:?}", told.0[&i]);
    }
    recovered(&store).await;
    told.check(&store, what).await;
    told.commit(&store, 6, 1_000).await;
    if told.0[&6].is_ok() {
        // A fault that had not struck yet may strike now.
        told.check(&Told::reopened(&disk), &format!("{what}, power cut")).await;
        follow(&store, &mut watch, 6).await;
    }
    drop(store);
    disk.fail(None);
    told.check(&open(&disk), &format!("{what}, closed")).await;
}

impl Told {
    fn reopened(disk: &Disk) -> RedbStore {
        open(&Disk::of(disk.durable()))
    }
}

/// A watcher hears of the newest change, or that it has to read again, and then finds it.
async fn follow(store: &RedbStore, watch: &mut Watch, newest: u64) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap();
        let known = match event.unwrap() {
            Event::Put(entry) => entry.value,
            Event::Lost => store.get("last").await.unwrap().unwrap().value,
            Event::Delete { .. } => panic!("nothing was deleted"),
        };
        if known == newest.to_be_bytes() {
            return;
        }
    }
}

#[test]
fn a_disk_that_fails_for_a_while_is_used_again() {
    block_on(async {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        let mut told = Told::default();
        told.commit(&store, 0, 10).await;
        disk.fail(Some(Fault::of_changes(0, usize::MAX, ErrorKind::Other)));
        told.commit(&store, 1, 10).await;
        assert!(told.0[&1].is_err());
        assert!(matches!(store.health(), StoreHealth::Failed { .. }), "{:?}", store.health());
        // Not even the reopening worked, so nothing can be read; but nobody hangs.
        let failed = store.get("last").await;
        assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
        told.commit(&store, 2, 10).await;
        assert!(matches!(told.0[&2], Err(CommitError::Unavailable(_))), "{:?}", told.0[&2]);
        disk.fail(None);
        recovered(&store).await;
        told.check(&store, "afterwards").await;
        told.commit(&store, 3, 10).await;
        assert!(told.0[&3].is_ok());
    });
}

#[test]
fn a_failed_read_does_not_stop_the_store() {
    block_on(async {
        let disk = Disk::of(formatted());
        // No cache, so that reads reach the disk.
        let options = OpenOptions { cache_bytes: 0, ..options() };
        let store = RedbStore::on(disk.clone(), Path::new("simulated"), options).unwrap();
        let mut told = Told::default();
        for i in 0..20 {
            told.commit(&store, i, 2_000).await;
        }
        let fault = Fault::of_changes(0, 1, ErrorKind::Other);
        disk.fail(Some(Fault { reads: true, ..fault }));
        let mut failures = 0;
        for i in 0..20 {
            failures += usize::from(store.get(&format!("t/{i:04}")).await.is_err());
        }
        assert!(failures <= 1, "{failures} reads failed");
        recovered(&store).await;
        told.check(&store, "afterwards").await;
        told.commit(&store, 20, 10).await;
        assert!(told.0[&20].is_ok());
    });
}

#[test]
fn a_disk_that_loses_confirmed_commits_is_not_trusted() {
    block_on(async {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        let old = disk.durable();
        let mut told = Told::default();
        told.commit(&store, 0, 10).await;
        disk.fail(Some(Fault::of_changes(0, 1, ErrorKind::Other)));
        disk.replace(old);
        told.commit(&store, 1, 10).await;
        assert!(matches!(store.health(), StoreHealth::Failed { .. }), "{:?}", store.health());
        assert!(matches!(store.get("last").await, Err(StoreError::Corrupt(_))));
    });
}

#[test]
fn a_conflict_within_a_failed_batch_is_no_conflict() {
    let (mut conflicts, mut failures) = (0, 0);
    for after in 0..40 {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        let claim = || store.commit(Transaction::new().expect_absent("x").put("x", "mine"));
        let claims = async { tokio::join!(claim(), claim()) };
        let (first, second) = std::thread::scope(|scope| {
            let paused = disk.pause(Fault::of_changes(after, 1, ErrorKind::Other));
            // The committer is busy with this one until both claims wait for it; on a busy machine
            // the second may come too late for the same batch.
            let busy = scope.spawn(|| block_on(store.commit(Transaction::new().put("y", "z"))));
            std::thread::sleep(Duration::from_millis(10));
            let claims = scope.spawn(|| block_on(claims));
            std::thread::sleep(Duration::from_millis(10));
            drop(paused);
            // Whether this one fails is not at issue.
            let _ = busy.join().unwrap();
            claims.join().unwrap()
        });
        let there = block_on(store.get("x")).unwrap().is_some();
        match (first, second) {
            (Ok(_), Err(CommitError::Conflict { .. })) => {
                assert!(there, "after {after}");
                conflicts += 1;
            }
            // Both failed together.
            (Err(CommitError::Unavailable(_)), Err(CommitError::Unavailable(_))) => {
                assert!(!there, "after {after}");
                failures += 1;
            }
            (Err(CommitError::Uncertain(_)), Err(CommitError::Uncertain(_))) => failures += 1,
            // One failed before the other came; nobody can tell whether it was made.
            (Err(CommitError::Uncertain(_)), Ok(_) | Err(CommitError::Conflict { .. })) => {}
            // One failed before the other came.
            (Err(CommitError::Unavailable(_)), Ok(_))
            | (Ok(_), Err(CommitError::Unavailable(_))) => {
                assert!(there, "after {after}");
            }
            other => panic!("after {after}: {other:?}"),
        }
    }
    assert!(conflicts > 0 && failures > 0, "{conflicts} conflicts, {failures} failures");
}

#[test]
fn a_watcher_reads_again_after_a_failure_only_if_there_is_news() {
    let (mut made, mut not_made) = (0, 0);
    for after in 0..60 {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        let mut watch = store.watch("last");
        let fault = Fault { forget: false, ..Fault::of_changes(after, 1, ErrorKind::Other) };
        disk.fail(Some(fault));
        let told = block_on(store.commit(change(1, 10)));
        disk.fail(None);
        if told.is_ok() {
            break;
        }
        let first = block_on(async {
            recovered(&store).await;
            let there = store.get("t/0001").await.unwrap().is_some();
            store.commit(change(2, 10)).await.unwrap();
            (there, watch.next().await.unwrap())
        });
        match first {
            // Nobody can tell which changes were made of those that nobody was told of.
            (true, Event::Lost) => made += 1,
            (false, Event::Put(entry)) => {
                assert_eq!(entry.value, 2u64.to_be_bytes());
                not_made += 1;
            }
            other => panic!("after {after}: {other:?}"),
        }
    }
    assert!(made > 0 && not_made > 0, "{made} made, {not_made} not");
}

#[test]
fn health_names_the_newest_cause() {
    block_on(async {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        disk.fail(Some(Fault::of_changes(0, usize::MAX, ErrorKind::Other)));
        assert!(store.commit(change(0, 10)).await.is_err());
        assert!(matches!(store.health(), StoreHealth::Failed { .. }), "{:?}", store.health());
        disk.fail(Some(Fault::of_changes(0, usize::MAX, ErrorKind::StorageFull)));
        until(&store, StoreHealth::Full).await;
        disk.fail(None);
        until(&store, StoreHealth::Serving).await;
    });
}

async fn until(store: &RedbStore, health: StoreHealth) {
    for _ in 0..6000 {
        if store.health() == health {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still {:?}", store.health());
}

#[test]
fn trying_a_medium_writes_to_it() {
    let disk = Disk::of(formatted());
    let database = open_database(&disk, options()).unwrap();
    let Found::Ours(revision) = schema::inspect(&database).unwrap() else { panic!("not ours") };
    disk.record();
    schema::probe(&database, revision).unwrap();
    let changes = disk.recorded();
    assert!(changes.iter().any(|change| matches!(change, Change::Write { .. })), "{changes:?}");
    assert!(matches!(changes.last(), Some(Change::Sync)), "{changes:?}");
    disk.fail(Some(Fault::of_changes(0, usize::MAX, ErrorKind::Other)));
    assert!(schema::probe(&database, revision).is_err());
}

#[test]
fn who_reads_while_the_database_is_opened_anew_waits_for_it() {
    block_on(async {
        let disk = Disk::of(formatted());
        let store = open(&disk);
        let before = store.view().unwrap();
        // What is shown next need not come from a failure.
        let waiting = store.view_after(&before, Failure::Echo);
        let (view, told) = tokio::join!(waiting, store.commit(change(1, 10)));
        told.unwrap();
        assert!(!Arc::ptr_eq(&view.unwrap(), &before), "a newer one");
        // Another attempt would tell the same of what is damaged.
        let before = store.view().unwrap();
        let waiting = store.view_after(&before, Failure::corrupt("an entry"));
        let (view, told) = tokio::join!(waiting, store.commit(change(2, 10)));
        told.unwrap();
        assert!(matches!(view, Err(StoreError::Corrupt(_))));
    });
}
