//! Uses are counted ahead whatever else goes on: where they are not, nothing is sealed any more.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lastkey_engine::{Engine, Error, Key, NoAnchor, command::*};
use lastkey_store::{
    CommitError, CommitFault, Entry, MemoryStore, Operation, Revision, Store, StoreError,
    StoreHealth, Transaction, Watch,
};
use parking_lot::Mutex;
use support::{World, by_id, context, create_key, parts, root, secret};

/// Changes are refused for so long that nothing is left of what was counted ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_long_lack_of_room_ends_when_there_is_room() {
    let world = World::new();
    let engine = world.start().await;
    create_key(&engine).await;
    engine.shutdown().await;
    (0..4_000).for_each(|_| world.store.fail_next_commit(CommitFault::Full));
    let engine = world.start().await;
    let (before, _) = engine.keyring_uses();
    let mut busy = 0;
    while busy < 10 {
        match engine.execute(&root(&engine), CreateKey::default()).await {
            Err(Error::StorageFull) => {}
            Err(Error::Busy) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(engine.keyring_uses().0 > before + 1_000, "all that may be sealed was");
    // Counting ahead is tried without room as well.
    tokio::time::sleep(Duration::from_millis(600)).await;
    while world.store.commit(Transaction::new()).await.is_err() {}
    for _ in 0..100 {
        match engine.execute(&root(&engine), CreateKey::default()).await {
            Ok(_) => break,
            Err(Error::Busy) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => panic!("{other:?}"),
        }
    }
    create_key(&engine).await;
    let counted = engine.keyring_uses().0;
    drop(engine);
    let engine = world.start().await;
    assert!(engine.keyring_uses().0 >= counted, "a crash forgets none");
}

/// A store that takes its time where parcels of the outbox are deleted.
struct SlowSweeps(Arc<MemoryStore>);

#[async_trait::async_trait]
impl Store for SlowSweeps {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(path).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.0.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let is_sweep = |operation: &Operation| matches!(operation, Operation::Delete { path } if path.starts_with("outbox/"));
        let is_slow = transaction.operations().iter().any(is_sweep);
        let committed = self.0.commit(transaction).await;
        if is_slow {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        committed
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.0.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.0.health()
    }
}

/// A store that has no room for what is kept at these paths.
#[derive(Default)]
struct NoRoomFor {
    inner: Arc<MemoryStore>,
    paths: Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl Store for NoRoomFor {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(path).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let refused = |operation: &Operation| match operation {
            Operation::Put { path, .. } => self.paths.lock().contains(path),
            Operation::Delete { .. } => false,
        };
        if transaction.operations().iter().any(refused) {
            return Err(CommitError::Full);
        }
        self.inner.commit(transaction).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.inner.health()
    }
}

/// Uses of several run low at the same time.
#[tokio::test]
async fn a_version_that_cannot_be_counted_ahead_keeps_no_other_from_it() {
    let world = World::new();
    let store = Arc::new(NoRoomFor { inner: world.store.clone(), ..NoRoomFor::default() });
    let parts = parts(
        store.clone(),
        world.clock.clone(),
        world.directory.path(),
        "here",
        Arc::new(NoAnchor),
    );
    let engine = Engine::start(parts).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(create_key(&engine).await);
    }
    let encrypt = async |key: &Key| {
        let plaintext = secret("x");
        let encrypt = Encrypt { key: by_id(key), plaintext, context: context(&[]) };
        engine.execute(&root(&engine), encrypt).await.unwrap();
    };
    let path = |key: &Key| format!("uses/{}", key.primary.version);
    let held = async || world.store.get(&path(&keys[1])).await.unwrap().unwrap().revision;
    for key in &keys {
        for _ in 0..2_000 {
            encrypt(key).await;
        }
    }
    let first = held().await;
    *store.paths.lock() = vec![path(&keys[0]), path(&keys[2])];
    for _ in 0..100 {
        for key in &keys {
            encrypt(key).await;
        }
    }
    for _ in 0..100 {
        if held().await != first {
            engine.shutdown().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the one between is not counted ahead");
}

async fn change_until(engine: Engine, enough: Arc<AtomicBool>) {
    while !enough.load(Ordering::Relaxed) {
        let made = engine.execute(&root(&engine), CreateKey::default()).await;
        assert!(matches!(made, Ok(_) | Err(Error::Busy)), "{made:?}");
    }
}

/// While changes go on there is always another parcel to be deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uses_are_counted_ahead_while_changes_go_on() {
    let world = World::new();
    let store = Arc::new(SlowSweeps(world.store.clone()));
    let parts =
        parts(store, world.clock.clone(), world.directory.path(), "here", Arc::new(NoAnchor));
    let engine = Engine::start(parts).await.unwrap();
    let key = create_key(&engine).await;
    let encrypt = async || {
        let plaintext = secret("x");
        let encrypt = Encrypt { key: by_id(&key), plaintext, context: context(&[]) };
        engine.execute(&root(&engine), encrypt).await.unwrap();
    };
    encrypt().await;
    let path = format!("uses/{}", key.primary.version);
    let held = async || world.store.get(&path).await.unwrap().unwrap().revision;
    let first = held().await;
    let enough = Arc::new(AtomicBool::new(false));
    let changing: Vec<_> =
        (0..4).map(|_| tokio::spawn(change_until(engine.clone(), Arc::clone(&enough)))).collect();
    // The sweeps have begun.
    tokio::time::sleep(Duration::from_millis(700)).await;
    // Half of the first block is used, and none beyond it.
    for _ in 0..2_100 {
        encrypt().await;
    }
    let mut waited = 0;
    while held().await == first {
        assert!(waited < 100, "nothing more is counted ahead");
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += 1;
    }
    enough.store(true, Ordering::Relaxed);
    for task in changing {
        task.await.unwrap();
    }
    engine.shutdown().await;
}
