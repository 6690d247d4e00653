//! Keeps the plugin's identity good: gets it by the kubelet's certificate where that is wanted,
//! renews it with a third of its life left, and never lets a call fail by that.
//!
//! 1. **Enrol** (`enrol.rs`): a key is made in the state directory, and a signing request for it is
//!    sent under the kubelet's certificate, again and again until somebody has approved it, or the
//!    identity from before is good again.
//! 2. **Renew**: a new key, a signing request over the present identity. Both are on disk before
//!    anything uses them (`files.rs`).
//!    Processes that go by the same files take turns, and who comes second takes what the first got.
//! 3. **Go on**: new calls take the new identity; when the last one over the old has ended, the
//!    server is told, and the old is worth nothing from then on, unless copies of the files on other
//!    nodes go by it. It is told again from time to time, ever more rarely, as those end.
//! 4. Files that somebody else has replaced are taken up as well, and so is the CA file. A certificate
//!    of another cluster is not: the plugin would open nothing any more of what it has written.
//!
//! An identity that has ended or is refused is got anew by enrolling, where that is wanted.

mod enrol;
mod files;
mod gauges;
mod roots;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use lastkey_client::{Category, Client, ClientCertificate, Error, native::Issued};
use lastkey_crypto::ClusterId;
use lastkey_engine::{Clock as _, SystemClock, Timestamp};
use parking_lot::Mutex;
use tokio::time::sleep;

pub(crate) use self::files::{IdentityFiles, plugin_of};
use self::{enrol::Attempts, files::Turn, roots::Roots};
pub(super) use self::{
    enrol::{Enrolling, Kubelet},
    files::Held,
    gauges::IdentityMetrics,
};
use super::identity::{new_key_pair, signing_request};
use crate::output::{Failure, chain};

/// What helps a node whose identity cannot be used.
const ENROL_AGAIN: &str = "move that file away, and the plugin enrols again: `lastkey cluster node \
                           approve` on the server's side lets it in, where it is not let in by itself";

/// How often the files and the time are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The longest pause between two questions whether it is the identity that is refused.
const PROBE_EVERY: Duration = Duration::from_secs(300);
/// Pauses after failures; each attempt is recorded by the server.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A failure that goes on is logged this often.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// The longest pause between two words to the server about which identity this plugin goes by.
const CONFIRM_EVERY: Duration = Duration::from_secs(3600);
/// Another process that goes by the same files has renewed them by then.
const THEIR_TURN: Duration = Duration::from_secs(60);
/// A pause between two looks whether it has.
const TURN_EVERY: Duration = Duration::from_millis(100);
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
    /// The same, where who is refused looks for another one.
    seen: Arc<Mutex<Option<Held>>>,
    /// Whether the plugin works; an identity is tried only while it does not.
    works: Box<dyn Fn() -> bool + Send + Sync>,
    /// Whether a process before this one may have been in the middle of a renewal.
    resumes: bool,
    told: Option<(String, Instant)>,
    /// Why files were not taken up, when that was said last.
    refused: Option<(String, Instant)>,
    roots: Roots,
    /// That the certificate has ended, when that was said last.
    ended: Option<(String, Instant)>,
    confirms: Confirms,
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
            seen: Arc::default(),
            works: Box::new(|| true),
            resumes: false,
            told: None,
            refused: None,
            roots: Roots::default(),
            ended: None,
            confirms: Confirms::default(),
        }
    }

    /// Takes up another CA as well, once it lies in that file, from which the client has its own.
    pub(super) fn trusting(self, ca_file: PathBuf) -> Self {
        Self { roots: Roots::of(ca_file), ..self }
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

    /// Takes up what another process has put in place a moment ago, and answers whether that was so.
    pub(super) fn take_up_at_once(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let (client, files, seen) =
            (Arc::clone(&self.client), self.files.clone(), Arc::clone(&self.seen));
        let asked_for = self.asked_for();
        move || {
            let Ok(Some(held)) = files.load() else { return false };
            let mut seen = seen.lock();
            let fits = |seen| held.fits(seen, asked_for).is_ok();
            let is_new = seen.as_ref().is_some_and(|seen| *seen != held && fits(seen));
            let is_shown = is_new && client.reload(&files.identity()).is_ok();
            if is_shown {
                *seen = Some(held);
            }
            is_shown
        }
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
        self.take_up().map_err(|failure| match self.enrolling {
            Some(_) => failure.and(ENROL_AGAIN),
            None => failure,
        })?;
        self.say_ended();
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
            if self.files.load().is_err() {
                // Of two files, one may have been replaced a moment ago.
                sleep(FIRST_PAUSE).await;
            }
            self.look();
            self.say_ended();
            if self.confirms.are_due() && !self.left().is_zero() {
                self.confirm().await;
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

    /// The cluster that this node asks to be let into.
    fn asked_for(&self) -> Option<ClusterId> {
        self.enrolling.as_ref().map(|enrolling| enrolling.cluster)
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
        if let Some(shown) = &self.shown {
            held.fits(shown, self.asked_for())
                .map_err(|why| why.about(self.files.certificate.display()))?;
        }
        let roots = self.roots.read()?;
        let (is_same, same_roots) = (self.shown.as_ref() == Some(&held), self.roots == roots);
        if is_same && same_roots {
            return Ok(());
        }
        self.client.reload(&self.files.identity())?;
        self.roots = roots;
        if !same_roots && self.shown.is_some() {
            tracing::info!("the CA by which the servers are known was replaced");
        }
        if is_same {
            return Ok(());
        }
        self.metrics.shows(&held);
        let not_after = held.not_after;
        if self.shown.is_some() {
            tracing::info!(%not_after, "the plugin's certificate was replaced");
            self.confirms = Confirms::default();
        }
        self.shows(held);
        Ok(())
    }

    fn shows(&mut self, held: Held) {
        *self.seen.lock() = Some(held.clone());
        self.shown = Some(held);
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
            Err(failure) => {
                self.refuse(&failure);
                // What was made a moment ago would be made again at once.
                attempts.pause().await;
            }
        }
    }

    /// Whether what lies on disk has not ended, and the server takes it.
    async fn is_good_again(&mut self, probe: &mut Probe) -> bool {
        self.look();
        self.todo() != Todo::Enrol
            && ((self.works)() || probe.is_due(false))
            && self.client.confirm_identity().await.is_ok()
    }

    /// Steps 2 and 3. Whatever fails leaves the present identity in use.
    async fn renew(&mut self) -> Result<(), String> {
        // Another process that goes by these files may be at it.
        let turn = self.turn().await;
        self.take_up().map_err(|failure| failure.to_string())?;
        if self.todo() != Todo::Renew {
            return Ok(());
        }
        // What cannot be kept is not asked for.
        self.files.can_be_replaced().map_err(|failure| failure.to_string())?;
        let (pair, key_pem) = new_key_pair().map_err(|failure| failure.to_string())?;
        let csr = signing_request(&pair).map_err(|failure| failure.to_string())?;
        let issued = self.client.renew_identity(&csr).await.map_err(|error| chain(&error))?;
        let Issued { certificate_pem, .. } = &issued;
        self.files.store(certificate_pem, &key_pem).map_err(|failure| failure.to_string())?;
        let held = self.files.load().map_err(|failure| failure.to_string())?;
        let held = held.ok_or("the renewed certificate cannot be read back")?;
        drop(turn);
        let retired = self.client.reload(&self.files.identity()).map_err(|error| chain(&error))?;
        self.metrics.shows(&held);
        self.metrics.renewed(true);
        tracing::info!(not_after = %held.not_after, "the plugin's certificate was renewed");
        self.shows(held);
        self.told = None;
        // Whatever began over the old identity shall end over it.
        let _ = tokio::time::timeout(LAST_CALLS, retired.gone()).await;
        self.confirms = Confirms::default();
        self.confirm().await;
        Ok(())
    }

    /// Waits until no other process replaces the files. One that takes too long is not waited for:
    /// the server lets several renew side by side.
    async fn turn(&self) -> Option<Turn> {
        let begun = Instant::now();
        loop {
            match self.files.turn() {
                Turn::Theirs if begun.elapsed() < THEIR_TURN => sleep(TURN_EVERY).await,
                Turn::Theirs => return None,
                ours => return Some(ours),
            }
        }
    }

    /// Tells the server which identity this plugin goes by. If that fails, the one before it ends
    /// by itself, no later than its certificate.
    async fn confirm(&mut self) {
        self.confirms.go_on();
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

    /// Takes up what lies on disk, or logs why not.
    fn look(&mut self) {
        match self.take_up() {
            Ok(()) => self.refused = None,
            Err(failure) => self.refuse(&failure),
        }
    }

    /// Logs why files were not taken up: at once, and again when that has gone on for long.
    fn refuse(&mut self, failure: &Failure) {
        let why = failure.to_string();
        if is_news(self.refused.as_ref(), &why) {
            tracing::error!(
                why,
                "files of the plugin's identity were not taken up; what it had before stays in use"
            );
            self.refused = Some((why, Instant::now()));
        }
    }

    /// Logs that the certificate has ended: at once, and again when that has gone on for long.
    fn say_ended(&mut self) {
        let Some(held) = self.shown.as_ref().filter(|held| held.not_after <= SystemClock.now())
        else {
            self.ended = None;
            return;
        };
        let not_after = held.not_after;
        let help = match self.enrolling {
            Some(_) => "the node asks for another one",
            None => {
                "the server takes it no more; put another one in its place, which is taken up without \
                 a restart (docs/tls.md, Plugin certificates)"
            }
        };
        if is_news(self.ended.as_ref(), help) {
            tracing::error!(%not_after, help, "the plugin's certificate has ended");
            self.ended = Some((help.to_owned(), Instant::now()));
        }
    }

    /// Logs what fails: at once, and again when it has gone on for long.
    fn tell(&mut self, why: &str) {
        if is_news(self.told.as_ref(), why) {
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

/// Whether something is to be logged, after what was.
fn is_news(told: Option<&(String, Instant)>, why: &str) -> bool {
    told.is_none_or(|(told, since)| told != why || since.elapsed() > TELL_EVERY)
}

/// When to tell the server again which identity this plugin goes by.
#[derive(Debug)]
struct Confirms {
    due: Instant,
    pause: Duration,
}

impl Default for Confirms {
    fn default() -> Self {
        Self { due: Instant::now() + LOOK_EVERY, pause: LOOK_EVERY }
    }
}

impl Confirms {
    fn are_due(&self) -> bool {
        self.due <= Instant::now()
    }

    fn go_on(&mut self) {
        self.due = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(CONFIRM_EVERY);
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
        let held =
            Held { not_before: at(1_000), not_after: at(1_900), print: [0; 32], cluster: None };
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

    /// Puts an identity in place, of a plugin of this cluster.
    fn place(files: &IdentityFiles, cluster: &str) {
        let (pair, key) = new_key_pair().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = format!("lastkey://cluster/{cluster}/plugin/plugin");
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        files.store(&params.self_signed(&pair).unwrap().pem(), &key).unwrap();
    }

    const OURS: &str = "83eb9abc-da3e-494e-b0e6-96b3c401cd15";
    const THEIRS: &str = "00000000-da3e-494e-b0e6-96b3c401cd15";

    /// A keeper of files in this directory.
    fn keeper_in(directory: &std::path::Path) -> Keeper {
        let files = IdentityFiles {
            certificate: directory.join("plugin.pem"),
            key: directory.join("plugin.key"),
        };
        place(&files, OURS);
        let ca = directory.join("ca.pem");
        std::fs::copy(&files.certificate, &ca).unwrap();
        let servers = vec!["https://127.0.0.1:1".parse().unwrap()];
        let config = lastkey_client::Config::mutual_tls(servers, ca.clone(), files.identity());
        Keeper::new(Arc::new(Client::new(config).unwrap()), files).trusting(ca)
    }

    /// By another cluster's, what lies in this one is unreadable.
    #[test]
    fn a_certificate_of_another_cluster_is_not_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = keeper_in(directory.path());
        keeper.take_up().unwrap();
        let shown = keeper.shown.clone();
        place(&keeper.files, THEIRS);
        let why = keeper.take_up().unwrap_err().to_string();
        assert!(why.contains(THEIRS), "{why}");
        assert!(why.contains(&format!("lastkey cluster certificate {OURS} --out DIR")), "{why}");
        assert_eq!(keeper.shown, shown);
        place(&keeper.files, OURS);
        keeper.take_up().unwrap();
        assert_ne!(keeper.shown, shown, "another one of ours is");
        // Whoever starts with it wants it.
        place(&keeper.files, THEIRS);
        let mut fresh = Keeper::new(Arc::clone(&keeper.client), keeper.files.clone());
        fresh.take_up().unwrap();
        assert!(fresh.shown.is_some());
    }

    /// A node that was moved to another cluster has what it was let into, not what it had before.
    #[test]
    fn what_a_node_was_let_into_is_taken_up() {
        let held = |cluster: &str| {
            let cluster = Some(cluster.parse().unwrap());
            Held { not_before: at(1_000), not_after: at(1_900), print: [0; 32], cluster }
        };
        let (ours, theirs) = (held(OURS), held(THEIRS));
        assert!(theirs.fits(&ours, None).is_err());
        assert!(theirs.fits(&ours, ours.cluster).is_err());
        assert!(theirs.fits(&ours, theirs.cluster).is_ok());
        assert!(ours.fits(&theirs, theirs.cluster).is_err(), "and not back");
    }

    #[test]
    fn another_authority_is_taken_up_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = keeper_in(directory.path());
        keeper.take_up().unwrap();
        let (ca, first) = (directory.path().join("ca.pem"), keeper.roots.clone());
        keeper.take_up().unwrap();
        assert_eq!(keeper.roots, first);
        for broken in ["", "nonsense"] {
            std::fs::write(&ca, broken).unwrap();
            let why = keeper.take_up().unwrap_err().to_string();
            assert!(why.contains("ca.pem"), "{why}");
            assert_eq!(keeper.roots, first, "it is tried again");
        }
        std::fs::remove_file(&ca).unwrap();
        assert!(keeper.take_up().unwrap_err().to_string().contains("ca.pem"));
        place(&keeper.files, OURS);
        std::fs::copy(&keeper.files.certificate, &ca).unwrap();
        keeper.take_up().unwrap();
        assert_ne!(keeper.roots, first);
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
