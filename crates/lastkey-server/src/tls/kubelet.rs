//! What a kubelet's certificate proves: which node of which cluster asks, and nothing else.
//!
//! Such certificates are issued by a cluster's own CA, which is not ours. They come in through one
//! door, the request to enrol, and each is checked in these steps:
//!
//! 1. The chain leads to a root that was pinned for the very cluster that the request names; a CA
//!    of the same name has another key. The certificate is valid now.
//! 2. It is meant for clients (extendedKeyUsage *has* clientAuth; webpki alone would take one
//!    without the extension).
//! 3. Its subject has one organisation, `system:nodes`, and one common name, `system:node:NAME`.
//!
//! Reading one never yields anything but a [`KubeletCertificate`].

use std::{sync::Arc, time::Duration};

use lastkey_engine::{Error, Fingerprint, NodeName, NodeRoot, Timestamp};
use rustls::{
    CertificateError as Invalid, RootCertStore,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use x509_parser::{
    certificate::X509Certificate,
    oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME},
    prelude::FromDer,
};

/// The organisation of every kubelet's client certificate.
const ORGANISATION: &str = "system:nodes";
/// What its common name begins with.
const NAME: &str = "system:node:";

/// What a kubelet's certificate says, checked against the roots of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubeletCertificate {
    pub(crate) node: NodeName,
    pub(crate) certificate: Fingerprint,
    pub(crate) key: Fingerprint,
}

/// Why a certificate does not let its holder ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KubeletError {
    /// Used for something else than to enrol.
    #[error(
        "the client certificate is a cluster's own, which enrols a plugin and does nothing else; \
         run `lastkey kms-plugin --enrol`"
    )]
    Elsewhere,
    /// Not of this cluster's CA, or there is no such cluster.
    #[error(
        "the client certificate is not of a CA that this cluster trusts for its nodes; see the \
         cluster's id, and `lastkey cluster node trust`"
    )]
    Untrusted,
    /// Not valid now.
    #[error("the client certificate has expired, or is not valid yet; see the kubelet's log")]
    Expired,
    /// Not for clients.
    #[error("the certificate is not for client authentication; give the kubelet's client one")]
    Usage,
    /// Of somebody else than a node.
    #[error(
        "the client certificate is not a kubelet's: its organisation has to be exactly \
         system:nodes"
    )]
    Organisation,
    /// Of no node.
    #[error(
        "the client certificate is not a kubelet's: its common name has to be system:node:NAME"
    )]
    Name,
}

/// Checks a chain, leaf first, against the roots of the cluster that its holder wants to join.
///
/// # Errors
/// [`KubeletError`]: which of the steps above it failed.
pub(crate) fn kubelet_of(
    chain: &[CertificateDer<'_>],
    roots: &[NodeRoot],
    now: Timestamp,
) -> Result<KubeletCertificate, KubeletError> {
    let (leaf, intermediates) = chain.split_first().ok_or(KubeletError::Untrusted)?;
    let verifier = verifier(roots).ok_or(KubeletError::Untrusted)?;
    verifier
        .verify_client_cert(leaf, intermediates, unix_time(now))
        .map_err(|error| why(&error))?;
    read(leaf)
}

/// Steps 2 and 3.
pub(super) fn read(leaf: &CertificateDer<'_>) -> Result<KubeletCertificate, KubeletError> {
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| KubeletError::Untrusted)?;
    if !rest.is_empty() {
        return Err(KubeletError::Untrusted);
    }
    let usage = parsed.extended_key_usage().map_err(|_| KubeletError::Usage)?;
    if !usage.is_some_and(|usage| usage.value.client_auth) {
        return Err(KubeletError::Usage);
    }
    let (mut organisations, mut names) = (Vec::new(), Vec::new());
    for attribute in parsed.subject().iter_attributes() {
        if *attribute.attr_type() == OID_X509_ORGANIZATION_NAME {
            organisations.push(attribute.as_str().map_err(|_| KubeletError::Organisation)?);
        } else if *attribute.attr_type() == OID_X509_COMMON_NAME {
            names.push(attribute.as_str().map_err(|_| KubeletError::Name)?);
        }
    }
    if organisations != [ORGANISATION] {
        return Err(KubeletError::Organisation);
    }
    let [name] = names[..] else { return Err(KubeletError::Name) };
    let name = name.strip_prefix(NAME).ok_or(KubeletError::Name)?;
    Ok(KubeletCertificate {
        node: NodeName::parse(name).map_err(|_| KubeletError::Name)?,
        certificate: Fingerprint::of(leaf),
        key: Fingerprint::of(parsed.public_key().raw),
    })
}

fn why(error: &rustls::Error) -> KubeletError {
    match error {
        rustls::Error::InvalidCertificate(
            Invalid::Expired
            | Invalid::ExpiredContext { .. }
            | Invalid::NotValidYet
            | Invalid::NotValidYetContext { .. },
        ) => KubeletError::Expired,
        rustls::Error::InvalidCertificate(
            Invalid::InvalidPurpose | Invalid::InvalidPurposeContext { .. },
        ) => KubeletError::Usage,
        _ => KubeletError::Untrusted,
    }
}

/// What checks chains against these roots alone; `None` if none of them is usable.
pub(super) fn verifier(roots: &[NodeRoot]) -> Option<Arc<dyn ClientCertVerifier>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        // Each was tried when it was pinned.
        let _ = der_of(root).map(|der| store.add(der));
    }
    let provider = Arc::new(super::provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider);
    builder.build().ok()
}

pub(super) fn unix_time(now: Timestamp) -> UnixTime {
    let seconds = u64::try_from(now.as_seconds()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn der_of(root: &NodeRoot) -> Option<CertificateDer<'static>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(&root.certificate).ok().map(CertificateDer::from)
}

/// Reads the CA certificates (PEM) that a cluster's kubelets shall be checked against. An empty
/// text is none.
///
/// # Errors
/// [`Error::InvalidParameter`] that says what is wrong with which of them.
pub(crate) fn roots_of(pem: &str, now: Timestamp) -> Result<Vec<NodeRoot>, Error> {
    let wrong = |reason: &str| Error::invalid("ca_pem", reason);
    let mut roots: Vec<NodeRoot> = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|_| wrong("it is not PEM"))?;
        let root = root_of(&der, now).map_err(wrong)?;
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    if roots.is_empty() && !pem.trim().is_empty() {
        return Err(wrong("it holds no certificate in PEM; give the cluster's ca.crt"));
    }
    Ok(roots)
}

fn root_of(der: &CertificateDer<'static>, now: Timestamp) -> Result<NodeRoot, &'static str> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    const NOT_ONE: &str = "it holds something else than X.509 certificates";
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| NOT_ONE)?;
    if !rest.is_empty() || RootCertStore::empty().add(der.clone()).is_err() {
        return Err(NOT_ONE);
    }
    if !parsed.is_ca() {
        return Err("it holds a certificate that is not a CA's; give the cluster's ca.crt");
    }
    if parsed.validity().not_after.timestamp() < now.as_seconds() {
        return Err("it holds a CA certificate that has expired");
    }
    Ok(NodeRoot {
        certificate: STANDARD.encode(der),
        fingerprint: Fingerprint::of(der),
        key: Fingerprint::of(parsed.public_key().raw),
    })
}

#[cfg(test)]
mod tests;
