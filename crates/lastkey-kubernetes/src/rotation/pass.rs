//! One pass over all objects: pages are listed, and each object is written back as it was read.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all, stream};
use lastkey_client::native::RotationPhase;

use super::{
    Claim, Event, RENEW_EVERY, RotateError, Stop, Worker,
    gate::Gate,
    state::{Counts, Refusal},
};
use crate::cluster::{ApiError, ListQuery, Object, Page, Resource, Shape};

/// A call that may do better a moment later is repeated this often.
const MAX_TRIES: u32 = 8;
/// An object that somebody else writes all the time is left alone after so many conflicts: what
/// they write is under the new key id.
const MAX_CONFLICTS: u64 = 5;
/// A refusal of an apiserver that is ready is believed after so many repetitions.
const SURE_AFTER: u32 = 3;
/// The first pause before a repeated call; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What became of one object.
enum Outcome {
    Rewritten,
    Current,
    Gone,
    Refused(String),
}

impl Worker {
    /// Goes through everything that is left of this pass.
    pub(super) async fn pass(&self, claim: &mut Claim) -> Result<(), Stop> {
        let gate = self.gate();
        if claim.state.pass_began.is_empty() {
            claim.state.pass_began.clone_from(&claim.rotation.now);
        }
        let mut total = self.count(claim).await?;
        claim.total = total;
        while let Some(resource) = claim.state.resources.get(claim.state.at).cloned() {
            let page = self.page(claim, &resource).await?;
            let Some(page) = page else { continue };
            let done = claim.state.pass.seen() + claim.state.pass.gone;
            let known = done + page.objects.len() as u64 + page.remaining.unwrap_or(0);
            total = total.max(known);
            claim.total = total;
            let next = page.next.clone();
            let (counts, refusals) = self.rewrite(claim, (&resource, page), &gate).await?;
            claim.state.page(counts, refusals, next);
            let phase = claim.rotation.phase;
            self.save(claim, None, false).await?;
            let done = claim.state.pass.seen() + claim.state.pass.gone;
            let counts = claim.state.total;
            (self.watch)(&Event::Progress { done, total: total.max(done), counts });
            if claim.rotation.phase != phase {
                // The key was rotated once more: there is another key id to wait for.
                return Err(Stop::Again);
            }
        }
        Ok(())
    }

    /// How many objects there are, as far as the apiserver says.
    async fn count(&self, claim: &Claim) -> Result<u64, RotateError> {
        let mut total = 0;
        for resource in &claim.state.resources {
            let namespace = claim.rotation.namespace.as_deref();
            let query = ListQuery { namespace, limit: 1, next: None, shape: Shape::Metadata };
            let page = self.patiently(|| self.api.list(resource, &query)).await?;
            total += page.objects.len() as u64 + page.remaining.unwrap_or(0);
        }
        Ok(total)
    }

    /// The next page; `None` if another one has to be asked for.
    async fn page(&self, claim: &mut Claim, of: &Resource) -> Result<Option<Page>, Stop> {
        let namespace = claim.rotation.namespace.clone();
        let mut limit = self.options.page.max(1);
        loop {
            let next = claim.state.next.clone();
            let (namespace, next) = (namespace.as_deref(), next.as_deref());
            let query = ListQuery { namespace, limit, next, shape: Shape::Whole };
            match self.patiently(|| self.api.list(of, &query)).await {
                Ok(page) => return Ok(Some(page)),
                // Objects of a megabyte each.
                Err(ApiError::TooLarge { .. }) if limit > 1 => limit = (limit / 4).max(1),
                // What was listed is too old by now. It goes on behind the last object with what
                // is there now: what changed since is under the new key id already.
                Err(ApiError::Expired { next: fresh }) if claim.state.next.is_some() => {
                    claim.state.next = fresh;
                    return Ok(None);
                }
                // The resource is not served any more: nothing of it is left to read, either.
                Err(ApiError::NotFound) => {
                    claim.state.page(Counts::default(), Vec::new(), None);
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes the objects of a page back, some at a time; renews the claim meanwhile.
    async fn rewrite(
        &self,
        claim: &mut Claim,
        (resource, page): (&Resource, Page),
        gate: &Gate,
    ) -> Result<(Counts, Vec<Refusal>), Stop> {
        let (mut counts, mut refusals) = (Counts::default(), Vec::new());
        let work = stream::iter(page.objects).map(|object| async move {
            let mut conflicts = 0;
            let outcome = self.write_back(resource, &object, (gate, &mut conflicts)).await;
            outcome.map(|outcome| (outcome, conflicts, object))
        });
        let mut work = std::pin::pin!(work.buffer_unordered(self.options.workers.max(1)));
        loop {
            let renew = RENEW_EVERY.saturating_sub(claim.saved.elapsed());
            let done = tokio::select! {
                done = work.next() => done,
                () = tokio::time::sleep(renew) => {
                    self.save(claim, None, false).await?;
                    if claim.rotation.phase == RotationPhase::Converging {
                        return Err(Stop::Again);
                    }
                    continue;
                }
            };
            let Some(done) = done else { return Ok((counts, refusals)) };
            let (outcome, conflicts, object) = done?;
            counts.conflicts += conflicts;
            match outcome {
                Outcome::Rewritten => counts.rewritten += 1,
                Outcome::Current => counts.current += 1,
                Outcome::Gone => counts.gone += 1,
                Outcome::Refused(reason) => {
                    counts.refused += 1;
                    refusals.push(Refusal {
                        resource: resource.full_name(),
                        namespace: object.meta().namespace.clone(),
                        name: object.meta().name.clone(),
                        reason,
                    });
                }
            }
            self.go_on()?;
        }
    }

    /// Writes one object back as it is.
    async fn write_back(
        &self,
        of: &Resource,
        listed: &Object,
        (gate, conflicts): (&Gate, &mut u64),
    ) -> Result<Outcome, RotateError> {
        let mut object = listed.clone();
        let mut tries = 0;
        loop {
            let turn = gate.turn().await;
            let answer = self.api.put_back(of, &object).await;
            drop(turn);
            let error = match answer {
                Ok(after) if after.meta().resource_version == object.meta().resource_version => {
                    return Ok(Outcome::Current);
                }
                Ok(_) => return Ok(Outcome::Rewritten),
                Err(error) => error,
            };
            match error {
                ApiError::NotFound => return Ok(Outcome::Gone),
                ApiError::Conflict => {
                    *conflicts += 1;
                    if *conflicts > MAX_CONFLICTS {
                        return Ok(Outcome::Current);
                    }
                    let (ns, name) = (&object.meta().namespace, &object.meta().name);
                    match self.patiently(|| self.api.get(of, ns, name)).await {
                        Err(ApiError::NotFound) => return Ok(Outcome::Gone),
                        // Deleted, and another one made since: under the new key id.
                        Ok(other) if other.meta().uid != listed.meta().uid => {
                            return Ok(Outcome::Gone);
                        }
                        Ok(changed) => object = changed,
                        Err(error) => return Err(error.into()),
                    }
                }
                ApiError::TooMany { retry_after } => {
                    self.go_on()?;
                    gate.rest(retry_after);
                }
                ApiError::Refused { .. } | ApiError::Invalid { .. } => {
                    return Ok(Outcome::Refused(error.to_string()));
                }
                error if !gate.has_given_up(&error) && self.may_change(&error, tries).await => {
                    self.go_on()?;
                    tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
                    tries += 1;
                }
                ApiError::WebhookDown { .. } | ApiError::Failed { .. } => {
                    gate.give_up(&error);
                    return Ok(Outcome::Refused(error.to_string()));
                }
                error => return Err(error.into()),
            }
        }
    }

    /// Repeats a read that may do better a moment later.
    async fn patiently<T, F: Future<Output = Result<T, ApiError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, ApiError> {
        let mut tries = 0;
        loop {
            match read().await {
                Err(ApiError::TooMany { retry_after }) if tries < 8 * MAX_TRIES => {
                    tokio::time::sleep(retry_after.unwrap_or(FIRST_PAUSE)).await;
                }
                Err(error) if self.may_change(&error, tries).await => {
                    tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
                }
                outcome => return outcome,
            }
            tries += 1;
        }
    }

    /// Whether the same call may be answered otherwise a moment later. An apiserver that has just
    /// started serves before it has read who may do what: it knows no account then, or no role.
    async fn may_change(&self, error: &ApiError, tries: u32) -> bool {
        match error {
            ApiError::Forbidden { .. } | ApiError::Unauthorized => {
                tries < SURE_AFTER || (tries < MAX_TRIES && !self.all_are_ready().await)
            }
            error => error.is_transient() && tries < MAX_TRIES,
        }
    }

    async fn all_are_ready(&self) -> bool {
        let asked = (0..self.api.urls().len()).map(|server| self.api.readyz(server));
        join_all(asked).await.iter().all(|answer| matches!(answer, Ok(Ok(()))))
    }
}
