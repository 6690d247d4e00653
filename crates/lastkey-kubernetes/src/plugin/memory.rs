//! What the plugin remembers of what it has opened, so that reads go on while the server is away,
//! and identical Decrypts cost one call.
//!
//! An answer from memory is given only while all of this holds, else the server is asked:
//!
//! 1. The request is the very one that the server has answered before, to the last byte.
//! 2. The server has said, within the lease, that this key may be used, and has not taken it back.
//!    The lease runs on a clock that counts suspend, from the moment the server was *asked*.
//! 3. The answer is noted, and notes become durable within a second ([`spool`]). Where that took
//!    waiting for a slow disk, 2 still holds after it, and nothing was forgotten meanwhile: else the
//!    key could have been refused, and that been confirmed, before its last answer went out.
//!
//! What is remembered lies in locked memory, and is zeroed when the key is refused, when the lease
//! ends, and at the end. No key of ours is among it: it is what the apiserver asked for.

mod cache;
mod flights;
mod spool;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use lastkey_client::Client;
use lastkey_crypto::{
    KeyMaterial, Lineage, SecretBytes, SpoolId,
    mac::{length_prefixed, sha256},
    plugin_blob::PluginKey,
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};

pub(super) use self::cache::Ticket;
use self::{
    cache::{Cache, Digest},
    flights::{Flights, Place},
    spool::{DeliveryError, Note, Spool, Unkept},
};
use super::{
    core::Stored,
    metrics::MemoryMetrics,
    problem::{Problem, refuses_the_key},
    view::{Standing, View, uptime},
};

/// How the plugin remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// At most so many answers.
    pub entries: usize,
    /// Where what was answered is recorded until the server takes it; this plugin's alone.
    pub directory: PathBuf,
}

/// An apiserver's seeds are few, and one of KMS v1 has a key for each Secret.
pub const DEFAULT_ENTRIES: usize = 16_384;
/// How often the end of the lease is looked for; answers look for themselves.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses of the courier: while there is nothing to deliver, and after a failure.
const IDLE: Duration = Duration::from_millis(250);
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Which protocol asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Api {
    V1,
    V2,
}

impl Api {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::V1 => "v1beta1",
            Self::V2 => "v2",
        }
    }
}

/// One Decrypt, as far as it has been checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    api: Api,
    uid: &'a str,
    key: PluginKey,
    digest: Digest,
}

impl<'a> Asked<'a> {
    /// Of this request, whose ciphertext names this key.
    pub(super) fn new(stored: &Stored<'a>, key: PluginKey) -> Self {
        let (api, digest) = match stored.identity {
            None => (Api::V1, length_prefixed(&[b"v1", stored.ciphertext])),
            Some((key_id, annotations)) => {
                let mut parts: Vec<&[u8]> = Vec::with_capacity(3 + 2 * annotations.len());
                parts.extend([b"v2".as_slice(), stored.ciphertext, key_id.as_bytes()]);
                let mut pairs: Vec<_> = annotations.iter().collect();
                pairs.sort_unstable();
                pairs.iter().for_each(|(name, value)| parts.extend([name.as_bytes(), value]));
                (Api::V2, length_prefixed(&parts))
            }
        };
        Self { api, uid: stored.uid, key, digest: sha256(&[&digest]) }
    }

    fn note(&self) -> Note<'a> {
        Note { api: self.api, key_version: self.key.key_version, uid: self.uid }
    }
}

/// What was opened, what is being opened, and what was said of it.
pub(super) struct Memory {
    cache: Mutex<Cache>,
    flights: Flights,
    spool: Spool,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<MemoryMetrics>,
}

impl Memory {
    pub(super) fn new(
        config: MemoryConfig,
        view: watch::Receiver<Arc<View>>,
        metrics: Arc<MemoryMetrics>,
    ) -> Self {
        let MemoryConfig { entries, directory } = config;
        let (cache, spool) = (Mutex::new(Cache::new(entries)), Spool::new(directory));
        Self { cache, flights: Flights::default(), spool, view, metrics }
    }

    /// Answers from memory, if that needs no waiting, and so no second look.
    pub(super) fn at_once(&self, asked: &Asked<'_>) -> Option<SecretBytes> {
        let opened = self.find(asked)?;
        self.spool.note(asked.note())?.ok()?;
        self.metrics.cached();
        Some(opened)
    }

    /// Answers from memory, together with others who ask the same, or by `fetch`, which asks the
    /// server.
    pub(super) async fn open<F>(
        &self,
        asked: Asked<'_>,
        fetch: impl Fn() -> F,
    ) -> Result<SecretBytes, Problem>
    where
        F: Future<Output = Result<SecretBytes, Problem>>,
    {
        // 1. From memory.
        let trust = self.trust();
        if let Some(opened) = self.find(&asked) {
            match self.spool.keep(asked.note()).await {
                Ok(()) if self.trusts(trust) && self.may_use(&asked.key.lineage) => {
                    self.metrics.cached();
                    return Ok(opened);
                }
                // It is recorded as given, and was not: rather one too many than one too few.
                Ok(()) => {}
                Err(unkept) => return without(&unkept, Box::pin(fetch()).await),
            }
        }
        loop {
            let trust = self.trust();
            match self.flights.board(asked.digest) {
                // 2. The first to ask does so for all.
                Place::First(flight) => {
                    let outcome = self.fetch(&asked, &fetch).await;
                    return flight.land(outcome);
                }
                // 3. The others wait for its answer, which is one from memory to them, though not one
                //    that needs a lease: it has come just now.
                Place::Beside(seat) => match seat.landed().await {
                    Some(Ok(opened)) => match self.spool.keep(asked.note()).await {
                        Ok(()) if self.trusts(trust) => {
                            self.metrics.joined();
                            return Ok(SecretBytes::new(opened.expose().to_vec()));
                        }
                        Ok(()) => {}
                        Err(unkept) => return without(&unkept, Box::pin(fetch()).await),
                    },
                    Some(Err(problem)) if !problem.is_passing() => {
                        return Err(Problem::Joined(problem));
                    }
                    // whoever asked has gone, or had no time left: we may have
                    Some(Err(_)) | None => {}
                },
            }
        }
    }

    /// To be taken before the server is asked for something that [`learn`](Self::learn) may keep.
    pub(super) fn trust(&self) -> Ticket {
        self.cache.lock().ticket()
    }

    /// Whether nothing was forgotten since the ticket was taken: what is forgotten is confirmed only
    /// after that, so what may be answered now was answered before.
    fn trusts(&self, ticket: Ticket) -> bool {
        self.trust() == ticket
    }

    /// Keeps what the server has opened in the call that made it: it can be read while the server
    /// is away, at the cost of no call. It is recorded when it is answered with.
    pub(super) fn learn(&self, asked: &Asked<'_>, (trust, opened): (Ticket, &SecretBytes)) {
        if self.may_use(&asked.key.lineage) {
            self.keep(asked, (trust, opened));
        }
    }

    fn keep(&self, asked: &Asked<'_>, (trust, opened): (Ticket, &SecretBytes)) {
        let mut cache = self.cache.lock();
        cache.put(trust, asked.digest, (asked.key.lineage, opened.expose()));
        self.metrics.entries(cache.len());
    }

    /// What the plugin now knows of its keys: what must not be used any more is forgotten.
    pub(super) fn follow(&self, old: &View, new: &View) {
        if let Standing::Refused(_) = new.standing {
            return self.forget("refused", |_| false);
        }
        if old.retired != new.retired {
            // What was opened under such a version is not told from the rest.
            self.forget("refused", |_| false);
        } else if old.usable_lineages != new.usable_lineages {
            self.forget("refused", |lineage| new.usable_lineages.contains(lineage));
        }
    }

    /// Opens the spool, if that is possible; [`work`](Self::work) goes on trying.
    pub(super) async fn prepare(&self) {
        let _ = self.spool.flush().await;
    }

    /// Names this plugin to the server, so that a restart is known as the same one.
    pub(super) fn id(&self) -> Option<SpoolId> {
        self.spool.id()
    }

    /// Records, delivers and watches the lease until it is dropped.
    pub(super) async fn work(&self, client: &Client) {
        tokio::join!(self.spool.write(), self.deliver(client), self.watch_lease());
    }

    /// Forgets everything, and makes what was answered durable.
    pub(super) async fn close(&self) {
        self.forget("stopped", |_| false);
        if let Err(unkept) = self.spool.flush().await {
            tracing::error!(%unkept, "the last answers from memory are not recorded");
        }
    }

    fn find(&self, asked: &Asked<'_>) -> Option<SecretBytes> {
        self.may_use(&asked.key.lineage).then(|| self.cache.lock().get(&asked.digest)).flatten()
    }

    fn may_use(&self, lineage: &Lineage) -> bool {
        let view = self.view.borrow();
        !view.reads_left(uptime()).is_zero() && view.usable_lineages.contains(lineage)
    }

    async fn fetch<F>(
        &self,
        asked: &Asked<'_>,
        fetch: &impl Fn() -> F,
    ) -> Result<SecretBytes, Problem>
    where
        F: Future<Output = Result<SecretBytes, Problem>>,
    {
        let ticket = self.trust();
        let lineage = asked.key.lineage;
        let outcome = fetch().await;
        match &outcome {
            Ok(opened) if self.may_use(&lineage) => self.keep(asked, (ticket, opened)),
            Ok(_) => {}
            Err(Problem::Server(error)) => {
                // a ciphertext that does not open says nothing about its key
                let about_us = refuses_the_key(error).filter(|it| it.code != "InvalidParameter");
                if about_us.is_some() {
                    self.forget("refused", |known| *known != lineage);
                }
            }
            Err(_) => {}
        }
        outcome
    }

    fn forget(&self, reason: &'static str, keep: impl Fn(&Lineage) -> bool) {
        let mut cache = self.cache.lock();
        let gone = cache.retain(keep);
        self.metrics.entries(cache.len());
        drop(cache);
        if gone > 0 {
            self.metrics.emptied(reason);
            tracing::info!(reason, gone, "answers were forgotten");
        }
    }

    async fn watch_lease(&self) {
        loop {
            let left = self.view.borrow().reads_left(uptime());
            self.metrics.lease(left);
            let spool = (self.spool.broken().is_none(), self.spool.waiting());
            self.metrics.spool(spool);
            if left.is_zero() {
                self.forget("lease", |_| false);
            }
            sleep(LOOK).await;
        }
    }

    async fn deliver(&self, client: &Client) {
        loop {
            let cluster = self.view.borrow().key.map(|key| key.cluster);
            let reachable = self.view.borrow().standing.is_heard();
            let pause = match cluster.filter(|_| reachable && self.spool.waiting() > 0) {
                None => IDLE,
                Some(cluster) => match self.spool.deliver(client, cluster).await {
                    Ok(count) => {
                        self.metrics.delivered(count);
                        IDLE
                    }
                    Err(error) => {
                        log_failure(&error);
                        AFTER_FAILURE
                    }
                },
            };
            sleep(pause).await;
        }
    }
}

fn log_failure(error: &DeliveryError) {
    tracing::warn!(%error, "what was answered from memory is not delivered yet");
}

/// The server's answer, where none may be given from memory. If there is none either, the reason
/// that an operator has to see is why memory cannot be used.
fn without(unkept: &Unkept, fetched: Result<SecretBytes, Problem>) -> Result<SecretBytes, Problem> {
    fetched.map_err(|problem| match problem.is_absence() {
        true => Problem::Unkept(unkept.to_string()),
        false => problem,
    })
}

/// For the fuzz target.
pub(super) fn read_spool(bytes: &[u8]) -> Option<usize> {
    spool::read(bytes)
}

/// Shared by those who asked the same.
pub(super) type Landed = Result<Arc<KeyMaterial>, Arc<Problem>>;

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        future::poll_fn,
        pin::{Pin, pin},
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use lastkey_client::native::{PluginStatus, Refusal};
    use lastkey_crypto::{ClusterId, Epoch, KeyVersionId};

    use super::*;
    use crate::plugin::view::Leases;

    const KEY: PluginKey = PluginKey {
        lineage: Lineage::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        key_version: KeyVersionId::from_bytes([3; 16]),
        epoch: Epoch::from_bytes([4; 16]),
    };

    fn status(refusal: Option<&str>, retired: &str) -> PluginStatus {
        let refusal = refusal.map(|code| Refusal { code: code.into(), message: "no".into() });
        PluginStatus {
            token: "t".into(),
            usable: refusal.is_none(),
            refusal,
            cluster: Some(KEY.cluster),
            key_id: None,
            lineage: Some(KEY.lineage),
            key_version: Some(KEY.key_version),
            epoch: Some(KEY.epoch),
            plugin_key_id: Some(KEY.key_id()),
            lease_seconds: 900,
            usable_lineages: None,
            retired: retired.into(),
            warnings: vec![],
            server_time: String::new(),
        }
    }

    /// Polls it once.
    async fn waits(mut work: Pin<&mut impl Future>) -> bool {
        poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_pending())).await
    }

    /// A memory, what the watch would do with it, and where it records.
    struct Fixture {
        memory: Memory,
        view: watch::Sender<Arc<View>>,
        asked: AtomicUsize,
        _state: tempfile::TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            let state = tempfile::tempdir().unwrap();
            let config = MemoryConfig { entries: 10, directory: state.path().to_owned() };
            let (view, seen) = watch::channel(Arc::new(View::starting(Leases::default())));
            let memory = Memory::new(config, seen, Arc::default());
            let new = Self { memory, view, asked: AtomicUsize::new(0), _state: state };
            new.memory.prepare().await;
            new.hears(status(None, ""));
            new
        }

        fn hears(&self, status: PluginStatus) {
            self.hears_late(status, Duration::ZERO);
        }

        /// As the watch does; it has waited so long for the answer.
        fn hears_late(&self, status: PluginStatus, waited: Duration) {
            let old = self.view.borrow().clone();
            let (asked, now) = (uptime().saturating_sub(waited), uptime());
            let new = Arc::new(old.after(Ok(status), (asked, now)));
            self.view.send_replace(Arc::clone(&new));
            self.memory.follow(&old, &new);
        }

        /// What the server says of it.
        async fn fetch(&self) -> Result<SecretBytes, Problem> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Err(Problem::Stale)
        }

        /// Starts to answer while the disk is slow, has `meanwhile` happen, and lets the disk go on.
        /// Answers whether the server was asked.
        async fn asks(&self, joined: bool, meanwhile: impl FnOnce(&Self)) -> bool {
            let annotations = HashMap::new();
            let identity = Some(("id", &annotations));
            let asked = Asked::new(&Stored { uid: "u", ciphertext: b"c", identity }, KEY);
            let opened = SecretBytes::new(vec![7; 32]);
            let flight = match self.memory.flights.board(asked.digest) {
                Place::First(flight) if joined => Some(flight),
                _ => None,
            };
            if !joined {
                self.memory.learn(&asked, (self.memory.trust(), &opened));
            }
            self.memory.spool.stall();
            assert!(self.memory.at_once(&asked).is_none());
            let before = self.asked.load(Ordering::SeqCst);
            let mut answer = pin!(self.memory.open(asked, || self.fetch()));
            assert!(waits(answer.as_mut()).await);
            if let Some(flight) = flight {
                flight.land(Ok(opened)).unwrap();
                assert!(waits(answer.as_mut()).await);
            }
            meanwhile(self);
            assert!(waits(answer.as_mut()).await, "the disk is slow");
            self.memory.spool.flush().await.unwrap();
            let answer = answer.await;
            let has_asked = self.asked.load(Ordering::SeqCst) > before;
            match answer {
                Ok(opened) => assert_eq!((opened.expose(), has_asked), (&[7; 32][..], false)),
                Err(problem) => assert!(matches!(problem, Problem::Stale) && has_asked),
            }
            has_asked
        }
    }

    /// A refusal is confirmed once all is forgotten: nothing is answered after that, also if it was
    /// taken from memory before.
    #[tokio::test]
    async fn what_waits_for_a_slow_disk_is_looked_at_again() {
        for joined in [false, true] {
            let memory = Fixture::new().await;
            assert!(!memory.asks(joined, |_| {}).await);
            let refuse = |it: &Fixture| it.hears(status(Some("Rejected.Disabled"), ""));
            assert!(memory.asks(joined, refuse).await, "refused");
            memory.hears(status(None, ""));
            assert!(memory.asks(joined, |it| it.hears(status(None, "v"))).await, "retired");
            let forth_and_back = |it: &Fixture| {
                refuse(it);
                it.hears(status(None, "v"));
            };
            assert!(memory.asks(joined, forth_and_back).await, "refused for a moment");
            // What the server has just opened needs no lease; what it opened before does.
            let over = |it: &Fixture| {
                let brief = PluginStatus { lease_seconds: 1, ..status(None, "v") };
                it.hears_late(brief, Duration::from_secs(2));
            };
            assert_eq!(memory.asks(joined, over).await, !joined, "the lease is over");
        }
    }
}
