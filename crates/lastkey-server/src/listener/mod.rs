//! The two doors: TCP with TLS, and the admin socket.
//!
//! Every connection is one task. [`doorman`] bounds their number, and says who leaves when there
//! is no room; [`connection`] closes those that idle or stall; [`pace`] sees what passes between
//! socket and protocol, and [`piece`] what has not passed yet; [`pulse`] is what they all look at;
//! [`roused`] leaves alone what has nothing to say.

pub(crate) mod admin;
mod connection;
pub(crate) mod doorman;
mod pace;
mod piece;
mod pulse;
mod roused;
pub(crate) mod tcp;

pub(crate) use connection::serve;

use std::{
    fs::File,
    future::Future,
    io,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio::task::JoinSet;

use crate::service::Service;

/// After a failure to accept that is not the connection's own, such as too little memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failures to accept are told of this often, however many there are.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Whether a failed accept says something about us rather than about the one who connected.
fn is_ours(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Whether the process, or the system, has no descriptors left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE))
}

/// What an accept loop needs when accepting fails.
#[derive(Debug)]
struct Door {
    /// A descriptor in reserve: given up, it lets one connection be accepted and closed, so that
    /// its client learns something, and we do not try for ever.
    reserve: Option<File>,
    warned: Option<Instant>,
}

impl Default for Door {
    fn default() -> Self {
        Self { reserve: reserve(), warned: None }
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Door {
    /// Accepting failed: makes room where descriptors are missing, and waits a little, so that
    /// this never becomes a loop without an end.
    async fn failed<T, F: Future<Output = io::Result<T>>>(
        &mut self,
        error: &io::Error,
        service: &Service,
        accept: impl FnOnce() -> F,
    ) {
        if !is_ours(error) {
            return;
        }
        if self.warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(%error, "connections cannot be accepted at the moment");
        }
        if is_out_of_descriptors(error) {
            service.doorman.make_way(&service.metrics);
            self.reserve = None;
            // Accepted, and closed at once.
            if let Ok(Ok(turned_away)) = tokio::time::timeout(ACCEPT_PAUSE, accept()).await {
                drop(turned_away);
                service.metrics.shed("descriptors");
            }
            self.reserve = reserve();
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Forgets connections that have ended.
fn reap(connections: &mut JoinSet<()>) {
    while let Some(ended) = connections.try_join_next() {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!("a connection's task panicked");
        }
    }
}

/// Lets connections end by themselves for `drain`, then ends them.
async fn drain(mut connections: JoinSet<()>, drain: Duration) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, all).await.is_err() {
        tracing::warn!(left = connections.len(), "connections were cut off at the end");
    }
    connections.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_fault_a_failed_accept_is() {
        let of = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_ours(&of(Errno::MFILE)) && is_out_of_descriptors(&of(Errno::MFILE)));
        assert!(is_ours(&of(Errno::NOMEM)) && !is_out_of_descriptors(&of(Errno::NOMEM)));
        assert!(!is_ours(&of(Errno::CONNABORTED)));
    }
}
