//! Clocks that jump, in both directions, at start and while running: nothing is destroyed by it,
//! and no request is admitted twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;
mod support;

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use lastkey_crypto::{KeyMaterial, signing::SigningKey};
use lastkey_engine::{
    Engine, Error, Key, NoAnchor, Parts, RotationPolicy, Timestamp,
    audit::{AuditLog, AuditOptions, Checkpointing, Query, Retention},
    command::*,
};
use lastkey_store::disk::{Disk, FileSystem};
use log::{Deed, Meddler};
use support::{START, World, by_id, create_key, root};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn before(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(at.as_millis() - i64::try_from(by.as_millis()).unwrap())
}

/// A jump of the wall clock, seen by the running server or only by the next start.
#[derive(Clone, Copy, Debug)]
struct Jump {
    to: Timestamp,
    at_start: bool,
}

fn jumps() -> Vec<Jump> {
    let targets = [START.after(DAY * 400), before(START, DAY * 400), START.after(HOUR * 10)];
    targets
        .into_iter()
        .flat_map(|to| [Jump { to, at_start: false }, Jump { to, at_start: true }])
        .collect()
}

async fn jump(world: &World, engine: Engine, jump: Jump) -> Engine {
    if !jump.at_start {
        world.clock.jump_to(jump.to);
        return engine;
    }
    engine.shutdown().await;
    drop(engine);
    world.clock.jump_to(jump.to);
    world.start().await
}

async fn is_there(engine: &Engine, key: &Key) -> bool {
    match engine.execute(&root(engine), DescribeKey { key: by_id(key) }).await {
        Ok(_) => true,
        Err(Error::KeyNotFound) => false,
        Err(other) => panic!("{other}"),
    }
}

/// Lets time pass as it does, with a look each half hour.
async fn pass(world: &World, engine: &Engine, time: Duration) {
    let mut passed = Duration::ZERO;
    while passed < time {
        world.clock.advance(HOUR / 2);
        engine.run_due_work().await.unwrap();
        passed += HOUR / 2;
    }
}

#[tokio::test]
async fn a_jump_destroys_nothing() {
    for one in jumps() {
        let world = World::new();
        let engine = world.start().await;
        let key = create_key(&engine).await;
        // The server has run for long: a calm clock alone is no reason to believe a jump.
        pass(&world, &engine, DAY * 2).await;
        let delete = ScheduleKeyDeletion { key: by_id(&key), window_days: 7, overriding: None };
        engine.execute(&root(&engine), delete).await.unwrap();

        let engine = jump(&world, engine, one).await;
        engine.run_due_work().await.unwrap();
        assert!(is_there(&engine, &key).await, "{one:?}");
        pass(&world, &engine, HOUR * 22).await;
        assert!(is_there(&engine, &key).await, "within a day after {one:?}");
        // Time to notice, and to cancel.
        engine.execute(&root(&engine), CancelKeyDeletion { key: by_id(&key) }).await.unwrap();
        pass(&world, &engine, DAY * 3).await;
        assert!(is_there(&engine, &key).await, "{one:?}");
    }
}

/// There and back again: the clock was wrong for a while, and is right.
#[tokio::test]
async fn a_jump_that_is_taken_back_destroys_nothing_before_its_time() {
    for one in jumps() {
        let world = World::new();
        let engine = world.start().await;
        let key = create_key(&engine).await;
        let delete = ScheduleKeyDeletion { key: by_id(&key), window_days: 7, overriding: None };
        engine.execute(&root(&engine), delete).await.unwrap();
        let engine = jump(&world, engine, one).await;
        engine.run_due_work().await.unwrap();
        let engine = jump(&world, engine, Jump { to: START, ..one }).await;
        pass(&world, &engine, DAY * 6).await;
        assert!(is_there(&engine, &key).await, "{one:?}");
        pass(&world, &engine, DAY * 2).await;
        assert!(!is_there(&engine, &key).await, "after its window, {one:?}");
    }
}

async fn admit(engine: &Engine, nonce: &str, signed: Timestamp) -> bool {
    let Ok(admitted) = engine.admit_nonce("LKtest", nonce, signed) else { return false };
    let mut caller = root(engine);
    caller.nonce = Some(admitted);
    let _ = engine.execute(&caller, DescribeService).await.unwrap();
    true
}

#[tokio::test]
async fn a_jump_admits_no_replay() {
    for there in jumps() {
        for back in [None, Some(false), Some(true)] {
            let world = World::new();
            let engine = world.start().await;
            assert!(admit(&engine, "recorded", START).await);
            assert!(!admit(&engine, "recorded", START).await);

            let mut engine = jump(&world, engine, there).await;
            let what = format!("{there:?}, back {back:?}");
            assert!(!admit(&engine, "recorded", START).await, "{what}");
            // Others come and go meanwhile.
            let now = engine.clock().now();
            let _ = admit(&engine, "another", now).await;
            if let Some(at_start) = back {
                engine = jump(&world, engine, Jump { to: START, at_start }).await;
            } else if there.to < START {
                // The wrong clock comes to where it was, by itself.
                world.clock.advance(START.since(there.to));
            }
            assert!(!admit(&engine, "recorded", START).await, "{what}");
            let later = START.after(Duration::from_secs(60));
            world.clock.jump_to(later);
            assert!(!admit(&engine, "recorded", START).await, "{what}, a minute later");
            // And nobody is refused for what the clock has shown meanwhile.
            assert!(admit(&engine, "fresh", later).await, "{what}, a minute later");
        }
    }
}

/// Made under a clock that is far ahead, a key is not left alone until then once that is set right.
#[tokio::test]
async fn a_clock_set_right_puts_no_rotation_off() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let policy = RotationPolicy::new(true, None).unwrap();
    let update = UpdateRotationPolicy { key: by_id(&key), policy };
    engine.execute(&root(&engine), update).await.unwrap();
    let versions = async || {
        let describe = DescribeKey { key: by_id(&key) };
        engine.execute(&root(&engine), describe).await.unwrap().versions.len()
    };
    world.clock.jump_to(START.after(DAY * 4000));
    engine.run_due_work().await.unwrap();
    engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    assert_eq!(versions().await, 2);
    world.clock.jump_to(START.after(DAY));
    pass(&world, &engine, HOUR * 23).await;
    assert_eq!(versions().await, 2, "what a jump makes due waits for a day");
    pass(&world, &engine, HOUR * 3).await;
    assert_eq!(versions().await, 3);
    pass(&world, &engine, DAY).await;
    assert_eq!(versions().await, 3, "once");
}

const MINUTE: Duration = Duration::from_secs(60);

/// Requests of somebody who shares the server's clock, however wrong that is. Those that were
/// admitted: a clock that goes back behind what a start has read admits none.
async fn ask(world: &World, engine: &Engine, times: u32) -> Vec<(String, Timestamp)> {
    let mut asked = Vec::new();
    for _ in 0..times {
        world.clock.advance(MINUTE * 20);
        let now = engine.clock().now();
        if admit(engine, &format!("at {now}"), now).await {
            asked.push((format!("at {now}"), now));
        }
    }
    asked
}

/// Whatever the clock has shown, and the restarts meanwhile: once it is right, a request that is
/// signed by a right clock is admitted, and none that was admitted before.
#[tokio::test]
async fn a_clock_set_right_locks_nobody_out() {
    for there in jumps() {
        for (restarts, back_at_start) in [(0, false), (0, true), (1, false), (2, false), (2, true)]
        {
            let what = format!("{there:?}, {restarts} restarts, back at start {back_at_start}");
            let world = World::new();
            let mut engine = world.start().await;
            let mut asked = ask(&world, &engine, 3).await;
            let right = engine.clock().now();
            engine = jump(&world, engine, there).await;
            asked.extend(ask(&world, &engine, 3).await);
            assert!(asked.len() == 6 || there.to < START, "{what}: {asked:?}");
            for _ in 0..restarts {
                let to = engine.clock().now();
                engine = jump(&world, engine, Jump { to, at_start: true }).await;
                asked.extend(ask(&world, &engine, 3).await);
            }
            let to = right.after(MINUTE);
            engine = jump(&world, engine, Jump { to, at_start: back_at_start }).await;
            assert!(admit(&engine, "fresh", to).await, "{what}");
            assert!(!admit(&engine, "fresh", to).await, "{what}");
            // Somebody whose own clock is a little behind.
            assert!(admit(&engine, "behind", before(to, MINUTE / 2)).await, "{what}");
            for (nonce, signed) in &asked {
                assert!(!admit(&engine, nonce, *signed).await, "{what}: {nonce}");
            }
            // And when the wrong time comes once more.
            for (nonce, signed) in &asked {
                world.clock.jump_to(*signed);
                assert!(!admit(&engine, nonce, *signed).await, "{what}: {nonce}, again");
            }
        }
    }
}

/// So many records that a start looks no further back than half an hour.
async fn fill(engine: &Engine, records: usize) {
    for _ in 0..records {
        let _ = engine.execute(&root(engine), DescribeService).await.unwrap();
    }
}

/// A start reads half an hour of the log: of what it did not read it admits nothing again, and
/// refuses nothing else, where the clock is set back or right afterwards.
#[tokio::test]
async fn what_a_start_does_not_read_is_not_admitted_again() {
    let world = World::new();
    let engine = world.start().await;
    // Signed by a clock that is ahead, within what is accepted.
    let ahead = START.after(MINUTE * 11);
    assert!(admit(&engine, "ahead", ahead).await);
    world.clock.advance(MINUTE * 31);
    fill(&engine, 1_100).await;
    let now = engine.clock().now();
    let engine = jump(&world, engine, Jump { to: now, at_start: true }).await;
    world.clock.jump_to(before(now, MINUTE * 20));
    assert!(!admit(&engine, "ahead", ahead).await);
    // A start under a clock that is ahead, and another one.
    world.clock.jump_to(now);
    let mut engine = jump(&world, engine, Jump { to: now.after(DAY), at_start: true }).await;
    let wrong = ask(&world, &engine, 2).await;
    let to = now.after(DAY * 2);
    engine = jump(&world, engine, Jump { to, at_start: true }).await;
    let to = now.after(MINUTE);
    world.clock.jump_to(to);
    assert!(admit(&engine, "fresh", to).await);
    assert!(!admit(&engine, "ahead", ahead).await);
    for (nonce, signed) in &wrong {
        world.clock.jump_to(*signed);
        assert!(!admit(&engine, nonce, *signed).await, "{nonce}");
    }
}

/// An engine that keeps little of its log.
async fn forgetful(world: &World) -> Engine {
    forgetful_on(Arc::new(FileSystem), world, false).await
}

async fn forgetful_on(disk: Arc<dyn Disk>, world: &World, compress: bool) -> Engine {
    let (store, clock) = (world.store.clone(), world.clock.clone());
    let parts =
        support::parts(store, clock.clone(), world.directory.path(), "here", Arc::new(NoAnchor));
    let (audit, journal) = (world.audit_directory(), world.directory.path().join("journal"));
    let open = move |key| {
        let signing = SigningKey::from_seed(KeyMaterial::from_slice(&[9; 32])).unwrap();
        let options = AuditOptions {
            disk: disk.clone(),
            segment_bytes: 8_192,
            compress,
            retention: Retention { bytes: Some(20_000), age: None },
            checkpoints: Some(Checkpointing::new(signing, clock.clone())),
            ..AuditOptions::default()
        };
        AuditLog::open_with(&audit, &journal, key, options).map(|log| Arc::new(log) as _)
    };
    Engine::start(Parts { audit: Box::new(open), ..parts }).await.unwrap()
}

/// What was deleted was too old by then: a clock that is set back does not make it young.
#[tokio::test]
async fn what_was_deleted_is_not_admitted_again_either() {
    let world = World::new();
    let engine = forgetful(&world).await;
    pass(&world, &engine, HOUR * 25).await;
    let now = engine.clock().now();
    let ahead = now.after(MINUTE * 14);
    assert!(admit(&engine, "ahead", ahead).await);
    fill(&engine, 100).await;
    world.clock.advance(MINUTE * 20);
    fill(&engine, 150).await;
    world.clock.advance(MINUTE * 15);
    engine.run_due_work().await.unwrap();
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.deleted_through > 100, "{found:?}");
    // The next start is under a clock that is ahead; then that is behind, and right.
    engine.shutdown().await;
    drop(engine);
    world.clock.jump_to(now.after(DAY));
    let engine = forgetful(&world).await;
    world.clock.jump_to(now.after(MINUTE * 20));
    assert!(!admit(&engine, "ahead", ahead).await);
    let to = now.after(MINUTE * 36);
    world.clock.jump_to(to);
    assert!(admit(&engine, "fresh", to).await);
}

/// Waits until only the open segment is plain.
async fn settle(audit: &Path) {
    for _ in 0..1000 {
        let plain = fs::read_dir(audit)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().unwrap() == "jsonl")
            .count();
        if plain == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("closed segments are not compressed");
}

/// The numbers of the records of deletions that are there, and what they tell of lost seconds.
async fn deletions(engine: &Engine) -> Vec<(u64, String)> {
    let query = Query { action: Some("DeleteAudit".into()), limit: 100, ..Query::default() };
    let found = engine.execute(&root(engine), QueryAudit { query }).await.unwrap().records;
    let told = |record: &serde_json::Value| {
        (record["seq"].as_u64().unwrap(), record["signed_for"].as_str().unwrap().to_owned())
    };
    found.iter().map(told).collect()
}

/// Fills the log and deletes what is too much. Answers up to which record.
async fn fill_and_delete(world: &World, engine: &Engine, compress: bool) -> u64 {
    fill(engine, 250).await;
    if compress {
        settle(&world.audit_directory()).await;
        // The last of them may be what is over.
        fill(engine, 250).await;
        settle(&world.audit_directory()).await;
    }
    engine.run_due_work().await.unwrap();
    engine.execute(&root(engine), VerifyAudit).await.unwrap().deleted_through
}

/// Who asks is admitted, and none that was admitted before; then, and when that time comes again.
async fn assert_right(world: &World, engine: &Engine, asked: &[(String, Timestamp)], what: &str) {
    let now = engine.clock().now();
    assert!(admit(engine, "fresh", now).await, "{what}");
    assert!(!admit(engine, "fresh", now).await, "{what}");
    for (nonce, signed) in asked {
        assert!(!admit(engine, nonce, *signed).await, "{what}: {nonce}");
    }
    for (nonce, signed) in asked {
        world.clock.jump_to(*signed);
        assert!(!admit(engine, nonce, *signed).await, "{what}: {nonce}, again");
    }
}

/// What was made while the clock was ahead is deleted, before or after that is set right; the second
/// deletion takes the record of the first one with it.
#[tokio::test]
async fn a_clock_set_right_locks_nobody_out_whatever_was_deleted() {
    for compress in [false, true] {
        for (ahead, long) in [(HOUR * 10, false), (DAY * 400, false), (DAY * 400, true)] {
            for stopped in [Duration::ZERO, MINUTE * 31] {
                let what = format!("{ahead:?}, {long}, compressed {compress}, stopped {stopped:?}");
                let world = World::new();
                let engine = forgetful_on(Arc::new(FileSystem), &world, compress).await;
                let mut asked = ask(&world, &engine, 3).await;
                let right = engine.clock().now();
                world.clock.jump_to(right.after(ahead));
                asked.extend(ask(&world, &engine, 3).await);
                if long {
                    // One segment has both times. The server believes in this clock after a day.
                    fill(&engine, 30).await;
                    pass(&world, &engine, HOUR * 26).await;
                    assert!(fill_and_delete(&world, &engine, compress).await > 10, "{what}");
                }
                assert_eq!(asked.len(), 6, "{what}");
                let passed = engine.clock().now().since(right.after(ahead));
                world.clock.jump_to(right.after(passed).after(MINUTE));
                assert!(fill_and_delete(&world, &engine, compress).await > 10, "{what}");
                let (first, told) = deletions(&engine).await.pop().unwrap();
                world.clock.advance(MINUTE);
                assert!(fill_and_delete(&world, &engine, compress).await >= first, "{what}");
                let (_, written_on) = deletions(&engine).await.pop().unwrap();
                assert_eq!(told, written_on, "{what}");
                engine.shutdown().await;
                drop(engine);
                world.clock.advance(stopped);
                let engine = forgetful_on(Arc::new(FileSystem), &world, compress).await;
                assert_right(&world, &engine, &asked, &what).await;
            }
        }
    }
}

/// After the record, after the statement, and after the first file. It is recorded once.
#[tokio::test]
async fn a_crash_in_a_deletion_admits_nothing_again() {
    for step in 0..3 {
        let (world, disk) = (World::new(), Arc::new(Meddler::default()));
        let engine = forgetful_on(disk.clone(), &world, false).await;
        let mut asked = ask(&world, &engine, 3).await;
        let right = engine.clock().now();
        world.clock.jump_to(right.after(DAY * 400));
        asked.extend(ask(&world, &engine, 3).await);
        world.clock.jump_to(right.after(HOUR));
        fill(&engine, 250).await;
        disk.ask(move |deed, path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let refused = match step {
                0 => name == "checkpoints.new",
                1 => deed == Deed::Remove,
                _ => deed == Deed::Remove && !name.starts_with("segment-00000000000000000001."),
            };
            if refused { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
        });
        for _ in 0..3 {
            engine.run_due_work().await.unwrap();
            // What else is too much by then makes no other deletion of it.
            fill(&engine, 30).await;
        }
        assert_eq!(deletions(&engine).await.len(), 1, "step {step}");
        let segments = log::segments(&world.audit_directory());
        assert_eq!(segments[0].to_str().unwrap().ends_with("01.jsonl"), step < 2);
        engine.shutdown().await;
        drop(engine);
        disk.rest();
        let engine = forgetful_on(disk.clone(), &world, false).await;
        assert_right(&world, &engine, &asked, &format!("step {step}")).await;
        world.clock.jump_to(right.after(HOUR * 2));
        engine.run_due_work().await.unwrap();
        let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
        assert!(found.ok && found.deleted_through > 100, "{found:?}");
    }
}

/// A dead battery at the start: what is stored is of later, and no key is worn by that.
#[tokio::test]
async fn a_start_with_a_clock_that_is_behind_rotates_nothing() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let update =
        UpdateRotationPolicy { key: by_id(&key), policy: RotationPolicy::new(true, None).unwrap() };
    engine.execute(&root(&engine), update).await.unwrap();
    pass(&world, &engine, HOUR).await;
    let to = before(START, DAY * 400);
    let engine = jump(&world, engine, Jump { to, at_start: true }).await;
    pass(&world, &engine, HOUR * 3).await;
    let describe = DescribeKey { key: by_id(&key) };
    assert_eq!(engine.execute(&root(&engine), describe).await.unwrap().versions.len(), 1);
}
