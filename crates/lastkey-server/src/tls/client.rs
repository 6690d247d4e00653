//! Whose certificates the listener takes, and what each of them is worth.
//!
//! Two kinds come in: ours, which name plugins, and those of clusters' own CAs, which come from
//! kubelets that want a plugin's identity. They are told apart by what signed them, never by what
//! they say: whatever a cluster's CA writes into a certificate, it is [`Shown::Foreign`].

use std::sync::Arc;

use lastkey_engine::{NodeRoot, Timestamp};
use rustls::{
    CertificateError as Invalid, DigitallySignedStruct, DistinguishedName, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    authority::Authority,
    identity::{PluginCertificate, plugin_of},
    kubelet,
};

/// Who the other end of a connection is, by its certificate.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    /// It has shown none that we issued or asked for.
    Nobody,
    /// A certificate of ours that has ended, in a session that was resumed.
    Ended,
    /// A plugin, by a certificate of ours.
    Plugin(PluginCertificate),
    /// Whoever a cluster's CA says it is; which cluster's is asked where it matters.
    Foreign(Arc<[CertificateDer<'static>]>),
}

/// What our authority vouches for.
#[derive(Clone, Debug)]
pub(crate) struct ClientTrust {
    ours: Arc<dyn ClientCertVerifier>,
}

impl ClientTrust {
    /// # Errors
    /// [`rustls::Error`] if the authority's certificate cannot serve as a trust anchor.
    pub(crate) fn new(authority: &Authority) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone())?;
        let provider = Arc::new(super::provider());
        let ours = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { ours })
    }

    /// What judges certificates in handshakes: ours, or of one of these roots.
    pub(super) fn verifier(&self, roots: &[NodeRoot]) -> Arc<dyn ClientCertVerifier> {
        let foreign = kubelet::verifier(roots);
        let mut hints = self.ours.root_hint_subjects().to_vec();
        for hint in foreign.iter().flat_map(|foreign| foreign.root_hint_subjects()) {
            if !hints.iter().any(|known| known.as_ref() == hint.as_ref()) {
                hints.push(hint.clone());
            }
        }
        Arc::new(Either { ours: Arc::clone(&self.ours), foreign, hints })
    }

    /// Who has shown this chain, leaf first. What was in order at the handshake is looked at again:
    /// a resumed session is none, and which root it was, the handshake did not say.
    pub(crate) fn shown(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Shown {
        let Some((leaf, rest)) = chain.split_first() else { return Shown::Nobody };
        if vouched_for(&*self.ours, (leaf, rest), kubelet::unix_time(now)).is_ok() {
            return plugin_of(leaf, now).map_or(Shown::Nobody, Shown::Plugin);
        }
        // One of ours that has ended is worth nothing, and was never anybody else's.
        let ended = plugin_of(leaf, Timestamp::from_millis(0)).map(|plugin| plugin.not_after);
        if ended.is_some_and(|ended| {
            self.ours.verify_client_cert(leaf, rest, kubelet::unix_time(ended)).is_ok()
        }) {
            return Shown::Ended;
        }
        Shown::Foreign(chain.iter().map(|one| one.clone().into_owned()).collect())
    }
}

/// Whether our authority issued this chain, leaf first, and it has not ended. That it has not begun
/// says only that our own clock was ahead when we issued it: it is taken, or a clock that was set
/// right again would lock out whoever renewed meanwhile.
fn vouched_for(
    ours: &dyn ClientCertVerifier,
    (leaf, rest): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    now: UnixTime,
) -> Result<ClientCertVerified, rustls::Error> {
    match ours.verify_client_cert(leaf, rest, now) {
        Err(rustls::Error::InvalidCertificate(Invalid::NotValidYetContext {
            not_before, ..
        })) => ours.verify_client_cert(leaf, rest, not_before),
        judged => judged,
    }
}

/// Takes what we issued, and what one of other roots vouches for if there are any.
#[derive(Debug)]
struct Either {
    ours: Arc<dyn ClientCertVerifier>,
    foreign: Option<Arc<dyn ClientCertVerifier>>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for Either {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (error, foreign) = match (vouched_for(&*self.ours, (leaf, rest), now), &self.foreign) {
            (Ok(verified), _) => return Ok(verified),
            (Err(error), None) => return Err(error),
            (Err(error), Some(foreign)) => (error, foreign),
        };
        foreign.verify_client_cert(leaf, rest, now).map_err(|theirs| {
            // The one that knows the issuer has more to say.
            let unknown = rustls::Error::InvalidCertificate(Invalid::UnknownIssuer);
            if theirs == unknown { error } else { theirs }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ours.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ours.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ours.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::{ClusterId, SystemEntropy};
    use lastkey_engine::{Clock as _, SystemClock};
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, SanType,
    };

    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::tls::{Csr, Terms, identity::plugin_uri, roots_of};

    /// The name of our own authority, which anybody can give to theirs.
    fn impostor() -> (Issuer<'static, KeyPair>, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "Lastkey");
        params.distinguished_name.push(DnType::CommonName, "Lastkey CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    }

    /// Whatever a cluster's CA writes into a certificate, it does not make a plugin.
    #[test]
    fn a_pinned_ca_never_makes_a_plugin() {
        let now = SystemClock.now();
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let trust = ClientTrust::new(&authority).unwrap();
        let cluster = ClusterId::random(&SystemEntropy);
        let (issuer, pem) = impostor();
        let roots = roots_of(&pem, now).unwrap();
        let mut params = CertificateParams::default();
        let uri = plugin_uri(&cluster, "plugin");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let forged = params.signed_by(&key, &issuer).unwrap().der().clone();
        let chain = [forged];
        assert!(plugin_of(&chain[0], now).is_some(), "it says that it is one");
        assert!(matches!(trust.shown(&chain, now), Shown::Foreign(_)));
        let verify = |roots: &[NodeRoot]| {
            trust.verifier(roots).verify_client_cert(&chain[0], &[], kubelet::unix_time(now))
        };
        assert!(verify(&roots).is_ok(), "the handshake takes it, for its holder may want to enrol");
        assert!(verify(&[]).is_err(), "and does not where nobody has pinned the CA");

        // The same name and key in a certificate of ours.
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let csr = Csr::parse(&request.pem().unwrap()).unwrap();
        let issue = |now, until| -> CertificateDer<'static> {
            let terms = Terms { now, entropy: &SystemEntropy };
            let issued = authority.issue_plugin(&csr, (&cluster, "plugin", until), terms).unwrap();
            CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()
        };
        let minute = std::time::Duration::from_secs(60);
        let until = now.after(minute);
        let ours = issue(now, until);
        let shown = trust.shown(std::slice::from_ref(&ours), now);
        assert!(matches!(shown, Shown::Plugin(plugin) if plugin.cluster == cluster));
        let late = until.after(std::time::Duration::from_secs(1));
        assert!(matches!(trust.shown(&[ours], late), Shown::Ended));
        assert!(matches!(trust.shown(&[], now), Shown::Nobody));

        // Issued while our clock was ahead: good now that it was set right, in handshakes too.
        let ahead = now.after(minute * 1440 * 70);
        let future = [issue(ahead, ahead.after(minute))];
        assert!(matches!(trust.shown(&future, now), Shown::Plugin(_)));
        for roots in [&roots[..], &[]] {
            let verifier = trust.verifier(roots);
            assert!(verifier.verify_client_cert(&future[0], &[], kubelet::unix_time(now)).is_ok());
        }
        assert!(matches!(trust.shown(&future, ahead.after(2 * minute)), Shown::Ended));
    }

    #[test]
    fn clients_are_asked_for_certificates_of_the_pinned_roots() {
        let now = SystemClock.now();
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let trust = ClientTrust::new(&authority).unwrap();
        assert_eq!(trust.verifier(&[]).root_hint_subjects().len(), 1);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = |params: &CertificateParams| {
            let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
            roots_of(&pem, now).unwrap()
        };
        // Two CAs of one name are asked for once.
        let roots = [root(&params), root(&params)].concat();
        let verifier = trust.verifier(&roots);
        assert_eq!(verifier.root_hint_subjects().len(), 2);
        assert!(!verifier.client_auth_mandatory());
    }
}
