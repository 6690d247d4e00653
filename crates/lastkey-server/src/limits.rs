//! How much the front end takes on: everything is bounded, and what is over a bound is refused at
//! once instead of waiting.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bounds. The defaults suit a machine with two cores and 256 MiB for this process.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
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
            drain: Duration::from_secs(8),
        }
    }
}

/// Bodies are counted in units of this many bytes.
const BODY_UNIT: usize = 1024;

/// Room for work. Nobody queues for it.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

/// Room that is given back when this is dropped.
pub(crate) type Room = OwnedSemaphorePermit;

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        let room = |amount: usize| Arc::new(Semaphore::new(amount.min(Semaphore::MAX_PERMITS)));
        Self {
            connections: room(limits.connections),
            requests: room(limits.requests),
            waiting: room(limits.waiting),
            bodies: room(limits.bodies / BODY_UNIT),
        }
    }

    pub(crate) fn connection(&self) -> Option<Room> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
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
