//! A store whose process is killed at one of its commits.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lastkey_store::{
    CommitError, Entry, MemoryStore, Revision, Store, StoreError, StoreHealth, Transaction, Watch,
};

/// Stops for good before a commit, or after it and before anybody hears of it. Every commit has
/// both moments; they are counted from [`CutStore::arm`] on.
pub(crate) struct CutStore {
    inner: Arc<MemoryStore>,
    left: AtomicUsize,
    killed: tokio::sync::Notify,
}

/// So many moments nobody waits for.
const NEVER: usize = usize::MAX / 2;

impl CutStore {
    pub(crate) fn new(inner: Arc<MemoryStore>) -> Arc<Self> {
        let (left, killed) = (AtomicUsize::new(NEVER), tokio::sync::Notify::new());
        Arc::new(Self { inner, left, killed })
    }

    /// Lets so many moments go by.
    pub(crate) fn arm(&self, moments: usize) {
        self.left.store(moments, Ordering::SeqCst);
    }

    async fn moment(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            // Nothing comes after it, from whoever commits.
            self.left.store(0, Ordering::SeqCst);
            self.killed.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Does it, unless the process is killed before: `None` then.
    pub(crate) async fn unless_killed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.killed.notified() => None,
            done = work => Some(done),
        }
    }
}

#[async_trait]
impl Store for CutStore {
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
        self.moment().await;
        let made = self.inner.commit(transaction).await;
        self.moment().await;
        made
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.inner.health()
    }
}

/// Runs one life of a process: what it has begun ends with it.
pub(crate) fn life<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}
