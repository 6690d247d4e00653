//! A wall clock that jumps must not destroy anything.
//!
//! Destruction needs, besides its date, a day of running time since the last jump of the wall
//! clock. Running time is counted while the process runs and carried over a short restart; a long
//! stop counts as a jump, for nobody watched the clock meanwhile.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Clock, Timestamp};

/// Wall and running time may drift apart by this much between two looks.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// A stop shorter than this carries the calm over.
const SHORT_STOP: Duration = Duration::from_secs(60 * 60);
/// This much calm allows what cannot be undone.
const CALM: Duration = Duration::from_secs(24 * 60 * 60);

/// What is kept over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    wall: Timestamp,
    calm_seconds: u64,
}

/// Watches the wall clock against running time.
#[derive(Debug)]
pub(crate) struct TimeGuard {
    wall: Timestamp,
    running: Duration,
    calm: Duration,
    jumped: bool,
}

impl TimeGuard {
    /// Begins to watch, from what was kept of the time before.
    pub(crate) fn new(clock: &dyn Clock, kept: Option<Kept>) -> Self {
        let wall = clock.now();
        let calm = kept
            .filter(|kept| kept.wall <= wall && wall.since(kept.wall) < SHORT_STOP)
            .map_or(Duration::ZERO, |kept| Duration::from_secs(kept.calm_seconds));
        // It stood later when it was last looked at: it was wrong then, or is now.
        let jumped = kept.is_some_and(|kept| kept.wall.since(wall) > TOLERANCE);
        Self { wall, running: clock.running(), calm, jumped }
    }

    /// Looks at the clocks.
    pub(crate) fn look(&mut self, clock: &dyn Clock) {
        let (wall, running) = (clock.now(), clock.running());
        let ran = running.saturating_sub(self.running);
        let showed = wall.since(self.wall);
        let went_back = wall < self.wall;
        if went_back || showed.abs_diff(ran) > TOLERANCE {
            tracing::warn!(from = %self.wall, to = %wall, "the wall clock jumped; what it makes due waits for a day");
            self.calm = Duration::ZERO;
            self.jumped = true;
        } else {
            self.calm += ran;
        }
        (self.wall, self.running) = (wall, running);
    }

    /// Whether the wall clock can be trusted with what cannot be undone.
    pub(crate) fn may_destroy(&self) -> bool {
        self.calm >= CALM
    }

    /// Whether the wall clock can be trusted with rotations: unless it jumped under our eyes.
    pub(crate) fn may_rotate(&self) -> bool {
        !self.jumped || self.calm >= CALM
    }

    /// What to keep over a restart.
    pub(crate) fn keep(&self) -> Kept {
        Kept { wall: self.wall, calm_seconds: self.calm.as_secs() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;

    fn hours(count: u64) -> Duration {
        Duration::from_secs(3600 * count)
    }

    #[test]
    fn a_jump_starts_the_day_anew() {
        let clock = ManualClock::at(Timestamp::from_millis(0));
        let mut guard = TimeGuard::new(&clock, None);
        clock.advance(hours(24));
        guard.look(&clock);
        assert!(guard.may_destroy());

        clock.jump_to(Timestamp::from_millis(0).after(hours(24 * 400)));
        guard.look(&clock);
        assert!(!guard.may_destroy() && !guard.may_rotate());
        clock.advance(hours(25));
        guard.look(&clock);
        assert!(guard.may_destroy() && guard.may_rotate());
    }

    #[test]
    fn a_short_stop_carries_calm_over_a_long_one_does_not() {
        let clock = ManualClock::at(Timestamp::from_millis(0));
        let mut guard = TimeGuard::new(&clock, None);
        clock.advance(hours(24));
        guard.look(&clock);
        let kept = guard.keep();
        clock.advance(Duration::from_secs(60));
        assert!(TimeGuard::new(&clock, Some(kept)).may_destroy());
        clock.advance(hours(2));
        let after_long = TimeGuard::new(&clock, Some(kept));
        assert!(!after_long.may_destroy() && after_long.may_rotate());
    }
}
