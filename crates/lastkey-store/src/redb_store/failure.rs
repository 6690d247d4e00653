//! redb's many errors as the few that the committer treats differently.

use std::{
    io::{self, ErrorKind},
    sync::Arc,
};

use crate::{CommitError, StoreError, StoreHealth};

/// What went wrong inside redb.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// No room on the medium.
    Full(Arc<io::Error>),
    /// Another I/O error.
    Io(Arc<io::Error>),
    /// redb refuses because of an earlier error, or because the database was reopened meanwhile.
    /// Says nothing by itself.
    Echo,
    /// The file's content makes no sense.
    Corrupt(String),
}

impl Failure {
    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    /// What a caller is told whose change was certainly not made.
    pub(super) fn not_made(&self) -> CommitError {
        match self {
            Self::Full(_) => CommitError::Full,
            Self::Io(error) => CommitError::Unavailable(Arc::clone(error)),
            Self::Echo => CommitError::Unavailable(echo()),
            Self::Corrupt(what) => CommitError::Corrupt(what.clone()),
        }
    }

    /// What a caller is told whose change may have been made.
    pub(super) fn uncertain(&self) -> CommitError {
        CommitError::Uncertain(match self {
            Self::Full(error) | Self::Io(error) => Arc::clone(error),
            Self::Echo => echo(),
            Self::Corrupt(what) => Arc::new(io::Error::other(what.clone())),
        })
    }

    pub(super) fn reading(&self) -> StoreError {
        match self {
            Self::Full(error) | Self::Io(error) => StoreError::Unavailable(Arc::clone(error)),
            Self::Echo => StoreError::Unavailable(echo()),
            Self::Corrupt(what) => StoreError::Corrupt(what.clone()),
        }
    }

    pub(super) fn health(&self) -> StoreHealth {
        match self {
            Self::Full(_) => StoreHealth::Full,
            other => StoreHealth::Failed { reason: other.reading().to_string() },
        }
    }
}

fn echo() -> Arc<io::Error> {
    Arc::new(io::Error::other("an earlier access failed"))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A file-size limit (EFBIG) is room that can be made, too.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full(Arc::new(error))
            }
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => error.into(),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Self::Echo,
            other => Self::Corrupt(other.to_string()),
        }
    }
}

/// `?` on each of redb's error types.
macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                redb::Error::from(error).into()
            }
        }
    )*};
}

from_redb!(CommitError, DatabaseError, StorageError, TableError, TransactionError);
