//! How much the front end takes on: everything is bounded, and what is over a bound is refused at
//! once instead of waiting.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bounds. The defaults suit a machine with two cores and 256 MiB for this process.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections of one address; loopback has no such limit.
    pub connections_per_address: usize,
    /// Requests that are worked on at one time.
    pub requests: usize,
    /// Requests that wait for something to happen (long polls).
    pub waiting: usize,
    /// Bytes of one body.
    pub body: usize,
    /// Bytes of all bodies at one time.
    pub bodies: usize,
    /// Bytes of one request's head; long encryption contexts travel in it.
    pub head: usize,
    /// Headers of one request.
    pub headers: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the first request's head.
    pub first_request: Duration,
    /// Without a request.
    pub idle: Duration,
    /// For the body of a request, once its head is read.
    pub read_body: Duration,
    /// For an answer, once the request is read; long polls aside.
    pub answer: Duration,
    /// For requests under way when the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            connections_per_address: 4096,
            requests: 2048,
            waiting: 4096,
            body: 1 << 20,
            bodies: 64 << 20,
            head: 96 << 10,
            headers: 64,
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            read_body: Duration::from_secs(15),
            answer: Duration::from_secs(30),
            drain: Duration::from_secs(6),
        }
    }
}

/// Descriptors that are not connections: the store, the log, the plugin's own, the console.
const OTHER_DESCRIPTORS: u64 = 256;

impl Limits {
    /// Raises this process's soft limit on descriptors as far as needed and allowed, and takes
    /// fewer connections where it stays too low: what cannot be accepted would wait for ever.
    #[must_use]
    pub(crate) fn within_descriptors(mut self) -> Self {
        let wanted = OTHER_DESCRIPTORS.saturating_add(self.connections as u64);
        let limit = getrlimit(Resource::Nofile);
        let soft = limit.current.unwrap_or(u64::MAX);
        let allowed = wanted.min(limit.maximum.unwrap_or(u64::MAX));
        let raised = Rlimit { current: Some(allowed), maximum: limit.maximum };
        let soft = if soft < allowed && setrlimit(Resource::Nofile, raised).is_ok() {
            allowed
        } else {
            soft
        };
        if soft < wanted {
            let room = soft.saturating_sub(OTHER_DESCRIPTORS).max(soft / 2);
            self.connections = usize::try_from(room).unwrap_or(self.connections);
            tracing::warn!(
                connections = self.connections,
                "the limit on open files is low, so fewer connections are accepted; raise it \
                 (LimitNOFILE, ulimit -n)"
            );
        }
        self
    }
}

/// Bodies are counted in units of this many bytes.
const BODY_UNIT: usize = 1024;

/// Room for work. Nobody queues for it.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    connections: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

/// Room that is given back when this is dropped.
pub(crate) type Room = OwnedSemaphorePermit;

/// How many connections each address has open.
#[derive(Debug)]
struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
    limit: usize,
}

/// A connection's room, and its place in the count of its address.
#[derive(Debug)]
pub(crate) struct ConnectionRoom {
    _room: Room,
    counted: Option<(Arc<Addresses>, IpAddr)>,
}

impl Drop for ConnectionRoom {
    fn drop(&mut self) {
        let Some((addresses, address)) = &self.counted else { return };
        let mut open = addresses.open.lock();
        if let Some(count) = open.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                open.remove(address);
            }
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        let room = |amount: usize| Arc::new(Semaphore::new(amount.min(Semaphore::MAX_PERMITS)));
        Self {
            connections: room(limits.connections),
            addresses: Arc::new(Addresses {
                open: Mutex::default(),
                limit: limits.connections_per_address,
            }),
            requests: room(limits.requests),
            waiting: room(limits.waiting),
            bodies: room(limits.bodies / BODY_UNIT),
        }
    }

    /// Room for a connection from `address`; `None` is for the admin socket.
    pub(crate) fn connection(&self, address: Option<IpAddr>) -> Option<ConnectionRoom> {
        let room = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        let counted = address.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_loopback());
        if let Some(address) = counted {
            let mut open = self.addresses.open.lock();
            let count = open.entry(address).or_default();
            if *count >= self.addresses.limit {
                return None;
            }
            *count += 1;
        }
        let counted = counted.map(|address| (Arc::clone(&self.addresses), address));
        Some(ConnectionRoom { _room: room, counted })
    }

    pub(crate) fn request(&self) -> Option<Room> {
        Arc::clone(&self.requests).try_acquire_owned().ok()
    }

    pub(crate) fn waiting(&self) -> Option<Room> {
        Arc::clone(&self.waiting).try_acquire_owned().ok()
    }

    /// Room for a body of at most `bytes`.
    pub(crate) fn body(&self, bytes: usize) -> Option<Room> {
        let units = u32::try_from(bytes.div_ceil(BODY_UNIT)).ok()?;
        Arc::clone(&self.bodies).try_acquire_many_owned(units).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_its_share_and_loopback_all() {
        let limits = Limits { connections: 4, connections_per_address: 1, ..Limits::default() };
        let admission = Admission::new(&limits);
        let from = |text: &str| admission.connection(Some(text.parse().unwrap()));
        let first = from("192.0.2.1").unwrap();
        assert!(from("192.0.2.1").is_none());
        assert!(from("::ffff:192.0.2.1").is_none());
        let other = from("192.0.2.2").unwrap();
        drop(first);
        assert!(from("192.0.2.1").is_some());
        let local = (from("127.0.0.1").unwrap(), from("127.0.0.1").unwrap());
        assert!(from("192.0.2.3").is_some() && admission.connection(None).is_some());
        drop((other, local));
        assert!(admission.addresses.open.lock().is_empty());
    }

    #[test]
    fn connections_fit_the_descriptors() {
        let limits = Limits { connections: 10, ..Limits::default() }.within_descriptors();
        assert_eq!(limits.connections, 10);
        let limits = Limits { connections: 1 << 40, ..Limits::default() }.within_descriptors();
        assert!(limits.connections < 1 << 40);
    }

    #[test]
    fn room_runs_out_and_comes_back() {
        let limits = Limits { requests: 1, bodies: 4096, ..Limits::default() };
        let admission = Admission::new(&limits);
        let first = admission.request();
        assert!(first.is_some());
        assert!(admission.request().is_none());
        drop(first);
        assert!(admission.request().is_some());

        let body = admission.body(3000);
        assert!(body.is_some());
        assert!(admission.body(2000).is_none());
        assert!(admission.body(1).is_some());
        drop(body);
        assert!(admission.body(4096).is_some());
        assert!(admission.body(0).is_some());
    }
}
