//! What carries lines to one sink: read, deliver, remember, and again.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use lastkey_engine::audit::{Follower, Lot};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::watch, task::JoinHandle};
use zeroize::Zeroizing;

use crate::{
    SinkAddress,
    place::{self, PlaceFile, Reached},
    target::{DeliveryError, Target, Trust},
    tls::{self, TrustError},
};

/// Lines of one lot at most.
const LINES: usize = 1000;
/// How long a smaller lot has to arrive until a larger one is tried.
const GROW_AFTER: Duration = Duration::from_secs(60);
/// The same where the receiver itself has said that it was too large.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Bytes of one lot, give or take a line.
const BYTES: usize = 1 << 20;
/// How often a reader that has read everything looks again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is counted what waits, while nothing goes on.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often a place is written down at most: that waits for the disk.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);
/// A delivery that takes longer is made again.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first wait after a failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Sinks and what they share.
#[derive(Clone, Debug, Default)]
pub struct SinksConfig {
    /// The directory of the audit log.
    pub audit: PathBuf,
    /// Where it is remembered how far each sink has come.
    pub places: PathBuf,
    /// The sinks.
    pub addresses: Vec<SinkAddress>,
    /// CAs (PEM) that webhooks are trusted by, instead of the system's.
    pub ca: Option<PathBuf>,
    /// A file with the bearer token of webhooks.
    pub token: Option<PathBuf>,
}

/// Why sinks were not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A sink was named twice, or two that differ in nothing that may be shown.
    #[error(
        "the sink {sink} is named twice; webhooks have to differ in more than what comes after \
         `?`: give them different paths"
    )]
    Twice {
        /// The sink.
        sink: String,
    },
    /// The token cannot be read.
    #[error("--audit-sink-token-file {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no standard output.
    #[error("standard output cannot be written: {source}")]
    Stdout {
        /// Why.
        source: io::Error,
    },
    /// Whom to trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// How a sink does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinkStatus {
    /// Which.
    pub sink: String,
    /// The last record that arrived, or that was there before the sink was.
    pub seq: u64,
    /// Records that wait for it.
    pub lag: u64,
    /// Deliveries that failed since the start.
    pub failures: u64,
    /// Records that were deleted before it took them, since the start.
    pub missed: u64,
    /// Whether the last delivery arrived.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// What happened to it since the start that somebody should know: that it began again.
    pub remark: Option<String>,
}

/// What others may look at while a carrier runs.
#[derive(Debug)]
pub struct Carrier {
    sink: String,
    seq: AtomicU64,
    lag: AtomicU64,
    failures: AtomicU64,
    missed: AtomicU64,
    failing: AtomicBool,
    error: Mutex<Option<String>>,
    remark: Mutex<Option<String>>,
}

impl Carrier {
    fn new(sink: String, seq: u64, remark: Option<String>) -> Self {
        Self {
            sink,
            seq: AtomicU64::new(seq),
            lag: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            error: Mutex::default(),
            remark: Mutex::new(remark),
        }
    }

    /// How it does.
    pub fn status(&self) -> SinkStatus {
        SinkStatus {
            sink: self.sink.clone(),
            seq: self.seq.load(Ordering::Relaxed),
            lag: self.lag.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            ok: !self.failing.load(Ordering::Relaxed),
            error: self.error.lock().clone(),
            remark: self.remark.lock().clone(),
        }
    }

    fn arrived(&self, lot: &Lot, taken: u64) {
        let lag = self.lag.load(Ordering::Relaxed);
        self.lag.store(lag.saturating_sub(taken), Ordering::Relaxed);
        self.seq.store(lot.place.seq, Ordering::Relaxed);
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(sink = self.sink, "the audit sink takes records again");
        }
        *self.error.lock() = None;
        if lot.missed > 0 {
            self.missed.fetch_add(lot.missed, Ordering::Relaxed);
            tracing::error!(
                sink = self.sink,
                records = lot.missed,
                "audit records were deleted before the sink took them"
            );
        }
    }

    fn began_again(&self, why: &str, seq: u64) {
        self.seq.store(seq, Ordering::Relaxed);
        tracing::warn!(
            sink = self.sink,
            "{why}: it is another log, or an earlier state of it; the audit sink begins again with \
             the oldest record"
        );
        *self.remark.lock() = Some(format!("{why}; it began again with the oldest record"));
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(sink = self.sink, %error, "the audit sink takes no records; trying on");
        }
        *self.error.lock() = Some(error.to_string());
    }
}

/// All carriers of a process. Dropping it stops them where they are.
#[derive(Default)]
pub struct Sinks {
    carriers: Arc<[Arc<Carrier>]>,
    waiting: Vec<Round>,
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    log_is_whole: Arc<AtomicBool>,
}

impl Sinks {
    /// Makes everything ready that can fail, and remembers where a new sink begins. That a place
    /// cannot be read or written is said, and keeps nothing from starting.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn prepare(config: &SinksConfig) -> Result<Self, StartError> {
        let (stop, stopped) = watch::channel(false);
        let log_is_whole = Arc::new(AtomicBool::new(false));
        let mut waiting = Vec::new();
        for (index, address) in config.addresses.iter().enumerate() {
            let sink = address.to_string();
            // What is not shown of an address does not tell sinks apart: place and metrics go by the rest.
            if config.addresses[..index].iter().any(|other| other.to_string() == sink) {
                return Err(StartError::Twice { sink });
            }
            let places = Arc::new(PlaceFile::new(&config.places, sink.clone()));
            let target = Target::open(address, || trust(config))?;
            let begin = places.load(&config.audit);
            let Reached { place, hash } = begin.reached;
            waiting.push(Round {
                carrier: Arc::new(Carrier::new(sink, place.seq, begin.remark)),
                follower: Follower::new(&config.audit, place),
                audit: config.audit.clone(),
                hash,
                is_checked: false,
                log_is_whole: Arc::clone(&log_is_whole),
                target,
                portion: Portion::new(),
                memory: Memory::new(places, begin.is_kept),
                stop: stopped.clone(),
            });
        }
        let carriers = waiting.iter().map(|round| Arc::clone(&round.carrier)).collect();
        Ok(Self { carriers, waiting, tasks: Vec::new(), stop, log_is_whole })
    }

    /// The log was opened: what a crash kept from its segments is there again, and a log that ends
    /// before what a sink has is not the one that it was carried from. Nothing is carried before.
    pub fn log_is_open(&self) {
        self.log_is_whole.store(true, Ordering::Release);
    }

    /// Starts to carry, inside a tokio runtime; once.
    pub fn start(&mut self) {
        self.tasks.extend(self.waiting.drain(..).map(|round| tokio::spawn(round.run())));
    }

    /// What can be looked at.
    pub fn carriers(&self) -> Arc<[Arc<Carrier>]> {
        Arc::clone(&self.carriers)
    }

    /// Lets each sink take what is there, for at most `patience`, and ends.
    pub async fn stop(mut self, patience: Duration) {
        let _ = self.stop.send(true);
        let deadline = Instant::now() + patience;
        for task in &mut self.tasks {
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = tokio::time::timeout(left, task).await;
        }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn trust(config: &SinksConfig) -> Result<Trust, StartError> {
    let token = config.token.as_deref().map(token).transpose()?;
    Ok(Trust { tls: tls::config(config.ca.as_deref())?, token })
}

fn token(path: &Path) -> Result<Zeroizing<String>, StartError> {
    let read = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = read.map_err(|source| StartError::Token { path: path.to_owned(), source })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let source = io::Error::new(io::ErrorKind::InvalidData, "give one line of visible ASCII");
        return Err(StartError::Token { path: path.to_owned(), source });
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// What is written down of how far a sink has come, and when.
struct Memory {
    places: Arc<PlaceFile>,
    /// Something arrived since.
    is_behind: bool,
    /// The last attempt.
    at: Instant,
    /// Whether that failed, so that it is said once.
    is_failing: bool,
}

impl Memory {
    fn new(places: Arc<PlaceFile>, is_kept: bool) -> Self {
        Self { places, is_behind: !is_kept, at: Instant::now(), is_failing: false }
    }

    fn is_due(&self) -> bool {
        self.is_behind && self.at.elapsed() >= REMEMBER_EVERY
    }

    /// Writes it down, where that may take its time.
    async fn remember(&mut self, sink: &str, reached: Reached) {
        let places = Arc::clone(&self.places);
        let stored = tokio::task::spawn_blocking(move || places.store(reached)).await;
        let Ok(stored) = stored else { return };
        if let Err(error) = &stored
            && !self.is_failing
        {
            tracing::warn!(sink, %error, "how far the audit sink has come is not remembered: after \
                a restart, some records come twice");
        }
        self.is_failing = stored.is_err();
        self.is_behind = self.is_failing;
        self.at = Instant::now();
    }
}

/// How many lines go together: fewer to a receiver that cannot take as many.
struct Portion {
    lines: usize,
    since: Instant,
    /// How long until more is tried.
    patience: Duration,
}

impl Portion {
    fn new() -> Self {
        Self { lines: LINES, since: Instant::now(), patience: GROW_AFTER }
    }

    fn arrived(&mut self) {
        if self.lines < LINES && self.since.elapsed() >= self.patience {
            (self.lines, self.since) = ((self.lines * 2).min(LINES), Instant::now());
        }
    }

    /// So many lines failed together.
    fn failed(&mut self, lines: usize, error: &DeliveryError) {
        self.patience = match error {
            DeliveryError::Refused { status, .. } if *status == StatusCode::PAYLOAD_TOO_LARGE => {
                ASK_AGAIN_AFTER
            }
            DeliveryError::Late => GROW_AFTER,
            _ => return,
        };
        (self.lines, self.since) = ((lines / 2).max(1), Instant::now());
    }
}

/// One sink's work.
struct Round {
    carrier: Arc<Carrier>,
    follower: Follower,
    audit: PathBuf,
    /// Of the last record that arrived, as far as it is known.
    hash: Option<[u8; 32]>,
    /// Whether the log is the one that the sink was carried from.
    is_checked: bool,
    log_is_whole: Arc<AtomicBool>,
    target: Target,
    portion: Portion,
    memory: Memory,
    stop: watch::Receiver<bool>,
}

impl Round {
    async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let (round, read) = self.read().await;
            self = round;
            let outcome = match read {
                Ok((lag, lot)) if lot.place == self.follower.place() => {
                    self.carrier.lag.store(lag, Ordering::Relaxed);
                    if self.is_over().await {
                        return;
                    }
                    self.pause(LOOK_EVERY).await;
                    continue;
                }
                Ok((lag, lot)) => {
                    self.carrier.lag.store(lag, Ordering::Relaxed);
                    let delivered = self.deliver(&lot.lines).await;
                    match &delivered {
                        Ok(()) => self.portion.arrived(),
                        Err(error) => self.portion.failed(lot.lines.len(), error),
                    }
                    delivered.map(|()| lot)
                }
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(lot) => {
                    self.arrived(&lot).await;
                    wait = FIRST_WAIT;
                }
                Err(error) => {
                    self.follower.again();
                    self.carrier.failed(&error);
                    if self.is_over().await {
                        return;
                    }
                    let asked = match &error {
                        DeliveryError::Refused { retry_after, .. } => *retry_after,
                        _ => None,
                    };
                    // A receiver may ask for more time, not for less.
                    self.pause(asked.map_or(wait, |asked| asked.max(FIRST_WAIT))).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    async fn arrived(&mut self, lot: &Lot) {
        let taken = lot.place.seq - self.follower.place().seq;
        self.follower.arrived(lot);
        self.carrier.arrived(lot, taken);
        self.hash = lot.hash.or(self.hash);
        self.memory.is_behind = true;
        if self.memory.is_due() {
            self.remember().await;
        }
    }

    /// Between two lots: writes down what is to be, and says whether this is the end.
    async fn is_over(&mut self) -> bool {
        let is_over = *self.stop.borrow();
        if self.memory.is_due() || (is_over && self.memory.is_behind) {
            self.remember().await;
        }
        is_over
    }

    async fn remember(&mut self) {
        let reached = Reached { place: self.follower.place(), hash: self.hash };
        self.memory.remember(&self.carrier.sink, reached).await;
    }

    /// Begins again where the log does not hold what the sink has: an operator may have moved it
    /// away to begin a new one, or have put an older one back. What retention deleted cannot be
    /// compared.
    fn look_back(&mut self) -> io::Result<()> {
        if self.is_checked {
            return Ok(());
        }
        let seq = self.follower.place().seq;
        if self.follower.is_ahead()? {
            self.begin_again(&format!("the audit log ends before record {seq}, which arrived"));
            return Ok(());
        }
        if let (Some(hash), Some(found)) = (self.hash, self.follower.hash()?)
            && hash != found
        {
            self.begin_again(&format!("record {seq} of the audit log is not the one that arrived"));
        }
        self.is_checked = true;
        Ok(())
    }

    fn begin_again(&mut self, why: &str) {
        let place = place::beginning(&self.audit);
        self.follower.turn_to(place);
        self.carrier.began_again(why, place.seq);
        (self.hash, self.is_checked, self.memory.is_behind) = (None, true, true);
    }

    /// Reads the next lot, where reading may take its time.
    async fn read(mut self) -> (Self, io::Result<(u64, Lot)>) {
        let read = tokio::task::spawn_blocking(move || {
            let read = self.next();
            (self, read)
        });
        match read.await {
            Ok(read) => read,
            // The runtime ends: so does this task, at its next await.
            Err(_) => std::future::pending().await,
        }
    }

    /// Nothing is read before the log was opened: what a crash left of its last segment may have
    /// holes, which the journal fills then.
    fn next(&mut self) -> io::Result<(u64, Lot)> {
        if !self.log_is_whole.load(Ordering::Acquire) {
            let lag = self.follower.lag().unwrap_or(0);
            return Ok((lag, Lot { place: self.follower.place(), ..Lot::default() }));
        }
        match self.look_back() {
            // The directory of a log that was never written.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            looked => looked?,
        }
        let lot = self.follower.next(self.portion.lines, BYTES)?;
        let lag = if lot.lines.is_empty() { 0 } else { self.follower.lag()? };
        Ok((lag, lot))
    }

    async fn deliver(&mut self, lines: &[Vec<u8>]) -> Result<(), DeliveryError> {
        if lines.is_empty() {
            return Ok(());
        }
        let Self { target, carrier, follower, .. } = self;
        let patience = if target.may_be_late() { Duration::MAX } else { PATIENCE };
        tokio::select! {
            delivered = tokio::time::timeout(patience, target.deliver(lines)) => {
                delivered.unwrap_or(Err(DeliveryError::Late))
            }
            never = count(carrier, follower) => match never {},
        }
    }

    /// Waits, but not beyond the end.
    async fn pause(&mut self, wait: Duration) {
        if *self.stop.borrow() {
            return;
        }
        let Self { stop, carrier, follower, .. } = self;
        tokio::select! {
            _ = tokio::time::timeout(wait, stop.changed()) => {}
            never = count(carrier, follower) => match never {},
        }
    }
}

/// Says how much waits, over and over: a sink may keep a lot for as long as it likes, and is waited
/// for in between, while the log goes on.
async fn count(carrier: &Carrier, follower: &mut Follower) -> Infallible {
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        if let Ok(lag) = follower.lag() {
            carrier.lag.store(lag, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_gets_as_many_lines_as_it_takes() {
        let too_large =
            DeliveryError::Refused { status: StatusCode::PAYLOAD_TOO_LARGE, retry_after: None };
        let away = io::Error::from(io::ErrorKind::ConnectionRefused).into();
        let mut portion = Portion::new();
        portion.failed(1000, &away);
        portion.failed(1000, &DeliveryError::NoConnection);
        assert_eq!(portion.lines, 1000, "who is away says nothing about the size");
        // Slow today: more is tried again.
        portion.failed(1000, &DeliveryError::Late);
        portion.failed(500, &DeliveryError::Late);
        portion.arrived();
        assert_eq!(portion.lines, 250, "a while has to pass");
        portion.since -= GROW_AFTER;
        portion.arrived();
        assert_eq!(portion.lines, 500);
        // A limit of the receiver's own is asked for again after longer: somebody may have mended it.
        portion.failed(300, &too_large);
        portion.since -= GROW_AFTER;
        portion.arrived();
        assert_eq!(portion.lines, 150);
        portion.since -= ASK_AGAIN_AFTER;
        portion.arrived();
        assert_eq!(portion.lines, 300);
        portion.failed(1, &too_large);
        assert_eq!(portion.lines, 1);
    }
}
