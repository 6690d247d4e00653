//! Who begins to need a key and who takes it away, at the same moment; and one key's trouble is no
//! other key's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::ClusterId;
use lastkey_engine::{
    Caller, Clock as _, Dependant, Engine, Error, Key, KeyState, Label, MemoryAnchor, Principal,
    Source, command::*,
};
use lastkey_store::{
    CommitError, Entry, MemoryStore, Revision, Store, StoreError, StoreHealth, Transaction, Watch,
};
use support::{START, World, by_id, create_key, parts, root, secret};
use tokio::sync::Notify;

/// A store whose answers to commits can be late, and that can refuse what touches a path. It tells
/// nobody of changes.
struct Late {
    store: Arc<MemoryStore>,
    nobody: MemoryStore,
    /// Whether the next commit's answer is to be late.
    armed: AtomicBool,
    committed: Notify,
    may_go_on: Notify,
    refused: Mutex<Option<String>>,
}

impl Late {
    async fn start(world: &World) -> (Arc<Self>, Engine) {
        let store = Arc::new(Self {
            store: world.store.clone(),
            nobody: MemoryStore::new(),
            armed: AtomicBool::new(false),
            committed: Notify::new(),
            may_go_on: Notify::new(),
            refused: Mutex::new(None),
        });
        let (clock, place) = (world.clock.clone(), world.directory.path());
        let anchor = Arc::new(MemoryAnchor::default());
        let engine = Engine::start(parts(store.clone(), clock, place, "here", anchor)).await;
        (store, engine.unwrap())
    }
}

#[async_trait::async_trait]
impl Store for Late {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(path).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let path = self.refused.lock().unwrap().clone();
        let touches = |path: String| format!("{transaction:?}").contains(&path).then_some(path);
        if path.and_then(touches).is_some() {
            return Err(CommitError::Full);
        }
        let late = self.armed.swap(false, Ordering::SeqCst);
        let made = self.store.commit(transaction).await;
        if late {
            self.committed.notify_one();
            self.may_go_on.notified().await;
        }
        made
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.nobody.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.store.health()
    }
}

fn needs(key: &Key) -> PutDependant {
    let dependant = Dependant {
        kind: Label::parse("volume").unwrap(),
        id: Label::parse("v").unwrap(),
        name: String::new(),
        versions: BTreeMap::from([(key.primary.version, 1)]),
        until: None,
        seen_at: Some(START),
        used: BTreeMap::new(),
    };
    PutDependant { key: by_id(key), dependant, in_use: None }
}

/// The dependant is in the store, and the index has not heard of it yet.
#[tokio::test]
async fn what_has_just_come_to_need_a_key_is_seen() {
    let world = World::new();
    let (store, engine) = Late::start(&world).await;
    let key = create_key(&engine).await;
    store.armed.store(true, Ordering::SeqCst);
    let comes = tokio::spawn({
        let (engine, needs) = (engine.clone(), needs(&key));
        async move { engine.execute(&root(&engine), needs).await }
    });
    store.committed.notified().await;
    let list = ListDependants { key: by_id(&key) };
    assert!(engine.execute(&root(&engine), list).await.unwrap().is_empty());
    for delete in [false, true] {
        let caller = root(&engine);
        let refused = async {
            let (key, overriding) = (by_id(&key), None);
            match delete {
                false => engine.execute(&caller, DisableKey { key, overriding }).await,
                true => {
                    let delete = ScheduleKeyDeletion { key, window_days: 7, overriding };
                    engine.execute(&caller, delete).await
                }
            }
        };
        let refused = tokio::time::timeout(Duration::from_secs(5), refused).await;
        assert!(matches!(refused, Ok(Err(Error::Depended(_)))), "{refused:?}");
    }
    store.may_go_on.notify_one();
    comes.await.unwrap().unwrap();
    engine.shutdown().await;
}

/// A cluster of a key, and its plugin as a caller.
async fn cluster_of(engine: &Engine, key: &Key) -> (ClusterId, Caller) {
    let name = lastkey_engine::ClusterName::parse("prod").unwrap();
    let plugin = PluginRequest { name: name.clone(), fingerprint: "print".to_owned() };
    let add = AddCluster { name: Some(name), keys: vec![by_id(key)], plugin: Some(plugin) };
    let cluster = engine.execute(&root(engine), add).await.unwrap().cluster.id;
    let (name, fingerprint) = ("prod".into(), "print".to_owned().into());
    let principal = Principal::Plugin { cluster, name, fingerprint };
    (cluster, Caller::new(principal, Source::Internal, engine.new_request_id()))
}

/// Reads go on where nothing can be written: what they show is noted by the next one.
#[tokio::test]
async fn what_cannot_be_noted_is_read_all_the_same() {
    let world = World::new();
    let (store, engine) = Late::start(&world).await;
    let key = create_key(&engine).await;
    let (cluster, plugin) = cluster_of(&engine, &key).await;
    let (pin, plaintext) = (None, secret("seed"));
    let encrypt = PluginEncrypt { cluster, key: by_id(&key), pin, plaintext };
    let made = engine.execute(&plugin, encrypt).await.unwrap();
    // Somebody has looked, and found nothing; then etcd is restored from a snapshot.
    let new = engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    let dependant = Dependant {
        kind: Label::parse("cluster").unwrap(),
        id: Label::parse(&cluster.to_string()).unwrap(),
        name: String::new(),
        versions: BTreeMap::from([(key.primary.version, 0)]),
        until: None,
        seen_at: Some(world.clock.now()),
        used: BTreeMap::new(),
    };
    let in_use = Some(std::collections::BTreeSet::from([new.id]));
    let look = PutDependant { key: by_id(&key), dependant, in_use };
    engine.execute(&root(&engine), look).await.unwrap();
    let used = async || {
        let list = ListDependants { key: by_id(&key) };
        let all = engine.execute(&root(&engine), list).await.unwrap();
        all.iter().any(|one| one.used.contains_key(&key.primary.version))
    };
    let decrypt = async || {
        let (envelope, blob) = (made.key, made.blob.clone());
        let decrypt = PluginDecrypt { cluster, key: by_id(&key), envelope, blob };
        engine.execute(&plugin, decrypt).await.map(drop)
    };
    *store.refused.lock().unwrap() = Some("dependant/".to_owned());
    decrypt().await.unwrap();
    engine.run_due_work().await.unwrap();
    assert!(!used().await);
    // It is noted by the next look for due work, whether anything is read again or not.
    *store.refused.lock().unwrap() = None;
    engine.run_due_work().await.unwrap();
    assert!(used().await);
    engine.shutdown().await;
}

/// What cannot be done about one key keeps no other one waiting, and is tried again.
#[tokio::test]
async fn one_key_that_fails_keeps_no_other_waiting() {
    let world = World::new();
    let (store, engine) = Late::start(&world).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let key = create_key(&engine).await;
        let (key, overriding) = (by_id(&key), None);
        let delete = ScheduleKeyDeletion { key: key.clone(), window_days: 7, overriding };
        engine.execute(&root(&engine), delete).await.unwrap();
        keys.push(key);
    }
    let state = async |n: usize| {
        let describe = DescribeKey { key: keys[n].clone() };
        engine.execute(&root(&engine), describe).await.ok().map(|key| key.state)
    };
    for _ in 0..7 * 24 {
        engine.run_due_work().await.unwrap();
        world.clock.advance(Duration::from_secs(3600));
    }
    let lastkey_engine::KeyRef::Id(first) = &keys[0] else { panic!() };
    *store.refused.lock().unwrap() = Some(format!("key/{first}"));
    assert!(engine.run_due_work().await.is_err(), "it is said");
    assert_eq!(state(0).await, Some(KeyState::PendingDeletion));
    assert_eq!((state(1).await, state(2).await), (None, None), "the others are done");
    *store.refused.lock().unwrap() = None;
    engine.run_due_work().await.unwrap();
    assert_eq!(state(0).await, None, "it is tried again");
    engine.shutdown().await;
}
