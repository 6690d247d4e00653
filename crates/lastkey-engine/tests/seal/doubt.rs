//! A change of the seal of which nobody knows whether it was made.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use lastkey_engine::{Instance, Life, Order, Outcome, Parts, SealKind, command::RotateKeyring};
use lastkey_store::{
    CommitError, Entry, MemoryStore, Operation, Revision, Store, StoreError, StoreHealth,
    Transaction, Watch,
};

use super::{
    REKEY, TO_SHARES, assert_readable, encrypted, order, ordered, parts, seals, started,
    support::{World, root},
    texts, unseal, until,
};

/// A store whose disk goes away in the middle of the next change of the seal, and stays away.
pub(super) struct Away {
    inner: Arc<MemoryStore>,
    armed: AtomicBool,
    away: AtomicBool,
    /// Whether the change that it went away in was made.
    made: bool,
}

impl Away {
    pub(super) fn new(world: &World, made: bool) -> Arc<Self> {
        let (armed, away) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { inner: world.store.clone(), armed, away, made })
    }

    pub(super) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_back(&self) {
        assert!(self.away.swap(false, Ordering::SeqCst), "it never went away");
    }

    fn read(&self) -> Result<&MemoryStore, StoreError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable(gone()));
        }
        Ok(&self.inner)
    }
}

fn gone() -> Arc<std::io::Error> {
    Arc::new(std::io::Error::other("the disk is away"))
}

#[async_trait]
impl Store for Away {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        self.read()?.get(path).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.read()?.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(CommitError::Unavailable(gone()));
        }
        let of_the_seal =
            |one: &Operation| matches!(one, Operation::Put { path, .. } if path == "meta/seal");
        if !transaction.operations().iter().any(of_the_seal)
            || !self.armed.swap(false, Ordering::SeqCst)
        {
            return self.inner.commit(transaction).await;
        }
        if self.made {
            self.inner.commit(transaction).await?;
        }
        self.away.store(true, Ordering::SeqCst);
        Err(CommitError::Uncertain(gone()))
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.inner.health()
    }
}

/// An installation on such a store, which is there so far.
async fn started_on(world: &World, store: &Arc<Away>, first: SealKind) -> Instance {
    let parts = parts(world, Arc::new(seals(world, first)));
    let instance = Instance::new(Parts { store: store.clone(), ..parts });
    instance.start().await.unwrap();
    instance
}

/// Another process finds what it needs to open the store.
async fn assert_opens(world: &World, (shares, blob): (&[String], &[u8])) {
    let instance = started(world, SealKind::File).await;
    if instance.life() == Life::Sealed {
        unseal(&instance, shares).await;
    }
    assert_readable(&instance, blob).await;
    instance.shutdown().await;
}

async fn assert_uncertain(instance: &Instance, what: Order, share: Option<&str>) {
    let refused = order(instance, what, share).await.unwrap_err();
    assert!(refused.to_string().contains("may have been made"), "{refused}");
}

/// The store could tell neither that the root key was replaced nor that it was not; each order that
/// may follow in the same process, and a restart behind it.
#[tokio::test]
async fn a_new_root_key_that_the_store_cannot_tell_of_is_not_lost() {
    for made in [true, false] {
        for next in [None, Some(Order::RotateRoot), Some(TO_SHARES), Some(Order::Cancel)] {
            let what = format!("made: {made}, then {next:?}");
            let world = World::new();
            let store = Away::new(&world, made);
            let instance = started_on(&world, &store, SealKind::File).await;
            let blob = encrypted(&instance.engine().unwrap()).await;
            store.arm();
            assert_uncertain(&instance, Order::RotateRoot, None).await;
            store.is_back();
            let mut shares = Vec::new();
            match next {
                None => {}
                Some(next) => match order(&instance, next, None).await {
                    Ok(Outcome::Shares(new)) => shares = texts(&new),
                    Ok(_) => {}
                    Err(error) => panic!("{what}: {error}"),
                },
            }
            assert_readable(&instance, &blob).await;
            instance.shutdown().await;
            assert_opens(&world, (&[], &blob)).await;
            if shares.is_empty() {
                continue;
            }
            let instance = started(&world, SealKind::File).await;
            ordered(&instance, Order::Confirm, &shares).await;
            instance.shutdown().await;
            assert_opens(&world, (&shares, &blob)).await;
        }
    }
}

#[tokio::test]
async fn what_became_of_a_change_is_found_out_once_the_store_tells() {
    let world = World::new();
    let store = Away::new(&world, true);
    let instance = started_on(&world, &store, SealKind::File).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    store.arm();
    assert_uncertain(&instance, Order::RotateRoot, None).await;
    // Orders that cannot look are not carried out.
    assert!(order(&instance, Order::RotateRoot, None).await.is_err());
    store.is_back();
    // By itself, with nobody asking.
    let waiting = world.directory.path().join("root.key.next");
    assert!(waiting.exists());
    until("the new root key is in its place", || !waiting.exists()).await;
    // What needs the root key goes on.
    let engine = instance.engine().unwrap();
    engine.execute(&root(&engine), RotateKeyring).await.unwrap();
    drop(engine);
    order(&instance, Order::RotateRoot, None).await.unwrap();
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
    assert_opens(&world, (&[], &blob)).await;
}

#[tokio::test]
async fn shares_of_a_root_key_that_the_store_cannot_tell_of_open_it() {
    for made in [true, false] {
        for next in [Order::RotateRoot, REKEY] {
            let world = World::new();
            let store = Away::new(&world, made);
            let instance = started_on(&world, &store, SealKind::Shamir).await;
            let shares = texts(&instance.init(2, 2).await.unwrap());
            unseal(&instance, &shares).await;
            let blob = encrypted(&instance.engine().unwrap()).await;
            store.arm();
            order(&instance, Order::RotateRoot, Some(&shares[0])).await.unwrap();
            assert_uncertain(&instance, Order::RotateRoot, Some(&shares[1])).await;
            store.is_back();
            let new = ordered(&instance, next, &shares).await;
            instance.shutdown().await;
            assert_opens(&world, (&shares, &blob)).await;
            if let Some(new) = new {
                assert_opens(&world, (&texts(&new), &blob)).await;
            }
        }
    }
}

/// Somebody else has changed the store's record of its seal: no order is built upon that.
#[tokio::test]
async fn nothing_is_ordered_where_the_record_names_another_root_key() {
    let world = World::new();
    let instance = started(&world, SealKind::File).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    let before = world.store.get("meta/seal").await.unwrap().unwrap();
    order(&instance, Order::RotateRoot, None).await.unwrap();
    let right = world.store.get("meta/seal").await.unwrap().unwrap();
    world.store.tamper(before);
    let file = world.directory.path().join("root.key");
    let kept = std::fs::read(&file).unwrap();
    for what in [Order::RotateRoot, TO_SHARES, Order::Cancel] {
        let refused = order(&instance, what, None).await.unwrap_err();
        assert!(refused.to_string().contains("restart the server"), "{what:?}: {refused}");
        assert_eq!(refused.code(), "Rejected.Seal");
    }
    assert_eq!(std::fs::read(&file).unwrap(), kept);
    assert!(!world.directory.path().join("root.key.next").exists());
    world.store.tamper(right);
    instance.shutdown().await;
    assert_opens(&world, (&[], &blob)).await;
}
