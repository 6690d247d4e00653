//! The store in one file, by redb.
//!
//! Readers look at a snapshot of the last durable commit, without waiting for writers. All
//! writes pass through [`committer`], which see for what happens when the disk fails.

mod committer;
mod failure;
mod medium;
mod queue;
mod schema;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use self::{
    committer::{Committer, Opened},
    failure::Failure,
    medium::{FileMedium, Medium},
    queue::{Pending, Queue},
    schema::{Found, Snapshot},
};
use crate::{
    CommitError, Entry, Revision, Store, StoreError, StoreHealth, Transaction, Watch,
    disk::{Disk, FileSystem, Patience},
    watch::Watches,
};

/// How long a reader waits for the committer to reopen a database that failed.
const REOPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How many entries are listed before other tasks get their turn.
const PIECE: usize = 500;

/// How a [`RedbStore`] opens its file and uses memory.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// Bytes of the file kept in memory, at most.
    pub cache_bytes: usize,
    /// Transactions that wait for the committer, at most; more get [`CommitError::Busy`].
    pub max_waiting: usize,
    /// Bytes of the transactions that wait for the committer, at most.
    pub max_waiting_bytes: usize,
    /// Whether opening verifies the checksum of every page, also after a clean shutdown (after a
    /// crash it always does), as long as the file is not larger than
    /// [`check_at_most`](Self::check_at_most).
    pub check: bool,
    /// A larger file that was closed cleanly is not read when it is opened: the check reads it up
    /// to three times, about a second for 150 MiB. Damage is then found when it is read; it is for
    /// whoever reads to tell whether what was read is what was written.
    pub check_at_most: u64,
    /// How soon a medium that failed is tried again at first; each time it fails again the wait
    /// doubles, up to four seconds.
    pub retry: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            max_waiting: 4096,
            max_waiting_bytes: 16 << 20,
            check: true,
            check_at_most: 32 << 20,
            retry: Duration::from_millis(10),
        }
    }
}

/// Why a store's file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store of this one, has it open.
    #[error("{} is in use by another server; stop that one, or use another data directory", path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a Lastkey store; move it away, or use another data directory", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The file was a store once.
    #[error("{} is damaged ({what}); restore the newest backup", path.display())]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A later release wrote the file.
    #[error("{} has format {found}, which this release does not know; install a newer one", path.display())]
    NewerFormat {
        /// The store's file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file could not be read, written or locked.
    #[error("{} cannot be opened ({source}); check the disk and the permissions", path.display())]
    Io {
        /// The store's file, or the one that is to become it.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
}

impl OpenError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source: Arc::new(error) }
    }

    fn failure(path: &Path, failure: Failure) -> Self {
        let path = path.to_owned();
        match failure {
            Failure::Full(source) | Failure::Io(source) => Self::Io { path, source },
            Failure::Corrupt(what) => Self::Corrupt { path, what },
            Failure::Echo => Self::Corrupt { path, what: "an access failed".to_owned() },
        }
    }
}

/// The store in one file, for one process at a time.
///
/// Dropping it commits what still waits, closes the file cleanly and releases it.
pub struct RedbStore {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

/// What readers and the committer share.
struct Shared {
    queue: Queue,
    /// The last durable commit, or why nothing can be read.
    view: watch::Sender<View>,
    watches: Watches,
    health: Mutex<StoreHealth>,
    /// The committer's.
    patience: Patience,
    options: OpenOptions,
}

/// For the fuzz target: reads a value of the table.
pub(crate) fn parse_entry(raw: &[u8]) {
    schema::parse_entry(raw);
}

type View = Result<Arc<Snapshot>, StoreError>;

impl Shared {
    fn show(&self, view: Result<Snapshot, StoreError>) {
        // The old view; readers that still look at it keep it alive.
        drop(self.view.send_replace(view.map(Arc::new)));
    }
}

impl RedbStore {
    /// Opens the store in the file at `path`, and creates it (mode 0600) where there is none.
    ///
    /// Reads and checks the whole file, unless it was closed cleanly and the options say not to, or
    /// it is larger than they allow.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, OpenError> {
        Self::open_on(&FileSystem, path, options)
    }

    /// The same on any disk.
    pub fn open_on(
        disk: &dyn Disk,
        path: impl AsRef<Path>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let medium = FileMedium::open(disk, path, |draft| {
            let database = committer::open_database(draft, options)?;
            schema::create(&database)?;
            Ok(database.close()?)
        })?;
        Self::on(medium, path, options)
    }

    /// Starts the store on a medium that has a database already.
    fn on(medium: impl Medium, path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let failed = |failure| OpenError::failure(path, failure);
        let database = committer::open_database(&medium, options).map_err(failed)?;
        let revision = match schema::inspect(&database).map_err(failed)? {
            Found::Ours(revision) => revision,
            Found::Newer(found) => {
                return Err(OpenError::NewerFormat { path: path.to_owned(), found });
            }
            Found::Foreign => return Err(OpenError::NotOurs { path: path.to_owned() }),
        };
        let snapshot = Snapshot::of(&database).map_err(failed)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(options.max_waiting, options.max_waiting_bytes),
            view: watch::Sender::new(Ok(Arc::new(snapshot))),
            watches: Watches::default(),
            health: Mutex::new(StoreHealth::Serving),
            patience: Patience::default(),
            options,
        });
        let opened = Opened { database, revision };
        let committer = Committer::new(medium, Arc::clone(&shared), opened);
        let thread = std::thread::Builder::new()
            .name("store-committer".to_owned())
            .spawn(move || committer.run())
            .map_err(|error| OpenError::io(path, error))?;
        Ok(Self { shared, committer: Some(thread) })
    }

    fn view(&self) -> View {
        self.shared.view.borrow().clone()
    }

    /// The view after `failed`, for a second attempt: what redb refuses because of an earlier
    /// error works once the committer has reopened the database.
    async fn view_after(&self, failed: &Arc<Snapshot>, failure: Failure) -> View {
        self.shared.queue.suspect();
        if !matches!(failure, Failure::Echo) {
            return Err(failure.reading());
        }
        let mut views = self.shared.view.subscribe();
        let newer = |view: &View| !view.as_ref().is_ok_and(|view| Arc::ptr_eq(view, failed));
        match tokio::time::timeout(REOPEN_PATIENCE, views.wait_for(newer)).await {
            Ok(Ok(view)) => view.clone(),
            _ => Err(failure.reading()),
        }
    }
}

/// Lists in pieces, so that a long list leaves other tasks their turn.
async fn list_all(
    snapshot: &Snapshot,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Entry>, Failure> {
    let mut found = snapshot.list(prefix, after, limit.min(PIECE))?;
    let mut full = found.len() == PIECE;
    while full && found.len() < limit {
        tokio::task::yield_now().await;
        let wanted = PIECE.min(limit - found.len());
        let last = found.last().map(|entry| entry.path.as_str());
        let piece = snapshot.list(prefix, last, wanted)?;
        full = piece.len() == PIECE;
        found.extend(piece);
    }
    Ok(found)
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, path: &str) -> Result<Option<Entry>, StoreError> {
        // A few microseconds where the pages are in memory, as most are: not worth a thread.
        let snapshot = self.view()?;
        match snapshot.get(path) {
            Ok(found) => Ok(found),
            Err(failure) => {
                let newer = self.view_after(&snapshot, failure).await?;
                newer.get(path).map_err(|failure| failure.reading())
            }
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let snapshot = self.view()?;
        match list_all(&snapshot, prefix, after, limit).await {
            Ok(found) => Ok(found),
            Err(failure) => {
                let newer = self.view_after(&snapshot, failure).await?;
                let listed = list_all(&newer, prefix, after, limit).await;
                listed.map_err(|failure| failure.reading())
            }
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.validate()?;
        let (answer, answered) = oneshot::channel();
        self.shared.queue.push(Pending { transaction, answer })?;
        // Without an answer only if the committer panicked, and then nobody knows.
        answered.await.unwrap_or_else(|_| {
            Err(CommitError::Uncertain(Arc::new(io::Error::other("the committer stopped"))))
        })
    }

    fn watch(&self, prefix: &str) -> Watch {
        self.shared.watches.watch(prefix)
    }

    fn health(&self) -> StoreHealth {
        match self.shared.health.lock().clone() {
            StoreHealth::Serving if self.shared.patience.is_over() => {
                StoreHealth::Failed { reason: "the store's disk does not answer".to_owned() }
            }
            health => health,
        }
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(committer) = self.committer.take() {
            // A panic there was reported by the panic hook already.
            let _ = committer.join();
        }
    }
}
