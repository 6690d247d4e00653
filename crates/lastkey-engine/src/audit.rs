//! The audit log: one record per command, durable before the answer leaves.
//!
//! * Records are JSON lines in `audit/segment-<first sequence number>.jsonl`. Each begins with its
//!   sequence number and with the SHA-256 of the line before it, so anybody can recompute the
//!   chain with nothing but `sha256sum`.
//! * A batch of records is first written, with one `fdatasync`, to a preallocated journal beside
//!   the segments; its frame carries the chain's new head under a keyed authentication code, so a
//!   cut or rewritten tail shows. Segments are synchronised in the background, and what one lost
//!   in a power cut is put back from the journal.
//! * Concurrent callers share a batch.
//!
//! The log trusts its authentication key and the file system's `fdatasync`. Who owns the live
//! server owns the key, and can rewrite what has not left the machine.

mod ballast;
mod batch;
mod checkpoint;
mod examine;
mod files;
mod follow;
mod fuzz;
mod index;
mod journal;
mod keeper;
mod key_file;
mod log;
mod progress;
mod query;
mod record;
mod recover;
mod remembered;
mod retain;
mod scan;
mod seconds;
mod segment;
mod signer;
mod syncer;
mod verify;
mod walk;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use lastkey_crypto::signing::{PublicKey, SIGNATURE_LEN};
use tokio::sync::oneshot;

use crate::Timestamp;

pub use checkpoint::{Checkpoint, CheckpointKind, LogId, Statement};
pub use follow::{Follower, Lot, Place};
pub use key_file::KeyFile;
pub use log::{AuditLog, AuditOpenError, AuditOptions, SEGMENT_BYTES};
pub use progress::Progress;
pub use query::{Nonces, Query, QueryPage};
pub use record::Record;
pub use remembered::{Recalled, Remembered};
pub use retain::{Deletion, Retention};
pub(crate) use retain::{SIGNED_FOR, SIGNED_UNTIL, Told};
pub use seconds::Seconds;
pub use signer::{CHECKPOINT_EVERY, Checkpointing};
pub use verify::{Offline, Problem, Verification, offline};

/// Why a record was not made durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The disk is full.
    #[error("the audit log's disk is full")]
    Full,
    /// More records wait than the queue holds.
    #[error("too many records wait for the audit log")]
    Busy,
    /// The disk refused.
    #[error("the audit log cannot be written: {0}")]
    Failed(String),
    /// The disk neither takes what it was given nor refuses it. Nobody's record is answered with
    /// this: it is what others see.
    #[error("the audit log's disk does not answer")]
    Silent,
    /// The log was closed.
    #[error("the audit log is closed")]
    Closed,
}

impl From<AuditError> for crate::Error {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Full => Self::StorageFull,
            AuditError::Busy => Self::Busy,
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// The end of the chain: the last record's number and the SHA-256 of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last record's sequence number; 0 while there is none.
    pub seq: u64,
    /// SHA-256 of the last line without its newline; zeros while there is none.
    pub hash: [u8; 32],
}

impl Head {
    /// The head of an empty log.
    pub const EMPTY: Self = Self { seq: 0, hash: [0; 32] };
}

/// Resolves once a record is durable.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<u64, AuditError>>);

impl Ticket {
    /// A ticket and the other half, which resolves it.
    pub fn new() -> (oneshot::Sender<Result<u64, AuditError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl Future for Ticket {
    /// The record's sequence number.
    type Output = Result<u64, AuditError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|sent| sent.unwrap_or(Err(AuditError::Closed)))
    }
}

/// Where records go.
pub trait AuditSink: Send + Sync + 'static {
    /// Queues a record's body; the ticket resolves once it is durable.
    fn append(&self, body: Vec<u8>) -> Ticket;
    /// Where the chain ends now.
    fn head(&self) -> Head;
    /// Whether records can be written, as far as the last attempt knows.
    fn health(&self) -> Result<(), AuditError>;
    /// Reads records that match.
    ///
    /// # Errors
    /// A segment cannot be read.
    fn query(&self, query: &Query) -> std::io::Result<QueryPage>;
    /// Reads the newest nonces of requests, at most `limit`, of records that are not older than
    /// `from`, and the seconds that the others were signed for.
    ///
    /// # Errors
    /// A segment cannot be read.
    fn nonces(&self, from: Timestamp, limit: usize) -> std::io::Result<Nonces>;
    /// Recomputes the chain.
    ///
    /// # Errors
    /// A segment cannot be read.
    fn verify(&self, known: &[Head]) -> std::io::Result<Verification> {
        self.verify_watched(known, &Arc::default())
    }
    /// Recomputes the chain, while somebody watches how far it has come.
    ///
    /// # Errors
    /// A segment cannot be read.
    fn verify_watched(
        &self,
        known: &[Head],
        progress: &Arc<Progress>,
    ) -> std::io::Result<Verification>;
    /// Whose signatures the log's checkpoints bear; `None` where none are made.
    fn checkpoint_key(&self) -> Option<PublicKey>;
    /// A signature by that key, over a text that begins unlike any checkpoint.
    fn sign(&self, text: &[u8]) -> Option<[u8; SIGNATURE_LEN]>;
    /// What retention says is to be deleted now. Without a time, age does not count.
    ///
    /// # Errors
    /// A segment cannot be read, or is not as it was written; or the deletion could not be stated.
    fn to_delete(&self, now: Option<Timestamp>) -> std::io::Result<Option<Deletion>>;
    /// Deletes segments, once a signed checkpoint states it. The caller has recorded it.
    ///
    /// # Errors
    /// It could not be stated, or not all files could be removed; the rest goes next time.
    fn delete(&self, deletion: &Deletion) -> std::io::Result<()>;
    /// Gives up the room that is kept for a deletion on a full disk; false where there is none.
    ///
    /// # Errors
    /// It could not be given up.
    fn give_room(&self) -> std::io::Result<bool>;
    /// Keeps such room where retention may need it and much more is free; with less, where it is
    /// kept `again` after a deletion. Says whether there is such room now.
    ///
    /// # Errors
    /// It could not be kept.
    fn keep_room(&self, again: bool) -> std::io::Result<bool>;
    /// The newest checkpoint's record, and when it was signed.
    fn newest_checkpoint(&self) -> Option<(u64, Timestamp)>;
    /// Why the newest records are not signed, where the last attempt to sign failed.
    fn signing_fails(&self) -> Option<String> {
        None
    }
    /// The newest checkpoint, for the store to remember, if it is durable.
    fn checkpoint_to_remember(&self) -> Option<Remembered>;
    /// Compares the checkpoints with the one that the store remembers, before anything is recorded.
    /// Numbers go on behind that one, whatever became of it. Answers what is missing, for the
    /// operator, once it is said in the server's own log.
    fn recall_checkpoint(&self, remembered: Option<Remembered>) -> Recalled;
    /// Writes what is queued and closes the log cleanly.
    fn close(&self);
}

/// For the fuzz target: reads one line.
pub(crate) fn parse_line(line: &[u8]) {
    if let Some(link) = segment::link(line) {
        let head = [br#"{"seq":"#, link.seq.to_string().as_bytes(), br#","prev":""#].concat();
        assert!(line.len() > head.len() + 64, "a link has a number, a hash and more behind them");
    }
}

/// For the fuzz target: reads a file of checkpoints.
pub(crate) fn parse_checkpoints(bytes: &[u8]) {
    checkpoint::parse_file(bytes);
}

pub(crate) use fuzz::parse_segment;
#[cfg(test)]
pub(crate) use remembered::encoded as remembered;
pub(crate) use remembered::parse as parse_remembered;

/// For the fuzz target: reads an index whose code is right.
pub(crate) fn parse_index(bytes: &[u8]) {
    index::parse_signed(bytes);
}

/// For the fuzz target: reads one journal file.
pub(crate) fn parse_journal(bytes: &mut [u8]) {
    journal::parse_signed(bytes);
}
