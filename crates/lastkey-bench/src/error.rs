//! Why a measurement did not happen.

use std::{io, path::PathBuf};

/// The one error of this binary: a measurement that fails in any part is worth nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A process did not start or went away.
    #[error(transparent)]
    Process(#[from] lastkey_testbed::Error),
    /// A socket or a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// TLS could not be configured.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The floor's certificate.
    #[error("the floor's certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// gRPC over a socket that is not there.
    #[error("gRPC: {0}")]
    Channel(#[from] tonic::transport::Error),
    /// An answer that was no success.
    #[error("{side} answered {what}")]
    Answer {
        /// Whose.
        side: &'static str,
        /// What it said.
        what: String,
    },
    /// A file that should be JSON of a known form.
    #[error("{} is not what was expected: {source}", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The binary under test.
    #[error(
        "{} is not there; build it with `cargo build --release -p lastkey`, or name it with \
         --lastkey", .0.display()
    )]
    NoBinary(PathBuf),
    /// A task of ours panicked.
    #[error("a task of the load ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The floor's committer is gone.
    #[error("the floor's committer is gone")]
    Committer,
    /// Bare redb refused.
    #[error("redb: {0}")]
    Redb(#[from] redb::DatabaseError),
    /// Lastkey's store did not open.
    #[error(transparent)]
    Store(#[from] lastkey_store::OpenError),
    /// The engine did not start.
    #[error(transparent)]
    Start(#[from] lastkey_engine::StartError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] lastkey_engine::Error),
    /// A worker ended otherwise than it should.
    #[error("the worker ended with {status}: {said}")]
    Worker {
        /// How.
        status: std::process::ExitStatus,
        /// What it said.
        said: String,
    },
    /// The page lacks a place for a table.
    #[error("the page has no `<!-- bench:{name} -->` … `<!-- /bench:{name} -->`")]
    Marks {
        /// Which.
        name: String,
    },
}
