//! Request nonces: a signed request is admitted once.
//!
//! A nonce has to be remembered for as long as its request's time stamp would be accepted. The
//! table is bounded: when it is full, the oldest seconds are forgotten, and the accepted window
//! shrinks with them, so that what was forgotten is refused for its age instead. After a restart
//! the table is filled from the audit log, which carries the print of every admitted nonce.
//!
//! The clock may be wrong, and be set right later. What it showed meanwhile is no reason to admit a
//! request again, nor to refuse others for longer than it was wrong: of the seconds that lie
//! between, nothing was forgotten.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    Clock, Timestamp,
    audit::{AuditSink, Nonces, Query},
    caller::NoncePrint,
};

/// A request's time may be this far from ours, either way.
pub const SKEW: Duration = Duration::from_secs(15 * 60);

/// Why a signed request was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NonceRefusal {
    /// The nonce was used before.
    #[error("this request was received before; sign each request anew")]
    Replayed,
    /// The time stamp is too far from the server's time.
    #[error("the request's time is too far from the server's; check the clock of both machines")]
    Skewed,
}

/// Prints are hashes already, and only holders of a secret can add one.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, print: u64) {
        self.0 = print;
    }
}

type Prints = HashSet<u64, BuildHasherDefault<AsItIs>>;

#[derive(Default)]
struct Seen {
    /// By the second that the requests were signed for.
    by_second: BTreeMap<i64, Prints>,
    count: usize,
    forgotten: Forgotten,
}

/// Seconds for which requests were signed whose nonces were forgotten, or never known: as ranges,
/// each with its first and last, in order and with something between them.
#[derive(Default)]
struct Forgotten(Vec<(i64, i64)>);

/// So many ranges are told apart; with more, the two that lie next to each other become one.
const MAX_FORGOTTEN: usize = 64;

/// The table of admitted nonces.
pub(crate) struct NonceTable {
    seen: Mutex<Seen>,
    capacity: usize,
}

impl NonceTable {
    /// At most this many nonces are remembered.
    pub(crate) const CAPACITY: usize = 2_000_000;

    pub(crate) fn new() -> Self {
        Self::with_capacity(Self::CAPACITY)
    }

    fn with_capacity(capacity: usize) -> Self {
        Self { seen: Mutex::default(), capacity }
    }

    /// Remembers a nonce that was admitted before the restart.
    pub(crate) fn remember(&self, print: NoncePrint, signed_second: i64) {
        let mut seen = self.seen.lock();
        seen.insert(print, signed_second);
        seen.shrink(self.capacity);
    }

    /// Refuses whatever was signed for `second` or earlier.
    pub(crate) fn forget_until(&self, second: i64) {
        self.seen.lock().forgotten.add(i64::MIN, second);
    }

    /// Admits a nonce once.
    pub(crate) fn admit(
        &self,
        print: NoncePrint,
        signed: Timestamp,
        clock: &dyn Clock,
    ) -> Result<(), NonceRefusal> {
        let now = clock.now();
        if now.since(signed) > SKEW || signed.since(now) > SKEW {
            return Err(NonceRefusal::Skewed);
        }
        let mut seen = self.seen.lock();
        if seen.forgotten.has(signed.as_seconds()) {
            return Err(NonceRefusal::Skewed);
        }
        if !seen.insert(print, signed.as_seconds()) {
            return Err(NonceRefusal::Replayed);
        }
        seen.drop_before(now.as_seconds() - SKEW.as_secs() as i64 - 1);
        seen.shrink(self.capacity);
        Ok(())
    }
}

impl Seen {
    fn insert(&mut self, print: NoncePrint, second: i64) -> bool {
        let new = self.by_second.entry(second).or_default().insert(print.0);
        self.count += usize::from(new);
        new
    }

    fn drop_before(&mut self, second: i64) {
        while let Some(oldest) = self.by_second.first_entry().filter(|e| *e.key() < second) {
            // Forgotten for good: a clock that is set back must not admit them again.
            self.forgotten.add(*oldest.key(), *oldest.key());
            self.count -= oldest.remove().len();
        }
    }

    fn shrink(&mut self, capacity: usize) {
        while self.count > capacity {
            let Some((second, prints)) = self.by_second.pop_first() else { return };
            self.count -= prints.len();
            self.forgotten.add(second, second);
        }
    }
}

impl Forgotten {
    fn has(&self, second: i64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < second);
        self.0.get(at).is_some_and(|(first, _)| *first <= second)
    }

    fn add(&mut self, first: i64, last: i64) {
        // Those that it overlaps or touches become one with it.
        let from = self.0.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = self.0.partition_point(|(begin, _)| *begin <= last.saturating_add(1));
        let one = self.0[from..to]
            .iter()
            .fold((first, last), |(first, last), (a, b)| (first.min(*a), last.max(*b)));
        self.0.splice(from..to, [one]);
        if self.0.len() > MAX_FORGOTTEN {
            self.close_a_gap();
        }
    }

    fn close_a_gap(&mut self) {
        let gap = |at: &usize| self.0[*at].0.saturating_sub(self.0[at - 1].1);
        if let Some(at) = (1..self.0.len()).min_by_key(gap) {
            let (_, last) = self.0.remove(at);
            self.0[at - 1].1 = last;
        }
    }
}

/// So many of the newest records tell what time it was before the restart.
const LOOK_BACK: usize = 1000;

/// What a start has to know of requests that were admitted before, and the latest second that any
/// other of them can have been signed for.
///
/// A request is signed for [`SKEW`] at most after the time of its record, by whatever clock there
/// was; so that holds wherever the search begins. It begins half an hour before now; but the clock
/// may be ahead, and whoever asks once it is right is not to be refused: it begins half an hour
/// before most of the newest records, too. A few of these may have been made under the wrong clock.
/// What retention has deleted is older than what is there, and not searched wherever it begins.
pub(crate) fn recall(
    audit: &dyn AuditSink,
    now: Timestamp,
    limit: usize,
) -> std::io::Result<(Nonces, i64)> {
    let from = before(now.min(usual_time(audit)?.unwrap_or(now)), 2 * SKEW);
    let deleted = deleted_until(audit)?.map(|until| until.after(SKEW).min(before(now, SKEW)));
    let others_until = from.after(SKEW).max(deleted.unwrap_or(from));
    Ok((audit.nonces(from, limit)?, others_until.as_seconds()))
}

fn before(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(time.as_millis().saturating_sub(by))
}

fn time_of(record: &serde_json::Value) -> Option<Timestamp> {
    Timestamp::parse(record["time"].as_str()?).ok()
}

/// When the first record was made that was not deleted, if any was.
fn deleted_until(audit: &dyn AuditSink) -> std::io::Result<Option<Timestamp>> {
    let first = audit.query(&Query { limit: 1, ..Query::default() })?.records;
    Ok(first.first().filter(|record| record["seq"] != 1).and_then(time_of))
}

/// When most of the newest records were made; in a log that has few, the first of them.
fn usual_time(audit: &dyn AuditSink) -> std::io::Result<Option<Timestamp>> {
    let newest = Query { newest: true, limit: LOOK_BACK, ..Query::default() };
    let records = audit.query(&newest)?.records;
    let mut times: Vec<Timestamp> = records.iter().filter_map(time_of).collect();
    times.sort_unstable();
    let at = if times.len() < LOOK_BACK { 0 } else { times.len() / 2 };
    Ok(times.get(at).copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    #[test]
    fn a_nonce_is_admitted_once_and_only_in_its_window() {
        let clock = ManualClock::at(at(10_000));
        let table = NonceTable::new();
        let print = NoncePrint::of("id", "n");
        assert_eq!(table.admit(print, at(10_000), &clock), Ok(()));
        assert_eq!(table.admit(print, at(10_000), &clock), Err(NonceRefusal::Replayed));
        let other = NoncePrint::of("id", "m");
        assert_eq!(table.admit(other, at(10_000 - 901), &clock), Err(NonceRefusal::Skewed));
        assert_eq!(table.admit(other, at(10_000 + 901), &clock), Err(NonceRefusal::Skewed));
    }

    #[test]
    fn a_clock_that_is_set_back_admits_no_replay() {
        let clock = ManualClock::at(at(10_000));
        let table = NonceTable::new();
        let old = NoncePrint::of("id", "old");
        assert_eq!(table.admit(old, at(10_000), &clock), Ok(()));
        clock.jump_to(at(20_000));
        assert_eq!(table.admit(NoncePrint::of("id", "new"), at(20_000), &clock), Ok(()));
        clock.jump_to(at(10_000));
        assert_eq!(table.admit(old, at(10_000), &clock), Err(NonceRefusal::Skewed));
    }

    #[test]
    fn a_clock_that_was_ahead_locks_nobody_out_once_it_is_right() {
        let clock = ManualClock::at(at(10_000));
        let table = NonceTable::new();
        let print = |n: i64| NoncePrint::of("id", &n.to_string());
        // For many hours, whoever asks shares the wrong clock.
        let wrong: Vec<i64> = (0..200).map(|n| 500_000 + n * 1000).collect();
        for second in &wrong {
            clock.jump_to(at(*second));
            assert_eq!(table.admit(print(*second), at(*second), &clock), Ok(()));
        }
        for second in 10_000..10_010 {
            clock.jump_to(at(second));
            assert_eq!(table.admit(print(second), at(second), &clock), Ok(()));
            assert_eq!(table.admit(print(second), at(second), &clock), Err(NonceRefusal::Replayed));
        }
        // Until that time comes once more: none of them is admitted again.
        for second in &wrong {
            clock.jump_to(at(*second));
            assert!(table.admit(print(*second), at(*second), &clock).is_err(), "{second}");
        }
    }

    #[test]
    fn ranges_are_what_was_added_to_them() {
        let mut ranges = Forgotten::default();
        let steps = [
            ((5, 5), vec![(5, 5)]),
            ((7, 8), vec![(5, 5), (7, 8)]),
            ((6, 6), vec![(5, 8)]),
            ((10, 12), vec![(5, 8), (10, 12)]),
            ((11, 11), vec![(5, 8), (10, 12)]),
            ((i64::MIN, 3), vec![(i64::MIN, 3), (5, 8), (10, 12)]),
            ((4, 20), vec![(i64::MIN, 20)]),
            ((i64::MAX, i64::MAX), vec![(i64::MIN, 20), (i64::MAX, i64::MAX)]),
            ((i64::MIN, i64::MAX), vec![(i64::MIN, i64::MAX)]),
        ];
        for ((first, last), after) in steps {
            ranges.add(first, last);
            assert_eq!(ranges.0, after, "{first} to {last}");
        }
        let mut ranges = Forgotten::default();
        let last = i64::try_from(MAX_FORGOTTEN).unwrap();
        // Ever further apart, but for the last.
        (0..last).for_each(|n| ranges.add(n * n + 100 * n, n * n + 100 * n));
        assert_eq!(ranges.0.len(), MAX_FORGOTTEN);
        ranges.add(1_000_000, 1_000_000);
        assert_eq!(ranges.0.len(), MAX_FORGOTTEN);
        assert!(ranges.has(0) && ranges.has(50) && ranges.has(101) && !ranges.has(102));
        assert!(ranges.has(1_000_000) && !ranges.has(999_999) && !ranges.has(-1));
    }

    #[test]
    fn a_full_table_shrinks_the_window_instead_of_forgetting() {
        let clock = ManualClock::at(at(10_000));
        let table = NonceTable::with_capacity(10);
        for n in 0..20 {
            let print = NoncePrint::of("id", &n.to_string());
            assert_eq!(table.admit(print, at(9_990 + n), &clock), Ok(()));
        }
        let first = NoncePrint::of("id", "0");
        assert_eq!(table.admit(first, at(9_990), &clock), Err(NonceRefusal::Skewed));
        assert_eq!(table.admit(NoncePrint::of("id", "x"), at(10_010), &clock), Ok(()));
    }
}
