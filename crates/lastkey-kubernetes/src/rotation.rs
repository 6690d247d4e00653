//! The rotation of a cluster's key, worked off step by step.
//!
//! The server keeps the rotation and how far it has come ([`native::Rotation`]); a [`Worker`] claims
//! it, does the next step and saves it, so that one that is killed loses at most a page:
//!
//! 1. **Converging**: every apiserver's metrics name the new key id as the newest, and its health
//!    check says that its seed is encrypted under it ([`convergence`]).
//! 2. **Rewriting**: every object is listed by pages and written back as it was read, with its uid
//!    and resource version as preconditions ([`pass`]). An apiserver writes to etcd only what it
//!    would store differently now.
//! 3. **Verifying**: etcd is read where it is registered ([`proof`]), or the same is done once more,
//!    until nothing is written any more, or something changes objects at each write and the apiservers'
//!    counts show under which key id ([`steady`]); then step 1 is looked at again.
//! 4. The report is signed and kept by the server, which frees the old versions in the same
//!    transaction.
//!
//! What is written under the old key id after step 1 does not exist: the list of step 2 begins
//! later, so whatever changes meanwhile is under the new one already. Which kinds there are is asked
//! after step 1, too, and once more before anything becomes free.

mod by_cluster;
mod change;
mod clean;
mod convergence;
mod error;
mod flight;
mod gate;
mod loads;
mod migration;
mod new_keys;
mod other;
mod outlast;
mod pass;
mod proof;
mod shown;
mod state;
mod steady;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lastkey_client::{
    Client,
    native::{
        self, FinishRotation, FoundObjects, RotationPhase, RotationProgress, SaveRotation, Way,
    },
};
use lastkey_crypto::KeyVersionId;
use serde_json::{Value, json};

pub(crate) use self::convergence::{hash_of, told_last};
pub use self::{
    by_cluster::delete_migrations,
    change::ConfigEvent,
    convergence::ToldLast,
    error::RotateError,
    migration::{By, Choice, Chosen, choose},
    state::{Counts, Refusal},
};
use self::{gate::Gate, loads::RELOADS_WITHIN, other::Other, state::State, steady::Writes};
use crate::{
    cluster::{ApiError, ApiServer, Discovery, EtcdAccess, MIGRATIONS, Migrate, Migration},
    transition::Hands,
};

/// A claim is renewed at least this often.
const RENEW_EVERY: Duration = Duration::from_secs(8);
/// What is behind is asked this often.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// So often everything is looked at again before it is given up.
const MAX_PASSES: u32 = 10;
/// What is written anew in this pass, too, is changed by something at each write.
const SURELY_CHANGED: u32 = 3;

/// How to work.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names of resources, as an EncryptionConfiguration has them.
    pub resources: Vec<String>,
    /// Whether those are all that may be under the key: otherwise nothing becomes free.
    pub whole: bool,
    /// Whether the configuration was read to know that. Otherwise etcd or the apiservers have to show it.
    pub configured: bool,
    /// So many objects are written back at once.
    pub workers: usize,
    /// At most so many a second; `None` for as many as the apiserver takes.
    pub rate: Option<u32>,
    /// So many objects are in memory at once.
    pub page: u32,
    /// What this worker calls itself.
    pub holder: String,
    /// Who is to write objects anew.
    pub migrate: Migrate,
    /// An option that was given and that only Lastkey's own way knows.
    pub only_own: Option<&'static str>,
    /// So long it is waited for the cluster to take up a migration, and ten times as long for one to
    /// move that is under way.
    pub patience: Duration,
}

/// What happens, for whoever watches.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A step begins.
    Phase(RotationPhase),
    /// Somebody else works on it.
    Claimed {
        /// In the server's words.
        why: String,
    },
    /// These apiservers do not use the key id yet, with the reason as far as it is known.
    Behind(Vec<String>),
    /// How far a pass has come.
    Progress {
        /// Objects that were looked at in this pass.
        done: u64,
        /// As many as there are, as far as the apiserver says.
        total: u64,
        /// Of this and all passes before.
        counts: Counts,
    },
    /// Lastkey's server is away, sealed or overloaded; it is waited for.
    Away {
        /// In a sentence.
        why: String,
    },
    /// The apiservers' configuration is changed.
    Config(ConfigEvent),
    /// Whether the cluster's own StorageVersionMigration is used, and why.
    Migration {
        /// By whom objects are written anew.
        by: By,
        /// In a sentence.
        why: String,
    },
    /// Where the cluster's own migrations are.
    Migrating(Vec<Migration>),
    /// Somebody has paused it.
    Paused,
}

/// Works rotations off.
pub struct Worker {
    /// Lastkey's server.
    pub client: Client,
    /// The cluster.
    pub api: ApiServer,
    /// The store under it, where it may be read: what rests there is the proof.
    pub etcd: Option<EtcdAccess>,
    /// How.
    pub options: Options,
    /// What changes of provider need; `None` for mere rotations.
    pub change: Option<Hands>,
    /// Who watches.
    pub watch: Box<dyn Fn(&Event) + Send + Sync>,
    /// Set by who wants it to stop.
    pub stop: Arc<AtomicBool>,
}

/// One claim on a rotation, and what is known under it.
#[derive(Clone)]
struct Claim {
    rotation: native::Rotation,
    state: State,
    saved: Instant,
    /// Since when this process works on it, beyond what is counted already.
    since: Instant,
    /// How many objects there are, as far as that is known.
    total: u64,
}

impl Claim {
    fn progress(&self) -> RotationProgress {
        let (pass, total) = (&self.state.pass, &self.state.total);
        let done = pass.seen() + pass.gone;
        RotationProgress {
            done,
            total: self.total.max(done),
            rewritten: total.rewritten,
            gone: total.gone,
            conflicts: total.conflicts,
            refused: pass.refused,
        }
    }
}

impl Worker {
    /// Works `rotation` off until it is over. Answers with it as it is stored then.
    ///
    /// # Errors
    /// [`RotateError`]; what was done is saved, and the claim is given back where that is possible.
    pub async fn run(&self, rotation: &native::Rotation) -> Result<native::Rotation, RotateError> {
        let mut claim = match self.claim(rotation).await? {
            Ok(claim) => claim,
            Err(over) => return Ok(over),
        };
        loop {
            match self.work(&mut claim).await {
                Ok(()) => return Ok(claim.rotation),
                Err(Stop::Again) => {}
                Err(Stop::Paused) => {
                    (self.watch)(&Event::Paused);
                    let id = claim.rotation.clone();
                    claim = match self.claim(&id).await? {
                        Ok(claim) => claim,
                        Err(over) => return Ok(over),
                    };
                }
                Err(Stop::Failed(error)) => {
                    if matches!(error, RotateError::Cancelled) && claim.state.by == By::Cluster {
                        self.tidy(&claim).await;
                    }
                    // Whoever goes on need not wait for our lease to run out.
                    self.give_back(&mut claim, &error).await;
                    return Err(error);
                }
            }
        }
    }

    /// Claims it once nobody else works on it and it is not paused. `Err` is one that is over.
    async fn claim(
        &self,
        which: &native::Rotation,
    ) -> Result<Result<Claim, native::Rotation>, RotateError> {
        let mut other = Other::default();
        loop {
            self.go_on()?;
            let known = self.ask(|| self.client.rotations(which.cluster)).await??;
            let known = known.into_iter().find(|known| known.id == which.id);
            let known = known.ok_or(RotateError::Cancelled)?;
            if known.is_over() {
                return Ok(Err(known));
            }
            if !known.paused && other.may_be_gone(known.lease.as_ref()) {
                match self.ask(|| self.client.claim_rotation(which, &self.options.holder)).await? {
                    Ok(rotation) => {
                        let state = State::read(&rotation.state).ok_or(RotateError::State)?;
                        let (saved, since) = (Instant::now(), Instant::now());
                        let total = rotation.progress.map_or(0, |progress| progress.total);
                        return Ok(Ok(Claim { rotation, state, saved, since, total }));
                    }
                    Err(error) if error.code() == Some("Rejected.ClaimedByAnother") => {
                        if other.is_news(known.lease.as_ref()) {
                            (self.watch)(&Event::Claimed { why: error.to_string() });
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// One step after the other.
    async fn work(&self, claim: &mut Claim) -> Result<(), Stop> {
        self.take_up(claim).await?;
        if self.wants_otherwise(claim) {
            let resources = claim.state.resources.clone();
            self.choose_again(claim, resources).await?;
        }
        let (by, why) = (claim.state.by, claim.state.migration.clone());
        if claim.rotation.phase == RotationPhase::Converging || by == By::Cluster {
            (self.watch)(&Event::Migration { by, why });
        }
        let by_cluster = by == By::Cluster;
        loop {
            (self.watch)(&Event::Phase(claim.rotation.phase));
            match claim.rotation.phase {
                RotationPhase::Converging => {
                    self.converge(claim).await?;
                    // What came while it converged may have been written under the old key id.
                    if self.look_again(claim).await? && by != By::Cluster {
                        return self.begin_with_more(claim).await;
                    }
                    claim.state.begin_pass();
                    self.save(claim, Some(RotationPhase::Rewriting), false).await?;
                }
                RotationPhase::Rewriting if by_cluster => self.migrate(claim).await?,
                RotationPhase::Verifying if by_cluster => {
                    if self.is_migrated(claim).await? {
                        return self.finish(claim).await;
                    }
                }
                RotationPhase::Rewriting => {
                    self.pass(claim).await?;
                    self.check_provider(claim).await?;
                    claim.state.begin_pass();
                    self.save(claim, Some(RotationPhase::Verifying), false).await?;
                }
                RotationPhase::Verifying => {
                    if !self.prove(claim).await? {
                        self.pass(claim).await?;
                    }
                    if claim.state.pass.rewritten > 0 && !self.is_shown_by_writes(claim).await {
                        // It was written anew just now; that nothing is left has yet to be seen.
                        if claim.state.passes >= MAX_PASSES {
                            return Err(self.no_end(claim).into());
                        }
                        claim.state.begin_pass();
                        self.save(claim, Some(RotationPhase::Verifying), false).await?;
                    } else if claim.rotation.way() != Some(Way::Disable)
                        && !self.behind(claim, false).await?.is_empty()
                    {
                        // An apiserver fell back, or the key was rotated once more.
                        claim.state.begin_pass();
                        self.save(claim, Some(RotationPhase::Converging), false).await?;
                    } else if claim.rotation.way().is_some() {
                        self.save(claim, Some(RotationPhase::Removing), false).await?;
                    } else {
                        return self.finish(claim).await;
                    }
                }
                RotationPhase::Preparing => self.prepare(claim).await?,
                RotationPhase::Switching => self.switch(claim).await?,
                RotationPhase::Removing => return self.clean(claim).await,
                RotationPhase::Finished => return Ok(()),
                RotationPhase::Cancelled => return Err(RotateError::Cancelled.into()),
            }
        }
    }

    /// Whether what was written anew in one pass after the other is under the key id, as the apiservers
    /// have counted it in the last one. Where a provider goes, nothing less than a pass without a write
    /// will do.
    async fn is_shown_by_writes(&self, claim: &mut Claim) -> bool {
        let (state, rotation) = (&mut claim.state, &claim.rotation);
        if state.passes < SURELY_CHANGED || rotation.course.is_some() {
            return false;
        }
        let now = Writes::counted(&self.api, &rotation.plugin_key_id).await;
        let shown = Writes::show(state.writes.as_ref(), now.as_ref(), state.pass.rewritten);
        state.proof.by_writes = shown;
        shown
    }

    /// That it does not come to an end; whoever goes on makes a pass, whatever is mended by then.
    fn no_end(&self, claim: &mut Claim) -> RotateError {
        claim.state.begin_anew();
        let etcd = self.etcd.is_none() && claim.rotation.way() != Some(Way::Disable);
        RotateError::NoEnd { passes: claim.state.passes, etcd }
    }

    /// The resources that these names stand for, in a fixed order.
    fn resources(
        &self,
        claim: &Claim,
        (names, served): (&[String], &Discovery),
    ) -> Result<Vec<crate::cluster::Resource>, RotateError> {
        let (mut found, rotation, state) = (Vec::new(), &claim.rotation, &claim.state);
        for name in names {
            let mut matching = served.matching(name).filter(|found| found.updatable).peekable();
            // What a configuration names need not be served, as long as anything is; what somebody
            // has chosen does when it is.
            let chosen =
                rotation.course.is_none() && !self.options.whole && !state.names.contains(name);
            if matching.peek().is_none() && chosen {
                if let Some(why) = served.left_out(std::slice::from_ref(name)).pop() {
                    return Err(RotateError::LeftOut(why));
                }
                return Err(RotateError::NoSuchResource(name.clone()));
            }
            for resource in matching {
                let inside = rotation.namespace.is_none() || resource.namespaced;
                if inside && !found.contains(resource) {
                    found.push(resource.clone());
                }
            }
        }
        if found.is_empty() && rotation.course.is_none() && state.names.is_empty() {
            if let Some(why) = served.left_out(names).pop() {
                return Err(RotateError::LeftOut(why));
            }
            return Err(RotateError::NoSuchResource(names.join(", ")));
        }
        Ok(found)
    }

    /// Waits until every apiserver uses the present key id.
    async fn converge(&self, claim: &mut Claim) -> Result<(), Stop> {
        let (began, mut told) = (Instant::now(), Vec::new());
        self.save(claim, None, false).await?;
        loop {
            if claim.saved.elapsed() >= RENEW_EVERY {
                self.save(claim, None, false).await?;
            }
            self.go_on()?;
            let behind = self.behind(claim, began.elapsed() >= RELOADS_WITHIN).await?;
            if behind.is_empty() {
                return Ok(());
            }
            if behind != told {
                (self.watch)(&Event::Behind(behind.clone()));
                told = behind;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// The apiservers that do not use the key id of the rotation, each with a reason; if they are
    /// `late`, with what may have to be done.
    async fn behind(&self, claim: &Claim, late: bool) -> Result<Vec<String>, Stop> {
        if claim.rotation.primary != Some(claim.rotation.target) {
            return Ok(vec!["the key was rotated once more".to_owned()]);
        }
        Ok(self.not_told(claim, late).await)
    }

    /// The same, whatever the key's version is by now.
    async fn not_told(&self, claim: &Claim, late: bool) -> Vec<String> {
        let path = self.change.as_ref().map(|hands| hands.place.path.as_path());
        convergence::behind(&self.api, &claim.rotation.plugin_key_id, (path, late)).await
    }

    /// What was written has to have gone under the key id.
    async fn check_provider(&self, claim: &Claim) -> Result<(), Stop> {
        let objects = claim.state.pass.rewritten;
        if claim.rotation.way() == Some(Way::Disable) {
            return Ok(());
        }
        let written = convergence::has_written(&self.api, &claim.rotation.plugin_key_id).await;
        match objects > 0 && !written {
            true => Err(RotateError::OtherProvider { objects }.into()),
            false => Ok(()),
        }
    }

    /// Saves how far it has come, and hears whether to go on.
    async fn save(
        &self,
        claim: &mut Claim,
        next: Option<RotationPhase>,
        release: bool,
    ) -> Result<(), Stop> {
        claim.state.seconds += claim.since.elapsed().as_secs_f64();
        claim.since = Instant::now();
        let phase = next.unwrap_or(claim.rotation.phase);
        let (fence, state) = (claim.rotation.fence, claim.state.to_json());
        let (progress, problem) = (Some(claim.progress()), None);
        let save = SaveRotation { fence, phase, state, release, progress, problem };
        let saved = self.ask(|| self.client.save_rotation(&claim.rotation, &save)).await?;
        claim.rotation = match saved {
            Ok(saved) => saved,
            Err(error) => return Err(self.or_cancelled(claim, error).await.into()),
        };
        claim.saved = Instant::now();
        if release {
            return Ok(());
        }
        self.go_on()?;
        if claim.rotation.paused {
            let save = SaveRotation { release: true, ..save };
            self.client.save_rotation(&claim.rotation, &save).await.map_err(RotateError::from)?;
            return Err(Stop::Paused);
        }
        let moved = claim.rotation.primary != Some(claim.rotation.target);
        let writes =
            matches!(claim.rotation.phase, RotationPhase::Rewriting | RotationPhase::Verifying);
        if moved && writes && claim.rotation.way() != Some(Way::Disable) {
            claim.state.begin_pass();
            // As deep as this goes: converging takes the present version for its target.
            return Box::pin(self.save(claim, Some(RotationPhase::Converging), false)).await;
        }
        Ok(())
    }

    /// Why a step was not saved: somebody may have given it all up.
    async fn or_cancelled(&self, claim: &Claim, error: lastkey_client::Error) -> RotateError {
        if error.code() != Some("Rejected.StateModifiedFailed") {
            return error.into();
        }
        let known = self.client.rotations(claim.rotation.cluster).await.unwrap_or_default();
        let now = known.iter().find(|one| one.id == claim.rotation.id);
        match now.map(|one| one.phase) {
            Some(RotationPhase::Cancelled) => RotateError::Cancelled,
            _ => error.into(),
        }
    }

    /// Gives the claim back, with why it does not go on for whoever looks.
    async fn give_back(&self, claim: &mut Claim, error: &RotateError) {
        let told = match error {
            RotateError::Interrupted | RotateError::Cancelled => None,
            error => Some(error.to_string()),
        };
        claim.state.seconds += claim.since.elapsed().as_secs_f64();
        let save = SaveRotation {
            fence: claim.rotation.fence,
            phase: claim.rotation.phase,
            state: claim.state.to_json(),
            release: true,
            progress: Some(claim.progress()),
            problem: told,
        };
        if let Err(error) = self.client.save_rotation(&claim.rotation, &save).await {
            tracing::debug!(%error, "the claim runs out by itself");
        }
    }

    fn go_on(&self) -> Result<(), RotateError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(RotateError::Interrupted),
            false => Ok(()),
        }
    }

    /// Asks Lastkey's server, for as long as that takes.
    async fn ask<T, F: Future<Output = Result<T, lastkey_client::Error>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<Result<T, lastkey_client::Error>, RotateError> {
        outlast::outlast(&self.stop, |why| (self.watch)(&Event::Away { why }), call).await
    }

    fn gate(&self) -> Gate {
        Gate::new(self.options.rate, self.options.workers)
    }

    /// Reports, and with it frees the old versions.
    async fn finish(&self, claim: &mut Claim) -> Result<(), Stop> {
        if claim.rotation.namespace.is_none() && !Self::is_seen(claim) {
            self.is_nothing_new(claim).await?;
            claim.state.not_known = self.why_not_known(claim).await;
        }
        let content = self.report(claim);
        let versions = self.versions(claim).await?;
        let began = claim.state.pass_began.clone();
        let found = match claim.rotation.namespace {
            None if Self::frees(claim) => Some(FoundObjects { began, versions }),
            _ => None,
        };
        let finish = FinishRotation { fence: claim.rotation.fence, content, found };
        match self.ask(|| self.client.finish_rotation(&claim.rotation, &finish)).await? {
            Ok(finished) => {
                claim.rotation = finished;
                Ok(())
            }
            Err(error) if error.code() == Some("Rejected.StaleKeyVersion") => {
                claim.state.begin_pass();
                self.save(claim, Some(RotationPhase::Converging), false).await?;
                Err(Stop::Again)
            }
            Err(error) => Err(RotateError::from(error).into()),
        }
    }

    /// Whether all of etcd was read, which shows whatever there is.
    fn is_seen(claim: &Claim) -> bool {
        let proof = &claim.state.proof;
        !proof.partly && (claim.state.by == By::Cluster || proof.by_etcd)
    }

    /// Whether what was gone through is all that may be under the key, so that versions become free.
    /// What a name stands for that is served by nobody just now is seen in etcd alone.
    fn frees(claim: &Claim) -> bool {
        let state = &claim.state;
        let all = state.not_known.is_none()
            && state.all_left_out().is_empty()
            && Self::unserved(claim).is_empty();
        state.whole && !state.proof.unread && (Self::is_seen(claim) || all)
    }

    /// Why it is not known whether that is all: what was registered may be less than what is encrypted
    /// by now. Where the configuration was not read, and etcd is not the proof, the apiservers may
    /// tell.
    async fn why_not_known(&self, claim: &Claim) -> Option<String> {
        let state = &claim.state;
        if !state.whole || state.configured || Self::is_seen(claim) {
            return None;
        }
        let kinds = state.resources.iter().map(|one| one.full_name()).collect();
        let why = convergence::why_there_may_be_more(&self.api, &kinds).await?;
        Some(format!(
            "the cluster's EncryptionConfiguration could not be read where this ran, etcd is not the \
             proof, and {why}: whether more than {} is encrypted is not known, so nothing has become \
             free. Run `lastkey cluster rotate NAME --keep-version` on a machine that has the file \
             (`cluster add --encryption-config`), or register etcd (`cluster add --etcd`)",
            state.names.join(", ")
        ))
    }

    /// The names that stand for one resource and that nothing is gone through for, without any other
    /// reason.
    fn unserved(claim: &Claim) -> Vec<&str> {
        let state = &claim.state;
        if claim.rotation.namespace.is_some() {
            // What is in no namespace is not gone through.
            return Vec::new();
        }
        let left_out = state.all_left_out();
        let is_known = |name: &str| {
            name.contains('*')
                || state.resources.iter().any(|one| one.full_name() == name)
                || left_out.iter().any(|why| why.contains(name))
        };
        state.names.iter().map(String::as_str).filter(|name| !is_known(name)).collect()
    }

    /// How many objects are under each version. What refused to be written may be under any of the
    /// older ones: none of them becomes free.
    async fn versions(&self, claim: &Claim) -> Result<BTreeMap<KeyVersionId, u64>, RotateError> {
        let (target, pass) = (claim.rotation.target, &claim.state.pass);
        let mut versions = BTreeMap::from([(target, pass.current + pass.rewritten)]);
        if pass.refused > 0 {
            let key = claim.rotation.key;
            let impact = self.ask(|| self.client.key_impact(key, None)).await??;
            let all = impact["versions"].as_array().cloned().unwrap_or_default();
            let ids = all.iter().filter_map(|known| known["key_version_id"].as_str()?.parse().ok());
            versions.extend(ids.filter(|id| *id != target).map(|id| (id, pass.refused)));
        }
        if !claim.state.proof.older.is_empty() {
            // The apiservers see nothing to write, but etcd has it: it is needed.
            let own = self.versions_of(claim.rotation.key).await?;
            for (id, objects) in claim.state.proof.older.iter().filter(|(id, _)| own.contains(id)) {
                let known = versions.entry(*id).or_default();
                *known = (*known).max(*objects);
            }
        }
        Ok(versions)
    }

    fn report(&self, claim: &Claim) -> Value {
        let (rotation, state) = (&claim.rotation, &claim.state);
        let seconds = state.seconds + claim.since.elapsed().as_secs_f64();
        json!({
            "cluster": rotation.cluster,
            "key_id": rotation.key,
            "key_version": rotation.target,
            "plugin_key_id": rotation.plugin_key_id,
            "namespace": rotation.namespace,
            "whole": Self::frees(claim) && rotation.namespace.is_none(),
            "chosen": !state.whole || rotation.namespace.is_some(),
            "unserved": Self::unserved(claim),
            "left_out": state.all_left_out(),
            "not_known": state.not_known,
            "resources": state.resources.iter().map(|r| r.full_name()).collect::<Vec<_>>(),
            "apiservers": self.api.urls().map(ToString::to_string).collect::<Vec<_>>(),
            "started": rotation.started,
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "passes": state.passes,
            "objects": state.pass.seen(),
            "rewritten": state.total.rewritten,
            "gone": state.total.gone,
            "conflicts": state.total.conflicts,
            "refused": state.pass.refused,
            "refusals": state.refusals,
            "migration": { "used": state.by == By::Cluster, "why": state.migration },
            "verified": state.proof.shown(state.by),
            "proof": state.proof.words(state.by),
        })
    }
}

/// What a rotation of these has to know of what a cluster serves.
///
/// # Errors
/// When an apiserver cannot be asked, or a group does not answer that one of the names is of.
pub async fn discover(api: &ApiServer, names: &[String]) -> Result<Discovery, ApiError> {
    migration::patiently(|| discover_once(api, names)).await
}

async fn discover_once(api: &ApiServer, names: &[String]) -> Result<Discovery, ApiError> {
    let names: Vec<&str> = names.iter().map(String::as_str).chain([MIGRATIONS]).collect();
    api.discover_named(&names).await
}

/// For the fuzz target: reads an apiserver's metrics.
#[doc(hidden)]
pub fn parse_metrics(text: &str) {
    convergence::parse(text);
}

/// Why a step ends early.
enum Stop {
    /// The key was rotated once more: it begins again with another key id.
    Again,
    /// It was paused, and the claim given back.
    Paused,
    /// It failed.
    Failed(RotateError),
}

impl<E: Into<RotateError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(test)]
mod tests;
