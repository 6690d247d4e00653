//! A request that makes several changes: their parcels have one place in the store.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;
mod support;

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc, time::Duration};

use lastkey_engine::{
    Caller, Engine, Error, Key, NoAnchor,
    audit::{AuditLog, AuditOptions, Query},
    command::*,
};
use lastkey_store::{CommitFault, Store as _};
use log::{Deed, Meddler};
use support::{World, by_id, create_key, parts, root};

fn tag(key: &Key, n: usize) -> TagResource {
    TagResource { key: by_id(key), tags: BTreeMap::from([("n".to_owned(), n.to_string())]) }
}

async fn keys(engine: &Engine, count: usize) -> Vec<Arc<Key>> {
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(create_key(engine).await);
    }
    keys
}

/// Sequence numbers of the changes that this request's records tell of.
async fn changes(engine: &Engine, caller: &Caller) -> Vec<u64> {
    let query = Query { action: Some("TagResource".into()), limit: 100, ..Query::default() };
    let query = QueryAudit { query };
    let found = engine.execute(&root(engine), query).await.unwrap();
    let id = caller.request_id.to_string();
    let own = found.records.iter().filter(|record| record["id"] == id.as_str());
    own.filter(|record| record["writes"].is_u64())
        .map(|record| record["seq"].as_u64().unwrap())
        .collect()
}

async fn assert_clean(world: &World, engine: Engine) {
    engine.shutdown().await;
    assert!(world.store.list("outbox/", None, 10).await.unwrap().is_empty());
    world.start().await.shutdown().await;
}

#[tokio::test]
async fn one_after_the_other() {
    let world = World::new();
    let engine = world.start().await;
    let keys = keys(&engine, 5).await;
    let caller = root(&engine);
    for (n, key) in keys.iter().enumerate() {
        engine.execute(&caller, tag(key, n)).await.unwrap();
    }
    assert_eq!(changes(&engine, &caller).await.len(), keys.len());
    assert_clean(&world, engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_once() {
    let world = World::new();
    let engine = world.start().await;
    let keys = keys(&engine, 8).await;
    let caller = root(&engine);
    let tasks: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| {
            let (engine, caller, tag) = (engine.clone(), caller.clone(), tag(key, n));
            tokio::spawn(async move { engine.execute(&caller, tag).await.map(|_| ()) })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => made += 1,
            // Who waited too long has changed nothing.
            Err(error) => assert!(matches!(error, Error::Busy), "{error}"),
        }
    }
    assert!(made > 1, "{made}");
    assert_eq!(changes(&engine, &caller).await.len(), made);
    assert_clean(&world, engine).await;
}

/// The first change was refused, or nobody knows: the second one neither waits for ever nor takes the
/// place of a parcel that is there.
#[tokio::test]
async fn after_one_that_failed() {
    for (fault, was_made) in [
        (CommitFault::Full, false),
        (CommitFault::Unavailable, false),
        (CommitFault::UncertainMade, true),
        (CommitFault::UncertainNotMade, false),
    ] {
        let world = World::new();
        let engine = world.start().await;
        let keys = keys(&engine, 2).await;
        let caller = root(&engine);
        // So that no sweep meets the fault in the caller's place.
        while !world.store.list("outbox/", None, 10).await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        world.store.fail_next_commit(fault);
        let first = engine.execute(&caller, tag(&keys[0], 0)).await;
        assert!(was_made || first.is_err(), "{fault:?}");
        engine.execute(&caller, tag(&keys[1], 1)).await.unwrap();
        assert_eq!(changes(&engine, &caller).await.len(), 1 + usize::from(was_made), "{fault:?}");
        assert_clean(&world, engine).await;
    }
}

/// A crash between the second change and its record: the first one's record has the same id, and must
/// not be taken for it.
#[tokio::test]
async fn a_crash_after_the_second() {
    loop {
        let world = World::new();
        let engine = world.start().await;
        let keys = keys(&engine, 2).await;
        let caller = root(&engine);
        engine.execute(&caller, tag(&keys[0], 0)).await.unwrap();
        // What reached the disk of the log before the crash.
        let crashed = World::new();
        copy_directory(world.directory.path(), crashed.directory.path());
        engine.execute(&caller, tag(&keys[1], 1)).await.unwrap();
        let entries = world.store.list("", None, usize::MAX).await.unwrap();
        if !entries.iter().any(|entry| entry.path == format!("outbox/{}", caller.request_id)) {
            // A sweep was faster.
            continue;
        }
        entries.into_iter().for_each(|entry| crashed.store.tamper(entry));
        let after = crashed.start().await;
        assert_eq!(changes(&after, &caller).await.len(), 2);
        assert_clean(&crashed, after).await;
        engine.shutdown().await;
        return;
    }
}

/// An engine whose log lies on this disk.
async fn start_on(disk: &Arc<Meddler>, world: &World) -> Engine {
    let (store, clock, place) = (world.store.clone(), world.clock.clone(), world.directory.path());
    let mut parts = parts(store, clock, place, "here", Arc::new(NoAnchor));
    let (disk, audit, journal) = (disk.clone(), world.audit_directory(), place.join("journal"));
    parts.audit = Box::new(move |key| {
        let options = AuditOptions { disk: disk.clone(), ..AuditOptions::default() };
        AuditLog::open_with(&audit, &journal, key, options).map(|log| Arc::new(log) as _)
    });
    Engine::start(parts).await.unwrap()
}

/// Segments find no room.
fn fill(disk: &Meddler) {
    disk.ask(|deed, _| match deed {
        Deed::Allocate => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
}

/// What the full disk has kept from the log does not keep the engine from starting, as often as that
/// is, and comes into the log once there is room, once.
#[tokio::test]
async fn a_full_disk_keeps_no_engine_from_starting() {
    let (world, disk) = (World::new(), Arc::new(Meddler::default()));
    let engine = start_on(&disk, &world).await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    // It has forgotten what it had reserved, and the log holds nothing of the next change.
    let engine = start_on(&disk, &world).await;
    let caller = root(&engine);
    fill(&disk);
    let told = engine.execute(&caller, tag(&key, 7)).await;
    assert!(matches!(told, Err(Error::Uncertain(_))), "{told:?}");
    let crashed = World::new();
    copy_directory(world.directory.path(), crashed.directory.path());
    let entries = world.store.list("", None, usize::MAX).await.unwrap();
    entries.into_iter().for_each(|entry| crashed.store.tamper(entry));
    let disk = Arc::new(Meddler::default());
    fill(&disk);
    for _ in 0..2 {
        let after = start_on(&disk, &crashed).await;
        assert!(matches!(after.readiness(), Err(Error::StorageFull)));
        after.shutdown().await;
    }
    let after = start_on(&disk, &crashed).await;
    disk.rest();
    while after.readiness().is_err() || changes(&after, &caller).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(changes(&after, &caller).await.len(), 1);
    assert_clean(&crashed, after).await;
    let after = crashed.start().await;
    assert_eq!(changes(&after, &caller).await.len(), 1);
    after.shutdown().await;
    engine.shutdown().await;
}

/// What fell due waits for room as well.
#[tokio::test]
async fn what_is_due_on_a_full_disk_keeps_no_engine_from_starting() {
    let (world, disk) = (World::new(), Arc::new(Meddler::default()));
    let engine = start_on(&disk, &world).await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    drop(engine);
    world.clock.advance(Duration::from_secs(366 * 86_400));
    fill(&disk);
    for _ in 0..2 {
        let engine = start_on(&disk, &world).await;
        assert!(matches!(engine.readiness(), Err(Error::StorageFull)));
        engine.shutdown().await;
    }
    disk.rest();
    let engine = start_on(&disk, &world).await;
    let found = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_ne!(found.rotated, key.rotated);
    assert_clean(&world, engine).await;
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&place).unwrap();
            copy_directory(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}
