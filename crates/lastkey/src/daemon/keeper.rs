//! Keeps the plugin's identity good: gets it by the kubelet's certificate where that is wanted,
//! renews it with a third of its life left, and never lets a call fail by that.
//!
//! 1. **Enrol** (`enrol.rs`): a key is made in the state directory, and a signing request for it is
//!    sent under the kubelet's certificate, again and again until somebody has approved it.
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
    time::{Duration, Instant, SystemTime},
};

use lastkey_client::{Category, Client, ClientCertificate, native::Issued};
use tokio::time::sleep;

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
/// Pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
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
    told: Option<(String, SystemTime)>,
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
fn todo(shown: Option<&Held>, enrols: bool, now: SystemTime) -> Todo {
    let Some(held) = shown else {
        return if enrols { Todo::Enrol } else { Todo::Wait(LOOK_EVERY) };
    };
    match (held.renew_at().duration_since(now), held.not_after.duration_since(now)) {
        (Ok(left), _) if !left.is_zero() => Todo::Wait(left.min(LOOK_EVERY)),
        (_, Ok(left)) if !left.is_zero() => Todo::Renew,
        _ if enrols => Todo::Enrol,
        // It has ended, and nothing here can get another one.
        _ => Todo::Wait(LOOK_EVERY),
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
            told: None,
        }
    }

    /// Enrols where there is no good identity.
    pub(super) fn enrolling(self, enrolling: Enrolling) -> Self {
        Self { enrolling: Some(enrolling), ..self }
    }

    /// Tries the identity while `works` says that the plugin does not work.
    pub(super) fn while_not(self, works: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { works: Box::new(works), ..self }
    }

    pub(super) fn metrics(&self) -> Arc<IdentityMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Resolves once the client has an identity that has not ended; at once unless it has to enrol.
    ///
    /// # Errors
    /// The files are there and cannot be used.
    pub(super) async fn have_one(&mut self) -> Result<(), Failure> {
        self.files.prepare(self.enrolling.is_some())?;
        self.take_up()?;
        if todo(self.shown.as_ref(), self.enrolling.is_some(), SystemTime::now()) == Todo::Enrol {
            self.enrol().await;
        }
        Ok(())
    }

    /// Keeps it good. Never ends.
    pub(super) async fn keep(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut probe = Probe::default();
        // A start may have been in the middle of a renewal.
        self.confirm().await;
        loop {
            if let Err(failure) = self.take_up() {
                self.tell(&failure.to_string());
            }
            let enrols = self.enrolling.is_some();
            match todo(self.shown.as_ref(), enrols, SystemTime::now()) {
                Todo::Wait(left) => {
                    sleep(left).await;
                    let ask = enrols && probe.is_due((self.works)());
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

    fn left(&self) -> Duration {
        let left = self.shown.as_ref().map(|held| held.not_after.duration_since(SystemTime::now()));
        left.and_then(Result::ok).unwrap_or_default()
    }

    /// Shows what lies on disk, if that is something else than what is shown.
    fn take_up(&mut self) -> Result<(), Failure> {
        let Some(held) = self.files.load()? else { return Ok(()) };
        if self.shown.as_ref() == Some(&held) {
            return Ok(());
        }
        self.client.reload(&self.files.identity())?;
        self.metrics.shows(&held);
        let not_after = held.shows_end();
        if held.not_after <= SystemTime::now() {
            tracing::error!(%not_after, "the plugin's certificate has ended");
        } else if self.shown.is_some() {
            tracing::info!(%not_after, "the plugin's certificate was replaced");
        }
        self.shown = Some(held);
        Ok(())
    }

    async fn enrol(&mut self) {
        let Some(enrolling) = &self.enrolling else { return };
        enrolling.until_let_in(&self.files).await;
        match self.take_up() {
            Ok(()) => self.metrics.enrolled(),
            Err(failure) => self.tell(&failure.to_string()),
        }
    }

    /// Steps 2 and 3. Whatever fails leaves the present identity in use.
    async fn renew(&mut self) -> Result<(), String> {
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
        tracing::info!(not_after = %held.shows_end(), "the plugin's certificate was renewed");
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
        let asked = self.client.confirm_identity().await;
        asked.is_err_and(|error| error.category() == Category::Denied)
    }

    /// Logs what fails: at once, and again when it has gone on for long.
    fn tell(&mut self, why: &str) {
        let now = SystemTime::now();
        let is_new = self.told.as_ref().is_none_or(|(told, since)| {
            told != why || now.duration_since(*since).is_ok_and(|age| age > TELL_EVERY)
        });
        if is_new {
            let not_after = self.shown.as_ref().map(Held::shows_end).unwrap_or_default();
            tracing::warn!(
                why,
                not_after,
                "the plugin's certificate could not be renewed; it stays in use, and this is tried \
                 again"
            );
            self.told = Some((why.to_owned(), now));
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

    fn held(now: SystemTime, since: u64, left: i64) -> Held {
        let at = |seconds: i64| match u64::try_from(seconds) {
            Ok(later) => now + Duration::from_secs(later),
            Err(_) => now - Duration::from_secs(seconds.unsigned_abs()),
        };
        Held { not_before: now - Duration::from_secs(since), not_after: at(left), print: [0; 32] }
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
        let now = SystemTime::now();
        let of = |since, left| todo(Some(&held(now, since, left)), false, now);
        assert_eq!(of(100, 1_000), Todo::Wait(LOOK_EVERY));
        assert_eq!(of(590, 310), Todo::Wait(Duration::from_secs(10)));
        assert_eq!(of(601, 299), Todo::Renew);
        assert_eq!(of(899, 1), Todo::Renew);
        assert_eq!(of(900, 0), Todo::Wait(LOOK_EVERY));
        assert_eq!(todo(Some(&held(now, 900, -1)), true, now), Todo::Enrol);
        assert_eq!(todo(None, true, now), Todo::Enrol);
        assert_eq!(todo(None, false, now), Todo::Wait(LOOK_EVERY));
        // A clock that is far behind renews nothing.
        assert_eq!(
            todo(Some(&held(now + Duration::from_secs(9_000), 0, 900)), true, now),
            Todo::Wait(LOOK_EVERY)
        );
    }
}
