//! A certificate that somebody brought, as clients will see it: whether it is good for a name, and
//! whether the CA that they are told to trust has issued it.
//!
//! Nothing here decides who is served. It is for telling, at the start, what would otherwise show
//! in every client alone.

use std::sync::Arc;

use rustls::{
    CertificateError as Unfit, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier, verify_server_name},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::certificate::{CertificateError, CertificateSource, read_chain};

/// The certificate, and what verifies it.
#[derive(Debug)]
pub(crate) struct Brought {
    chain: Vec<CertificateDer<'static>>,
    /// `None` where clients get its CA otherwise.
    verifier: Option<Arc<WebPkiServerVerifier>>,
}

/// Why a client refuses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has other names.
    Name,
    /// It would not do under any name.
    Certificate(String),
}

impl Brought {
    /// The certificate of `source`; `None` for our own authority's, which is good for every name
    /// that it is asked for.
    ///
    /// # Errors
    /// [`CertificateError`] if a file cannot be read.
    pub(crate) fn read(source: &CertificateSource) -> Result<Option<Self>, CertificateError> {
        let CertificateSource::Files { certificate, ca, .. } = source else { return Ok(None) };
        let chain = read_chain(certificate)?;
        let verifier = match ca {
            None => None,
            Some(_) => Some(verifier(source.foreign_ca()?.as_bytes())?),
        };
        Ok(Some(Self { chain, verifier }))
    }

    /// Why a client that goes by this name or address refuses it; `None` if it does not.
    pub(crate) fn refusal(&self, host: &str) -> Option<Refusal> {
        let Ok(name) = ServerName::try_from(host) else { return Some(Refusal::Name) };
        let (leaf, issuers) = self.chain.split_first()?;
        let verified = match &self.verifier {
            Some(verifier) => {
                verifier.verify_server_cert(leaf, issuers, &name, &[], UnixTime::now()).map(|_| ())
            }
            None => {
                ParsedCertificate::try_from(leaf).and_then(|leaf| verify_server_name(&leaf, &name))
            }
        };
        match verified.err()? {
            Error::InvalidCertificate(
                Unfit::NotValidForName | Unfit::NotValidForNameContext { .. },
            ) => Some(Refusal::Name),
            // A wrong signature is what another CA of the same name is told by.
            Error::InvalidCertificate(Unfit::UnknownIssuer | Unfit::BadSignature) => {
                Some(Refusal::Certificate(
                    "none of the CAs in --tls-ca has issued it; give files that belong together"
                        .to_owned(),
                ))
            }
            Error::InvalidCertificate(why) => Some(Refusal::Certificate(why.to_string())),
            other => Some(Refusal::Certificate(other.to_string())),
        }
    }

    /// Whether it is for this name or address, whoever has issued it and however long it is good.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let (Ok(name), Some(leaf)) = (ServerName::try_from(host), self.chain.first()) else {
            return false;
        };
        let leaf = ParsedCertificate::try_from(leaf);
        leaf.is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok())
    }

    /// The names and addresses that it is good for, as it has them.
    pub(crate) fn names(&self) -> Vec<String> {
        let leaf = self.chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let Some((_, leaf)) = leaf else { return Vec::new() };
        let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
        names.value.general_names.iter().filter_map(shown).collect()
    }
}

fn verifier(pem: &[u8]) -> Result<Arc<WebPkiServerVerifier>, CertificateError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    let provider = Arc::new(super::provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| CertificateError::Unusable(Error::General(error.to_string())))
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs, path::Path};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    /// A CA and a certificate of it for these names, and where both lie.
    pub(crate) fn brought(directory: &Path, names: &[&str]) -> CertificateSource {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let [certificate, private, root] =
            ["leaf.pem", "leaf.key", "root.pem"].map(|name| directory.join(name));
        fs::write(&certificate, leaf.pem()).unwrap();
        fs::write(&private, key.serialize_pem()).unwrap();
        fs::write(&root, ca.pem()).unwrap();
        CertificateSource::Files { certificate, key: private, ca: Some(root) }
    }

    #[test]
    fn a_certificate_is_seen_as_clients_see_it() {
        let directory = tempfile::tempdir().unwrap();
        let source = brought(directory.path(), &["kms.example.org", "*.kms.example.org", "::1"]);
        let read = |source: &CertificateSource| Brought::read(source).unwrap().unwrap();
        let seen = read(&source);
        assert_eq!(seen.names(), ["kms.example.org", "*.kms.example.org", "::1"]);
        for good in ["kms.example.org", "a.kms.example.org", "::1"] {
            assert_eq!(seen.refusal(good), None, "{good}");
        }
        for bad in ["127.0.0.1", "localhost", "example.org", "*.kms.example.org", "no name"] {
            assert_eq!(seen.refusal(bad), Some(Refusal::Name), "{bad}");
        }
        // Of another CA of the same shape, and with none.
        let other = tempfile::tempdir().unwrap();
        let CertificateSource::Files { ca: other, .. } = brought(other.path(), &["x"]) else {
            panic!("the source changed its kind");
        };
        let CertificateSource::Files { certificate, key, .. } = source else {
            panic!("the source changed its kind");
        };
        let of = |ca| CertificateSource::Files {
            certificate: certificate.clone(),
            key: key.clone(),
            ca,
        };
        let refusal = read(&of(other)).refusal("kms.example.org");
        let Some(Refusal::Certificate(why)) = refusal else { panic!("{refusal:?}") };
        assert!(why.contains("--tls-ca"), "{why}");
        let seen = read(&of(Some(directory.path().join("leaf.pem"))));
        assert!(seen.is_for("a.kms.example.org") && !seen.is_for("127.0.0.1"));
        assert_eq!(read(&of(None)).refusal("kms.example.org"), None);
        assert_eq!(read(&of(None)).refusal("127.0.0.1"), Some(Refusal::Name));
        let ours = CertificateSource::Authority { names: Vec::new() };
        assert!(Brought::read(&ours).unwrap().is_none());
    }
}
