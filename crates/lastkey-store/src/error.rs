//! What can go wrong, and what the operator can do about it.

use std::{io, sync::Arc};

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The medium cannot be read at present. The store tries again by itself.
    #[error("the store cannot be read ({0}); check the disk under the data directory")]
    Unavailable(#[source] Arc<io::Error>),
    /// What was read is not what this program wrote.
    #[error("the store is damaged ({0}); stop the server and restore the newest backup")]
    Corrupt(String),
}

/// Why a transaction was not acknowledged.
///
/// Except for [`CommitError::Uncertain`], each of these means that nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A compare did not hold. Read the path again and decide anew.
    #[error("another change to {path} came first; read it again and repeat the request")]
    Conflict {
        /// The path of the first compare that failed.
        path: String,
    },
    /// The transaction exceeds a limit of [`crate::Transaction`].
    #[error("the change is too large ({what}: {size}, limit {limit}); split it")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there was.
        size: usize,
        /// How much is allowed.
        limit: usize,
    },
    /// A path is empty or changed twice: a mistake of the calling code, not of a person.
    #[error("the change is malformed: {what} ({path:?})")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// The offending path.
        path: String,
    },
    /// Too many changes are waiting already. Nothing was queued; try again shortly.
    #[error("too many changes are waiting for the store; try again shortly")]
    Busy,
    /// The disk has no room. Writes resume by themselves when there is some.
    #[error("the disk under the data directory is full; free some space, writes then resume")]
    Full,
    /// The medium refused the change, and it was not made.
    #[error("the store cannot be written ({0}); check the disk under the data directory")]
    Unavailable(#[source] Arc<io::Error>),
    /// The medium failed while the change was on its way: it may or may not have been made.
    /// Read again before repeating it.
    #[error(
        "the store failed during the change, which may or may not have been made ({0}); \
             read again before repeating it"
    )]
    Uncertain(#[source] Arc<io::Error>),
    /// What was read is not what this program wrote.
    #[error("the store is damaged ({0}); stop the server and restore the newest backup")]
    Corrupt(String),
    /// The store is being closed.
    #[error("the store is closing; send the request again when the server is back")]
    Closed,
}

/// Whether the store takes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreHealth {
    /// Reads and writes work, as far as anybody knows.
    Serving,
    /// The last write failed for want of space. The next one tries again.
    Full,
    /// The last access failed for another reason, and the next one tries again; or the disk does not
    /// answer.
    Failed {
        /// What failed, for the operator.
        reason: String,
    },
}
