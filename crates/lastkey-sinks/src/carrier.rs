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

use lastkey_engine::audit::{Follower, Lot};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::watch, task::JoinHandle};
use zeroize::Zeroizing;

use crate::{
    SinkAddress,
    place::PlaceFile,
    target::{DeliveryError, Target, Trust},
    tls::{self, TrustError},
};

/// Lines of one lot.
const LINES: usize = 1000;
/// Bytes of one lot, give or take a line.
const BYTES: usize = 1 << 20;
/// How often a reader that has read everything looks again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is counted what waits, while nothing goes on.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often a place is written down while lots arrive.
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
    /// A sink was named twice.
    #[error("the sink {sink} is named twice")]
    Twice {
        /// The sink.
        sink: String,
    },
    /// What is remembered of a sink cannot be read or written.
    #[error("what is remembered of the sink {sink} in {directory}: {source}")]
    Place {
        /// The sink.
        sink: String,
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
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
}

impl Carrier {
    fn new(sink: String, seq: u64) -> Self {
        Self {
            sink,
            seq: AtomicU64::new(seq),
            lag: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            error: Mutex::default(),
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
}

impl Sinks {
    /// Makes everything ready that can fail, and remembers where a new sink begins.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn prepare(config: &SinksConfig) -> Result<Self, StartError> {
        let (stop, stopped) = watch::channel(false);
        let mut waiting = Vec::new();
        for (index, address) in config.addresses.iter().enumerate() {
            let sink = address.to_string();
            if config.addresses[..index].contains(address) {
                return Err(StartError::Twice { sink });
            }
            let refused = |source| StartError::Place {
                sink: sink.clone(),
                directory: config.places.clone(),
                source,
            };
            let places = PlaceFile::new(&config.places, sink.clone()).map_err(refused)?;
            let place = places.load(&config.audit).map_err(refused)?;
            let target = Target::open(address, || trust(config))?;
            let carrier = Arc::new(Carrier::new(sink, place.seq));
            let follower = Follower::new(&config.audit, place);
            waiting.push(Round { carrier, follower, target, places, stop: stopped.clone() });
        }
        let carriers = waiting.iter().map(|round| Arc::clone(&round.carrier)).collect();
        Ok(Self { carriers, waiting, tasks: Vec::new(), stop })
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

/// One sink's work.
struct Round {
    carrier: Arc<Carrier>,
    follower: Follower,
    target: Target,
    places: PlaceFile,
    stop: watch::Receiver<bool>,
}

impl Round {
    async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        let mut remembered = Instant::now();
        let mut untold = false;
        loop {
            let (round, read) = self.read().await;
            self = round;
            let outcome = match read {
                Ok((_, lot)) if lot.place == self.follower.place() => {
                    self.carrier.lag.store(0, Ordering::Relaxed);
                    if untold {
                        self.remember();
                        untold = false;
                    }
                    if *self.stop.borrow() {
                        return;
                    }
                    self.pause(LOOK_EVERY).await;
                    continue;
                }
                Ok((lag, lot)) => {
                    self.carrier.lag.store(lag, Ordering::Relaxed);
                    let delivered = self.deliver(&lot.lines).await;
                    delivered.map(|()| lot)
                }
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(lot) => {
                    let taken = lot.place.seq - self.follower.place().seq;
                    self.follower.arrived(&lot);
                    self.carrier.arrived(&lot, taken);
                    untold = true;
                    wait = FIRST_WAIT;
                    if remembered.elapsed() >= REMEMBER_EVERY {
                        self.remember();
                        (remembered, untold) = (Instant::now(), false);
                    }
                }
                Err(error) => {
                    self.follower.again();
                    self.carrier.failed(&error);
                    if *self.stop.borrow() {
                        return;
                    }
                    let asked = match &error {
                        DeliveryError::Refused { retry_after, .. } => *retry_after,
                        _ => None,
                    };
                    self.pause(asked.unwrap_or(wait)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// Reads the next lot, where reading may take its time.
    async fn read(mut self) -> (Self, io::Result<(u64, Lot)>) {
        let read = tokio::task::spawn_blocking(move || {
            let read = self.follower.next(LINES, BYTES).and_then(|lot| {
                let lag = if lot.lines.is_empty() { 0 } else { self.follower.lag()? };
                Ok((lag, lot))
            });
            (self, read)
        });
        match read.await {
            Ok(read) => read,
            // The runtime ends: so does this task, at its next await.
            Err(_) => std::future::pending().await,
        }
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

    fn remember(&self) {
        if let Err(error) = self.places.store(self.follower.place()) {
            tracing::warn!(sink = self.carrier.sink, %error, "how far the audit sink has come is \
                not remembered: after a restart, some records come twice");
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
