//! The certificate authority of this installation.
//!
//! It issues two things: the server's certificate (serverAuth), and plugin identities
//! (clientAuth, one URI name: `lastkey://cluster/<id>/plugin/<name>`, or, where the node enrolled
//! its plugin, `lastkey://cluster/<id>/node/<name>`). Of a signing request only
//! the public key is used; whatever names it asks for are ignored.

use std::{net::IpAddr, time::Duration};

use lastkey_crypto::{ClusterId, Entropy, KeyMaterial, SecretBytes, mac};
use lastkey_engine::{Engine, Timestamp, command::WriteSealed};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// Ten years: the authority is replaced by hand, and every client would have to learn the new one.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// How long the server's certificate is valid.
pub(super) const LEAF_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// Certificates begin an hour ago, for clients whose clocks are late; short-lived ones a tenth of
/// their life, because clients tell by their beginning when to renew them.
pub(super) const BACKDATE: Duration = Duration::from_secs(3600);
/// Longest signing request that is looked at.
const MAX_CSR: usize = 16 * 1024;

const RECORD: &str = "certificate-authority";
const RECORD_VERSION: u8 = 1;

/// Why the authority could not be loaded, or did not issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The engine could not read or write its record.
    #[error("the certificate authority's record cannot be used: {0}")]
    Engine(#[from] lastkey_engine::Error),
    /// The record is not one of ours.
    #[error("the certificate authority's record is damaged; restore it from a backup")]
    Record,
    /// The signing request cannot be used.
    #[error(
        "the certificate signing request cannot be used: send a PEM request that is signed with \
         its own P-256, P-384 or Ed25519 key"
    )]
    Request,
    /// A name that no certificate can have.
    #[error("the TLS name {name:?} is neither a DNS name nor an IP address")]
    Name {
        /// The name.
        name: String,
    },
    /// Certificate encoding failed.
    #[error("the certificate could not be made")]
    Issue(#[source] rcgen::Error),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Issue(error)
    }
}

/// An issued plugin certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), lower-case hex.
    pub fingerprint: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// A certificate and its private key, fresh from the authority.
pub(super) struct ServerPair {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) not_after: Timestamp,
}

/// The authority: its certificate, and its key under guard.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyMaterial,
}

impl Authority {
    /// Loads the authority, or makes it on the first start.
    ///
    /// # Errors
    /// [`AuthorityError`] if its record cannot be read, written or understood.
    pub async fn open(engine: &Engine) -> Result<Self, AuthorityError> {
        if let Some(record) = engine.read_sealed(RECORD).await? {
            return Self::decode(record.expose());
        }
        let authority = Self::create(engine.clock().now(), engine.entropy())?;
        let command = WriteSealed { name: RECORD, value: authority.encode() };
        engine.execute(&engine.system_caller(), command).await?;
        Ok(authority)
    }

    pub(super) fn create(now: Timestamp, entropy: &dyn Entropy) -> Result<Self, AuthorityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Lastkey CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now, AUTHORITY_LIFE, entropy);
        let certificate = params.self_signed(&pair)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key: KeyMaterial::from_slice(&Zeroizing::new(pair.serialize_der())),
        })
    }

    /// ```text
    /// 01                version
    /// 00 00 01 7f       length of the certificate, big-endian
    /// 30 82 …           the certificate, DER
    /// 30 81 87 …        the key, PKCS#8 DER, to the end
    /// ```
    fn encode(&self) -> SecretBytes {
        let length = u32::try_from(self.certificate.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(5 + self.certificate.len() + self.key.len());
        bytes.push(RECORD_VERSION);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.certificate);
        bytes.extend_from_slice(self.key.expose());
        SecretBytes::new(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, AuthorityError> {
        let [RECORD_VERSION, a, b, c, d, rest @ ..] = bytes else {
            return Err(AuthorityError::Record);
        };
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d]))
            .map_err(|_| AuthorityError::Record)?;
        let (certificate, key) = rest.split_at_checked(length).ok_or(AuthorityError::Record)?;
        let authority = Self {
            certificate: CertificateDer::from(certificate.to_vec()),
            key: KeyMaterial::from_slice(key),
        };
        authority.issuer().map_err(|_| AuthorityError::Record)?;
        Ok(authority)
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, PEM: what clients trust.
    pub fn certificate_pem(&self) -> String {
        to_pem(&self.certificate)
    }

    /// Issues the identity of a cluster's plugin, by that cluster and name, over the public key of
    /// `csr`, until `not_after`. It is worth nothing until the engine knows its fingerprint, and
    /// not any more once it has forgotten it.
    ///
    /// # Errors
    /// [`AuthorityError`] if encoding fails.
    pub fn issue_plugin(
        &self,
        csr: &Csr,
        (cluster, name, not_after): (&ClusterId, &str, Timestamp),
        terms: Terms<'_>,
    ) -> Result<Issued, AuthorityError> {
        let uri = super::identity::plugin_uri(cluster, name);
        let mut params = CertificateParams::default();
        // X.520 allows no more; the URI has it whole.
        params.distinguished_name = named(name.get(..64).unwrap_or(name));
        params.subject_alt_names =
            vec![SanType::URI(uri.try_into().map_err(|_| AuthorityError::Request)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        let life = not_after.since(terms.now);
        let not_after = valid(&mut params, terms.now, life, terms.entropy);
        let certificate = params.signed_by(&csr.0.public_key, &self.issuer()?)?;
        Ok(Issued {
            certificate_pem: to_pem(certificate.der()),
            fingerprint: csr.fingerprint(),
            not_after,
        })
    }

    /// Makes a new key and certificate for the server itself.
    pub(super) fn issue_server(
        &self,
        names: &[String],
        terms: Terms<'_>,
    ) -> Result<ServerPair, AuthorityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Lastkey server");
        params.subject_alt_names =
            names.iter().map(|name| alt_name(name)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let not_after = valid(&mut params, terms.now, LEAF_LIFE, terms.entropy);
        let certificate = params.signed_by(&pair, &self.issuer()?)?;
        Ok(ServerPair {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der())),
            not_after,
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, AuthorityError> {
        let der = PrivatePkcs8KeyDer::from(self.key.expose());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        Ok(Issuer::from_ca_cert_der(&self.certificate, pair)?)
    }
}

/// When, and with which randomness, something is issued.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The time it is issued.
    pub now: Timestamp,
    /// Draws the serial number.
    pub entropy: &'a dyn Entropy,
}

/// A certificate signing request whose sender holds its private key.
#[derive(Debug)]
pub struct Csr(CertificateSigningRequestParams);

impl Csr {
    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] if it is not one, is not signed with its own key, or the key is
    /// of another kind than P-256, P-384 or Ed25519.
    pub fn parse(pem: &str) -> Result<Self, AuthorityError> {
        if pem.len() > MAX_CSR {
            return Err(AuthorityError::Request);
        }
        let request =
            CertificateSigningRequestParams::from_pem(pem).map_err(|_| AuthorityError::Request)?;
        let algorithm = request.public_key.algorithm();
        let taken = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        if taken.contains(&algorithm) { Ok(Self(request)) } else { Err(AuthorityError::Request) }
    }

    /// SHA-256 of its public key (SubjectPublicKeyInfo), lower-case hex.
    pub fn fingerprint(&self) -> String {
        hex::encode(mac::sha256(&[&self.0.public_key.subject_public_key_info()]))
    }
}

/// For the fuzz target: reads the record of an authority.
pub(super) fn parse_record(bytes: &[u8]) {
    if let Ok(authority) = Authority::decode(bytes) {
        assert_eq!(authority.encode().expose(), bytes, "a record is written as it was read");
    }
}

/// Whether a certificate of ours can have this name.
pub(super) fn check_name(name: &str) -> Result<(), AuthorityError> {
    alt_name(name).map(drop)
}

fn alt_name(name: &str) -> Result<SanType, AuthorityError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let dns = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let wrong = || AuthorityError::Name { name: name.to_owned() };
    if dns.len() > 253 || !dns.split('.').all(label) {
        return Err(wrong());
    }
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Lastkey");
    name.push(DnType::CommonName, common_name);
    name
}

/// Sets validity and a random serial number; answers the end.
fn valid(
    params: &mut CertificateParams,
    now: Timestamp,
    life: Duration,
    entropy: &dyn Entropy,
) -> Timestamp {
    let seconds = u64::try_from(now.as_seconds()).unwrap_or(0);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let backdate = BACKDATE.min(life / 10);
    params.not_before = epoch + Duration::from_secs(seconds).saturating_sub(backdate);
    params.not_after = epoch + Duration::from_secs(seconds) + life;
    let mut serial = [0; 16];
    entropy.fill(&mut serial);
    serial[0] &= 0x7f; // RFC 5280 §4.1.2.2: positive
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    now.after(life)
}

pub(super) fn to_pem(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::SystemEntropy;

    use super::*;
    use crate::tls::identity::plugin_of;

    fn now() -> Timestamp {
        use lastkey_engine::Clock as _;
        lastkey_engine::SystemClock.now()
    }

    fn terms() -> Terms<'static> {
        Terms { now: now(), entropy: &SystemEntropy }
    }

    fn csr(pair: &KeyPair) -> String {
        let mut params = CertificateParams::new(["evil.example".to_owned()]).unwrap();
        params.distinguished_name = named("root");
        params.serialize_request(pair).unwrap().pem().unwrap()
    }

    #[test]
    fn the_record_round_trips_and_damage_is_noticed() {
        let authority = Authority::create(now(), &SystemEntropy).unwrap();
        let record = authority.encode();
        let again = Authority::decode(record.expose()).unwrap();
        assert_eq!(again.certificate(), authority.certificate());
        for cut in [0, 1, 4, 5, 100, record.len() - 1] {
            assert!(Authority::decode(&record.expose()[..cut]).is_err(), "{cut}");
        }
        let mut other = record.expose().to_vec();
        other[0] = 2;
        assert!(Authority::decode(&other).is_err());
    }

    #[test]
    fn a_plugin_certificate_says_what_we_say() {
        let authority = Authority::create(now(), &SystemEntropy).unwrap();
        let cluster = ClusterId::random(&SystemEntropy);
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let request = Csr::parse(&csr(&pair)).unwrap();
            let until = now().after(Duration::from_secs(3600));
            let plugin = (&cluster, "node-1", until);
            let issued = authority.issue_plugin(&request, plugin, terms()).unwrap();
            let der =
                rustls_pki_types::pem::PemObject::from_pem_slice(issued.certificate_pem.as_bytes());
            let der: CertificateDer<'static> = der.unwrap();
            let plugin = plugin_of(&der, now()).unwrap();
            assert_eq!(plugin.cluster, cluster);
            assert_eq!(&*plugin.name, "node-1");
            assert_eq!(&*plugin.fingerprint, issued.fingerprint);
            assert!(!String::from_utf8_lossy(&der).contains("evil"));
            assert!(plugin_of(&der, issued.not_after.after(Duration::from_secs(1))).is_none());
        }
    }

    #[test]
    fn a_nodes_certificate_names_the_node() {
        use rustls_pki_types::pem::PemObject as _;
        let authority = Authority::create(now(), &SystemEntropy).unwrap();
        let cluster = ClusterId::random(&SystemEntropy);
        let request = Csr::parse(&csr(&KeyPair::generate().unwrap())).unwrap();
        let until = now().after(Duration::from_secs(60));
        let long = format!("{}.example", ["x".repeat(60), "y".repeat(60)].join("."));
        for node in ["cp-1", "cp-1.example.org", &long] {
            let name = format!("node/{node}");
            let plugin = (&cluster, name.as_str(), until);
            let issued = authority.issue_plugin(&request, plugin, terms()).unwrap();
            let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
            let uri = format!("lastkey://cluster/{cluster}/node/{node}");
            assert!(der.windows(uri.len()).any(|part| part == uri.as_bytes()), "{uri}");
            assert_eq!(*plugin_of(&der, now()).unwrap().name, *name);
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["localhost", "kms.example", "*.kms.example", "127.0.0.1", "::1"] {
            assert!(alt_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a..b", "ü.example", "https://x", "*", "a.*.b"] {
            assert!(matches!(alt_name(bad), Err(AuthorityError::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn requests_that_prove_nothing_are_refused() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let good = csr(&pair);
        // One character of the signature, which ends the request.
        let at = good.find("\n-----END").unwrap() - 8;
        let mut forged = good.clone();
        let other = if &good[at..=at] == "A" { "B" } else { "A" };
        forged.replace_range(at..=at, other);
        for bad in ["", "not pem", &forged, &"x".repeat(MAX_CSR + 1)] {
            assert!(matches!(Csr::parse(bad), Err(AuthorityError::Request)));
        }
    }
}
