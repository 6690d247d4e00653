//! TLS: our own certificate authority, the server's certificate, and the plugins' identities.
//!
//! The authority's key is kept as a sealed record of the engine and is in the clear only while
//! something is issued. The server's own key lives in memory alone: each start makes a new one,
//! and a background task renews the certificate long before it ends, without a restart. Clients
//! trust the authority, so none of them notices.
//!
//! TLS 1.3 and 1.2 over aws-lc-rs, X25519MLKEM768 first, session tickets on, no early data. A
//! client certificate is optional; one that is sent has to be of our authority, or of a CA that a
//! cluster has pinned for its nodes ([`client`]).

use std::sync::Arc;

use lastkey_engine::NodeRoot;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
};

mod authority;
mod brought;
mod certificate;
mod client;
mod identity;
mod kubelet;
mod leaf;

pub use authority::{Authority, AuthorityError, Csr, Issued, Terms};
#[cfg(test)]
pub(crate) use brought::tests::brought as brought_for_tests;
pub(crate) use brought::{Brought, Refusal};
pub use certificate::{CertificateError, CertificateSource};
pub(crate) use certificate::{Leaf, ServerCertificate, sealed_config};
pub(crate) use client::{ClientTrust, Shown};
#[cfg(test)]
pub(crate) use identity::PluginCertificate;
use identity::plugin_of;
pub(crate) use kubelet::{KubeletCertificate, KubeletError, kubelet_of, roots_of};

/// The application protocols we speak, best first.
pub(crate) const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP11: &[u8] = b"http/1.1";

/// The TLS configuration of the listener; it asks for certificates of our authority and of these
/// roots.
///
/// # Errors
/// [`rustls::Error`] if the authority's certificate cannot serve as a trust anchor.
pub(crate) fn server_config(
    trust: &ClientTrust,
    certificate: Arc<ServerCertificate>,
    roots: &[NodeRoot],
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = trust.verifier(roots);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP11.to_vec()];
    // Tickets keep resumption stateless: no table that many clients could fill.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // The request waits for nothing but the handshake; small records leave at once.
    config.max_early_data_size = 0;
    Ok(config)
}

/// For the fuzz target: who a certificate speaks for.
pub(crate) fn parse_plugin(certificate: &rustls_pki_types::CertificateDer<'_>) {
    if let Ok(kubelet) = kubelet::read(certificate) {
        let name = format!("system:node:{}", kubelet.node);
        let name = name.as_bytes();
        assert!(certificate.windows(name.len()).any(|part| part == name), "it says so itself");
    }
    let pem = authority::to_pem(certificate);
    if let Ok(roots) = roots_of(&pem, lastkey_engine::Timestamp::from_millis(0)) {
        assert!(kubelet::verifier(&roots).is_some(), "what was pinned can be used");
    }
    if let Some(plugin) = plugin_of(certificate, lastkey_engine::Timestamp::from_millis(0)) {
        let uri = identity::plugin_uri(&plugin.cluster, &plugin.name);
        let uri = uri.as_bytes();
        assert!(certificate.windows(uri.len()).any(|part| part == uri), "it says so itself");
    }
}

/// For the fuzz target: the stored authority, and whatever claims to be a request, from DER.
pub(crate) fn parse_der(der: &[u8]) {
    authority::parse_record(der);
    let pem = authority::to_pem(der).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    if let Ok(request) = Csr::parse(&pem) {
        assert_eq!(request.fingerprint().len(), 64);
    }
}

/// The one provider of cryptography in this process.
pub(crate) fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}
