//! What one connection is doing, as those see it who watch over it: its own task, which closes it
//! when it idles or stalls, and the doorman, who lets the least useful one go when it gets tight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// In place of a number of requests: the connection was let go, and begins none any more.
const LET_GO: u32 = u32::MAX;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It has sent nothing.
    Silent,
    /// TLS is being negotiated.
    Handshake,
    /// Requests can come.
    Open,
}

/// One connection's doings. Counters are exact; what is said of time is as precise as it is
/// looked at.
#[derive(Debug)]
pub(crate) struct Pulse {
    opened: Instant,
    phase: AtomicU32,
    in_flight: AtomicU32,
    long_polls: AtomicU32,
    served: AtomicBool,
    /// Milliseconds since `opened`, when the last request ended.
    last: AtomicU64,
    /// Bytes that came since the last request began or ended.
    unanswered: AtomicUsize,
    /// Bytes that went out.
    written: AtomicU64,
    /// The peer takes nothing at the moment.
    blocked: AtomicBool,
}

impl Pulse {
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            opened: Instant::now(),
            phase: AtomicU32::new(phase as u32),
            in_flight: AtomicU32::new(0),
            long_polls: AtomicU32::new(0),
            served: AtomicBool::new(false),
            last: AtomicU64::new(0),
            unanswered: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Silent,
            1 => Phase::Handshake,
            _ => Phase::Open,
        }
    }

    /// The connection has come further.
    pub(crate) fn reach(&self, phase: Phase) {
        self.unanswered.store(0, Ordering::Relaxed);
        self.last.store(self.age(), Ordering::Relaxed);
        self.phase.store(phase as u32, Ordering::Relaxed);
    }

    /// A request begins; `None` if the connection was let go just before.
    pub(crate) fn begin(self: &Arc<Self>, is_long_poll: bool) -> Option<Beat> {
        let more = |count| (count != LET_GO).then(|| count + 1);
        self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        self.served.store(true, Ordering::Relaxed);
        self.unanswered.store(0, Ordering::Relaxed);
        self.long_polls.fetch_add(is_long_poll.into(), Ordering::Relaxed);
        Some(Beat { pulse: Arc::clone(self), is_long_poll })
    }

    /// Lets the connection go, unless a request is under way.
    pub(crate) fn let_go(&self) -> bool {
        self.in_flight.compare_exchange(0, LET_GO, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Requests under way.
    pub(crate) fn in_flight(&self) -> u32 {
        match self.in_flight.load(Ordering::SeqCst) {
            LET_GO => 0,
            count => count,
        }
    }

    /// Whether somebody waits here for something to happen.
    pub(crate) fn has_long_poll(&self) -> bool {
        self.long_polls.load(Ordering::Relaxed) > 0
    }

    /// For how long it has been without a request.
    pub(crate) fn idle(&self) -> Duration {
        let last = self.last.load(Ordering::Relaxed);
        Duration::from_millis(self.age().saturating_sub(last))
    }

    /// Whether any request ever came.
    pub(crate) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Bytes came; gives how many came since the last request began or ended.
    pub(crate) fn read(&self, bytes: usize) -> usize {
        // One task reads; nobody else adds.
        let unanswered = self.unanswered.load(Ordering::Relaxed).saturating_add(bytes);
        self.unanswered.store(unanswered, Ordering::Relaxed);
        unanswered
    }

    /// Whether a part of a request has come, but not its head whole.
    ///
    /// What came in one read with the end of the request before is not told from that one: a head
    /// that stops within it has the time of an idle connection, until another byte of it comes.
    pub(crate) fn is_mid_head(&self) -> bool {
        self.in_flight() == 0 && self.unanswered.load(Ordering::Relaxed) > 0
    }

    /// Bytes went out.
    pub(crate) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
    }

    /// Nothing goes out at the moment.
    pub(crate) fn block(&self) {
        self.blocked.store(true, Ordering::Relaxed);
    }

    /// How much went out, and whether nothing goes out at the moment.
    pub(crate) fn writing(&self) -> (u64, bool) {
        (self.written.load(Ordering::Relaxed), self.blocked.load(Ordering::Relaxed))
    }

    /// Milliseconds since it was opened.
    fn age(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Beat {
    pulse: Arc<Pulse>,
    is_long_poll: bool,
}

impl Drop for Beat {
    fn drop(&mut self) {
        let pulse = &self.pulse;
        pulse.last.store(pulse.age(), Ordering::Relaxed);
        pulse.long_polls.fetch_sub(self.is_long_poll.into(), Ordering::Relaxed);
        // Its body came after it had begun, and is no part of the next head. Before the count, for
        // nobody looks at the bytes while a request is under way.
        pulse.unanswered.store(0, Ordering::Relaxed);
        pulse.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_a_connection() {
        let pulse = Arc::new(Pulse::new(Phase::Open));
        std::thread::sleep(Duration::from_millis(5));
        assert!(pulse.idle() >= Duration::from_millis(4) && !pulse.has_served());
        let beat = pulse.begin(true).unwrap();
        assert!(pulse.has_long_poll() && pulse.in_flight() == 1 && !pulse.let_go());
        drop(beat);
        assert!(pulse.idle() < Duration::from_millis(1000) && !pulse.has_long_poll());
        assert!(pulse.let_go() && !pulse.let_go());
        assert!(pulse.begin(false).is_none());
        assert_eq!(pulse.in_flight(), 0);
    }

    #[test]
    fn a_head_has_begun_when_bytes_came_and_no_request() {
        let pulse = Arc::new(Pulse::new(Phase::Handshake));
        pulse.read(500);
        pulse.reach(Phase::Open);
        assert!(!pulse.is_mid_head());
        assert_eq!(pulse.read(1), 1);
        assert!(pulse.is_mid_head());
        let beat = pulse.begin(false);
        assert!(!pulse.is_mid_head());
        drop(beat);
        assert!(!pulse.is_mid_head());
    }

    #[test]
    fn a_body_is_no_part_of_the_next_head() {
        let pulse = Arc::new(Pulse::new(Phase::Open));
        pulse.read(100);
        let beats = [pulse.begin(false).unwrap(), pulse.begin(false).unwrap()];
        assert_eq!(pulse.read(30_000), 30_000);
        for beat in beats {
            drop(beat);
            assert!(!pulse.is_mid_head());
        }
        assert_eq!(pulse.read(7), 7, "the next head is counted from its first byte");
        assert!(pulse.is_mid_head());
    }
}
