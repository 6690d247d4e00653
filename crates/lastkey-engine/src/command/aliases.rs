//! Aliases: names for keys.

use lastkey_crypto::KeyId;

use super::{Command, Done, Scope};
use crate::{
    Error,
    action::Action,
    audit::Record,
    engine::Core,
    key::{AliasName, KeyRef, KeyState, Listing, Page},
    policy::Resource,
    records::Change,
};

/// At most this many aliases of one key.
const MAX_ALIASES: usize = 1_000;

/// One alias and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasEntry {
    /// The alias.
    pub name: AliasName,
    /// The key it names.
    pub key_id: KeyId,
}

/// Gives a key a name.
#[derive(Clone, Debug)]
pub struct CreateAlias {
    /// The name.
    pub alias: AliasName,
    /// The key.
    pub key: KeyRef,
}

impl Command for CreateAlias {
    const ACTION: Action = Action::CreateAlias;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        record.field("alias", &self.alias);
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let id = named_key(core, scope, &self.key).await?;
        if core.records.alias_target(&self.alias).is_some() {
            return Err(Error::AliasExists);
        }
        if core.records.aliases_of(id).len() >= MAX_ALIASES {
            return Err(Error::LimitExceeded { what: "aliases of a key", limit: MAX_ALIASES });
        }
        Ok(Done::write((), Change::new().create_alias(self.alias.clone(), id)))
    }
}

/// Gives a name to another key.
#[derive(Clone, Debug)]
pub struct UpdateAlias {
    /// The name.
    pub alias: AliasName,
    /// The key it shall name from now on.
    pub key: KeyRef,
}

impl Command for UpdateAlias {
    const ACTION: Action = Action::UpdateAlias;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        record.field("alias", &self.alias);
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let id = named_key(core, scope, &self.key).await?;
        let old = core.records.alias(&self.alias).await?;
        scope.record.field("old_key", old.value.key);
        if id != old.value.key {
            refuse_in_use(core, scope, &self.alias)?;
        }
        Ok(Done::write((), Change::new().update_alias(&old, id)))
    }
}

/// The key to be named: one that is about to be destroyed takes no names.
async fn named_key(core: &Core, scope: &mut Scope<'_>, key: &KeyRef) -> Result<KeyId, Error> {
    let key = core.records.key(core.require(key)?).await?;
    scope.used(key.value.id, None);
    match key.value.state {
        KeyState::PendingDeletion => Err(Error::KeyPendingDeletion),
        KeyState::Enabled | KeyState::Disabled => Ok(key.value.id),
    }
}

/// The guard of names: a plugin that reaches its key by one would be without a key.
fn refuse_in_use(core: &Core, scope: &mut Scope<'_>, alias: &AliasName) -> Result<(), Error> {
    let plugins = core.reached_by(alias);
    if plugins.is_empty() {
        return Ok(());
    }
    scope.record.number("plugins", plugins.len() as u64);
    Err(Error::AliasInUse(plugins))
}

/// Takes a name away.
#[derive(Clone, Debug)]
pub struct DeleteAlias {
    /// The name.
    pub alias: AliasName,
}

impl Command for DeleteAlias {
    const ACTION: Action = Action::DeleteAlias;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        record.field("alias", &self.alias);
        Resource::Key(core.records.alias_target(&self.alias))
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old = core.records.alias(&self.alias).await?;
        scope.used(old.value.key, None);
        refuse_in_use(core, scope, &self.alias)?;
        Ok(Done::write((), Change::new().delete_alias(&old)))
    }
}

/// Lists all aliases in the order of their names.
#[derive(Clone, Copy, Debug)]
pub struct ListAliases {
    /// Which page.
    pub page: Page,
}

impl Command for ListAliases {
    const ACTION: Action = Action::ListAliases;
    type Output = Listing<AliasEntry>;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(
        &self,
        core: &Core,
        _: &mut Scope<'_>,
    ) -> Result<Done<Listing<AliasEntry>>, Error> {
        Ok(Done::read(core.records.with_aliases(|aliases| {
            let entries = aliases
                .iter()
                .map(|(name, (key_id, _))| AliasEntry { name: name.clone(), key_id: *key_id });
            Listing::cut(entries, self.page)
        })))
    }
}

/// Lists the aliases of one key.
#[derive(Clone, Debug)]
pub struct ListAliasesByKeyId {
    /// Which key.
    pub key: KeyRef,
    /// Which page.
    pub page: Page,
}

impl Command for ListAliasesByKeyId {
    const ACTION: Action = Action::ListAliasesByKeyId;
    type Output = Listing<AliasEntry>;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(
        &self,
        core: &Core,
        scope: &mut Scope<'_>,
    ) -> Result<Done<Listing<AliasEntry>>, Error> {
        let key_id = core.require(&self.key)?;
        scope.used(key_id, None);
        let names =
            core.records.aliases_of(key_id).into_iter().map(|name| AliasEntry { name, key_id });
        Ok(Done::read(Listing::cut(names, self.page)))
    }
}
