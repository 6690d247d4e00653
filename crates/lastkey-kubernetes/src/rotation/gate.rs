//! How fast objects are written back: as many a second as was asked for, nobody while an apiserver
//! has asked to wait, and fewer at once after it had to ask.

use std::{collections::BTreeSet, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use crate::cluster::ApiError;

/// Where an apiserver does not say how long to wait.
const DEFAULT_REST: Duration = Duration::from_secs(1);
/// It says less than an hour.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// After so many writes in a row without a word, one more is made at once.
const WIDER_AFTER: usize = 50;

/// Lets calls through.
pub(super) struct Gate {
    pace: Mutex<Pace>,
    slots: Semaphore,
    apart: Duration,
    /// Webhooks that were waited for in vain.
    given_up: Mutex<BTreeSet<String>>,
    /// Kinds and namespaces where the account may update.
    allowed: Mutex<BTreeSet<(String, String)>>,
}

struct Pace {
    /// When the next call may go.
    next: Instant,
    /// Nobody goes before.
    rest_until: Instant,
    /// How many may be under way at once, and how many at most.
    width: usize,
    most: usize,
    /// How many of those under way give their slot up when they are back.
    owed: usize,
    /// How many went well since the width changed.
    well: usize,
}

/// One call; over when it is dropped.
pub(super) struct Turn<'a> {
    gate: &'a Gate,
    slot: Option<SemaphorePermit<'a>>,
}

impl Gate {
    /// At most `rate` calls a second, and so many at once.
    pub(super) fn new(rate: Option<u32>, workers: usize) -> Self {
        let apart = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
        let (now, width) = (Instant::now(), workers.max(1));
        let pace = Pace { next: now, rest_until: now, width, most: width, owed: 0, well: 0 };
        let (pace, slots) = (Mutex::new(pace), Semaphore::new(width));
        Self { pace, slots, apart, given_up: Mutex::default(), allowed: Mutex::default() }
    }

    /// Resolves when it is this call's turn.
    pub(super) async fn turn(&self) -> Turn<'_> {
        // It is never closed.
        let slot = self.slots.acquire().await.ok();
        let mut turn = {
            let mut pace = self.pace.lock();
            let turn = pace.next.max(Instant::now());
            pace.next = turn + self.apart;
            turn
        };
        loop {
            tokio::time::sleep_until(turn).await;
            // Somebody may have been asked to wait since.
            let rest = self.pace.lock().rest_until;
            if rest <= turn || rest <= Instant::now() {
                return Turn { gate: self, slot };
            }
            turn = rest;
        }
    }

    /// Nobody passes for so long, and half as many at once from then on.
    pub(super) fn rest(&self, asked: Option<Duration>) {
        let rest = asked.unwrap_or(DEFAULT_REST).min(LONGEST_REST);
        let mut pace = self.pace.lock();
        let now = Instant::now();
        // Those that were under way at the same time say the same.
        if pace.rest_until <= now {
            let fewer = (pace.width / 2).max(1);
            let less = pace.width - fewer;
            pace.owed += less - self.slots.forget_permits(less);
            pace.width = fewer;
        }
        pace.well = 0;
        pace.rest_until = pace.rest_until.max(now + rest);
    }

    /// Whether it is known that the account may update objects of this kind in this namespace.
    pub(super) fn may_update(&self, place: &(String, String)) -> bool {
        self.allowed.lock().contains(place)
    }

    /// It may.
    pub(super) fn is_allowed(&self, place: (String, String)) {
        self.allowed.lock().insert(place);
    }

    /// Whether whoever waits for this once more waits in vain, as far as is known.
    pub(super) fn has_given_up(&self, error: &ApiError) -> bool {
        match error {
            ApiError::WebhookDown { webhook } => self.given_up.lock().contains(webhook),
            _ => false,
        }
    }

    /// Somebody has waited for long enough: nobody else need wait for the same webhook.
    pub(super) fn give_up(&self, error: &ApiError) {
        if let ApiError::WebhookDown { webhook } = error {
            self.given_up.lock().insert(webhook.clone());
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut pace = self.gate.pace.lock();
        if pace.owed > 0 {
            pace.owed -= 1;
            if let Some(slot) = self.slot.take() {
                slot.forget();
            }
            return;
        }
        pace.well += 1;
        if pace.width < pace.most && pace.well >= WIDER_AFTER {
            pace.well = 0;
            pace.width += 1;
            self.gate.slots.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_keep_their_distance_and_rest_together() {
        let (gate, began) = (Gate::new(Some(10), 1), Instant::now());
        for _ in 0..11 {
            gate.turn().await;
        }
        assert!(began.elapsed() >= Duration::from_secs(1));
        gate.rest(Some(Duration::from_secs(7)));
        gate.turn().await;
        assert!(began.elapsed() >= Duration::from_secs(8));
        let free = Gate::new(None, 16);
        let began = Instant::now();
        for _ in 0..1000 {
            free.turn().await;
        }
        assert!(began.elapsed() < Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_its_turn_rests_too() {
        let gate = Gate::new(Some(1), 2);
        drop(gate.turn().await);
        let began = Instant::now();
        let (waited, ()) = tokio::join!(
            async {
                drop(gate.turn().await);
                began.elapsed()
            },
            async { gate.rest(Some(Duration::from_secs(20))) },
        );
        assert!(waited >= Duration::from_secs(20), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_at_once_after_a_rest_and_more_again_later() {
        let gate = Gate::new(None, 16);
        let mut turns = Vec::new();
        for _ in 0..16 {
            turns.push(gate.turn().await);
        }
        // All of them are told to wait; that counts once.
        for turn in turns {
            gate.rest(Some(Duration::from_secs(1)));
            drop(turn);
        }
        assert_eq!((gate.pace.lock().width, gate.slots.available_permits()), (8, 8));
        tokio::time::sleep(Duration::from_secs(2)).await;
        for _ in 0..4 {
            gate.rest(None);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert_eq!((gate.pace.lock().width, gate.slots.available_permits()), (1, 1));
        for _ in 0..15 * WIDER_AFTER {
            drop(gate.turn().await);
        }
        assert_eq!((gate.pace.lock().width, gate.slots.available_permits()), (16, 16));
        drop(gate.turn().await);
        assert_eq!(gate.slots.available_permits(), 16);
    }

    #[test]
    fn one_waits_for_a_webhook_the_others_need_not() {
        let gate = Gate::new(None, 1);
        let down = |name: &str| ApiError::WebhookDown { webhook: name.to_owned() };
        assert!(!gate.has_given_up(&down("a.example.org")));
        gate.give_up(&down("a.example.org"));
        assert!(gate.has_given_up(&down("a.example.org")));
        assert!(!gate.has_given_up(&down("b.example.org")));
        let other = ApiError::Failed { status: 500, reason: String::new() };
        gate.give_up(&other);
        assert!(!gate.has_given_up(&other));
    }
}
