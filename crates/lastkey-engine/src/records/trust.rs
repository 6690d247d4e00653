//! Which CAs vouch for nodes, and when that changes.

use std::sync::atomic::Ordering;

use lastkey_crypto::ClusterId;

use super::Records;
use crate::{barrier::Stored, cluster::Cluster, node::NodeRoot};

impl Records {
    /// Takes a cluster into the indexes.
    pub(super) fn know_cluster(&self, stored: Stored<Cluster>) {
        self.policy.learn(&stored.value);
        let (id, roots) = (stored.value.id, stored.value.node_roots.clone());
        let old = self.clusters.write().insert(id, stored.into());
        if old.map_or(!roots.is_empty(), |old| old.value.node_roots != roots) {
            self.trust.fetch_add(1, Ordering::Release);
        }
    }

    /// A cluster is gone: its plugins may nothing any more.
    pub(super) fn forget_cluster(&self, id: ClusterId) {
        let Some(gone) = self.clusters.write().remove(&id) else { return };
        self.policy.learn(&Cluster::new(id, gone.value.created));
        if !gone.value.node_roots.is_empty() {
            self.trust.fetch_add(1, Ordering::Release);
        }
    }

    /// A number that changes whenever a cluster's roots do.
    pub(crate) fn trust(&self) -> u64 {
        self.trust.load(Ordering::Acquire)
    }

    /// The roots of this cluster; with `None`, of all.
    pub(crate) fn node_roots(&self, cluster: Option<ClusterId>) -> Vec<NodeRoot> {
        let clusters = self.clusters.read();
        let wanted = clusters.values().filter(|one| cluster.is_none_or(|id| one.value.id == id));
        wanted.flat_map(|one| one.value.node_roots.iter().cloned()).collect()
    }
}
