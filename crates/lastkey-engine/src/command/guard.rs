//! The guard: what makes a key unusable is refused while something needs the key, unless the
//! caller says so twice.

use std::{sync::Arc, time::Duration};

use super::{Command, Done, Scope, retire, second_person};
use crate::{
    Error,
    action::Action,
    audit::Record,
    barrier::Stored,
    dependants::Dependant,
    engine::Core,
    key::{Key, KeyEvent, KeyRef, KeyState},
    policy::Resource,
    records::Change,
    second_person::Proposed,
};

/// The fewest days a deletion may be scheduled ahead.
const MIN_WINDOW_DAYS: u16 = 7;
/// The most days a deletion may be scheduled ahead.
const MAX_WINDOW_DAYS: u16 = 366;
/// The most bytes of a reason.
pub(super) const MAX_REASON: usize = 1024;

/// The second time that a caller says so: the key's name once more, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The key's id or an alias of it, as it was typed.
    pub key: String,
    /// Why, for the audit log.
    pub reason: String,
}

impl Override {
    /// Checks what can be checked without looking at keys.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a reason that says nothing, or too much.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.reason.trim().is_empty() || self.reason.len() > MAX_REASON {
            return Err(Error::invalid("OverrideReason", "say why, in at most 1024 bytes"));
        }
        Ok(())
    }

    /// Whether it names this very key.
    pub(super) fn names(&self, core: &Core, key: &Key) -> Result<(), Error> {
        let named = KeyRef::parse(&self.key).ok().and_then(|named| core.resolve(&named));
        if named != Some(key.id) {
            return Err(Error::invalid("Override", "it must name this very key: its id, or alias"));
        }
        Ok(())
    }
}

/// Lets a change pass that makes `key` unusable. Answers whether that needed an override.
///
/// 1. What is live is read from the store, after the key's record: what comes to need the key later
///    writes that record, so that this change loses the race.
/// 2. Without an override, anything live refuses the change, with the whole list.
/// 3. An override has to name this very key; it goes into the audit record with its reason and the
///    number of those who are passed over.
/// 4. Where that is set, a second person has to confirm it ([`second_person`]).
async fn guard(
    core: &Core,
    scope: &mut Scope<'_>,
    key: &Key,
    overriding: Option<&Override>,
) -> Result<bool, Error> {
    let live = live(core, key).await?;
    let Some(overriding) = overriding else {
        if live.is_empty() {
            return Ok(false);
        }
        scope.record.number("dependants", live.len() as u64);
        return Err(Error::Depended(live));
    };
    overriding.names(core, key)?;
    scope.record.field("override", &overriding.reason);
    scope.record.number("dependants", live.len() as u64);
    if !live.is_empty() {
        tracing::warn!(key = %key.id, dependants = live.len(), "a key that is needed is taken away");
    }
    Ok(!live.is_empty())
}

/// What needs a key, whose record was read before.
async fn live(core: &Core, key: &Key) -> Result<Vec<Dependant>, Error> {
    let known = core.records.stored_dependants(key.id).await?;
    retire::needing_key(core, key, &known).await
}

/// Stops the use of a key.
#[derive(Clone, Debug)]
pub struct DisableKey {
    /// Which key.
    pub key: KeyRef,
    /// Although something needs it.
    pub overriding: Option<Override>,
}

impl Command for DisableKey {
    const ACTION: Action = Action::DisableKey;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        self.overriding.as_ref().map_or(Ok(()), Override::check)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old: Arc<Stored<Key>> = core.records.key(core.require(&self.key)?).await?;
        scope.used(old.value.id, None);
        let mut new = old.value.clone();
        new.state = new.state.apply(KeyEvent::Disable)?;
        if new == old.value {
            return Ok(Done::read(()));
        }
        let forced = guard(core, scope, &old.value, self.overriding.as_ref()).await?;
        if let Some(overriding) = self.overriding.as_ref().filter(|_| forced)
            && second_person::is_needed(core).await?
        {
            let proposed = Proposed::DisableKey { key: old.value.id };
            return second_person::ask(core, scope, (proposed, &overriding.reason)).await;
        }
        Ok(Done::write((), disable(&old)?))
    }
}

/// What has to be written for a key to be disabled.
pub(super) fn disable(old: &Stored<Key>) -> Result<Change, Error> {
    let mut new = old.value.clone();
    new.state = new.state.apply(KeyEvent::Disable)?;
    Ok(Change::new().update_key(old, new))
}

/// Notes what a second person passes over. Answers whether that is anything.
pub(super) async fn note_forced(
    core: &Core,
    scope: &mut Scope<'_>,
    key: &Key,
) -> Result<bool, Error> {
    scope.used(key.id, None);
    let live = live(core, key).await?;
    scope.record.number("dependants", live.len() as u64);
    Ok(!live.is_empty())
}

/// Begins the deletion window of a key.
#[derive(Clone, Debug)]
pub struct ScheduleKeyDeletion {
    /// Which key.
    pub key: KeyRef,
    /// 7–366 days.
    pub window_days: u16,
    /// Although something needs it.
    pub overriding: Option<Override>,
}

impl Command for ScheduleKeyDeletion {
    const ACTION: Action = Action::ScheduleKeyDeletion;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        if !(MIN_WINDOW_DAYS..=MAX_WINDOW_DAYS).contains(&self.window_days) {
            return Err(Error::invalid("PendingWindowInDays", "give 7 to 366 days"));
        }
        self.overriding.as_ref().map_or(Ok(()), Override::check)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old: Arc<Stored<Key>> = core.records.key(core.require(&self.key)?).await?;
        scope.used(old.value.id, None);
        // What cannot be done at all is said before anybody is asked.
        let possible = schedule_deletion(core, &old, (self.window_days, false))?;
        let forced = guard(core, scope, &old.value, self.overriding.as_ref()).await?;
        let Some(overriding) = self.overriding.as_ref().filter(|_| forced) else {
            return Ok(Done::write((), possible));
        };
        if second_person::is_needed(core).await? {
            let (key, window_days) = (old.value.id, self.window_days);
            let proposed = Proposed::ScheduleKeyDeletion { key, window_days };
            return second_person::ask(core, scope, (proposed, &overriding.reason)).await;
        }
        Ok(Done::write((), schedule_deletion(core, &old, (self.window_days, true))?))
    }
}

/// What has to be written for a key to be deleted, although something needs it if so `forced`.
pub(super) fn schedule_deletion(
    core: &Core,
    old: &Stored<Key>,
    (window_days, forced): (u16, bool),
) -> Result<Change, Error> {
    let mut new = old.value.clone();
    if new.deletion_protection {
        return Err(Error::DeletionProtected);
    }
    new.state = new.state.apply(KeyEvent::ScheduleDeletion)?;
    new.deletion_overrides = forced;
    let window = Duration::from_secs(u64::from(window_days) * 86_400);
    new.deletion_at = Some(core.clock.now().after(window));
    new.deletion_window_days = Some(window_days);
    Ok(Change::new().update_key(old, new))
}

impl Core {
    /// Why a key whose deletion is due is not destroyed yet: something came to need it since.
    pub(super) async fn must_wait(&self, key: &Key) -> Result<bool, Error> {
        let begins = key.state == KeyState::PendingDeletion && !key.destroying;
        Ok(begins && !key.deletion_overrides && !live(self, key).await?.is_empty())
    }
}
