//! Who may come in, and who has to leave for it.
//!
//! In this order, for a connection from the network:
//!
//! 1. An address that has its share already is refused.
//! 2. If too many have not finished their handshake, those who came first among them leave, the
//!    silent ones before the others: a flood of them lives as briefly as it is fast. Who has just
//!    come stays for a moment, so that a client who means it has time to begin.
//! 3. If all connections are taken, those leave that did not finish their handshake in a second, then
//!    those that have been without a request for longest. Who has just come is not the first to go:
//!    else whoever holds all places and does nothing would have newcomers push each other out.
//! 4. If a request is under way on each of them, the newcomer waits in the lobby, where health is
//!    answered and everything else told to come back; if that is full too, it is refused.
//!
//! A connection with a request under way is never closed for another. The admin socket's places
//! are its own.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::pulse::{Phase, Pulse};
use crate::{limits::Limits, metrics::Metrics};

/// So many leave at once, at most: looking for them means looking at all.
const BATCH: usize = 32;
/// A newcomer does not have to leave for another newcomer before.
const A_MOMENT: Duration = Duration::from_millis(100);
/// Who has not finished the handshake by then leaves before those that have.
const HANDSHAKE_AT_EASE: Duration = Duration::from_secs(1);

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Over the network.
    Network,
    /// Over the network, beyond what there is room for.
    Lobby,
    /// Over the admin socket.
    Admin,
}

/// Counts connections, and knows what each does.
#[derive(Debug)]
pub(crate) struct Doorman {
    limits: Limits,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<u64, Entry>,
    next: u64,
    addresses: HashMap<IpAddr, usize>,
    network: usize,
    lobby: usize,
    admin: usize,
    /// Of the network's, those that have not finished their handshake.
    newcomers: usize,
}

#[derive(Debug)]
struct Entry {
    pulse: Arc<Pulse>,
    lane: Lane,
    address: Option<IpAddr>,
    is_newcomer: bool,
    task: Option<AbortHandle>,
}

/// A connection that was let in; it counts until this is dropped, or it has to leave.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) lane: Lane,
    pub(crate) ticket: Ticket,
}

/// A guest's number in the book.
#[derive(Debug)]
pub(crate) struct Ticket {
    doorman: Arc<Doorman>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.doorman.book.lock().remove(self.number);
    }
}

impl Ticket {
    /// The guest has finished its handshake.
    pub(crate) fn known(&self) {
        let mut book = self.doorman.book.lock();
        if let Some(entry) = book.open.get_mut(&self.number)
            && std::mem::take(&mut entry.is_newcomer)
        {
            book.newcomers -= 1;
        }
    }
}

impl Doorman {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), book: Mutex::default() }
    }

    /// Lets a connection from the network in, or not. Loopback has no limit per address.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, metrics: &Metrics) -> Option<Guest> {
        let address = Some(address.to_canonical()).filter(|ip| !ip.is_loopback());
        let mut book = self.book.lock();
        // 1. A share for each address.
        let same = address.and_then(|ip| book.addresses.get(&ip)).copied().unwrap_or_default();
        if same >= self.limits.connections_per_address {
            metrics.shed("address");
            return None;
        }
        // 2. Newcomers give way to newcomers.
        if book.newcomers >= self.limits.newcomers {
            let left = book.evict(Lane::Network, |phase, idle| {
                (phase != Phase::Open && idle >= A_MOMENT).then_some(phase)
            });
            metrics.shed_many("newcomers", left);
        }
        // 3. Idle ones give way.
        if book.network >= self.limits.connections {
            let left = book.evict(Lane::Network, rank);
            metrics.shed_many("idle", left);
        }
        // 4. Everybody is busy.
        let lane = if book.network < self.limits.connections {
            Lane::Network
        } else {
            if book.lobby >= self.limits.lobby {
                let left = book.evict(Lane::Lobby, rank);
                metrics.shed_many("connections", left);
            }
            if book.lobby >= self.limits.lobby {
                metrics.shed("connections");
                return None;
            }
            Lane::Lobby
        };
        Some(self.write_down(&mut book, lane, address))
    }

    /// Lets a connection of the admin socket in, or not.
    pub(crate) fn admit_admin(self: &Arc<Self>, metrics: &Metrics) -> Option<Guest> {
        let mut book = self.book.lock();
        if book.admin >= self.limits.admin_connections {
            let left = book.evict(Lane::Admin, rank);
            metrics.shed_many("idle", left);
        }
        if book.admin >= self.limits.admin_connections {
            metrics.shed("connections");
            return None;
        }
        Some(self.write_down(&mut book, Lane::Admin, None))
    }

    /// Makes some idle connections leave, because the process has no descriptors left.
    pub(crate) fn make_way(&self, metrics: &Metrics) {
        let mut book = self.book.lock();
        let left = book.evict(Lane::Network, rank);
        metrics.shed_many("descriptors", left);
    }

    /// Which task serves a guest, so that it can be ended.
    pub(crate) fn served_by(&self, number: u64, task: AbortHandle) {
        if let Some(entry) = self.book.lock().open.get_mut(&number) {
            entry.task = Some(task);
        }
    }

    fn write_down(self: &Arc<Self>, book: &mut Book, lane: Lane, address: Option<IpAddr>) -> Guest {
        let is_newcomer = lane == Lane::Network;
        let phase = if lane == Lane::Admin { Phase::Open } else { Phase::Silent };
        let pulse = Arc::new(Pulse::new(phase));
        let number = book.next;
        book.next += 1;
        *book.count(lane) += 1;
        book.newcomers += usize::from(is_newcomer);
        if let Some(address) = address {
            *book.addresses.entry(address).or_default() += 1;
        }
        let entry = Entry { pulse: Arc::clone(&pulse), lane, address, is_newcomer, task: None };
        book.open.insert(number, entry);
        Guest { pulse, lane, ticket: Ticket { doorman: Arc::clone(self), number } }
    }
}

/// In which order connections leave for others.
fn rank(phase: Phase, idle: Duration) -> Option<Phase> {
    Some(if idle < HANDSHAKE_AT_EASE { Phase::Open } else { phase })
}

impl Guest {
    pub(crate) fn number(&self) -> u64 {
        self.ticket.number
    }
}

impl Book {
    fn count(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Network => &mut self.network,
            Lane::Lobby => &mut self.lobby,
            Lane::Admin => &mut self.admin,
        }
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.open.remove(&number)?;
        *self.count(entry.lane) -= 1;
        self.newcomers -= usize::from(entry.is_newcomer);
        if let Some(address) = entry.address
            && let Some(count) = self.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
        Some(entry)
    }

    /// Makes a batch of connections leave that have no request under way: first those of the lowest
    /// rank (by phase and idle time; `None` stays), among them those that have been idle for longest.
    /// Says how many.
    fn evict(&mut self, lane: Lane, rank: impl Fn(Phase, Duration) -> Option<Phase>) -> u64 {
        let mut idle: Vec<_> = (self.open.iter())
            .filter(|(_, entry)| entry.lane == lane && entry.task.is_some())
            .filter(|(_, entry)| entry.pulse.in_flight() == 0)
            .filter_map(|(&number, entry)| {
                let idle = entry.pulse.idle();
                let rank = rank(entry.pulse.phase(), idle)?;
                Some((rank, std::cmp::Reverse(idle), number))
            })
            .collect();
        // A small house is not emptied for one newcomer.
        let batch = BATCH.min(idle.len().div_ceil(8));
        if batch > 0 && batch < idle.len() {
            idle.select_nth_unstable(batch - 1);
        }
        let mut left = 0;
        for (_, _, number) in idle.into_iter().take(batch) {
            let goes = self.open.get(&number).is_some_and(|entry| entry.pulse.let_go());
            if goes && let Some(Entry { task: Some(task), .. }) = self.remove(number) {
                task.abort();
                left += 1;
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    struct House {
        doorman: Arc<Doorman>,
        metrics: Metrics,
        runtime: tokio::runtime::Runtime,
    }

    fn house(limits: &Limits) -> House {
        let metrics = Metrics::register(&mut Registry::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        House { doorman: Arc::new(Doorman::new(limits)), metrics, runtime }
    }

    impl House {
        fn attach(&self, guest: Option<Guest>) -> Option<Guest> {
            let guest = guest?;
            let task = self.runtime.spawn(std::future::pending::<()>());
            self.doorman.served_by(guest.number(), task.abort_handle());
            Some(guest)
        }

        fn from(&self, address: &str) -> Option<Guest> {
            self.attach(self.doorman.admit(address.parse().unwrap(), &self.metrics))
        }

        fn open(&self) -> Guest {
            let guest = self.from("127.0.0.1").unwrap();
            guest.ticket.known();
            guest.pulse.reach(Phase::Open);
            guest
        }
    }

    #[test]
    fn an_address_takes_its_share_and_loopback_all() {
        let house =
            house(&Limits { connections: 4, connections_per_address: 1, ..Limits::default() });
        let first = house.from("192.0.2.1").unwrap();
        assert!(house.from("192.0.2.1").is_none());
        assert!(house.from("::ffff:192.0.2.1").is_none());
        let other = house.from("192.0.2.2").unwrap();
        drop(first);
        assert!(house.from("192.0.2.1").is_some());
        let local = (house.from("127.0.0.1").unwrap(), house.from("127.0.0.1").unwrap());
        drop((other, local));
        let book = house.doorman.book.lock();
        assert!(book.addresses.is_empty() && book.open.is_empty());
        assert_eq!((book.network, book.newcomers), (0, 0));
    }

    #[test]
    fn newcomers_give_way_to_newcomers_and_never_those_who_are_known() {
        let house = house(&Limits { newcomers: 3, ..Limits::default() });
        let known = house.open();
        let silent = house.from("127.0.0.1").unwrap();
        let busy = house.from("127.0.0.1").unwrap();
        busy.pulse.reach(Phase::Handshake);
        let later = house.from("127.0.0.1").unwrap();
        drop(house.from("127.0.0.1").unwrap());
        assert!(silent.pulse.begin(false).is_some(), "nobody has to leave at once");
        // The later one stays the younger one, whenever the clock ticked.
        assert!(later.pulse.begin(false).is_some());
        std::thread::sleep(A_MOMENT);
        assert!(house.from("127.0.0.1").is_some());
        assert_eq!(silent.pulse.phase(), Phase::Silent);
        assert!(silent.pulse.begin(false).is_none(), "the oldest silent one had to leave");
        for stays in [&known, &busy, &later] {
            assert!(stays.pulse.begin(false).is_some());
        }
    }

    /// Whoever takes all places by connections that do nothing keeps nobody out.
    #[test]
    fn the_idle_give_way_before_those_who_have_just_come() {
        // Again where this machine took too long for anybody to have just come.
        let shown = (0..100).any(|_| {
            let house = house(&Limits { connections: 3, ..Limits::default() });
            let idle = (house.open(), house.open());
            std::thread::sleep(Duration::from_millis(20));
            let began = std::time::Instant::now();
            let newcomer = house.from("127.0.0.1").unwrap();
            newcomer.pulse.reach(Phase::Handshake);
            let last = house.from("127.0.0.1").unwrap();
            let in_time = began.elapsed() < HANDSHAKE_AT_EASE;
            assert!(last.pulse.begin(false).is_some());
            let left =
                [&idle.0, &idle.1].iter().filter(|one| one.pulse.begin(false).is_none()).count();
            if in_time {
                assert!(newcomer.pulse.begin(false).is_some(), "it came just before");
                assert_eq!(left, 1);
            }
            in_time
        });
        assert!(shown);
        // Who takes long leaves first, whatever the others do.
        assert!(rank(Phase::Handshake, HANDSHAKE_AT_EASE) < rank(Phase::Open, Duration::MAX));
        assert!(rank(Phase::Silent, HANDSHAKE_AT_EASE) < rank(Phase::Handshake, HANDSHAKE_AT_EASE));
    }

    #[test]
    fn the_idle_give_way_to_newcomers_and_the_busy_do_not() {
        let house = house(&Limits { connections: 2, lobby: 1, ..Limits::default() });
        let (idle, busy) = (house.open(), house.open());
        let beat = busy.pulse.begin(false);
        let third = house.open();
        assert!(idle.pulse.begin(false).is_none(), "the idle one had to leave");
        drop(idle);
        let beats = (beat, third.pulse.begin(false));
        let lobby = house.from("127.0.0.1").unwrap();
        assert_eq!(lobby.lane, Lane::Lobby);
        let next = house.from("127.0.0.1").unwrap();
        assert_eq!(next.lane, Lane::Lobby, "the lobby changes its guests");
        let beat = next.pulse.begin(false);
        assert!(house.from("127.0.0.1").is_none());
        drop((beats, beat, lobby));
        assert!(house.attach(house.doorman.admit_admin(&house.metrics)).is_some());
    }
}
