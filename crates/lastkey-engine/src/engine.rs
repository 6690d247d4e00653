//! The engine: its parts, its start, its background work and its end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use lastkey_crypto::{Entropy, KeyId, KeyMaterial, SecretBytes};
use lastkey_store::Store;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::{
    Caller, Clock, Command, Error, Timestamp,
    action::Action,
    audit::{AuditOpenError, AuditSink, Head, Query, Record},
    barrier::{Barrier, BarrierError, Expect, Stored, to_json},
    caller::{NoncePrint, Principal, RequestId, Source},
    command::RedrawEpochs,
    identity::AccessKey,
    nonce::{NonceRefusal, NonceTable, SKEW},
    outbox::Outbox,
    policy::Policy,
    records::{Change, Records},
    seal::{Seal, SealError},
    time_guard::{Kept, TimeGuard},
};

const AUDIT_KEY_PATH: &str = "meta/audit-key";
const TIME_PATH: &str = "meta/time";
const INCARNATION_PATH: &str = "meta/incarnation";
/// Delivered outbox parcels wait at most this long for their deletion.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// Due rotations and deletions are looked for this often.
const DUE_EVERY: Duration = Duration::from_secs(60);
/// An unhealthy log is tried this often.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// Refused callers are summed up this often.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// At most this many sources are named in one summary.
const REFUSAL_SOURCES: usize = 8;
/// Keys that get a new epoch in one transaction, with room for the record.
const REDRAW_STEP: usize = 100;

/// Opens the audit log with the key that authenticates its head.
pub type OpenAudit =
    Box<dyn FnOnce(KeyMaterial) -> Result<Arc<dyn AuditSink>, AuditOpenError> + Send>;

/// Tells which medium the store lies on.
pub type Incarnation = Box<dyn FnOnce() -> std::io::Result<String> + Send>;

/// What the engine works with. Every test can bring its own.
pub struct Parts {
    /// Where records are kept.
    pub store: Arc<dyn Store>,
    /// What protects the root key.
    pub seal: Arc<dyn Seal>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Who may do what.
    pub policy: Arc<dyn Policy>,
    /// The audit log.
    pub audit: OpenAudit,
    /// Identifies the medium the store lies on (not what is on it): when it is another than last
    /// time, the store was copied or restored from a backup, and every key gets a new epoch.
    /// Asked once the store and the seal's files are there.
    pub incarnation: Incarnation,
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The seal did not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store's keyring did not open.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// The audit log did not open.
    #[error(transparent)]
    Audit(#[from] AuditOpenError),
    /// A record did not open, or the first writes failed.
    #[error(transparent)]
    Engine(#[from] Error),
}

/// The engine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Engine {
    core: Arc<Core>,
}

/// What every command works on.
pub struct Core {
    pub(crate) records: Records,
    pub(crate) audit: Arc<dyn AuditSink>,
    pub(crate) outbox: Outbox,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) started: Timestamp,
    pub(crate) seal_kind: &'static str,
    pub(crate) log_warnings: Vec<String>,
    nonces: NonceTable,
    refusals: Mutex<HashMap<&'static str, Refusals>>,
    time_guard: tokio::sync::Mutex<TimeGuard>,
    background: Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Refusals {
    count: u64,
    sources: Vec<Source>,
}

impl Engine {
    /// Starts the engine, in the numbered steps that ARCHITECTURE.md explains.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { store, seal, clock, entropy, policy, audit, incarnation } = parts;
        // 1. The seal gives the root key; a new store gets a new one.
        let root = if Barrier::is_initialised(&*store).await? {
            seal.unseal().await?
        } else {
            seal.initialise(&*entropy).await?
        };
        // 2. The root key opens the keyring, the keyring opens records.
        let barrier = Barrier::open(store, &root, Arc::clone(&entropy)).await?;
        drop(root);
        // 3. The audit log opens, and what a crash kept from it is delivered.
        let audit = audit(audit_key(&barrier, &*entropy).await?)?;
        let outbox = Outbox::default();
        let log_warnings = compare_heads(outbox.recall(&barrier).await?, audit.head());
        let delivered = outbox.recover(&barrier, &*audit).await?;
        if delivered > 0 {
            tracing::warn!(delivered, "audit records of changes were delivered after a crash");
        }
        // 4. The indexes are read, and the nonces that a restart must not forget.
        let kept = barrier.read_json::<Kept>(TIME_PATH).await?.map(|stored| stored.value);
        let records = Records::load(barrier, Arc::clone(&policy)).await?;
        let core = Arc::new(Core {
            records,
            outbox,
            policy,
            started: clock.now(),
            seal_kind: seal.kind(),
            log_warnings,
            nonces: NonceTable::new(),
            refusals: Mutex::default(),
            time_guard: tokio::sync::Mutex::new(TimeGuard::new(&*clock, kept)),
            background: Mutex::default(),
            stopped: AtomicBool::new(false),
            audit,
            clock,
            entropy,
        });
        core.recall_nonces().await?;
        // 5. A store that was restored from a backup gets new epochs.
        let incarnation = incarnation().map_err(|e| Error::Unavailable(e.to_string()))?;
        core.check_incarnation(&incarnation).await?;
        // 6. What fell due while nobody ran is done now.
        core.run_due(true).await?;
        core.outbox.sweep(&core.records.barrier, &*core.audit).await?;
        core.start_background();
        Ok(Self { core })
    }

    /// The one door for commands.
    ///
    /// # Errors
    /// Why the command was refused; the refusal is in the audit log then, too.
    pub async fn execute<C: Command>(
        &self,
        caller: &Caller,
        command: C,
    ) -> Result<C::Output, Error> {
        self.core.execute(caller, command).await
    }

    /// The access key of that id, to check a signature with.
    pub fn access_key(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.core.records.access_key(id)
    }

    /// Whether any access key exists; a first start makes one.
    pub fn has_access_keys(&self) -> bool {
        self.core.records.has_access_keys()
    }

    /// Admits a signed request's nonce, once. The print goes into the request's [`Caller`].
    ///
    /// # Errors
    /// [`NonceRefusal`] for a replay, or a time outside of the accepted window.
    pub fn admit_nonce(
        &self,
        access_key_id: &str,
        nonce: &str,
        signed: Timestamp,
    ) -> Result<(NoncePrint, Timestamp), NonceRefusal> {
        let print = NoncePrint::of(access_key_id, nonce);
        self.core.nonces.admit(print, signed, &*self.core.clock)?;
        Ok((print, signed))
    }

    /// Counts a caller who did not authenticate; a summary reaches the audit log every ten
    /// seconds, so that strangers cannot fill the disk.
    pub fn refused(&self, code: &'static str, source: Source) {
        let mut refusals = self.core.refusals.lock();
        let refusal = refusals.entry(code).or_default();
        refusal.count += 1;
        if refusal.sources.len() < REFUSAL_SOURCES && !refusal.sources.contains(&source) {
            refusal.sources.push(source);
        }
    }

    /// Records that a proven caller's request was refused before it became a command, because
    /// its parameters made no sense.
    ///
    /// # Errors
    /// It could not be recorded; the caller must be told this instead.
    pub async fn record_refusal(
        &self,
        caller: &Caller,
        action: &'static str,
        code: &'static str,
    ) -> Result<(), Error> {
        let record = Record::begin(action, caller, self.core.clock.now());
        self.core.audit.append(record.finish(code, Duration::ZERO)).await?;
        Ok(())
    }

    /// Draws a request id.
    pub fn new_request_id(&self) -> RequestId {
        RequestId::random(&*self.core.entropy)
    }

    /// The clock the engine goes by.
    pub fn clock(&self) -> &dyn Clock {
        &*self.core.clock
    }

    /// The randomness the engine draws from.
    pub fn entropy(&self) -> &dyn Entropy {
        &*self.core.entropy
    }

    /// A caller for what the server does by itself.
    pub fn system_caller(&self) -> Caller {
        Caller::system(&*self.core.entropy)
    }

    /// A secret that a front end keeps behind the barrier, if it was ever written.
    ///
    /// # Errors
    /// The store cannot be read, or the record is not authentic.
    pub async fn read_sealed(&self, name: &str) -> Result<Option<SecretBytes>, Error> {
        let path = crate::command::sealed_path(name);
        Ok(self.core.records.raw(&path).await?.map(|stored| stored.value))
    }

    /// Whether requests can be worked on at present.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), Error> {
        self.core.readiness()
    }

    /// The newest audit record's number.
    pub fn audit_records(&self) -> u64 {
        self.core.audit.head().seq
    }

    /// How many keys there are.
    pub fn key_count(&self) -> usize {
        self.core.records.with_key_ids(std::collections::BTreeSet::len)
    }

    /// Looks once for rotations and deletions that are due, as the engine does every minute.
    ///
    /// # Errors
    /// The first failure; what it kept from being done is tried again later.
    pub async fn run_due_work(&self) -> Result<(), Error> {
        self.core.run_due(false).await
    }

    /// Ends the background work and closes the log cleanly. Commands fail from here on.
    pub async fn shutdown(&self) {
        let core = &self.core;
        if core.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        for task in core.background.lock().drain(..) {
            task.abort();
        }
        core.flush_refusals().await;
        if let Err(error) = core.keep_time().await {
            tracing::warn!(%error, "the running time was not kept");
        }
        core.outbox.pay(&*core.audit).await;
        core.sweep().await;
        let audit = Arc::clone(&core.audit);
        let _ = tokio::task::spawn_blocking(move || audit.close()).await;
    }
}

/// The key of the log's authentication codes: made once, kept behind the barrier.
async fn audit_key(barrier: &Barrier, entropy: &dyn Entropy) -> Result<KeyMaterial, Error> {
    if let Some(stored) = barrier.read(AUDIT_KEY_PATH).await? {
        return Ok(KeyMaterial::from_slice(stored.value.expose()));
    }
    let key = KeyMaterial::generate(32, entropy);
    let first = lastkey_store::Transaction::new();
    let first = barrier.put(first, AUDIT_KEY_PATH, key.expose(), Expect::Absent)?;
    barrier.store().commit(first).await?;
    Ok(key)
}

/// A log that ends before what the store remembers was cut.
fn compare_heads(remembered: Option<Head>, head: Head) -> Vec<String> {
    match remembered {
        Some(remembered) if remembered.seq > head.seq => {
            let warning = format!(
                "the audit log ends at record {}, but the store remembers record {}: it was cut; \
                 run `lastkey audit verify`",
                head.seq, remembered.seq
            );
            tracing::error!("{warning}");
            vec![warning]
        }
        _ => Vec::new(),
    }
}

impl Core {
    /// A time-ordered UUID (RFC 9562 §5.7).
    pub(crate) fn new_uuid(&self, now: Timestamp) -> uuid::Uuid {
        let mut random = [0; 10];
        self.entropy.fill(&mut random);
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }

    /// Fills the nonce table from the log.
    async fn recall_nonces(&self) -> Result<(), Error> {
        let from = Timestamp::from_millis(
            self.clock.now().as_millis() - 2 * i64::try_from(SKEW.as_millis()).unwrap_or(0),
        );
        let query = Query {
            from: Some(from),
            newest: true,
            limit: NonceTable::CAPACITY,
            ..Query::default()
        };
        let audit = Arc::clone(&self.audit);
        let page = tokio::task::spawn_blocking(move || audit.query(&query))
            .await
            .map_err(|_| Error::Internal)?
            .map_err(|e| Error::Unavailable(format!("the audit log cannot be read: {e}")))?;
        if page.records.len() >= NonceTable::CAPACITY {
            // More than can be remembered: what came before the restart is refused for its age.
            self.nonces.forget_until(self.clock.now().as_seconds());
        }
        for record in page.records {
            let print = record["nonce"].as_str().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            if let (Some(print), Some(signed)) = (print, record["signed"].as_i64()) {
                self.nonces.remember(NoncePrint(print), signed);
            }
        }
        Ok(())
    }

    /// Notices that the store lies on another medium than last time.
    async fn check_incarnation(self: &Arc<Self>, incarnation: &str) -> Result<(), Error> {
        let known = self.records.barrier.read_json::<String>(INCARNATION_PATH).await?;
        if known.as_ref().is_some_and(|known| known.value == incarnation) {
            return Ok(());
        }
        if known.is_some() {
            tracing::warn!("the store was copied or restored from a backup: key ids change");
            let ids: Vec<KeyId> = self.records.with_key_ids(|ids| ids.iter().copied().collect());
            for keys in ids.chunks(REDRAW_STEP) {
                let caller = Caller::system(&*self.entropy);
                self.execute(&caller, RedrawEpochs { keys: keys.to_vec() }).await?;
            }
        }
        self.keep(INCARNATION_PATH, &incarnation, known.as_ref()).await
    }

    /// Writes a small record of the engine's own.
    async fn keep<T: serde::Serialize, U>(
        &self,
        path: &str,
        value: &T,
        old: Option<&Stored<U>>,
    ) -> Result<(), Error> {
        let expect = old.map_or(Expect::Absent, Stored::expect);
        let change = Change::new().put(path.to_owned(), to_json(value)?, expect);
        // A lost race means that another server has just written the same.
        self.records.commit(change, None).await.map(|_| ())
    }

    async fn keep_time(&self) -> Result<(), Error> {
        let kept = self.time_guard.lock().await.keep();
        let old = self.records.barrier.read_json::<Kept>(TIME_PATH).await?;
        self.keep(TIME_PATH, &kept, old.as_ref()).await
    }

    /// Rotations and deletions that are due.
    async fn run_due(self: &Arc<Self>, starting: bool) -> Result<(), Error> {
        let (may_rotate, may_destroy) = {
            let mut guard = self.time_guard.lock().await;
            guard.look(&*self.clock);
            (guard.may_rotate(), guard.may_destroy())
        };
        self.run_due_work(starting || may_rotate, may_destroy).await
    }

    async fn flush_refusals(&self) {
        let refusals = std::mem::take(&mut *self.refusals.lock());
        for (code, refusal) in refusals {
            let caller =
                Caller::new(Principal::System, Source::Internal, RequestId::random(&*self.entropy));
            let mut record = Record::begin(Action::RefuseCallers.name(), &caller, self.clock.now());
            record.number("count", refusal.count);
            let sources: Vec<String> = refusal.sources.iter().map(ToString::to_string).collect();
            record.field("sources", sources.join(" "));
            let _ = self.audit.append(record.finish(code, Duration::ZERO)).await;
        }
    }

    /// An attempt to write, so that a log that could not is found working again.
    async fn heartbeat(&self) {
        if self.audit.health().is_err() {
            let caller = Caller::system(&*self.entropy);
            let record = Record::begin(Action::Heartbeat.name(), &caller, self.clock.now());
            let _ = self.audit.append(record.finish("ok", Duration::ZERO)).await;
        }
        self.outbox.pay(&*self.audit).await;
    }

    fn start_background(self: &Arc<Self>) {
        let follower = Arc::clone(self);
        let tasks = [
            tokio::spawn(async move { follower.records.follow().await }),
            self.every(SWEEP_EVERY, |core| Box::pin(async { core.sweep().await })),
            self.every(DUE_EVERY, |core| Box::pin(async { core.look_for_due_work().await })),
            self.every(HEARTBEAT_EVERY, |core| Box::pin(async { core.heartbeat().await })),
            self.every(REFUSALS_EVERY, |core| Box::pin(async { core.flush_refusals().await })),
        ];
        self.background.lock().extend(tasks);
    }

    async fn sweep(&self) {
        if let Err(error) = self.outbox.sweep(&self.records.barrier, &*self.audit).await {
            tracing::warn!(%error, "delivered records wait in the outbox");
        }
    }

    async fn look_for_due_work(self: &Arc<Self>) {
        if let Err(error) = self.run_due(false).await {
            tracing::error!(%error, "due rotations or deletions wait");
        }
        if let Err(error) = self.keep_time().await {
            tracing::warn!(%error, "the running time was not kept");
        }
    }

    fn every(
        self: &Arc<Self>,
        period: Duration,
        work: for<'a> fn(&'a Arc<Core>) -> BoxFuture<'a, ()>,
    ) -> JoinHandle<()> {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                work(&core).await;
            }
        })
    }
}
