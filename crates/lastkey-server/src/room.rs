//! Room for what requests bring along: counts and bytes, each with a bound of its own, so that
//! one kind of excess leaves the others alone.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use lastkey_engine::{Error, Principal};
use parking_lot::Mutex;
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
/// Answers up to this size are not counted by their bytes, only by their number.
const SMALL_ANSWER: usize = 16 << 10;

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
    /// Answers to strangers that were not taken.
    untaken: Arc<Count>,
    /// Answers to proven callers that were not taken.
    untaken_proven: Arc<Count>,
    /// Strangers' requests whose body is still coming.
    coming: Arc<Coming>,
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
            under_way: Count::new(limits.under_way),
            untaken: Count::new(limits.untaken),
            untaken_proven: Count::new(limits.untaken_proven),
            coming: Arc::new(Coming { capacity: limits.coming, book: Mutex::default() }),
        }
    }

    /// Room for a request on a connection that has so many already.
    ///
    /// A connection gets more only while it has less than a quarter of what is left, so that the
    /// streams of a few cannot take all of it.
    pub(crate) fn begin(&self, already: usize) -> Option<Begun> {
        let (begun, left) = self.under_way.enter();
        (left > 0 && has_share(already, left)).then_some(begun)
    }

    /// An answer to a proven caller, until it was taken. It is never refused; if there are too many,
    /// those who leave theirs have less time for it.
    pub(crate) fn untaken_proven(&self) -> Begun {
        self.untaken_proven.enter().0
    }

    /// Whether there are too many of those.
    pub(crate) fn is_crowded(&self) -> bool {
        self.untaken_proven.taken.load(Ordering::Relaxed) > self.untaken_proven.capacity
    }

    /// Room for an answer to a stranger, until it was taken, on a connection that was given so many
    /// already. There is always room for one.
    pub(crate) fn untaken(&self, already: usize) -> Option<Begun> {
        let (begun, left) = self.untaken.enter();
        has_share(already, left).then_some(begun)
    }

    /// Room for a request of a stranger at `address` whose body is still coming.
    pub(crate) fn coming(&self, address: IpAddr) -> Option<ComingBody> {
        let place = neighbourhood(address);
        let mut book = self.coming.book.lock();
        let left = self.coming.capacity.saturating_sub(book.taken);
        let already = book.of.get(&place).copied().unwrap_or_default();
        if left == 0 || !has_share(already, left) {
            return None;
        }
        book.taken += 1;
        *book.of.entry(place).or_default() += 1;
        Some(ComingBody { all: Arc::clone(&self.coming), place })
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

/// Whether one that has `already` so many may have another: while it has less than a quarter of what
/// is left, and always one.
fn has_share(already: usize, left: usize) -> bool {
    already == 0 || already < left / 4
}

/// Where a proven caller's request waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) metrics: &'a Metrics,
    /// Whether somebody proven came here.
    pub(crate) is_proven: &'a AtomicBool,
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
        self.is_proven.store(true, Ordering::Relaxed);
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

impl Count {
    fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), capacity })
    }

    /// Counts one more, and says how much was left.
    fn enter(self: &Arc<Self>) -> (Begun, usize) {
        let left = self.capacity.saturating_sub(self.taken.fetch_add(1, Ordering::SeqCst));
        (Begun(Arc::clone(self)), left)
    }
}

/// Requests whose body is still coming, by where they come from.
#[derive(Debug)]
struct Coming {
    capacity: usize,
    book: Mutex<ComingBook>,
}

#[derive(Debug, Default)]
struct ComingBook {
    taken: usize,
    of: HashMap<IpAddr, usize>,
}

/// A request whose body is still coming, until this is dropped.
#[derive(Debug)]
pub(crate) struct ComingBody {
    all: Arc<Coming>,
    place: IpAddr,
}

impl Drop for ComingBody {
    fn drop(&mut self) {
        let mut book = self.all.book.lock();
        book.taken -= 1;
        if let Some(count) = book.of.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                book.of.remove(&self.place);
            }
        }
    }
}

/// An address, or all that its holder has beside it: of IPv6, one host is given 2⁶⁴.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !0 << 64).into(),
        address => address,
    }
}

/// One of those that are counted, such as a request under way, until this is dropped.
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
    pub(crate) fn new(bytes: usize) -> Self {
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

    #[test]
    fn an_address_cannot_take_all_bodies_that_are_coming() {
        let admission = Admission::new(&Limits { coming: 100, ..Limits::default() });
        let from = |address: &str| admission.coming(address.parse().unwrap());
        let all_from = |address| std::iter::from_fn(|| from(address)).collect::<Vec<_>>();
        let greedy = all_from("192.0.2.1");
        assert_eq!(greedy.len(), 20);
        assert!(from("::ffff:192.0.2.1").is_none(), "it is the same one");
        let second = all_from("2001:db8::1");
        assert_eq!(second.len(), 16);
        assert!(from("2001:db8::ffff:1").is_none(), "it is beside the other");
        let others: Vec<_> =
            (0..).map_while(|n| from(&format!("2001:db8:0:{:x}::1", n + 1))).collect();
        assert_eq!(others.len(), 64);
        assert!(from("192.0.2.2").is_none());
        drop((greedy, second, others));
        let book = admission.coming.book.lock();
        assert!(book.of.is_empty() && book.taken == 0);
    }

    #[test]
    fn a_connection_always_has_room_for_one_answer() {
        let admission = Admission::new(&Limits { untaken: 10, ..Limits::default() });
        let mut greedy = Vec::new();
        while let Some(begun) = admission.untaken(greedy.len()) {
            greedy.push(begun);
        }
        assert_eq!(greedy.len(), 2);
        let others: Vec<_> = (0..20).filter_map(|_| admission.untaken(0)).collect();
        assert_eq!(others.len(), 20);
        assert!(admission.untaken(1).is_none());
    }
}
