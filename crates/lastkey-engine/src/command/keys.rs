//! The life of keys: create, describe, list, enable, disable, delete.

use std::{collections::BTreeMap, sync::Arc};

use lastkey_crypto::{Epoch, KeyId, KeyMaterial, KeyVersionId, Lineage, Suite};

use super::{Command, Done, Scope};
use crate::{
    Error, Timestamp,
    action::Action,
    audit::Record,
    barrier::Stored,
    engine::Core,
    key::{
        AliasName, Key, KeyEvent, KeyRef, KeySpec, KeyState, KeyUsage, Listing, MAX_TAGS, Origin,
        Page, Primary, ProtectionLevel, RotationPolicy, check_description, check_tag,
    },
    last_use::Latest,
    policy::Resource,
    records::{Change, Version},
    uses::Uses,
};

/// Makes a key with its first version. Answers with the key.
#[derive(Clone, Debug)]
pub struct CreateKey {
    /// What kind of key.
    pub spec: KeySpec,
    /// What it is for.
    pub usage: KeyUsage,
    /// Free text.
    pub description: String,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Automatic rotation; `None` for the default, on with 365 days.
    pub rotation: Option<RotationPolicy>,
    /// An alias to give it in the same step.
    pub alias: Option<AliasName>,
}

impl Default for CreateKey {
    fn default() -> Self {
        Self {
            spec: KeySpec::Aes256,
            usage: KeyUsage::EncryptDecrypt,
            description: String::new(),
            tags: BTreeMap::new(),
            rotation: None,
            alias: None,
        }
    }
}

impl Command for CreateKey {
    const ACTION: Action = Action::CreateKey;
    type Output = Arc<Key>;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        if let Some(alias) = &self.alias {
            record.field("target", alias);
        }
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        check_description("Description", &self.description)?;
        if self.tags.len() > MAX_TAGS {
            return Err(Error::LimitExceeded { what: "tags", limit: MAX_TAGS });
        }
        self.tags.iter().try_for_each(|(key, value)| check_tag(key, value))
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Arc<Key>>, Error> {
        if self.alias.as_ref().is_some_and(|alias| core.records.alias_target(alias).is_some()) {
            return Err(Error::AliasExists);
        }
        let now = core.clock.now();
        let id = KeyId::from_uuid(core.new_uuid(now));
        let version = new_version(core, id, self.spec, now);
        let rotation =
            RotationPolicy { enabled: true, interval_seconds: RotationPolicy::DEFAULT.as_secs() };
        let key = Key {
            id,
            lineage: Lineage::random(&*core.entropy),
            spec: self.spec,
            usage: self.usage,
            origin: Origin::Service,
            protection: ProtectionLevel::Software,
            state: KeyState::Enabled,
            description: self.description.clone(),
            tags: self.tags.clone(),
            created: now,
            creator: scope.caller.principal.to_string(),
            deletion_protection: false,
            deletion_protection_description: String::new(),
            deletion_at: None,
            deletion_window_days: None,
            deletion_overrides: false,
            destroying: false,
            rotation: self.rotation.unwrap_or(rotation),
            rotated: now,
            primary: Primary {
                version: version.id,
                epoch: Epoch::random(&*core.entropy),
                since: now,
            },
            superseded: None,
            versions: vec![version.id],
            retirements: BTreeMap::new(),
        };
        scope.used(id, Some(version.id));
        let mut change = Change::new().create_version(version).create_key(key.clone());
        if let Some(alias) = &self.alias {
            change = change.create_alias(alias.clone(), id);
        }
        Ok(Done::write(Arc::new(key), change))
    }
}

/// New material for a key of that spec.
pub(super) fn new_version(core: &Core, key_id: KeyId, spec: KeySpec, now: Timestamp) -> Version {
    Version {
        id: KeyVersionId::from_uuid(core.new_uuid(now)),
        key_id,
        created: now,
        suite: Suite::SoftwareAes,
        material: KeyMaterial::generate(spec.algorithm().key_len(), &*core.entropy),
        uses: Uses::from_stored(0),
        latest: Latest::default(),
    }
}

/// Answers with what is recorded about a key.
#[derive(Clone, Debug)]
pub struct DescribeKey {
    /// Which.
    pub key: KeyRef,
}

impl Command for DescribeKey {
    const ACTION: Action = Action::DescribeKey;
    type Output = Arc<Key>;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Arc<Key>>, Error> {
        let key = core.records.key(core.require(&self.key)?).await?;
        scope.used(key.value.id, None);
        Ok(Done::read(Arc::new(key.value.clone())))
    }
}

/// Which keys a list shows. All that is set must match.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    /// One of these states, if any is named.
    pub states: Vec<KeyState>,
    /// One of these specs, if any is named.
    pub specs: Vec<KeySpec>,
    /// One of these usages, if any is named.
    pub usages: Vec<KeyUsage>,
}

impl KeyFilter {
    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.specs.is_empty() && self.usages.is_empty()
    }

    fn matches(&self, key: &Key) -> bool {
        (self.states.is_empty() || self.states.contains(&key.state))
            && (self.specs.is_empty() || self.specs.contains(&key.spec))
            && (self.usages.is_empty() || self.usages.contains(&key.usage))
    }
}

/// Lists keys in the order of their creation.
#[derive(Clone, Debug)]
pub struct ListKeys {
    /// Which page.
    pub page: Page,
    /// Which keys.
    pub filter: KeyFilter,
}

impl Command for ListKeys {
    const ACTION: Action = Action::ListKeys;
    type Output = Listing<KeyId>;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Listing<KeyId>>, Error> {
        if self.filter.is_empty() {
            return Ok(Done::read(
                core.records.with_key_ids(|ids| Listing::cut(ids.iter().copied(), self.page)),
            ));
        }
        let ids: Vec<KeyId> = core.records.with_key_ids(|ids| ids.iter().copied().collect());
        let mut matching = Vec::new();
        for id in ids {
            match core.records.key(id).await {
                Ok(key) if self.filter.matches(&key.value) => matching.push(id),
                Ok(_) | Err(Error::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Done::read(Listing::cut(matching.into_iter(), self.page)))
    }
}

/// Changes one field of a key's record; the shape that all the commands below share.
pub(super) async fn change_key(
    core: &Core,
    scope: &mut Scope<'_>,
    key: &KeyRef,
    change: impl FnOnce(&mut Key) -> Result<(), Error>,
) -> Result<Done<()>, Error> {
    let old: Arc<Stored<Key>> = core.records.key(core.require(key)?).await?;
    scope.used(old.value.id, None);
    let mut new = old.value.clone();
    change(&mut new)?;
    if new == old.value {
        return Ok(Done::read(()));
    }
    Ok(Done::write((), Change::new().update_key(&old, new)))
}

macro_rules! key_command {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }
     $(validate($check:ident) $validate:block)?
     act($self:ident, $core:ident, $key:ident) $act:block) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            /// Which key.
            pub key: KeyRef,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Command for $name {
            const ACTION: Action = Action::$name;
            type Output = ();

            fn resource(&self, core: &Core, record: &mut Record) -> Resource {
                core.key_resource(&self.key, record)
            }

            $(fn validate(&$check) -> Result<(), Error> $validate)?

            async fn act(&$self, $core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
                change_key($core, scope, &$self.key, |$key| $act).await
            }
        }
    };
}

key_command! {
    /// Changes the free text of a key.
    UpdateKeyDescription {
        /// The new text.
        description: String,
    }
    validate(self) { check_description("Description", &self.description) }
    act(self, core, key) {
        if key.state == KeyState::PendingDeletion {
            return Err(Error::KeyPendingDeletion);
        }
        key.description.clone_from(&self.description);
        Ok(())
    }
}

key_command! {
    /// Allows the use of a key again.
    EnableKey {}
    act(self, core, key) {
        key.state = key.state.apply(KeyEvent::Enable)?;
        Ok(())
    }
}

key_command! {
    /// Ends the deletion window; the key is enabled again.
    CancelKeyDeletion {}
    act(self, core, key) {
        if key.destroying {
            return Err(Error::StateConflict { state: "PendingDeletion" });
        }
        key.state = key.state.apply(KeyEvent::CancelDeletion)?;
        key.deletion_at = None;
        key.deletion_window_days = None;
        key.deletion_overrides = false;
        Ok(())
    }
}

key_command! {
    /// Switches deletion protection.
    SetDeletionProtection {
        /// On or off.
        enable: bool,
        /// Why.
        description: String,
    }
    validate(self) { check_description("DeletionProtectionDescription", &self.description) }
    act(self, core, key) {
        if key.state == KeyState::PendingDeletion {
            return Err(Error::KeyPendingDeletion);
        }
        key.deletion_protection = self.enable;
        let description = if self.enable { self.description.clone() } else { String::new() };
        key.deletion_protection_description = description;
        Ok(())
    }
}
