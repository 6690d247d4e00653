//! What waits for the committer, bounded in number and bytes.

use std::{collections::VecDeque, time::Duration};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::{CommitError, Revision, Transaction};

/// The most transactions in one durable commit; keeps the wait of the first one short.
const MAX_BATCH: usize = 256;
/// The most bytes in one durable commit (a single transaction may have up to 1 MiB).
const MAX_BATCH_BYTES: usize = 4 << 20;

/// A transaction, and where its caller waits.
pub(super) struct Pending {
    pub(super) transaction: Transaction,
    pub(super) answer: oneshot::Sender<Result<Revision, CommitError>>,
}

/// What the committer is to do next.
pub(super) enum Work {
    /// Commit these, in this order.
    Batch(Vec<Pending>),
    /// A reader met an I/O error.
    Suspect,
    /// The time given has passed with nothing to do.
    Idle,
    /// Finish: nothing waits any more, and nothing will come.
    Closed,
}

pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    max_waiting: usize,
    max_waiting_bytes: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Pending>,
    bytes: usize,
    suspect: bool,
    closed: bool,
}

impl Queue {
    pub(super) fn new(max_waiting: usize, max_waiting_bytes: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), max_waiting, max_waiting_bytes }
    }

    /// Queues the transaction, or says at once why not.
    pub(super) fn push(&self, pending: Pending) -> Result<(), CommitError> {
        let bytes = pending.transaction.bytes();
        let mut state = self.state.lock();
        if state.closed {
            return Err(CommitError::Closed);
        }
        let full = state.waiting.len() >= self.max_waiting
            || (!state.waiting.is_empty() && state.bytes + bytes > self.max_waiting_bytes);
        if full {
            return Err(CommitError::Busy);
        }
        state.bytes += bytes;
        state.waiting.push_back(pending);
        self.arrived.notify_one();
        Ok(())
    }

    /// Makes the committer look at the medium.
    pub(super) fn suspect(&self) {
        self.state.lock().suspect = true;
        self.arrived.notify_one();
    }

    /// Refuses new transactions; those that wait are still committed.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Waits for work, for `patience` at most. `gather` is called before a batch is closed.
    pub(super) fn take(&self, patience: Option<Duration>, gather: impl Fn()) -> Work {
        let mut state = self.state.lock();
        loop {
            if std::mem::take(&mut state.suspect) {
                return Work::Suspect;
            }
            if !state.waiting.is_empty() {
                MutexGuard::unlocked(&mut state, &gather);
                return Work::Batch(state.batch());
            }
            if state.closed {
                return Work::Closed;
            }
            match patience {
                None => self.arrived.wait(&mut state),
                Some(time) => {
                    if self.arrived.wait_for(&mut state, time).timed_out() {
                        return Work::Idle;
                    }
                }
            }
        }
    }
}

impl State {
    fn batch(&mut self) -> Vec<Pending> {
        let mut batch = Vec::with_capacity(self.waiting.len().min(MAX_BATCH));
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            let size = next.transaction.bytes();
            if batch.len() == MAX_BATCH || (!batch.is_empty() && bytes + size > MAX_BATCH_BYTES) {
                break;
            }
            bytes += size;
            batch.extend(self.waiting.pop_front());
        }
        self.bytes -= bytes;
        batch
    }
}
