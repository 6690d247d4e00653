//! A disk that says nothing: it neither does what it is asked nor refuses, as a file system that is
//! frozen, or one behind a network that is gone.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// So long may a disk take for one batch.
const LONGEST: Duration = Duration::from_secs(5);

/// How long a writer has waited for its disk, for others to look at. One waits at a time.
#[derive(Debug)]
pub struct Patience {
    origin: Instant,
    /// When it began to wait, in milliseconds since the origin, and one; 0 while it does not.
    asked: AtomicU64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { origin: Instant::now(), asked: AtomicU64::new(0) }
    }
}

impl Patience {
    /// The disk is asked for something now.
    pub fn begin(&self) -> Instant {
        let now = Instant::now();
        self.asked.store(self.millis(now) + 1, Ordering::Relaxed);
        now
    }

    /// It answered.
    pub fn end(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Whether it takes longer than a disk that works.
    pub fn is_over(&self) -> bool {
        self.is_over_at(Instant::now())
    }

    fn is_over_at(&self, now: Instant) -> bool {
        match self.asked.load(Ordering::Relaxed) {
            0 => false,
            asked => u128::from(self.millis(now).saturating_sub(asked - 1)) > LONGEST.as_millis(),
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_millis())
            .unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_still_waits_can_wait_too_long() {
        let patience = Patience::default();
        let later = |now: Instant, millis| now + Duration::from_millis(millis);
        assert!(!patience.is_over_at(later(patience.origin, 60_000)), "nothing was asked");
        let began = patience.begin();
        assert!(!patience.is_over());
        assert!(!patience.is_over_at(later(began, 4_999)));
        assert!(patience.is_over_at(later(began, 5_002)));
        patience.end();
        assert!(!patience.is_over_at(later(began, 60_000)));
    }
}
