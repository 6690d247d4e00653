//! When connections are accepted: not before there is something to answer, and no longer once the
//! process is to end or another one goes on.
//!
//! A connection that nobody accepted waits in the kernel, where a successor finds it; one that was
//! accepted is always served.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Shut,
    Open,
    Closed,
}

/// The door of a plugin's sockets: shut at first, then open, then closed for good.
#[derive(Debug, Clone)]
pub struct Door(Arc<watch::Sender<State>>);

/// What an acceptor sees of it.
#[derive(Debug)]
pub(super) struct Threshold(watch::Receiver<State>);

impl Default for Door {
    fn default() -> Self {
        Self(Arc::new(watch::channel(State::Shut).0))
    }
}

impl Door {
    /// Accepts from now on, unless it was closed.
    pub fn open(&self) {
        self.advance(State::Open);
    }

    /// Accepts nothing any more.
    pub fn close(&self) {
        self.advance(State::Closed);
    }

    fn advance(&self, to: State) {
        self.0.send_if_modified(|state| {
            let changes = *state < to;
            *state = to.max(*state);
            changes
        });
    }

    pub(super) fn threshold(&self) -> Threshold {
        Threshold(self.0.subscribe())
    }
}

impl Threshold {
    /// Waits until it opens; false if it never will.
    pub(super) async fn opened(&mut self) -> bool {
        match self.0.wait_for(|state| *state != State::Shut).await {
            Ok(state) => *state == State::Open,
            Err(_) => false,
        }
    }

    /// Waits until it closes.
    pub(super) async fn closed(&mut self) {
        // an error means that nobody is left to close it
        let _ = self.0.wait_for(|state| *state == State::Closed).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn once_closed_it_stays_closed() {
        let door = Door::default();
        let mut early = door.threshold();
        door.open();
        assert!(early.opened().await);
        door.close();
        early.closed().await;
        door.open();
        assert!(!door.threshold().opened().await);
    }
}
