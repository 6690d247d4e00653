//! Request nonces: a signed request is admitted once.
//!
//! A nonce has to be remembered for as long as its request's time stamp would be accepted. The
//! table is bounded: when it is full, the oldest seconds are forgotten, and the accepted window
//! shrinks with them, so that what was forgotten is refused for its age instead. After a restart
//! the table is filled from the audit log, which carries the print of every admitted nonce; and of
//! those that are too many, or were deleted there, the seconds that they were signed for.
//!
//! The clock may be wrong, and be set right later. What it showed meanwhile is no reason to admit a
//! request again, nor to refuse others for longer than it was wrong: of the seconds that lie
//! between, nothing was forgotten. A full table forgets first what is too far ahead to be asked for.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    Clock, Timestamp,
    audit::{AuditSink, Nonces, Query, Seconds, Told},
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
    /// Those for which requests were signed whose nonces were forgotten, or never known.
    forgotten: Seconds,
}

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
    pub(crate) fn remember(&self, print: NoncePrint, signed_second: i64, now: Timestamp) {
        let mut seen = self.seen.lock();
        seen.insert(print, signed_second);
        seen.shrink(self.capacity, now);
    }

    /// Refuses whatever was signed for `second` or earlier.
    pub(crate) fn forget_until(&self, second: i64) {
        self.seen.lock().forgotten.add(i64::MIN, second);
    }

    /// Refuses whatever was signed for one of these seconds.
    pub(crate) fn forget(&self, seconds: &Seconds) {
        self.seen.lock().forgotten.join(seconds);
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
        seen.shrink(self.capacity, now);
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

    /// Forgets whole seconds until no more than so many nonces are left: first what lies further
    /// ahead than anybody may sign, for the clock was wrong then; and then the oldest.
    fn shrink(&mut self, capacity: usize, now: Timestamp) {
        let ahead = now.after(SKEW).as_seconds();
        while self.count > capacity {
            let is_ahead = self.by_second.last_key_value().is_some_and(|(last, _)| *last > ahead);
            let popped =
                if is_ahead { self.by_second.pop_last() } else { self.by_second.pop_first() };
            let Some((second, prints)) = popped else { return };
            self.count -= prints.len();
            self.forgotten.add(second, second);
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
///
/// What retention has deleted is not there to be searched: the newest deletion's record tells which
/// seconds its requests were signed for, and those of the deletions before it.
pub(crate) fn recall(
    audit: &dyn AuditSink,
    now: Timestamp,
    limit: usize,
) -> std::io::Result<(Nonces, i64)> {
    let from = before(now.min(usual_time(audit)?.unwrap_or(now)), 2 * SKEW);
    let mut nonces = audit.nonces(from, limit)?;
    let mut others_until = from.after(SKEW);
    if let Some(first) = first_behind_deletions(audit)? {
        if let Some(until) = time_of(&first) {
            others_until = others_until.max(until.after(SKEW).min(before(now, SKEW)));
        }
        if let Some(told) = audit.query(&Told::query())?.records.first().and_then(Told::read) {
            nonces.lost.join(&told.at_start(from, now));
        }
    }
    Ok((nonces, others_until.as_seconds()))
}

fn before(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(time.as_millis().saturating_sub(by))
}

fn time_of(record: &serde_json::Value) -> Option<Timestamp> {
    Timestamp::parse(record["time"].as_str()?).ok()
}

/// The first record that was not deleted, if any was.
fn first_behind_deletions(audit: &dyn AuditSink) -> std::io::Result<Option<serde_json::Value>> {
    let first = audit.query(&Query { limit: 1, ..Query::default() })?.records;
    Ok(first.into_iter().next().filter(|record| record["seq"] != 1))
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
    use lastkey_crypto::KeyMaterial;

    use super::*;
    use crate::{ManualClock, audit::AuditLog};

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

    /// They cannot be asked for now, and whoever asks now is not to make room for them.
    #[test]
    fn a_table_full_of_what_a_wrong_clock_showed_admits_who_asks_now() {
        let far = 2_000_000_000;
        let print = |n: i64| NoncePrint::of("id", &n.to_string());
        for at_start in [false, true] {
            let clock = ManualClock::at(at(far));
            let table = NonceTable::with_capacity(10);
            for n in 0..10 {
                if at_start {
                    table.remember(print(n), far + n, at(10_000));
                } else {
                    assert_eq!(table.admit(print(n), at(far + n), &clock), Ok(()));
                }
            }
            clock.jump_to(at(10_000));
            for n in 100..108 {
                assert_eq!(table.admit(print(n), at(10_000), &clock), Ok(()), "{n}");
                assert_eq!(table.admit(print(n), at(10_000), &clock), Err(NonceRefusal::Replayed));
            }
            clock.jump_to(at(far));
            for n in 0..10 {
                assert!(table.admit(print(n), at(far + n), &clock).is_err(), "{n}");
            }
            assert_eq!(table.admit(print(200), at(far + 10), &clock), Ok(()));
        }
    }

    fn append(log: &AuditLog, body: String) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    }

    fn open(place: &tempfile::TempDir) -> AuditLog {
        let (audit, journal) = (place.path().join("audit"), place.path().join("journal"));
        AuditLog::open(&audit, &journal, KeyMaterial::from_slice(&[5; 32])).unwrap()
    }

    /// Requests of each of these seconds, all recorded at one time.
    fn ask(log: &AuditLog, time: i64, seconds: std::ops::Range<i64>) {
        for n in seconds {
            let time = at(time);
            append(
                log,
                format!(r#""time":"{time}","nonce":"{n:016x}","signed":{n},"outcome":"ok""#),
            );
        }
    }

    fn deleted(log: &AuditLog, time: i64, fields: &str) {
        let time = at(time);
        append(log, format!(r#""time":"{time}","action":"DeleteAudit"{fields},"outcome":"ok""#));
    }

    #[test]
    fn of_more_than_can_be_remembered_the_seconds_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let log = open(&place);
        let now = 1_000_000;
        ask(&log, now, now..now + 10);
        // The clock was ahead, and the newest records are of that time.
        let far = 2_000_000_000;
        ask(&log, far, far..far + 1);
        deleted(&log, far, r#","signed_for":"7..8""#);
        ask(&log, far, far + 1..far + 3);
        let seconds = |limit| {
            let (nonces, others_until) = recall(&log, at(now), limit).unwrap();
            assert_eq!(others_until, now - 900);
            (nonces.seen.len(), nonces.lost.to_string())
        };
        // A deletion's record takes no place of theirs.
        assert_eq!(seconds(14), (13, String::new()));
        let (all, before) = (format!("{now}..{}", now + 9), format!("{now}..{}", now + 8));
        assert_eq!(seconds(3), (3, all.clone()));
        assert_eq!(seconds(2), (2, format!("{all} {far}..{far}")));
        assert_eq!(seconds(4), (4, before));
    }

    #[test]
    fn the_newest_deletion_tells_what_was_lost_however_long_ago_it_was() {
        let place = tempfile::tempdir().unwrap();
        let now = 1_000_000;
        let log = open(&place);
        ask(&log, now, now..now + 1);
        log.close();
        drop(log);
        let gone = place.path().join("audit/segment-00000000000000000001.jsonl");
        std::fs::remove_file(gone).unwrap();
        // A start goes on with a new segment.
        let log = open(&place);
        ask(&log, now - 10_000, 0..1);
        let lost = |now| recall(&log, at(now), 10).unwrap().0.lost.to_string();
        assert_eq!(lost(now), "");
        deleted(&log, now, r#","signed_for":"3..4 2000000000..2000000007","signed_until":4"#);
        for later in [0, 3_600, 864_000, 2_000_000_000 - now, -3_600] {
            assert_eq!(lost(now + later), "3..4 2000000000..2000000007", "{later}");
        }
        deleted(&log, now, r#","signed_until":1000100"#);
        assert_eq!(lost(now), format!("{}..1000100", i64::MIN));
        deleted(&log, now, r#","signed_for":"3..4""#);
        assert_eq!(lost(now), "3..4");
        // What a caller names does not count.
        let time = at(now);
        append(
            &log,
            format!(
                r#""time":"{time}","action":"unknown","target":"\"action\":\"DeleteAudit\",\"signed_for\":\"1..2\"","outcome":"ok""#
            ),
        );
        assert_eq!(lost(now), "3..4");
    }
}
