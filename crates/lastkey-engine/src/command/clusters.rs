//! Clusters and the plugins that act for them.

use lastkey_crypto::ClusterId;

use super::{Command, Done, Scope, dependants};
use crate::{
    Error, Timestamp,
    action::Action,
    audit::Record,
    cluster::{Cluster, ClusterName, PluginIdentity},
    engine::Core,
    key::KeyRef,
    policy::Resource,
    records::Change,
};

/// At most this many plugins of one cluster.
const MAX_PLUGINS: usize = 1_000;
/// At most this many keys of one cluster.
const MAX_KEYS: usize = 100;

/// A plugin to be registered, by the public key that its certificate will carry.
#[derive(Clone, Debug)]
pub struct PluginRequest {
    /// Its name within the cluster.
    pub name: ClusterName,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), lower-case hex.
    pub fingerprint: String,
}

/// Registers a cluster and draws its id.
///
/// The cluster that a first start made has no name yet: the first one added adopts it.
#[derive(Clone, Debug)]
pub struct AddCluster {
    /// Its name; `None` for the one of the first start.
    pub name: Option<ClusterName>,
    /// The keys it may use.
    pub keys: Vec<KeyRef>,
    /// Its first plugin.
    pub plugin: Option<PluginRequest>,
}

/// A registered cluster.
#[derive(Clone, Debug)]
pub struct AddedCluster {
    /// As it is recorded now.
    pub cluster: Cluster,
    /// Whether it is the one of the first start, which has a name now.
    pub adopted: bool,
}

impl Command for AddCluster {
    const ACTION: Action = Action::AddCluster;
    type Output = AddedCluster;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        if let Some(name) = &self.name {
            record.field("target", name);
        }
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        if self.keys.is_empty() {
            return Err(Error::MissingParameter("Key"));
        }
        if self.keys.len() > MAX_KEYS {
            return Err(Error::LimitExceeded { what: "keys of a cluster", limit: MAX_KEYS });
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<AddedCluster>, Error> {
        self.change(core, scope, |_| {})
    }
}

impl AddCluster {
    /// What has to be written, with `terms` that hold for its first plugin already.
    pub(super) fn change(
        &self,
        core: &Core,
        scope: &mut Scope<'_>,
        terms: impl FnOnce(&mut Cluster),
    ) -> Result<Done<AddedCluster>, Error> {
        let known = core.records.clusters();
        let taken = |cluster: &Cluster| self.name.is_some() && cluster.name == self.name;
        if known.iter().any(|stored| taken(&stored.value)) {
            return Err(Error::Exists("cluster"));
        }
        let unnamed = known.into_iter().find(|stored| stored.value.name.is_none());
        let now = core.clock.now();
        let mut cluster = unnamed.as_ref().map_or_else(
            || Cluster::new(ClusterId::random(&*core.entropy), now),
            |stored| stored.value.clone(),
        );
        cluster.name.clone_from(&self.name);
        terms(&mut cluster);
        for key in &self.keys {
            let id = core.require(key)?;
            if !cluster.keys.contains(&id) {
                cluster.keys.push(id);
            }
        }
        if let Some(plugin) = &self.plugin {
            register(&mut cluster, plugin, now)?;
        }
        scope.record.field("cluster", cluster.id);
        let change = match &unnamed {
            Some(old) => {
                let change = Change::new().update_cluster(old, cluster.clone());
                dependants::named(core, &cluster, change)
            }
            None => Change::new().create_cluster(cluster.clone()),
        };
        Ok(Done::write(AddedCluster { cluster, adopted: unnamed.is_some() }, change))
    }
}

/// Lists the clusters.
#[derive(Clone, Copy, Debug)]
pub struct ListClusters;

impl Command for ListClusters {
    const ACTION: Action = Action::ListClusters;
    type Output = Vec<Cluster>;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Vec<Cluster>>, Error> {
        let clusters = core.records.clusters();
        Ok(Done::read(clusters.iter().map(|stored| stored.value.clone()).collect()))
    }
}

/// Registers a plugin of a cluster, in place of one of the same name. Answers with the cluster.
#[derive(Clone, Debug)]
pub struct AddPlugin {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The plugin.
    pub plugin: PluginRequest,
}

impl Command for AddPlugin {
    const ACTION: Action = Action::AddPlugin;
    type Output = Cluster;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        record.field("target", &self.plugin.name);
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Cluster>, Error> {
        let old = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let mut new = old.value.clone();
        register(&mut new, &self.plugin, core.clock.now())?;
        Ok(Done::write(new.clone(), Change::new().update_cluster(&old, new)))
    }
}

fn register(
    cluster: &mut Cluster,
    plugin: &PluginRequest,
    created: Timestamp,
) -> Result<(), Error> {
    replace_plugin(cluster, plugin.name.as_str().to_owned(), plugin.fingerprint.clone(), created)
        .map(drop)
}

/// Gives the plugin of that name another identity, which is the only one it has from then on.
/// Answers when its certificate ends.
pub(super) fn replace_plugin(
    cluster: &mut Cluster,
    name: String,
    fingerprint: String,
    created: Timestamp,
) -> Result<Timestamp, Error> {
    cluster.plugins.retain(|known| known.name != name);
    if cluster.plugins.len() >= MAX_PLUGINS {
        return Err(Error::LimitExceeded { what: "plugins of a cluster", limit: MAX_PLUGINS });
    }
    let ends = created.after(cluster.life_for(&name));
    cluster.plugins.push(PluginIdentity::new(name, fingerprint, (created, ends)));
    Ok(ends)
}
