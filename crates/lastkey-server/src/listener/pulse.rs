//! What one connection is doing, as those see it who watch over it: its own task, which closes it
//! when it idles or stalls, and the doorman, who lets the least useful one go when it gets tight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::room::{Held, Pool};

/// In place of a number of requests: the connection was let go, and begins none any more.
const LET_GO: u32 = u32::MAX;
/// Of a head, so much is free; honest ones are smaller.
pub(super) const FREE_HEAD: usize = 16 << 10;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It has sent nothing, or too little for an answer: a byte is no sign that it means it.
    Silent,
    /// TLS is being negotiated: we have said something.
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
    /// Answers that were made and not taken whole, by the turn in which they, or enough of them,
    /// went.
    owed: [AtomicU32; 2],
    /// Whose turn it is, of the two.
    turn: AtomicUsize,
    /// It is to end after its answers.
    sent_away: AtomicBool,
    /// What a head takes beyond the free part while it comes.
    head: Mutex<Option<Held>>,
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
            owed: [AtomicU32::new(0), AtomicU32::new(0)],
            turn: AtomicUsize::new(0),
            sent_away: AtomicBool::new(false),
            head: Mutex::new(None),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 if self.written.load(Ordering::Relaxed) == 0 => Phase::Silent,
            0 | 1 => Phase::Handshake,
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
        let came = self.unanswered.swap(0, Ordering::Relaxed);
        let head = if came > FREE_HEAD { self.head.lock().take() } else { None };
        self.long_polls.fetch_add(is_long_poll.into(), Ordering::Relaxed);
        Some(Beat { pulse: Arc::clone(self), is_long_poll, head })
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

    /// Takes room for what has come of a head of `bytes`; `false` if there is none.
    pub(crate) fn hold_head(&self, bytes: usize, heads: &Pool) -> bool {
        self.head.lock().get_or_insert_with(|| heads.held()).reach(bytes - FREE_HEAD.min(bytes))
    }

    /// What came is no head, or that of a request that has begun and holds its room itself.
    pub(crate) fn release_head(&self) {
        *self.head.lock() = None;
    }

    /// An answer was made, of which the peer has nothing yet. Who takes less than `pace` bytes of
    /// it from one turn to the next does not take it.
    pub(crate) fn owe(self: &Arc<Self>, pace: usize) -> Owed {
        let side = self.turn.load(Ordering::Relaxed);
        self.owed[side].fetch_add(1, Ordering::Relaxed);
        Owed { pulse: Arc::clone(self), side, pace, taken: 0 }
    }

    /// Answers that were made and not taken whole.
    pub(crate) fn owed(&self) -> u32 {
        self.owed.iter().map(|side| side.load(Ordering::Relaxed)).sum()
    }

    /// Begins another turn; `false` if there is an answer that was not taken in the whole of the
    /// last one.
    pub(crate) fn turn(&self) -> bool {
        let next = 1 - self.turn.load(Ordering::Relaxed);
        if self.owed[next].load(Ordering::Relaxed) > 0 {
            return false;
        }
        self.turn.store(next, Ordering::Relaxed);
        true
    }

    /// The connection is to end after its answers.
    pub(crate) fn send_away(&self) {
        self.sent_away.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end after its answers.
    pub(crate) fn is_sent_away(&self) -> bool {
        self.sent_away.load(Ordering::Relaxed)
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
    /// What its head takes beyond the free part.
    head: Option<Held>,
}

impl Beat {
    /// Keeps room for the request's head, of so many bytes, for as long as it is in memory; `false`
    /// if there is none. While it came it had room of its own, except beside other requests of its
    /// connection, where heads are not told from bodies.
    pub(crate) fn hold_head(&mut self, bytes: usize, heads: &Pool) -> bool {
        if bytes <= FREE_HEAD {
            self.head = None;
            return true;
        }
        self.head.get_or_insert_with(|| heads.held()).reach(bytes - FREE_HEAD)
    }
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

/// An answer that was made and not taken whole.
#[derive(Debug)]
pub(crate) struct Owed {
    pulse: Arc<Pulse>,
    side: usize,
    pace: usize,
    /// Bytes of it that went since it was last counted anew.
    taken: usize,
}

impl Owed {
    /// So many more bytes of it went.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken < self.pace {
            return;
        }
        self.taken = 0;
        let pulse = &self.pulse;
        let side = pulse.turn.load(Ordering::Relaxed);
        pulse.owed[side].fetch_add(1, Ordering::Relaxed);
        pulse.owed[self.side].fetch_sub(1, Ordering::Relaxed);
        self.side = side;
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.pulse.owed[self.side].fetch_sub(1, Ordering::Relaxed);
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
    fn who_says_too_little_for_an_answer_is_silent() {
        let pulse = Pulse::new(Phase::Silent);
        pulse.read(1);
        assert_eq!(pulse.phase(), Phase::Silent);
        pulse.wrote(1000);
        assert_eq!(pulse.phase(), Phase::Handshake);
        pulse.reach(Phase::Open);
        assert_eq!(pulse.phase(), Phase::Open);
    }

    #[test]
    fn an_answer_is_taken_or_told_from_those_that_are() {
        let pulse = Arc::new(Pulse::new(Phase::Open));
        let mut slow = pulse.owe(10);
        assert!(pulse.turn(), "it was made a moment ago");
        slow.took(9);
        assert!(!pulse.turn(), "a whole turn, and too little of it went");
        slow.took(1);
        let late = pulse.owe(10);
        assert!(pulse.turn());
        assert_eq!(pulse.owed(), 2);
        drop(late);
        assert!(!pulse.turn(), "the other one has stood still since");
        drop(slow);
        assert!(pulse.turn() && pulse.owed() == 0);
    }

    #[test]
    fn a_large_head_keeps_its_room_while_its_request_is_worked_on() {
        let heads = Pool::new(8 << 10);
        let pulse = Arc::new(Pulse::new(Phase::Open));
        assert!(pulse.hold_head(pulse.read(24 << 10), &heads));
        assert!(!Pulse::new(Phase::Open).hold_head(FREE_HEAD + 1, &heads));
        let mut beat = pulse.begin(false).unwrap();
        pulse.release_head();
        assert!(beat.hold_head(24 << 10, &heads), "its own room is not taken twice");
        let mut second = pulse.begin(false).unwrap();
        assert!(second.hold_head(FREE_HEAD, &heads) && !second.hold_head(FREE_HEAD + 1, &heads));
        drop(beat);
        assert!(second.hold_head(24 << 10, &heads));
        // What came was a body.
        assert!(second.hold_head(100, &heads));
        assert!(Pulse::new(Phase::Open).hold_head(24 << 10, &heads));
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
