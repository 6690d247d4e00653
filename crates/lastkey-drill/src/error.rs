//! Why a drill could not be held. What a drill *finds* is no error: it is in the report.

use std::{io, path::PathBuf};

use lastkey_kubernetes::cluster::{AccessError, ApiError, EtcdError};

/// Why a drill could not be held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// Somebody wanted it to end before it had seen anything.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
    /// Programs are not there.
    #[error("{}", .0.join("\n"))]
    Missing(Vec<String>),
    /// A program did not start.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A process ended although it should go on.
    #[error("{name} ended ({status}){}", last_words(log))]
    Ended {
        /// Which.
        name: String,
        /// How.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {seconds} s ({last})")]
    Late {
        /// What was awaited.
        what: String,
        /// How long.
        seconds: u64,
        /// What was there instead.
        last: String,
    },
    /// The path of a scratch directory leaves no room for the sockets in it.
    #[error(
        "{}: its path is too long for sockets below it ({} bytes at most); choose another place \
         with --scratch-dir", directory.display(), most
    )]
    LongPath {
        /// The place.
        directory: PathBuf,
        /// How long it may be.
        most: usize,
    },
    /// A file could not be used.
    #[error("{}: {source}{}", path.display(), advice(.source))]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is too little room for what a drill has to write.
    #[error(
        "the drill needs about {needed} MiB in {}, and {there} MiB are there; make room, or choose \
         another place with --scratch-dir", directory.display()
    )]
    NoRoom {
        /// Where.
        directory: PathBuf,
        /// How much it takes, in MiB.
        needed: u64,
        /// How much there is, in MiB.
        there: u64,
    },
    /// What was given as a backup of our state is none.
    #[error("the backup {} cannot be used: {reason}", directory.display())]
    State {
        /// What was given.
        directory: PathBuf,
        /// Why not.
        reason: String,
    },
    /// What was given as a snapshot is none.
    #[error("the snapshot {} cannot be restored: {reason}", file.display())]
    Snapshot {
        /// What was given.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An EncryptionConfiguration cannot be used.
    #[error("{}: {reason}", path.display())]
    Configuration {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The scratch server stays sealed.
    #[error("the restored server stays sealed: {0}")]
    Sealed(String),
    /// The scratch server did not do what it was asked.
    #[error("the scratch server: {0}")]
    Server(#[from] lastkey_client::Error),
    /// It cannot even be asked.
    #[error("the scratch server: {0}")]
    Client(#[from] lastkey_client::ConfigError),
    /// The scratch apiserver did not do what it was asked.
    #[error("the scratch apiserver: {0}")]
    Apiserver(#[from] ApiError),
    /// The scratch etcd did not do what it was asked.
    #[error("the scratch etcd: {0}")]
    Etcd(#[from] EtcdError),
    /// Addresses or certificates of our own making are not taken.
    #[error("the scratch cluster: {0}")]
    Access(#[from] AccessError),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// An answer without something that has to be in it.
    #[error("the scratch server gave an answer without {0}")]
    Answer(&'static str),
}

impl DrillError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

fn last_words(log: &str) -> String {
    match log.trim() {
        "" => " and said nothing".to_owned(),
        log => format!("; its last words:\n{log}"),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room, or choose another place with --scratch-dir"
        }
        _ => "",
    }
}
