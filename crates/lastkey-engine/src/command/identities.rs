//! How a plugin's identity is renewed.
//!
//! 1. The plugin makes a new key and asks over its present identity; the new one is registered
//!    beside it, and the certificate issued.
//! 2. It keeps key and certificate, and makes new connections with them.
//! 3. When the last call over the old ones has ended, it says so over the new identity: the old
//!    one is worth nothing from then on.
//!
//! A plugin that crashed in between goes on with whichever of the two it has kept.

use super::{Command, Done, Scope};
use crate::{
    Caller, Error, Timestamp,
    action::Action,
    audit::Record,
    caller::Principal,
    cluster::{Cluster, Identities, NextIdentity, PluginIdentity},
    engine::Core,
    policy::Resource,
    records::Change,
};

/// Registers another public key for the plugin that asks. Answers when its certificate ends.
#[derive(Clone, Debug)]
pub struct RenewPlugin {
    /// The caller, which is the plugin.
    pub caller: Principal,
    /// SHA-256 of the new public key (SubjectPublicKeyInfo), lower-case hex.
    pub fingerprint: String,
}

/// The cluster of the plugin that calls.
fn own_cluster(caller: &Principal, record: &mut Record) -> Resource {
    match caller {
        Principal::Plugin { cluster, .. } => {
            record.field("cluster", cluster);
            Resource::Cluster(*cluster)
        }
        _ => Resource::Service,
    }
}

/// The identity by which the caller came, within a copy of its cluster.
fn own<'a>(
    caller: &Caller,
    cluster: &'a mut Cluster,
) -> Result<(&'a mut PluginIdentity, bool), Error> {
    let Principal::Plugin { name, fingerprint, .. } = &caller.principal else {
        return Err(Error::Denied);
    };
    let plugin = cluster.plugins.iter_mut().find(|plugin| plugin.name == **name);
    let plugin = plugin.ok_or(Error::Denied)?;
    let by_next = plugin.next.as_ref().is_some_and(|next| next.fingerprint == **fingerprint);
    if !by_next && plugin.fingerprint != **fingerprint {
        return Err(Error::Denied);
    }
    Ok((plugin, by_next))
}

/// The next identity is the only one from here on.
fn move_on(plugin: &mut PluginIdentity) {
    if let Some(next) = plugin.next.take() {
        plugin.fingerprint = next.fingerprint;
        plugin.created = next.created;
        plugin.not_after = Some(next.not_after);
    }
}

impl Core {
    /// Which of the plugins' identities end when.
    pub(crate) fn identities(&self) -> Identities {
        let (mut identities, now) = (Identities::default(), self.clock.now());
        for cluster in self.records.clusters() {
            identities.add(&cluster.value, now);
        }
        identities
    }
}

impl Command for RenewPlugin {
    const ACTION: Action = Action::RenewPlugin;
    type Output = Timestamp;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        own_cluster(&self.caller, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Timestamp>, Error> {
        let Principal::Plugin { cluster, name, .. } = &scope.caller.principal else {
            return Err(Error::Denied);
        };
        let old = core.records.cluster(*cluster).ok_or(Error::Denied)?;
        let mut new = old.value.clone();
        let created = core.clock.now();
        let not_after = created.after(new.life_for(name));
        let (plugin, by_next) = own(scope.caller, &mut new)?;
        if by_next {
            move_on(plugin);
        }
        let fingerprint = self.fingerprint.clone();
        plugin.next = Some(NextIdentity { fingerprint, created, not_after });
        scope.record.field("fingerprint", &self.fingerprint);
        Ok(Done::write(not_after, Change::new().update_cluster(&old, new)))
    }
}

/// Ends the identity before the one by which the plugin asks. Answers whether there was one.
#[derive(Clone, Debug)]
pub struct ConfirmPlugin {
    /// The caller, which is the plugin.
    pub caller: Principal,
}

impl Command for ConfirmPlugin {
    const ACTION: Action = Action::ConfirmPlugin;
    type Output = bool;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        own_cluster(&self.caller, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<bool>, Error> {
        let Principal::Plugin { cluster, .. } = &scope.caller.principal else {
            return Err(Error::Denied);
        };
        let old = core.records.cluster(*cluster).ok_or(Error::Denied)?;
        let mut new = old.value.clone();
        let (plugin, by_next) = own(scope.caller, &mut new)?;
        if !by_next {
            return Ok(Done::read(false));
        }
        move_on(plugin);
        Ok(Done::write(true, Change::new().update_cluster(&old, new)))
    }
}
