//! Nodes: what vouches for them, who was approved, who asks, who is turned out; and how a plugin's
//! identity is renewed.
//!
//! A kubelet is heard at `/v1/clusters/<id>/nodes/enrol` and nowhere else. Its caller was proven by
//! then: the certificate leads to a root of that very cluster (`identity.rs`). In `docs/nodes.md`
//! the steps are described for operators.

use std::time::Duration;

use http::Method;
use lastkey_crypto::ClusterId;
use lastkey_engine::{
    Approval, Cluster, ClusterName, Error, Fingerprint, NodeName, NodeState, Taken, Timestamp,
    command::{
        ApproveNode, ConfirmPlugin, EnrolNode, Enrolment, ListNodes, NodeTerms, RenewPlugin,
        Revocation, RevokeNode, TrustNodes,
    },
};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, Refusal, Route, clusters::Issued, json};
use crate::{
    taken::unconfirmed,
    tls::{Csr, roots_of},
};

/// An approval by name alone is good for this long, unless somebody says otherwise.
const WITHIN: Duration = Duration::from_secs(86_400);

/// What is asked about nodes, and of which cluster: `None` of all.
fn parse(path: &str) -> Option<(Option<ClusterId>, &str)> {
    if path == "/v1/nodes" {
        return Some((None, ""));
    }
    let (id, what) = path.strip_prefix("/v1/clusters/")?.split_once("/nodes")?;
    let what = match what.strip_prefix('/') {
        Some(what) => what,
        None if what.is_empty() => "",
        None => return None,
    };
    Some((Some(id.parse().ok()?), what))
}

/// The route of a path that is about nodes or identities.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    let (get, post) = match path {
        "/v1/plugin/renew" => (None, Some(Route::RenewPlugin)),
        "/v1/plugin/confirm" => (None, Some(Route::ConfirmPlugin)),
        _ => match parse(path)? {
            (_, "") => (Some(Route::ListNodes), None),
            (Some(_), "trust") => (None, Some(Route::TrustNodes)),
            (Some(_), "approve") => (None, Some(Route::ApproveNode)),
            (Some(_), "revoke") => (None, Some(Route::RevokeNode)),
            (Some(_), "enrol") => (None, Some(Route::EnrolNode)),
            _ => return None,
        },
    };
    let route = match *method {
        Method::GET => get,
        Method::POST => post,
        _ => None,
    };
    Some(route.ok_or(Refusal::WrongMethod))
}

/// The cluster in which a request to this path asks to enrol.
pub(crate) fn enrols_in(path: &str) -> Option<ClusterId> {
    match parse(path)? {
        (Some(cluster), "enrol") => Some(cluster),
        _ => None,
    }
}

fn cluster_in(path: &str) -> Result<ClusterId, Refusal> {
    let cluster = parse(path).and_then(|(cluster, _)| cluster);
    Ok(cluster.ok_or(Error::NotFound("cluster"))?)
}

#[derive(Serialize)]
struct Items<T> {
    items: Vec<T>,
    next: Option<u64>,
}

/// A node, or an approval of one that has not come yet.
#[derive(Serialize)]
struct NodeJson {
    cluster: ClusterId,
    cluster_name: Option<String>,
    node: Option<NodeName>,
    /// `approved`, `waiting`, `enrolled` or `revoked`.
    state: &'static str,
    /// The kubelet key that was let in, or the certificate or key that was approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    kubelet_key: Option<Fingerprint>,
    /// What waits for approval; an enrolled node may ask with another key.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_key: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_certificate: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_since: Option<Timestamp>,
    /// When the plugin's certificate ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
    /// When the approval ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    approved_until: Option<Timestamp>,
    changed_at: Timestamp,
}

fn nodes_of(cluster: &Cluster, now: Timestamp) -> Vec<NodeJson> {
    let name = || cluster.name.as_ref().map(|name| name.as_str().to_owned());
    let known = cluster.nodes.iter().map(|node| NodeJson {
        cluster: cluster.id,
        cluster_name: name(),
        node: Some(node.name.clone()),
        state: node.state.name(),
        kubelet_key: node.key.clone(),
        waiting_key: node.request.as_ref().map(|one| one.key.clone()),
        waiting_certificate: node.request.as_ref().map(|one| one.certificate.clone()),
        waiting_since: node.request.as_ref().map(|one| one.since),
        not_after: match node.state {
            NodeState::Enrolled => {
                cluster.plugin(&node.name.plugin()).and_then(|plugin| plugin.ends())
            }
            NodeState::Waiting | NodeState::Revoked => None,
        },
        approved_until: None,
        changed_at: node.changed,
    });
    let is_good = |approval: &&Approval| approval.until.is_none_or(|until| now < until);
    let approved = cluster.approvals.iter().filter(is_good).map(|approval| NodeJson {
        cluster: cluster.id,
        cluster_name: name(),
        node: approval.node.clone(),
        state: "approved",
        kubelet_key: approval.fingerprint.clone(),
        waiting_key: None,
        waiting_certificate: None,
        waiting_since: None,
        not_after: None,
        approved_until: approval.until,
        changed_at: approval.given,
    });
    let mut nodes: Vec<NodeJson> = known.chain(approved).collect();
    nodes.sort_by(|a, b| (&a.node, a.state).cmp(&(&b.node, b.state)));
    nodes
}

pub(super) async fn list(call: &Call<'_>, path: &str) -> Answer {
    let cluster = parse(path).and_then(|(cluster, _)| cluster);
    let clusters = call.execute(ListNodes { cluster }).await?;
    let now = call.context.engine.clock().now();
    let items = clusters.iter().flat_map(|cluster| nodes_of(cluster, now)).collect();
    json(&Items { items, next: None })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trust {
    /// The CA certificates, in place of those before; an empty text is none.
    ca_pem: Option<String>,
    certificate_life_seconds: Option<u64>,
}

#[derive(Serialize)]
struct Trusted {
    cluster: ClusterId,
    name: Option<String>,
    /// The SHA-256 of each CA certificate (DER).
    roots: Vec<Fingerprint>,
    certificate_life_seconds: u64,
}

pub(super) async fn trust(call: &Call<'_>, path: &str) -> Answer {
    let cluster = cluster_in(path)?;
    let trust: Trust = call.read()?;
    let now = call.context.engine.clock().now();
    let roots = trust.ca_pem.as_deref().map(|pem| roots_of(pem, now)).transpose()?;
    let life = trust.certificate_life_seconds.map(Duration::from_secs);
    let terms = NodeTerms { roots, life };
    let cluster = call.execute(TrustNodes { cluster, terms }).await?;
    json(&Trusted {
        cluster: cluster.id,
        certificate_life_seconds: cluster.life_for("node/").as_secs(),
        roots: cluster.node_roots.into_iter().map(|root| root.fingerprint).collect(),
        name: cluster.name.map(Into::into),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Approve {
    node: Option<String>,
    fingerprint: Option<String>,
    within_seconds: Option<u64>,
}

#[derive(Serialize)]
struct ApprovedJson {
    cluster: ClusterId,
    node: Option<NodeName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    /// Whether a request waits for it.
    waits: bool,
}

pub(super) async fn approve(call: &Call<'_>, path: &str) -> Answer {
    let cluster = cluster_in(path)?;
    let approve: Approve = call.read()?;
    let approved = call
        .execute(ApproveNode {
            cluster,
            node: approve.node.as_deref().map(NodeName::parse).transpose()?,
            fingerprint: approve.fingerprint.as_deref().map(Fingerprint::parse).transpose()?,
            within: approve.within_seconds.map_or(WITHIN, Duration::from_secs),
        })
        .await?;
    let Approval { node, fingerprint, until, .. } = approved.approval;
    json(&ApprovedJson { cluster, node, fingerprint, until, waits: approved.waits })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    node: Option<String>,
    plugin: Option<String>,
}

#[derive(Serialize)]
struct Revoked {
    cluster: ClusterId,
    revoked: String,
    /// Who has not confirmed yet, and until when that may matter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unconfirmed: Vec<Held>,
}

#[derive(Serialize)]
struct Held {
    plugin: String,
    lease_ends: Timestamp,
}

pub(super) async fn revoke(call: &Call<'_>, path: &str) -> Answer {
    let cluster = cluster_in(path)?;
    let revoke: Revoke = call.read()?;
    let (which, revoked) = match (revoke.node, revoke.plugin) {
        (Some(node), None) => (Revocation::Node(NodeName::parse(&node)?), node),
        (None, Some(plugin)) => (Revocation::Plugin(ClusterName::parse(&plugin)?), plugin),
        _ => return Err(Error::MissingParameter("node").into()),
    };
    let name = match &which {
        Revocation::Node(node) => node.plugin(),
        Revocation::Plugin(plugin) => plugin.as_str().to_owned(),
    };
    call.execute(RevokeNode { cluster, which }).await?;
    let held = unconfirmed(call.context.engine, &Taken::Plugin { cluster, name }).await?;
    let unconfirmed = held.into_iter().map(|it| Held { plugin: it.plugin, lease_ends: it.until });
    json(&Revoked { cluster, revoked, unconfirmed: unconfirmed.collect() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    csr_pem: String,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
enum Enrolled<'a> {
    Enrolled(Issued<'a>),
    Waiting { node: NodeName, kubelet_key: Fingerprint },
}

pub(super) async fn enrol(call: &Call<'_>, path: &str) -> Answer {
    let cluster = cluster_in(path)?;
    let csr = read_csr(call)?;
    match call.execute(EnrolNode { cluster, plugin: csr.fingerprint() }).await? {
        Enrolment::Waiting { node, key } => json(&Enrolled::Waiting { node, kubelet_key: key }),
        Enrolment::LetIn { name, not_after } => {
            json(&Enrolled::Enrolled(issue(call, &csr, (&cluster, &name, not_after))?))
        }
    }
}

/// Over a plugin's present identity, another one, over another key.
pub(super) async fn renew(call: &Call<'_>) -> Answer {
    let csr = read_csr(call)?;
    let caller = call.caller.principal.clone();
    let renew = RenewPlugin { caller, fingerprint: csr.fingerprint() };
    let not_after = call.execute(renew).await?;
    let lastkey_engine::Principal::Plugin { cluster, name, .. } = &call.caller.principal else {
        return Err(Error::Denied.into());
    };
    json(&issue(call, &csr, (cluster, name, not_after))?)
}

#[derive(Serialize)]
struct Confirmed {
    /// Whether another identity has ended by this.
    replaced: bool,
}

pub(super) async fn confirm(call: &Call<'_>) -> Answer {
    let caller = call.caller.principal.clone();
    json(&Confirmed { replaced: call.execute(ConfirmPlugin { caller }).await? })
}

fn read_csr(call: &Call<'_>) -> Result<Csr, Refusal> {
    let request: Request = call.read()?;
    Ok(call.context.pki.read_csr(&request.csr_pem)?)
}

fn issue<'a>(
    call: &'a Call<'_>,
    csr: &Csr,
    plugin: (&ClusterId, &str, Timestamp),
) -> Result<Issued<'a>, Refusal> {
    let pki = call.context.pki;
    let issued = pki.issue_plugin(call.context.engine, csr, plugin)?;
    Ok(Issued {
        certificate_pem: issued.certificate_pem,
        not_after: issued.not_after,
        ca_pem: pki.ca_pem(),
    })
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    if let Ok(trust) = serde_json::from_slice::<Trust>(bytes) {
        let now = Timestamp::from_millis(0);
        let _ = trust.ca_pem.map(|pem| roots_of(&pem, now));
    }
    if let Ok(approve) = serde_json::from_slice::<Approve>(bytes) {
        let _ = approve.fingerprint.map(|print| Fingerprint::parse(&print));
    }
    if let Ok(revoke) = serde_json::from_slice::<Revoke>(bytes) {
        let _ = revoke.node.map(|node| NodeName::parse(&node));
    }
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let _ = Csr::parse(&request.csr_pem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_is_heard_at_one_place() {
        let id = "83eb9abc-da3e-494e-b0e6-96b3c401cd15";
        let path = format!("/v1/clusters/{id}/nodes/enrol");
        assert_eq!(enrols_in(&path).unwrap().to_string(), id);
        for other in [
            "/".to_owned(),
            "/v1/plugin/encrypt".to_owned(),
            "/v1/nodes".to_owned(),
            "/v1/clusters//nodes/enrol".to_owned(),
            "/v1/clusters/x/nodes/enrol".to_owned(),
            format!("/v1/clusters/{id}/nodes"),
            format!("/v1/clusters/{id}/nodesenrol"),
            format!("/v1/clusters/{id}/nodes/approve"),
            format!("/v1/clusters/{id}/nodes/enrol/"),
            format!("/v1/clusters/{id}/nodes/enrol/x"),
            format!("/v1/clusters/{id}/plugins"),
            format!("//v1/clusters/{id}/nodes/enrol"),
        ] {
            assert_eq!(enrols_in(&other), None, "{other}");
        }
    }
}
