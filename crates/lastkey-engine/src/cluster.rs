//! Clusters: an id of their own, the keys they were given, and the plugins that act for them.

use std::time::Duration;

use lastkey_crypto::{ClusterId, KeyId};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Timestamp,
    node::{Approval, NODE_LIFE, NODE_PLUGIN, Node, NodeName, NodeRoot, PLUGIN_LIFE},
};

/// Calls that began under a certificate have ended so long after it: the longest wait for a minute.
const LAST_CALLS: Duration = Duration::from_secs(10 * 60);

/// A registered cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Random, drawn when the cluster was registered; bound to every ciphertext made for it.
    pub id: ClusterId,
    /// Its name; `None` for the one a first start makes, until somebody names it.
    pub name: Option<ClusterName>,
    /// The keys its plugins may use.
    pub keys: Vec<KeyId>,
    /// When it was registered.
    pub created: Timestamp,
    /// The identities that act for it.
    pub plugins: Vec<PluginIdentity>,
    /// The CA certificates that its kubelets are checked against.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_roots: Vec<NodeRoot>,
    /// How long its plugins' certificates are good, in seconds; `None` for what is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_life: Option<u64>,
    /// Nodes that were approved and have not come yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// Nodes that have come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// What the server does by itself when one of its keys has a new version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<Automatic>,
    /// Whether it is a dependant of a key from its plugins' first use on. Of one that a release
    /// before registered nobody knows which keys they have used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uses_noted: bool,
}

/// The server brings a cluster under a new version by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Automatic {
    /// And has the older versions retired once nothing needs them.
    #[serde(default)]
    pub retire: bool,
}

impl Cluster {
    /// A cluster without keys, plugins or nodes.
    pub(crate) fn new(id: ClusterId, created: Timestamp) -> Self {
        Self {
            id,
            name: None,
            keys: Vec::new(),
            created,
            plugins: Vec::new(),
            node_roots: Vec::new(),
            certificate_life: None,
            approvals: Vec::new(),
            nodes: Vec::new(),
            automatic: None,
            uses_noted: true,
        }
    }

    /// How long a certificate for the plugin of that name is good.
    pub fn life_for(&self, plugin: &str) -> Duration {
        let usual = if plugin.starts_with(NODE_PLUGIN) { NODE_LIFE } else { PLUGIN_LIFE };
        self.certificate_life.map_or(usual, Duration::from_secs)
    }

    /// What people call it: its name, or its id where it has none.
    pub(crate) fn shown(&self) -> String {
        let name = self.name.as_ref().map(|name| name.as_str().to_owned());
        name.unwrap_or_else(|| self.id.to_string())
    }

    /// The plugin of that name.
    pub fn plugin(&self, name: &str) -> Option<&PluginIdentity> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }

    /// The node of that name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == *name)
    }
}

/// One plugin's identity: a certificate of our CA over this public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginIdentity {
    /// Its name within the cluster.
    pub name: String,
    /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo), lower-case hex.
    pub fingerprint: String,
    /// When it was registered.
    pub created: Timestamp,
    /// When its certificate ends; `None` for one that was registered by a release before this was
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// The identity that replaces this one as soon as the plugin says that it goes by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextIdentity>,
    /// Further identities that copies of its files may go by, each good until its certificate ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<OtherIdentity>,
    /// Whether several plugins were seen to go by its files at the same time. One of them that is
    /// off while another renews is not cut off by that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// An identity beside the one that was confirmed last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherIdentity {
    /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo), lower-case hex.
    pub fingerprint: String,
    /// When it was registered.
    pub created: Timestamp,
    /// When its certificate ends; `None` where that was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

impl From<NextIdentity> for OtherIdentity {
    fn from(next: NextIdentity) -> Self {
        let NextIdentity { fingerprint, created, not_after } = next;
        Self { fingerprint, created, not_after: Some(not_after) }
    }
}

/// A renewed identity, of which the plugin may not have heard yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextIdentity {
    /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo), lower-case hex.
    pub fingerprint: String,
    /// When it was registered.
    pub created: Timestamp,
    /// When its certificate ends.
    pub not_after: Timestamp,
}

impl PluginIdentity {
    /// The plugin of that name, by the one identity that it has.
    pub(crate) fn new(
        name: String,
        fingerprint: String,
        (created, ends): (Timestamp, Timestamp),
    ) -> Self {
        let not_after = Some(ends);
        Self {
            name,
            fingerprint,
            created,
            not_after,
            next: None,
            beside: Vec::new(),
            shared: false,
        }
    }

    /// The fingerprints by which it is known.
    pub fn fingerprints(&self) -> impl Iterator<Item = &str> {
        let next = self.next.iter().map(|next| &*next.fingerprint);
        let beside = self.beside.iter().map(|other| &*other.fingerprint);
        std::iter::once(&*self.fingerprint).chain(next).chain(beside)
    }

    /// All its identities: each one's fingerprint, when it was registered, and when it ends.
    fn identities(&self) -> impl Iterator<Item = (&str, Timestamp, Option<Timestamp>)> {
        let next = self.next.iter();
        let next = next.map(|next| (&*next.fingerprint, next.created, Some(next.not_after)));
        let beside = self.beside.iter();
        let beside = beside.map(|other| (&*other.fingerprint, other.created, other.not_after));
        std::iter::once((&*self.fingerprint, self.created, self.not_after))
            .chain(next)
            .chain(beside)
    }

    /// When the last of its identities was registered.
    pub(crate) fn newest_created(&self) -> Timestamp {
        self.newest().1
    }

    /// The newest of its identities, whichever copy of its files goes by it.
    fn newest(&self) -> (&str, Timestamp, Option<Timestamp>) {
        let first = (&*self.fingerprint, self.created, self.not_after);
        self.identities().fold(first, |newest, it| if newest.1 < it.1 { it } else { newest })
    }

    /// When its newest certificate ends.
    pub fn ends(&self) -> Option<Timestamp> {
        self.newest().2
    }

    /// Whether its newest certificate should have been renewed by now: a plugin does that with a
    /// third of the life left, and this says so once only a quarter is.
    pub fn is_late(&self, now: Timestamp) -> bool {
        let (_, created, Some(ends)) = self.newest() else { return false };
        is_late((created, ends), now)
    }
}

impl OtherIdentity {
    /// Whether its certificate has ended, and so has every call that came by it: one that waits for
    /// an answer when it ends is no stranger's.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|ends| ends.after(LAST_CALLS) < now)
    }
}

fn is_late((created, ends): (Timestamp, Timestamp), now: Timestamp) -> bool {
    ends.since(now) < ends.since(created) / 4
}

/// How the identities of all plugins stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// When the first of their certificates ends, as far as that is known.
    pub first_end: Option<Timestamp>,
    /// Those that should have been renewed.
    pub late: Vec<LateIdentity>,
}

/// A plugin's identity that should have been renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateIdentity {
    /// The cluster's name, or its id where it has none.
    pub cluster: String,
    /// The plugin's name within it.
    pub name: String,
    /// The newest certificate's.
    pub fingerprint: String,
    /// When that ends.
    pub ends: Timestamp,
}

impl Identities {
    /// Takes a cluster's plugins in: the newest identity of each, and those that copies of its files
    /// go by, which `is_used` says of a plugin's name and a fingerprint.
    pub(crate) fn add(
        &mut self,
        cluster: &Cluster,
        is_used: impl Fn(&str, &str) -> bool,
        now: Timestamp,
    ) {
        for plugin in &cluster.plugins {
            let newest = plugin.newest().0;
            for (fingerprint, created, ends) in plugin.identities() {
                let Some(ends) = ends else { continue };
                let is_late = is_late((created, ends), now);
                let counts = fingerprint == newest
                    || (is_late && now < ends && is_used(&plugin.name, fingerprint));
                if !counts {
                    continue;
                }
                self.first_end = Some(self.first_end.map_or(ends, |first| first.min(ends)));
                if is_late {
                    self.late.push(LateIdentity {
                        cluster: cluster.shown(),
                        name: plugin.name.clone(),
                        fingerprint: fingerprint.to_owned(),
                        ends,
                    });
                }
            }
        }
    }
}

/// A cluster's or plugin's name: 1–63 lower-case letters, digits and hyphens, as a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with what is allowed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
        let bytes = text.as_bytes();
        if bytes.len() > 63
            || !bytes.iter().all(|b| allowed(*b))
            || !edge(bytes.first())
            || !edge(bytes.last())
        {
            return Err(Error::invalid(
                "Name",
                "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_late_with_a_quarter_of_its_life_left() {
        let day = |n: u64| Timestamp::from_millis(0).after(Duration::from_secs(n * 86_400));
        let term = (day(0), day(40));
        let mut plugin = PluginIdentity::new("node/cp-1".to_owned(), String::new(), term);
        assert!(!plugin.is_late(day(29)));
        assert!(plugin.is_late(day(31)) && plugin.is_late(day(50)));
        let (created, not_after) = (day(31), day(71));
        plugin.next = Some(NextIdentity { fingerprint: String::new(), created, not_after });
        assert!(!plugin.is_late(day(31)));
        assert_eq!(plugin.ends(), Some(day(71)));
        let unknown = PluginIdentity { not_after: None, next: None, ..plugin };
        assert!(!unknown.is_late(day(1000)));
    }

    /// What release 0.1.0 wrote is read, and written as it was.
    #[test]
    fn an_older_record_stays_as_it_is() {
        let old = r#"{"id":"83eb9abc-da3e-494e-b0e6-96b3c401cd15","name":"prod","keys":[],"created":"2026-01-31T12:00:00.000Z","plugins":[{"name":"p","fingerprint":"ab","created":"2026-01-31T12:00:00.000Z"}]}"#;
        let read: Cluster = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
    }

    /// What copies go by is kept over a restart.
    #[test]
    fn identities_beside_are_written_down() {
        let at = Timestamp::from_millis(1_000);
        let mut plugin = PluginIdentity::new("p".to_owned(), "ab".to_owned(), (at, at));
        let plain = serde_json::to_string(&plugin).unwrap();
        assert!(!plain.contains("beside") && !plain.contains("shared"), "{plain}");
        plugin.shared = true;
        plugin.beside =
            vec![OtherIdentity { fingerprint: "cd".to_owned(), created: at, not_after: None }];
        let kept = serde_json::to_string(&plugin).unwrap();
        assert_eq!(serde_json::from_str::<PluginIdentity>(&kept).unwrap(), plugin);
        assert_eq!(plugin.fingerprints().collect::<Vec<_>>(), ["ab", "cd"]);
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "prod-1", &"x".repeat(63)] {
            assert!(ClusterName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            assert!(ClusterName::parse(bad).is_err(), "{bad}");
        }
    }
}
