//! The end of a cluster: its access withdrawn, or all of it forgotten; and how it is looked after
//! until then.

use lastkey_crypto::ClusterId;

use super::{
    Command, Done, Scope, cluster_access::path as access_path, guard::MAX_REASON, retire,
    rotations, second_person,
};
use crate::{
    Error,
    action::Action,
    audit::Record,
    barrier::Stored,
    cluster::{Automatic, Cluster},
    dependants::{CLUSTER_KIND, Dependant},
    engine::Core,
    policy::Resource,
    records::Change,
    second_person::Proposed,
};

/// So many dependants go in one transaction with their cluster, each with a head. What a cluster of
/// more keys leaves stays listed, and is removed by hand.
const STEP: usize = 30;

/// Withdraws how a cluster is reached. What it needs stays guarded as it was seen last, and its
/// plugins go on.
#[derive(Clone, Debug)]
pub struct RemoveClusterAccess {
    /// The cluster.
    pub cluster: ClusterId,
    /// Why, for the audit log.
    pub reason: String,
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.trim().is_empty() || reason.len() > MAX_REASON {
        return Err(Error::invalid("reason", "say why, in at most 1024 bytes"));
    }
    Ok(())
}

impl Command for RemoveClusterAccess {
    const ACTION: Action = Action::RemoveClusterAccess;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        check_reason(&self.reason)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        scope.record.field("reason", &self.reason);
        let known = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let path = access_path(self.cluster);
        let stored = core.records.raw(&path).await?;
        let stored = stored.ok_or(Error::NotFound("access to this cluster"))?;
        rotations::refuse_under_way(core, self.cluster).await?;
        let mut change = Change::new().delete_raw(path, stored.expect());
        if known.value.automatic.is_some() {
            // nobody could do it any more
            let new = Cluster { automatic: None, ..known.value.clone() };
            change = change.update_cluster(&known, new);
        }
        Ok(Done::write((), change))
    }
}

/// Forgets a cluster: its plugins' identities, how it is reached, its rotations, and that it needs
/// its keys. What was encrypted for it, its backups too, is bound to its id, which no other cluster
/// ever has: nobody opens that any more.
#[derive(Clone, Debug)]
pub struct ForgetCluster {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name or id once more, although something of it needs its keys.
    pub overriding: Option<String>,
    /// Why, for the audit log.
    pub reason: String,
}

impl Command for ForgetCluster {
    const ACTION: Action = Action::ForgetCluster;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        check_reason(&self.reason)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        scope.record.field("reason", &self.reason);
        let known = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let needing = needing(core, &known.value).await?;
        if !needing.is_empty() {
            scope.record.number("dependants", needing.len() as u64);
            match &self.overriding {
                None => return Err(Error::Depended(needing)),
                Some(named) if !names(&known.value, named) => {
                    return Err(Error::invalid("override", "it must name this very cluster"));
                }
                Some(_) if second_person::is_needed(core).await? => {
                    let proposed = Proposed::ForgetCluster { cluster: self.cluster };
                    return second_person::ask(core, scope, (proposed, &self.reason)).await;
                }
                Some(_) => scope.record.field("override", &self.reason),
            }
        }
        Ok(Done::write((), forget(core, &known).await?))
    }
}

fn names(cluster: &Cluster, named: &str) -> bool {
    let name = cluster.name.as_ref().map(|name| name.as_str());
    name == Some(named) || cluster.id.to_string() == named
}

/// What could not be read any more without the cluster:
///
/// 1. what it has, or may have, under its keys, as it is written down;
/// 2. whatever it has under a key that was used before that was written down for it;
/// 3. its backups, until they end.
async fn needing(core: &Core, cluster: &Cluster) -> Result<Vec<Dependant>, Error> {
    let now = core.clock.now();
    let mut needing = Vec::new();
    for id in &cluster.keys {
        let key = match core.records.key(*id).await {
            Err(Error::KeyNotFound) => continue,
            other => other?,
        };
        // From the store: what its plugin did first may not be in the index yet.
        let known = core.records.stored_dependants(*id).await?;
        let own = known.iter().map(|stored| &stored.value).filter(|one| {
            let of = one.cluster().or_else(|| one.backup_of());
            of == Some(cluster.id) && one.is_live(now)
        });
        needing.extend(own.cloned());
        let mut unlooked = retire::unlooked(core, *id, &known);
        unlooked.retain(|one| one.cluster() == Some(cluster.id));
        if !unlooked.is_empty() && retire::is_used(core, &key.value).await? {
            needing.extend(unlooked);
        }
    }
    Ok(needing)
}

type Own = (lastkey_crypto::KeyId, std::sync::Arc<Stored<Dependant>>);

/// That the cluster itself needs its keys, as it is written down.
fn own_dependants(core: &Core, cluster: &Cluster) -> Vec<Own> {
    let id = cluster.id.to_string();
    let find = |key| core.records.dependants.find(key, CLUSTER_KIND, &id);
    cluster.keys.iter().filter_map(|key| Some((*key, find(*key)?))).collect()
}

/// What has to be written for a cluster to be forgotten: as it was `known` when it was looked at what
/// needs it, for a plugin's first use since then changes it.
pub(super) async fn forget(core: &Core, known: &Stored<Cluster>) -> Result<Change, Error> {
    let cluster = known.value.id;
    rotations::refuse_under_way(core, cluster).await?;
    let mut change = Change::new().delete_cluster(known);
    let path = access_path(cluster);
    if let Some(stored) = core.records.raw(&path).await? {
        change = change.delete_raw(path, stored.expect());
    }
    for (key, stored) in own_dependants(core, &known.value).iter().take(STEP) {
        change = change.delete_dependant(*key, stored);
    }
    rotations::delete_all(core, cluster, change).await
}

/// How a cluster is looked after by the server itself.
#[derive(Clone, Debug)]
pub struct ConfigureCluster {
    /// The cluster.
    pub cluster: ClusterId,
    /// What the server does by itself when a key has a new version; `None` for nothing.
    pub automatic: Option<Automatic>,
}

impl Command for ConfigureCluster {
    const ACTION: Action = Action::ConfigureCluster;
    type Output = Cluster;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        record.field("rotate_automatically", if self.automatic.is_some() { "on" } else { "off" });
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Cluster>, Error> {
        let known = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        if self.automatic.is_some() && core.records.raw(&access_path(self.cluster)).await?.is_none()
        {
            return Err(Error::NotFound("access to this cluster"));
        }
        if known.value.automatic == self.automatic {
            return Ok(Done::read(known.value.clone()));
        }
        let new = Cluster { automatic: self.automatic, ..known.value.clone() };
        Ok(Done::write(new.clone(), Change::new().update_cluster(&known, new)))
    }
}
