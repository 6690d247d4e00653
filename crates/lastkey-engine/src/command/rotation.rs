//! Versions: rotation on demand and by itself, and the end of a key.

use std::{sync::Arc, time::Duration};

use lastkey_crypto::{Epoch, KeyId, KeyVersionId};

use super::{
    Command, Done, Scope,
    keys::{change_key, new_version},
};
use crate::{
    Caller, Error, Timestamp,
    action::Action,
    audit::Record,
    barrier::Stored,
    engine::Core,
    key::{Key, KeyRef, KeyState, KeyVersion, Listing, Page, RotationPolicy},
    policy::Resource,
    records::Change,
};

/// Keys read at a time when all are looked at, and the pause after each time.
const LOOK_PAGE: usize = 100;
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// At most this many versions of one key.
const MAX_VERSIONS: usize = 10_000;
/// Versions destroyed in one transaction, each with its count of uses, its last use, and the heads of
/// all three.
const DESTROY_STEP: usize = 20;

/// Rotates a key at once: a new version becomes primary as soon as it is durable.
#[derive(Clone, Debug)]
pub struct CreateKeyVersion {
    /// Which key.
    pub key: KeyRef,
}

impl Command for CreateKeyVersion {
    const ACTION: Action = Action::CreateKeyVersion;
    type Output = KeyVersion;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<KeyVersion>, Error> {
        let old = core.records.key(core.require(&self.key)?).await?;
        rotate(core, scope, &old)
    }
}

/// Rotates a key whose interval has ended, or whose primary version has encrypted as much as one
/// may. Does nothing if it was rotated meanwhile.
pub(crate) struct RotateDueKey {
    pub(crate) key: KeyId,
}

impl Command for RotateDueKey {
    const ACTION: Action = Action::RotateDueKey;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&KeyRef::Id(self.key), record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old = core.records.key(self.key).await?;
        let now = core.clock.now();
        let primary = core.records.version(old.value.primary.version).await?;
        let worn = core.records.is_worn(&primary) && old.value.state == KeyState::Enabled;
        if !worn && !old.value.rotation_due(now) {
            return Ok(Done::read(()));
        }
        let rotated = rotate(core, scope, &old)?;
        Ok(Done { output: Ok(()), change: rotated.change, noting: None })
    }
}

fn rotate(
    core: &Core,
    scope: &mut Scope<'_>,
    old: &Arc<Stored<Key>>,
) -> Result<Done<KeyVersion>, Error> {
    let key = &old.value;
    scope.used(key.id, None);
    key.state.usable()?;
    if !key.spec.rotates() {
        return Err(Error::Unsupported("rotation of this kind of key"));
    }
    if key.versions.len() >= MAX_VERSIONS {
        return Err(Error::LimitExceeded { what: "versions of a key", limit: MAX_VERSIONS });
    }
    let now = core.clock.now();
    let version = new_version(core, key.id, key.spec, now);
    scope.record.field("new_key_version", version.id);
    let answer = version.describe();
    let mut new = key.clone();
    new.promote(version.id, Epoch::random(&*core.entropy), now);
    Ok(Done::write(answer, Change::new().create_version(version).update_key(old, new)))
}

/// Changes when a key rotates by itself.
#[derive(Clone, Debug)]
pub struct UpdateRotationPolicy {
    /// Which key.
    pub key: KeyRef,
    /// The new policy.
    pub policy: RotationPolicy,
}

impl Command for UpdateRotationPolicy {
    const ACTION: Action = Action::UpdateRotationPolicy;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_key(core, scope, &self.key, |key| {
            if key.state != KeyState::Enabled {
                return key.state.usable();
            }
            if self.policy.enabled && !key.spec.rotates() {
                return Err(Error::Unsupported("rotation of this kind of key"));
            }
            key.rotation = self.policy;
            Ok(())
        })
        .await
    }
}

/// Answers with one version of a key.
#[derive(Clone, Debug)]
pub struct DescribeKeyVersion {
    /// Which key.
    pub key: KeyRef,
    /// Which version.
    pub version: KeyVersionId,
}

impl Command for DescribeKeyVersion {
    const ACTION: Action = Action::DescribeKeyVersion;
    type Output = KeyVersion;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<KeyVersion>, Error> {
        let key = core.require(&self.key)?;
        scope.used(key, None);
        let version = core.records.version(self.version).await?;
        if version.key_id != key {
            return Err(Error::KeyVersionNotFound);
        }
        let key = core.records.key(key).await?;
        let retirement = key.value.retirements.get(&version.id).cloned();
        let described = core.records.describe(&version).await?;
        Ok(Done::read(KeyVersion { retirement, ..described }))
    }
}

/// Lists the versions of a key, oldest first.
#[derive(Clone, Debug)]
pub struct ListKeyVersions {
    /// Which key.
    pub key: KeyRef,
    /// Which page.
    pub page: Page,
}

impl Command for ListKeyVersions {
    const ACTION: Action = Action::ListKeyVersions;
    type Output = Listing<KeyVersion>;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(
        &self,
        core: &Core,
        scope: &mut Scope<'_>,
    ) -> Result<Done<Listing<KeyVersion>>, Error> {
        let key = core.records.key(core.require(&self.key)?).await?;
        scope.used(key.value.id, None);
        let ids = Listing::cut(key.value.versions.iter().copied(), self.page);
        let mut items = Vec::with_capacity(ids.items.len());
        for id in ids.items {
            let version = core.records.version(id).await?;
            let retirement = key.value.retirements.get(&id).cloned();
            let described = core.records.describe(&version).await?;
            items.push(KeyVersion { retirement, ..described });
        }
        Ok(Done::read(Listing { items, page: ids.page, total: ids.total }))
    }
}

/// Destroys a key whose deletion window has ended, in steps that can be interrupted: the mark
/// that it has begun, the versions a hundred at a time, then the aliases and the key. Answers
/// whether that was the last step.
pub(crate) struct DestroyKey {
    pub(crate) key: KeyId,
}

impl Command for DestroyKey {
    const ACTION: Action = Action::DestroyKey;
    type Output = bool;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&KeyRef::Id(self.key), record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<bool>, Error> {
        let old = core.records.key(self.key).await?;
        let key = &old.value;
        scope.used(key.id, None);
        let due = key.deletion_at.is_some_and(|at| at <= core.clock.now());
        if key.state != KeyState::PendingDeletion || !(due || key.destroying) {
            return Ok(Done::read(true));
        }
        if core.must_wait(key).await? {
            return Ok(Done::read(true));
        }
        let mut new = key.clone();
        if !key.destroying {
            new.destroying = true;
            scope.record.field("step", "begin");
            return Ok(Done::write(false, Change::new().update_key(&old, new)));
        }
        let gone = core.records.dependants.of(key.id);
        if !gone.is_empty() {
            scope.record.field("step", "dependants");
            let some = gone.iter().take(DESTROY_STEP);
            let change =
                some.fold(Change::new(), |change, gone| change.delete_dependant(key.id, gone));
            return Ok(Done::write(false, change));
        }
        let aliases = core.records.aliases_of(key.id);
        let rest = DESTROY_STEP.saturating_sub(aliases.len());
        if key.versions.len() > rest {
            let gone = key.versions.len().min(DESTROY_STEP);
            scope.record.field("step", format_args!("{gone} versions"));
            let change = new
                .versions
                .drain(..gone)
                .fold(Change::new(), |change, version| change.delete_version(version));
            return Ok(Done::write(false, change.update_key(&old, new)));
        }
        scope.record.field("step", "end");
        let mut change = key
            .versions
            .iter()
            .fold(Change::new(), |change, version| change.delete_version(*version));
        for alias in aliases.iter().take(DESTROY_STEP) {
            change = change.delete_alias(&core.records.alias(alias).await?);
        }
        if aliases.len() > DESTROY_STEP {
            return Ok(Done::write(false, change));
        }
        Ok(Done::write(true, change.delete_key(&old)))
    }
}

impl Core {
    /// Rotates what has fallen due and destroys what has waited long enough.
    ///
    /// # Errors
    /// The first one, after everything else was done; what failed is tried again later.
    pub(crate) async fn run_due_work(
        self: &Arc<Self>,
        may_rotate: bool,
        may_destroy: bool,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let due = &self.records.due;
        let mut outcome = match due.needs_look(now) {
            true => self.look_at_keys(now).await,
            false => Ok(()),
        };
        for id in due.take(now) {
            // One key that cannot be helped keeps no other one waiting.
            if let Err(error) = self.do_what_is_due(id, may_rotate, may_destroy).await {
                tracing::warn!(key = %id, %error, "what is due about a key could not be done");
                due.suspect(id);
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// Goes through all keys, for those that can fall due soon. Not through the cache, which has
    /// better things to keep.
    async fn look_at_keys(&self, now: Timestamp) -> Result<(), Error> {
        self.records.due.look_begins(now);
        let mut after = None;
        loop {
            let (keys, last) = self.records.stored_keys(after.as_deref(), LOOK_PAGE).await?;
            keys.iter().for_each(|key| self.records.due.learn(key));
            after = last;
            if after.is_none() {
                self.records.due.look_ended(now);
                return Ok(());
            }
            // Requests come first.
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Looks at one key and does what is due.
    async fn do_what_is_due(
        self: &Arc<Self>,
        id: KeyId,
        may_rotate: bool,
        may_destroy: bool,
    ) -> Result<(), Error> {
        // Each command has a request id of its own: it is what its audit record is known by.
        let caller = || Caller::system(&*self.entropy);
        let now = self.clock.now();
        let key = match self.records.key(id).await {
            Err(Error::KeyNotFound) => return Ok(()),
            other => other?,
        };
        // What cannot be done yet stays known; what is done is learnt with its change.
        self.records.due.learn(&key.value);
        let rotated = match may_rotate && key.value.rotation_due(now) {
            true => self.execute(&caller(), RotateDueKey { key: id }).await,
            false => Ok(()),
        };
        let due = may_destroy && key.value.deletion_at.is_some_and(|at| at <= now);
        if due && self.must_wait(&key.value).await? {
            tracing::warn!(key = %id, "a key is not destroyed yet: something came to need it");
            return rotated;
        }
        self.advance_retirements(&key.value, (may_rotate, may_destroy)).await?;
        if key.value.destroying || due {
            while !self.execute(&caller(), DestroyKey { key: id }).await? {}
        }
        rotated
    }
}
