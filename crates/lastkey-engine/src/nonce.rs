//! Request nonces: a signed request is admitted once.
//!
//! A nonce has to be remembered for as long as its request's time stamp would be accepted. The
//! table is bounded: when it is full, the oldest seconds are forgotten, and the accepted window
//! shrinks with them, so that what was forgotten is refused for its age instead. After a restart
//! the table is filled from the audit log, which carries the print of every admitted nonce.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{Clock, Timestamp, caller::NoncePrint};

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
    /// Seconds up to this one were forgotten or never known.
    forgotten: i64,
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
        let seen = Seen { forgotten: i64::MIN, ..Seen::default() };
        Self { seen: Mutex::new(seen), capacity }
    }

    /// Remembers a nonce that was admitted before the restart.
    pub(crate) fn remember(&self, print: NoncePrint, signed_second: i64) {
        let mut seen = self.seen.lock();
        seen.insert(print, signed_second);
        seen.shrink(self.capacity);
    }

    /// Refuses whatever was signed for `second` or earlier.
    pub(crate) fn forget_until(&self, second: i64) {
        let mut seen = self.seen.lock();
        seen.forgotten = seen.forgotten.max(second);
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
        if signed.as_seconds() <= seen.forgotten {
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
            self.forgotten = self.forgotten.max(*oldest.key());
            self.count -= oldest.remove().len();
        }
    }

    fn shrink(&mut self, capacity: usize) {
        while self.count > capacity {
            let Some((second, prints)) = self.by_second.pop_first() else { return };
            self.count -= prints.len();
            self.forgotten = self.forgotten.max(second);
        }
    }
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
