//! Has the cluster itself write its objects anew, and sees in etcd that none is left.
//!
//! It follows the same steps as Lastkey's own way. In place of the passes:
//!
//! 1. etcd is counted: what is under another version than the new one.
//! 2. One StorageVersionMigration for each resource is made, named after rotation, pass and resource,
//!    so that whoever goes on with a rotation finds those that are under way. It is not made before
//!    every apiserver uses the new key id: what such a migration writes through one that lags would
//!    be under the old one.
//! 3. Its conditions are followed until each has succeeded. One that fails ends the command with what
//!    its condition says and how many objects are left; the next attempt makes it anew.
//! 4. etcd is counted once more: only if nothing is under an older version, that one becomes free.
//! 5. The migrations are deleted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lastkey_client::native::RotationPhase;
use lastkey_crypto::{ClusterId, KeyVersionId};

use super::{ASK_EVERY, Claim, Event, RENEW_EVERY, RotateError, Stop, Worker};
use crate::{
    cluster::{ApiError, ApiServer, Etcd, EtcdError, Migration, MigrationState, Resource},
    coverage::{self, Coverage},
};

/// So often what is left is migrated once more.
const MAX_ROUNDS: u32 = 3;
/// A look at all of etcd takes at most this part of the time.
const LOOKS: u32 = 10;
/// Nor is it looked more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Without any change for so many times the patience it is given up for now: it can take
/// kube-controller-manager some minutes to have a list of objects that nobody changes.
const STUCK_AFTER: u32 = 10;
/// etcd is asked this often before it counts as away.
const ASK_ETCD: u32 = 5;
/// What the apiservers have counted is about now after this.
const COUNTED_WITHIN: Duration = Duration::from_secs(90);
/// What kube-controller-manager never migrates; they end by themselves.
const EVENTS: [&str; 2] = ["events", "events.events.k8s.io"];
/// The longest name of an object.
const MAX_NAME: usize = 253;

/// What rests where.
#[derive(Debug, Default)]
struct Tally {
    objects: u64,
    /// Under the version that everything shall be under.
    new: u64,
    /// Under another version of the same key, or it cannot be told, by resource.
    older: BTreeMap<String, u64>,
    /// Under versions of our keys outside of what is migrated.
    elsewhere: BTreeMap<KeyVersionId, u64>,
    /// Whether what lies outside of it may not be read.
    partly: bool,
}

impl Tally {
    fn left(&self) -> u64 {
        self.older.values().sum()
    }

    fn shown(&self) -> String {
        let parts = self.older.iter().map(|(resource, count)| format!("{count} of {resource}"));
        parts.collect::<Vec<_>>().join(", ")
    }
}

impl Worker {
    /// Has everything migrated that is not under the new version.
    pub(super) async fn migrate(&self, claim: &mut Claim) -> Result<(), Stop> {
        let tally = self.tally(claim).await?;
        self.is_their_etcd(claim).await?;
        claim.state.stale.get_or_insert(tally.objects.saturating_sub(tally.new));
        self.tell(claim, &tally);
        if tally.new < tally.objects {
            self.make(claim).await?;
            self.follow(claim).await?;
        }
        claim.state.begin_pass();
        self.save(claim, Some(RotationPhase::Verifying), false).await
    }

    /// Whether nothing is left; otherwise what is left begins again.
    pub(super) async fn is_migrated(&self, claim: &mut Claim) -> Result<bool, Stop> {
        // What is counted is of later than this.
        self.renew(claim).await?;
        let began = claim.rotation.now.clone();
        let tally = self.tally(claim).await?;
        self.tell(claim, &tally);
        if tally.left() > 0 {
            if claim.state.rounds >= MAX_ROUNDS {
                let (rounds, left) = (claim.state.rounds, tally.shown());
                claim.state.rounds = 0;
                return Err(RotateError::Left { rounds, left }.into());
            }
            claim.state.rounds += 1;
            claim.state.begin_pass();
            self.save(claim, Some(RotationPhase::Rewriting), false).await?;
            return Ok(false);
        }
        self.is_their_etcd(claim).await?;
        if tally.new == 0 && tally.objects > 0 {
            return Err(RotateError::OtherProvider { objects: tally.objects }.into());
        }
        if !self.behind(claim, false).await?.is_empty() {
            // An apiserver fell back, or the key was rotated once more.
            claim.state.begin_pass();
            self.save(claim, Some(RotationPhase::Converging), false).await?;
            return Ok(false);
        }
        claim.state.pass_began = began;
        claim.state.pass.current = tally.new;
        claim.state.proof.older = tally.elsewhere;
        claim.state.proof.partly = tally.partly;
        self.tidy(claim).await;
        Ok(true)
    }

    /// Deletes all migrations of this cluster that Lastkey has made. What cannot be deleted now is
    /// by the next rotation.
    pub(super) async fn tidy(&self, claim: &Claim) {
        if let Err(error) = delete_migrations(&self.api, claim.rotation.cluster).await {
            tracing::warn!(%error, "StorageVersionMigrations of a rotation are left");
        }
    }

    /// Makes the migrations that are not there; deletes those of other passes, and those that have
    /// failed.
    async fn make(&self, claim: &mut Claim) -> Result<(), Stop> {
        // Nobody makes any for a rotation that was given up.
        self.renew(claim).await?;
        let wanted = names(claim);
        let cluster = claim.rotation.cluster.to_string();
        let known = self.patiently(|| self.api.migrations()).await.map_err(told)?;
        let own = known.iter().filter(|one| one.cluster.as_deref() == Some(&cluster));
        let (keep, drop): (Vec<_>, Vec<_>) = own
            .partition(|one| wanted.contains_key(&one.name) && one.state != MigrationState::Failed);
        for migration in drop {
            self.patiently(|| self.api.delete_migration(&migration.name)).await.map_err(told)?;
        }
        for (name, resource) in wanted {
            if !keep.iter().any(|one| one.name == name) {
                let make = || self.api.migrate(&name, (&resource, &cluster));
                self.patiently(make).await.map_err(told)?;
            }
        }
        Ok(())
    }

    /// Waits until all of them are over.
    async fn follow(&self, claim: &mut Claim) -> Result<(), Stop> {
        let (mut shown, mut moved, began) = (Vec::new(), Instant::now(), Instant::now());
        let (mut look_at, mut left) = (Instant::now() + LOOK_EVERY, u64::MAX);
        loop {
            if claim.saved.elapsed() >= RENEW_EVERY {
                self.renew(claim).await?;
            }
            self.go_on()?;
            let known = self.patiently(|| self.api.migrations()).await.map_err(told)?;
            let wanted = names(claim);
            let own = known.iter().filter(|one| wanted.contains_key(&one.name));
            let own: Vec<Migration> = own.map(|one| with_queue(one, &known)).collect();
            if own.len() < wanted.len() {
                // Somebody has deleted them, perhaps to give it all up.
                self.make(claim).await?;
                continue;
            }
            if own != shown {
                (self.watch)(&Event::Migrating(own.clone()));
                (shown, moved) = (own.clone(), Instant::now());
            }
            let over = |one: &Migration| {
                matches!(one.state, MigrationState::Succeeded | MigrationState::Failed)
            };
            if own.iter().all(over) {
                return self.outcome(claim, &own).await;
            }
            self.is_carried_out((&own, &known), began)?;
            if look_at <= Instant::now() {
                let start = Instant::now();
                let tally = self.tally(claim).await?;
                self.tell(claim, &tally);
                look_at = Instant::now() + LOOK_EVERY.max(start.elapsed() * LOOKS);
                if std::mem::replace(&mut left, tally.left()) != tally.left() {
                    moved = Instant::now();
                }
            }
            if moved.elapsed() > self.options.patience.saturating_mul(STUCK_AFTER) {
                let (names, seconds) = (unfinished(&own), moved.elapsed().as_secs());
                return Err(RotateError::Stuck { names, seconds }.into());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// All are over; each should have succeeded.
    async fn outcome(&self, claim: &mut Claim, own: &[Migration]) -> Result<(), Stop> {
        let failed = own.iter().filter(|one| one.state == MigrationState::Failed);
        let failed = failed.map(|one| match one.said.is_empty() {
            true => format!(
                "{} (`kubectl get storageversionmigration {} -o yaml` shows why)",
                one.resource, one.name
            ),
            false => format!("{}: {}", one.resource, one.said),
        });
        let failed: Vec<String> = failed.collect();
        if failed.is_empty() {
            return Ok(());
        }
        let tally = self.tally(claim).await?;
        self.tell(claim, &tally);
        Err(RotateError::Failed { failed: failed.join("; "), left: tally.left() }.into())
    }

    /// Whether somebody carries them out, as far as can be told by now.
    fn is_carried_out(
        &self,
        (own, known): (&[Migration], &[Migration]),
        began: Instant,
    ) -> Result<(), RotateError> {
        if began.elapsed() < self.options.patience {
            return Ok(());
        }
        let waiting = own.iter().filter(|one| one.state == MigrationState::Waiting);
        let waiting: Vec<_> = waiting.filter(|one| ahead_of(one, known).is_none()).collect();
        match waiting.is_empty() {
            true => Ok(()),
            false => Err(RotateError::NotCarriedOut {
                names: waiting.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", "),
                seconds: self.options.patience.as_secs(),
            }),
        }
    }

    /// Renews the claim, and begins again where the key was rotated once more.
    async fn renew(&self, claim: &mut Claim) -> Result<(), Stop> {
        let phase = claim.rotation.phase;
        self.save(claim, None, false).await?;
        match claim.rotation.phase == phase {
            true => Ok(()),
            false => Err(Stop::Again),
        }
    }

    /// Counts what rests where, and renews the claim meanwhile.
    async fn tally(&self, claim: &mut Claim) -> Result<Tally, Stop> {
        let own = self.versions_of(claim.rotation.key).await?;
        let (resources, target) = (claim.state.resources.clone(), claim.rotation.target);
        let mut count = std::pin::pin!(self.count_in_etcd(&resources));
        let counted = loop {
            let renew = RENEW_EVERY.saturating_sub(claim.saved.elapsed());
            tokio::select! {
                counted = &mut count => break counted?,
                () = tokio::time::sleep(renew) => self.renew(claim).await?,
            }
        };
        let mut tally = Tally { partly: counted.partly, ..Tally::default() };
        for share in counted.resources.iter().skip(resources.len()).flat_map(|one| &one.under) {
            if let Some(version) = share.under.key_version.filter(|version| *version != target) {
                *tally.elsewhere.entry(version).or_default() += share.objects.unwrap_or(1);
            }
        }
        for resource in counted.resources.iter().take(resources.len()) {
            for share in &resource.under {
                let objects = share.objects.unwrap_or(0);
                tally.objects += objects;
                match share.under.key_version {
                    Some(version) if version == target => tally.new += objects,
                    Some(version) if own.contains(&version) => {
                        *tally.older.entry(resource.resource.clone()).or_default() += objects;
                    }
                    None if share.under.cannot_be_told() => {
                        *tally.older.entry(resource.resource.clone()).or_default() += objects;
                    }
                    _ => {}
                }
            }
        }
        Ok(tally)
    }

    /// Whether it is the etcd of these apiservers: one without anything would prove everything. An
    /// apiserver counts its objects once a minute, so for that long it is asked again.
    async fn is_their_etcd(&self, claim: &mut Claim) -> Result<(), Stop> {
        let Some(access) = &self.etcd else { return Ok(()) };
        let until = Instant::now() + COUNTED_WITHIN;
        loop {
            let mut etcd = Etcd::new(access).map_err(|error| RotateError::Etcd(error.into()))?;
            let of = (access.prefix.as_str(), &claim.state.resources[..]);
            let other = coverage::not_theirs(&self.api, &mut etcd, of).await;
            match other.map_err(RotateError::Etcd)? {
                None => return Ok(()),
                Some(why) if until <= Instant::now() => {
                    return Err(RotateError::OtherEtcd { why }.into());
                }
                Some(_) => {}
            }
            if claim.saved.elapsed() >= RENEW_EVERY {
                self.renew(claim).await?;
            }
            self.go_on()?;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn count_in_etcd(&self, resources: &[Resource]) -> Result<Coverage, RotateError> {
        let missing = || RotateError::NotByCluster { why: "its etcd is not registered".to_owned() };
        let access = self.etcd.as_ref().ok_or_else(missing)?;
        let mut etcd = Etcd::new(access).map_err(|error| RotateError::Etcd(error.into()))?;
        let mut tries = 0;
        loop {
            match coverage::exact(&mut etcd, &access.prefix, (resources, Vec::new())).await {
                Err(EtcdError::Unreachable { .. }) if tries < ASK_ETCD => tries += 1,
                answer => return answer.map_err(RotateError::Etcd),
            }
            self.go_on()?;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// How far it has come, by what rests in etcd.
    fn tell(&self, claim: &mut Claim, tally: &Tally) {
        let state = &mut claim.state;
        let stale = tally.objects.saturating_sub(tally.new);
        state.pass.current = tally.new;
        state.total.rewritten = state.stale.unwrap_or(stale).saturating_sub(stale);
        claim.total = tally.objects;
        let counts = state.total;
        (self.watch)(&Event::Progress { done: tally.new, total: tally.objects, counts });
    }
}

/// Deletes all migrations that Lastkey has made for this cluster of its, whatever their state. What
/// kube-controller-manager has begun it goes on with to the end of its list.
///
/// # Errors
/// When they cannot be listed, or one of them not be deleted.
pub async fn delete_migrations(api: &ApiServer, cluster: ClusterId) -> Result<(), ApiError> {
    let cluster = cluster.to_string();
    for one in api.migrations().await? {
        if one.cluster.as_deref() == Some(cluster.as_str()) {
            api.delete_migration(&one.name).await?;
        }
    }
    Ok(())
}

/// The migrations of this pass: what each is called, and of what it is.
fn names(claim: &Claim) -> BTreeMap<String, Resource> {
    let resources = claim.state.resources.iter();
    let resources = resources.filter(|one| !EVENTS.contains(&one.full_name().as_str()));
    let named = |one: &Resource| {
        let (id, pass) = (claim.rotation.id.to_lowercase(), claim.state.passes);
        let mut name = format!("lastkey-{id}-{pass}-{}", one.full_name());
        name.truncate(MAX_NAME);
        (name.trim_end_matches(['.', '-']).to_owned(), one.clone())
    };
    resources.map(named).collect()
}

/// Another migration of the same resource that is under way: kube-controller-manager works one off
/// after the other.
fn ahead_of<'a>(one: &Migration, known: &'a [Migration]) -> Option<&'a Migration> {
    known.iter().find(|other| {
        other.state == MigrationState::Running
            && other.resource == one.resource
            && other.name != one.name
    })
}

/// One that waits says for which other one, and where that is.
fn with_queue(one: &Migration, known: &[Migration]) -> Migration {
    let mut one = one.clone();
    if one.state == MigrationState::Waiting
        && let Some(ahead) = ahead_of(&one, known)
    {
        let more = if ahead.said.is_empty() { "" } else { ": " };
        one.said = format!("behind {}{more}{}", ahead.name, ahead.said);
    }
    one
}

fn unfinished(own: &[Migration]) -> String {
    let is_over =
        |one: &&Migration| matches!(one.state, MigrationState::Succeeded | MigrationState::Failed);
    let left = own.iter().filter(|one| !is_over(one));
    let left = left.map(|one| match one.said.is_empty() {
        true => one.name.clone(),
        false => format!("{} ({})", one.name, one.said),
    });
    left.collect::<Vec<_>>().join(", ")
}

/// A right that is missing is told as one.
fn told(error: ApiError) -> RotateError {
    match error {
        ApiError::Forbidden { what } => RotateError::NotByCluster {
            why: format!(
                "the registered account may not {what}: `lastkey cluster add NAME --kubeconfig FILE \
                 --migration cluster --etcd URL` gives it that right"
            ),
        },
        error => error.into(),
    }
}
