//! Clusters: an id of their own, the keys they were given, and the plugins that act for them.

use lastkey_crypto::{ClusterId, KeyId};
use serde::{Deserialize, Serialize};

use crate::{Error, Timestamp};

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
    fn names_are_dns_labels() {
        for good in ["a", "prod-1", &"x".repeat(63)] {
            assert!(ClusterName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            assert!(ClusterName::parse(bad).is_err(), "{bad}");
        }
    }
}
