//! Writing: what belongs to one transaction, and how the heads go with it.
//!
//! The head of a shard changes with each commit that touches the shard. Writers need not wait for
//! each other's answers all the same: a transaction names the head it expects by value, and that
//! may be one which an earlier transaction, not answered yet, will write. For this to work,
//! transactions reach the store in the order in which they were staged: staging and the first poll
//! of the commit, which gives it its place, happen under one short lock.
//!
//! When a transaction fails, those built upon it fail for their heads, and are staged again on
//! what the store holds; nobody but this module notices.

use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use lastkey_crypto::record::SealedRecord;
use lastkey_store::{CommitError, Revision, Transaction};
use parking_lot::Mutex;

use super::{Barrier, Expect, Seals, keyring::KEYRING_PATH};
use crate::{
    Error, audit,
    heads::{self, Counts, Head, MARK_PATH, Mark, SHARDS, StoreId, Sum},
};

/// A transaction whose heads another one spoiled is staged again at most this often.
const MAX_ATTEMPTS: usize = 64;

/// What a write has made of its path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    pub(crate) counter: u64,
    pub(crate) code: Sum,
}

/// What one transaction writes through the barrier.
#[derive(Default)]
pub(crate) struct Batch {
    transaction: Transaction,
    /// What it does to the shards it touches, by shard.
    deltas: Vec<Delta>,
    /// The keyring key that sealed it.
    sealed_by: Option<u32>,
    /// It puts a parcel into the outbox, which accounts for it.
    has_parcel: bool,
    /// It takes parcels out of the outbox.
    sweep: Option<Sweep>,
    seals: Seals,
}

#[derive(Clone, Copy)]
struct Delta {
    shard: u8,
    sum: Sum,
    /// Records that come less those that go.
    records: i64,
}

struct Sweep {
    log: audit::Head,
    settled: Counts,
}

impl Batch {
    /// A batch that counts seals ahead, and so must not wait for that itself.
    pub(super) fn that_reserves() -> Self {
        Self { seals: Seals::Uncounted, ..Self::default() }
    }

    /// Seals a value for a path.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub(crate) fn put(
        &mut self,
        barrier: &Barrier,
        path: &str,
        value: &[u8],
        expect: Expect,
    ) -> Result<Written, Error> {
        let counter = match expect {
            Expect::Absent => 1,
            Expect::Unchanged { counter, .. } => counter + 1,
        };
        let (keyring_key, sealed) = barrier.seal(self.seals, (path, counter), value)?;
        self.sealed_by(keyring_key);
        let before = match expect {
            Expect::Absent => None,
            Expect::Unchanged { revision, code, .. } => Some((revision, code)),
        };
        let code = self.put_clear(barrier, path, sealed, before)?;
        Ok(Written { counter, code })
    }

    /// Writes what is not sealed by the keyring, or already.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub(crate) fn put_clear(
        &mut self,
        barrier: &Barrier,
        path: &str,
        stored: Vec<u8>,
        before: Option<(Revision, Sum)>,
    ) -> Result<Sum, Error> {
        let code = barrier.code(path, &stored)?;
        self.change(path, Some(code), before.map(|(_, code)| code));
        self.transaction = match before {
            None => std::mem::take(&mut self.transaction).expect_absent(path),
            Some((revision, _)) => {
                std::mem::take(&mut self.transaction).expect_revision(path, revision)
            }
        }
        .put(path, stored);
        Ok(code)
    }

    /// Removes a record.
    pub(crate) fn delete(&mut self, path: &str, expect: Expect) {
        // What was never there needs no removal.
        let Expect::Unchanged { revision, code, .. } = expect else { return };
        self.change(path, None, Some(code));
        self.transaction =
            std::mem::take(&mut self.transaction).expect_revision(path, revision).delete(path);
    }

    /// Has the head of a shard written anew, although nothing changes in the shard.
    pub(super) fn touch(&mut self, shard: u8) {
        if let Err(place) = self.deltas.binary_search_by_key(&shard, |delta| delta.shard) {
            self.deltas.insert(place, Delta { shard, sum: Sum::default(), records: 0 });
        }
    }

    /// Adds the parcel that accounts for the batch. What comes after it would not be named in it.
    pub(crate) fn put_parcel(
        &mut self,
        barrier: &Barrier,
        path: &str,
        plain: &[u8],
    ) -> Result<(), Error> {
        let (keyring_key, sealed) = barrier.seal(self.seals, (path, 1), plain)?;
        self.sealed_by(keyring_key);
        self.transaction = std::mem::take(&mut self.transaction).put(path, sealed);
        self.has_parcel = true;
        Ok(())
    }

    /// Removes parcels whose records the log has, each with the shards it names.
    pub(crate) fn sweep<'a>(
        &mut self,
        parcels: impl Iterator<Item = (&'a str, &'a [u8])>,
        log: audit::Head,
    ) {
        let mut settled = heads::zeros();
        for (path, shards) in parcels {
            // Whoever takes a parcel out counts it, once.
            self.transaction =
                std::mem::take(&mut self.transaction).expect_exists(path).delete(path);
            shards.iter().for_each(|shard| settled[usize::from(*shard)] += 1);
        }
        self.sweep = Some(Sweep { log, settled });
    }

    /// The shards it touches, in order.
    pub(crate) fn shards(&self) -> Vec<u8> {
        self.deltas.iter().map(|delta| delta.shard).collect()
    }

    fn change(&mut self, path: &str, after: Option<Sum>, before: Option<Sum>) {
        if !heads::is_covered(path) {
            return;
        }
        let shard = heads::shard_of(path);
        let sum = after.unwrap_or_default().minus(before.unwrap_or_default());
        let records = i64::from(after.is_some()) - i64::from(before.is_some());
        match self.deltas.binary_search_by_key(&shard, |delta| delta.shard) {
            Ok(known) => {
                let delta = &mut self.deltas[known];
                delta.sum = delta.sum.plus(sum);
                delta.records += records;
            }
            Err(place) => self.deltas.insert(place, Delta { shard, sum, records }),
        }
    }

    fn sealed_by(&mut self, keyring_key: u32) {
        let oldest = self.sealed_by.map_or(keyring_key, |known| known.min(keyring_key));
        self.sealed_by = Some(oldest);
    }
}

/// The newest known state of a chained record: staged, and committed unless a commit failed.
#[derive(Clone)]
struct Tip<T> {
    state: T,
    /// As it lies in the store, or will.
    stored: Vec<u8>,
    /// Rises whenever the tip is forgotten.
    generation: u64,
    known: bool,
}

impl<T> Tip<T> {
    fn forget(&mut self, generation: u64) {
        // Who was staged before the last time has no say any more.
        if self.generation == generation && self.known {
            self.known = false;
            self.generation += 1;
        }
    }

    /// Takes over what was read, unless somebody was faster.
    fn relearn(&mut self, generation: u64, state: T, stored: Vec<u8>) {
        if self.generation == generation && !self.known {
            self.learn(state, stored);
        }
    }

    fn learn(&mut self, state: T, stored: Vec<u8>) {
        (self.state, self.stored, self.known) = (state, stored, true);
    }
}

/// The chained records: the heads, and the mark with its counter.
pub(super) struct Pipeline {
    state: Mutex<State>,
}

struct State {
    store: StoreId,
    heads: Vec<Tip<Head>>,
    mark: Tip<(Mark, u64)>,
    /// The highest sequences that were answered for.
    committed: Counts,
}

/// What the store was found to hold.
pub(super) struct Found {
    pub(super) store: StoreId,
    /// Each shard's head, as it is and as it is stored.
    pub(super) heads: Vec<(Head, Vec<u8>)>,
    pub(super) mark: (Mark, u64),
    pub(super) mark_stored: Vec<u8>,
}

/// What one transaction changed of the pipeline, to be taken back or confirmed.
struct Staged {
    heads: Vec<(usize, Tip<Head>)>,
    mark: Option<Tip<(Mark, u64)>>,
}

/// How far a transaction came at once.
enum Placed<'a> {
    Answered(Result<Revision, CommitError>),
    Waiting(BoxFuture<'a, Result<Revision, CommitError>>, Staged),
    Unknown(Unknown),
}

/// What has to be read from the store before anything can be staged on it.
struct Unknown {
    shards: Vec<u8>,
    mark: bool,
}

impl Pipeline {
    pub(super) fn new(found: Found) -> Self {
        let mut committed = heads::zeros();
        let mut tips = Vec::with_capacity(SHARDS);
        for (count, (head, stored)) in committed.iter_mut().zip(found.heads) {
            *count = head.sequence;
            tips.push(Tip { state: head, stored, generation: 0, known: true });
        }
        let mark = Tip { state: found.mark, stored: found.mark_stored, generation: 0, known: true };
        Self { state: Mutex::new(State { store: found.store, heads: tips, mark, committed }) }
    }

    /// For each shard, a sequence that is durable.
    pub(super) fn committed(&self) -> Counts {
        self.state.lock().committed.clone()
    }

    /// The log's end as the store remembers it, or is about to.
    pub(super) fn remembered(&self) -> audit::Head {
        self.state.lock().mark.state.0.log
    }
}

impl State {
    /// Completes the transaction with heads and mark.
    fn stage(
        &mut self,
        barrier: &Barrier,
        batch: &Batch,
    ) -> Result<Result<(Transaction, Staged), Unknown>, CommitError> {
        let moves_mark = batch.sweep.is_some() || !(batch.has_parcel || batch.deltas.is_empty());
        let unknown: Vec<u8> = batch
            .deltas
            .iter()
            .map(|delta| delta.shard)
            .filter(|shard| !self.heads[usize::from(*shard)].known)
            .collect();
        if !unknown.is_empty() || (moves_mark && !self.mark.known) {
            let mark = moves_mark && !self.mark.known;
            return Ok(Err(Unknown { shards: unknown, mark }));
        }
        // What an older keyring key sealed must not come in behind the search for such records.
        if batch.sealed_by.is_some_and(|id| !barrier.seals_with(id)) {
            return Err(CommitError::Conflict { path: KEYRING_PATH.to_owned() });
        }
        let mut staged = Staged { heads: Vec::with_capacity(batch.deltas.len()), mark: None };
        let mut transaction = batch.transaction.clone();
        for delta in &batch.deltas {
            let index = usize::from(delta.shard);
            let tip = &mut self.heads[index];
            let head = Head {
                sequence: tip.state.sequence + 1,
                records: tip.state.records.saturating_add_signed(delta.records),
                sum: tip.state.sum.plus(delta.sum),
            };
            let path = heads::path_of(delta.shard);
            let sealed = {
                let value = head.encode(&self.store);
                sealed(barrier, batch.seals, (&path, head.sequence), &value)?
            };
            transaction =
                transaction.expect_value(&path, tip.stored.clone()).put(path, sealed.clone());
            staged.heads.push((index, tip.clone()));
            tip.learn(head, sealed);
        }
        if moves_mark {
            staged.mark = Some(self.mark.clone());
            transaction = self.stage_mark(barrier, batch, transaction)?;
        }
        Ok(Ok((transaction, staged)))
    }

    fn stage_mark(
        &mut self,
        barrier: &Barrier,
        batch: &Batch,
        transaction: Transaction,
    ) -> Result<Transaction, CommitError> {
        let (mut mark, counter) = self.mark.state.clone();
        if let Some(sweep) = &batch.sweep {
            mark.log = sweep.log;
            mark.settled.iter_mut().zip(sweep.settled.iter()).for_each(|(to, more)| *to += more);
        }
        if !batch.has_parcel {
            batch.deltas.iter().for_each(|delta| mark.settled[usize::from(delta.shard)] += 1);
        }
        let counter = counter + 1;
        let sealed = sealed(barrier, batch.seals, (MARK_PATH, counter), &mark.encode())?;
        let transaction = transaction
            .expect_value(MARK_PATH, self.mark.stored.clone())
            .put(MARK_PATH, sealed.clone());
        self.mark.learn((mark, counter), sealed);
        Ok(transaction)
    }

    /// The store refused at once: nothing was built upon it yet.
    fn take_back(&mut self, staged: Staged) {
        for (index, tip) in staged.heads {
            self.heads[index] = tip;
        }
        if let Some(tip) = staged.mark {
            self.mark = tip;
        }
    }

    /// The commit failed: what was built upon it is void.
    fn forget(&mut self, staged: &Staged) {
        for (index, before) in &staged.heads {
            self.heads[*index].forget(before.generation);
        }
        if let Some(before) = &staged.mark {
            self.mark.forget(before.generation);
        }
    }

    fn settle(&mut self, staged: &Staged, answered: &Result<Revision, CommitError>) {
        match answered {
            Ok(_) => self.confirm(staged),
            Err(_) => self.forget(staged),
        }
    }

    /// What is known of a shard before its head is read: the tip's generation, and the sequence
    /// below which what will be read cannot be. Others may commit while it is read, so neither
    /// can be asked for afterwards.
    fn before_reading(&self, index: usize) -> (u64, u64) {
        (self.heads[index].generation, self.committed[index])
    }

    fn confirm(&mut self, staged: &Staged) {
        for (index, before) in &staged.heads {
            let committed = &mut self.committed[*index];
            *committed = (*committed).max(before.state.sequence + 1);
        }
    }
}

/// Whether a conflict at the path is one of chained records, which is settled here.
fn is_chained(error: &CommitError) -> bool {
    matches!(error, CommitError::Conflict { path } if path == MARK_PATH || heads::shard_at(path).is_some())
}

fn is_uncertain(error: &CommitError) -> bool {
    matches!(error, CommitError::Uncertain(_))
}

fn sealed(
    barrier: &Barrier,
    seals: Seals,
    place: (&str, u64),
    value: &[u8],
) -> Result<Vec<u8>, CommitError> {
    barrier.seal(seals, place, value).map(|(_, sealed)| sealed).map_err(|_| CommitError::Busy)
}

impl Barrier {
    /// Commits a batch together with the heads of the shards it touches.
    ///
    /// # Errors
    /// The store's; [`CommitError::Conflict`] never for a head.
    pub(crate) async fn commit(&self, batch: &Batch) -> Result<Revision, CommitError> {
        let pipeline = self.pipeline()?;
        for _ in 0..MAX_ATTEMPTS {
            let answered = match self.place(pipeline, batch)? {
                Placed::Answered(answered) => answered,
                Placed::Waiting(answer, staged) => {
                    let answered = answer.await;
                    pipeline.state.lock().settle(&staged, &answered);
                    answered
                }
                Placed::Unknown(unknown) => {
                    self.recall(pipeline, &unknown).await?;
                    continue;
                }
            };
            match answered {
                Err(error) if is_chained(&error) => {}
                answered => return answered,
            }
        }
        Err(CommitError::Busy)
    }

    /// Stages a batch and gives its transaction its place in the store's queue.
    fn place<'a>(&'a self, pipeline: &Pipeline, batch: &Batch) -> Result<Placed<'a>, CommitError> {
        let mut state = pipeline.state.lock();
        let (transaction, staged) = match state.stage(self, batch)? {
            Ok(staged) => staged,
            Err(unknown) => return Ok(Placed::Unknown(unknown)),
        };
        let mut answer = self.store.commit(transaction);
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(Placed::Waiting(answer, staged)),
            Poll::Ready(answered) => {
                match &answered {
                    // Nothing was built upon it yet.
                    Err(error) if !is_chained(error) && !is_uncertain(error) => {
                        state.take_back(staged);
                    }
                    answered => state.settle(&staged, answered),
                }
                Ok(Placed::Answered(answered))
            }
        }
    }

    /// Reads from the store what a failed commit has made unknown.
    async fn recall(&self, pipeline: &Pipeline, unknown: &Unknown) -> Result<(), CommitError> {
        for shard in &unknown.shards {
            let index = usize::from(*shard);
            let (generation, confirmed) = pipeline.state.lock().before_reading(index);
            let (head, stored) = self.read_head(*shard).await?;
            if head.sequence < confirmed {
                return Err(self.distrust(format!("the head of shard {shard:02x} went back")));
            }
            pipeline.state.lock().heads[index].relearn(generation, head, stored);
        }
        if unknown.mark {
            let generation = pipeline.state.lock().mark.generation;
            let (mark, stored) = self.read_mark().await?;
            pipeline.state.lock().mark.relearn(generation, mark, stored);
        }
        Ok(())
    }

    async fn read_head(&self, shard: u8) -> Result<(Head, Vec<u8>), CommitError> {
        let path = heads::path_of(shard);
        let changed = || self.distrust(format!("{path} was changed under the running server"));
        let entry = self.store.get(&path).await.map_err(unreadable)?.ok_or_else(changed)?;
        let head = self.open_head(shard, &entry.value).ok_or_else(changed)?;
        Ok((head, entry.value))
    }

    async fn read_mark(&self) -> Result<((Mark, u64), Vec<u8>), CommitError> {
        let changed = || self.distrust(format!("{MARK_PATH} was changed under the running server"));
        let entry = self.store.get(MARK_PATH).await.map_err(unreadable)?.ok_or_else(changed)?;
        let mark = self.open_mark(&entry.value).ok_or_else(changed)?;
        Ok((mark, entry.value))
    }

    /// Opens a shard's head, if it is one of this store.
    pub(super) fn open_head(&self, shard: u8, stored: &[u8]) -> Option<Head> {
        let path = heads::path_of(shard);
        let (counter, plain) = self.open_stored(&path, stored).ok()?;
        let (store, head) = Head::decode(plain.expose())?;
        let ours = self.identity().is_some_and(|identity| identity.store == store);
        (ours && counter == head.sequence).then_some(head)
    }

    /// Opens the mark, with its counter.
    pub(super) fn open_mark(&self, stored: &[u8]) -> Option<(Mark, u64)> {
        let (counter, plain) = self.open_stored(MARK_PATH, stored).ok()?;
        Some((Mark::decode(plain.expose())?, counter))
    }

    /// Which keyring key sealed what is stored, by its own account.
    pub(super) fn sealed_with(stored: &[u8]) -> Option<u32> {
        SealedRecord::parse(stored).ok().map(|sealed| sealed.keyring_key())
    }
}

fn unreadable(error: lastkey_store::StoreError) -> CommitError {
    match error {
        lastkey_store::StoreError::Unavailable(cause) => CommitError::Unavailable(cause),
        lastkey_store::StoreError::Corrupt(what) => CommitError::Corrupt(what),
    }
}
