//! What the engine does by itself while it runs.

use super::*;
use crate::{ErrorKind, audit::AuditError, command::SUM_UP_EVERY};

/// Delivered outbox parcels wait at most this long for their deletion.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// Uses are counted ahead this often, where few are left. Not together with the sweep: that has
/// work for as long as changes go on, and nothing could be sealed any more before it ends.
const RESERVE_EVERY: Duration = Duration::from_millis(250);
/// Due rotations and deletions are looked for this often.
const DUE_EVERY: Duration = Duration::from_secs(60);
/// An unhealthy log is tried this often.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// The anchor follows the store this often.
const ANCHOR_EVERY: Duration = Duration::from_secs(1);
/// While the keyring has old keys, some records are sealed again this often.
const RESEAL_EVERY: Duration = Duration::from_millis(100);
/// Exact counts of uses may take this long to write at the end.
const COUNTING_PATIENCE: Duration = Duration::from_secs(1);
/// Refused callers are summed up this often.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);

impl Engine {
    /// What all commands work on.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Core {
    pub(super) async fn flush_refusals(&self) {
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
        if let Err(error) = self.audit.health() {
            if error == AuditError::Silent {
                // Once for each time: what is appended now waits until it answers.
                tracing::error!("{error}: requests are answered again when it does");
            }
            let caller = Caller::system(&*self.entropy);
            let record = Record::begin(Action::Heartbeat.name(), &caller, self.clock.now());
            let _ = self.audit.append(record.finish("ok", Duration::ZERO)).await;
        }
        self.outbox.pay(&self.records.barrier, &*self.audit).await;
    }

    pub(super) fn start_background(self: &Arc<Self>, due_at_start: bool) {
        let (follower, starter) = (Arc::clone(self), Arc::clone(self));
        let tasks = [
            tokio::spawn(async move {
                if due_at_start {
                    starter.run_due_at_start().await;
                }
            }),
            tokio::spawn(async move { follower.records.follow().await }),
            self.every(SWEEP_EVERY, |core| Box::pin(async { core.sweep().await })),
            self.every(RESERVE_EVERY, |core| Box::pin(async { core.reserve_more().await })),
            self.every(DUE_EVERY, |core| Box::pin(async { core.look_for_due_work().await })),
            self.every(HEARTBEAT_EVERY, |core| Box::pin(async { core.heartbeat().await })),
            self.every(REFUSALS_EVERY, |core| Box::pin(async { core.flush_refusals().await })),
            self.every(SUM_UP_EVERY, |core| Box::pin(async { core.sum_up_kubelets().await })),
            self.every(ANCHOR_EVERY, |core| Box::pin(async { core.anchor().await })),
            self.every(RESEAL_EVERY, |core| Box::pin(async { core.reseal().await })),
        ];
        self.background.lock().extend(tasks);
    }

    pub(super) async fn end_counting(&self) -> Result<(), Error> {
        self.keep_last_uses().await;
        self.records.end_counting(COUNTING_PATIENCE).await?;
        self.records.barrier.end_counting().await
    }

    async fn reserve_more(&self) {
        if let Err(error) = self.records.reserve_more().await {
            tracing::warn!(%error, "uses of keys could not be counted ahead");
        }
    }

    pub(super) async fn sweep(&self) {
        if let Err(error) = self.outbox.sweep(&self.records.barrier, &*self.audit).await {
            tracing::warn!(%error, "delivered records wait in the outbox");
        }
    }

    /// What fell due while nobody ran. What cannot be done, on a full disk or about one key, keeps no
    /// operator out: it is tried again each minute.
    pub(super) async fn run_due_at_start(self: &Arc<Self>) {
        if let Err(error) = self.run_due().await {
            tracing::error!(%error, "due rotations or deletions wait");
        }
    }

    /// Seals some records again after a rotation of the keyring, and ends it when none is left.
    async fn reseal(self: &Arc<Self>) {
        let mut round = self.resealing.lock().await;
        let worked = match self.records.barrier.reseal_some(&mut round).await {
            Ok(Step::Idle | Step::More) => Ok(()),
            Ok(Step::Clean(newest)) => {
                let drop = DropKeyringKeys { before: newest };
                self.execute(&Caller::system(&*self.entropy), drop).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = worked {
            tracing::warn!(%error, "records wait to be sealed by the newest keyring key");
        }
    }

    /// Rotates what was used as much as it may be, and a keyring that is old. One key that cannot be
    /// helped keeps no other one waiting, nor the keyring.
    pub(super) async fn rotate_worn(self: &Arc<Self>, may_rotate: bool) -> Result<(), Error> {
        let caller = || Caller::system(&*self.entropy);
        let mut outcome = Ok(());
        for key in self.records.worn_keys() {
            match self.execute(&caller(), RotateDueKey { key }).await {
                Ok(()) | Err(Error::KeyNotFound) => {}
                Err(error) => {
                    tracing::warn!(key = %key, %error, "a key that was used enough was not rotated");
                    // Whatever is in the key itself is there the next time as well.
                    if error.kind() == ErrorKind::Unavailable {
                        self.records.stays_worn(key);
                    }
                    outcome = outcome.and(Err(error));
                }
            }
        }
        let (uses, since, keys) = self.records.barrier.keyring_state();
        let worn = uses >= self.records.limits.keyring.load(Ordering::Relaxed);
        let old = may_rotate && self.clock.now().since(since) >= MAX_AGE;
        // One rotation at a time: the one before has to come to its end first.
        if (worn || old) && keys == 1 {
            let turned = self.execute(&caller(), RotateKeyring).await;
            outcome = outcome.and(turned.map(|_| ()));
        }
        outcome
    }

    /// Lets the anchor know how far the store has come, if it came further.
    pub(super) async fn anchor(self: &Arc<Self>) {
        let Some(committed) = self.records.barrier.committed() else { return };
        if *self.anchored.lock() == committed {
            return;
        }
        let core = Arc::clone(self);
        let wrote = tokio::task::spawn_blocking(move || {
            anchor::write(&*core.anchor, &core.records.barrier)
        });
        match wrote.await {
            Ok(Ok(())) => *self.anchored.lock() = committed,
            Ok(Err(error)) => tracing::warn!(%error, "the anchor fell behind the store"),
            Err(_) => {}
        }
    }

    async fn keep_last_uses(&self) {
        if let Err(error) = self.records.keep_last_uses(COUNTING_PATIENCE).await {
            tracing::warn!(%error, "who used which key last was not written down");
        }
    }

    /// Lets the store remember the newest checkpoint, so that the file of checkpoints is missed.
    pub(super) async fn keep_checkpoint(&self) {
        if let Err(error) = self.remember_checkpoint().await {
            tracing::warn!(%error, "the store does not remember the newest audit checkpoint");
        }
    }

    async fn remember_checkpoint(&self) -> Result<(), Error> {
        let audit = Arc::clone(&self.audit);
        let newest = tokio::task::spawn_blocking(move || audit.checkpoint_to_remember());
        let Some(newest) = newest.await.map_err(|_| Error::Internal)? else { return Ok(()) };
        let (newest, barrier) = (newest.encode(), &self.records.barrier);
        let expect = match barrier.read(CHECKPOINT_PATH).await {
            Ok(None) => Expect::Absent,
            Ok(Some(old)) if old.value.expose() == newest => return Ok(()),
            Ok(Some(old)) => old.expect(),
            // A damaged one is of no use to anybody: its writes are counted anew.
            Err(Error::CorruptRecord { .. }) => match barrier.read_clear(CHECKPOINT_PATH).await? {
                None => Expect::Absent,
                Some((revision, code)) => Expect::Unchanged { revision, counter: 0, code },
            },
            Err(error) => return Err(error),
        };
        let change = Change::new().put(CHECKPOINT_PATH.to_owned(), newest.into(), expect);
        // A lost race means that another server has just written the same.
        self.records.commit(change, None).await.map(|_| ())
    }

    async fn look_for_due_work(self: &Arc<Self>) {
        self.keep_last_uses().await;
        if let Err(error) = self.run_due().await {
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
