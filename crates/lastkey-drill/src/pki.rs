//! Certificates of a scratch cluster: an authority that lives as long as the drill.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use zeroize::Zeroizing;

use crate::{DrillError, scratch::write_private};

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: Zeroizing<String>,
}

impl Pair {
    /// Writes `<name>.pem` and `<name>.key`, and gives both paths.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), DrillError> {
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        write_private(&cert, self.certificate.as_bytes())?;
        write_private(&key, self.key.as_bytes())?;
        Ok((cert, key))
    }
}

/// An authority whose key is in no file.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self, DrillError> {
        let key = KeyPair::generate()?;
        let mut params = params("lastkey drill", "")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// A server on the loopback. etcd is a client of its own as well, by the same certificate.
    pub(crate) fn server(&self, name: &str) -> Result<Pair, DrillError> {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = params(name, "")?;
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = vec![Purpose::ServerAuth, Purpose::ClientAuth];
        self.sign(&params)
    }

    /// A client, of that group if any.
    pub(crate) fn client(&self, user: &str, group: &str) -> Result<Pair, DrillError> {
        let mut params = params(user, group)?;
        params.extended_key_usages = vec![Purpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Pair, DrillError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: Zeroizing::new(key.serialize_pem()) })
    }
}

/// A key and a signing request for it (PEM both), for our own server's CA.
pub(crate) fn request() -> Result<(Zeroizing<String>, String), DrillError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
    Ok((Zeroizing::new(key.serialize_pem()), request))
}

fn params(name: &str, group: &str) -> Result<CertificateParams, DrillError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if !group.is_empty() {
        subject.push(DnType::OrganizationName, group);
    }
    params.distinguished_name = subject;
    Ok(params)
}
