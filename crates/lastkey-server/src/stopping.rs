//! The server's wish to stop, as everything that waits hears of it.

use tokio::sync::watch;

/// Says that the server stops.
pub(crate) struct Stop(watch::Sender<bool>);

/// Hears that the server stops.
#[derive(Clone, Debug)]
pub(crate) struct Stopping(watch::Receiver<bool>);

/// Both ends.
pub(crate) fn stop() -> (Stop, Stopping) {
    let (sender, receiver) = watch::channel(false);
    (Stop(sender), Stopping(receiver))
}

impl Stop {
    pub(crate) fn now(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    /// Resolves once the server stops, or is gone.
    pub(crate) async fn wait(&mut self) {
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }

    /// Whether the server stops.
    pub(crate) fn is_now(&self) -> bool {
        *self.0.borrow()
    }
}
