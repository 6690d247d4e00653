//! Clocks that jump, in both directions, at start and while running: nothing is destroyed by it,
//! and no request is admitted twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::time::Duration;

use lastkey_engine::{Engine, Error, Key, RotationPolicy, Timestamp, command::*};
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
