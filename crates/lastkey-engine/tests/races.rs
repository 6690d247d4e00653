//! Writers and readers of heads at the same time: none of them takes the other for an attacker.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lastkey_engine::{AliasName, Engine, Error, FileAnchor, Key, KeyRef, MemoryAnchor, command::*};
use lastkey_store::{
    CommitError, CommitFault, Entry, MemoryStore, OpenOptions, RedbStore, Revision, Store,
    StoreError, StoreHealth, Transaction, Watch,
};
use support::{World, by_id, create_key, parts, root};
use tokio::sync::Notify;

async fn describe(engine: &Engine, key: &Key, text: &str) {
    let change = UpdateKeyDescription { key: by_id(key), description: text.into() };
    engine.execute(&root(engine), change).await.unwrap();
}

/// Many writers build upon each other's heads in a file, where answers come later than places.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_share_commits_in_a_file() {
    let world = World::new();
    let file = world.directory.path().join("store.redb");
    let start = async || {
        let store = Arc::new(RedbStore::open(&file, OpenOptions::default()).unwrap());
        let anchor = Arc::new(FileAnchor::new(world.directory.path().join("anchor")));
        let parts = parts(store, world.clock.clone(), world.directory.path(), "here", anchor);
        Engine::start(parts).await.unwrap()
    };
    let engine = start().await;
    let key = create_key(&engine).await;
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let (engine, key) = (engine.clone(), by_id(&key));
            tokio::spawn(async move {
                for m in 0..8 {
                    engine.execute(&root(&engine), CreateKey::default()).await.unwrap();
                    let tags = BTreeMap::from([(format!("t{}", n % 10), m.to_string())]);
                    let tag = TagResource { key: key.clone(), tags };
                    let tagged = engine.execute(&root(&engine), tag).await;
                    assert!(matches!(tagged, Ok(()) | Err(Error::Busy)), "{tagged:?}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(engine.key_count(), 32 * 8 + 1);
    engine.shutdown().await;
    drop(engine);
    start().await.shutdown().await;
}

/// A store that keeps one reader of a head waiting with what it has read.
struct LateReader {
    store: Arc<MemoryStore>,
    /// Whether the next reader of a head is to wait.
    armed: AtomicBool,
    waits: Notify,
    may_go_on: Notify,
}

#[async_trait::async_trait]
impl Store for LateReader {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        let found = self.store.get(path).await;
        let is_caught = path.starts_with("head/") && self.armed.swap(false, Ordering::SeqCst);
        if is_caught {
            self.waits.notify_one();
            self.may_go_on.notified().await;
        }
        found
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
        self.store.commit(transaction).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.store.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.store.health()
    }
}

/// After a failed commit heads are read again. Who reads slowly, while others commit, has read
/// an older head than the present one, and the store is sound all the same.
#[tokio::test]
async fn a_head_read_slowly_is_no_rollback() {
    let world = World::new();
    let store = Arc::new(LateReader {
        store: world.store.clone(),
        armed: AtomicBool::new(false),
        waits: Notify::new(),
        may_go_on: Notify::new(),
    });
    let anchor = Arc::new(MemoryAnchor::default());
    let parts = parts(store.clone(), world.clock.clone(), world.directory.path(), "here", anchor);
    let engine = Engine::start(parts).await.unwrap();
    let key = create_key(&engine).await;
    // Whether this one was made is unknown, and so is the head of its shard.
    world.store.fail_next_commit(CommitFault::UncertainNotMade);
    let lost = UpdateKeyDescription { key: by_id(&key), description: "lost".into() };
    assert!(engine.execute(&root(&engine), lost).await.is_err());
    store.armed.store(true, Ordering::SeqCst);
    let slow = tokio::spawn({
        let (engine, key) = (engine.clone(), key.clone());
        async move { describe(&engine, &key, "slow").await }
    });
    store.waits.notified().await;
    for text in ["one", "two", "three"] {
        describe(&engine, &key, text).await;
    }
    store.may_go_on.notify_one();
    slow.await.unwrap();
    engine.readiness().unwrap();
    engine.shutdown().await;
}

/// Who follows the store's changes too slowly reads everything anew; nothing is missing meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_aliases_are_there_while_the_indexes_are_read_anew() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let alias = AliasName::parse("alias/here").unwrap();
    let create = CreateAlias { alias: alias.clone(), key: by_id(&key) };
    engine.execute(&root(&engine), create).await.unwrap();
    for _ in 0..100 {
        engine.execute(&root(&engine), CreateKey::default()).await.unwrap();
    }
    let store = world.store.clone();
    let losing = tokio::task::spawn_blocking(move || {
        for _ in 0..40 {
            store.lose_watchers();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    while !losing.is_finished() {
        let describe = DescribeKey { key: KeyRef::Alias(alias.clone()) };
        engine.execute(&root(&engine), describe).await.unwrap();
        engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
        assert_eq!(engine.key_count(), 101);
    }
    losing.await.unwrap();
    engine.shutdown().await;
}
