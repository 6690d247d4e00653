//! A key version ends only once nothing needs it, and can be taken back until then.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use lastkey_crypto::{ClusterId, EncryptionContext, KeyVersionId};
use lastkey_engine::{
    AliasName, CLUSTER_KIND, Clock, ClusterName, Dependant, Engine, Error, Key, Label, Principal,
    Rotation, Source, VersionState, command::*,
};
use support::{START, World, by_id, create_key, root, secret, signing};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn rotate(engine: &Engine, key: &Key) -> KeyVersionId {
    engine.execute(&root(engine), CreateKeyVersion { key: by_id(key) }).await.unwrap().id
}

fn retire_of(key: &Key, version: KeyVersionId) -> RetireKeyVersion {
    let (window_days, overriding) = (7, None);
    RetireKeyVersion { key: by_id(key), version, window_days, when_free: false, overriding }
}

async fn retire(engine: &Engine, key: &Key, version: KeyVersionId) -> Result<Retiring, Error> {
    engine.execute(&root(engine), retire_of(key, version)).await
}

async fn encrypt(engine: &Engine, key: &Key) -> Vec<u8> {
    let (plaintext, context) = (secret("value"), EncryptionContext::default());
    let encrypt = Encrypt { key: by_id(key), plaintext, context };
    engine.execute(&root(engine), encrypt).await.unwrap().blob
}

async fn opens(engine: &Engine, blob: &[u8]) -> Result<(), Error> {
    let decrypt = Decrypt { blob: blob.to_vec(), context: EncryptionContext::default() };
    engine.execute(&root(engine), decrypt).await.map(drop)
}

async fn state(engine: &Engine, key: &Key, version: KeyVersionId) -> Option<VersionState> {
    let describe = DescribeKeyVersion { key: by_id(key), version };
    engine.execute(&root(engine), describe).await.ok().map(|version| version.state())
}

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
    let put = PutDependant { key: by_id(key), dependant, in_use: None };
    engine.execute(&root(engine), put).await.unwrap();
}

/// Days go by as they do: the clock is looked at each hour, and nothing jumps.
async fn live(world: &World, engine: &Engine, days: u32) {
    for _ in 0..days * 24 {
        world.clock.advance(DAY / 24);
        engine.run_due_work().await.unwrap();
    }
}

/// A rotation that retires the older versions, claimed: it, how it is named, and the claim.
async fn begun(engine: &Engine, cluster: ClusterId) -> (Rotation, Which, u64) {
    let start = StartRotation {
        cluster,
        key: None,
        keep_version: false,
        namespace: None,
        course: None,
        retire: true,
        automatic: false,
    };
    let now = engine.execute(&root(engine), start).await.unwrap().rotation;
    let which = Which { cluster, id: now.id.clone() };
    let claim = ClaimRotation { which: which.clone(), holder: "me".to_owned() };
    let fence = engine.execute(&root(engine), claim).await.unwrap().rotation.fence;
    (now, which, fence)
}

#[tokio::test]
async fn a_free_version_is_retired_taken_back_and_destroyed() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let old = key.primary.version;
    assert_eq!(retire(&engine, &key, old).await, Err(Error::PrimaryVersion));
    let stranger = KeyVersionId::from_bytes([9; 16]);
    assert_eq!(retire(&engine, &key, stranger).await, Err(Error::KeyVersionNotFound));
    rotate(&engine, &key).await;

    let retired = retire(&engine, &key, old).await.unwrap();
    assert_eq!(retired.state, VersionState::Retired);
    assert_eq!(retired.destroy_at, Some(START.after(7 * DAY)));
    // Saying it again changes nothing, and does not prolong it.
    world.clock.advance(DAY / 24);
    assert_eq!(retire(&engine, &key, old).await.unwrap(), retired);
    // Taken back, after a restart too.
    engine.shutdown().await;
    let engine = world.start().await;
    let back = ReinstateKeyVersion { key: by_id(&key), version: old };
    engine.execute(&root(&engine), back).await.unwrap();
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Active));

    retire(&engine, &key, old).await.unwrap();
    live(&world, &engine, 6).await;
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
    live(&world, &engine, 2).await;
    assert_eq!(state(&engine, &key, old).await, None, "destroyed");
    let now = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert!(!now.versions.contains(&old) && now.retirements.is_empty());
}

/// What a caller has encrypted by himself nobody can look at: it is refused, and an override makes
/// it unreadable, but destroys nothing.
#[tokio::test]
async fn what_callers_encrypted_is_never_destroyed() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let old = key.primary.version;
    let blob = encrypt(&engine, &key).await;
    rotate(&engine, &key).await;
    // It is known after a restart, too.
    engine.shutdown().await;
    let engine = world.start().await;
    let refused = retire(&engine, &key, old).await.unwrap_err();
    assert!(refused.to_string().contains("encrypted by themselves"), "{refused}");
    let waits = RetireKeyVersion { when_free: true, ..retire_of(&key, old) };
    let refused = engine.execute(&root(&engine), waits).await;
    assert!(matches!(refused, Err(Error::Depended(_))), "that would be for ever: {refused:?}");

    let overriding = Some(Override { key: key.id.to_string(), reason: "wiped".to_owned() });
    let forced = RetireKeyVersion { overriding, ..retire_of(&key, old) };
    engine.execute(&root(&engine), forced).await.unwrap();
    assert_eq!(opens(&engine, &blob).await, Err(Error::KeyVersionRetired));
    // Only who holds a genuine ciphertext learns that.
    let mut forged = blob.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(opens(&engine, &forged).await, Err(Error::InvalidCiphertext));
    live(&world, &engine, 20).await;
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
    let back = ReinstateKeyVersion { key: by_id(&key), version: old };
    engine.execute(&root(&engine), back).await.unwrap();
    opens(&engine, &blob).await.unwrap();
}

#[tokio::test]
async fn a_retirement_waits_for_the_last_backup() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let old = key.primary.version;
    let new = rotate(&engine, &key).await;
    put(&engine, &key, dependant("volume", "v", &[(new, 5), (old, 0)])).await;
    let until = |days: u32| Some(START.after(days * DAY));
    put(&engine, &key, Dependant { until: until(3), ..dependant("backup", "a", &[(old, 1)]) })
        .await;
    put(&engine, &key, Dependant { until: until(5), ..dependant("backup", "b", &[(old, 2)]) })
        .await;

    let Err(Error::Depended(list)) = retire(&engine, &key, old).await else { panic!() };
    assert_eq!(list.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let waits = RetireKeyVersion { when_free: true, ..retire_of(&key, old) };
    let waiting = engine.execute(&root(&engine), waits).await.unwrap();
    assert_eq!((waiting.state, waiting.waits_for.len()), (VersionState::Scheduled, 2));
    live(&world, &engine, 4).await;
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Scheduled));
    live(&world, &engine, 2).await;
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
    // It came to be needed once more: it is not destroyed when its window ends.
    put(&engine, &key, dependant("volume", "w", &[(old, 1)])).await;
    live(&world, &engine, 9).await;
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
    put(&engine, &key, dependant("volume", "w", &[(old, 0)])).await;
    live(&world, &engine, 1).await;
    assert_eq!(state(&engine, &key, old).await, None);
    assert_eq!(state(&engine, &key, new).await, Some(VersionState::Active));
}

/// A clock that jumps destroys nothing.
#[tokio::test]
async fn a_jump_of_the_clock_destroys_no_version() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let old = key.primary.version;
    rotate(&engine, &key).await;
    retire(&engine, &key, old).await.unwrap();
    world.clock.jump_to(START.after(400 * DAY));
    engine.run_due_work().await.unwrap();
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
    live(&world, &engine, 2).await;
    assert_eq!(state(&engine, &key, old).await, None);
}

/// A cluster that nobody can look at may have anything under a version that was ever used.
#[tokio::test]
async fn a_cluster_that_nobody_looks_at_stands_in_the_way() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let old = key.primary.version;
    let name = ClusterName::parse("prod").unwrap();
    let print = "print".to_owned();
    let plugin = PluginRequest { name: name.clone(), fingerprint: print.clone() };
    let add = AddCluster { name: Some(name), keys: vec![by_id(&key)], plugin: Some(plugin) };
    let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
    let principal =
        Principal::Plugin { cluster, name: "prod".into(), fingerprint: print.as_str().into() };
    let caller = lastkey_engine::Caller::new(principal, Source::Internal, engine.new_request_id());
    let (pin, plaintext) = (None, secret("seed"));
    let encrypt = PluginEncrypt { cluster, key: by_id(&key), pin, plaintext };
    let made = engine.execute(&caller, encrypt).await.unwrap();
    let new = rotate(&engine, &key).await;
    let Err(Error::Depended(list)) = retire(&engine, &key, old).await else { panic!() };
    assert_eq!(list[0].kind.as_str(), CLUSTER_KIND);
    // Looked at, and nothing found: free, also of the plugin's use, which nobody else can have made.
    let id = cluster.to_string();
    world.clock.advance(Duration::from_secs(10));
    let found = dependant(CLUSTER_KIND, &id, &[(new, 3), (old, 0)]);
    let look = Dependant { seen_at: Some(world.clock.now()), ..found };
    let in_use = Some([new].into());
    let put = PutDependant { key: by_id(&key), dependant: look, in_use };
    engine.execute(&root(&engine), put).await.unwrap();
    assert_eq!(retire(&engine, &key, old).await.unwrap().state, VersionState::Retired);
    let (envelope, blob) = (made.key, made.blob);
    let decrypt = PluginDecrypt { cluster, key: by_id(&key), envelope, blob };
    let refused = engine.execute(&caller, decrypt).await.err();
    assert_eq!(refused, Some(Error::KeyVersionRetired));
    // A plugin that was told the old version just before is told to ask again.
    let superseded = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await;
    let before = superseded.unwrap().superseded.unwrap().0;
    let (pin, plaintext) = (Some((old, before.epoch)), secret("seed"));
    let encrypt = PluginEncrypt { cluster, key: by_id(&key), pin, plaintext };
    let refused = engine.execute(&caller, encrypt).await.err();
    assert_eq!(refused, Some(Error::KeyVersionRetired));
}

/// Whoever begins to need a version and whoever retires it cannot miss each other.
#[tokio::test]
async fn a_need_and_a_retirement_at_once() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    put(&engine, &key, dependant("volume", "v", &[])).await;
    for _ in 0..20 {
        let version = {
            let now = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await;
            now.unwrap().primary.version
        };
        let new = rotate(&engine, &key).await;
        // The dependant is live already: only that version is new to it.
        put(&engine, &key, dependant("volume", "v", &[(new, 1)])).await;
        let caller = root(&engine);
        let needs = dependant("volume", "v", &[(new, 1), (version, 1)]);
        let needs = PutDependant { key: by_id(&key), dependant: needs, in_use: None };
        let (put, retired) = tokio::join!(
            engine.execute(&caller, needs),
            engine.execute(&caller, retire_of(&key, version))
        );
        put.unwrap();
        match retired {
            Err(Error::Depended(_)) => {}
            // It was retired first, and whoever looks is told.
            Ok(done) => assert_eq!(done.state, VersionState::Retired),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_rotation_has_the_versions_before_it_retired() {
    let world = World::new();
    let engine = signing(&world).await;
    let key = create_key(&engine).await;
    let (old, alias) = (key.primary.version, AliasName::parse("alias/k").unwrap());
    engine.execute(&root(&engine), CreateAlias { alias, key: by_id(&key) }).await.unwrap();
    let direct = rotate(&engine, &key).await;
    encrypt(&engine, &key).await;
    let name = Some(ClusterName::parse("prod").unwrap());
    let add = AddCluster { name, keys: vec![by_id(&key)], plugin: None };
    let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
    let (now, which, fence) = begun(&engine, cluster).await;
    let mut failed = 0;
    for phase in [lastkey_engine::Phase::Rewriting, lastkey_engine::Phase::Verifying] {
        let save = SaveRotation {
            which: which.clone(),
            fence,
            phase,
            state: serde_json::Value::Null,
            release: false,
            progress: None,
            problem: Some("the network\nis away".to_owned()),
        };
        let saved = engine.execute(&root(&engine), save).await.unwrap().rotation;
        let problem = saved.problem.unwrap();
        assert_eq!(problem.why, "the networkis away");
        failed += 1;
        assert_eq!(problem.attempts, failed);
    }
    let found = Found { began: START, versions: BTreeMap::from([(now.target, 3)]) };
    let (content, found) = (serde_json::json!({ "objects": 3 }), Some(found));
    let finish = FinishRotation { which, fence, content, found };
    let over = engine.execute(&root(&engine), finish).await.unwrap().rotation;
    let report: serde_json::Value = serde_json::from_str(&over.report.unwrap()).unwrap();
    assert_eq!(report["content"]["retiring"], serde_json::json!([old]));
    assert_eq!(report["content"]["kept_for_callers"], serde_json::json!([direct]));
    assert!(over.problem.is_none());
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Scheduled));
    assert_eq!(state(&engine, &key, direct).await, Some(VersionState::Active));
    // The cluster was looked at: the keeper retires it within a minute.
    world.clock.advance(Duration::from_secs(60));
    engine.run_due_work().await.unwrap();
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
}

/// What is decrypted under an older version while a cluster is rotated changes nothing of its end;
/// what is afterwards makes a retirement wait for the next look.
#[tokio::test]
async fn decrypts_around_a_rotation() {
    let world = World::new();
    let engine = signing(&world).await;
    let key = create_key(&engine).await;
    let old = key.primary.version;
    let (name, print) = (ClusterName::parse("prod").unwrap(), "print");
    let plugin = PluginRequest { name: name.clone(), fingerprint: print.to_owned() };
    let add = AddCluster { name: Some(name), keys: vec![by_id(&key)], plugin: Some(plugin) };
    let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
    let principal = Principal::Plugin { cluster, name: "prod".into(), fingerprint: print.into() };
    let caller = lastkey_engine::Caller::new(principal, Source::Internal, engine.new_request_id());
    let (pin, plaintext) = (None, secret("seed"));
    let encrypt = PluginEncrypt { cluster, key: by_id(&key), pin, plaintext };
    let made = engine.execute(&caller, encrypt).await.unwrap();
    let decrypt = async || {
        let (envelope, blob) = (made.key, made.blob.clone());
        let decrypt = PluginDecrypt { cluster, key: by_id(&key), envelope, blob };
        engine.execute(&caller, decrypt).await.unwrap();
    };
    let (now, which, fence) = begun(&engine, cluster).await;
    for phase in [lastkey_engine::Phase::Rewriting, lastkey_engine::Phase::Verifying] {
        let (which, state) = (which.clone(), serde_json::Value::Null);
        let (release, progress, problem) = (false, None, None);
        let save = SaveRotation { which, fence, phase, state, release, progress, problem };
        engine.execute(&root(&engine), save).await.unwrap();
        decrypt().await;
    }
    world.clock.advance(Duration::from_secs(10));
    let found =
        Found { began: world.clock.now(), versions: BTreeMap::from([(now.target, 3), (old, 0)]) };
    world.clock.advance(Duration::from_secs(10));
    decrypt().await;
    let content = serde_json::json!({ "objects": 3 });
    let finish = FinishRotation { which, fence, content, found: Some(found) };
    engine.execute(&root(&engine), finish).await.unwrap();
    let needs_old = async || {
        let impact = DescribeImpact { key: by_id(&key), version: Some(old) };
        engine.execute(&root(&engine), impact).await.unwrap().needing[&old].len()
    };
    assert_eq!(needs_old().await, 0, "it was proven free");
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Scheduled));

    decrypt().await;
    assert_eq!(needs_old().await, 1);
    world.clock.advance(Duration::from_secs(60));
    engine.run_due_work().await.unwrap();
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Scheduled));
    let look = Dependant {
        seen_at: Some(world.clock.now()),
        ..dependant(CLUSTER_KIND, &cluster.to_string(), &[(now.target, 3), (old, 0)])
    };
    let in_use = Some([now.target].into());
    let put = PutDependant { key: by_id(&key), dependant: look, in_use };
    engine.execute(&root(&engine), put).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    engine.run_due_work().await.unwrap();
    assert_eq!(state(&engine, &key, old).await, Some(VersionState::Retired));
}
