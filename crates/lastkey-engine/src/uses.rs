//! How often a key was used, counted so that a crash never makes it less.
//!
//! A count in memory is lost in a crash, and a durable write for each use would be the slowest part
//! of it. So uses are counted ahead: the store holds a number that is not reached yet, and before
//! it is, a larger one is made durable. What a crash leaves in the store was never too small, and
//! too large by at most a block; a clean end leaves the exact number.
//!
//! The hot path is one atomic addition. A block is reserved in the background when half of the one
//! before is used, so that nobody waits but the first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The first block that is counted ahead; each next one is four times as large.
const FIRST_BLOCK: u64 = 1 << 12;
const GROWTH: u64 = 4;
/// The largest block.
pub(crate) const LARGEST_BLOCK: u64 = 1 << 20;
const FORMAT: u8 = 1;
/// The same of a version that plugins alone have encrypted under.
const PLUGINS_ALONE: u8 = 2;

/// Where a key version's uses are kept.
pub(crate) fn path_of(version: lastkey_crypto::KeyVersionId) -> String {
    format!("uses/{version}")
}

/// A count of uses, as the store holds it.
///
/// Record (behind the barrier, big-endian): `format 1 ‖ count 8`.
pub(crate) fn encode(count: u64) -> [u8; 9] {
    let mut bytes = [FORMAT; 9];
    bytes[1..].copy_from_slice(&count.to_be_bytes());
    bytes
}

/// Reads a count.
pub(crate) fn decode(bytes: &[u8]) -> Option<u64> {
    let count = bytes.strip_prefix(&[FORMAT])?;
    Some(u64::from_be_bytes(count.try_into().ok()?))
}

/// A version's count: `format 1 ‖ count 8`, or `format 2 ‖ count 8` while plugins alone have
/// encrypted under it. Releases before 0.2 wrote format 1 whoever it was.
pub(crate) fn encode_of(count: u64, direct: bool) -> [u8; 9] {
    let mut bytes = encode(count);
    bytes[0] = if direct { FORMAT } else { PLUGINS_ALONE };
    bytes
}

/// Reads a version's count, and whether others than plugins may have encrypted.
pub(crate) fn decode_of(bytes: &[u8]) -> Option<(u64, bool)> {
    match bytes.strip_prefix(&[PLUGINS_ALONE]) {
        Some(count) => Some((u64::from_be_bytes(count.try_into().ok()?), false)),
        None => decode(bytes).map(|count| (count, count > 0)),
    }
}

/// Whether a use may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// It is counted, durably.
    Ahead,
    /// It is; but more should be reserved soon.
    RunningLow,
    /// It is not durable yet: reserve first.
    Beyond,
}

/// Counts the uses of one key.
#[derive(Debug)]
pub(crate) struct Uses {
    used: AtomicU64,
    /// What the store holds.
    reserved: AtomicU64,
    /// The size of the block in use; the next one may be larger.
    block: AtomicU64,
    /// Whether others than plugins have encrypted, as the store holds it.
    direct: AtomicBool,
    /// Whether nobody may begin to encrypt any more.
    closed: AtomicBool,
    /// Held by who reserves.
    pub(crate) reserving: tokio::sync::Mutex<()>,
}

impl Uses {
    /// Goes on from what the store holds; nothing is reserved beyond it.
    pub(crate) fn from_stored(count: u64) -> Self {
        Self::new(count, count, FIRST_BLOCK / GROWTH)
    }

    /// The same of a version that others than plugins have encrypted under, or may have.
    pub(crate) fn from_stored_of(count: u64, direct: bool) -> Self {
        Self { direct: AtomicBool::new(direct), ..Self::from_stored(count) }
    }

    /// Whether others than plugins have encrypted.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::SeqCst)
    }

    /// The store holds that others than plugins encrypt.
    pub(crate) fn set_direct(&self) {
        self.direct.store(true, Ordering::SeqCst);
    }

    /// Nobody begins to encrypt from now on. Who has begun is seen by [`Uses::is_direct`]: whoever
    /// encrypts notes that first and looks at this afterwards, so that one of the two sees the other.
    pub(crate) fn shut(&self, shut: bool) {
        self.closed.store(shut, Ordering::SeqCst);
    }

    /// Whether nobody may begin to encrypt.
    pub(crate) fn is_shut(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Counts from `used`, where the store holds `reserved` already, in the largest blocks.
    pub(crate) fn in_large_blocks(used: u64, reserved: u64) -> Self {
        Self::new(used, reserved, LARGEST_BLOCK)
    }

    fn new(used: u64, reserved: u64, block: u64) -> Self {
        Self {
            used: AtomicU64::new(used),
            reserved: AtomicU64::new(reserved),
            block: AtomicU64::new(block),
            direct: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            reserving: tokio::sync::Mutex::new(()),
        }
    }

    /// Counts a use.
    pub(crate) fn count(&self) -> Counted {
        let before = self.used.fetch_add(1, Ordering::Relaxed);
        let reserved = self.reserved.load(Ordering::Acquire);
        if before >= reserved {
            return Counted::Beyond;
        }
        // Told once for each block: nobody else gets this number.
        let half = self.block.load(Ordering::Relaxed) / 2;
        if reserved - before == half.max(1) { Counted::RunningLow } else { Counted::Ahead }
    }

    /// How many uses there were, at least.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What the store holds.
    pub(crate) fn held(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// Whether less than half a block is left.
    pub(crate) fn runs_low(&self) -> bool {
        let left = self.reserved.load(Ordering::Acquire).saturating_sub(self.used());
        left < self.block.load(Ordering::Relaxed) / 2
    }

    /// What the store should hold next.
    pub(crate) fn next(&self) -> u64 {
        let base = self.used().max(self.reserved.load(Ordering::Acquire));
        base.saturating_add(self.next_block())
    }

    fn next_block(&self) -> u64 {
        (self.block.load(Ordering::Relaxed) * GROWTH).min(LARGEST_BLOCK)
    }

    /// The store holds `count` now.
    pub(crate) fn reserved(&self, count: u64) {
        self.reserved.fetch_max(count, Ordering::Release);
        self.block.store(self.next_block(), Ordering::Relaxed);
    }

    /// Ends the counting; what is used from now on is not durable any more.
    pub(crate) fn close(&self) -> u64 {
        self.reserved.store(0, Ordering::Release);
        self.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At every moment, what a crash would leave is not less than what was used.
    #[test]
    fn a_crash_never_undercounts() {
        let mut stored = 0;
        for crash_after in [1, 2, 4_095, 4_096, 4_097, 100_000] {
            let uses = Uses::from_stored(stored);
            let mut answered = 0;
            for _ in 0..crash_after {
                if uses.count() != Counted::Ahead {
                    stored = uses.next();
                    uses.reserved(stored);
                }
                answered += 1;
                assert!(stored >= uses.used(), "{stored} after {answered}");
            }
        }
        assert!(stored <= 108_291 + 6 * LARGEST_BLOCK);
    }

    #[test]
    fn who_is_beyond_is_told_and_nobody_else_twice() {
        let uses = Uses::from_stored(7);
        assert_eq!(uses.count(), Counted::Beyond);
        uses.reserved(uses.next());
        let low = (0..4_000).filter(|_| uses.count() == Counted::RunningLow).count();
        assert_eq!(low, 1);
        assert!(uses.close() >= 4_008);
        assert_eq!(uses.count(), Counted::Beyond);
    }

    /// Who reserves when told that little is left keeps all others from waiting, in each block.
    #[test]
    fn nobody_waits_but_the_first() {
        let uses = Uses::from_stored(0);
        assert_eq!(uses.count(), Counted::Beyond);
        uses.reserved(uses.next());
        let mut reserved = 0;
        for _ in 0..3 * LARGEST_BLOCK {
            match uses.count() {
                Counted::Ahead => {}
                Counted::RunningLow => {
                    assert!(uses.runs_low());
                    uses.reserved(uses.next());
                    reserved += 1;
                }
                Counted::Beyond => panic!("beyond after {reserved}"),
            }
        }
        assert!((6..10).contains(&reserved), "{reserved}");
    }

    #[test]
    fn counts_come_back() {
        for count in [0, 1, 1 << 40, u64::MAX] {
            assert_eq!(decode(&encode(count)), Some(count));
        }
        assert_eq!(decode(&[1; 8]), None);
        assert_eq!(decode(&[2; 9]), None);
        for (count, direct) in [(0, false), (7, false), (7, true), (u64::MAX, true)] {
            assert_eq!(decode_of(&encode_of(count, direct)), Some((count, direct)));
        }
        // Releases that did not tell: whoever used it.
        assert_eq!(decode_of(&encode(7)), Some((7, true)));
        assert_eq!(decode_of(&encode(0)), Some((0, false)));
        for odd in [&[2; 8][..], &[3; 9], &[]] {
            assert_eq!(decode_of(odd), None);
        }
    }
}
