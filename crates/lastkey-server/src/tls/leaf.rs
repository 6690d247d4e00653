//! The server's certificate while it is sealed: the authority's key is under the seal, too, so
//! the last certificate that it issued is left in the data directory, with its private key.
//!
//! Whoever reads these files can pass for the server, for at most the 90 days of the certificate:
//! docs/security.md says so. A server under a file seal leaves none.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_engine::Timestamp;
use lastkey_store::disk::{self, FileSystem, Readers};
use rustls::{ServerConfig, server::ResolvesServerCert, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{
    ALPN_H2, ALPN_HTTP11,
    authority::{ServerPair, to_pem},
    certificate::{CertificateError, CertificateSource, certified, from_files},
};

/// Where the certificate and its key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    certificate: PathBuf,
    key: PathBuf,
}

impl Leaf {
    pub(crate) fn new(directory: &Path) -> Self {
        let certificate = directory.join("server.pem");
        Self { certificate, key: directory.join("server.key") }
    }

    /// Leaves this one in place of the last. A crash in between leaves a pair that does not fit,
    /// and is not used.
    pub(super) fn write(&self, pair: &ServerPair) -> Result<(), CertificateError> {
        let encoded = Zeroizing::new(STANDARD.encode(pair.key.secret_der()));
        let mut key = Zeroizing::new(String::with_capacity(encoded.len() + 128));
        key.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(64));
            key.push_str(line);
            key.push('\n');
            rest = tail;
        }
        key.push_str("-----END PRIVATE KEY-----\n");
        replace(&self.key, key.as_bytes(), Readers::Owner)?;
        replace(&self.certificate, to_pem(&pair.certificate).as_bytes(), Readers::All)
    }

    /// Removes what was left.
    pub(crate) fn remove(&self) {
        for path in [&self.key, &self.certificate] {
            let _ = fs::remove_file(path);
        }
    }
}

fn replace(path: &Path, content: &[u8], readers: Readers) -> Result<(), CertificateError> {
    disk::replace(&FileSystem, path, content, readers)
        .map_err(|source| CertificateError::Write { path: path.to_owned(), source })
}

/// How connections are welcomed while the server is sealed. Clients are not asked for
/// certificates, and no session is resumed later.
pub(crate) fn sealed_config(
    source: &CertificateSource,
    leaf: Option<&Leaf>,
    now: Timestamp,
) -> Result<ServerConfig, CertificateError> {
    let key = match source {
        CertificateSource::Files { certificate, key, .. } => from_files(certificate, key)?.key,
        CertificateSource::Authority { names } => match leaf.and_then(|leaf| left(leaf, now)) {
            Some(key) => key,
            None => nobody(names)?,
        },
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(super::provider()))
        .with_safe_default_protocol_versions()
        .map_err(CertificateError::Unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(One(key)));
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP11.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificate that was left, if it can still be used.
fn left(leaf: &Leaf, now: Timestamp) -> Option<Arc<CertifiedKey>> {
    let current = from_files(&leaf.certificate, &leaf.key).ok()?;
    (current.not_after > now).then_some(current.key)
}

/// A certificate that proves nothing, for probes that do not look.
fn nobody(names: &[String]) -> Result<Arc<CertifiedKey>, CertificateError> {
    let issue = |error| CertificateError::Authority(super::AuthorityError::Issue(error));
    let pair = rcgen::generate_simple_self_signed(names).map_err(issue)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
    certified(vec![pair.cert.der().clone()], key)
}

/// One certificate for everybody.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
