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

/// How often a request is sent again whose connection broke, and the pause before it. A server that
/// does not accept the certificate says so and closes, and its word is lost where our request is
/// still on its way.
const ASK_AGAIN: usize = 5;
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What one request came to.
enum Asked {
    LetIn(String),
    /// Nothing yet, and what to say about it.
    NotYet(Why),
}

/// What stands in the way.
#[derive(Clone, Debug)]
struct Why {
    text: String,
    /// What it is told by that it is the same as before: a refusal has a number of its own.
    topic: String,
    kind: Kind,
}

/// Whether something says more about it than a connection that broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tls,
    Broken,
    Other,
}

impl Why {
    fn new(text: String) -> Self {
        Self { topic: text.clone(), text, kind: Kind::Other }
    }
}

/// What an enrolment that takes several requests remembers between them.
pub(super) struct Attempts {
    pause: Duration,
    told: Option<(Why, Instant)>,
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
    fn tell(&mut self, cluster: ClusterId, why: Why) {
        if self.is_news(&why) {
            tracing::warn!(%cluster, "not enrolled yet: {}", why.text);
            self.told = Some((why, Instant::now()));
        }
    }

    /// Whether it was not told lately. A connection that broke is none after an alert: that is how
    /// most of them end.
    fn is_news(&self, why: &Why) -> bool {
        let Some((old, since)) = &self.told else { return true };
        let is_known = old.topic == why.topic || (old.kind, why.kind) == (Kind::Tls, Kind::Broken);
        !is_known || since.elapsed() >= TELL_EVERY
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
            Err(failure) => Why::new(failure.to_string()),
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
        let mut answer = client.enrol(self.cluster, &csr).await;
        for _ in 0..ASK_AGAIN {
            if !matches!(answer, Err(Error::Broken { .. })) {
                break;
            }
            sleep(ASK_AGAIN_AFTER).await;
            answer = client.enrol(self.cluster, &csr).await;
        }
        match answer {
            // 3. Keep what was issued.
            Ok(Enrolment::Enrolled(issued)) => {
                files.let_in(&issued.certificate_pem, &key_pem)?;
                Ok(Asked::LetIn(issued.not_after.unwrap_or_default()))
            }
            Ok(Enrolment::Waiting { node, kubelet_key }) => Ok(Asked::NotYet(Why::new(format!(
                "waiting for approval; on the server's side: lastkey cluster node approve {node} \
                 --cluster {} --fingerprint {kubelet_key}",
                self.cluster
            )))),
            Err(error) => Ok(Asked::NotYet(self.explain(&error))),
        }
    }

    fn explain(&self, error: &Error) -> Why {
        let why = Why::new(chain(error));
        match error {
            Error::Tls { .. } => {
                let text = format!(
                    "{}; where the alert is about the certificate: {} has to be valid and of a CA \
                     that the cluster trusts (lastkey cluster node trust {} --ca FILE)",
                    why.text,
                    self.kubelet.certificate.display(),
                    self.cluster
                );
                Why { text, kind: Kind::Tls, ..why }
            }
            Error::Broken { .. } => Why { kind: Kind::Broken, ..why },
            Error::Api(refusal) => {
                Why { topic: format!("{} {}", refusal.code, refusal.message), ..why }
            }
            _ => why,
        }
    }
}

#[cfg(test)]
mod tests {
    use lastkey_client::ApiError;

    use super::*;

    fn enrolling() -> Enrolling {
        Enrolling {
            cluster: ClusterId::from_bytes([7; 16]),
            servers: Vec::new(),
            ca_file: PathBuf::new(),
            kubelet: Kubelet { certificate: "kubelet.pem".into(), key: "kubelet.pem".into() },
        }
    }

    fn refused(code: &str, request: &str) -> Error {
        let error = ApiError {
            status: http::StatusCode::FORBIDDEN,
            code: code.to_owned(),
            message: "no".to_owned(),
            request_id: Some(request.to_owned()),
            dependants: Vec::new(),
        };
        error.into()
    }

    #[test]
    fn what_stays_as_it_is_is_told_once() {
        let server = || "https://kms:7343".to_owned();
        let broken = |reason: &str| Error::Broken { server: server(), reason: reason.to_owned() };
        let alert = || Error::Tls { server: server(), reason: "the alert".to_owned() };
        let mut attempts = Attempts::default();
        let enrolling = enrolling();
        for (error, is_news) in [
            (refused("Forbidden.NodeRevoked", "r-1"), true),
            // the number of a request is not what stands in the way
            (refused("Forbidden.NodeRevoked", "r-2"), false),
            (refused("Forbidden.KubeletCertificate", "r-3"), true),
            (broken("connection closed"), true),
            (alert(), true),
            (alert(), false),
            // how most connections end that are answered by an alert
            (broken("channel closed"), false),
            (broken("broken pipe"), false),
            (alert(), false),
            (refused("Forbidden.KubeletCertificate", "r-4"), true),
        ] {
            let why = enrolling.explain(&error);
            assert_eq!(attempts.is_news(&why), is_news, "{why:?} after {:?}", attempts.told);
            assert!(why.text.contains(&chain(&error)), "{why:?}");
            attempts.tell(enrolling.cluster, why);
        }
        let long_ago = Instant::now().checked_sub(TELL_EVERY).unwrap();
        attempts.told = attempts.told.map(|(why, _)| (why, long_ago));
        assert!(
            attempts.is_news(&enrolling.explain(&refused("Forbidden.KubeletCertificate", "r-5")))
        );
    }
}
