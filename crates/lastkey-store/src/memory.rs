//! The store in memory: what the other stores are compared with, and the store of tests.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Bound,
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::{
    CommitError, Entry, Event, Operation, Revision, Store, StoreError, StoreHealth, Transaction,
    Watch, watch::Watches,
};

/// How a commit of a [`MemoryStore`] is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// As if a compare on the transaction's first path had failed.
    Conflict,
    /// As if the queue were full.
    Busy,
    /// As if the disk were full.
    Full,
    /// As if the disk refused the write.
    Unavailable,
    /// As if the disk failed half-way, and the change had not been made.
    UncertainNotMade,
    /// As if the disk failed half-way, and the change had been made.
    UncertainMade,
}

/// A store that is gone when it is dropped.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    watches: Watches,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, (Vec<u8>, Revision)>,
    revision: Revision,
    faults: VecDeque<CommitFault>,
    health: Option<StoreHealth>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next commit fail; several calls queue up.
    pub fn fail_next_commit(&self, fault: CommitFault) {
        self.state.lock().faults.push_back(fault);
    }

    /// Makes [`Store::health`] answer this until it is told otherwise.
    pub fn set_health(&self, health: StoreHealth) {
        self.state.lock().health = Some(health);
    }

    /// Makes every watcher lose its place, as a slow one does.
    pub fn lose_watchers(&self) {
        self.watches.lose_all();
    }

    /// Puts an entry in place, whoever watches: what an attacker with the disk can do.
    pub fn tamper(&self, entry: Entry) {
        self.state.lock().entries.insert(entry.path, (entry.value, entry.revision));
    }

    fn apply(&self, state: &mut State, transaction: Transaction) -> Result<Revision, CommitError> {
        for compare in transaction.compares() {
            let found = state.entries.get(compare.path());
            if !compare.holds(found.map(|(value, revision)| (*revision, value.as_slice()))) {
                return Err(CommitError::Conflict { path: compare.path().to_owned() });
            }
        }
        let revision = state.revision.next();
        for operation in transaction.into_operations() {
            if let Some(event) = state.change(operation, revision) {
                state.revision = revision;
                self.watches.publish(event);
            }
        }
        Ok(state.revision)
    }
}

impl State {
    fn change(&mut self, operation: Operation, revision: Revision) -> Option<Event> {
        match operation {
            Operation::Put { path, value } => {
                self.entries.insert(path.clone(), (value.clone(), revision));
                Some(Event::Put(Entry { path, value, revision }))
            }
            Operation::Delete { path } => {
                self.entries.remove(&path).map(|_| Event::Delete { path, revision })
            }
        }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.watches.close();
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        let state = self.state.lock();
        Ok(state.entries.get(path).map(|(value, revision)| Entry {
            path: path.to_owned(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let state = self.state.lock();
        let entries = state.entries.range::<str, _>((start, Bound::Unbounded));
        Ok(entries
            .take_while(|(path, _)| path.starts_with(prefix))
            .take(limit)
            .map(|(path, (value, revision))| Entry {
                path: path.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect())
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.validate()?;
        let mut state = self.state.lock();
        let Some(fault) = state.faults.pop_front() else {
            return self.apply(&mut state, transaction);
        };
        let first = transaction.compares().first().map(|compare| compare.path().to_owned());
        match fault {
            CommitFault::Conflict => Err(CommitError::Conflict { path: first.unwrap_or_default() }),
            CommitFault::Busy => Err(CommitError::Busy),
            CommitFault::Full => Err(CommitError::Full),
            CommitFault::Unavailable => Err(CommitError::Unavailable(injected())),
            CommitFault::UncertainNotMade => Err(CommitError::Uncertain(injected())),
            CommitFault::UncertainMade => {
                self.apply(&mut state, transaction)?;
                Err(CommitError::Uncertain(injected()))
            }
        }
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.watches.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        self.state.lock().health.clone().unwrap_or(StoreHealth::Serving)
    }
}

fn injected() -> Arc<io::Error> {
    Arc::new(io::Error::other("injected by a test"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str) -> Transaction {
        Transaction::new().expect_absent("p").put("p", value)
    }

    #[tokio::test]
    async fn it_fails_as_it_was_told_to_and_then_no_more() {
        use CommitFault::{Busy, Conflict, Full, Unavailable, UncertainMade, UncertainNotMade};
        let store = MemoryStore::new();
        for fault in [Conflict, Busy, Full, Unavailable, UncertainNotMade, UncertainMade] {
            store.fail_next_commit(fault);
        }
        for fault in [Conflict, Busy, Full, Unavailable, UncertainNotMade, UncertainMade] {
            let error = store.commit(put("value")).await.unwrap_err();
            let as_told = match (fault, &error) {
                (Conflict, CommitError::Conflict { path }) => path == "p",
                (Busy, CommitError::Busy) | (Full, CommitError::Full) => true,
                (Unavailable, CommitError::Unavailable(_)) => true,
                (UncertainNotMade | UncertainMade, CommitError::Uncertain(_)) => true,
                _ => false,
            };
            assert!(as_told, "{fault:?}: {error}");
            let made = store.get("p").await.unwrap().is_some();
            assert_eq!(made, fault == UncertainMade, "{fault:?}");
        }
        let conflict = store.commit(put("again")).await.unwrap_err();
        assert!(matches!(conflict, CommitError::Conflict { .. }), "{conflict}");
    }

    #[tokio::test]
    async fn health_watchers_and_entries_are_what_a_test_makes_of_them() {
        let store = MemoryStore::new();
        assert_eq!(store.health(), StoreHealth::Serving);
        store.set_health(StoreHealth::Full);
        assert_eq!(store.health(), StoreHealth::Full);
        let mut watch = store.watch("");
        let entry = Entry { path: "p".into(), value: vec![1], revision: Revision(7) };
        store.tamper(entry.clone());
        assert_eq!(store.get("p").await.unwrap(), Some(entry));
        store.lose_watchers();
        assert_eq!(watch.next().await, Some(Event::Lost), "and nothing of what was tampered with");
    }
}
