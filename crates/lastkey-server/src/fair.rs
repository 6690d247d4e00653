//! A fair share of the server for every principal.
//!
//! So many requests of proven callers are worked on at one time. Who is alone may have all of
//! these places. Once others wait, a place that becomes free goes to the principal that holds the
//! fewest, so that after a moment nobody holds more than an equal share. The queue is bounded in
//! length (the longest one gives way to newcomers of shorter ones) and in time; who leaves it with
//! nothing is answered `429`.
//!
//! While nobody waits, a place costs a few atomic operations and no lock.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lastkey_engine::Principal;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::limits::Limits;

/// Principals are told apart by a keyed hash into so many shares. Two that fall together share
/// one; nobody can choose whom to fall together with.
const SHARES: usize = 1024;

/// Why there was no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// The queue is full, and its part of this principal no shorter than others'.
    #[error("the queue is full")]
    Full,
    /// Somebody with a shorter queue came, and this principal's was the longest.
    #[error("others had less")]
    Displaced,
    /// It took too long.
    #[error("waited too long")]
    Late,
}

impl NoPlace {
    /// The reason's name in the metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Full => "queue_full",
            Self::Displaced => "queue_displaced",
            Self::Late => "queue_late",
        }
    }
}

/// Whose place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Share(usize);

/// The places. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    capacity: usize,
    queue_length: usize,
    patience: Duration,
    hasher: RandomState,
    taken: AtomicUsize,
    /// The length of the queue, readable without its lock.
    waiting: AtomicUsize,
    held: Box<[AtomicUsize]>,
    queue: Mutex<Queue>,
}

/// Who waits: a line for each share, in the order in which they came.
#[derive(Debug, Default)]
struct Queue {
    lines: HashMap<Share, VecDeque<Waiter>>,
    length: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    answer: oneshot::Sender<Place>,
}

/// A place, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// `None` once it has been given back.
    places: Option<Arc<Inner>>,
    share: Share,
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self(Arc::new(Inner {
            capacity: limits.requests,
            queue_length: limits.queue,
            patience: limits.patience,
            hasher: RandomState::new(),
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            held: (0..SHARES).map(|_| AtomicUsize::new(0)).collect(),
            queue: Mutex::default(),
        }))
    }

    /// The share of `principal`: all requests of one access key, one plugin or one local user.
    pub(crate) fn share(&self, principal: &Principal) -> Share {
        let mut hasher = self.0.hasher.build_hasher();
        match principal {
            Principal::Root { access_key_id } => access_key_id.hash(&mut hasher),
            Principal::Plugin { cluster, name, .. } => (cluster.as_bytes(), name).hash(&mut hasher),
            Principal::Kubelet { cluster, node, .. } => {
                (cluster.as_bytes(), node.as_str()).hash(&mut hasher);
            }
            Principal::Local { uid } => uid.hash(&mut hasher),
            Principal::System => {}
        }
        // The remainder is below SHARES, which fits.
        Share(usize::try_from(hasher.finish() % SHARES as u64).unwrap_or(0))
    }

    /// Takes a place of `share`, waiting for one if there is none.
    ///
    /// # Errors
    /// [`NoPlace`] if the queue is full, or the wait was too long.
    pub(crate) async fn enter(&self, share: Share) -> Result<Place, NoPlace> {
        if self.0.waiting.load(Ordering::SeqCst) == 0 && self.0.try_take() {
            return Ok(Inner::place(&self.0, share));
        }
        self.wait(share).await
    }

    /// Places taken, and callers waiting for one.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.0.taken.load(Ordering::Relaxed), self.0.waiting.load(Ordering::Relaxed))
    }

    fn wait(&self, share: Share) -> impl Future<Output = Result<Place, NoPlace>> + use<> {
        let inner = Arc::clone(&self.0);
        async move {
            let (answer, place) = oneshot::channel();
            let (number, displaced) = {
                let mut queue = inner.queue.lock();
                let entered = queue.enter(share, answer, inner.queue_length);
                inner.waiting.store(queue.length, Ordering::SeqCst);
                entered
            }?;
            // Whoever had to go learns it by this.
            drop(displaced);
            let _in_line = InLine { inner: &inner, share, number };
            // A place may have become free after we looked and before we stood in line.
            Inner::hand_out(&inner);
            match tokio::time::timeout(inner.patience, place).await {
                Ok(Ok(place)) => Ok(place),
                Ok(Err(_)) => Err(NoPlace::Displaced),
                Err(_) => Err(NoPlace::Late),
            }
        }
    }
}

/// Somebody who waits, and leaves the line when this is dropped.
struct InLine<'a> {
    inner: &'a Inner,
    share: Share,
    number: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut queue = self.inner.queue.lock();
        let left = queue.leave(self.share, self.number);
        self.inner.waiting.store(queue.length, Ordering::SeqCst);
        drop(queue);
        drop(left);
    }
}

impl Inner {
    fn try_take(&self) -> bool {
        let more = |taken| (taken < self.capacity).then_some(taken + 1);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    fn held(&self, share: Share) -> &AtomicUsize {
        &self.held[share.0 % SHARES]
    }

    /// The token of a place that was taken.
    fn place(this: &Arc<Self>, share: Share) -> Place {
        this.held(share).fetch_add(1, Ordering::Relaxed);
        Place { places: Some(Arc::clone(this)), share }
    }

    fn give_back(&self, share: Share) {
        self.held(share).fetch_sub(1, Ordering::Relaxed);
        self.taken.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gives free places to those who wait.
    fn hand_out(this: &Arc<Self>) {
        // Both sides change their own count first and then look at the other's, in one total
        // order: the one who leaves sees the one who came to wait, or is seen by him.
        while this.waiting.load(Ordering::SeqCst) > 0 {
            let (share, waiter) = {
                let mut queue = this.queue.lock();
                if queue.length == 0 || !this.try_take() {
                    return;
                }
                let next = queue.next_of(|share| this.held(share).load(Ordering::Relaxed));
                this.waiting.store(queue.length, Ordering::SeqCst);
                let Some(next) = next else {
                    this.taken.fetch_sub(1, Ordering::SeqCst);
                    return;
                };
                next
            };
            if let Err(mut unwanted) = waiter.answer.send(Self::place(this, share))
                && unwanted.places.take().is_some()
            {
                this.give_back(share);
            }
        }
    }
}

impl Queue {
    /// Stands in line; gives the place in it, and who had to go for it.
    fn enter(
        &mut self,
        share: Share,
        answer: oneshot::Sender<Place>,
        most: usize,
    ) -> Result<(u64, Option<Waiter>), NoPlace> {
        let displaced = if self.length < most { None } else { Some(self.displace(share)?) };
        let number = self.next;
        self.next += 1;
        self.length += 1;
        self.lines.entry(share).or_default().push_back(Waiter { number, answer });
        Ok((number, displaced))
    }

    /// Takes the newest out of the longest line, if that is longer than the newcomer's would be.
    fn displace(&mut self, newcomer: Share) -> Result<Waiter, NoPlace> {
        let own = self.lines.get(&newcomer).map_or(0, VecDeque::len);
        let (&longest, line) =
            self.lines.iter().max_by_key(|(_, line)| line.len()).ok_or(NoPlace::Full)?;
        if line.len() <= own + 1 {
            return Err(NoPlace::Full);
        }
        let last = line.back().map(|waiter| waiter.number).ok_or(NoPlace::Full)?;
        self.leave(longest, last).ok_or(NoPlace::Full)
    }

    fn leave(&mut self, share: Share, number: u64) -> Option<Waiter> {
        let line = self.lines.get_mut(&share)?;
        let at = line.binary_search_by_key(&number, |waiter| waiter.number).ok()?;
        let waiter = line.remove(at);
        self.length -= 1;
        if line.is_empty() {
            self.lines.remove(&share);
        }
        waiter
    }

    /// The first in the line of the share that holds least; of equal ones, who came first.
    fn next_of(&mut self, held: impl Fn(Share) -> usize) -> Option<(Share, Waiter)> {
        let first = |line: &VecDeque<Waiter>| line.front().map_or(u64::MAX, |first| first.number);
        let next = self.lines.iter().map(|(&share, line)| (held(share), first(line), share)).min();
        let (_, number, share) = next?;
        self.leave(share, number).map(|waiter| (share, waiter))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.places.take() {
            places.give_back(self.share);
            Inner::hand_out(&places);
        }
    }
}

/// Room for those who wait for something to happen, such as plugins for a change of their key.
///
/// Nobody queues for it: it is held for as long as a minute. A principal gets more room only
/// while it holds less than twice what is left, so that alone it may have two thirds, and
/// newcomers always find some.
#[derive(Clone, Debug)]
pub(crate) struct WaitingRoom(Arc<WaitingInner>);

#[derive(Debug)]
struct WaitingInner {
    capacity: usize,
    taken: AtomicUsize,
    held: Box<[AtomicUsize]>,
}

/// A seat in the waiting room, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    room: Arc<WaitingInner>,
    share: Share,
}

impl WaitingRoom {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self(Arc::new(WaitingInner {
            capacity: limits.waiting,
            taken: AtomicUsize::new(0),
            held: (0..SHARES).map(|_| AtomicUsize::new(0)).collect(),
        }))
    }

    /// A seat, if there is one for this share.
    pub(crate) fn enter(&self, share: Share) -> Option<Seat> {
        let room = &self.0;
        let held = &room.held[share.0 % SHARES];
        let taken = room.taken.fetch_add(1, Ordering::SeqCst);
        let left = room.capacity.saturating_sub(taken);
        let mine = held.fetch_add(1, Ordering::SeqCst);
        let seat = Seat { room: Arc::clone(room), share };
        // One that is not granted is given back like one that was.
        (mine < left.saturating_mul(2)).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.held[self.share.0 % SHARES].fetch_sub(1, Ordering::SeqCst);
        self.room.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
