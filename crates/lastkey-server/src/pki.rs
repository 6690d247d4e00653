//! The authority and the server's certificate, together as the server uses them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use lastkey_crypto::ClusterId;
use lastkey_engine::{Engine, LateIdentity, NodeRoot, Timestamp};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use crate::{
    metrics::Metrics,
    tls::{
        Authority, AuthorityError, CertificateError, CertificateSource, ClientTrust, Csr, Issued,
        Leaf, ServerCertificate, Shown, Terms, server_config,
    },
};

/// How often the certificate is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The certificates of this installation.
#[derive(Debug)]
pub struct Pki {
    authority: Authority,
    ca_pem: String,
    certificate: Arc<ServerCertificate>,
    trust: ClientTrust,
    /// Late identities that were logged already.
    told: Mutex<HashSet<String>>,
}

impl Pki {
    /// Loads or makes the authority, and gets the first certificate.
    pub(crate) async fn open(
        engine: &Engine,
        source: CertificateSource,
    ) -> Result<Self, CertificateError> {
        let authority = Authority::open(engine).await?;
        let ca_pem = authority.certificate_pem() + &source.foreign_ca()?;
        let certificate = ServerCertificate::load(source, &authority, terms(engine))?;
        let trust = ClientTrust::new(&authority).map_err(CertificateError::Unusable)?;
        let (certificate, told) = (Arc::new(certificate), Mutex::default());
        Ok(Self { authority, ca_pem, certificate, trust, told })
    }

    /// What clients trust, PEM: our authority, and the one of a certificate that was brought.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// When the server's certificate ends.
    pub fn certificate_not_after(&self) -> Timestamp {
        self.certificate.not_after()
    }

    /// Whether the server's certificate comes from files that somebody else writes.
    pub(crate) fn is_brought(&self) -> bool {
        self.certificate.is_brought()
    }

    /// What an operator should know about the server's certificate.
    pub(crate) fn warning(&self) -> Option<String> {
        let why = self.certificate.unkept()?;
        Some(format!(
            "the server's certificate could not be written to the data directory: after a restart, \
             clients may not recognise the server while it is sealed; {why}, it is tried again each \
             minute"
        ))
    }

    /// Reads a signing request and checks that its sender holds the key.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] if it cannot be used.
    pub fn read_csr(&self, pem: &str) -> Result<Csr, AuthorityError> {
        Csr::parse(pem)
    }

    /// Issues the identity of a cluster's plugin, by that cluster and name, until then; the engine
    /// must know its fingerprint.
    ///
    /// # Errors
    /// [`AuthorityError`] if the certificate cannot be made.
    pub fn issue_plugin(
        &self,
        engine: &Engine,
        csr: &Csr,
        plugin: (&ClusterId, &str, Timestamp),
    ) -> Result<Issued, AuthorityError> {
        self.authority.issue_plugin(csr, plugin, terms(engine))
    }

    /// Gets a new server certificate now, or reads again the files that it comes from.
    ///
    /// # Errors
    /// [`CertificateError`]; the old one stays in use.
    pub fn renew(&self, engine: &Engine) -> Result<(), CertificateError> {
        self.certificate.renew(&self.authority, terms(engine))
    }

    /// The TLS configuration of the listener, which lets nodes ask by certificates of these roots.
    pub(crate) fn server_config(
        &self,
        roots: &[NodeRoot],
    ) -> Result<rustls::ServerConfig, rustls::Error> {
        server_config(&self.trust, Arc::clone(&self.certificate), roots)
    }

    /// Who the other end of a connection is, by the certificates that it has shown.
    pub(crate) fn shown(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Shown {
        self.trust.shown(chain, now)
    }

    /// Where each certificate of ours is left from now on; answers whether it is left already.
    pub(crate) fn keep_in(&self, leaf: Option<Leaf>) -> bool {
        self.certificate.keep_in(leaf)
    }

    /// Renews the certificate if it is time to. Waits for the disk.
    pub(crate) fn renew_if_due(&self, engine: &Engine) {
        match self.certificate.renew_if_due(&self.authority, terms(engine)) {
            Ok(true) => tracing::info!(
                not_after = %self.certificate_not_after(),
                "the server's certificate was renewed"
            ),
            Ok(false) => {}
            Err(error) => tracing::error!(
                %error,
                not_after = %self.certificate_not_after(),
                "the server's certificate could not be renewed; the old one stays in use"
            ),
        }
    }

    /// Looks when certificates end, and tells of those that end soon.
    pub(crate) fn look(&self, engine: &Engine, metrics: &Metrics) {
        metrics.certificate_ends(self.certificate_not_after().as_seconds());
        let identities = engine.identities();
        metrics.plugins_end(identities.first_end.map(Timestamp::as_seconds), identities.late.len());
        self.tell(&identities.late);
    }

    /// Logs, once for each, what plugins should have renewed.
    fn tell(&self, late: &[LateIdentity]) {
        let mut told = self.told.lock();
        told.retain(|one| late.iter().any(|identity| identity.fingerprint == *one));
        for identity in late {
            if told.insert(identity.fingerprint.clone()) {
                tracing::warn!(
                    cluster = %identity.cluster,
                    plugin = identity.name,
                    not_after = %identity.ends,
                    "a plugin's certificate is about to end and was not renewed; is the plugin \
                     running? If it is gone for good: lastkey cluster node revoke"
                );
            }
        }
    }
}

fn terms(engine: &Engine) -> Terms<'_> {
    Terms { now: engine.clock().now(), entropy: engine.entropy() }
}
