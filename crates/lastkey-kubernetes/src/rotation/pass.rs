//! One pass over all objects: pages are listed, and each object is written back as it was read.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use lastkey_client::native::RotationPhase;

use super::{
    Claim, Event, RENEW_EVERY, RotateError, Stop, Worker,
    flight::{Flight, Written},
    migration::is_gone,
    state::{Cursor, Unlisted},
    steady::Writes,
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
    /// Why there is no page of it: then it is empty, and the next one is of the next resource.
    pub(super) unlisted: Option<Unlisted>,
}

/// What a pass goes through.
#[derive(Clone, Copy)]
pub(super) struct Within<'a> {
    pub(super) resources: &'a [Resource],
    pub(super) namespace: Option<&'a str>,
    /// Those that cannot be listed, by their full names.
    pub(super) without: &'a BTreeSet<String>,
}

impl Worker {
    /// Goes through everything that is left of this pass.
    ///
    /// While a page is written, the one after it is listed; where it is, is saved only for pages all
    /// of which is written. So there are two pages in memory, and no more.
    pub(super) async fn pass(&self, claim: &mut Claim) -> Result<(), Stop> {
        if claim.state.pass_began.is_empty() {
            claim.state.pass_began.clone_from(&claim.rotation.now);
            claim.state.writes = Writes::counted(&self.api, &claim.rotation.plugin_key_id).await;
        }
        claim.total = self.count(claim).await?.iter().sum();
        let (gate, resources) = (self.gate(), claim.state.resources.clone());
        let namespace = claim.rotation.namespace.clone();
        let without = claim.state.unlisted.iter().map(|one| one.resource.clone()).collect();
        let within =
            Within { resources: &resources, namespace: namespace.as_deref(), without: &without };
        let mut flight = Flight::new((self, &gate), within, claim.state.cursor.clone());
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
        self.settle(claim).await
    }

    /// What of a pass that is over could not be listed: what is not served any more is dropped; what
    /// only a wildcard covers is left out; without what was named there is no end.
    async fn settle(&self, claim: &mut Claim) -> Result<(), Stop> {
        let not_found = claim.state.unlisted.iter().filter(|one| one.not_found);
        let not_found: Vec<String> = not_found.map(|one| one.resource.clone()).collect();
        if !not_found.is_empty() {
            let names = self.names(claim);
            let served = self.meanwhile(claim, self.served(&names)).await??;
            let state = &mut claim.state;
            let gone = state.resources.iter().filter(|one| is_gone(one, &names, &served));
            let mut gone: Vec<String> = gone.map(Resource::full_name).collect();
            gone.retain(|name| not_found.contains(name));
            state.drop_those(&gone);
            // It may be served in another version by now.
            if self.merge(claim, &served)? {
                return self.begin_with_more(claim).await;
            }
        }
        let state = &claim.state;
        let named = state.unlisted.iter().filter(|one| state.names.contains(&one.resource));
        let kinds = named.map(|one| format!("{} cannot be listed ({})", one.resource, one.why));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        if kinds.is_empty() {
            return Ok(());
        }
        self.check_provider(claim).await?;
        claim.state.begin_anew();
        Err(RotateError::Unlisted { kinds }.into())
    }

    /// A page is written.
    fn note(&self, claim: &mut Claim, written: Written) {
        let known = &mut claim.state.unlisted;
        let is_new = |one: &Unlisted| known.iter().all(|other| other.resource != one.resource);
        let new = written.unlisted.filter(is_new);
        known.extend(new);
        let before = claim.state.pass.seen() + claim.state.pass.gone;
        claim.total = claim.total.max(before + written.known);
        claim.state.page(written.counts, written.refusals, written.after);
    }

    /// How many objects of each resource there are, as far as the apiserver says. What it cannot list
    /// is noted, and not tried again in this pass.
    pub(super) async fn count(&self, claim: &mut Claim) -> Result<Vec<u64>, Stop> {
        let (mut counts, namespace) = (Vec::new(), claim.rotation.namespace.clone());
        for resource in &claim.state.resources.clone() {
            let name = resource.full_name();
            if !claim.state.unlisted.iter().any(|one| one.resource == name) {
                let namespace = namespace.as_deref();
                let query = ListQuery { namespace, limit: 1, next: None, shape: Shape::Metadata };
                let list = || self.api.list(resource, &query);
                match self.meanwhile(claim, self.patiently(list)).await? {
                    Ok(page) => {
                        counts.push(page.objects.len() as u64 + page.remaining.unwrap_or(0));
                        continue;
                    }
                    Err(error) => {
                        claim.state.unlisted.push(self.unlisted(resource, error).await?);
                    }
                }
            }
            // What makes a list fail is an object; where there is no such kind, there is none.
            let known = claim.state.unlisted.iter().find(|one| one.resource == name);
            counts.push(u64::from(known.is_some_and(|one| !one.not_found)));
        }
        Ok(counts)
    }

    /// Keeps the claim while something is asked for that may take a while.
    pub(super) async fn meanwhile<T>(
        &self,
        claim: &mut Claim,
        asked: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        let mut asked = std::pin::pin!(asked);
        loop {
            let renew = RENEW_EVERY.saturating_sub(claim.saved.elapsed());
            tokio::select! {
                answer = &mut asked => return Ok(answer),
                () = tokio::time::sleep(renew) => {
                    let phase = claim.rotation.phase;
                    self.save(claim, None, false).await?;
                    if claim.rotation.phase != phase {
                        // The key was rotated once more: there is another key id to wait for.
                        return Err(Stop::Again);
                    }
                }
            }
        }
    }

    /// That a kind cannot be listed, if that is because of the kind; else the error, and of which kind
    /// it was.
    async fn unlisted(&self, of: &Resource, error: ApiError) -> Result<Unlisted, RotateError> {
        let resource = of.full_name();
        let is_of_the_kind = match &error {
            ApiError::NotFound => true,
            // Of an apiserver that is not well it says nothing.
            ApiError::Failed { .. }
            | ApiError::Garbage { .. }
            | ApiError::Invalid { .. }
            | ApiError::TooLarge { .. } => self.all_are_ready().await,
            _ => false,
        };
        match is_of_the_kind {
            true => {
                let not_found = error == ApiError::NotFound;
                Ok(Unlisted { resource, why: error.to_string(), not_found })
            }
            false => Err(RotateError::List { resource, error }),
        }
    }

    /// The page that begins there, or the first one behind it that there is.
    pub(super) async fn list(
        &self,
        within: Within<'_>,
        mut cursor: Cursor,
    ) -> Result<Option<Listed>, RotateError> {
        let mut limit = self.options.page.max(1);
        while let Some(of) = within.resources.get(cursor.at) {
            if within.without.contains(&of.full_name()) {
                cursor = cursor.after(None);
                continue;
            }
            let (namespace, next) = (within.namespace, cursor.next.as_deref());
            let query = ListQuery { namespace, limit, next, shape: Shape::Packed };
            let (page, after, unlisted) = match self.patiently(|| self.api.list(of, &query)).await {
                Ok(page) => {
                    let after = cursor.after(page.next.clone());
                    (page, after, None)
                }
                // Objects of a megabyte each.
                Err(ApiError::TooLarge { .. }) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                // What was listed is too old by now. It goes on behind the last object with what
                // is there now: what changed since is under the new key id already.
                Err(ApiError::Expired { next: fresh }) if cursor.next.is_some() => {
                    cursor.next = fresh;
                    continue;
                }
                Err(error) => {
                    let unlisted = self.unlisted(of, error).await?;
                    let (objects, resource_version) = (Vec::new(), String::new());
                    let page = Page { objects, next: None, remaining: None, resource_version };
                    (page, cursor.after(None), Some(unlisted))
                }
            };
            return Ok(Some(Listed { at: cursor.at, page, after, unlisted }));
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
