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

#[cfg(test)]
mod tests {
    use super::*;

    /// A transaction of this many bytes, whose answer nobody waits for.
    fn pending(bytes: usize) -> Pending {
        let transaction = Transaction::new().put("p", vec![0; bytes - 1]);
        assert_eq!(transaction.bytes(), bytes);
        Pending { transaction, answer: oneshot::channel().0 }
    }

    fn taken(queue: &Queue) -> Vec<usize> {
        match queue.take(Some(Duration::ZERO), || ()) {
            Work::Batch(batch) => batch.iter().map(|p| p.transaction.bytes()).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_bytes() {
        let queue = Queue::new(3, 100);
        // The first is taken whatever it is, or nobody could ever commit it.
        assert!(queue.push(pending(500)).is_ok());
        assert!(matches!(queue.push(pending(10)), Err(CommitError::Busy)));
        assert_eq!(taken(&queue), [500]);
        assert!(queue.push(pending(60)).is_ok());
        assert!(matches!(queue.push(pending(41)), Err(CommitError::Busy)));
        assert!(queue.push(pending(30)).is_ok());
        assert!(queue.push(pending(10)).is_ok(), "exactly as many bytes as may wait");
        assert!(matches!(queue.push(pending(2)), Err(CommitError::Busy)));
        // What was taken makes room again, all of it.
        assert_eq!(taken(&queue), [60, 30, 10]);
        for _ in 0..3 {
            assert!(queue.push(pending(33)).is_ok());
        }
        assert!(matches!(queue.push(pending(1)), Err(CommitError::Busy)), "three wait");
        queue.close();
        assert_eq!(taken(&queue), [33; 3]);
        assert!(matches!(queue.push(pending(1)), Err(CommitError::Closed)));
    }

    #[test]
    fn a_batch_is_bounded_in_number_and_bytes() {
        let queue = Queue::new(10_000, usize::MAX);
        for _ in 0..MAX_BATCH + 44 {
            queue.push(pending(10)).unwrap();
        }
        assert_eq!((taken(&queue).len(), taken(&queue).len()), (MAX_BATCH, 44));
        let half = MAX_BATCH_BYTES / 2;
        for bytes in [half, half, half, half + 1, 3 * half, 5] {
            queue.push(pending(bytes)).unwrap();
        }
        assert_eq!(taken(&queue), [half, half], "exactly as many bytes as one may have");
        assert_eq!(taken(&queue), [half]);
        assert_eq!(taken(&queue), [half + 1]);
        assert_eq!(taken(&queue), [3 * half], "one that is larger goes alone");
        assert_eq!(taken(&queue), [5]);
        assert!(matches!(queue.take(Some(Duration::ZERO), || ()), Work::Idle));
    }
}
