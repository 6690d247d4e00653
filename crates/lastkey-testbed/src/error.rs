//! What can go wrong around a real peer.

use std::io;
use std::path::PathBuf;

/// A failure of the testbed, said so that the cause can be found from the text alone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer is not installed.
    #[error("missing peer {name} (looked for {}); run `cargo xtask peers`", path.display())]
    MissingPeer {
        /// Its name.
        name: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A program did not start.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A process ended although it should go on.
    #[error("{name} ended with {status}; its last words:\n{log}")]
    Ended {
        /// The process.
        name: String,
        /// How it ended.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {seconds} s; last seen: {last}")]
    Late {
        /// What was awaited.
        what: String,
        /// How long.
        seconds: u64,
        /// What was there instead.
        last: String,
    },
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A request got no answer.
    #[error("{method} {url}: {cause}")]
    Request {
        /// The method.
        method: String,
        /// The address.
        url: String,
        /// Why.
        cause: String,
    },
    /// A request was answered otherwise than it should have been.
    #[error("{what}: status {status}: {body}")]
    Answer {
        /// What was asked.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The ready line of a command is not what the contract says.
    #[error("ready line `{line}`: {cause}")]
    ReadyLine {
        /// The line.
        line: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
