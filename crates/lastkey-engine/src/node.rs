//! Nodes that get a plugin's identity by their kubelet certificate: what is trusted, who was
//! approved, who waits, and who was turned out.
//!
//! A certificate of the cluster's own CA proves which node asks and nothing else; the operator's
//! approval lets it in. What becomes of a request ([`decide`]):
//!
//! | the node is | its key is the one that was let in | an approval fits | neither |
//! |---|---|---|---|
//! | unknown | – | let in | waits |
//! | waiting | – | let in | waits |
//! | enrolled | let in | let in | waits; the identity it has stays good |
//! | revoked | refused | let in, if the approval names the node | refused |
//!
//! An approval is good for one node and one time. From then on the node's kubelet key stands for
//! it: with the same key it may enrol again, with another one it needs another approval.

use std::time::Duration;

use lastkey_crypto::mac;
use serde::{Deserialize, Serialize};

use crate::{Error, Timestamp};

/// How long a certificate of an enrolled node is good unless the cluster says otherwise.
pub const NODE_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// How long a certificate that `cluster add` made is good unless the cluster says otherwise.
pub const PLUGIN_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The shortest and the longest life that a cluster may choose.
pub const LIVES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(730 * 86_400);

/// A node's name: a DNS subdomain as Kubernetes names nodes (RFC 1123), at most 253 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with what is allowed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let label = |label: &str| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(edge)
                && bytes.last().is_some_and(edge)
                && bytes.iter().all(|b| edge(b) || *b == b'-')
        };
        if text.len() > 253 || !text.split('.').all(label) {
            return Err(Error::invalid(
                "Node",
                "give the node's name as Kubernetes has it: lower-case letters, digits, hyphens \
                 and dots",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the node's plugin is called among the plugins of its cluster. No other plugin can have
    /// a slash in its name.
    pub fn plugin(&self) -> String {
        format!("{NODE_PLUGIN}{}", self.0)
    }
}

/// Begins the name of a plugin that its node enrolled.
pub(crate) const NODE_PLUGIN: &str = "node/";

impl TryFrom<String> for NodeName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SHA-256 of a certificate (DER) or of a public key (SubjectPublicKeyInfo), as 64 lower-case
/// hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of these bytes.
    pub fn of(der: &[u8]) -> Self {
        Self(hex::encode(mac::sha256(&[der])))
    }

    /// Reads what tools print: 64 digits of either case, with or without colons and `sha256:`
    /// before them.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with what is expected.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let lower = text.trim().to_ascii_lowercase();
        let prefixes = ["sha256:", "sha256 fingerprint=", "sha256="];
        let digits = prefixes.iter().find_map(|prefix| lower.strip_prefix(prefix));
        let digits: String = digits.unwrap_or(&lower).chars().filter(|c| *c != ':').collect();
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::invalid(
                "Fingerprint",
                "give the SHA-256 of the kubelet's certificate or public key as 64 hexadecimal \
                 digits",
            ));
        }
        Ok(Self(digits))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A CA certificate that a cluster's kubelets are checked against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRoot {
    /// The certificate, DER in base64.
    pub certificate: String,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// The fingerprint of its public key: two certificates of one CA have the same.
    pub key: Fingerprint,
}

/// The operator's leave for a node to enrol, good for one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Which node; `None` for whichever has the certificate or key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// The kubelet's certificate or public key; `None` for the first that comes by the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// When it was given.
    pub given: Timestamp,
    /// When it ends; one that names a certificate or key does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Approval {
    /// Whether it is for this request. With `name_proves`, the name alone may be enough.
    fn fits(&self, who: &Kubelet<'_>, now: Timestamp, name_proves: bool) -> bool {
        let key = |print: &Fingerprint| print == who.key || print == who.certificate;
        self.until.is_none_or(|until| now < until)
            && self.node.as_ref().is_none_or(|node| node == who.node)
            && match &self.fingerprint {
                Some(print) => key(print),
                None => name_proves && self.node.is_some(),
            }
    }
}

/// A request that waits for approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequest {
    /// The kubelet's certificate.
    pub certificate: Fingerprint,
    /// The kubelet's public key.
    pub key: Fingerprint,
    /// When it came first.
    pub since: Timestamp,
}

/// What a node is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It asked, and nobody has approved it.
    Waiting,
    /// Its plugin has an identity.
    Enrolled,
    /// It was turned out, and stays out until it is approved by its name.
    Revoked,
}

impl NodeState {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Enrolled => "enrolled",
            Self::Revoked => "revoked",
        }
    }
}

/// A node that has asked at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub state: NodeState,
    /// The kubelet key that was let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Fingerprint>,
    /// What waits for approval; an enrolled node may ask with another key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<NodeRequest>,
    /// When its state changed last.
    pub changed: Timestamp,
}

/// Who asks, as its kubelet certificate proves it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kubelet<'a> {
    pub(crate) node: &'a NodeName,
    pub(crate) certificate: &'a Fingerprint,
    pub(crate) key: &'a Fingerprint,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Let in; with the approval's place in the list, if one was needed.
    LetIn(Option<usize>),
    Wait,
    Refuse,
}

/// Decides about a request: see the table above.
pub(crate) fn decide(
    who: &Kubelet<'_>,
    known: Option<&Node>,
    approvals: &[Approval],
    (now, name_proves): (Timestamp, bool),
) -> Decision {
    let revoked = known.is_some_and(|node| node.state == NodeState::Revoked);
    let is_known_key = known.is_some_and(|node| {
        node.state == NodeState::Enrolled && node.key.as_ref() == Some(who.key)
    });
    if is_known_key {
        return Decision::LetIn(None);
    }
    let fits = |approval: &Approval| {
        approval.fits(who, now, name_proves) && (!revoked || approval.node.is_some())
    };
    match approvals.iter().position(fits) {
        Some(at) => Decision::LetIn(Some(at)),
        None if revoked => Decision::Refuse,
        None => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn print(of: &str) -> Fingerprint {
        Fingerprint::of(of.as_bytes())
    }

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    fn approval(node: Option<&str>, fingerprint: Option<&str>) -> Approval {
        Approval {
            node: node.map(name),
            fingerprint: fingerprint.map(print),
            given: NOW,
            until: None,
        }
    }

    fn decided(known: Option<NodeState>, approvals: &[Approval], name_proves: bool) -> Decision {
        let (node, certificate, key) = (name("cp-1"), print("certificate"), print("key"));
        let who = Kubelet { node: &node, certificate: &certificate, key: &key };
        let known = known.map(|state| Node {
            name: node.clone(),
            state,
            key: Some(print("key")),
            request: None,
            changed: NOW,
        });
        decide(&who, known.as_ref(), approvals, (NOW, name_proves))
    }

    /// Every state with every kind of approval.
    #[test]
    fn the_table() {
        use NodeState::{Enrolled, Revoked, Waiting};
        let by_name = approval(Some("cp-1"), None);
        let by_both = approval(Some("cp-1"), Some("key"));
        let by_certificate = approval(None, Some("certificate"));
        let other_key = approval(Some("cp-1"), Some("other"));
        let other_node = approval(Some("cp-2"), Some("key"));
        let late = Approval { until: Some(NOW), ..by_name.clone() };
        let of = |state, approval: &Approval| decided(state, std::slice::from_ref(approval), true);
        for state in [None, Some(Waiting), Some(Revoked)] {
            assert_eq!(of(state, &by_name), Decision::LetIn(Some(0)), "{state:?}");
            assert_eq!(of(state, &by_both), Decision::LetIn(Some(0)), "{state:?}");
            let otherwise = if state == Some(Revoked) { Decision::Refuse } else { Decision::Wait };
            for wrong in [&other_key, &other_node, &late] {
                assert_eq!(of(state, wrong), otherwise, "{state:?} {wrong:?}");
            }
            assert_eq!(decided(state, &[], true), otherwise, "{state:?}");
        }
        assert_eq!(of(None, &by_certificate), Decision::LetIn(Some(0)));
        assert_eq!(of(Some(Waiting), &by_certificate), Decision::LetIn(Some(0)));
        // Who was turned out is not let in by somebody who may not have known.
        assert_eq!(of(Some(Revoked), &by_certificate), Decision::Refuse);
        // The key that was let in before needs nothing.
        assert_eq!(decided(Some(Enrolled), &[], true), Decision::LetIn(None));
        assert_eq!(of(Some(Enrolled), &other_key), Decision::LetIn(None));
    }

    #[test]
    fn an_enrolled_node_with_another_key_needs_another_approval() {
        let (node, certificate, key) = (name("cp-1"), print("new certificate"), print("new key"));
        let who = Kubelet { node: &node, certificate: &certificate, key: &key };
        let known = Node {
            name: node.clone(),
            state: NodeState::Enrolled,
            key: Some(print("key")),
            request: None,
            changed: NOW,
        };
        let of = |approvals: &[Approval]| decide(&who, Some(&known), approvals, (NOW, true));
        assert_eq!(of(&[]), Decision::Wait);
        assert_eq!(of(&[approval(Some("cp-1"), Some("key"))]), Decision::Wait);
        assert_eq!(of(&[approval(Some("cp-1"), Some("new key"))]), Decision::LetIn(Some(0)));
    }

    /// Two clusters with one CA: its word on a name is not enough to tell their nodes apart.
    #[test]
    fn where_the_name_proves_nothing_a_fingerprint_is_needed() {
        let by_name = [approval(Some("cp-1"), None)];
        assert_eq!(decided(None, &by_name, false), Decision::Wait);
        let by_both = [approval(Some("cp-1"), Some("key"))];
        assert_eq!(decided(None, &by_both, false), Decision::LetIn(Some(0)));
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        for good in ["a", "cp-1", "ip-10-0-0-1.eu.compute.internal", "1", &"x".repeat(253)] {
            assert!(NodeName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a.", "a_b", "a/b", "ü", &"x".repeat(254)] {
            assert!(NodeName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fingerprints_are_read_as_tools_print_them() {
        let plain = print("x");
        let colons: Vec<String> = plain
            .as_str()
            .to_uppercase()
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).into_owned())
            .collect();
        let colons = colons.join(":");
        for text in [
            plain.as_str().to_owned(),
            format!("sha256:{plain}"),
            format!("SHA256 Fingerprint={colons}"),
            format!("sha256 Fingerprint={colons}\n"),
        ] {
            assert_eq!(Fingerprint::parse(&text).unwrap(), plain, "{text}");
        }
        for bad in ["", "abc", &"g".repeat(64), &"a".repeat(63), "sha1:aa"] {
            assert!(Fingerprint::parse(bad).is_err(), "{bad}");
        }
    }
}
