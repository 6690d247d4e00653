//! Keeps the plugin's identity good: gets it by the kubelet's certificate where that is wanted,
//! renews it with a third of its life left, and never lets a call fail by that.
//!
//! 1. **Enrol** (`enrol.rs`): a key is made in the state directory, and a signing request for it is
//!    sent under the kubelet's certificate, again and again until somebody has approved it, or the
//!    identity from before is good again.
//! 2. **Renew**: a new key, a signing request over the present identity. Both are on disk before
//!    anything uses them (`files.rs`).
//! 3. **Go on**: new calls take the new identity; when the last one over the old has ended, the
//!    server is told, and the old is worth nothing from then on.
//! 4. Files that somebody else has replaced are taken up as well.
//!
//! An identity that has ended or is refused is got anew by enrolling, where that is wanted.

mod enrol;
mod files;
mod gauges;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lastkey_client::{Category, Client, ClientCertificate, Error, native::Issued};
use lastkey_engine::{Clock as _, SystemClock, Timestamp};
use tokio::time::sleep;

use self::enrol::Attempts;
pub(super) use self::{
    enrol::{Enrolling, Kubelet},
    files::{Held, IdentityFiles},
    gauges::IdentityMetrics,
};
use super::identity::{new_key_pair, signing_request};
use crate::output::{Failure, chain};

/// How often the files and the time are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The longest pause between two questions whether it is the identity that is refused.
const PROBE_EVERY: Duration = Duration::from_secs(300);
/// Pauses after failures; each attempt is recorded by the server.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A failure that goes on is logged this often.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// Calls over the old identity have ended by then: a plugin's longest wait is for 35 seconds.
const LAST_CALLS: Duration = Duration::from_secs(90);

/// Looks after one identity.
pub(super) struct Keeper {
    client: Arc<Client>,
    files: IdentityFiles,
    enrolling: Option<Enrolling>,
    metrics: Arc<IdentityMetrics>,
    /// The certificate that the client shows.
    shown: Option<Held>,
    /// Whether the plugin works; an identity is tried only while it does not.
    works: Box<dyn Fn() -> bool + Send + Sync>,
    /// Whether a process before this one may have been in the middle of a renewal.
    resumes: bool,
    told: Option<(String, Instant)>,
}

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
enum Todo {
    /// To look again after this.
    Wait(Duration),
    Renew,
    Enrol,
}

/// What to do about an identity, at this time.
fn todo(shown: Option<&Held>, enrols: bool, now: Timestamp) -> Todo {
    let Some(held) = shown else {
        return if enrols { Todo::Enrol } else { Todo::Wait(LOOK_EVERY) };
    };
    let (left, life) = (held.not_after.since(now), held.not_after.since(held.not_before));
    if left > life / 3 {
        Todo::Wait(LOOK_EVERY.min(left - life / 3))
    } else if !left.is_zero() {
        Todo::Renew
    } else if enrols {
        Todo::Enrol
    } else {
        // It has ended, and nothing here can get another one.
        Todo::Wait(LOOK_EVERY)
    }
}

impl Keeper {
    /// Keeps the identity in `files`, which the client shows already if it is good.
    pub(super) fn new(client: Arc<Client>, files: IdentityFiles) -> Self {
        let metrics = Arc::<IdentityMetrics>::default();
        Self {
            client,
            files,
            enrolling: None,
            metrics,
            shown: None,
            works: Box::new(|| true),
            resumes: false,
            told: None,
        }
    }

    /// Enrols where there is no good identity.
    pub(super) fn enrolling(self, enrolling: Enrolling) -> Self {
        Self { enrolling: Some(enrolling), ..self }
    }

    /// Goes on with what a process before this one may have begun, and tries the identity while
    /// `works` says that the plugin does not work.
    pub(super) fn resuming(self, works: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { works: Box::new(works), resumes: true, ..self }
    }

    pub(super) fn metrics(&self) -> Arc<IdentityMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Resolves once the client has an identity that has not ended; at once unless it has to enrol.
    /// An identity that had ended by a clock that was wrong will do once the clock is set right.
    ///
    /// # Errors
    /// The files are there and cannot be used.
    pub(super) async fn have_one(&mut self) -> Result<(), Failure> {
        self.files.prepare(self.enrolling.is_some())?;
        self.take_up()?;
        if self.todo() == Todo::Enrol {
            self.enrol().await;
        }
        Ok(())
    }

    /// Keeps it good. Never ends.
    pub(super) async fn keep(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut probe = Probe::default();
        if self.resumes {
            self.confirm().await;
        }
        loop {
            if let Err(failure) = self.take_up() {
                self.tell(&failure.to_string());
            }
            match self.todo() {
                Todo::Wait(left) => {
                    sleep(left).await;
                    let ask = self.enrolling.is_some() && probe.is_due((self.works)());
                    if ask && self.is_refused().await {
                        tracing::warn!("the server refuses this identity; asking for another one");
                        self.enrol().await;
                    }
                }
                Todo::Enrol => self.enrol().await,
                Todo::Renew => match self.renew().await {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(why) => {
                        self.metrics.renewed(false);
                        self.tell(&why);
                        sleep(pause.min(self.left() / 8).max(FIRST_PAUSE)).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                },
            }
        }
    }

    fn todo(&self) -> Todo {
        todo(self.shown.as_ref(), self.enrolling.is_some(), SystemClock.now())
    }

    fn left(&self) -> Duration {
        let now = SystemClock.now();
        self.shown.as_ref().map(|held| held.not_after.since(now)).unwrap_or_default()
    }

    /// Shows what lies on disk, if that is something else than what is shown.
    fn take_up(&mut self) -> Result<(), Failure> {
        let Some(held) = self.files.load()? else { return Ok(()) };
        if self.shown.as_ref() == Some(&held) {
            return Ok(());
        }
        self.client.reload(&self.files.identity())?;
        self.metrics.shows(&held);
        let not_after = held.not_after;
        if held.not_after <= SystemClock.now() {
            tracing::error!(%not_after, "the plugin's certificate has ended");
        } else if self.shown.is_some() {
            tracing::info!(%not_after, "the plugin's certificate was replaced");
        }
        self.shown = Some(held);
        Ok(())
    }

    /// Step 1: asks until this node is let in, or until the identity that is there is good again.
    /// Nobody may ever approve: the kubelet has another key by now, and a clock was wrong.
    async fn enrol(&mut self) {
        let Some(enrolling) = self.enrolling.clone() else { return };
        let (mut attempts, mut probe) = (Attempts::default(), Probe::default());
        while !enrolling.is_let_in(&self.files, &mut attempts).await {
            attempts.pause().await;
            if self.is_good_again(&mut probe).await {
                tracing::info!("the plugin's certificate is good again; no other is asked for");
                return;
            }
        }
        match self.take_up() {
            Ok(()) => self.metrics.enrolled(),
            Err(failure) => self.tell(&failure.to_string()),
        }
    }

    /// Whether what lies on disk has not ended, and the server takes it.
    async fn is_good_again(&mut self, probe: &mut Probe) -> bool {
        if let Err(failure) = self.take_up() {
            self.tell(&failure.to_string());
        }
        self.todo() != Todo::Enrol
            && ((self.works)() || probe.is_due(false))
            && self.client.confirm_identity().await.is_ok()
    }

    /// Steps 2 and 3. Whatever fails leaves the present identity in use.
    async fn renew(&mut self) -> Result<(), String> {
        // What cannot be kept is not asked for.
        self.files.can_be_replaced().map_err(|failure| failure.to_string())?;
        let (pair, key_pem) = new_key_pair().map_err(|failure| failure.to_string())?;
        let csr = signing_request(&pair).map_err(|failure| failure.to_string())?;
        let issued = self.client.renew_identity(&csr).await.map_err(|error| chain(&error))?;
        let Issued { certificate_pem, .. } = &issued;
        self.files.store(certificate_pem, &key_pem).map_err(|failure| failure.to_string())?;
        let held = self.files.load().map_err(|failure| failure.to_string())?;
        let held = held.ok_or("the renewed certificate cannot be read back")?;
        let retired = self.client.reload(&self.files.identity()).map_err(|error| chain(&error))?;
        self.metrics.shows(&held);
        self.metrics.renewed(true);
        tracing::info!(not_after = %held.not_after, "the plugin's certificate was renewed");
        self.shown = Some(held);
        self.told = None;
        // Whatever began over the old identity shall end over it.
        let _ = tokio::time::timeout(LAST_CALLS, retired.gone()).await;
        self.confirm().await;
        Ok(())
    }

    /// Tells the server which identity this plugin goes by. If that fails, the one before it ends
    /// by itself, no later than its certificate.
    async fn confirm(&self) {
        if self.shown.is_some()
            && let Err(error) = self.client.confirm_identity().await
        {
            tracing::debug!(%error, "the identity before this one was not ended yet");
        }
    }

    /// Whether the server knows us and wants nothing to do with us.
    async fn is_refused(&self) -> bool {
        match self.client.confirm_identity().await {
            Ok(_) => false,
            // By the server's clock it has ended already.
            Err(Error::Tls { reason, .. }) => reason.contains("CertificateExpired"),
            Err(error) => error.category() == Category::Denied,
        }
    }

    /// Logs what fails: at once, and again when it has gone on for long.
    fn tell(&mut self, why: &str) {
        let told = self.told.as_ref();
        let is_new = told.is_none_or(|(told, since)| told != why || since.elapsed() > TELL_EVERY);
        if is_new {
            let not_after = self.shown.as_ref().map(|held| held.not_after.to_string());
            tracing::warn!(
                why,
                not_after,
                "the plugin's certificate could not be renewed; it stays in use, and this is tried \
                 again"
            );
            self.told = Some((why.to_owned(), Instant::now()));
        }
    }
}

/// When to ask whether it is the identity that is refused: soon, and then ever more rarely, for each
/// question is recorded.
#[derive(Debug, Default)]
struct Probe(Option<(Instant, Duration)>);

impl Probe {
    fn is_due(&mut self, works: bool) -> bool {
        if works {
            self.0 = None;
            return false;
        }
        let (since, pause) = self.0.unwrap_or((Instant::now(), Duration::ZERO));
        let is_due = since.elapsed() >= pause;
        if is_due {
            let pause = (pause * 2).clamp(LOOK_EVERY, PROBE_EVERY);
            self.0 = Some((Instant::now(), pause));
        }
        is_due
    }
}

/// The files as the client reads them.
impl IdentityFiles {
    pub(super) fn identity(&self) -> ClientCertificate {
        ClientCertificate { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(0).after(Duration::from_secs(seconds))
    }

    /// What there is to do at this second, about a certificate for the seconds 1000 to 1900.
    fn at_second(second: u64, enrols: bool) -> Todo {
        let held = Held { not_before: at(1_000), not_after: at(1_900), print: [0; 32] };
        todo(Some(&held), enrols, at(second))
    }

    #[test]
    fn a_refusal_is_looked_into_at_once_and_then_more_rarely() {
        let mut probe = Probe::default();
        assert!(!probe.is_due(true));
        assert!(probe.is_due(false));
        assert!(!probe.is_due(false), "not twice in a moment");
        assert!(!probe.is_due(true));
        assert!(probe.is_due(false), "another refusal is looked into at once");
    }

    #[test]
    fn an_identity_is_renewed_at_two_thirds_of_its_life() {
        assert_eq!(at_second(1_100, false), Todo::Wait(LOOK_EVERY));
        assert_eq!(at_second(1_596, false), Todo::Wait(Duration::from_secs(4)));
        assert_eq!(at_second(1_600, false), Todo::Renew);
        assert_eq!(at_second(1_899, true), Todo::Renew);
        assert_eq!(at_second(1_900, false), Todo::Wait(LOOK_EVERY));
        assert_eq!(at_second(1_900, true), Todo::Enrol);
        assert_eq!(todo(None, true, at(0)), Todo::Enrol);
        assert_eq!(todo(None, false, at(0)), Todo::Wait(LOOK_EVERY));
        // A clock that is far behind renews nothing.
        assert_eq!(at_second(0, true), Todo::Wait(LOOK_EVERY));
    }
}
