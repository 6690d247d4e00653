//! How a plugin without an identity gets one: it asks under the kubelet's certificate, and again
//! after a pause, until somebody lets it in.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lastkey_client::{Client, ClientCertificate, Config, Endpoint, Error, native::Enrolment};
use lastkey_crypto::ClusterId;
use tokio::time::sleep;

use super::files::IdentityFiles;
use crate::output::{Failure, chain};

/// Pauses between two requests.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What stays as it is is logged again after this.
const TELL_EVERY: Duration = Duration::from_secs(300);

/// The kubelet's files; it replaces them by itself, so they are read for each request.
#[derive(Clone, Debug)]
pub(crate) struct Kubelet {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Where to ask, and for what.
#[derive(Clone, Debug)]
pub(crate) struct Enrolling {
    pub(crate) cluster: ClusterId,
    pub(crate) servers: Vec<Endpoint>,
    pub(crate) ca_file: PathBuf,
    pub(crate) kubelet: Kubelet,
}

/// What one request came to.
enum Asked {
    LetIn(String),
    /// Nothing yet, and what to say about it.
    NotYet(String),
}

/// What an enrolment that takes several requests remembers between them.
pub(super) struct Attempts {
    pause: Duration,
    told: Option<(String, Instant)>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE, told: None }
    }
}

impl Attempts {
    /// Waits until it is time for the next request.
    pub(super) async fn pause(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Logs what stands in the way: at once, and again when it has for long.
    fn tell(&mut self, cluster: ClusterId, why: String) {
        let is_old = |(old, since): &(String, Instant)| *old == why && since.elapsed() < TELL_EVERY;
        if !self.told.as_ref().is_some_and(is_old) {
            tracing::warn!(%cluster, "not enrolled yet: {why}");
            self.told = Some((why, Instant::now()));
        }
    }
}

impl Enrolling {
    /// Asks once. Whether there is an identity in `files` by that.
    pub(super) async fn is_let_in(&self, files: &IdentityFiles, attempts: &mut Attempts) -> bool {
        let why = match self.once(files).await {
            Ok(Asked::LetIn(not_after)) => {
                tracing::info!(cluster = %self.cluster, not_after, "the node is enrolled");
                return true;
            }
            Ok(Asked::NotYet(why)) => why,
            Err(failure) => failure.to_string(),
        };
        attempts.tell(self.cluster, why);
        false
    }

    async fn once(&self, files: &IdentityFiles) -> Result<Asked, Failure> {
        // 1. A key of our own, which stays here.
        let (csr, key_pem) = files.asking()?;
        // 2. Ask as the kubelet.
        let Kubelet { certificate, key } = self.kubelet.clone();
        let identity = ClientCertificate { certificate, key };
        let config = Config::mutual_tls(self.servers.clone(), self.ca_file.clone(), identity);
        let client = Client::new(config)?;
        match client.enrol(self.cluster, &csr).await {
            // 3. Keep what was issued.
            Ok(Enrolment::Enrolled(issued)) => {
                files.let_in(&issued.certificate_pem, &key_pem)?;
                Ok(Asked::LetIn(issued.not_after.unwrap_or_default()))
            }
            Ok(Enrolment::Waiting { node, kubelet_key }) => Ok(Asked::NotYet(format!(
                "waiting for approval; on the server's side: lastkey cluster node approve {node} \
                 --cluster {} --fingerprint {kubelet_key}",
                self.cluster
            ))),
            Err(error) => Ok(Asked::NotYet(self.explain(&error))),
        }
    }

    fn explain(&self, error: &Error) -> String {
        let why = chain(error);
        match error {
            Error::Tls { .. } => format!(
                "{why}; where the alert is about the certificate: {} has to be valid and of a CA \
                 that the cluster trusts (lastkey cluster node trust {} --ca FILE)",
                self.kubelet.certificate.display(),
                self.cluster
            ),
            _ => why,
        }
    }
}
