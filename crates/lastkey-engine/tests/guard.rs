//! A key that something needs is not taken away by accident.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lastkey_crypto::{ClusterId, KeyVersionId};
use lastkey_engine::{
    AliasName, CLUSTER_KIND, Caller, Clock, Course, Dependant, Engine, Error, Key, KeyRef,
    KeyState, Label, Principal, Source, Timestamp, Way, command::*,
};
use support::{START, World, by_id, create_key, root, secret};

const DAY: u64 = 24 * 60 * 60;

fn dependant(kind: &str, id: &str, objects: &[(KeyVersionId, u64)]) -> Dependant {
    Dependant {
        kind: Label::parse(kind).unwrap(),
        id: Label::parse(id).unwrap(),
        name: "prod".to_owned(),
        versions: objects.iter().copied().collect(),
        until: None,
        seen_at: Some(START),
        used: BTreeMap::new(),
    }
}

async fn put(engine: &Engine, key: &Key, dependant: Dependant) {
    put_knowing(engine, key, dependant, None).await;
}

#[allow(clippy::too_many_arguments, reason = "each is a thing of its own")]
async fn put_knowing(
    engine: &Engine,
    key: &Key,
    dependant: Dependant,
    in_use: Option<BTreeSet<KeyVersionId>>,
) {
    let put = PutDependant { key: by_id(key), dependant, in_use };
    engine.execute(&root(engine), put).await.unwrap();
}

async fn disable(engine: &Engine, key: &Key, overriding: Option<Override>) -> Result<(), Error> {
    engine.execute(&root(engine), DisableKey { key: by_id(key), overriding }).await
}

async fn delete(engine: &Engine, key: &Key, overriding: Option<Override>) -> Result<(), Error> {
    let delete = ScheduleKeyDeletion { key: by_id(key), window_days: 7, overriding };
    engine.execute(&root(engine), delete).await
}

async fn state(engine: &Engine, key: &Key) -> KeyState {
    engine.execute(&root(engine), DescribeKey { key: by_id(key) }).await.unwrap().state
}

fn twice(key: &str, reason: &str) -> Option<Override> {
    Some(Override { key: key.to_owned(), reason: reason.to_owned() })
}

#[tokio::test]
async fn a_key_in_use_is_not_taken_away_unless_one_says_so_twice() {
    let world = World::new();
    let engine = world.start().await;
    let (key, other) = (create_key(&engine).await, create_key(&engine).await);
    put(&engine, &key, dependant("volume", "v-1", &[(key.primary.version, 3)])).await;

    // Refused, with the list, and nothing has changed.
    let refused = disable(&engine, &key, None).await.unwrap_err();
    assert_eq!(refused.code(), "Rejected.HasDependants");
    assert!(refused.to_string().contains("volume prod (3 objects)"), "{refused}");
    let Error::Depended(list) = refused else { panic!() };
    assert_eq!(list.len(), 1);
    assert!(matches!(delete(&engine, &key, None).await, Err(Error::Depended(_))));
    assert_eq!(state(&engine, &key).await, KeyState::Enabled);
    // Another key is not concerned.
    disable(&engine, &other, None).await.unwrap();

    // The second time names this very key, and says why.
    for wrong in [other.id.to_string(), "alias/none".to_owned(), "yes".to_owned()] {
        let refused = disable(&engine, &key, twice(&wrong, "because")).await;
        assert!(matches!(refused, Err(Error::InvalidParameter { .. })), "{wrong}");
    }
    let silent = disable(&engine, &key, twice(&key.id.to_string(), " ")).await;
    assert!(matches!(silent, Err(Error::InvalidParameter { .. })));
    assert_eq!(state(&engine, &key).await, KeyState::Enabled);
    let alias = AliasName::parse("alias/app").unwrap();
    engine.execute(&root(&engine), CreateAlias { alias, key: by_id(&key) }).await.unwrap();
    disable(&engine, &key, twice("alias/app", "the volume was wiped")).await.unwrap();
    assert_eq!(state(&engine, &key).await, KeyState::Disabled);
    delete(&engine, &key, twice(&key.id.to_string(), "really")).await.unwrap();

    // It is in the log as what it was.
    let all =
        QueryAudit { query: lastkey_engine::audit::Query { limit: 100, ..Default::default() } };
    let page = engine.execute(&root(&engine), all).await.unwrap();
    let lines: Vec<String> = page.records.iter().map(ToString::to_string).collect();
    let found = |parts: &[&str]| lines.iter().any(|l| parts.iter().all(|part| l.contains(part)));
    assert!(found(&[
        "\"DisableKey\"",
        "\"override\":\"the volume was wiped\"",
        "\"dependants\":1"
    ]));
    assert!(found(&["\"DisableKey\"", "\"outcome\":\"Rejected.HasDependants\""]));
}

#[tokio::test]
async fn dependants_come_and_go_and_survive_a_restart() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    put(&engine, &key, dependant("backup", "b-1", &[(key.primary.version, 1)])).await;
    let ends = Dependant {
        until: Some(START.after(Duration::from_secs(DAY))),
        ..dependant("backup", "b-2", &[(key.primary.version, 1)])
    };
    put(&engine, &key, ends).await;
    engine.shutdown().await;
    let engine = world.start().await;
    let listed = engine.execute(&root(&engine), ListDependants { key: by_id(&key) }).await.unwrap();
    assert_eq!(listed.len(), 2);
    let gone = RemoveDependant {
        key: by_id(&key),
        kind: Label::parse("backup").unwrap(),
        id: Label::parse("b-1").unwrap(),
        reason: "deleted".to_owned(),
    };
    engine.execute(&root(&engine), gone.clone()).await.unwrap();
    let again = engine.execute(&root(&engine), gone).await;
    assert_eq!(again.err(), Some(Error::NotFound("dependant")));
    // The other one ends by itself.
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    world.clock.advance(Duration::from_secs(DAY + 1));
    disable(&engine, &key, None).await.unwrap();
}

#[tokio::test]
async fn what_is_written_down_has_to_make_sense() {
    let world = World::new();
    let engine = world.start().await;
    let (key, other) = (create_key(&engine).await, create_key(&engine).await);
    let put = async |dependant| {
        let put = PutDependant { key: by_id(&key), dependant, in_use: None };
        engine.execute(&root(&engine), put).await
    };
    let foreign = dependant("cluster", "c", &[(other.primary.version, 1)]);
    assert_eq!(put(foreign).await, Err(Error::KeyVersionNotFound));
    let control = Dependant { name: "a\nb".to_owned(), ..dependant("cluster", "c", &[]) };
    assert!(matches!(put(control).await, Err(Error::InvalidParameter { .. })));
}

struct Registered {
    cluster: ClusterId,
    plugin: Caller,
}

async fn register(engine: &Engine, key: &Key) -> Registered {
    let fingerprint = "print".to_owned();
    let name = lastkey_engine::ClusterName::parse("prod").unwrap();
    let plugin = PluginRequest { name: name.clone(), fingerprint: fingerprint.clone() };
    let add = AddCluster { name: Some(name), keys: vec![by_id(key)], plugin: Some(plugin) };
    let cluster = engine.execute(&root(engine), add).await.unwrap().cluster.id;
    let principal =
        Principal::Plugin { cluster, name: "prod".into(), fingerprint: fingerprint.into() };
    Registered {
        cluster,
        plugin: Caller::new(principal, Source::Internal, engine.new_request_id()),
    }
}

fn coverage(cluster: ClusterId, at: Timestamp, objects: &[(KeyVersionId, u64)]) -> Dependant {
    let seen_at = Some(at);
    Dependant { seen_at, ..dependant(CLUSTER_KIND, &cluster.to_string(), objects) }
}

async fn encrypt(engine: &Engine, of: &Registered, key: &Key) {
    let encrypt = PluginEncrypt {
        cluster: of.cluster,
        key: by_id(key),
        pin: None,
        plaintext: secret("seed"),
    };
    engine.execute(&of.plugin, encrypt).await.unwrap();
}

/// A plugin that encrypted is a dependant until somebody has looked, and found nothing.
#[tokio::test]
async fn a_plugins_use_counts_until_a_look_settles_it() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let prod = register(&engine, &key).await;
    // Registered, and never used.
    disable(&engine, &key, None).await.unwrap();
    engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.unwrap();
    // Nobody can look at this cluster; it needs the key all the same from its first use on.
    encrypt(&engine, &prod, &key).await;
    let refused = disable(&engine, &key, None).await.unwrap_err();
    assert!(refused.to_string().contains("cluster prod (nobody has looked yet)"), "{refused}");
    assert!(matches!(delete(&engine, &key, None).await, Err(Error::Depended(_))));

    // From now on somebody can, but has not yet.
    let unseen = Dependant { seen_at: None, ..coverage(prod.cluster, START, &[]) };
    put(&engine, &key, unseen).await;
    let refused = disable(&engine, &key, None).await.unwrap_err();
    assert!(refused.to_string().contains("nobody has looked"), "{refused}");
    // A look finds nothing.
    world.clock.advance(Duration::from_secs(60));
    let now = world.clock.now();
    put_knowing(&engine, &key, coverage(prod.cluster, now, &[]), Some(BTreeSet::new())).await;
    disable(&engine, &key, None).await.unwrap();
    engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.unwrap();

    // The plugin encrypts: who knows what under.
    encrypt(&engine, &prod, &key).await;
    encrypt(&engine, &prod, &key).await;
    let refused = disable(&engine, &key, None).await.unwrap_err();
    assert!(refused.to_string().contains("its plugin uses the key"), "{refused}");
    // Also after a restart.
    engine.shutdown().await;
    let engine = world.start().await;
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    // A look that finds nothing settles it only if no apiserver uses the version any more.
    world.clock.advance(Duration::from_secs(60));
    let look = |at| coverage(prod.cluster, at, &[]);
    let in_use = |versions: &[KeyVersionId]| Some(versions.iter().copied().collect());
    let primary = key.primary.version;
    put_knowing(&engine, &key, look(world.clock.now()), in_use(&[primary])).await;
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    put_knowing(&engine, &key, look(world.clock.now()), None).await;
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    // Rotated; the apiservers use the new version; what is found is under that.
    let new = engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let found = coverage(prod.cluster, world.clock.now(), &[(primary, 0), (new.id, 7)]);
    put_knowing(&engine, &key, found, in_use(&[new.id])).await;
    let impact = |version| DescribeImpact { key: by_id(&key), version };
    let of_old = engine.execute(&root(&engine), impact(Some(primary))).await.unwrap();
    assert!(of_old.dependants.is_empty(), "the old version is free: {:?}", of_old.dependants);
    let of_new = engine.execute(&root(&engine), impact(Some(new.id))).await.unwrap();
    assert_eq!(of_new.dependants.len(), 1);
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
}

/// A version is encrypted under over and over; each time counts, not the first alone.
#[tokio::test]
async fn a_use_during_a_look_outlasts_it() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let prod = register(&engine, &key).await;
    put(&engine, &key, coverage(prod.cluster, world.clock.now(), &[])).await;
    encrypt(&engine, &prod, &key).await;
    world.clock.advance(Duration::from_secs(60));
    let began = world.clock.now();
    world.clock.advance(Duration::from_secs(30));
    encrypt(&engine, &prod, &key).await;
    put_knowing(&engine, &key, coverage(prod.cluster, began, &[]), Some(BTreeSet::new())).await;
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    // A mark stands for every use of its moment.
    let soon = world.clock.now().after(Duration::from_secs(1));
    put_knowing(&engine, &key, coverage(prod.cluster, soon, &[]), Some(BTreeSet::new())).await;
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    let later = world.clock.now().after(Duration::from_secs(3));
    put_knowing(&engine, &key, coverage(prod.cluster, later, &[]), Some(BTreeSet::new())).await;
    disable(&engine, &key, None).await.unwrap();
}

/// A snapshot comes after what is counted for it: what is written in between is in it, too.
#[tokio::test]
async fn a_backup_needs_what_may_be_written_before_its_snapshot() {
    let world = World::new();
    let engine = world.start().await;
    let (key, spare) = (create_key(&engine).await, create_key(&engine).await);
    let prod = register(&engine, &key).await;
    let old = key.primary.version;
    put(&engine, &key, coverage(prod.cluster, world.clock.now(), &[(old, 3)])).await;
    let new = engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    // Of a key that the cluster has nothing under, its backup has nothing either.
    put(&engine, &spare, coverage(prod.cluster, world.clock.now(), &[])).await;
    let id = format!("{}.monday", prod.cluster);
    put(&engine, &key, dependant("backup", &id, &[(old, 3)])).await;
    put(&engine, &spare, dependant("backup", &id, &[])).await;
    let nothing = coverage(prod.cluster, world.clock.now(), &[]);
    put_knowing(&engine, &key, nothing, Some(BTreeSet::new())).await;
    for version in [old, new.id] {
        let impact = DescribeImpact { key: by_id(&key), version: Some(version) };
        let needed = engine.execute(&root(&engine), impact).await.unwrap().dependants;
        let kinds: Vec<_> = needed.iter().map(|one| one.kind.as_str().to_owned()).collect();
        assert_eq!(kinds, ["backup"], "{version}");
    }
    disable(&engine, &spare, None).await.unwrap();
    // A rotation that comes between the count and the snapshot.
    let newest = engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await;
    let newest = newest.unwrap().id;
    let needs = async || {
        let impact = DescribeImpact { key: by_id(&key), version: Some(newest) };
        let needed = engine.execute(&root(&engine), impact).await.unwrap().dependants;
        needed.iter().filter(|one| one.kind.as_str() == "backup").count()
    };
    encrypt(&engine, &prod, &key).await;
    assert_eq!(needs().await, 1);
    // What is used long after it was taken is not in it.
    let id = format!("{}.tuesday", prod.cluster);
    let tuesday = Dependant { seen_at: Some(world.clock.now()), ..dependant("backup", &id, &[]) };
    put(&engine, &key, tuesday).await;
    world.clock.advance(Duration::from_secs(2 * 3600));
    engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    assert_eq!(needs().await, 2);
}

/// What came to need a key during its deletion window keeps it from being destroyed.
#[tokio::test]
async fn a_deletion_waits_for_what_came_to_need_the_key() {
    let world = World::new();
    let engine = world.start().await;
    let (spared, doomed) = (create_key(&engine).await, create_key(&engine).await);
    delete(&engine, &spared, None).await.unwrap();
    put(&engine, &spared, dependant("backup", "b", &[(spared.primary.version, 1)])).await;
    for n in 0..40 {
        put(&engine, &doomed, dependant("backup", &n.to_string(), &[(doomed.primary.version, 1)]))
            .await;
    }
    delete(&engine, &doomed, twice(&doomed.id.to_string(), "nobody wants it")).await.unwrap();
    for _ in 0..10 {
        world.clock.advance(Duration::from_secs(DAY));
        engine.run_due_work().await.unwrap();
    }
    assert_eq!(state(&engine, &spared).await, KeyState::PendingDeletion);
    let gone = engine.execute(&root(&engine), DescribeKey { key: by_id(&doomed) }).await;
    assert_eq!(gone.err(), Some(Error::KeyNotFound));
    // Nothing is left of it.
    let left = engine.execute(&root(&engine), ListDependants { key: KeyRef::Id(doomed.id) }).await;
    assert_eq!(left.err(), Some(Error::KeyNotFound));
    // Free again, it goes.
    put(&engine, &spared, dependant("backup", "b", &[(spared.primary.version, 0)])).await;
    engine.run_due_work().await.unwrap();
    let gone = engine.execute(&root(&engine), DescribeKey { key: by_id(&spared) }).await;
    assert_eq!(gone.err(), Some(Error::KeyNotFound));
}

#[tokio::test]
async fn who_used_a_version_last_is_known_after_a_restart_too() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let describe = DescribeKeyVersion { key: by_id(&key), version: key.primary.version };
    let fresh = engine.execute(&root(&engine), describe.clone()).await.unwrap();
    assert_eq!((fresh.uses, fresh.last_use), (0, None), "never used");
    let encrypt =
        || Encrypt { key: by_id(&key), plaintext: secret("x"), context: support::context(&[]) };
    let made = engine.execute(&root(&engine), encrypt()).await.unwrap();
    world.clock.advance(Duration::from_secs(5));
    let decrypt = Decrypt { blob: made.blob, context: support::context(&[]) };
    engine.execute(&root(&engine), decrypt).await.unwrap();
    let expected = lastkey_engine::LastUse {
        at: START.after(Duration::from_secs(5)),
        by: "root/LKtest".to_owned(),
        action: "Decrypt".to_owned(),
    };
    let used = engine.execute(&root(&engine), describe.clone()).await.unwrap();
    assert_eq!(used.last_use, Some(expected.clone()));
    engine.shutdown().await;
    let engine = world.start().await;
    let again = engine.execute(&root(&engine), describe).await.unwrap();
    assert_eq!(again.last_use, Some(expected));
}

/// A rotation's work: one worker at a time, saved, finished with a report, the old version free.
#[tokio::test]
async fn a_rotation_is_claimed_saved_and_finished() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let prod = register(&engine, &key).await;
    let start = |keep_version| StartRotation {
        cluster: prod.cluster,
        key: None,
        keep_version,
        namespace: None,
        course: None,
        retire: false,
        automatic: false,
    };
    let begun = engine.execute(&root(&engine), start(false)).await.unwrap();
    assert_ne!(begun.rotation.target, key.primary.version);
    let twice = engine.execute(&root(&engine), start(false)).await;
    assert_eq!(twice.map(drop), Err(Error::UnderWay("rotate")));
    let which = Which { cluster: prod.cluster, id: begun.rotation.id.clone() };
    let claim = |holder: &str| ClaimRotation { which: which.clone(), holder: holder.to_owned() };
    let one = engine.execute(&root(&engine), claim("one")).await.unwrap();
    let other = engine.execute(&root(&engine), claim("two")).await;
    assert!(matches!(other.map(drop), Err(Error::Claimed { .. })));
    let save = |fence, phase| SaveRotation {
        which: which.clone(),
        fence,
        phase,
        state: serde_json::json!({ "at": 3 }),
        release: false,
        progress: None,
        problem: None,
    };
    let rewriting = lastkey_engine::Phase::Rewriting;
    engine.execute(&root(&engine), save(one.rotation.fence, rewriting)).await.unwrap();
    // Killed; another one goes on from there, and the first cannot any more. A restart is no matter.
    engine.shutdown().await;
    let engine = world.start().await;
    world.clock.advance(Duration::from_secs(31));
    let two = engine.execute(&root(&engine), claim("two")).await.unwrap();
    assert_eq!(two.rotation.state["at"], 3);
    let late = engine.execute(&root(&engine), save(one.rotation.fence, rewriting)).await;
    assert!(matches!(late.map(drop), Err(Error::Claimed { .. })));
    // Rotated once more meanwhile: what it would prove is about an old version.
    let fence = two.rotation.fence;
    let verifying = lastkey_engine::Phase::Verifying;
    engine.execute(&root(&engine), save(fence, verifying)).await.unwrap();
    engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    let finish = || FinishRotation {
        which: which.clone(),
        fence,
        content: serde_json::json!({ "objects": 1 }),
        found: None,
    };
    let stale = engine.execute(&root(&engine), finish()).await;
    assert_eq!(stale.map(drop), Err(Error::StaleKeyVersion));
    let converging = lastkey_engine::Phase::Converging;
    let again = engine.execute(&root(&engine), save(fence, converging)).await.unwrap();
    assert_eq!(again.rotation.target, again.primary);
    let pause = PauseRotation { which: which.clone(), paused: true };
    assert!(engine.execute(&root(&engine), pause).await.unwrap().rotation.paused);
    engine.execute(&root(&engine), CancelRotation { which: which.clone() }).await.unwrap();
    assert!(engine.execute(&root(&engine), claim("three")).await.is_err());
    engine.execute(&root(&engine), start(true)).await.unwrap();
    let list = ListRotations { cluster: prod.cluster };
    assert_eq!(engine.execute(&root(&engine), list).await.unwrap().len(), 2);
}

/// A cluster that is just brought under a key needs it from the first step on, whatever was seen.
#[tokio::test]
async fn a_cluster_that_is_being_enabled_needs_its_key() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let prod = register(&engine, &key).await;
    let nothing = |world: &World| coverage(prod.cluster, world.clock.now(), &[]);
    put_knowing(&engine, &key, nothing(&world), Some(BTreeSet::new())).await;
    let course = Course { way: Way::Enable, goal: serde_json::json!({}) };
    let start = StartRotation {
        cluster: prod.cluster,
        key: None,
        keep_version: true,
        namespace: None,
        course: Some(course),
        retire: false,
        automatic: false,
    };
    let begun = engine.execute(&root(&engine), start.clone()).await.unwrap();
    assert!(matches!(disable(&engine, &key, None).await, Err(Error::Depended(_))));
    // Somebody looks meanwhile, and finds nothing yet.
    world.clock.advance(Duration::from_secs(60));
    put_knowing(&engine, &key, nothing(&world), Some(BTreeSet::new())).await;
    assert!(matches!(delete(&engine, &key, None).await, Err(Error::Depended(_))));
    let other = StartRotation { course: None, ..start };
    let other = engine.execute(&root(&engine), other).await;
    assert_eq!(other.map(drop), Err(Error::UnderWay("enable")));
    let forget = ForgetCluster {
        cluster: prod.cluster,
        overriding: Some("prod".to_owned()),
        reason: "x".to_owned(),
    };
    let refused = engine.execute(&root(&engine), forget).await;
    assert_eq!(refused, Err(Error::UnderWay("enable")));
    // Given up, and looked at once more: nothing is left.
    let which = Which { cluster: prod.cluster, id: begun.rotation.id };
    engine.execute(&root(&engine), CancelRotation { which }).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    put_knowing(&engine, &key, nothing(&world), Some(BTreeSet::new())).await;
    disable(&engine, &key, None).await.unwrap();
}

fn forget(of: &Registered, overriding: Option<&str>) -> ForgetCluster {
    let overriding = overriding.map(str::to_owned);
    ForgetCluster { cluster: of.cluster, overriding, reason: "it is gone".to_owned() }
}

/// What was encrypted for a cluster is bound to its id: nobody opens it after that is forgotten.
#[tokio::test]
async fn what_was_encrypted_for_a_cluster_keeps_it() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let prod = register(&engine, &key).await;
    let name = Some(lastkey_engine::ClusterName::parse("trial").unwrap());
    let add = AddCluster { name, keys: vec![by_id(&key)], plugin: None };
    let trial = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
    let trial = Registered { cluster: trial, plugin: root(&engine) };
    // Nobody can look at it, so nobody knows that it has nothing left.
    encrypt(&engine, &prod, &key).await;
    let Err(Error::Depended(list)) = engine.execute(&root(&engine), forget(&prod, None)).await
    else {
        panic!()
    };
    assert_eq!((list.len(), list[0].name.as_str()), (1, "prod"));
    // One that never encrypted goes freely, whoever else has used the key.
    engine.execute(&root(&engine), forget(&trial, None)).await.unwrap();

    // Nothing is left of it but a backup.
    let primary = key.primary.version;
    let ends = Dependant {
        until: Some(START.after(Duration::from_secs(30 * DAY))),
        ..dependant("backup", &format!("{}.monday", prod.cluster), &[(primary, 3)])
    };
    put(&engine, &key, ends).await;
    world.clock.advance(Duration::from_secs(60));
    let nothing = coverage(prod.cluster, world.clock.now(), &[]);
    put_knowing(&engine, &key, nothing, Some(BTreeSet::new())).await;
    let Err(Error::Depended(list)) = engine.execute(&root(&engine), forget(&prod, None)).await
    else {
        panic!()
    };
    assert_eq!((list.len(), list[0].kind.as_str()), (1, "backup"));
    // It takes two people, where an override does.
    let on = SetSecondPerson { on: true, reason: "a rule".to_owned() };
    engine.execute(&root(&engine), on).await.unwrap();
    let asked = engine.execute(&root(&engine), forget(&prod, Some("prod"))).await;
    assert!(matches!(asked, Err(Error::AwaitsSecondPerson { .. })), "{asked:?}");
    // Its retention is over.
    world.clock.advance(Duration::from_secs(31 * DAY));
    engine.execute(&root(&engine), forget(&prod, None)).await.unwrap();
    assert!(engine.execute(&root(&engine), ListClusters).await.unwrap().is_empty());
}

/// etcd was brought back from a snapshot: what nothing was found under is there again.
#[tokio::test]
async fn what_is_decrypted_is_there() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let prod = register(&engine, &key).await;
    let old = key.primary.version;
    let made = {
        let (pin, plaintext) = (None, secret("seed"));
        let encrypt = PluginEncrypt { cluster: prod.cluster, key: by_id(&key), pin, plaintext };
        engine.execute(&prod.plugin, encrypt).await.unwrap()
    };
    let decrypt = async || {
        let (envelope, blob) = (made.key, made.blob.clone());
        let decrypt = PluginDecrypt { cluster: prod.cluster, key: by_id(&key), envelope, blob };
        engine.execute(&prod.plugin, decrypt).await.map(drop)
    };
    let new = engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    let look = async || {
        world.clock.advance(Duration::from_secs(60));
        let found = coverage(prod.cluster, world.clock.now(), &[(old, 0), (new.id, 3)]);
        put_knowing(&engine, &key, found, Some(BTreeSet::from([new.id]))).await;
    };
    let until = Some(START.after(Duration::from_secs(DAY)));
    let backup = dependant("backup", &format!("{}.b", prod.cluster), &[(old, 3)]);
    put(&engine, &key, Dependant { until, ..backup }).await;
    look().await;
    let retire = RetireKeyVersion {
        key: by_id(&key),
        version: old,
        window_days: 7,
        when_free: true,
        overriding: None,
    };
    let waits = engine.execute(&root(&engine), retire).await.unwrap().waits_for;
    assert_eq!(waits.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["backup"]);
    let mark = async || {
        let list = ListDependants { key: by_id(&key) };
        let all = engine.execute(&root(&engine), list).await.unwrap();
        let own = all.into_iter().find(|one| one.kind.as_str() == CLUSTER_KIND);
        own.unwrap().used.get(&old).copied()
    };
    assert_eq!(mark().await, None);
    // Restored from the backup, the apiservers read; that is written down once.
    decrypt().await.unwrap();
    let marked = mark().await;
    assert_eq!(marked, Some(world.clock.now()));
    world.clock.advance(Duration::from_secs(60));
    decrypt().await.unwrap();
    assert_eq!(mark().await, marked);
    world.clock.advance(Duration::from_secs(DAY));
    engine.run_due_work().await.unwrap();
    decrypt().await.unwrap();
    // The next look that finds nothing, while no apiserver uses it, frees it.
    look().await;
    world.clock.advance(Duration::from_secs(60));
    engine.run_due_work().await.unwrap();
    assert_eq!(decrypt().await, Err(Error::KeyVersionRetired));
}

/// What is known of a version without being written down is told as well.
#[tokio::test]
async fn an_impact_names_callers() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let impact = async || {
        let impact = DescribeImpact { key: by_id(&key), version: None };
        engine.execute(&root(&engine), impact).await.unwrap()
    };
    let (old, none) = (key.primary.version, impact().await);
    assert!(none.unwritten.is_empty() && none.needing[&old].is_empty());
    let (plaintext, context) = (secret("value"), support::context(&[]));
    let encrypt = Encrypt { key: by_id(&key), plaintext, context };
    engine.execute(&root(&engine), encrypt).await.unwrap();
    let new = engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    let told = impact().await;
    assert!(told.dependants.is_empty());
    assert_eq!(told.unwritten.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["callers"]);
    assert_eq!((told.needing[&old].len(), told.needing[&new.id].len()), (1, 0));
    // They stand in nobody's way but the version's own end.
    disable(&engine, &key, None).await.unwrap();
}

/// Backups end, and make room; not by a clock that jumped.
#[tokio::test]
async fn backups_that_ended_are_forgotten() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let keep = async |id: String, days: u64| {
        let until = Some(world.clock.now().after(Duration::from_secs(days * DAY)));
        let backup = dependant("backup", &id, &[(key.primary.version, 1)]);
        put(&engine, &key, Dependant { until, ..backup }).await;
    };
    let known = async || {
        let list = ListDependants { key: by_id(&key) };
        engine.execute(&root(&engine), list).await.unwrap().len()
    };
    for n in 0..25 {
        keep(format!("old-{n}"), 1).await;
    }
    world.clock.jump_to(START.after(Duration::from_secs(3 * DAY)));
    keep("long".to_owned(), 100).await;
    assert_eq!(known().await, 26, "nobody knows whether they have ended");
    for _ in 0..26 {
        world.clock.advance(Duration::from_secs(3600));
        engine.run_due_work().await.unwrap();
    }
    // Some with each that is written down, and never that one itself.
    keep("old-0".to_owned(), 1).await;
    assert_eq!(known().await, 26 - 19);
    keep("new".to_owned(), 1).await;
    assert_eq!(known().await, 3, "of those of old only what was written anew");
}
