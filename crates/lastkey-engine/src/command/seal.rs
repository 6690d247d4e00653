//! Changes of what the root key rests under, and the record of who asked for them.

use std::sync::Arc;

use lastkey_crypto::KeyMaterial;
use lastkey_store::Revision;

use super::{Command, Done, Scope};
use crate::{
    Error,
    action::Action,
    audit::Record,
    barrier::KEYRING_PATH,
    engine::Core,
    policy::Resource,
    records::Change,
    seal::{SEAL_PATH, SealKind, SealRecord},
};

/// The next record of the seal and, where the root key changes, the keyring under the new one: one
/// transaction, with the audit record.
pub(crate) struct SealChange {
    pub(crate) next: SealRecord,
    /// The record that it was made from.
    pub(crate) expect: Option<Revision>,
    pub(crate) root: Option<Arc<KeyMaterial>>,
}

impl SealChange {
    fn note(&self, record: &mut Record) -> Resource {
        record.field("seal", self.next.kind());
        if let Some(pending) = self.next.pending() {
            record.field("pending", pending.kind());
        }
        record.number("generation", self.next.generation);
        Resource::Service
    }

    async fn change(&self, core: &Core) -> Result<Done<()>, Error> {
        let mut change = Change::new().put_clear(SEAL_PATH, self.next.encode(), self.expect);
        if let Some(root) = &self.root {
            let keyring = core.records.barrier.rewrap(root).await?;
            change = change.put_clear(KEYRING_PATH, keyring.wrapped, Some(keyring.revision));
        }
        Ok(Done::write((), change))
    }
}

macro_rules! seal_changes {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub(crate) struct $name(pub(crate) SealChange);

        impl Command for $name {
            const ACTION: Action = Action::$name;
            type Output = ();

            fn resource(&self, _: &Core, record: &mut Record) -> Resource {
                self.0.note(record)
            }

            async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
                self.0.change(core).await
            }
        }
    )*};
}

seal_changes! {
    /// Adds a new set of shares.
    RekeySeal,
    /// Makes a new set of shares, which were entered, the only seal.
    ConfirmSeal,
    /// Forgets a new set of shares that were never entered.
    CancelSeal,
    /// Puts the root key under another seal.
    MigrateSeal,
    /// Replaces the root key.
    RotateRootKey,
}

/// Asks leave to seal the server.
pub(crate) struct SealServer;

impl Command for SealServer {
    const ACTION: Action = Action::SealServer;
    type Output = ();

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, _: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        Ok(Done::read(()))
    }
}

/// What a change of the seal is to lead to, as far as the caller says so.
pub(crate) struct Wanted {
    pub(crate) seal: Option<SealKind>,
    /// How many shares, and how many of them it takes.
    pub(crate) splitting: Option<(u8, u8)>,
    /// The token and the key on it.
    pub(crate) token: Option<String>,
}

impl Wanted {
    fn note(&self, record: &mut Record) {
        if let Some(seal) = self.seal {
            record.field("seal", seal);
        }
        if let Some((shares, threshold)) = self.splitting {
            record.number("shares", shares.into());
            record.number("threshold", threshold.into());
        }
        if let Some(token) = &self.token {
            record.field("token", token);
        }
    }
}

/// Asks leave to change the seal, or to enter a share for that.
pub(crate) struct ManageSeal {
    pub(crate) order: &'static str,
    /// What the caller wants it to lead to.
    pub(crate) wanted: Wanted,
    /// Which share is entered.
    pub(crate) share: Option<u8>,
}

impl Command for ManageSeal {
    const ACTION: Action = Action::ManageSeal;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("target", self.order);
        self.wanted.note(record);
        if let Some(index) = self.share {
            record.number("share", index.into());
        }
        Resource::Service
    }

    async fn act(&self, _: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        Ok(Done::read(()))
    }
}

/// Records that shares were dropped because nobody went on.
pub(crate) struct ForgetShares {
    pub(crate) order: &'static str,
    pub(crate) shares: u64,
}

impl Command for ForgetShares {
    const ACTION: Action = Action::ForgetShares;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("target", self.order);
        record.number("shares_forgotten", self.shares);
        Resource::Service
    }

    async fn act(&self, _: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        Ok(Done::read(()))
    }
}

/// Records that the server was unsealed, and what became of shares before that.
pub(crate) struct UnsealServer {
    pub(crate) record: SealRecord,
    pub(crate) refused: u64,
    pub(crate) forgotten: u64,
}

impl Command for UnsealServer {
    const ACTION: Action = Action::UnsealServer;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("seal", self.record.kind());
        record.number("generation", self.record.generation);
        record.number("shares_refused", self.refused);
        record.number("shares_forgotten", self.forgotten);
        Resource::Service
    }

    async fn act(&self, _: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        Ok(Done::read(()))
    }
}
