//! How a plugin's identity is renewed.
//!
//! 1. The plugin makes a new key and asks over its present identity; the new one is registered
//!    beside it, and the certificate issued.
//! 2. It keeps key and certificate, and makes new connections with them.
//! 3. When the last call over the old ones has ended, it says so over the new identity: the old
//!    one is worth nothing from then on.
//!
//! A plugin that crashed in between goes on with whichever of the two it has kept.
//!
//! One plugin's files may have been copied, though, and each copy is renewed by itself. So in step 1
//! nothing that may be in use gives way: renewals of several copies stand side by side. In step 3 the
//! identities before end only where nobody is known to go by them. Else they stay good until their
//! certificates end, and nobody is cut off because somebody else has renewed. A plugin says step 3
//! again from time to time, so that what a copy kept good ends once the copy has moved on.

use std::time::Duration;

use lastkey_crypto::ClusterId;

use super::{Command, Done, Scope};
use crate::{
    Caller, Error, Timestamp,
    action::Action,
    audit::Record,
    caller::Principal,
    cluster::{Cluster, Identities, NextIdentity, OtherIdentity, PluginIdentity},
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

/// The most identities of one plugin beside the one it was last known to go by.
const MAX_BESIDE: usize = 126;

/// The plugin that calls, within a copy of its cluster, and the identity by which it came.
fn own<'a>(
    caller: &'a Caller,
    cluster: &'a mut Cluster,
) -> Result<(&'a mut PluginIdentity, &'a str), Error> {
    let Principal::Plugin { name, fingerprint, .. } = &caller.principal else {
        return Err(Error::Denied);
    };
    let plugin = cluster.plugins.iter_mut().find(|plugin| plugin.name == **name);
    let plugin = plugin.ok_or(Error::Denied)?;
    if !plugin.fingerprints().any(|known| *known == **fingerprint) {
        return Err(Error::Denied);
    }
    Ok((plugin, fingerprint))
}

/// Takes down what is known of a plugin of which one goes by this identity. Where nobody goes by
/// another one, what was before it ends.
fn settle(plugin: &mut PluginIdentity, by: &str, alone: bool) {
    let is_next = plugin.next.as_ref().is_some_and(|next| next.fingerprint == by);
    if is_next && let Some(next) = plugin.next.take() {
        move_on(plugin, next.into());
    } else if alone && let Some(at) = plugin.beside.iter().position(|it| it.fingerprint == by) {
        let other = plugin.beside.remove(at);
        move_on(plugin, other);
    }
    if alone && plugin.fingerprint == by {
        let since = plugin.created;
        // What was renewed since may be on its way to whoever asked for it.
        plugin.beside.retain(|other| since < other.created);
        plugin.next.take_if(|next| next.created < since);
    }
}

fn move_on(plugin: &mut PluginIdentity, to: OtherIdentity) {
    let OtherIdentity { fingerprint, created, not_after } = to;
    let before = OtherIdentity {
        fingerprint: std::mem::replace(&mut plugin.fingerprint, fingerprint),
        created: std::mem::replace(&mut plugin.created, created),
        not_after: std::mem::replace(&mut plugin.not_after, not_after),
    };
    plugin.beside.push(before);
}

impl Core {
    /// Which of the plugins' identities end when.
    pub(crate) fn identities(&self) -> Identities {
        let (mut identities, now) = (Identities::default(), self.clock.now());
        let running = self.clock.running();
        for cluster in self.records.clusters() {
            let is_used = |name: &str, print: &str| {
                self.holders.somebody_goes_by((cluster.value.id, name), print, running)
            };
            identities.add(&cluster.value, is_used, now);
        }
        identities
    }

    /// The plugins of which several identities are in use: by copies of their files.
    pub(crate) fn copied(&self) -> Vec<(String, String)> {
        let mut copied = Vec::new();
        for cluster in self.records.clusters() {
            for plugin in &cluster.value.plugins {
                let of = (cluster.value.id, &*plugin.name);
                if self.holders.identities_in_use(of) > 1 {
                    copied.push((cluster.value.shown(), plugin.name.clone()));
                }
            }
        }
        copied
    }

    /// Notes whether several plugins go by one's files, and answers whether nobody goes by another
    /// identity of it than this one.
    fn is_alone(&self, cluster: ClusterId, plugin: &mut PluginIdentity, by: &str) -> bool {
        let (now, running) = (self.clock.now(), self.clock.running());
        let of = (cluster, &*plugin.name);
        let alone = self.holders.all_go_by(of, by, running);
        plugin.shared |= self.holders.are_several(of, running);
        plugin.beside.retain(|other| other.fingerprint == by || !other.is_over(now));
        alone && !plugin.shared
    }

    /// Registers another identity beside the one by which it was asked for.
    fn put_beside(
        &self,
        cluster: ClusterId,
        plugin: &mut PluginIdentity,
        (by, next): (&str, NextIdentity),
    ) -> Result<(), Error> {
        if plugin.fingerprint == by {
            // The one asked for before may be a copy's; or was lost on its way, and harms nobody.
            plugin.beside.extend(plugin.next.replace(next).map(OtherIdentity::from));
        } else {
            plugin.beside.push(next.into());
        }
        if plugin.beside.len() > MAX_BESIDE {
            let running = self.clock.running();
            let of = (cluster, &*plugin.name);
            let is_free =
                |print: &str| print != by && !self.holders.somebody_goes_by(of, print, running);
            let newest = plugin.beside.len() - 1;
            let places = plugin.beside[..newest].iter().enumerate();
            let oldest = places.filter(|(_, other)| is_free(&other.fingerprint));
            let oldest = oldest.min_by_key(|(_, other)| other.created).map(|(at, _)| at);
            let limit = MAX_BESIDE;
            let full = Error::LimitExceeded { what: "identities of one plugin", limit };
            plugin.beside.remove(oldest.ok_or(full)?);
        }
        Ok(())
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
        let (plugin, by) = own(scope.caller, &mut new)?;
        let alone = core.is_alone(*cluster, plugin, by);
        settle(plugin, by, alone);
        let fingerprint = self.fingerprint.clone();
        // Which came after which is known by this, also where the clock was set back in between.
        let newest = plugin.newest_created();
        let created =
            if newest < created { created } else { newest.after(Duration::from_millis(1)) };
        let next = NextIdentity { fingerprint, created, not_after };
        core.put_beside(*cluster, plugin, (by, next))?;
        scope.record.field("fingerprint", &self.fingerprint);
        Ok(Done::write(not_after, Change::new().update_cluster(&old, new)))
    }
}

/// Ends the identities before the one by which the plugin asks, unless copies of it go by them.
/// Answers whether one has ended.
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
        let (plugin, by) = own(scope.caller, &mut new)?;
        let count = plugin.fingerprints().count();
        let alone = core.is_alone(*cluster, plugin, by);
        settle(plugin, by, alone);
        let replaced = plugin.fingerprints().count() < count;
        if new == old.value {
            return Ok(Done::read(false));
        }
        Ok(Done::write(replaced, Change::new().update_cluster(&old, new)))
    }
}
