//! What is under way of a pass: at most two pages, whose objects are written back some at a time,
//! and the list of the page after the first of them.

use std::{collections::VecDeque, vec};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};

use super::{
    RotateError, Worker,
    gate::Gate,
    pass::{FIRST_PAUSE, Listed, Within},
    state::{Counts, Cursor, Refusal, Unlisted},
};
use crate::cluster::{ApiError, Object, Resource, Right};

/// An object that somebody else writes all the time is left alone after so many conflicts: what
/// they write is under the new key id.
const MAX_CONFLICTS: u64 = 5;
/// The page that is written, and the one that comes next.
const PAGES: usize = 2;

/// Who refuses what the account may do.
const BY_ADMISSION: &str = "refused by an admission plugin of the apiserver (403), although the \
    account may update it: `kubectl replace` of it as it is says by which one, and why";

/// What is there all the same.
const NO_PLACE: &str = "its write is answered with 404, although it is there: its namespace is gone \
    (one that is taken away by force leaves its objects behind). Delete it (`kubectl -n NAMESPACE \
    delete`), or make the namespace again (`kubectl create namespace`)";
/// Nobody else's write makes its own stale.
const NO_CONFLICT: &str = "its write is answered with 409 time and again, although nobody has changed \
    it: `kubectl replace` of it as it is says by which admission plugin, and why";

/// What became of one object.
enum Outcome {
    Rewritten,
    Current,
    Gone,
    Refused(String),
    /// Nobody serves its kind any more, so nobody knows.
    Unserved,
}

/// One object that was written back, or not.
struct Done {
    /// Which page it is of.
    page: u64,
    outcome: Outcome,
    conflicts: u64,
    object: Object,
}

/// A page under way.
struct Batch {
    at: usize,
    waiting: vec::IntoIter<Object>,
    /// Waiting or under way.
    left: usize,
    written: Written,
}

/// What became of a page.
pub(super) struct Written {
    pub(super) counts: Counts,
    pub(super) refusals: Vec<Refusal>,
    /// What there was from its beginning on, when it was listed.
    pub(super) known: u64,
    /// Where the next one begins.
    pub(super) after: Cursor,
    /// Why there was none.
    pub(super) unlisted: Option<Unlisted>,
}

/// Where the next page is.
enum Next<'a> {
    Unlisted(Cursor),
    Listing(BoxFuture<'a, Result<Option<Listed>, RotateError>>),
    /// There is none.
    Over,
}

/// All that is under way.
pub(super) struct Flight<'a> {
    worker: &'a Worker,
    gate: &'a Gate,
    within: Within<'a>,
    next: Next<'a>,
    batches: VecDeque<Batch>,
    /// The number of the first of them.
    first: u64,
    writes: FuturesUnordered<BoxFuture<'a, Result<Done, RotateError>>>,
}

impl<'a> Flight<'a> {
    pub(super) fn new(
        (worker, gate): (&'a Worker, &'a Gate),
        within: Within<'a>,
        start: Cursor,
    ) -> Self {
        let (batches, writes) = (VecDeque::new(), FuturesUnordered::new());
        let next = Next::Unlisted(start);
        Self { worker, gate, within, next, batches, first: 0, writes }
    }

    /// Whether everything is written, and [`Flight::written`] has told of it.
    pub(super) fn is_over(&self) -> bool {
        self.batches.is_empty() && matches!(self.next, Next::Over)
    }

    /// The first page, once all of it is written.
    pub(super) fn written(&mut self) -> Option<Written> {
        let batch = self.batches.pop_front_if(|batch| batch.left == 0)?;
        self.first += 1;
        Some(batch.written)
    }

    /// Goes on until a page is listed or an object is written; may be dropped at any moment.
    pub(super) async fn step(&mut self) -> Result<(), RotateError> {
        self.fill();
        let writes = &mut self.writes;
        let writing = !writes.is_empty();
        let listed = match &mut self.next {
            Next::Listing(listing) => tokio::select! {
                listed = listing => listed?,
                Some(done) = writes.next(), if writing => return self.account(done?),
            },
            _ if writing => match writes.next().await {
                Some(done) => return self.account(done?),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        let Some(Listed { at, page, after, unlisted }) = listed else {
            self.next = Next::Over;
            return Ok(());
        };
        self.next = Next::Unlisted(after.clone());
        let left = page.objects.len();
        let known = left as u64 + page.remaining.unwrap_or(0);
        let (counts, refusals) = (Counts::default(), Vec::new());
        let written = Written { counts, refusals, known, after, unlisted };
        self.batches.push_back(Batch { at, waiting: page.objects.into_iter(), left, written });
        Ok(())
    }

    /// Goes on until something else is done.
    pub(super) async fn beside<T>(
        &mut self,
        other: impl Future<Output = T>,
    ) -> Result<T, RotateError> {
        let mut other = std::pin::pin!(other);
        loop {
            self.fill();
            if self.writes.is_empty() && !matches!(self.next, Next::Listing(_)) {
                return Ok(other.await);
            }
            tokio::select! {
                answer = &mut other => return Ok(answer),
                step = self.step() => step?,
            }
        }
    }

    /// Starts whatever may be started.
    fn fill(&mut self) {
        let is_room = self.batches.len() < PAGES;
        if let Next::Unlisted(cursor) = &mut self.next
            && is_room
        {
            let (worker, start) = (self.worker, std::mem::take(cursor));
            self.next = Next::Listing(worker.list(self.within, start).boxed());
        }
        for (page, batch) in (self.first..).zip(&mut self.batches) {
            while self.writes.len() < self.worker.options.workers.max(1) {
                let Some(object) = batch.waiting.next() else { break };
                let write =
                    write(self.worker, (&self.within.resources[batch.at], object), self.gate);
                self.writes.push(
                    write
                        .map(move |done| {
                            let (outcome, conflicts, object) = done?;
                            Ok(Done { page, outcome, conflicts, object })
                        })
                        .boxed(),
                );
            }
        }
    }

    fn account(&mut self, done: Done) -> Result<(), RotateError> {
        let Done { page, outcome, conflicts, object } = done;
        let index = usize::try_from(page - self.first).unwrap_or(usize::MAX);
        let Some(batch) = self.batches.get_mut(index) else { return Ok(()) };
        batch.left -= 1;
        let (counts, of) = (&mut batch.written.counts, &self.within.resources[batch.at]);
        counts.conflicts += conflicts;
        match outcome {
            Outcome::Rewritten => counts.rewritten += 1,
            Outcome::Current => counts.current += 1,
            Outcome::Gone => counts.gone += 1,
            Outcome::Refused(reason) => {
                counts.refused += 1;
                batch.written.refusals.push(Refusal {
                    resource: of.full_name(),
                    namespace: object.meta().namespace.clone(),
                    name: object.meta().name.clone(),
                    reason,
                });
            }
            Outcome::Unserved => {
                let (resource, why) = (of.full_name(), ApiError::NotFound.to_string());
                batch.written.unlisted = Some(Unlisted { resource, why, not_found: true });
            }
        }
        Ok(())
    }
}

impl Worker {
    /// What there is now of an object that could not be written; or what is known of it by that. Only
    /// an apiserver that says so of this very object shows that it is gone.
    async fn now(
        &self,
        of: &Resource,
        object: &Object,
    ) -> Result<Result<Object, Outcome>, RotateError> {
        match self.patiently(|| self.api.get_again(of, object)).await {
            Ok(None) => Ok(Err(Outcome::Gone)),
            // Deleted, and another one made since: under the new key id.
            Ok(Some(other)) if other.meta().uid != object.meta().uid => Ok(Err(Outcome::Gone)),
            Ok(Some(now)) => Ok(Ok(now)),
            Err(ApiError::NotFound) => Ok(Err(Outcome::Unserved)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the account may update objects of this kind where this one is, as far as an apiserver
    /// says so.
    async fn may_update(&self, of: &Resource, object: &Object, gate: &Gate) -> bool {
        let namespace = Some(object.meta().namespace.as_str()).filter(|_| of.namespaced);
        let place = (of.full_name(), namespace.unwrap_or_default().to_owned());
        if gate.may_update(&place) {
            return true;
        }
        let right = Right { verb: "update", group: &of.group, resource: &of.name, namespace };
        let may = matches!(self.patiently(|| self.api.may(&right)).await, Ok(true));
        if may {
            gate.is_allowed(place);
        }
        may
    }
}

/// Writes one object back as it is; with what became of it, and how often somebody was quicker.
async fn write(
    worker: &Worker,
    (of, mut object): (&Resource, Object),
    gate: &Gate,
) -> Result<(Outcome, u64, Object), RotateError> {
    let (mut tries, mut conflicts, mut changed) = (0, 0, false);
    let outcome = loop {
        let turn = gate.turn().await;
        let answer = worker.api.put_back(of, &object).await;
        drop(turn);
        let error = match answer {
            Ok(after) if after.meta().resource_version == object.meta().resource_version => {
                break Outcome::Current;
            }
            Ok(_) => break Outcome::Rewritten,
            Err(error) => error,
        };
        match error {
            // Of whatever it needs, which need not be the object.
            ApiError::NotFound => match worker.now(of, &object).await? {
                Err(outcome) => break outcome,
                Ok(_) => break Outcome::Refused(NO_PLACE.to_owned()),
            },
            ApiError::Conflict => {
                conflicts += 1;
                if conflicts > MAX_CONFLICTS {
                    break match changed {
                        true => Outcome::Current,
                        false => Outcome::Refused(NO_CONFLICT.to_owned()),
                    };
                }
                match worker.now(of, &object).await? {
                    Err(outcome) => break outcome,
                    Ok(now) => {
                        changed |= now.meta().resource_version != object.meta().resource_version;
                        object = now;
                    }
                }
            }
            ApiError::TooMany { retry_after } => {
                worker.go_on()?;
                gate.rest(retry_after);
            }
            ApiError::Refused { .. } | ApiError::Invalid { .. } => {
                break Outcome::Refused(error.to_string());
            }
            error if !gate.has_given_up(&error) && worker.may_change(&error, tries).await => {
                worker.go_on()?;
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
                tries += 1;
            }
            ApiError::WebhookDown { .. } | ApiError::Failed { .. } => {
                gate.give_up(&error);
                break Outcome::Refused(error.to_string());
            }
            // Authorisation comes before admission, and allows it.
            ApiError::Forbidden { .. } if worker.may_update(of, &object, gate).await => {
                break Outcome::Refused(BY_ADMISSION.to_owned());
            }
            error => return Err(error.into()),
        }
    };
    Ok((outcome, conflicts, object))
}
