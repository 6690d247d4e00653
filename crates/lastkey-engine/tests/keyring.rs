//! The keyring rotates without downtime, and uses are counted so that a crash never undercounts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use lastkey_crypto::record::SealedRecord;
use lastkey_engine::{Engine, Key, KeyVersion, command::*};
use lastkey_store::Store;
use support::{World, by_id, context, create_key, root, secret};

const DAY: Duration = Duration::from_secs(86_400);

/// The keyring keys that sealed what is in the store now.
async fn sealed_by(world: &World) -> BTreeSet<u32> {
    let entries = world.store.list("", None, usize::MAX).await.unwrap();
    let sealed =
        entries.iter().filter(|entry| !matches!(entry.path.as_str(), "meta/keyring" | "meta/seal"));
    sealed.map(|entry| SealedRecord::parse(&entry.value).unwrap().keyring_key()).collect()
}

/// Waits until the keyring has one key again.
async fn settled(engine: &Engine) {
    for _ in 0..3000 {
        if engine.keyring_uses().1 == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("old keys are still there: {:?}", engine.keyring_uses());
}

async fn encrypt(engine: &Engine, key: &Key) -> Vec<u8> {
    let encrypt = Encrypt { key: by_id(key), plaintext: secret("x"), context: context(&[]) };
    engine.execute(&root(engine), encrypt).await.unwrap().blob
}

async fn decrypt(engine: &Engine, blob: &[u8]) {
    let decrypt = Decrypt { blob: blob.to_vec(), context: context(&[]) };
    assert_eq!(engine.execute(&root(engine), decrypt).await.unwrap().plaintext.expose(), b"x");
}

async fn describe(engine: &Engine, key: &Key) -> KeyVersion {
    let command = DescribeKeyVersion { key: by_id(key), version: key.primary.version };
    engine.execute(&root(engine), command).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_seals_everything_again_while_the_service_works() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let blob = encrypt(&engine, &key).await;
    for _ in 0..120 {
        create_key(&engine).await;
    }
    let before = sealed_by(&world).await;
    assert_eq!(before.len(), 1);
    let busy = {
        let engine = engine.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while engine.keyring_uses().1 > 1 || done < 20 {
                let key = create_key(&engine).await;
                let blob = encrypt(&engine, &key).await;
                decrypt(&engine, &blob).await;
                done += 1;
            }
        })
    };
    let newest = engine.execute(&root(&engine), RotateKeyring).await.unwrap();
    assert!(before.iter().all(|old| *old < newest));
    settled(&engine).await;
    busy.await.unwrap();
    decrypt(&engine, &blob).await;
    engine.shutdown().await;
    assert_eq!(sealed_by(&world).await, BTreeSet::from([newest]));
    let engine = world.start().await;
    decrypt(&engine, &blob).await;
}

/// At any step of the round that another rotation began: in the middle of it, when it has just come
/// to its end, and when the old keys are dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_during_another_costs_no_record() {
    let world = World::new();
    let engine = world.start().await;
    let mut keys = Vec::new();
    for _ in 0..400 {
        keys.push(create_key(&engine).await);
    }
    let mut newest = 0;
    for wait in [0_u64, 30, 110, 170, 250, 330, 390, 460, 540, 610, 730, 810] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        newest = engine.execute(&root(&engine), RotateKeyring).await.unwrap();
        encrypt(&engine, &keys[0]).await;
    }
    settled(&engine).await;
    let blob = encrypt(&engine, &keys[399]).await;
    engine.shutdown().await;
    assert_eq!(sealed_by(&world).await, BTreeSet::from([newest]));
    let engine = world.start().await;
    decrypt(&engine, &blob).await;
    for key in &keys {
        describe(&engine, key).await;
    }
}

#[tokio::test]
async fn a_rotation_that_was_interrupted_goes_on_at_the_next_start() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let blob = encrypt(&engine, &key).await;
    let newest = engine.execute(&root(&engine), RotateKeyring).await.unwrap();
    // Nothing was sealed again yet, and nothing is after this.
    engine.shutdown().await;
    let engine = world.start().await;
    decrypt(&engine, &blob).await;
    settled(&engine).await;
    decrypt(&engine, &blob).await;
    engine.shutdown().await;
    assert_eq!(sealed_by(&world).await, BTreeSet::from([newest]));
}

#[tokio::test]
async fn the_keyring_rotates_by_itself_by_age_and_by_use() {
    let world = World::new();
    let engine = world.start().await;
    create_key(&engine).await;
    let first = sealed_by(&world).await;
    engine.run_due_work().await.unwrap();
    assert_eq!(engine.keyring_uses().1, 1, "it is young");
    for _ in 0..91 {
        world.clock.advance(DAY);
    }
    engine.run_due_work().await.unwrap();
    // The wall clock and running time agree, so nothing waits.
    assert_eq!(engine.keyring_uses().1, 2, "it is old");
    settled(&engine).await;
    let second = sealed_by(&world).await;
    assert!(first.is_disjoint(&second));

    let (uses, _) = engine.keyring_uses();
    engine.limit_uses(uses + 5, u64::MAX);
    while engine.keyring_uses().0 < uses + 5 {
        create_key(&engine).await;
    }
    engine.run_due_work().await.unwrap();
    assert_eq!(engine.keyring_uses().1, 2, "it was used enough");
    engine.limit_uses(u64::MAX, u64::MAX);
    settled(&engine).await;
}

#[tokio::test]
async fn seals_are_never_undercounted() {
    let world = World::new();
    let (mut at_least, mut crashes) = (0, 0);
    for round in 0..6 {
        let engine = world.start().await;
        let (found, _) = engine.keyring_uses();
        assert!(found >= at_least, "round {round}: {found} after {at_least}");
        for _ in 0..10 {
            create_key(&engine).await;
        }
        at_least = engine.keyring_uses().0;
        if round % 2 == 0 {
            engine.shutdown().await;
            // A clean end wastes no block, and a crash one at most.
            let wasted = crashes * (1 << 20);
            assert!(at_least < 40_000 + wasted, "{at_least}");
        }
        if round == 1 {
            // Another key is counted from nothing.
            engine.execute(&root(&engine), RotateKeyring).await.unwrap();
            settled(&engine).await;
            at_least = engine.keyring_uses().0;
            assert!(at_least < 1_000, "{at_least}");
        }
        crashes += round % 2;
        drop(engine);
    }
}

#[tokio::test]
async fn encryptions_are_counted_over_clean_ends_and_crashes() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    assert_eq!(describe(&engine, &key).await.uses, 0);
    for n in 1..=10 {
        let blob = encrypt(&engine, &key).await;
        decrypt(&engine, &blob).await;
        assert_eq!(describe(&engine, &key).await.uses, n, "decryptions do not count");
    }
    engine.shutdown().await;
    let engine = world.start().await;
    assert_eq!(describe(&engine, &key).await.uses, 10, "a clean end leaves the exact count");
    encrypt(&engine, &key).await;
    drop(engine);
    // As after a crash.
    let engine = world.start().await;
    let counted = describe(&engine, &key).await.uses;
    assert!((11..=10_000).contains(&counted), "{counted}");
    // Another version begins anew, and the old one keeps its count.
    engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    let rotated = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_eq!(describe(&engine, &rotated).await.uses, 0);
    assert_eq!(describe(&engine, &key).await.uses, counted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_encryptions_are_all_counted() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (engine, key) = (engine.clone(), key.clone());
            tokio::spawn(async move {
                for _ in 0..400 {
                    encrypt(&engine, &key).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(describe(&engine, &key).await.uses, 16 * 400);
    let path = format!("uses/{}", key.primary.version);
    assert!(world.store.get(&path).await.unwrap().is_some(), "counted ahead, in the store");
}

#[tokio::test]
async fn a_version_that_encrypted_enough_gives_way_to_another() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    engine.limit_uses(u64::MAX, 5_000);
    for _ in 0..4_200 {
        encrypt(&engine, &key).await;
    }
    engine.run_due_work().await.unwrap();
    let same = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_eq!(same.primary.version, key.primary.version, "not yet");
    engine.shutdown().await;

    let engine = world.start().await;
    engine.limit_uses(u64::MAX, 4_200);
    encrypt(&engine, &key).await;
    engine.run_due_work().await.unwrap();
    let other = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_ne!(other.primary.version, key.primary.version);
    assert_eq!(other.versions.len(), 2);
}

/// A rotation that fails is tried again, and keeps nothing else waiting.
#[tokio::test]
async fn one_key_that_is_not_rotated_keeps_no_other_one_waiting() {
    use lastkey_store::CommitFault;
    let world = World::new();
    let engine = world.start().await;
    engine.limit_uses(u64::MAX, 0);
    let mut keys = Vec::new();
    for _ in 0..2 {
        keys.push(create_key(&engine).await);
    }
    // This one is due to be destroyed.
    let old = create_key(&engine).await;
    for key in &keys {
        encrypt(&engine, key).await;
    }
    while !world.store.list("outbox/", None, 10).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rotated = async || {
        let mut rotated = 0;
        for key in &keys {
            let describe = DescribeKey { key: by_id(key) };
            let found = engine.execute(&root(&engine), describe).await.unwrap();
            rotated += usize::from(found.primary.version != key.primary.version);
        }
        rotated
    };
    let schedule = ScheduleKeyDeletion { key: by_id(&old), window_days: 7, overriding: None };
    engine.execute(&root(&engine), schedule).await.unwrap();
    world.clock.advance(8 * DAY);
    while !world.store.list("outbox/", None, 10).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.store.fail_next_commit(CommitFault::Full);
    engine.run_due_work().await.unwrap_err();
    assert_eq!(rotated().await, 1);
    let gone = engine.execute(&root(&engine), DescribeKey { key: by_id(&old) }).await;
    assert!(gone.is_err(), "what is due was done");
    engine.run_due_work().await.unwrap();
    assert_eq!(rotated().await, 2);
}

/// The disk is full when the server starts: it starts, and counts once there is room.
#[tokio::test]
async fn a_start_without_room_is_a_start() {
    use lastkey_store::{CommitFault, Transaction};
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let blob = encrypt(&engine, &key).await;
    engine.shutdown().await;
    world.store.fail_next_commit(CommitFault::Full);
    let engine = world.start().await;
    decrypt(&engine, &blob).await;
    let (before, _) = engine.keyring_uses();
    create_key(&engine).await;
    assert!(engine.keyring_uses().0 > before);
    // The next sweep has counted ahead.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let counted = engine.keyring_uses().0;
    drop(engine);
    while world.store.commit(Transaction::new()).await.is_err() {}
    let engine = world.start().await;
    assert!(engine.keyring_uses().0 >= counted);
}
