//! The one thread that writes.
//!
//! It takes all transactions that wait, judges them in order, and makes one durable redb commit
//! of them. Only then does it show the new state to readers, tell the watchers, and answer. A
//! conflict is answered then, too, because it may be one with a neighbour in the same batch.
//!
//! redb refuses everything after an I/O error until the database is reopened (`PreviousIo`), a
//! full disk included. So after any failure the committer reopens it and looks which revision
//! the medium holds; that tells whether the batch was made. While the medium fails, it tries
//! again by itself, more and more seldom.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use redb::{Database, StorageBackend};

use super::{
    OpenOptions, Shared,
    failure::Failure,
    medium::Medium,
    queue::{Pending, Work},
    schema::{self, Found, Judged, Snapshot},
};
use crate::{CommitError, Entry, Event, Operation, Revision, StoreHealth};

/// How long the committer waits at most before it tries again after a failure.
const LAST_DELAY: Duration = Duration::from_secs(4);

/// An open database and the revision of its last durable commit.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) revision: Revision,
}

pub(super) struct Committer<M: Medium> {
    medium: M,
    shared: Arc<Shared>,
    state: State,
    /// The newest revision that a caller was told of.
    acknowledged: Revision,
    retry: Option<Retry>,
}

enum State {
    Open(Opened),
    Broken(Failure),
}

/// When to look at a failing medium again.
struct Retry {
    at: Instant,
    delay: Duration,
}

impl<M: Medium> Committer<M> {
    pub(super) fn new(medium: M, shared: Arc<Shared>, opened: Opened) -> Self {
        let acknowledged = opened.revision;
        Self { medium, shared, state: State::Open(opened), acknowledged, retry: None }
    }

    /// Works until the queue is closed and empty, then closes the database.
    pub(super) fn run(mut self) {
        loop {
            let patience =
                self.retry.as_ref().map(|retry| retry.at.saturating_duration_since(Instant::now()));
            let work = self.shared.queue.take(patience, || self.medium.gather());
            self.shared.patience.begin();
            match work {
                Work::Batch(batch) => self.serve(batch),
                Work::Suspect => self.suspect(),
                Work::Idle => self.probe(),
                Work::Closed => break,
            }
            self.shared.patience.end();
        }
    }

    fn serve(&mut self, batch: Vec<Pending>) {
        self.reopen_if_due();
        let opened = match &self.state {
            State::Open(opened) => opened,
            State::Broken(failure) => return answer_all(batch, &failure.not_made()),
        };
        let transactions = batch.iter().map(|pending| &pending.transaction);
        let applied = catch_unwind(AssertUnwindSafe(|| {
            schema::apply(&opened.database, opened.revision, transactions)
        }));
        match applied {
            Ok(Ok((judged, revision))) => self.publish(batch, judged, revision),
            Ok(Err(failed)) => self.failed(batch, &failed.failure, failed.during_commit),
            Err(_) => self.failed(batch, &Failure::corrupt("redb gave up"), true),
        }
    }

    /// Shows, tells and answers, in this order: whoever hears of a change can read it.
    fn publish(&mut self, batch: Vec<Pending>, judged: Vec<Judged>, revision: Revision) {
        // A small change may fit where the next larger one does not: that is no recovery.
        if self.retry.is_some() && self.medium.has_room() {
            self.serving();
        }
        if let State::Open(opened) = &mut self.state
            && revision != opened.revision
        {
            opened.revision = revision;
            self.acknowledged = revision;
            match Snapshot::of(&opened.database) {
                Ok(snapshot) => self.shared.show(Ok(snapshot)),
                // The batch is durable all the same.
                Err(failure) => self.recover(&failure),
            }
        }
        for (pending, judged) in batch.into_iter().zip(judged) {
            let Pending { transaction, answer } = pending;
            if let Ok(revision) = judged.verdict
                && judged.effects != 0
                && !self.shared.watches.is_empty()
            {
                let operations = transaction.into_operations();
                for (i, operation) in operations.into_iter().enumerate() {
                    if judged.effects & (1 << i) != 0 {
                        self.shared.watches.publish(event(operation, revision));
                    }
                }
            }
            // A caller that has gone needs no answer.
            let _ = answer.send(judged.verdict.map_err(|path| CommitError::Conflict { path }));
        }
    }

    /// Answers a batch that failed, after looking what became of it.
    fn failed(&mut self, batch: Vec<Pending>, failure: &Failure, during_commit: bool) {
        let before = self.acknowledged;
        self.recover(failure);
        let certain = match &self.state {
            State::Open(opened) => opened.revision == before,
            State::Broken(_) => !during_commit,
        };
        answer_all(batch, &if certain { failure.not_made() } else { failure.uncertain() });
    }

    /// Closes the database and opens it anew; retries later if that fails as well.
    fn recover(&mut self, failure: &Failure) {
        self.unhealthy(failure);
        // The old database goes before the new one comes.
        self.state = State::Broken(failure.clone());
        self.reopen();
    }

    fn reopen(&mut self) {
        match self.try_open() {
            Ok((opened, snapshot)) => {
                let news = opened.revision != self.acknowledged;
                self.acknowledged = opened.revision;
                self.state = State::Open(opened);
                self.shared.show(Ok(snapshot));
                if news {
                    self.shared.watches.lose_all();
                }
            }
            Err(failure) => {
                self.unhealthy(&failure);
                self.shared.show(Err(failure.reading()));
                self.state = State::Broken(failure);
            }
        }
    }

    fn try_open(&self) -> Result<(Opened, Snapshot), Failure> {
        let database = open_database(&self.medium, self.shared.options)?;
        let Found::Ours(revision) = schema::inspect(&database)? else {
            return Err(Failure::corrupt("the file was replaced"));
        };
        if revision < self.acknowledged {
            return Err(Failure::corrupt(format!(
                "the disk lost commits that it had confirmed: {revision} instead of {}",
                self.acknowledged
            )));
        }
        let snapshot = Snapshot::of(&database)?;
        Ok((Opened { database, revision }, snapshot))
    }

    /// A reader met an error: reopens if redb refuses to go on.
    fn suspect(&mut self) {
        if let State::Open(opened) = &self.state {
            let refused = opened.database.begin_write().map_err(Failure::from);
            match refused.and_then(|write| write.abort().map_err(Failure::from)) {
                Ok(()) => {}
                Err(failure) => self.recover(&failure),
            }
        } else {
            self.reopen_if_due();
        }
    }

    /// Looks whether a failing medium works again.
    fn probe(&mut self) {
        self.reopen_if_due();
        let State::Open(opened) = &self.state else { return };
        if self.retry.is_none() {
            return;
        }
        if !self.medium.has_room() {
            return self.later();
        }
        let probed =
            catch_unwind(AssertUnwindSafe(|| schema::probe(&opened.database, opened.revision)));
        match probed.unwrap_or_else(|_| Err(Failure::corrupt("redb gave up"))) {
            Ok(()) => self.serving(),
            Err(failure) => self.recover(&failure),
        }
    }

    fn reopen_if_due(&mut self) {
        let due = self.retry.as_ref().is_none_or(|retry| Instant::now() >= retry.at);
        if matches!(self.state, State::Broken(_)) && due {
            self.reopen();
        }
    }

    fn serving(&mut self) {
        if self.retry.take().is_some() {
            *self.shared.health.lock() = StoreHealth::Serving;
        }
    }

    fn unhealthy(&mut self, failure: &Failure) {
        // An echo tells less than what is known already.
        if self.retry.is_none() || !matches!(failure, Failure::Echo) {
            *self.shared.health.lock() = failure.health();
        }
        self.later();
    }

    fn later(&mut self) {
        let delay = match &self.retry {
            Some(retry) => (retry.delay * 2).min(LAST_DELAY),
            None => self.shared.options.retry,
        };
        self.retry = Some(Retry { at: Instant::now() + delay, delay });
    }
}

impl<M: Medium> Drop for Committer<M> {
    /// Also after a panic: nobody waits for ever, and the file is free for the next process.
    fn drop(&mut self) {
        self.shared.queue.close();
        while let Work::Batch(batch) = self.shared.queue.take(None, || ()) {
            answer_all(batch, &CommitError::Closed);
        }
        let closed = Failure::from(std::io::Error::other("the store is closed"));
        *self.shared.health.lock() = closed.health();
        self.shared.show(Err(closed.reading()));
        self.shared.watches.close();
        self.state = State::Broken(closed);
        self.medium.release();
    }
}

/// Opens the database on the medium; redb checks all of it if it was not closed cleanly, or is
/// small enough.
pub(super) fn open_database(
    medium: &impl Medium,
    options: OpenOptions,
) -> Result<Database, Failure> {
    let backend = medium.backend();
    let check = options.check && backend.len()? <= options.check_at_most;
    let mut builder = Database::builder();
    builder.set_cache_size(options.cache_bytes).set_check_integrity_on_open(check);
    let opened = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(backend)));
    Ok(opened.map_err(|_| Failure::corrupt("redb gave up"))??)
}

fn answer_all(batch: Vec<Pending>, error: &CommitError) {
    for pending in batch {
        let _ = pending.answer.send(Err(error.clone()));
    }
}

fn event(operation: Operation, revision: Revision) -> Event {
    match operation {
        Operation::Put { path, value } => Event::Put(Entry { path, value, revision }),
        Operation::Delete { path } => Event::Delete { path, revision },
    }
}
