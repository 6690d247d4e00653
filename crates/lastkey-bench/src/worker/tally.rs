//! A store that remembers what was first written to it.

use std::sync::{Arc, Mutex, PoisonError};

use lastkey_store::{
    CommitError, Entry, Operation, Revision, Store, StoreError, StoreHealth, Transaction, Watch,
};
use tonic::async_trait;

/// The store that is watched, and what was seen.
pub(super) struct Tally {
    inner: Arc<dyn Store>,
    seen: Mutex<Option<Vec<Operation>>>,
}

impl Tally {
    pub(super) fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, seen: Mutex::default() }
    }

    /// Remembers from now on.
    pub(super) fn begin(&self) {
        *self.lock() = Some(Vec::new());
    }

    /// What was seen since the beginning.
    pub(super) fn end(&self) -> Vec<Operation> {
        self.lock().take().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<Operation>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, transaction: &Transaction) {
        if let Some(seen) = self.lock().as_mut() {
            seen.extend_from_slice(transaction.operations());
        }
    }
}

#[async_trait]
impl Store for Tally {
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
        self.note(&transaction);
        self.inner.commit(transaction).await
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.inner.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.inner.health()
    }
}
