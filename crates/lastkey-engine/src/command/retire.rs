//! The end of a key version: retired, taken back, destroyed.
//!
//! 1. A version is retired only while nothing is known to need it, or by an override. It decrypts no
//!    more from then on.
//! 2. Within its window that can be taken back.
//! 3. Its material is destroyed after the window, and only while nothing is known to need it *then*,
//!    override or not: what was encrypted under it opens for ever unless nothing was left of it.
//!    As with keys, the clock has to have been calm for a day.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lastkey_crypto::{KeyId, KeyVersionId};

use super::{Command, Done, Scope, guard::Override, second_person};
use crate::{
    Caller, Error, Timestamp,
    action::Action,
    audit::Record,
    barrier::Stored,
    cluster::Cluster,
    dependants::{Dependant, Label},
    engine::Core,
    key::{Key, KeyRef, KeyState},
    policy::Resource,
    records::{Change, Version},
    retirement::{Retirement, VersionEvent, VersionState},
    second_person::Proposed,
};

/// The fewest days that a retirement can be taken back.
const MIN_WINDOW_DAYS: u16 = 7;
/// The most days.
const MAX_WINDOW_DAYS: u16 = 366;
/// The kind of those who encrypted by themselves.
const CALLERS: &str = "callers";
/// Versions that are retired or destroyed in one transaction.
const STEP: usize = 20;

/// What came of a retirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retiring {
    /// Where the version is now.
    pub state: VersionState,
    /// When its material is destroyed, once it is retired.
    pub destroy_at: Option<Timestamp>,
    /// What it waits for, while it is scheduled.
    pub waits_for: Vec<Dependant>,
}

/// Retires a version: it decrypts no more.
#[derive(Clone, Debug)]
pub struct RetireKeyVersion {
    /// Which key.
    pub key: KeyRef,
    /// Which version of it.
    pub version: KeyVersionId,
    /// For how long that can be taken back: 7–366 days.
    pub window_days: u16,
    /// Wait until nothing needs it, instead of refusing.
    pub when_free: bool,
    /// Although something needs it.
    pub overriding: Option<Override>,
}

impl Command for RetireKeyVersion {
    const ACTION: Action = Action::RetireKeyVersion;
    type Output = Retiring;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        if !(MIN_WINDOW_DAYS..=MAX_WINDOW_DAYS).contains(&self.window_days) {
            return Err(Error::invalid("window_days", "give 7 to 366 days"));
        }
        if self.when_free && self.overriding.is_some() {
            return Err(Error::invalid("override", "nothing is overridden while one waits"));
        }
        self.overriding.as_ref().map_or(Ok(()), Override::check)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Retiring>, Error> {
        let old = core.records.key(core.require(&self.key)?).await?;
        let key = &old.value;
        scope.used(key.id, Some(self.version));
        check(key, self.version)?;
        if let Some(known) = key.retirements.get(&self.version)
            && known.state == VersionState::Retired
        {
            return Ok(Done::read(Retiring::of(known, Vec::new())));
        }
        let version = core.records.version(self.version).await?;
        // Nobody begins to encrypt under it while it is looked who has.
        version.uses.shut(true);
        let decided = self.decide(core, scope, (&old, &version)).await;
        let retires = matches!(&decided, Ok(Done { output: Ok(done), .. })
            if done.state == VersionState::Retired);
        version.uses.shut(retires);
        decided
    }
}

impl RetireKeyVersion {
    async fn decide(
        &self,
        core: &Core,
        scope: &mut Scope<'_>,
        (old, version): (&Stored<Key>, &Version),
    ) -> Result<Done<Retiring>, Error> {
        let key = &old.value;
        let known = core.records.stored_dependants(key.id).await?;
        let needing = needing(core, key.id, version, &known);
        let by = scope.caller.principal.to_string();
        let new = |event| enter(core, (key, version.id), (event, &by, self.window_days));
        if let Some(overriding) = &self.overriding {
            overriding.names(core, key)?;
            scope.record.field("override", &overriding.reason);
            scope.record.number("dependants", needing.len() as u64);
            if !needing.is_empty() && second_person::is_needed(core).await? {
                let (key, version, window_days) = (key.id, version.id, self.window_days);
                let proposed = Proposed::RetireKeyVersion { key, version, window_days };
                return second_person::ask(core, scope, (proposed, &overriding.reason)).await;
            }
        } else if !needing.is_empty() {
            scope.record.number("dependants", needing.len() as u64);
            // Who encrypted by themselves are never known to need it no longer.
            let ends = needing.iter().all(|one| one.kind.as_str() != CALLERS);
            if !(self.when_free && ends) {
                return Err(Error::Depended(needing));
            }
            let new = new(VersionEvent::Schedule)?;
            let answer = Retiring::of(&new.retirements[&version.id], needing);
            return Ok(Done::write(answer, Change::new().update_key(old, new)));
        }
        let new = new(VersionEvent::Retire)?;
        let answer = Retiring::of(&new.retirements[&version.id], Vec::new());
        Ok(Done::write(answer, Change::new().update_key(old, new)))
    }
}

impl Retiring {
    fn of(known: &Retirement, waits_for: Vec<Dependant>) -> Self {
        Self { state: known.state, destroy_at: known.destroy_at, waits_for }
    }
}

/// What can be said without looking who needs it.
fn check(key: &Key, version: KeyVersionId) -> Result<(), Error> {
    if !key.versions.contains(&version) {
        return Err(Error::KeyVersionNotFound);
    }
    if key.primary.version == version {
        return Err(Error::PrimaryVersion);
    }
    match key.state {
        KeyState::PendingDeletion => Err(Error::KeyPendingDeletion),
        KeyState::Enabled | KeyState::Disabled => Ok(()),
    }
}

/// The key with that version one step further.
fn enter(
    core: &Core,
    (key, version): (&Key, KeyVersionId),
    (event, by, window_days): (VersionEvent, &str, u16),
) -> Result<Key, Error> {
    let mut new = key.clone();
    let now = core.clock.now();
    match key.version_state(version).apply(event)? {
        None | Some(VersionState::Active) => drop(new.retirements.remove(&version)),
        Some(state) => {
            let window = Duration::from_secs(u64::from(window_days) * 86_400);
            let destroy_at = (state == VersionState::Retired).then(|| now.after(window));
            let by = by.to_owned();
            let entry = Retirement { state, since: now, by, window_days, destroy_at };
            new.retirements.insert(version, entry);
        }
    }
    Ok(new)
}

/// Retires a version whoever needs it, because two have said so.
pub(super) async fn retire_now(
    core: &Core,
    scope: &mut Scope<'_>,
    (old, id): (&Stored<Key>, KeyVersionId),
    window_days: u16,
) -> Result<Change, Error> {
    check(&old.value, id)?;
    let version = core.records.version(id).await?;
    version.uses.shut(true);
    let known = core.records.stored_dependants(old.value.id).await?;
    let needing = needing(core, old.value.id, &version, &known);
    scope.record.number("dependants", needing.len() as u64);
    let by = scope.caller.principal.to_string();
    let new = enter(core, (&old.value, id), (VersionEvent::Retire, &by, window_days))?;
    Ok(Change::new().update_key(old, new))
}

/// Schedules the retirement of every version but `keep`, together with a change of `new`. Answers
/// which are, and which are not because callers have encrypted under them by themselves.
pub(super) async fn schedule_others(
    core: &Core,
    new: &mut Key,
    (keep, by, window_days): (KeyVersionId, &str, u16),
) -> Result<(Vec<KeyVersionId>, Vec<KeyVersionId>), Error> {
    let (mut scheduled, mut kept) = (Vec::new(), Vec::new());
    for id in new.versions.clone() {
        let primary = id == keep || id == new.primary.version;
        if primary || new.version_state(id) != VersionState::Active {
            continue;
        }
        if core.records.version(id).await?.uses.is_direct() {
            kept.push(id);
            continue;
        }
        *new = enter(core, (new, id), (VersionEvent::Schedule, by, window_days))?;
        scheduled.push(id);
    }
    Ok((scheduled, kept))
}

/// What needs a version now, as far as anybody knows:
///
/// 1. what is written down (`known`), and what nobody has looked at yet;
/// 2. the clusters of which nobody knows what they have used, if the version was ever used;
/// 3. callers who encrypted by themselves: files, SDKs.
///
/// Of a key that is taken away, or comes to its end, `known` has to be read from the store after
/// the key's record.
pub(super) fn needing(
    core: &Core,
    key: KeyId,
    version: &Version,
    known: &[Arc<Stored<Dependant>>],
) -> Vec<Dependant> {
    let now = core.clock.now();
    let needs = known.iter().filter(|stored| stored.value.needs(version.id, now));
    let mut needing: Vec<Dependant> = needs.map(|stored| stored.value.clone()).collect();
    if version.uses.used() > 0 {
        needing.extend(unlooked(core, key, known));
    }
    needing.extend(callers(version));
    needing
}

/// What needs a key now, by the same rules but for callers: of what those have encrypted by
/// themselves nobody would ever know that it is gone.
pub(super) async fn needing_key(
    core: &Core,
    key: &Key,
    known: &[Arc<Stored<Dependant>>],
) -> Result<Vec<Dependant>, Error> {
    let now = core.clock.now();
    let live = known.iter().filter(|stored| stored.value.is_live(now));
    let mut needing: Vec<Dependant> = live.map(|stored| stored.value.clone()).collect();
    let unlooked = unlooked(core, key.id, known);
    if !unlooked.is_empty() && is_used(core, key).await? {
        needing.extend(unlooked);
    }
    Ok(needing)
}

/// The clusters that were given the key by a release before their uses were written down, and that
/// nobody has looked at.
pub(super) fn unlooked(
    core: &Core,
    key: KeyId,
    known: &[Arc<Stored<Dependant>>],
) -> Vec<Dependant> {
    let clusters = core.records.clusters();
    let unlooked = clusters.iter().filter(|stored| is_unlooked(&stored.value, key, known));
    unlooked.filter_map(|stored| Dependant::unseen(&stored.value)).collect()
}

fn is_unlooked(cluster: &Cluster, key: KeyId, known: &[Arc<Stored<Dependant>>]) -> bool {
    let is_known = || known.iter().any(|one| one.value.cluster() == Some(cluster.id));
    !cluster.uses_noted && cluster.keys.contains(&key) && !is_known()
}

/// Whether any version of a key has ever encrypted.
pub(super) async fn is_used(core: &Core, key: &Key) -> Result<bool, Error> {
    for version in key.versions.iter().rev() {
        if core.records.version(*version).await?.uses.used() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who encrypted under a version by themselves, if anybody did.
fn callers(version: &Version) -> Option<Dependant> {
    if !version.uses.is_direct() {
        return None;
    }
    Some(Dependant {
        kind: Label::parse(CALLERS).ok()?,
        id: Label::parse("direct").ok()?,
        name: "who encrypted by themselves: files, SDKs".to_owned(),
        versions: BTreeMap::new(),
        until: None,
        seen_at: None,
        used: BTreeMap::new(),
    })
}

/// Takes a retirement back: the version decrypts again.
#[derive(Clone, Debug)]
pub struct ReinstateKeyVersion {
    /// Which key.
    pub key: KeyRef,
    /// Which version of it.
    pub version: KeyVersionId,
}

impl Command for ReinstateKeyVersion {
    const ACTION: Action = Action::ReinstateKeyVersion;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old = core.records.key(core.require(&self.key)?).await?;
        let key = &old.value;
        scope.used(key.id, Some(self.version));
        if !key.versions.contains(&self.version) {
            return Err(Error::KeyVersionNotFound);
        }
        if key.version_state(self.version) == VersionState::Active {
            return Ok(Done::read(()));
        }
        core.records.version(self.version).await?.uses.shut(false);
        let event = (VersionEvent::Reinstate, "", 0);
        let new = enter(core, (key, self.version), event)?;
        Ok(Done::write((), Change::new().update_key(&old, new)))
    }
}

/// Retires what waited for it, and destroys what was retired for long enough: what is ready, and
/// of that at most [`STEP`] versions.
struct AdvanceRetirement {
    key: KeyId,
    ready: Vec<KeyVersionId>,
}

impl Command for AdvanceRetirement {
    const ACTION: Action = Action::AdvanceRetirement;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&KeyRef::Id(self.key), record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old = core.records.key(self.key).await?;
        scope.used(self.key, None);
        let known_needs = core.records.stored_dependants(self.key).await?;
        let (mut new, mut change) = (old.value.clone(), Change::new());
        let (mut retired, mut destroyed) = (Vec::new(), Vec::new());
        for id in &self.ready {
            let Some(known) = new.retirements.get(id).cloned() else { continue };
            let version = core.records.version(*id).await?;
            version.uses.shut(true);
            if !needing(core, self.key, &version, &known_needs).is_empty() {
                version.uses.shut(known.state == VersionState::Retired);
                continue;
            }
            if known.state == VersionState::Scheduled {
                let event = (VersionEvent::Retire, &*known.by, known.window_days);
                new = enter(core, (&new, *id), event)?;
                retired.push(id.to_string());
            } else if known.destroy_at.is_some_and(|at| at <= core.clock.now()) {
                new = enter(core, (&new, *id), (VersionEvent::Destroy, "", 0))?;
                new.versions.retain(|version| version != id);
                change = change.delete_version(*id);
                destroyed.push(id.to_string());
            }
        }
        if new == old.value {
            return Ok(Done::read(()));
        }
        for (name, ids) in [("retired", retired), ("destroyed", destroyed)] {
            if !ids.is_empty() {
                scope.record.field(name, ids.join(" "));
            }
        }
        Ok(Done::write((), change.update_key(&old, new)))
    }
}

impl Core {
    /// Does what is due about the versions of a key.
    pub(super) async fn advance_retirements(
        self: &Arc<Self>,
        key: &Key,
        (may_retire, may_destroy): (bool, bool),
    ) -> Result<(), Error> {
        if key.state == KeyState::PendingDeletion || key.retirements.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let needs = self.records.dependants.of(key.id);
        let mut ready = Vec::new();
        for (id, known) in &key.retirements {
            let due = match known.destroy_at {
                None => may_retire,
                Some(at) => may_destroy && at <= now,
            };
            if !due {
                continue;
            }
            let version = self.records.version(*id).await?;
            if needing(self, key.id, &version, &needs).is_empty() {
                ready.push(*id);
            } else if known.state == VersionState::Retired {
                tracing::warn!(
                    key = %key.id, version = %id,
                    "a retired key version is not destroyed yet: something needs it"
                );
            }
        }
        if ready.is_empty() {
            return Ok(());
        }
        ready.truncate(STEP);
        let caller = Caller::system(&*self.entropy);
        self.execute(&caller, AdvanceRetirement { key: key.id, ready }).await
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::ClusterId;

    use super::*;

    /// Of a cluster that an older release registered nobody knows what it has used; of any other it
    /// is written down.
    #[test]
    fn clusters_of_which_nobody_knows() {
        let (key, other) = (KeyId::from_bytes([1; 16]), KeyId::from_bytes([2; 16]));
        let (id, now) = (ClusterId::from_bytes([3; 16]), Timestamp::from_millis(0));
        let new = Cluster { keys: vec![key], ..Cluster::new(id, now) };
        let mut older = serde_json::to_value(&new).unwrap();
        older.as_object_mut().unwrap().remove("uses_noted").unwrap();
        let older: Cluster = serde_json::from_value(older).unwrap();
        assert!(!is_unlooked(&new, key, &[]));
        assert!(is_unlooked(&older, key, &[]) && !is_unlooked(&older, other, &[]));
        let known = Arc::new(Stored {
            value: Dependant::unseen(&older).unwrap(),
            counter: 1,
            revision: lastkey_store::Revision::default(),
            code: crate::heads::Sum::default(),
        });
        assert!(!is_unlooked(&older, key, &[known]), "what is written down says more");
    }
}
