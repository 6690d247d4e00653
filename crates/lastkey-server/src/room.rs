//! Room for what requests bring along: counts and bytes, each with a bound of its own, so that
//! one kind of excess leaves the others alone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use lastkey_engine::{Error, Principal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    alibaba::Refusal,
    fair::{Place, Places, Seat, WaitingRoom},
    limits::Limits,
    metrics::Metrics,
    native,
};

/// Bytes are counted in units of this many.
const UNIT: usize = 1024;
/// The first so many bytes of a body have a pool of their own: hardly any honest request has
/// more, so nobody can keep those out by large ones.
const SMALL_BODY: usize = 64 << 10;
/// Answers up to this size are not counted; connections bound their number.
const SMALL_ANSWER: usize = 64 << 10;

/// All the room there is.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    /// For proven callers' requests.
    pub(crate) places: Places,
    /// For those who wait for something to happen.
    waiting: WaitingRoom,
    /// For reading the whole log.
    long: Arc<Semaphore>,
    /// For what connections have read of heads.
    pub(crate) heads: Pool,
    bodies: Pool,
    large_bodies: Pool,
    answers: Pool,
    under_way: Arc<Count>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            places: Places::new(limits),
            waiting: WaitingRoom::new(limits),
            long: Arc::new(Semaphore::new(limits.long)),
            heads: Pool::new(limits.heads),
            bodies: Pool::new(limits.bodies),
            large_bodies: Pool::new(limits.large_bodies),
            answers: Pool::new(limits.answers),
            under_way: Arc::new(Count { taken: AtomicUsize::new(0), capacity: limits.under_way }),
        }
    }

    /// Room for a request on a connection that has so many already.
    ///
    /// A connection gets more only while it has less than a quarter of what is left, so that the
    /// streams of a few cannot take all of it.
    pub(crate) fn begin(&self, already: usize) -> Option<Begun> {
        let count = &self.under_way;
        let left = count.capacity.saturating_sub(count.taken.fetch_add(1, Ordering::SeqCst));
        let begun = Begun(Arc::clone(count));
        (left > 0 && (already == 0 || already < left / 4)).then_some(begun)
    }

    /// Requests under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.taken.load(Ordering::Relaxed)
    }

    /// Room for a body, of which nothing is there yet.
    pub(crate) fn body(&self) -> BodyRoom {
        BodyRoom { small: self.bodies.held(), large: self.large_bodies.held() }
    }

    /// Room for an answer of so many bytes, until it is sent; `Ok(None)` if it needs none.
    pub(crate) fn answer(&self, bytes: usize) -> Result<Option<Held>, NoRoom> {
        if bytes <= SMALL_ANSWER {
            return Ok(None);
        }
        let mut held = self.answers.held();
        if held.reach(bytes) { Ok(Some(held)) } else { Err(NoRoom) }
    }
}

/// Where a proven caller's request waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) metrics: &'a Metrics,
}

/// What a request holds while it is worked on.
#[derive(Debug)]
pub(crate) enum Turn {
    /// One of the places that are shared fairly.
    Place { _place: Place },
    /// A seat for who waits for something to happen.
    Seat { _seat: Seat },
    /// One of the few places of those who read the log.
    Log { _permit: OwnedSemaphorePermit },
}

impl Gate<'_> {
    /// Waits for the turn of `principal`.
    ///
    /// # Errors
    /// Others have had as much as it, or it took too long: it is to come back later.
    pub(crate) async fn turn(&self, principal: &Principal, path: &str) -> Result<Turn, Refusal> {
        let Admission { places, waiting, long, .. } = self.admission;
        let share = places.share(principal);
        let turn = if path == "/" {
            places.enter(share).await.map(|_place| Turn::Place { _place }).map_err(|e| e.reason())
        } else if native::may_wait(path) {
            waiting.enter(share).map(|_seat| Turn::Seat { _seat }).ok_or("waiting")
        } else if native::reads_the_log(path) {
            let permit = Arc::clone(long).try_acquire_owned();
            permit.map(|_permit| Turn::Log { _permit }).map_err(|_| "log_readers")
        } else {
            places.enter(share).await.map(|_place| Turn::Place { _place }).map_err(|e| e.reason())
        };
        turn.map_err(|reason| {
            self.metrics.shed(reason);
            Error::Busy.into()
        })
    }
}

/// The same bytes, their room taken until they are sent; or a refusal, if there is none.
pub(crate) fn sized(bytes: Bytes, admission: &Admission) -> Result<Bytes, NoRoom> {
    Ok(match admission.answer(bytes.len())? {
        None => bytes,
        Some(room) => Bytes::from_owner(Sized { bytes, _room: room }),
    })
}

/// An answer's bytes, and the room they take.
struct Sized {
    bytes: Bytes,
    _room: Held,
}

impl AsRef<[u8]> for Sized {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

#[derive(Debug)]
struct Count {
    taken: AtomicUsize,
    capacity: usize,
}

/// A request under way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Begun(Arc<Count>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A number of bytes that may be in memory at one time.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Semaphore>);

impl Pool {
    fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT).min(Semaphore::MAX_PERMITS))))
    }

    /// Nothing yet.
    pub(crate) fn held(&self) -> Held {
        Held { pool: self.clone(), permit: None, units: 0 }
    }
}

/// Bytes taken from a pool, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pool: Pool,
    permit: Option<OwnedSemaphorePermit>,
    units: usize,
}

impl Held {
    /// Takes as much as is missing to have `bytes` in all; `false` if that is too much.
    pub(crate) fn reach(&mut self, bytes: usize) -> bool {
        let units = bytes.div_ceil(UNIT);
        let Some(missing) = units.checked_sub(self.units).filter(|missing| *missing > 0) else {
            return true;
        };
        let Ok(missing) = u32::try_from(missing) else { return false };
        let Ok(more) = Arc::clone(&self.pool.0).try_acquire_many_owned(missing) else {
            return false;
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            empty => *empty = Some(more),
        }
        self.units = units;
        true
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        self.permit = None;
        self.units = 0;
    }
}

/// The room of one body; it grows as bytes arrive, so that nobody takes it by announcing them.
#[derive(Debug)]
pub(crate) struct BodyRoom {
    small: Held,
    large: Held,
}

impl BodyRoom {
    /// Room for so many bytes in all; `false` if there is none.
    pub(crate) fn reach(&mut self, bytes: usize) -> bool {
        self.small.reach(bytes.min(SMALL_BODY))
            && (bytes <= SMALL_BODY || self.large.reach(bytes - SMALL_BODY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_run_out_and_come_back() {
        let limits = Limits { bodies: 4096, large_bodies: 2048, ..Limits::default() };
        let admission = Admission::new(&limits);
        let mut first = admission.body();
        assert!(first.reach(100) && first.reach(3000) && first.reach(3000) && first.reach(0));
        let mut second = admission.body();
        assert!(second.reach(1024));
        assert!(!second.reach(1025));
        drop(first);
        assert!(second.reach(4096));
        assert!(!admission.body().reach(1));
        drop(second);
        assert!(admission.body().reach(4096));
    }

    #[test]
    fn large_bodies_leave_small_ones_alone() {
        let limits = Limits { large_bodies: 1 << 20, ..Limits::default() };
        let admission = Admission::new(&limits);
        let mut large = admission.body();
        assert!(large.reach((1 << 20) + SMALL_BODY));
        assert!(!admission.body().reach(SMALL_BODY + 1));
        assert!(admission.body().reach(SMALL_BODY));
    }

    #[test]
    fn large_answers_take_room() {
        let admission = Admission::new(&Limits { answers: 1 << 20, ..Limits::default() });
        assert!(matches!(admission.answer(SMALL_ANSWER), Ok(None)));
        let first = admission.answer(1 << 20).unwrap();
        assert!(first.is_some());
        assert!(admission.answer(SMALL_ANSWER + 1).is_err());
        drop(first);
        assert!(admission.answer(SMALL_ANSWER + 1).is_ok());
    }

    #[test]
    fn a_connection_cannot_take_all_requests() {
        let admission = Admission::new(&Limits { under_way: 100, ..Limits::default() });
        let mut greedy = Vec::new();
        while let Some(begun) = admission.begin(greedy.len()) {
            greedy.push(begun);
        }
        assert_eq!(greedy.len(), 20);
        let others: Vec<_> = std::iter::from_fn(|| admission.begin(0)).collect();
        assert_eq!(others.len(), 80);
        assert_eq!(admission.under_way(), 100);
        drop((greedy, others));
        assert_eq!(admission.under_way(), 0);
    }
}
