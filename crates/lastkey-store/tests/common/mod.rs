//! What the tests of all stores share: a model to compare with, and the stores to run against.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

use std::{collections::BTreeMap, sync::Arc};

use lastkey_store::{
    Compare, Entry, MemoryStore, OpenOptions, Operation, RedbStore, Revision, Store, Transaction,
};
use tempfile::TempDir;

/// A store under test, and what must live as long as it does.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    _directory: Option<TempDir>,
}

pub fn memory() -> Fixture {
    Fixture { store: Arc::new(MemoryStore::new()), _directory: None }
}

pub fn redb() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(path, OpenOptions::default()).unwrap();
    Fixture { store: Arc::new(store), _directory: Some(directory) }
}

/// What a store ought to do, in the simplest words.
#[derive(Clone, Default)]
pub struct Model {
    pub entries: BTreeMap<String, (Vec<u8>, u64)>,
    pub revision: u64,
}

impl Model {
    /// The revision, or the path of the first compare that fails.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Revision, String> {
        for compare in transaction.compares() {
            let found = self.entries.get(compare.path()).map(|(_, revision)| *revision);
            let holds = match compare {
                Compare::Absent(_) => found.is_none(),
                Compare::Exists(_) => found.is_some(),
                Compare::Revision(_, revision) => found == Some(revision.0),
                Compare::Value(path, value) => {
                    self.entries.get(path).is_some_and(|(found, _)| found == value)
                }
            };
            if !holds {
                return Err(compare.path().to_owned());
            }
        }
        let next = self.revision + 1;
        for operation in transaction.operations() {
            match operation {
                Operation::Put { path, value } => {
                    self.entries.insert(path.clone(), (value.clone(), next));
                    self.revision = next;
                }
                Operation::Delete { path } => {
                    if self.entries.remove(path).is_some() {
                        self.revision = next;
                    }
                }
            }
        }
        Ok(Revision(self.revision))
    }

    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Entry> {
        let matching = self.entries.iter().filter(|(path, _)| {
            path.starts_with(prefix) && after.is_none_or(|after| path.as_str() > after)
        });
        matching
            .take(limit)
            .map(|(path, (value, revision))| Entry {
                path: path.clone(),
                value: value.clone(),
                revision: Revision(*revision),
            })
            .collect()
    }
}
