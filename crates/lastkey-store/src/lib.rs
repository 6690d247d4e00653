//! The ordered key-value store under the engine: transactions with compares, prefix lists, watch.
//!
//! The store knows nothing of keys, secrets or encryption. It keeps opaque values under UTF-8
//! paths and promises three things:
//!
//! 1. **Acknowledged is durable.** When [`Store::commit`] answers, the change survives `kill -9`
//!    and a power cut.
//! 2. **All or nothing.** The operations of a [`Transaction`] happen together, at one
//!    [`Revision`], and only if each of its compares holds at that moment.
//! 3. **Overload and full disks are answers.** Queues are bounded, and an error says which of the
//!    two it was and whether the change can have been made; see [`CommitError`].
//!
//! The trait has no interactive transaction, so that etcd fits it as well as a file does.
//! [`MemoryStore`] is the model the others are compared with, and the store of tests.

pub mod disk;
mod entry;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod memory;
mod redb_store;
mod transaction;
mod watch;

use async_trait::async_trait;

pub use entry::{Entry, Revision};
pub use error::{CommitError, StoreError, StoreHealth};
pub use memory::{CommitFault, MemoryStore};
pub use redb_store::{OpenError, OpenOptions, RedbStore};
pub use transaction::{Compare, Operation, Transaction};
pub use watch::{Event, Watch};

/// An ordered map from paths to values that changes by transactions only.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The entry at `path`, or `None`.
    ///
    /// A commit that was answered before this call is seen by it.
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError>;

    /// Up to `limit` entries whose paths begin with `prefix`, in ascending order of the paths'
    /// bytes, beginning behind `after` (which need not exist any more).
    ///
    /// One call sees one moment; two calls may see two. Fewer entries than `limit` means the end.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError>;

    /// Makes the change durable and answers with its revision, or makes none of it.
    ///
    /// A transaction that changes nothing (no operations, or deletions of absent paths) answers
    /// with the store's current revision. Dropping the future does not take the change back.
    ///
    /// Transactions are judged in the order in which they were committed: a transaction takes its
    /// place when the future is polled for the first time, before anything is awaited. So a
    /// caller who polls two of them once each, in order, may let the second expect what the first
    /// writes ([`Compare::Value`]) without waiting for the first one's answer.
    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError>;

    /// Watches the paths that begin with `prefix`, from now on.
    ///
    /// Every change answered after this call returns is reported. To follow a prefix: watch
    /// first, then list, then apply each event whose revision is newer than the listed entry's.
    fn watch(&self, prefix: &str) -> Watch;

    /// Whether the store takes writes, and if not, why.
    fn health(&self) -> StoreHealth;
}
