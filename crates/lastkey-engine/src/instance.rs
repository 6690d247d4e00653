//! An installation through its life: without a root key, sealed, held, unsealed.
//!
//! The front ends hold an [`Instance`], and ask it for the [`Engine`] with each request. While it
//! is not unsealed there is none: no key is in memory, and nothing is answered but how it is and
//! what an operator enters.
//!
//! How it opens, in numbered steps (docs/seals.md):
//! 1. the seal, or enough shares, give the root key;
//! 2. the root key opens the keyring, and the engine starts as `engine.rs` says;
//! 3. the attendants (the front end's certificates, the first start's files) make what they need;
//! 4. requests get the engine.
//!
//! How it is sealed:
//! 1. the order is audited;
//! 2. no request gets the engine any more, and those who wait in one are told;
//! 3. the attendants drop what they hold;
//! 4. requests under way end, the log is closed;
//! 5. the engine is dropped, and with it the root key, the keyring and every key that was cached:
//!    locked memory zeroes itself when it is freed.

mod abandoned;
mod doubt;
mod error;
mod life;
mod order;

use std::{
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use lastkey_crypto::{
    KeyMaterial, SystemEntropy,
    share::{KEY_LEN, SetId, Share, Splitting, split},
};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};

pub use abandoned::GIVEN_UP;
pub use error::OperatorError;
pub use life::{Life, LifeEvent};
pub use order::{Order, Outcome, With};

use crate::{
    Caller, Engine, Error, Parts, RequestId, SealError, StartError,
    barrier::Barrier,
    caller::RequestIds,
    command::seal::{SealServer, UnsealServer},
    seal::{
        self, Gathering, Kept, ROOT_KEY_BYTES, SealEntry, SealRecord, SealSummary, ShamirEntry,
        Threshold,
    },
};

/// Requests under way have so long to end when the server is sealed.
const PATIENCE: Duration = Duration::from_secs(6);
/// An order that is still under way when the process ends has had its time, and has this much more.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// A seal that could not be reached is tried again this often.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Takes part in opening and sealing.
#[async_trait]
pub trait Attendant: Send + Sync {
    /// The engine runs, but no request gets it yet.
    ///
    /// # Errors
    /// Why requests cannot be answered; the instance is sealed again then.
    async fn opened(&self, engine: &Engine) -> Result<(), String>;

    /// Drops whatever belongs to the engine.
    async fn closing(&self);
}

/// An installation. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Instance {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` for an engine that somebody else has started, and that never seals.
    parts: Option<Parts>,
    current: RwLock<Current>,
    shown: RwLock<Shown>,
    attendants: RwLock<Vec<Weak<dyn Attendant>>>,
    /// Held by whatever changes the state or the seal.
    work: Mutex<Work>,
    /// Whether somebody looks after shares that wait.
    watched: AtomicBool,
    request_ids: RequestIds,
}

/// What requests find.
enum Current {
    Uninitialised,
    Sealed,
    Held(String),
    Unsealed(Engine),
}

/// What status tells.
#[derive(Default)]
struct Shown {
    record: Option<SealRecord>,
    order: Option<&'static str>,
    target: Option<String>,
    progress: Option<Threshold>,
    waiting: Option<String>,
    /// Whether a seal that opens by itself is tried again and again.
    trying: bool,
}

#[derive(Default)]
struct Work {
    unsealing: Gathering,
    /// A change of the seal that shares are entered for.
    order: Option<order::Begun>,
    /// A change of the seal that may have been made.
    doubt: Option<doubt::Doubt>,
    /// The root key of a store that is held.
    held: Option<Arc<KeyMaterial>>,
    /// Why a token does not take its PIN, where shares open, too: it is not asked again before an
    /// operator wants it to be.
    refused_pin: Option<String>,
    /// Shares refused since the server was sealed.
    refused: u64,
    /// Shares forgotten since then.
    forgotten: u64,
    /// Running time when the last share was taken.
    progress_at: Duration,
}

/// How an installation is, for everybody to know. Nothing in it is secret.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceStatus {
    /// The state.
    pub state: Life,
    /// Whether there is a root key.
    pub initialised: bool,
    /// Whether requests are refused.
    pub sealed: bool,
    /// Why an opened store is not served.
    pub held: Option<String>,
    /// The seal.
    pub seal: Option<SealSummary>,
    /// New shares that wait to be entered once.
    pub pending: Option<SealSummary>,
    /// What shares are being entered for: `unseal`, `rekey`, …
    pub order: Option<&'static str>,
    /// What that leads to: the seal to come, or the number of shares.
    pub target: Option<String>,
    /// How many of them were.
    pub progress: Option<Threshold>,
    /// Why a seal that opens by itself does not, at the moment.
    pub waiting: Option<String>,
    /// This release.
    pub version: &'static str,
}

/// A set of shares, just made: to be shown once.
#[derive(Debug)]
pub struct NewShares {
    /// The shares.
    pub shares: Vec<Share>,
    /// What they are shares of.
    pub seal: SealSummary,
}

impl From<Engine> for Instance {
    /// An instance that is unsealed from the start.
    fn from(engine: Engine) -> Self {
        Self::with(None, Current::Unsealed(engine))
    }
}

impl Instance {
    /// An installation that was not looked at yet; [`start`](Self::start) does.
    pub fn new(parts: Parts) -> Self {
        Self::with(Some(parts), Current::Sealed)
    }

    fn with(parts: Option<Parts>, current: Current) -> Self {
        let inner = Inner {
            parts,
            current: RwLock::new(current),
            shown: RwLock::default(),
            attendants: RwLock::default(),
            work: Mutex::default(),
            watched: AtomicBool::new(false),
            request_ids: RequestIds::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The engine, while there is one.
    ///
    /// # Errors
    /// [`Error::Sealed`], which says what the operator has to do.
    pub fn engine(&self) -> Result<Engine, Error> {
        match &*self.inner.current.read() {
            Current::Unsealed(engine) => Ok(engine.clone()),
            other => Err(Error::Sealed(other.life())),
        }
    }

    /// The state.
    pub fn life(&self) -> Life {
        self.inner.current.read().life()
    }

    /// How it is.
    pub fn status(&self) -> InstanceStatus {
        let (state, held) = match &*self.inner.current.read() {
            Current::Held(reason) => (Life::Held, Some(reason.clone())),
            other => (other.life(), None),
        };
        let shown = self.inner.shown.read();
        let record = shown.record.as_ref();
        InstanceStatus {
            state,
            initialised: state != Life::Uninitialised,
            sealed: state != Life::Unsealed,
            held,
            seal: record.and_then(SealRecord::summary),
            pending: record.and_then(SealRecord::pending).map(SealSummary::of),
            order: shown.order,
            target: shown.target.clone(),
            progress: shown.progress,
            waiting: shown.waiting.clone(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Adds one who takes part in opening and sealing, for as long as it lives.
    pub fn attend(&self, attendant: &Arc<dyn Attendant>) {
        self.inner.attendants.write().push(Arc::downgrade(attendant));
    }

    /// Draws a request id.
    pub fn new_request_id(&self) -> RequestId {
        self.inner.request_ids.next(&SystemEntropy)
    }

    /// Looks at the store, and opens it if its seal opens by itself. A new store gets a root key
    /// under such a seal; under one of shares it waits for [`init`](Self::init). A token that
    /// cannot be reached is tried again and again in the background, until it refuses. Where shares
    /// could open, too, any other failure of the seal is told by the status as well, and waited with.
    ///
    /// # Errors
    /// [`StartError`]: nobody can help while this process runs.
    pub async fn start(&self) -> Result<Life, StartError> {
        let Some(parts) = &self.inner.parts else { return Ok(self.life()) };
        let mut work = self.inner.work.lock().await;
        match seal::obtain(&*parts.store, &*parts.seal, &*parts.entropy).await {
            Ok(root) => match self.open(&mut work, root, None).await {
                // The operator can help.
                Ok(()) | Err(StartError::Held { .. }) => {}
                Err(error) => return Err(error),
            },
            Err(StartError::Seal(SealError::NeedsShares)) => {
                let initialised = Barrier::is_initialised(&*parts.store).await?;
                if !initialised {
                    self.turn(Current::Uninitialised);
                }
            }
            Err(StartError::Seal(error)) if Barrier::is_initialised(&*parts.store).await? => {
                let by_shares = Kept::load(&*parts.store).await?.record.takes_shares();
                let trying = error.is_transient();
                if !trying && !by_shares {
                    return Err(error.into());
                }
                self.inner.shown.write().trying = trying;
                self.in_vain(&mut work, &error, by_shares);
                if trying {
                    self.keep_trying();
                }
            }
            Err(error) => return Err(error),
        }
        self.show(&work).await?;
        Ok(self.life())
    }

    /// Tries a seal that opens by itself until it does, or refuses, or the process ends.
    fn keep_trying(&self) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TRY_AGAIN).await;
                let Some(inner) = inner.upgrade() else { return };
                let instance = Self { inner };
                if !instance.inner.shown.read().trying || instance.life() != Life::Sealed {
                    return;
                }
                match instance.unseal(None).await {
                    Ok(_) => tracing::info!("the seal can be reached again"),
                    // That is told already.
                    Err(OperatorError::Start(StartError::Seal(_))) => {}
                    Err(error) => {
                        instance.inner.shown.write().waiting = Some(error.to_string());
                    }
                }
            }
        });
    }

    /// The seal was asked in vain, whoever wanted it to be. A PIN that is refused is tried once:
    /// every wrong one counts, and a few lock the token. Where shares open, too (`by_shares`), those
    /// who come to enter theirs do not try it again either.
    fn in_vain(&self, work: &mut Work, error: &SealError, by_shares: bool) {
        let refused_pin = match error {
            SealError::NeedsShares => return,
            SealError::PinRefused(why) => Some(why),
            _ => None,
        };
        let mut shown = self.inner.shown.write();
        shown.trying &= refused_pin.is_none();
        let what_next = match (refused_pin, by_shares) {
            _ if shown.trying && by_shares => "it is tried again; the new shares unseal, too",
            _ if shown.trying => "it is tried again",
            (Some(_), true) => {
                "it is not tried again, for every wrong PIN counts: put that right, then run \
                 `lastkey operator unseal --reset` and `lastkey operator unseal`; the new shares \
                 unseal, too"
            }
            (None, true) => {
                "it is not tried again by itself: put that right, then run `lastkey operator \
                 unseal`; the new shares unseal, too"
            }
            (_, false) => {
                "it is not tried again by itself: put that right, then run `lastkey operator unseal`"
            }
        };
        work.refused_pin = refused_pin.filter(|_| by_shares).cloned();
        let why = Some(format!("{error}; {what_next}"));
        if let Some(new) = why.as_ref().filter(|_| shown.waiting != why) {
            tracing::error!("the server waits sealed: {new}");
        }
        shown.waiting = why;
    }

    /// Makes a root key for a new store, under a key that is split into shares. The server is
    /// sealed then, so that a mistyped share shows while there is nothing to lose.
    ///
    /// # Errors
    /// [`OperatorError`]; there is no root key then.
    pub async fn init(&self, shares: u8, threshold: u8) -> Result<NewShares, OperatorError> {
        let parts = self.parts()?;
        let work = self.inner.work.lock().await;
        if self.life() != Life::Uninitialised {
            return Err(initialised(parts).await?);
        }
        let entropy = &*parts.entropy;
        let set = SetId::random(entropy);
        let splitting = Splitting { set, generation: 1, shares, threshold };
        let root = KeyMaterial::generate(ROOT_KEY_BYTES, entropy);
        let (made, entry) = share_out(splitting, &root, parts)?;
        let seal = SealSummary::of(&entry);
        seal::create(&*parts.store, &root, entry, entropy).await.map_err(StartError::from)?;
        self.turn(Current::Sealed);
        // They are told once, whether the status can be told or not.
        let _ = self.show(&work).await;
        Ok(NewShares { shares: made, seal })
    }

    /// Takes one share, or asks a seal that opens by itself; opens once that is enough.
    ///
    /// # Errors
    /// [`OperatorError`]; the instance stays sealed.
    pub async fn unseal(&self, share: Option<Share>) -> Result<InstanceStatus, OperatorError> {
        let parts = self.parts()?;
        let mut work = self.inner.work.lock().await;
        match self.life() {
            Life::Uninitialised => return Err(OperatorError::Uninitialised),
            Life::Held => return Err(OperatorError::State(Life::Held)),
            Life::Unsealed => return Ok(self.status()),
            Life::Sealed => {}
        }
        self.forget_abandoned(&mut work).await;
        let kept = Kept::load(&*parts.store).await?;
        let Some(share) = share else {
            if let Some(token) = work.doubt.as_ref().and_then(|doubt| doubt.token_of(&kept.record))
            {
                parts.seal.use_token(token);
            }
            if let Some(why) = &work.refused_pin {
                let why = format!(
                    "{why}; it is not asked again before `lastkey operator unseal --reset`, for \
                     every wrong PIN counts"
                );
                return Err(StartError::Seal(SealError::PinRefused(why)).into());
            }
            let root = seal::obtain(&*parts.store, &*parts.seal, &*parts.entropy).await;
            let root = root.inspect_err(|error| {
                if let StartError::Seal(error) = error {
                    self.in_vain(&mut work, error, kept.record.takes_shares());
                }
            })?;
            self.open(&mut work, root, None).await?;
            self.show(&work).await?;
            return Ok(self.status());
        };
        let sets: Vec<ShamirEntry> = kept.record.shamir().cloned().collect();
        if sets.is_empty() {
            return Err(OperatorError::TakesNoShares(kept.record.kind()));
        }
        let given = work.unsealing.enter(share, (&sets, kept.record.root));
        match &given {
            Ok(_) => self.progressed(&mut work),
            Err(_) => work.refused += 1,
        }
        let shown = given.as_ref().map(|given| given.is_some());
        let given = match shown {
            Ok(true) => given?,
            _ => {
                self.show(&work).await?;
                given?
            }
        };
        if let Some(given) = given {
            let root = Arc::new(given.root);
            if let Err(error) = self.open(&mut work, root, None).await {
                // The shares went as they gave their key; status must not count them any more.
                let _ = self.show(&work).await;
                return Err(OperatorError::opening_by_shares(error));
            }
            parts.seal.settle(&kept.record).await;
            if kept.record.pending() == Some(&SealEntry::Shamir(given.entry.clone())) {
                let given = (&given.entry, &given.unseal_key);
                self.confirm_after_unseal(&mut work, &kept, given).await;
            }
            self.show(&work).await?;
        }
        Ok(self.status())
    }

    /// Whether a share names a set and a generation that this server takes. That is no proof; but
    /// strangers are told neither.
    pub fn expects(&self, share: &Share) -> bool {
        let shown = self.inner.shown.read();
        let mut sets = shown.record.iter().flat_map(SealRecord::shamir);
        let head = share.head();
        sets.any(|entry| entry.is_of(head.set) && entry.generation == head.generation)
    }

    /// Drops the shares that were entered to unseal, and lets a PIN that was refused be tried again.
    pub async fn reset(&self) -> InstanceStatus {
        let mut work = self.inner.work.lock().await;
        work.unsealing = Gathering::default();
        work.refused_pin = None;
        let _ = self.show(&work).await;
        self.status()
    }

    /// Goes on with a store that is older than it should be, for the operator's `reason`.
    ///
    /// # Errors
    /// [`OperatorError`]; the instance stays held.
    pub async fn accept_restore(&self, reason: &str) -> Result<InstanceStatus, OperatorError> {
        let mut work = self.inner.work.lock().await;
        let root = work.held.clone().ok_or(OperatorError::State(self.life()))?;
        self.open(&mut work, root, Some(reason)).await?;
        self.show(&work).await?;
        Ok(self.status())
    }

    /// Seals: from here on no key is in memory.
    ///
    /// # Errors
    /// The caller may not, or the order could not be recorded; nothing is sealed then.
    pub async fn seal(&self, caller: &Caller) -> Result<InstanceStatus, OperatorError> {
        self.parts()?;
        self.engine()?.execute(caller, SealServer).await?;
        let mut work = self.inner.work.lock().await;
        self.close(&mut work).await;
        self.show(&work).await?;
        tracing::warn!("the server was sealed by an operator");
        Ok(self.status())
    }

    /// Ends the engine for good, at the end of the process.
    pub async fn shutdown(&self) {
        self.no_longer_waits();
        match tokio::time::timeout(LAST_PATIENCE, self.inner.work.lock()).await {
            Ok(mut work) => self.close(&mut work).await,
            // An order waits for its token. What it has in hand ends with the process.
            Err(_) => self.close_engine(LAST_PATIENCE).await,
        }
    }

    fn parts(&self) -> Result<&Parts, OperatorError> {
        self.inner.parts.as_ref().ok_or(OperatorError::State(self.life()))
    }

    /// Steps 2 to 4 of opening.
    async fn open(
        &self,
        work: &mut Work,
        root: Arc<KeyMaterial>,
        accepted: Option<&str>,
    ) -> Result<(), StartError> {
        let Some(parts) = &self.inner.parts else { return Ok(()) };
        let engine = match Engine::open(parts, Arc::clone(&root), accepted).await {
            Ok(engine) => engine,
            Err(StartError::Held { reason }) => {
                tracing::error!("{reason}");
                work.held = Some(root);
                self.turn(Current::Held(reason.clone()));
                // No share is asked for any more.
                let _ = self.show(work).await;
                return Err(StartError::Held { reason });
            }
            Err(error) => return Err(error),
        };
        drop(root);
        if let Err(error) = self.prepare(&engine, work).await {
            engine.retire(PATIENCE).await;
            return Err(error);
        }
        *work = Work::default();
        self.no_longer_waits();
        self.turn(Current::Unsealed(engine));
        Ok(())
    }

    async fn prepare(&self, engine: &Engine, work: &Work) -> Result<(), StartError> {
        if let Some(record) = self.sealed_before(engine).await? {
            let &Work { refused, forgotten, .. } = work;
            let unsealed = UnsealServer { record, refused, forgotten };
            engine.execute(&engine.system_caller(), unsealed).await?;
        }
        for attendant in self.attendants() {
            if let Err(error) = attendant.opened(engine).await {
                self.dismiss().await;
                return Err(StartError::Prepare(error));
            }
        }
        Ok(())
    }

    /// The record of a seal whose opening is worth an audit record: one that people had to do
    /// with. A start under a file seal is what it always was.
    async fn sealed_before(&self, engine: &Engine) -> Result<Option<SealRecord>, StartError> {
        let record = Kept::load(&**engine.store()).await?.record;
        let quiet =
            record.kind() == seal::SealKind::File && self.inner.shown.read().record.is_none();
        Ok((!quiet).then_some(record))
    }

    fn attendants(&self) -> Vec<Arc<dyn Attendant>> {
        self.inner.attendants.read().iter().filter_map(Weak::upgrade).collect()
    }

    async fn dismiss(&self) {
        for attendant in self.attendants() {
            attendant.closing().await;
        }
    }

    /// Steps 2 to 5 of sealing.
    async fn close(&self, work: &mut Work) {
        // What is in doubt stays so, without the root key: who unseals may need its token.
        let doubt = work.doubt.take().map(|doubt| doubt::Doubt { root: None, ..doubt });
        *work = Work { doubt, ..Work::default() };
        self.close_engine(PATIENCE).await;
    }

    async fn close_engine(&self, patience: Duration) {
        let was = std::mem::replace(&mut *self.inner.current.write(), Current::Sealed);
        self.dismiss().await;
        if let Current::Unsealed(engine) = was {
            let held = engine.retire(patience).await;
            if held > 0 {
                tracing::error!(held, "requests still hold keys in memory; they go as these end");
            }
        }
    }

    fn no_longer_waits(&self) {
        let mut shown = self.inner.shown.write();
        (shown.waiting, shown.trying) = (None, false);
    }

    fn turn(&self, to: Current) {
        *self.inner.current.write() = to;
    }

    /// Brings what status tells up to date.
    async fn show(&self, work: &Work) -> Result<(), StartError> {
        let Some(parts) = &self.inner.parts else { return Ok(()) };
        let record = match self.life() {
            Life::Uninitialised => None,
            _ => Some(Kept::load(&*parts.store).await?.record),
        };
        let sets: Vec<ShamirEntry> = record.iter().flat_map(|r| r.shamir().cloned()).collect();
        let mut shown = self.inner.shown.write();
        shown.target = work.order.as_ref().and_then(order::Begun::target);
        (shown.order, shown.progress) = match (&work.order, self.life()) {
            (Some(order::Begun { order, gathering, .. }), _) => {
                let of = order.takes(record.as_ref());
                (Some(order.name()), Some(gathering.progress(&of)))
            }
            (None, Life::Sealed) if !sets.is_empty() => {
                (Some("unseal"), Some(work.unsealing.progress(&sets)))
            }
            _ => (None, None),
        };
        shown.record = record;
        Ok(())
    }

    async fn work(&self) -> MutexGuard<'_, Work> {
        self.inner.work.lock().await
    }
}

impl Current {
    fn life(&self) -> Life {
        match self {
            Self::Uninitialised => Life::Uninitialised,
            Self::Sealed => Life::Sealed,
            Self::Held(_) => Life::Held,
            Self::Unsealed(_) => Life::Unsealed,
        }
    }
}

/// What there is where a root key was to be made.
async fn initialised(parts: &Parts) -> Result<OperatorError, StartError> {
    Ok(match Kept::load(&*parts.store).await?.record.kind() {
        seal::SealKind::Shamir if seal::is_unused(&*parts.store).await? => {
            OperatorError::NeverUnsealed
        }
        seal::SealKind::Shamir => OperatorError::Initialised,
        other => OperatorError::NoShares(other),
    })
}

/// Draws an unseal key, splits it, and wraps the root key under it; the key itself is gone then.
fn share_out(
    splitting: Splitting,
    root: &KeyMaterial,
    parts: &Parts,
) -> Result<(Vec<Share>, SealEntry), OperatorError> {
    let entropy = &*parts.entropy;
    let unseal_key = KeyMaterial::generate(KEY_LEN, entropy);
    let shares = split(&unseal_key, splitting, entropy).map_err(|_| OperatorError::Splitting)?;
    let entry = ShamirEntry::wrap(splitting, &unseal_key, root, entropy);
    Ok((shares, SealEntry::Shamir(entry)))
}
