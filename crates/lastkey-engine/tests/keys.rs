//! Keys through their life, by the engine's own commands.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use lastkey_crypto::KeyId;
use lastkey_engine::{
    AliasName, Error, KeyRef, KeySpec, KeyState, Page, RotationPolicy, command::*,
};
use support::{World, by_id, context, create_key, root, secret};

const DAY: Duration = Duration::from_secs(86_400);

fn page(number: usize, size: usize) -> Page {
    Page::new(Some(number), Some(size)).unwrap()
}

#[tokio::test]
async fn every_spec_encrypts_and_only_the_same_context_decrypts() {
    let world = World::new();
    let engine = world.start().await;
    for spec in [KeySpec::Aes256, KeySpec::Aes192, KeySpec::Aes128] {
        let create = CreateKey { spec, ..CreateKey::default() };
        let key = engine.execute(&root(&engine), create).await.unwrap();
        let encrypt = Encrypt {
            key: by_id(&key),
            plaintext: secret("hello"),
            context: context(&[("a", "1"), ("b", "2")]),
        };
        let made = engine.execute(&root(&engine), encrypt).await.unwrap();
        assert_eq!(made.key_version, key.primary.version);

        let same = context(&[("b", "2"), ("a", "1")]);
        let decrypt = Decrypt { blob: made.blob.clone(), context: same };
        let opened = engine.execute(&root(&engine), decrypt).await.unwrap();
        assert_eq!(opened.plaintext.expose(), b"hello");
        assert_eq!(opened.key_id, key.id);

        for other in [context(&[]), context(&[("a", "1")]), context(&[("a", "1"), ("b", "3")])] {
            let decrypt = Decrypt { blob: made.blob.clone(), context: other };
            let refused = engine.execute(&root(&engine), decrypt).await.err();
            assert_eq!(refused, Some(Error::InvalidCiphertext));
        }
    }
}

#[tokio::test]
async fn failures_to_decrypt_look_alike() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let encrypt =
        Encrypt { key: by_id(&key), plaintext: secret("x"), context: context(&[("a", "1")]) };
    let blob = engine.execute(&root(&engine), encrypt).await.unwrap().blob;
    let mut flipped = blob.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut of_no_version = blob.clone();
    of_no_version[0] = if blob[0] == b'0' { b'1' } else { b'0' };
    for bad in [Vec::new(), b"short".to_vec(), flipped, of_no_version, blob] {
        let decrypt = Decrypt { blob: bad, context: context(&[]) };
        let refused = engine.execute(&root(&engine), decrypt).await.err();
        assert_eq!(refused, Some(Error::InvalidCiphertext));
    }
}

#[tokio::test]
async fn old_ciphertext_opens_after_rotations_and_a_restart() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let mut blobs = Vec::new();
    for n in 0..4 {
        let encrypt =
            Encrypt { key: by_id(&key), plaintext: secret(&n.to_string()), context: context(&[]) };
        blobs.push(engine.execute(&root(&engine), encrypt).await.unwrap());
        engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    }
    engine.shutdown().await;
    let engine = world.start().await;
    for (n, made) in blobs.iter().enumerate() {
        let decrypt = Decrypt { blob: made.blob.clone(), context: context(&[]) };
        let opened = engine.execute(&root(&engine), decrypt).await.unwrap();
        assert_eq!(opened.plaintext.expose(), n.to_string().as_bytes());
        assert_eq!(opened.key_version, made.key_version);
    }
    let list = ListKeyVersions { key: by_id(&key), page: page(2, 2) };
    let versions = engine.execute(&root(&engine), list).await.unwrap();
    assert_eq!((versions.total, versions.items.len()), (5, 2));
    assert_eq!(versions.items[0].id, blobs[2].key_version);
}

#[tokio::test]
async fn a_disabled_key_is_not_used() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let encrypt = || Encrypt { key: by_id(&key), plaintext: secret("x"), context: context(&[]) };
    let blob = engine.execute(&root(&engine), encrypt()).await.unwrap().blob;
    let decrypt = || Decrypt { blob: blob.clone(), context: context(&[]) };

    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    let refused = engine.execute(&root(&engine), encrypt()).await.err();
    assert_eq!(refused, Some(Error::KeyDisabled));
    assert_eq!(engine.execute(&root(&engine), decrypt()).await.err(), Some(Error::KeyDisabled));
    let rotate = CreateKeyVersion { key: by_id(&key) };
    assert_eq!(engine.execute(&root(&engine), rotate).await.err(), Some(Error::KeyDisabled));

    engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.unwrap();
    assert_eq!(engine.execute(&root(&engine), decrypt()).await.unwrap().plaintext.expose(), b"x");
}

#[tokio::test]
async fn deletion_waits_for_its_window_and_for_a_calm_clock() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let alias = AliasName::parse("alias/gone").unwrap();
    let name = CreateAlias { alias: alias.clone(), key: by_id(&key) };
    engine.execute(&root(&engine), name).await.unwrap();
    for window_days in [0, 6, 367] {
        let schedule = ScheduleKeyDeletion { key: by_id(&key), window_days, overriding: None };
        let refused = engine.execute(&root(&engine), schedule).await.err();
        assert!(matches!(refused, Some(Error::InvalidParameter { .. })));
    }
    let protect =
        SetDeletionProtection { key: by_id(&key), enable: true, description: "in use".into() };
    engine.execute(&root(&engine), protect.clone()).await.unwrap();
    let schedule = || ScheduleKeyDeletion { key: by_id(&key), window_days: 7, overriding: None };
    let refused = engine.execute(&root(&engine), schedule()).await.err();
    assert_eq!(refused, Some(Error::DeletionProtected));
    let release = SetDeletionProtection { enable: false, ..protect };
    engine.execute(&root(&engine), release).await.unwrap();
    engine.execute(&root(&engine), schedule()).await.unwrap();
    let again = engine.execute(&root(&engine), schedule()).await.err();
    assert_eq!(again, Some(Error::StateConflict { state: "PendingDeletion" }));

    // A clock that jumps a year ahead destroys nothing.
    world.clock.jump_to(support::START.after(DAY * 400));
    engine.run_due_work().await.unwrap();
    assert!(exists(&engine, &key).await);
    // Nor does a restart under that clock.
    engine.shutdown().await;
    let engine = world.start().await;
    assert!(exists(&engine, &key).await);
    // A day of running time does.
    for _ in 0..25 {
        world.clock.advance(DAY / 24);
        engine.run_due_work().await.unwrap();
    }
    assert!(!exists(&engine, &key).await);
    let describe = DescribeKey { key: KeyRef::Alias(alias) };
    assert_eq!(engine.execute(&root(&engine), describe).await.err(), Some(Error::AliasNotFound));
}

async fn exists(engine: &lastkey_engine::Engine, key: &lastkey_engine::Key) -> bool {
    engine.execute(&root(engine), DescribeKey { key: by_id(key) }).await.is_ok()
}

#[tokio::test]
async fn a_deletion_can_be_cancelled() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cancel = || CancelKeyDeletion { key: by_id(&key) };
    let early = engine.execute(&root(&engine), cancel()).await.err();
    assert_eq!(early, Some(Error::StateConflict { state: "Enabled" }));
    let schedule = ScheduleKeyDeletion { key: by_id(&key), window_days: 366, overriding: None };
    engine.execute(&root(&engine), schedule).await.unwrap();
    engine.execute(&root(&engine), cancel()).await.unwrap();
    let described = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_eq!((described.state, described.deletion_at), (KeyState::Enabled, None));
}

#[tokio::test]
async fn a_destroyed_key_with_many_versions_and_aliases_leaves_nothing() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    for _ in 0..230 {
        engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    }
    for n in 0..130 {
        let alias = AliasName::parse(&format!("alias/a{n}")).unwrap();
        engine.execute(&root(&engine), CreateAlias { alias, key: by_id(&key) }).await.unwrap();
    }
    let schedule = ScheduleKeyDeletion { key: by_id(&key), window_days: 7, overriding: None };
    engine.execute(&root(&engine), schedule).await.unwrap();
    for _ in 0..8 * 24 {
        world.clock.advance(DAY / 24);
        engine.run_due_work().await.unwrap();
    }
    engine.shutdown().await;
    use lastkey_store::Store;
    for prefix in ["key/", "version/", "alias/", "outbox/"] {
        let left = world.store.list(prefix, None, 10).await.unwrap();
        assert!(
            left.is_empty(),
            "{prefix}: {:?}",
            left.iter().map(|e| &e.path).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn a_rotation_that_fell_due_while_nobody_ran_happens_at_start() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    assert_eq!(key.rotation, RotationPolicy::new(true, Some(DAY * 365)).unwrap());
    engine.shutdown().await;

    world.clock.advance(DAY * 364);
    let engine = world.start().await;
    let describe = || DescribeKey { key: by_id(&key) };
    let before = engine.execute(&root(&engine), describe()).await.unwrap();
    assert_eq!(before.primary, key.primary);
    engine.shutdown().await;

    world.clock.advance(DAY * 2);
    let engine = world.start().await;
    let after = engine.execute(&root(&engine), describe()).await.unwrap();
    assert_ne!(after.primary.version, key.primary.version);
    assert_ne!(after.primary.epoch, key.primary.epoch);
    assert_eq!(after.versions.len(), 2);
    assert_eq!(after.next_rotation(), Some(after.rotated.after(DAY * 365)));
}

#[tokio::test]
async fn rotation_intervals_are_bounded() {
    for days in [0, 6, 731] {
        assert!(RotationPolicy::new(true, Some(DAY * days)).is_err());
    }
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let policy = RotationPolicy::new(true, Some(DAY * 7)).unwrap();
    let update = UpdateRotationPolicy { key: by_id(&key), policy };
    engine.execute(&root(&engine), update).await.unwrap();
    world.clock.advance(DAY * 7);
    // Seven days pass in a blink here: to the engine that is a clock that jumped only if its
    // running time did not pass as well.
    engine.run_due_work().await.unwrap();
    let described = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_eq!(described.versions.len(), 2);
}

#[tokio::test]
async fn lists_are_paged_in_the_order_of_creation() {
    let world = World::new();
    let engine = world.start().await;
    let mut ids = Vec::new();
    for _ in 0..25 {
        ids.push(create_key(&engine).await.id);
        world.clock.advance(Duration::from_millis(2));
    }
    let mut seen: Vec<KeyId> = Vec::new();
    for number in 1..=3 {
        let list = ListKeys { page: page(number, 10), filter: KeyFilter::default() };
        let listing = engine.execute(&root(&engine), list).await.unwrap();
        assert_eq!(listing.total, 25);
        seen.extend(listing.items);
    }
    assert_eq!(seen, ids);
    engine
        .execute(&root(&engine), DisableKey { key: KeyRef::Id(ids[3]), overriding: None })
        .await
        .unwrap();
    let filter = KeyFilter { states: vec![KeyState::Disabled], ..KeyFilter::default() };
    let list = ListKeys { page: page(1, 10), filter };
    let listing = engine.execute(&root(&engine), list).await.unwrap();
    assert_eq!(listing.items, [ids[3]]);
    assert!(Page::new(Some(0), None).is_err() && Page::new(None, Some(101)).is_err());
}

#[tokio::test]
async fn aliases_name_one_key_at_a_time() {
    let world = World::new();
    let engine = world.start().await;
    let (one, two) = (create_key(&engine).await, create_key(&engine).await);
    let alias = AliasName::parse("alias/app").unwrap();
    let create = |key| CreateAlias { alias: alias.clone(), key };
    engine.execute(&root(&engine), create(by_id(&one))).await.unwrap();
    let twice = engine.execute(&root(&engine), create(by_id(&two))).await.err();
    assert_eq!(twice, Some(Error::AliasExists));
    let update = UpdateAlias { alias: alias.clone(), key: by_id(&two) };
    engine.execute(&root(&engine), update).await.unwrap();
    let describe = || DescribeKey { key: KeyRef::Alias(alias.clone()) };
    assert_eq!(engine.execute(&root(&engine), describe()).await.unwrap().id, two.id);
    engine.shutdown().await;

    let engine = world.start().await;
    assert_eq!(engine.execute(&root(&engine), describe()).await.unwrap().id, two.id);
    let delete = || DeleteAlias { alias: alias.clone() };
    engine.execute(&root(&engine), delete()).await.unwrap();
    assert_eq!(engine.execute(&root(&engine), delete()).await.err(), Some(Error::AliasNotFound));
}

#[tokio::test]
async fn tags_are_bounded_and_found_again() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let tag = |pairs: &[(&str, &str)]| TagResource {
        key: by_id(&key),
        tags: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    engine.execute(&root(&engine), tag(&[("team", "a"), ("env", "prod")])).await.unwrap();
    assert!(engine.execute(&root(&engine), tag(&[("acs:x", "")])).await.is_err());
    let many: BTreeMap<String, String> =
        (0..19).map(|n| (format!("t{n}"), String::new())).collect();
    let too_many = TagResource { key: by_id(&key), tags: many };
    let refused = engine.execute(&root(&engine), too_many).await.err();
    assert_eq!(refused, Some(Error::LimitExceeded { what: "tags", limit: 20 }));

    let find = ListTagResources {
        tags: vec![("team".into(), Some("a".into()))],
        ..ListTagResources::default()
    };
    let (found, next) = engine.execute(&root(&engine), find).await.unwrap();
    assert_eq!((found.len(), found[0].key_id, next), (1, key.id, None));
    let untag = UntagResource { key: by_id(&key), which: UntagWhich::Names(vec!["team".into()]) };
    engine.execute(&root(&engine), untag).await.unwrap();
    let left = engine.execute(&root(&engine), ListResourceTags { key: by_id(&key) }).await.unwrap();
    assert_eq!(left.tags, BTreeMap::from([("env".to_owned(), "prod".to_owned())]));
}

#[tokio::test]
async fn tags_go_to_all_of_several_keys_or_to_none() {
    let world = World::new();
    let engine = world.start().await;
    let (first, full, doomed) =
        (create_key(&engine).await, create_key(&engine).await, create_key(&engine).await);
    let caller = || root(&engine);
    let many = (0..20).map(|n| (format!("t{n}"), String::new())).collect();
    engine.execute(&caller(), TagResource { key: by_id(&full), tags: many }).await.unwrap();
    let delete = ScheduleKeyDeletion { key: by_id(&doomed), window_days: 7, overriding: None };
    engine.execute(&caller(), delete).await.unwrap();
    let tag = |keys: &[&KeyRef]| TagResources {
        keys: keys.iter().copied().cloned().collect(),
        tags: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
    };
    let count = async |key: &KeyRef| {
        let tags = engine.execute(&caller(), ListResourceTags { key: key.clone() }).await.unwrap();
        tags.tags.len()
    };
    let [first, full, doomed] = [&first, &full, &doomed].map(|key| by_id(key));
    let missing = KeyRef::Alias(AliasName::parse("alias/missing").unwrap());
    let found = async |key: &KeyRef, outcome: &str| {
        let KeyRef::Id(id) = key else { panic!("an id") };
        let query = lastkey_engine::audit::Query {
            key: Some(id.to_string()),
            action: Some("TagResource".to_owned()),
            outcome: Some(outcome.to_owned()),
            limit: 100,
            ..Default::default()
        };
        engine.execute(&caller(), QueryAudit { query }).await.unwrap().records
    };
    let writes = async |key: &KeyRef| found(key, "ok").await;

    let limit = Some(Error::LimitExceeded { what: "tags", limit: 20 });
    for (other, why) in [
        (&full, limit),
        (&doomed, Some(Error::KeyPendingDeletion)),
        (&missing, Some(Error::AliasNotFound)),
    ] {
        assert_eq!(engine.execute(&caller(), tag(&[&first, other])).await.err(), why);
        assert_eq!(count(&first).await, 0, "{other:?}");
    }
    assert!(writes(&first).await.is_empty());
    // Who was refused is found by each of the keys that they named.
    for key in [&first, &doomed] {
        let refused = found(key, "Rejected.PendingDeletion").await;
        assert_eq!(refused.len(), 1, "{key:?}");
        assert!(refused[0]["target"].as_str().unwrap().starts_with("key/"), "{}", refused[0]);
    }
    assert_eq!(found(&first, "Forbidden.AliasNotFound").await[0]["target"], "alias/missing");

    // A key that is named twice is one key, and one record of the log is found by each of them.
    let alias = AliasName::parse("alias/first").unwrap();
    let named = CreateAlias { alias: alias.clone(), key: first.clone() };
    engine.execute(&caller(), named).await.unwrap();
    let untag = |keys: &[&KeyRef], which| UntagResources {
        keys: keys.iter().copied().cloned().collect(),
        which,
    };
    let some = UntagWhich::Names(vec!["t0".to_owned()]);
    engine.execute(&caller(), untag(&[&full, &first], some)).await.unwrap();
    let alias = KeyRef::Alias(alias);
    engine.execute(&caller(), tag(&[&first, &full, &alias])).await.unwrap();
    assert_eq!((count(&first).await, count(&full).await), (1, 20));
    let of_first = writes(&first).await;
    assert_eq!(of_first.len(), 1);
    assert_eq!(of_first[0]["writes"], 2);
    assert_eq!(writes(&full).await.last(), of_first.last());

    let refused = engine.execute(&caller(), untag(&[&first, &missing], UntagWhich::All)).await;
    assert_eq!((refused.err(), count(&first).await), (Some(Error::AliasNotFound), 1));
    engine.execute(&caller(), untag(&[&first, &full], UntagWhich::All)).await.unwrap();
    assert_eq!((count(&first).await, count(&full).await), (0, 0));
    let too_many = TagResources { keys: vec![first.clone(); 51], ..tag(&[]) };
    let refused = engine.execute(&caller(), too_many).await.err();
    assert_eq!(refused, Some(Error::LimitExceeded { what: "resources", limit: 50 }));
}

#[tokio::test]
async fn keys_that_are_too_much_for_one_transaction_are_left_alone() {
    let world = World::new();
    let engine = world.start().await;
    let mut keys = Vec::new();
    for _ in 0..50 {
        let long = CreateKey { description: "x".repeat(8192), ..CreateKey::default() };
        keys.push(by_id(&engine.execute(&root(&engine), long).await.unwrap()));
    }
    let tag = |prefix: &str| TagResources {
        keys: keys.clone(),
        // Of a character that takes four bytes.
        tags: (0..9).map(|n| (format!("{prefix}{n}"), "\u{1F511}".repeat(256))).collect(),
    };
    let engine = &engine;
    engine.execute(&root(engine), tag("a")).await.unwrap();
    let refused = engine.execute(&root(engine), tag("b")).await.unwrap_err();
    assert!(refused.to_string().contains("name fewer"), "{refused}");
    let KeyRef::Id(last) = &keys[49] else { panic!("an id") };
    let query = lastkey_engine::audit::Query {
        key: Some(last.to_string()),
        outcome: Some("InvalidParameter".to_owned()),
        limit: 100,
        ..Default::default()
    };
    let found = engine.execute(&root(engine), QueryAudit { query }).await.unwrap();
    assert_eq!(found.records.len(), 1);
    for key in &keys {
        let tags = ListResourceTags { key: key.clone() };
        assert_eq!(engine.execute(&root(engine), tags).await.unwrap().tags.len(), 9);
    }
}

#[tokio::test]
async fn a_data_key_is_what_its_blob_opens_to() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let generate = |length| GenerateDataKey {
        key: by_id(&key),
        length,
        context: context(&[("p", "q")]),
        encoding: |bytes| lastkey_crypto::SecretBytes::new(bytes.to_vec()),
    };
    for length in [1, 32, 1024] {
        let made = engine.execute(&root(&engine), generate(length)).await.unwrap();
        assert_eq!(made.plaintext.expose().len(), length);
        let decrypt = Decrypt { blob: made.encrypted.blob, context: context(&[("p", "q")]) };
        let opened = engine.execute(&root(&engine), decrypt).await.unwrap();
        assert_eq!(opened.plaintext.expose(), made.plaintext.expose());
    }
    assert!(engine.execute(&root(&engine), generate(0)).await.is_err());
    assert!(engine.execute(&root(&engine), generate(1025)).await.is_err());
}

#[tokio::test]
async fn re_encryption_moves_a_value_to_another_key() {
    let world = World::new();
    let engine = world.start().await;
    let (from, to) = (create_key(&engine).await, create_key(&engine).await);
    let encrypt =
        Encrypt { key: by_id(&from), plaintext: secret("v"), context: context(&[("a", "1")]) };
    let blob = engine.execute(&root(&engine), encrypt).await.unwrap().blob;
    let move_it = |source: Option<KeyRef>| ReEncrypt {
        blob: blob.clone(),
        source_context: context(&[("a", "1")]),
        source_key: source,
        destination: by_id(&to),
        destination_context: context(&[("b", "2")]),
    };
    let wrong = engine.execute(&root(&engine), move_it(Some(by_id(&to)))).await.err();
    assert_eq!(wrong, Some(Error::InvalidCiphertext));
    let moved = engine.execute(&root(&engine), move_it(Some(by_id(&from)))).await.unwrap();
    assert_eq!(moved.key_id, to.id);
    let decrypt = Decrypt { blob: moved.blob, context: context(&[("b", "2")]) };
    let opened = engine.execute(&root(&engine), decrypt).await.unwrap();
    assert_eq!(opened.plaintext.expose(), b"v");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let world = World::new();
    let engine = world.start().await;
    let mut caller = root(&engine);
    caller.dry_run = true;
    let refused = engine.execute(&caller, CreateKey::default()).await.err();
    assert_eq!(refused, Some(Error::DryRun));
    assert_eq!(engine.key_count(), 0);
}

#[tokio::test]
async fn sixteen_callers_change_one_key_without_losing_a_change() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let (engine, key) = (engine.clone(), by_id(&key));
            tokio::spawn(async move {
                let tags = BTreeMap::from([(format!("t{n}"), String::new())]);
                engine.execute(&root(&engine), TagResource { key, tags }).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let tags = engine.execute(&root(&engine), ListResourceTags { key: by_id(&key) }).await.unwrap();
    assert_eq!(tags.tags.len(), 16);
}

#[tokio::test]
async fn a_record_moved_to_another_path_does_not_open() {
    use lastkey_store::{Store, Transaction};
    let world = World::new();
    let engine = world.start().await;
    let (one, two) = (create_key(&engine).await, create_key(&engine).await);
    engine.shutdown().await;
    let stolen = world.store.get(&format!("key/{}", one.id)).await.unwrap().unwrap();
    let swap = Transaction::new().put(format!("key/{}", two.id), stolen.value);
    world.store.commit(swap).await.unwrap();
    let engine = world.try_start("here").await;
    assert!(engine.is_err(), "a start reads every key for due work, and finds the swapped one");
}
