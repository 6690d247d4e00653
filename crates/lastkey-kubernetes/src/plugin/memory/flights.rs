//! Identical requests under way: the first is asked for all of them.

use std::{collections::HashMap, sync::Arc};

use lastkey_crypto::{KeyMaterial, SecretBytes};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Landed, cache::Digest};
use crate::plugin::problem::Problem;

/// The requests under way; as many as there are calls to the server at once.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Digest, watch::Receiver<Option<Landed>>>>);

/// What a request is to do.
pub(super) enum Place<'a> {
    /// Ask the server.
    First(Flight<'a>),
    /// Wait for the one who asks.
    Beside(Seat),
}

/// The one who asks. Whoever waits is told, also if it gives up.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    digest: Digest,
    outcome: watch::Sender<Option<Landed>>,
    landed: bool,
}

/// One who waits.
pub(super) struct Seat(watch::Receiver<Option<Landed>>);

impl Flights {
    pub(super) fn board(&self, digest: Digest) -> Place<'_> {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&digest) {
            return Place::Beside(Seat(flight.clone()));
        }
        let (outcome, seat) = watch::channel(None);
        flights.insert(digest, seat);
        Place::First(Flight { flights: self, digest, outcome, landed: false })
    }
}

impl Flight<'_> {
    /// Tells everybody who waits, and gives the outcome back.
    pub(super) fn land(
        mut self,
        outcome: Result<SecretBytes, Problem>,
    ) -> Result<SecretBytes, Problem> {
        // nobody can board any more: without a seat elsewhere nobody waits
        self.flights.0.lock().remove(&self.digest);
        self.landed = true;
        if self.outcome.receiver_count() == 0 {
            return outcome;
        }
        let (shared, own) = match outcome {
            Ok(opened) => (Ok(Arc::new(KeyMaterial::from_slice(opened.expose()))), Ok(opened)),
            Err(problem) => {
                let problem = Arc::new(problem);
                (Err(Arc::clone(&problem)), Err(Problem::Joined(problem)))
            }
        };
        self.outcome.send_replace(Some(shared));
        own
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // once it has landed, another may be under way
        if !self.landed {
            self.flights.0.lock().remove(&self.digest);
        }
    }
}

impl Seat {
    /// The outcome; `None` if the one who asked gave up.
    pub(super) async fn landed(mut self) -> Option<Landed> {
        let landed = self.0.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(flights: &Flights) -> Flight<'_> {
        match flights.board([1; 32]) {
            Place::First(flight) => flight,
            Place::Beside(_) => panic!("somebody asks already"),
        }
    }

    fn seat(flights: &Flights) -> Seat {
        match flights.board([1; 32]) {
            Place::First(_) => panic!("nobody asks"),
            Place::Beside(seat) => seat,
        }
    }

    #[tokio::test]
    async fn one_asks_for_all() {
        let flights = Flights::default();
        let flight = first(&flights);
        let seats = [seat(&flights), seat(&flights)];
        assert!(matches!(flights.board([2; 32]), Place::First(_)));
        flight.land(Ok(SecretBytes::new(vec![7]))).unwrap();
        for seat in seats {
            assert_eq!(seat.landed().await.unwrap().unwrap().expose(), [7]);
        }
        // the next question is a new one
        let flight = first(&flights);
        let waiting = seat(&flights);
        flight.land(Err(Problem::Deadline)).unwrap_err();
        assert!(matches!(*waiting.landed().await.unwrap().unwrap_err(), Problem::Deadline));
    }

    #[tokio::test]
    async fn who_gives_up_frees_those_who_wait() {
        let flights = Flights::default();
        let flight = first(&flights);
        let waiting = seat(&flights);
        drop(flight);
        assert!(waiting.landed().await.is_none());
        drop(first(&flights));
    }
}
