//! One pass over all objects: pages are listed, and each object is written back as it was read.

use std::time::Duration;

use futures_util::future::join_all;
use lastkey_client::native::RotationPhase;

use super::{
    Claim, Event, RENEW_EVERY, RotateError, Stop, Worker,
    flight::{Flight, Written},
    state::Cursor,
};
use crate::cluster::{ApiError, ListQuery, Page, Resource, Shape};

/// A call that may do better a moment later is repeated this often.
pub(super) const MAX_TRIES: u32 = 8;
/// A refusal of an apiserver that is ready is believed after so many repetitions.
const SURE_AFTER: u32 = 3;
/// The first pause before a repeated call; each next one is twice as long.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A page, and where the one after it begins.
pub(super) struct Listed {
    /// Which resource it is of.
    pub(super) at: usize,
    pub(super) page: Page,
    pub(super) after: Cursor,
}

impl Worker {
    /// Goes through everything that is left of this pass.
    ///
    /// While a page is written, the one after it is listed; where it is, is saved only for pages all
    /// of which is written. So there are two pages in memory, and no more.
    pub(super) async fn pass(&self, claim: &mut Claim) -> Result<(), Stop> {
        if claim.state.pass_began.is_empty() {
            claim.state.pass_began.clone_from(&claim.rotation.now);
        }
        claim.total = self.count(claim).await?.iter().sum();
        let (gate, resources) = (self.gate(), claim.state.resources.clone());
        let namespace = claim.rotation.namespace.clone();
        let start = claim.state.cursor.clone();
        let mut flight = Flight::new((self, &gate), (&resources, namespace.as_deref()), start);
        while !flight.is_over() {
            let renew = RENEW_EVERY.saturating_sub(claim.saved.elapsed());
            tokio::select! {
                step = flight.step() => step?,
                () = tokio::time::sleep(renew) => {
                    flight.beside(self.save(claim, None, false)).await??;
                    if claim.rotation.phase == RotationPhase::Converging {
                        return Err(Stop::Again);
                    }
                }
            }
            self.go_on()?;
            while let Some(written) = flight.written() {
                self.note(claim, written);
                let phase = claim.rotation.phase;
                flight.beside(self.save(claim, None, false)).await??;
                let (done, counts) = (claim.progress().done, claim.state.total);
                (self.watch)(&Event::Progress { done, total: claim.total.max(done), counts });
                if claim.rotation.phase != phase {
                    // The key was rotated once more: there is another key id to wait for.
                    return Err(Stop::Again);
                }
            }
        }
        Ok(())
    }

    /// A page is written.
    fn note(&self, claim: &mut Claim, written: Written) {
        let before = claim.state.pass.seen() + claim.state.pass.gone;
        claim.total = claim.total.max(before + written.known);
        claim.state.page(written.counts, written.refusals, written.after);
    }

    /// How many objects of each resource there are, as far as the apiserver says.
    pub(super) async fn count(&self, claim: &Claim) -> Result<Vec<u64>, RotateError> {
        let mut counts = Vec::new();
        for resource in &claim.state.resources {
            let namespace = claim.rotation.namespace.as_deref();
            let query = ListQuery { namespace, limit: 1, next: None, shape: Shape::Metadata };
            let page = self.patiently(|| self.api.list(resource, &query)).await?;
            counts.push(page.objects.len() as u64 + page.remaining.unwrap_or(0));
        }
        Ok(counts)
    }

    /// The page that begins there, or the first one behind it that there is.
    pub(super) async fn list(
        &self,
        (resources, namespace): (&[Resource], Option<&str>),
        mut cursor: Cursor,
    ) -> Result<Option<Listed>, RotateError> {
        let mut limit = self.options.page.max(1);
        while let Some(of) = resources.get(cursor.at) {
            let next = cursor.next.as_deref();
            let query = ListQuery { namespace, limit, next, shape: Shape::Packed };
            match self.patiently(|| self.api.list(of, &query)).await {
                Ok(page) => {
                    let after = cursor.after(page.next.clone());
                    return Ok(Some(Listed { at: cursor.at, page, after }));
                }
                // Objects of a megabyte each.
                Err(ApiError::TooLarge { .. }) if limit > 1 => limit = (limit / 4).max(1),
                // What was listed is too old by now. It goes on behind the last object with what
                // is there now: what changed since is under the new key id already.
                Err(ApiError::Expired { next: fresh }) if cursor.next.is_some() => {
                    cursor.next = fresh;
                }
                // The resource is not served any more: nothing of it is left to read, either.
                Err(ApiError::NotFound) => cursor = cursor.after(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Repeats a read that may do better a moment later.
    pub(super) async fn patiently<T, F: Future<Output = Result<T, ApiError>>>(
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
    pub(super) async fn may_change(&self, error: &ApiError, tries: u32) -> bool {
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
