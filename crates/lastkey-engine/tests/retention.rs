//! Deleting old audit records through the engine: recorded, stated, done; and never by a clock
//! that jumped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;
mod support;

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::{KeyMaterial, signing::SigningKey};
use lastkey_engine::{
    Clock as _, Engine, ManualClock, NoAnchor,
    audit::{AuditLog, AuditOptions, Checkpointing, Query, Retention},
    command::*,
};
use lastkey_store::disk::{Disk, FileSystem};
use log::{Deed, Meddler};
use support::{World, parts, root};

const DAY: Duration = Duration::from_secs(86_400);

async fn start(world: &World, retention: Retention) -> Engine {
    start_on(Arc::new(FileSystem), world, retention).await
}

async fn start_on(disk: Arc<dyn Disk>, world: &World, retention: Retention) -> Engine {
    let (store, clock) = (world.store.clone(), world.clock.clone());
    let mut parts = parts(store, clock, world.directory.path(), "here", Arc::new(NoAnchor));
    let (audit, journal) = (world.audit_directory(), world.directory.path().join("journal"));
    let clock: Arc<ManualClock> = world.clock.clone();
    parts.audit = Box::new(move |key| {
        let seed = KeyMaterial::from_slice(&[9; 32]);
        let by = Checkpointing::new(SigningKey::from_seed(seed).unwrap(), clock.clone());
        let options = AuditOptions {
            disk: disk.clone(),
            segment_bytes: 8_192,
            retention,
            checkpoints: Some(by),
            ..AuditOptions::default()
        };
        AuditLog::open_with(&audit, &journal, key, options).map(|log| Arc::new(log) as _)
    });
    Engine::start(parts).await.unwrap()
}

async fn work(engine: &Engine, count: usize) {
    for _ in 0..count {
        let _ = engine.execute(&root(engine), DescribeService).await.unwrap();
    }
}

async fn deletions(engine: &Engine) -> usize {
    let query = Query { action: Some("DeleteAudit".into()), limit: 100, ..Query::default() };
    engine.execute(&root(engine), QueryAudit { query }).await.unwrap().records.len()
}

#[tokio::test]
async fn too_much_is_deleted_and_recorded() {
    let world = World::new();
    let engine = start(&world, Retention { bytes: Some(20_000), age: None }).await;
    work(&engine, 200).await;
    engine.run_due_work().await.unwrap();
    assert_eq!(deletions(&engine).await, 1);
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok && found.deleted_through > 100, "{found:?}");
    engine.shutdown().await;
    let engine = start(&world, Retention::default()).await;
    assert!(engine.execute(&root(&engine), VerifyAudit).await.unwrap().ok);
}

#[tokio::test]
async fn what_is_stated_needs_no_room_for_a_new_file() {
    let (world, disk) = (World::new(), Arc::new(Meddler::default()));
    let engine = start_on(disk.clone(), &world, Retention { bytes: Some(20_000), age: None }).await;
    disk.ask(|deed, path| {
        let refused = deed == Deed::Write && path.ends_with("checkpoints.new");
        if refused { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let checkpoints = world.audit_directory().join("checkpoints.log");
    let lines = || fs::read_to_string(&checkpoints).unwrap().lines().count();
    for deleted in [100, 300] {
        work(&engine, 200).await;
        engine.run_due_work().await.unwrap();
        let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
        assert!(found.ok && found.deleted_through > deleted, "{found:?}");
        assert!(!world.audit_directory().join("checkpoints.new").exists());
    }
    let before = lines();
    disk.rest();
    work(&engine, 200).await;
    engine.run_due_work().await.unwrap();
    assert!(lines() < before, "with room, what is about deleted records goes");
    engine.shutdown().await;
    let engine = start(&world, Retention::default()).await;
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok, "{found:?}");
}

#[tokio::test]
async fn a_clock_that_jumps_deletes_nothing_for_a_day() {
    let world = World::new();
    let engine = start(&world, Retention { bytes: None, age: Some(DAY * 30) }).await;
    work(&engine, 200).await;
    world.clock.jump_to(support::START.after(DAY * 400));
    engine.run_due_work().await.unwrap();
    assert_eq!(deletions(&engine).await, 0);
    // A day of running time later, the age counts.
    for _ in 0..30 {
        world.clock.advance(Duration::from_secs(3_600));
        engine.run_due_work().await.unwrap();
    }
    assert_eq!(deletions(&engine).await, 1);
    assert!(engine.execute(&root(&engine), VerifyAudit).await.unwrap().ok);
}

/// A record with this nonce, signed now.
async fn signed(engine: &Engine, nonce: &str) {
    let mut caller = root(engine);
    caller.nonce = Some(engine.admit_nonce("id", nonce, engine.clock().now()).unwrap());
    let _ = engine.execute(&caller, DescribeService).await.unwrap();
}

#[tokio::test]
async fn a_request_whose_record_was_deleted_is_not_admitted_again() {
    let world = World::new();
    let retention = Retention { bytes: Some(20_000), age: None };
    let mut engine = start(&world, retention).await;
    let then = world.clock.now();
    signed(&engine, "first").await;
    // The second deletion takes the record of the first one with it.
    for round in 1..=2 {
        world.clock.advance(Duration::from_secs(1));
        work(&engine, 200).await;
        engine.run_due_work().await.unwrap();
        engine.shutdown().await;
        engine = start(&world, retention).await;
        assert!(engine.admit_nonce("id", "first", then).is_err(), "deletion {round}");
        // Whatever was signed since is admitted.
        signed(&engine, &format!("after {round}")).await;
    }
    assert_eq!(deletions(&engine).await, 1, "the first one's record is gone");
}

/// A disk on which no segment finds room any more, until a deletion gives up what was kept for it.
#[tokio::test]
async fn a_full_disk_is_freed_by_what_is_deleted() {
    let (world, disk) = (World::new(), Arc::new(Meddler::default()));
    let retention = Retention { bytes: None, age: Some(Duration::from_secs(3_600)) };
    let engine = start_on(disk.clone(), &world, retention).await;
    let ballast = world.audit_directory().join("ballast");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 8 << 20);
    for _ in 0..50 {
        world.clock.advance(Duration::from_secs(1_800));
        engine.run_due_work().await.unwrap();
    }
    let before = deletions(&engine).await;
    work(&engine, 200).await;
    world.clock.advance(Duration::from_secs(3_601));
    let is_full = Arc::new(AtomicBool::new(true));
    let full = Arc::clone(&is_full);
    disk.ask(move |deed, path| {
        if deed == Deed::Remove && path.ends_with("ballast") {
            full.store(false, Ordering::Relaxed);
        }
        let refused = deed == Deed::Allocate && full.load(Ordering::Relaxed);
        if refused { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    // The open segment has some room left.
    let mut taken = 0;
    while engine.execute(&root(&engine), DescribeService).await.is_ok() {
        taken += 1;
        assert!(taken < 1_000, "a segment has some room reserved, and no more");
    }
    engine.run_due_work().await.unwrap();
    assert!(!is_full.load(Ordering::Relaxed));
    assert_eq!(deletions(&engine).await, before + 1);
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok && found.deleted_through > 150, "{found:?}");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 8 << 20, "it is kept again");
    engine.shutdown().await;
    drop(engine);
    // Where nothing is deleted, nothing is kept for it; nor where little is.
    for retention in [Retention::default(), Retention { bytes: Some(1 << 20), age: None }] {
        let engine = start(&world, retention).await;
        assert!(!ballast.exists());
        engine.shutdown().await;
        drop(engine);
        start(&world, Retention { bytes: Some(1 << 30), age: None }).await.shutdown().await;
        assert!(ballast.exists());
    }
}
