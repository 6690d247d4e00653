//! Who may do what: one small decision that can be replaced.
//!
//! Deny unless a rule allows. The decision sees the caller, the action and the keys it names;
//! it never sees data, and it is asked before anything is looked up on the caller's behalf, so
//! that a caller without rights learns nothing about what exists.

use std::collections::HashMap;

use lastkey_crypto::{ClusterId, KeyId};
use parking_lot::RwLock;

use crate::{Action, caller::Principal, cluster::Cluster};

/// What a command touches, as far as a decision needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// This key (`None`: what the caller named does not exist).
    Key(Option<KeyId>),
    /// This key, on behalf of this cluster.
    ClusterKey {
        /// The key; `None` when what the caller named does not exist.
        key: Option<KeyId>,
        /// The cluster the caller claims to act for.
        cluster: ClusterId,
    },
    /// This cluster: its nodes and its plugins' identities.
    Cluster(ClusterId),
    /// The service as a whole.
    Service,
}

/// Decides.
pub trait Policy: Send + Sync + 'static {
    /// Whether `principal` may do `action` on `resource`.
    fn allows(&self, principal: &Principal, action: Action, resource: Resource) -> bool;

    /// Learns what `cluster` was given, in place of what was known before.
    fn learn(&self, cluster: &Cluster);
}

/// What a registered plugin may do.
#[derive(Clone, Debug, Default)]
struct Grants {
    keys: Vec<KeyId>,
    /// The fingerprints by which each plugin is known: two while its identity is renewed, and those
    /// of copies of its files.
    plugins: HashMap<String, Vec<String>>,
}

/// Root and local administrators may do everything; a plugin may encrypt and decrypt for its own
/// cluster, and ask about, the keys its cluster was given, and renew its own identity; a kubelet
/// may ask for one in its own cluster; nobody else may do anything.
#[derive(Debug, Default)]
pub struct BuiltinPolicy {
    clusters: RwLock<HashMap<ClusterId, Grants>>,
}

impl BuiltinPolicy {
    fn plugin_allows(&self, principal: &Principal, action: Action, resource: Resource) -> bool {
        let Principal::Plugin { cluster, name, fingerprint } = principal else { return false };
        let (key, claimed) = match resource {
            Resource::ClusterKey { key, cluster } => (key, cluster),
            Resource::Cluster(cluster) => (None, cluster),
            Resource::Key(_) | Resource::Service => return false,
        };
        let clusters = self.clusters.read();
        let Some(grants) = clusters.get(cluster) else { return false };
        let known = grants.plugins.get(&**name);
        let registered = known.is_some_and(|known| known.iter().any(|one| **one == **fingerprint));
        if !registered || claimed != *cluster {
            return false;
        }
        // What it has done already it may tell, also of a key that it lost since.
        if action == Action::PluginCachedDecrypt {
            return true;
        }
        if let Resource::Cluster(_) = resource {
            return matches!(action, Action::RenewPlugin | Action::ConfirmPlugin);
        }
        key.is_some_and(|key| grants.keys.contains(&key))
            && matches!(
                action,
                Action::PluginStatus | Action::PluginEncrypt | Action::PluginDecrypt
            )
    }
}

impl Policy for BuiltinPolicy {
    fn allows(&self, principal: &Principal, action: Action, resource: Resource) -> bool {
        match principal {
            Principal::Root { .. } | Principal::Local { .. } | Principal::System => true,
            Principal::Plugin { .. } => self.plugin_allows(principal, action, resource),
            Principal::Kubelet { cluster, .. } => {
                action == Action::EnrolNode && resource == Resource::Cluster(*cluster)
            }
        }
    }

    fn learn(&self, cluster: &Cluster) {
        let grants = Grants {
            keys: cluster.keys.clone(),
            plugins: cluster
                .plugins
                .iter()
                .map(|plugin| {
                    let known = plugin.fingerprints().map(str::to_owned);
                    (plugin.name.clone(), known.collect())
                })
                .collect(),
        };
        self.clusters.write().insert(cluster.id, grants);
    }
}
