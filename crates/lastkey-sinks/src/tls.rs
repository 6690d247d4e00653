//! Whom a webhook's connection trusts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// Where distributions keep the CAs of the system.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate in it.
    #[error("{path} holds no CA certificate (PEM)")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The system has none where it is looked for.
    #[error("the system's CA certificates were not found; name a file with --audit-sink-ca FILE")]
    NoSystem,
    /// The library refused.
    #[error("TLS cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
}

/// Trusts the CAs in a file, or the system's.
pub(crate) fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TrustError> {
    let path = match ca {
        Some(path) => path.to_owned(),
        None => SYSTEM
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .ok_or(TrustError::NoSystem)?,
    };
    let pem = fs::read(&path).map_err(|source| TrustError::File { path: path.clone(), source })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if roots.is_empty() {
        return Err(TrustError::Empty { path });
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
