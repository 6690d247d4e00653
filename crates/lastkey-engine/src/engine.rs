//! The engine: its parts, its start, its background work and its end.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use lastkey_crypto::{ClusterId, Entropy, KeyId, KeyMaterial, SecretBytes};
use lastkey_store::Store;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::{
    Caller, Clock, Command, Error, Timestamp,
    action::Action,
    anchor::{self, Anchor},
    audit::{AuditOpenError, AuditSink, Head, Record},
    barrier::{Barrier, BarrierError, Expect, MAX_AGE, Round, Step, Stored, to_json},
    caller::{NoncePrint, Principal, RequestId, RequestIds, Source},
    cluster::Identities,
    command::{
        DropKeyringKeys, PluginStatus, RedrawEpochs, RotateDueKey, RotateKeyring, Unnoted,
        VainRequests,
    },
    heads,
    holders::{Holders, Taken, Unconfirmed},
    identity::AccessKey,
    key_index::KeyIndex,
    node::NodeRoot,
    nonce::{self, NonceRefusal, NonceTable},
    opening::{self, Opened},
    outbox::Outbox,
    policy::Policy,
    records::{Change, Records},
    retention::Deleting,
    seal::{self, Seal, SealError, SealKind, SealRecord},
    time_guard::{Kept, TimeGuard},
};

mod background;

pub(crate) const AUDIT_KEY_PATH: &str = "meta/audit-key";
pub(crate) const CHECKPOINT_PATH: &str = "meta/checkpoint";
const TIME_PATH: &str = "meta/time";
const INCARNATION_PATH: &str = "meta/incarnation";
/// At most this many sources are named in one summary.
const REFUSAL_SOURCES: usize = 8;
/// A start waits for what fell due if there are at most so many keys.
const DUE_AT_ONCE: usize = 5_000;
/// Keys that get a new epoch in one transaction, with room for as many heads and the record.
const REDRAW_STEP: usize = 60;

/// Opens the audit log with the key that authenticates its head; once each time the engine opens.
pub type OpenAudit =
    Box<dyn Fn(KeyMaterial) -> Result<Arc<dyn AuditSink>, AuditOpenError> + Send + Sync>;

/// Tells which medium the store lies on.
pub type Incarnation = Box<dyn Fn() -> std::io::Result<String> + Send + Sync>;

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
    /// What remembers, apart from the store, how far the store had come.
    pub anchor: Arc<dyn Anchor>,
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
    /// The store is older than it should be. Whether to go on with it is the operator's decision.
    #[error("{reason}")]
    Held {
        /// What was found.
        reason: String,
    },
    /// What a front end needs could not be made.
    #[error("{0}")]
    Prepare(String),
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
    pub(crate) key_uses: KeyUses,
    pub(crate) started: Timestamp,
    pub(crate) seal_kind: Mutex<SealKind>,
    pub(crate) log_warnings: Vec<String>,
    nonces: NonceTable,
    request_ids: RequestIds,
    refusals: Mutex<HashMap<&'static str, Refusals>>,
    /// What was found to be needed while nothing could be written.
    pub(crate) unnoted: Mutex<BTreeSet<Unnoted>>,
    pub(crate) vain: VainRequests,
    time_guard: tokio::sync::Mutex<TimeGuard>,
    pub(crate) deleting: tokio::sync::Mutex<Deleting>,
    background: Mutex<Vec<JoinHandle<()>>>,
    anchor: Arc<dyn Anchor>,
    anchored: Mutex<heads::Counts>,
    resealing: tokio::sync::Mutex<Round>,
    stopped: AtomicBool,
    pub(crate) holders: Holders,
}

/// How often key versions were used since the start, all of them together.
#[derive(Debug, Default)]
pub(crate) struct KeyUses {
    pub(crate) encrypted: AtomicU64,
    pub(crate) decrypted: AtomicU64,
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
        // 1. The seal gives the root key; a new store gets a new one.
        let root = seal::obtain(&*parts.store, &*parts.seal, &*parts.entropy).await?;
        Self::open(&parts, root, None).await
    }

    /// Starts the engine although its store is older than it should be, or was changed: the
    /// operator's decision, which goes into the audit log with its reason. Every key gets a new
    /// epoch. A store that is as it should be starts as always.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start_accepting(parts: Parts, reason: &str) -> Result<Self, StartError> {
        let root = seal::obtain(&*parts.store, &*parts.seal, &*parts.entropy).await?;
        Self::open(&parts, root, Some(reason)).await
    }

    /// Opens the engine with its root key, which a seal or shares gave. `accepted` is the
    /// operator's reason to go on with a store that is older than it should be.
    pub(crate) async fn open(
        parts: &Parts,
        root: Arc<KeyMaterial>,
        accepted: Option<&str>,
    ) -> Result<Self, StartError> {
        let (store, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.clock));
        let (entropy, policy) = (Arc::clone(&parts.entropy), Arc::clone(&parts.policy));
        let seal_kind = seal::Kept::load(&*store).await?.record.kind();
        // 2. The root key opens the keyring, the keyring opens records.
        let barrier = Barrier::open(store, root, Arc::clone(&entropy)).await?;
        // 3. The store is compared with its heads, its anchor and the audit log, or held; what a
        //    crash kept from the log is delivered.
        let Opened { audit, remembered, lost, accepted } =
            opening::open(parts, &barrier, accepted).await?;
        barrier.begin_counting().await?;
        let outbox = Outbox::default();
        outbox.recall(remembered);
        let mut log_warnings = compare_heads(remembered, audit.head());
        log_warnings.extend(lost);
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
            key_uses: KeyUses::default(),
            started: clock.now(),
            seal_kind: Mutex::new(seal_kind),
            log_warnings,
            nonces: NonceTable::new(),
            request_ids: RequestIds::default(),
            refusals: Mutex::default(),
            unnoted: Mutex::default(),
            vain: VainRequests::default(),
            time_guard: tokio::sync::Mutex::new(TimeGuard::new(&*clock, kept)),
            deleting: tokio::sync::Mutex::default(),
            background: Mutex::default(),
            stopped: AtomicBool::new(false),
            holders: Holders::new(clock.running()),
            audit,
            clock,
            entropy,
            anchor: Arc::clone(&parts.anchor),
            anchored: Mutex::new(heads::zeros()),
            resealing: tokio::sync::Mutex::default(),
        });
        core.recall_nonces().await?;
        // 5. A store that was restored from a backup gets new epochs.
        let incarnation = (parts.incarnation)().map_err(|e| Error::Unavailable(e.to_string()))?;
        core.check_incarnation(&incarnation, accepted).await?;
        // 6. What fell due while nobody ran is done now; with very many keys, while requests are
        //    answered already.
        let at_once = core.records.with_key_ids(|ids| ids.len() <= DUE_AT_ONCE);
        if at_once {
            core.run_due_at_start().await;
        }
        core.sweep().await;
        core.start_background(!at_once);
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

    /// Notes that a plugin asks, whether it will be allowed to or not: what it knows, it has acted
    /// upon.
    pub fn heard_from(&self, caller: &Caller, asks: &PluginStatus) {
        self.core.holders.heard(asks.asks(caller), self.core.clock.running());
    }

    /// Gives plugins shorter leases than the usual 15 minutes from now on, at least 30 seconds.
    pub fn set_plugin_lease(&self, lease: Duration) {
        self.core.holders.set_lease(lease);
    }

    /// Waits until the plugins that hold what was taken away know of it, at most so long for those
    /// that are connected. Answers which do not, and until when their leases run.
    ///
    /// # Errors
    /// A record cannot be read.
    pub async fn unconfirmed(
        &self,
        taken: &Taken,
        patience: Duration,
    ) -> Result<Vec<Unconfirmed>, Error> {
        self.core.unconfirmed(taken, patience).await
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
    /// its parameters made no sense. A kubelet's may be summed up.
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
        self.core.record_end(caller, record, (code, Duration::ZERO)).await
    }

    /// Draws a request id.
    pub fn new_request_id(&self) -> RequestId {
        self.core.request_ids.next(&*self.core.entropy)
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

    /// The newest audit checkpoint's record, and when it was signed.
    pub fn newest_checkpoint(&self) -> Option<(u64, Timestamp)> {
        self.core.audit.newest_checkpoint()
    }

    /// The CA certificates by which nodes of this cluster may ask to enrol; with `None`, of all.
    pub fn node_roots(&self, cluster: Option<ClusterId>) -> Vec<NodeRoot> {
        self.core.records.node_roots(cluster)
    }

    /// A number that changes whenever a cluster's roots do.
    pub fn trust(&self) -> u64 {
        self.core.records.trust()
    }

    /// Which of the plugins' identities end when.
    pub fn identities(&self) -> Identities {
        self.core.identities()
    }

    /// How many keys there are.
    pub fn key_count(&self) -> usize {
        self.core.records.with_key_ids(KeyIndex::len)
    }

    /// Lowers how much a keyring key and a key version may be used, for tests.
    #[doc(hidden)]
    pub fn limit_uses(&self, keyring: u64, version: u64) {
        let limits = &self.core.records.limits;
        limits.keyring.store(keyring, Ordering::Relaxed);
        limits.version.store(version, Ordering::Relaxed);
    }

    /// How often key versions have encrypted and decrypted since the start, all of them together.
    pub fn key_uses(&self) -> (u64, u64) {
        let KeyUses { encrypted, decrypted } = &self.core.key_uses;
        (encrypted.load(Ordering::Relaxed), decrypted.load(Ordering::Relaxed))
    }

    /// How often the newest keyring key has sealed, at least, and how many keys the keyring has.
    pub fn keyring_uses(&self) -> (u64, usize) {
        let (uses, _, keys) = self.core.records.barrier.keyring_state();
        (uses, keys)
    }

    /// Looks once for rotations and deletions that are due, as the engine does every minute.
    ///
    /// # Errors
    /// The first failure; what it kept from being done is tried again later.
    pub async fn run_due_work(&self) -> Result<(), Error> {
        self.core.run_due().await
    }

    /// What protects the root key.
    pub fn seal_kind(&self) -> SealKind {
        *self.core.seal_kind.lock()
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        self.core.records.barrier.store()
    }

    /// The root key under which the keyring rests.
    pub(crate) fn root_key(&self) -> Arc<KeyMaterial> {
        self.core.records.barrier.root()
    }

    /// A change of the seal is durable: goes on with its root key, and lets the seal clear up.
    pub(crate) async fn sealed_anew(
        &self,
        record: &SealRecord,
        root: Option<Arc<KeyMaterial>>,
        parts: &Parts,
    ) {
        if let Some(root) = root {
            self.core.records.barrier.adopt_root(root);
        }
        *self.core.seal_kind.lock() = record.kind();
        parts.seal.settle(record).await;
        // The seal's files are part of what tells this medium from a copy of it.
        let kept = async {
            let medium = (parts.incarnation)();
            let incarnation = medium.map_err(|e| Error::Unavailable(e.to_string()))?;
            self.core.keep_incarnation(&incarnation).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(%error, "key ids will change with the next start");
        }
    }

    /// Ends the engine as [`shutdown`](Self::shutdown) does, but lets commands under way end first,
    /// for at most `patience`. Answers how many still hold it: with the last of them, its keys go.
    pub(crate) async fn retire(self, patience: Duration) -> usize {
        self.stop_background().await;
        let asked = std::time::Instant::now();
        while Arc::strong_count(&self.core) > 1 && asked.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shutdown().await;
        Arc::strong_count(&self.core) - 1
    }

    async fn stop_background(&self) {
        let tasks: Vec<_> = self.core.background.lock().drain(..).collect();
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
    }

    /// Ends the background work and closes the log cleanly. Commands fail from here on.
    pub async fn shutdown(&self) {
        let core = &self.core;
        if core.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        self.stop_background().await;
        core.flush_refusals().await;
        core.sum_up_kubelets().await;
        if let Err(error) = core.keep_time().await {
            tracing::warn!(%error, "the running time was not kept");
        }
        core.outbox.pay(&core.records.barrier, &*core.audit).await;
        if let Err(error) = core.end_counting().await {
            tracing::warn!(%error, "uses of keys are counted a little too high");
        }
        if let Err(error) = core.outbox.remember_end(&core.records.barrier, &*core.audit).await {
            tracing::warn!(%error, "delivered records wait in the outbox");
        }
        core.anchor().await;
        let audit = Arc::clone(&core.audit);
        let _ = tokio::task::spawn_blocking(move || audit.close()).await;
        // Only now is the last checkpoint made.
        core.keep_checkpoint().await;
        core.anchor().await;
    }
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
        let (audit, now) = (Arc::clone(&self.audit), self.clock.now());
        let read = move || nonce::recall(&*audit, now, NonceTable::CAPACITY);
        let (nonces, others_until) = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| Error::Internal)?
            .map_err(|e| Error::Unavailable(format!("the audit log cannot be read: {e}")))?;
        // What else was admitted was not looked for. It is too old now; but the clock may be
        // ahead, and be set back later.
        self.nonces.forget_until(others_until);
        self.nonces.forget(&nonces.lost);
        for (print, signed) in nonces.seen {
            self.nonces.remember(NoncePrint(print), signed, now);
        }
        Ok(())
    }

    /// Notices that the store lies on another medium than last time.
    /// An accepted store is another one, too, whatever medium it lies on.
    async fn check_incarnation(
        self: &Arc<Self>,
        medium: &str,
        accepted: bool,
    ) -> Result<(), Error> {
        let known = self.records.barrier.read_json::<String>(INCARNATION_PATH).await?;
        let incarnation = self.incarnation_on(medium);
        if known.as_ref().is_some_and(|known| known.value == incarnation) {
            return Ok(());
        }
        // Releases without heads knew the medium only.
        let same = known.as_ref().is_some_and(|known| known.value == medium) && !accepted;
        if known.is_some() && !same {
            tracing::warn!("the store was copied or restored from a backup: key ids change");
            let ids: Vec<KeyId> = self.records.with_key_ids(|ids| ids.iter().copied().collect());
            for keys in ids.chunks(REDRAW_STEP) {
                let caller = Caller::system(&*self.entropy);
                self.execute(&caller, RedrawEpochs { keys: keys.to_vec() }).await?;
            }
        }
        self.keep(INCARNATION_PATH, &incarnation, known.as_ref()).await
    }

    /// The medium, and which history of the store lies on it.
    fn incarnation_on(&self, medium: &str) -> String {
        let store = self.records.barrier.witness("incarnation").map(|witness| witness.store);
        format!("{medium} {}", store.map(hex::encode).unwrap_or_default())
    }

    /// Remembers this medium as the store's.
    async fn keep_incarnation(&self, medium: &str) -> Result<(), Error> {
        let incarnation = self.incarnation_on(medium);
        let known = self.records.barrier.read_json::<String>(INCARNATION_PATH).await?;
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

    /// Whether the wall clock can be trusted now with what cannot be undone.
    pub(crate) async fn may_destroy(&self) -> bool {
        let mut guard = self.time_guard.lock().await;
        guard.look(&*self.clock);
        guard.may_destroy()
    }

    async fn keep_time(&self) -> Result<(), Error> {
        let kept = self.time_guard.lock().await.keep();
        let old = self.records.barrier.read_json::<Kept>(TIME_PATH).await?;
        self.keep(TIME_PATH, &kept, old.as_ref()).await
    }

    /// Rotations and deletions that are due.
    async fn run_due(self: &Arc<Self>) -> Result<(), Error> {
        let (may_rotate, may_destroy) = {
            let mut guard = self.time_guard.lock().await;
            guard.look(&*self.clock);
            (guard.may_rotate(), guard.may_destroy())
        };
        // First of all: what a full disk keeps from being done may be done once there is room.
        self.delete_old_records(may_destroy).await;
        self.keep_checkpoint().await;
        self.note_found().await;
        let worn = self.rotate_worn(may_rotate).await;
        worn.and(self.run_due_work(may_rotate, may_destroy).await)
    }
}
