//! Which plugin a client certificate speaks for.
//!
//! The chain to our authority, the dates and clientAuth were verified before. What is left is to
//! read the one URI name, and to look at the end date again, as a connection may outlive it.

use std::sync::Arc;

use lastkey_crypto::{ClusterId, mac};
use lastkey_engine::{NodeName, Timestamp};
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

const SCHEME: &str = "lastkey://cluster/";
const PLUGIN: &str = "/plugin/";
const NODE: &str = "/node/";

/// What a plugin's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PluginCertificate {
    pub(crate) cluster: ClusterId,
    pub(crate) name: Arc<str>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), lower-case hex.
    pub(crate) fingerprint: Arc<str>,
    /// When the certificate ends: a connection may outlive it.
    pub(crate) not_after: Timestamp,
}

/// The URI that names a plugin; one that its node has enrolled is named by the node.
pub(super) fn plugin_uri(cluster: &ClusterId, name: &str) -> String {
    match node_of(name) {
        Some(node) => format!("{SCHEME}{cluster}{NODE}{node}"),
        None => format!("{SCHEME}{cluster}{PLUGIN}{name}"),
    }
}

/// The node whose plugin has this name.
fn node_of(name: &str) -> Option<NodeName> {
    let node = NodeName::parse(name.split_once('/')?.1).ok()?;
    (node.plugin() == name).then_some(node)
}

/// The plugin that `certificate` names; `None` if it names none, more than one, or has ended.
pub(crate) fn plugin_of(
    certificate: &CertificateDer<'_>,
    now: Timestamp,
) -> Option<PluginCertificate> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    let not_after = parsed.validity().not_after.timestamp().saturating_mul(1000);
    let not_after = Timestamp::from_millis(not_after);
    if !rest.is_empty() || not_after < now {
        return None;
    }
    let names = parsed.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = names.value.general_names[..] else { return None };
    let rest = uri.strip_prefix(SCHEME)?;
    let (cluster, name) = match rest.split_once(NODE) {
        Some((cluster, node)) => (cluster, NodeName::parse(node).ok()?.plugin()),
        None => {
            let (cluster, name) = rest.split_once(PLUGIN)?;
            (cluster, fitting(name)?.to_owned())
        }
    };
    Some(PluginCertificate {
        cluster: ClusterId::from_canonical(cluster.as_bytes()).ok()?,
        name: name.into(),
        fingerprint: hex::encode(mac::sha256(&[parsed.public_key().raw])).into(),
        not_after,
    })
}

/// A name that `cluster add` or an earlier release can have given a plugin.
fn fitting(name: &str) -> Option<&str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    ((1..=63).contains(&name.len()) && name.bytes().all(allowed)).then_some(name)
}
