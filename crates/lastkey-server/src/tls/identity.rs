//! Which plugin a client certificate speaks for.
//!
//! rustls has verified the chain to our authority, the dates and clientAuth. What is left is to
//! read the one URI name, and to look at the end date again: a resumed session does not verify
//! the certificate anew.

use std::sync::Arc;

use lastkey_crypto::{ClusterId, mac};
use lastkey_engine::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

const SCHEME: &str = "lastkey://cluster/";
const PLUGIN: &str = "/plugin/";

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

/// The URI that names a plugin.
pub(super) fn plugin_uri(cluster: &ClusterId, name: &str) -> String {
    format!("{SCHEME}{cluster}{PLUGIN}{name}")
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
    let (cluster, name) = uri.strip_prefix(SCHEME)?.split_once(PLUGIN)?;
    let fits = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    fits.then_some(())?;
    Some(PluginCertificate {
        cluster: ClusterId::from_canonical(cluster.as_bytes()).ok()?,
        name: name.into(),
        fingerprint: hex::encode(mac::sha256(&[parsed.public_key().raw])).into(),
        not_after,
    })
}
