//! What TLS trusts and shows: the installation's CA alone, and our certificate where we have one.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, version,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use tokio_rustls::TlsConnector;

use crate::{ClientCertificate, ConfigError};

/// Builds the connector all connections of a client share (and so its session cache).
pub(crate) fn connector(
    ca_file: &Path,
    certificate: Option<&ClientCertificate>,
) -> Result<TlsConnector, ConfigError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(ca_file)? {
        roots.add(root)?;
    }
    // ours on both ends: nothing older than 1.3 is needed
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = certificates(&files.certificate)?;
            builder.with_client_auth_cert(chain, private_key(&files.key)?)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// rustls' words, and what a person can do where that is known.
pub(crate) fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => format!("{error} (are this clock and the server's right?)"),
        rustls::Error::InvalidCertificate(_) => {
            format!(
                "{error} (is this the CA file of that server, and its name in the certificate?)"
            )
        }
        rustls::Error::AlertReceived(alert) => explain_alert(&format!("{alert:?}")),
        _ => error.to_string(),
    }
}

/// What the server's alert means for us; `alert` is its name, as rustls prints it.
pub(crate) fn explain_alert(alert: &str) -> String {
    let about_us = alert.contains("Certificate") || alert == "UnknownCA";
    let hint = if about_us { " (the server does not accept our client certificate)" } else { "" };
    format!("the server answered with the alert {alert}{hint}")
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let wrong = |error| file_error(path, "certificate in PEM", error);
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(wrong)?;
    match chain.is_empty() {
        true => Err(wrong(pem::Error::NoItemsFound)),
        false => Ok(chain),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| file_error(path, "private key in PEM", error))
}

fn file_error(path: &Path, expected: &'static str, error: pem::Error) -> ConfigError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => ConfigError::Read { path, source },
        _ => ConfigError::Pem { path, expected },
    }
}
