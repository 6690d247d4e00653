//! How fast objects are written back: as many a second as was asked for, and nobody while an
//! apiserver has asked to wait.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Where an apiserver does not say how long to wait.
const DEFAULT_REST: Duration = Duration::from_secs(1);
/// It says less than an hour.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Lets calls through.
pub(super) struct Gate {
    next: Mutex<Instant>,
    apart: Duration,
}

impl Gate {
    /// At most `rate` calls a second.
    pub(super) fn new(rate: Option<u32>) -> Self {
        let apart = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
        Self { next: Mutex::new(Instant::now()), apart }
    }

    /// Resolves when it is this call's turn.
    pub(super) async fn turn(&self) {
        let turn = {
            let mut next = self.next.lock();
            let turn = (*next).max(Instant::now());
            *next = turn + self.apart;
            turn
        };
        tokio::time::sleep_until(turn).await;
    }

    /// Nobody passes for so long.
    pub(super) fn rest(&self, asked: Option<Duration>) {
        let rest = asked.unwrap_or(DEFAULT_REST).min(LONGEST_REST);
        let mut next = self.next.lock();
        *next = (*next).max(Instant::now() + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_keep_their_distance_and_rest_together() {
        let (gate, began) = (Gate::new(Some(10)), Instant::now());
        for _ in 0..11 {
            gate.turn().await;
        }
        assert!(began.elapsed() >= Duration::from_secs(1));
        gate.rest(Some(Duration::from_secs(7)));
        gate.turn().await;
        assert!(began.elapsed() >= Duration::from_secs(8));
        let free = Gate::new(None);
        let began = Instant::now();
        for _ in 0..1000 {
            free.turn().await;
        }
        assert!(began.elapsed() < Duration::from_millis(1));
    }
}
