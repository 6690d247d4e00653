//! The keyring: another key seals the store's records, and the old ones go when nothing needs them.

use super::{Command, Done, Scope};
use crate::{
    Error, action::Action, audit::Record, engine::Core, policy::Resource, records::Change,
};

/// Has another keyring key seal from now on. Records of the old one are sealed again in the
/// background; then it is dropped. Answers with the new key's number.
#[derive(Clone, Copy, Debug)]
pub struct RotateKeyring;

impl Command for RotateKeyring {
    const ACTION: Action = Action::RotateKeyring;
    type Output = u32;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<u32>, Error> {
        let next = core.records.barrier.with_new_key(core.clock.now()).await?;
        let newest = next.newest();
        scope.record.number("keyring_key", newest.into());
        Ok(Done::write(newest, Change::new().keyring(next)))
    }
}

/// Drops the keyring keys that no record needs any more.
pub(crate) struct DropKeyringKeys {
    /// Older ones than this: the newest when a round began that found no record of another.
    pub(crate) before: u32,
}

impl Command for DropKeyringKeys {
    const ACTION: Action = Action::DropKeyringKeys;
    type Output = ();

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let Some(next) = core.records.barrier.without_keys_before(self.before).await? else {
            return Ok(Done::read(()));
        };
        scope.record.number("keyring_key", next.newest().into());
        Ok(Done::write((), Change::new().keyring(next)))
    }
}
