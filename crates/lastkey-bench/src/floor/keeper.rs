//! Bare redb with group commit: one thread, one durable commit for all that wait.

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use redb::{Database, Durability, TableDefinition};
use tokio::sync::oneshot;

use super::shape::{Records, Shape};
use crate::error::Error;

const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
/// As much as lastkey's store takes (`OpenOptions::default`).
const CACHE: usize = 64 << 20;

type Waiting = Vec<(Records, oneshot::Sender<()>)>;

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

/// The committer's entrance.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    shape: Shape,
}

impl Keeper {
    /// Makes the database at `path` and starts the thread.
    pub(crate) fn start(path: &Path, shape: Shape) -> Result<Self, Error> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        let shared = Arc::new(Shared::default());
        let work = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("redb-commit".into())
            .spawn(move || commit(&work, &database))?;
        Ok(Self { shared, shape })
    }

    /// Resolves once the records of one creation are durable.
    pub(crate) async fn create(&self) -> Result<(), Error> {
        let (done, durable) = oneshot::channel();
        if self.shared.queue(self.shape.records(), done) {
            self.shared.arrived.notify_one();
        }
        durable.await.map_err(|_| Error::Committer)
    }
}

impl Shared {
    /// Queues records; whether they are the first to wait.
    fn queue(&self, records: Records, done: oneshot::Sender<()>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push((records, done));
        waiting.len() == 1
    }

    fn take(&self) -> Waiting {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.is_empty() {
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut *waiting)
    }
}

fn commit(shared: &Shared, database: &Database) {
    // What the last batch wrote for a while only is deleted with the next one.
    let mut passing = Vec::new();
    loop {
        let batch = shared.take();
        // Whoever waits learns of a failure from the sender that is dropped.
        if let Err(error) = write(database, &batch, &passing) {
            crate::report::say(&format!("redb: {error}"));
            continue;
        }
        passing.clear();
        for (records, done) in batch {
            passing.extend(records.passing);
            let _ = done.send(());
        }
    }
}

fn write(database: &Database, batch: &Waiting, passing: &[String]) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        let mut entries = write.open_table(ENTRIES)?;
        for path in passing {
            entries.remove(path.as_str())?;
        }
        for (records, _) in batch {
            for (path, value) in &records.puts {
                entries.insert(path.as_str(), value.as_slice())?;
            }
        }
    }
    Ok(write.commit()?)
}
