//! Nodes: which CA vouches for their names, who is let in, who asks, and who is turned out.

mod vain;

use std::time::Duration;

use lastkey_crypto::ClusterId;

pub(crate) use self::vain::{SUM_UP_EVERY, VainRequests};
use super::{
    Command, Done, Scope,
    clusters::{AddCluster, AddedCluster, replace_plugin},
};
use crate::{
    Error, Timestamp,
    action::Action,
    audit::Record,
    caller::Principal,
    cluster::{Cluster, ClusterName},
    engine::Core,
    node::{
        Approval, Decision, Fingerprint, Kubelet, LIVES, Node, NodeName, NodeRequest, NodeRoot,
        NodeState, decide,
    },
    policy::Resource,
    records::Change,
};

/// At most this many CA certificates of one cluster: an old and a new one, with their kin.
const MAX_ROOTS: usize = 8;
/// At most this many approvals that wait for their nodes.
const MAX_APPROVALS: usize = 1_000;
/// At most this many nodes of one cluster that are enrolled or revoked.
const MAX_NODES: usize = 1_000;
/// At most this many nodes of one cluster that wait; the one that has waited longest gives way,
/// and comes back with its next request.
const MAX_WAITING: usize = 256;
/// A node's request that waits gives way to one by another key after so long; plugins ask every 15
/// seconds.
const SAME_NODE: Duration = Duration::from_secs(15);
/// At most this many requests of one cluster are noted within [`NOTED_WITHIN`]: each is a change, with
/// a record, and a CA can name any number of nodes. Who is not noted waits, and asks again.
const MAX_NOTED: usize = 64;
/// See [`MAX_NOTED`].
const NOTED_WITHIN: Duration = Duration::from_secs(60);
/// An approval by name alone is good for this long at most.
const MAX_WITHIN: Duration = Duration::from_secs(30 * 86_400);

/// Sets the CA certificates that a cluster's kubelets are checked against, and for how long its
/// plugins' certificates are good. Answers with the cluster.
#[derive(Clone, Debug)]
pub struct TrustNodes {
    /// Which cluster.
    pub cluster: ClusterId,
    /// What changes.
    pub terms: NodeTerms,
}

/// Which CA vouches for nodes, and for how long certificates are good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTerms {
    /// The certificates, in place of those before; `None` leaves them. Without any, no node can
    /// enrol.
    pub roots: Option<Vec<NodeRoot>>,
    /// The life of certificates issued from now on; `None` leaves it.
    pub life: Option<Duration>,
}

impl NodeTerms {
    fn validate(&self) -> Result<(), Error> {
        if self.roots.as_ref().is_some_and(|roots| roots.len() > MAX_ROOTS) {
            return Err(Error::LimitExceeded {
                what: "CA certificates of a cluster",
                limit: MAX_ROOTS,
            });
        }
        if self.life.is_some_and(|life| !LIVES.contains(&life)) {
            return Err(Error::invalid("CertificateLife", "give one minute to 730 days"));
        }
        Ok(())
    }

    fn note(&self, record: &mut Record) {
        if let Some(roots) = &self.roots {
            let prints: Vec<&str> = roots.iter().map(|root| root.fingerprint.as_str()).collect();
            record.field("roots", prints.join(" "));
        }
    }

    fn apply(&self, cluster: &mut Cluster) {
        if let Some(roots) = &self.roots {
            cluster.node_roots.clone_from(roots);
        }
        if let Some(life) = self.life {
            cluster.certificate_life = Some(life.as_secs());
        }
    }
}

/// Registers a cluster on terms that hold for its first plugin already, in one change.
#[derive(Clone, Debug)]
pub struct AddClusterOnTerms {
    /// The cluster.
    pub add: AddCluster,
    /// The terms.
    pub terms: NodeTerms,
}

impl Command for AddClusterOnTerms {
    const ACTION: Action = Action::AddCluster;
    type Output = AddedCluster;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        self.terms.note(record);
        self.add.resource(core, record)
    }

    fn validate(&self) -> Result<(), Error> {
        self.terms.validate()?;
        self.add.validate()
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<AddedCluster>, Error> {
        self.add.change(core, scope, |cluster| self.terms.apply(cluster))
    }
}

impl Command for TrustNodes {
    const ACTION: Action = Action::TrustNodes;
    type Output = Cluster;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        self.terms.note(record);
        Resource::Cluster(self.cluster)
    }

    fn validate(&self) -> Result<(), Error> {
        self.terms.validate()
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Cluster>, Error> {
        let old = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let mut new = old.value.clone();
        self.terms.apply(&mut new);
        Ok(Done::write(new.clone(), Change::new().update_cluster(&old, new)))
    }
}

/// Answers with clusters for a look at their nodes.
#[derive(Clone, Copy, Debug)]
pub struct ListNodes {
    /// Which one; `None` for all.
    pub cluster: Option<ClusterId>,
}

impl Command for ListNodes {
    const ACTION: Action = Action::ListNodes;
    type Output = Vec<Cluster>;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        self.cluster.map_or(Resource::Service, |cluster| {
            record.field("cluster", cluster);
            Resource::Cluster(cluster)
        })
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Vec<Cluster>>, Error> {
        let Some(id) = self.cluster else {
            let all = core.records.clusters();
            return Ok(Done::read(all.iter().map(|stored| stored.value.clone()).collect()));
        };
        let one = core.records.cluster(id).ok_or(Error::NotFound("cluster"))?;
        Ok(Done::read(vec![one.value.clone()]))
    }
}

/// Lets a node enrol, once.
#[derive(Clone, Debug)]
pub struct ApproveNode {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The node's name; may be left out where there is a fingerprint.
    pub node: Option<NodeName>,
    /// Its kubelet's certificate or key. Left out, it is the key that waits, or the first one that
    /// comes.
    pub fingerprint: Option<Fingerprint>,
    /// For how long an approval without a fingerprint is good.
    pub within: Duration,
}

/// What was approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    /// The approval.
    pub approval: Approval,
    /// Whether it is for a request that waits already.
    pub waits: bool,
}

impl Command for ApproveNode {
    const ACTION: Action = Action::ApproveNode;
    type Output = Approved;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        if let Some(node) = &self.node {
            record.field("target", node);
        }
        Resource::Cluster(self.cluster)
    }

    fn validate(&self) -> Result<(), Error> {
        if self.node.is_none() && self.fingerprint.is_none() {
            return Err(Error::MissingParameter("Node"));
        }
        if self.within.is_zero() || self.within > MAX_WITHIN {
            return Err(Error::invalid("Within", "give at most 30 days"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Approved>, Error> {
        let old = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let mut new = old.value.clone();
        let now = core.clock.now();
        let waiting = |node: &&Node| {
            node.request.as_ref().is_some_and(|request| {
                let print = self.fingerprint.as_ref();
                print.is_none_or(|print| *print == request.key || *print == request.certificate)
            }) && self.node.as_ref().is_none_or(|name| *name == node.name)
        };
        let waiting = new.nodes.iter().find(waiting).and_then(|node| node.request.clone());
        let fingerprint =
            self.fingerprint.clone().or_else(|| waiting.as_ref().map(|one| one.key.clone()));
        let until = fingerprint.is_none().then(|| now.after(self.within));
        let approval = Approval { node: self.node.clone(), fingerprint, given: now, until };
        if let Some(print) = &approval.fingerprint {
            scope.record.field("fingerprint", print);
        }
        new.approvals.retain(|known| {
            let same = known.node == approval.node && known.fingerprint == approval.fingerprint;
            !same && known.until.is_none_or(|until| now < until)
        });
        if new.approvals.len() >= MAX_APPROVALS {
            return Err(Error::LimitExceeded { what: "approvals", limit: MAX_APPROVALS });
        }
        new.approvals.push(approval.clone());
        let approved = Approved { approval, waits: waiting.is_some() };
        Ok(Done::write(approved, Change::new().update_cluster(&old, new)))
    }
}

/// Ends an identity at once.
#[derive(Clone, Debug)]
pub struct RevokeNode {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Whose.
    pub which: Revocation,
}

/// Whose identity ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// This node's; its approvals end, too, and it stays out until it is approved by its name.
    Node(NodeName),
    /// That of a plugin that got its certificate otherwise.
    Plugin(ClusterName),
}

impl Command for RevokeNode {
    const ACTION: Action = Action::RevokeNode;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        match &self.which {
            Revocation::Node(node) => record.field("target", node.plugin()),
            Revocation::Plugin(name) => record.field("target", name),
        }
        Resource::Cluster(self.cluster)
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let old = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let mut new = old.value.clone();
        match &self.which {
            Revocation::Node(node) => turn_out(&mut new, node, core.clock.now())?,
            Revocation::Plugin(name) => {
                new.plugins.retain(|plugin| plugin.name != name.as_str());
                if new.plugins.len() == old.value.plugins.len() {
                    return Err(Error::NotFound("plugin"));
                }
            }
        }
        Ok(Done::write((), Change::new().update_cluster(&old, new)))
    }
}

fn turn_out(cluster: &mut Cluster, name: &NodeName, now: Timestamp) -> Result<(), Error> {
    let known = cluster.node(name).cloned();
    let is_approved = |approval: &Approval| approval.node.as_ref() == Some(name);
    if known.is_none() && !cluster.approvals.iter().any(is_approved) {
        return Err(Error::NotFound("node"));
    }
    let mut prints = Vec::new();
    if let Some(node) = known {
        prints.extend(node.key);
        prints.extend(node.request.into_iter().flat_map(|one| [one.key, one.certificate]));
    }
    let is_its_key = |approval: &Approval| {
        approval.fingerprint.as_ref().is_some_and(|print| prints.contains(print))
    };
    cluster.approvals.retain(|approval| !is_approved(approval) && !is_its_key(approval));
    let plugin = name.plugin();
    cluster.plugins.retain(|known| known.name != plugin);
    put_node(
        cluster,
        Node {
            name: name.clone(),
            state: NodeState::Revoked,
            key: None,
            request: None,
            changed: now,
        },
    )
}

/// Puts a node in the place of the one of its name.
fn put_node(cluster: &mut Cluster, node: Node) -> Result<(), Error> {
    cluster.nodes.retain(|known| known.name != node.name);
    let waits = |node: &Node| node.state == NodeState::Waiting;
    let alike = cluster.nodes.iter().filter(|known| waits(known) == waits(&node)).count();
    if waits(&node) && alike >= MAX_WAITING {
        let places = cluster.nodes.iter().enumerate();
        let longest = places.filter(|(_, known)| waits(known)).min_by_key(|(_, one)| one.changed);
        if let Some(at) = longest.map(|(at, _)| at) {
            cluster.nodes.remove(at);
        }
    } else if !waits(&node) && alike >= MAX_NODES {
        return Err(Error::LimitExceeded { what: "nodes of a cluster", limit: MAX_NODES });
    }
    cluster.nodes.push(node);
    Ok(())
}

/// Asks for a plugin's identity, as a kubelet.
#[derive(Clone, Debug)]
pub struct EnrolNode {
    /// The cluster, which the kubelet's certificate was checked against.
    pub cluster: ClusterId,
    /// SHA-256 of the plugin's public key (SubjectPublicKeyInfo), lower-case hex.
    pub plugin: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// The plugin's key is registered; a certificate over it may be issued, until then.
    LetIn {
        /// The plugin's name within its cluster.
        name: String,
        /// When the certificate ends.
        not_after: Timestamp,
    },
    /// Nobody has approved it yet.
    Waiting {
        /// The node.
        node: NodeName,
        /// The kubelet's key, for whoever approves it.
        key: Fingerprint,
    },
}

impl Command for EnrolNode {
    const ACTION: Action = Action::EnrolNode;
    type Output = Enrolment;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Cluster(self.cluster)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Enrolment>, Error> {
        // Not even the account root may be a node.
        let Principal::Kubelet { node, certificate, key, .. } = &scope.caller.principal else {
            return Err(Error::Denied);
        };
        let who = Kubelet { node, certificate, key };
        scope.record.field("kubelet_key", key);
        let old = core.records.cluster(self.cluster).ok_or(Error::Denied)?;
        let now = core.clock.now();
        let known = old.value.node(node);
        let terms = (now, !shares_its_ca(core, &old.value));
        match decide(&who, known, &old.value.approvals, terms) {
            Decision::Refuse => Err(Error::NodeRevoked),
            Decision::Wait => {
                scope.record.field("decision", "waiting");
                let answer = Enrolment::Waiting { node: node.clone(), key: key.clone() };
                let request = known.and_then(|node| node.request.as_ref());
                let is_same =
                    |one: &NodeRequest| one.key == *key && one.certificate == *certificate;
                if request.is_some_and(is_same) || is_too_soon(&old.value, node, now) {
                    return Ok(Done::read(answer));
                }
                let mut new = old.value.clone();
                wait(&mut new, &who, now)?;
                Ok(Done::write(answer, Change::new().update_cluster(&old, new)))
            }
            Decision::LetIn(approval) => {
                scope.record.field("decision", "enrolled");
                scope.record.field("fingerprint", &self.plugin);
                let mut new = old.value.clone();
                if let Some(at) = approval {
                    new.approvals.remove(at);
                }
                let (name, fingerprint) = (node.plugin(), self.plugin.clone());
                let not_after = replace_plugin(&mut new, name.clone(), fingerprint, now)?;
                let enrolled = Node {
                    name: node.clone(),
                    state: NodeState::Enrolled,
                    key: Some(key.clone()),
                    request: None,
                    changed: now,
                };
                put_node(&mut new, enrolled)?;
                let answer = Enrolment::LetIn { name, not_after };
                Ok(Done::write(answer, Change::new().update_cluster(&old, new)))
            }
        }
    }
}

/// Whether a request of that node has to come again to be noted.
fn is_too_soon(cluster: &Cluster, name: &NodeName, now: Timestamp) -> bool {
    // One that was noted under a clock ahead of this one keeps nobody out.
    let is_noted = |node: &Node, within: Duration| {
        let since = node.request.as_ref().map(|request| request.since);
        since.is_some_and(|since| since <= now && now.since(since) < within)
    };
    let lately = cluster.nodes.iter().filter(|node| is_noted(node, NOTED_WITHIN)).count();
    lately >= MAX_NOTED || cluster.node(name).is_some_and(|node| is_noted(node, SAME_NODE))
}

/// Notes a request that waits; what an enrolled node has stays good.
fn wait(cluster: &mut Cluster, who: &Kubelet<'_>, now: Timestamp) -> Result<(), Error> {
    let (certificate, key) = (who.certificate.clone(), who.key.clone());
    let request = Some(NodeRequest { certificate, key, since: now });
    let node = match cluster.node(who.node).cloned() {
        Some(node) if node.state == NodeState::Enrolled => Node { request, ..node },
        _ => Node {
            name: who.node.clone(),
            state: NodeState::Waiting,
            key: None,
            request,
            changed: now,
        },
    };
    put_node(cluster, node)
}

/// Whether another cluster trusts the same CA, which then cannot tell their nodes apart.
fn shares_its_ca(core: &Core, cluster: &Cluster) -> bool {
    core.records.clusters().iter().filter(|other| other.value.id != cluster.id).any(|other| {
        let theirs = &other.value.node_roots;
        theirs.iter().any(|root| cluster.node_roots.iter().any(|own| own.key == root.key))
    })
}
