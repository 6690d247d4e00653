//! A server that is killed while a cluster is forgotten, or key versions are retired and destroyed,
//! goes on afterwards or is done: stopped before and after every commit of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

#[path = "support/cut.rs"]
mod cut;
mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cut::{CutStore, life};
use lastkey_crypto::{ClusterId, EncryptionContext, KeyVersionId};
use lastkey_engine::{
    CLUSTER_KIND, ClusterName, Dependant, Engine, Error, Key, KeyRef, Label, VersionState,
    command::*,
};
use support::{START, World, by_id, create_key, root, secret};

const HOUR: Duration = Duration::from_secs(60 * 60);
/// More than what goes in one transaction.
const VERSIONS: usize = 25;
const KEYS: usize = 28;
const BACKUPS: usize = 40;

async fn start(world: &World, store: &Arc<CutStore>) -> Engine {
    let (clock, directory) = (world.clock.clone(), world.directory.path());
    support::start(store.clone(), clock, directory, "here").await.unwrap()
}

/// Time goes by as it does: nothing jumps.
async fn live(world: &World, engine: &Engine, hours: u32) {
    for _ in 0..hours {
        world.clock.advance(HOUR);
        engine.run_due_work().await.unwrap();
    }
}

async fn described(engine: &Engine, key: &Key) -> Arc<Key> {
    engine.execute(&root(engine), DescribeKey { key: by_id(key) }).await.unwrap()
}

async fn encrypt(engine: &Engine, key: &Key) -> Vec<u8> {
    let (plaintext, context) = (secret("value"), EncryptionContext::default());
    let encrypt = Encrypt { key: by_id(key), plaintext, context };
    engine.execute(&root(engine), encrypt).await.unwrap().blob
}

async fn opens(engine: &Engine, blob: &[u8]) {
    let decrypt = Decrypt { blob: blob.to_vec(), context: EncryptionContext::default() };
    engine.execute(&root(engine), decrypt).await.unwrap();
}

/// Whatever a key is said to have is there, and what it is said to have no more is not.
async fn assert_whole(engine: &Engine, key: &Key, versions: &[KeyVersionId]) -> usize {
    let now = described(engine, key).await;
    assert!(now.retirements.keys().all(|version| now.versions.contains(version)));
    for version in versions {
        let describe = DescribeKeyVersion { key: by_id(key), version: *version };
        let found = engine.execute(&root(engine), describe).await;
        assert_eq!(found.is_ok(), now.versions.contains(version), "{version}: {found:?}");
    }
    now.versions.len()
}

#[test]
fn a_destruction_that_is_killed_anywhere_goes_on() {
    let mut parts_seen = 0;
    for moments in 0.. {
        let world = World::new();
        let store = CutStore::new(world.store.clone());
        // Retired, and nearly at the end of their window.
        let (key, old, blob) = life(async {
            let engine = start(&world, &store).await;
            let key = create_key(&engine).await;
            let mut old = vec![key.primary.version];
            for _ in 0..VERSIONS {
                let version = CreateKeyVersion { key: by_id(&key) };
                old.push(engine.execute(&root(&engine), version).await.unwrap().id);
            }
            let primary = old.pop();
            let blob = encrypt(&engine, &key).await;
            for version in &old {
                let (key, version, overriding) = (by_id(&key), *version, None);
                let retire =
                    RetireKeyVersion { key, version, window_days: 7, when_free: false, overriding };
                let retired = engine.execute(&root(&engine), retire).await.unwrap();
                assert_eq!(retired.state, VersionState::Retired);
            }
            live(&world, &engine, 7 * 24 - 1).await;
            assert_eq!(described(&engine, &key).await.versions.len(), VERSIONS + 1);
            engine.shutdown().await;
            (key, old, (primary, blob))
        });
        let killed = life(async {
            let engine = start(&world, &store).await;
            store.arm(moments);
            let work = async {
                live(&world, &engine, 4).await;
                described(&engine, &key).await.versions.len()
            };
            match store.unless_killed(work).await {
                Some(left) => {
                    assert_eq!(left, 1, "all of them are destroyed");
                    false
                }
                None => true,
            }
        });
        let store = CutStore::new(world.store.clone());
        life(async {
            let engine = start(&world, &store).await;
            let left = assert_whole(&engine, &key, &old).await;
            parts_seen += usize::from(left > 1 && left < VERSIONS + 1);
            opens(&engine, &blob.1).await;
            live(&world, &engine, 48).await;
            assert_eq!(assert_whole(&engine, &key, &old).await, 1, "killed at {moments}");
            assert_eq!(Some(described(&engine, &key).await.primary.version), blob.0);
            opens(&engine, &blob.1).await;
            engine.shutdown().await;
        });
        if !killed {
            assert!(moments >= 4, "killed {moments} times only");
            break;
        }
    }
    assert!(parts_seen > 0, "it was never killed between two transactions");
}

/// A retirement is written or it is not: never is a version shut that is not retired after a start.
#[test]
fn a_retirement_that_is_killed_is_made_or_not() {
    for moments in 0.. {
        let world = World::new();
        let store = CutStore::new(world.store.clone());
        let (key, old) = life(async {
            let engine = start(&world, &store).await;
            let key = create_key(&engine).await;
            let version = CreateKeyVersion { key: by_id(&key) };
            engine.execute(&root(&engine), version).await.unwrap();
            engine.shutdown().await;
            (key.clone(), key.primary.version)
        });
        let retire = || RetireKeyVersion {
            key: by_id(&key),
            version: old,
            window_days: 7,
            when_free: false,
            overriding: None,
        };
        let killed = life(async {
            let engine = start(&world, &store).await;
            store.arm(moments);
            let caller = root(&engine);
            store.unless_killed(engine.execute(&caller, retire())).await.is_none()
        });
        let store = CutStore::new(world.store.clone());
        life(async {
            let engine = start(&world, &store).await;
            let now = described(&engine, &key).await.version_state(old);
            let made = moments > 0;
            let wanted = if made { VersionState::Retired } else { VersionState::Active };
            assert_eq!(now, wanted, "killed at {moments}");
            // Said again, it is the same.
            let retired = engine.execute(&root(&engine), retire()).await.unwrap();
            assert_eq!(retired.state, VersionState::Retired);
            engine.shutdown().await;
        });
        if !killed {
            assert!(moments >= 2, "killed {moments} times only");
            break;
        }
    }
}

fn dependant(kind: &str, id: &str, objects: (KeyVersionId, u64)) -> Dependant {
    Dependant {
        kind: Label::parse(kind).unwrap(),
        id: Label::parse(id).unwrap(),
        name: "prod".to_owned(),
        versions: BTreeMap::from([objects]),
        until: None,
        seen_at: Some(START),
        used: BTreeMap::new(),
    }
}

async fn put(engine: &Engine, key: &Key, dependant: Dependant) {
    let put = PutDependant { key: by_id(key), dependant, in_use: None };
    engine.execute(&root(engine), put).await.unwrap();
}

/// A cluster of many keys, all of which it needs, and backups that need the first.
async fn large_cluster(engine: &Engine) -> (ClusterId, Vec<Arc<Key>>) {
    let mut keys = Vec::with_capacity(KEYS);
    for _ in 0..KEYS {
        keys.push(create_key(engine).await);
    }
    let name = Some(ClusterName::parse("prod").unwrap());
    let refs: Vec<KeyRef> = keys.iter().map(|key| by_id(key)).collect();
    let add = AddCluster { name, keys: refs, plugin: None };
    let cluster = engine.execute(&root(engine), add).await.unwrap().cluster.id;
    for key in &keys {
        let own = dependant(CLUSTER_KIND, &cluster.to_string(), (key.primary.version, 3));
        put(engine, key, own).await;
    }
    for n in 0..BACKUPS {
        let backup = dependant("backup", &format!("{cluster}.{n}"), (keys[0].primary.version, 3));
        put(engine, &keys[0], backup).await;
    }
    (cluster, keys)
}

#[test]
fn a_cluster_that_is_being_forgotten_is_there_or_not() {
    for moments in 0.. {
        let world = World::new();
        let store = CutStore::new(world.store.clone());
        let (cluster, keys) = life(async {
            let engine = start(&world, &store).await;
            let made = large_cluster(&engine).await;
            engine.shutdown().await;
            made
        });
        let forget = || ForgetCluster {
            cluster,
            overriding: Some("prod".to_owned()),
            reason: "it is gone".to_owned(),
        };
        let killed = life(async {
            let engine = start(&world, &store).await;
            store.arm(moments);
            let caller = root(&engine);
            store.unless_killed(engine.execute(&caller, forget())).await.is_none()
        });
        let store = CutStore::new(world.store.clone());
        life(async {
            let engine = start(&world, &store).await;
            let there = engine.execute(&root(&engine), ListClusters).await.unwrap().len();
            assert_eq!(there, usize::from(moments == 0), "killed at {moments}");
            for (n, key) in keys.iter().enumerate() {
                let list = ListDependants { key: by_id(key) };
                let needing = engine.execute(&root(&engine), list).await.unwrap();
                let backups = if n == 0 { BACKUPS } else { 0 };
                assert_eq!(needing.len(), backups + there, "of key {n}, killed at {moments}");
            }
            // Said again it is done, or there is nothing left to do.
            let again = engine.execute(&root(&engine), forget()).await;
            let wanted = if there == 1 { Ok(()) } else { Err(Error::NotFound("cluster")) };
            assert_eq!(again, wanted);
            let disable = DisableKey { key: by_id(&keys[1]), overriding: None };
            engine.execute(&root(&engine), disable).await.unwrap();
            let disable = DisableKey { key: by_id(&keys[0]), overriding: None };
            let refused = engine.execute(&root(&engine), disable).await;
            assert!(matches!(refused, Err(Error::Depended(_))), "its backups need it: {refused:?}");
            engine.shutdown().await;
        });
        if !killed {
            assert!(moments >= 2, "killed {moments} times only");
            break;
        }
    }
}
