//! The two doors: TCP with TLS, and the admin socket.
//!
//! Every connection is one task, and all of them are bounded in number and time. A connection
//! that no room is left for is closed at once; one that has done nothing for long is closed too.

pub(crate) mod admin;
mod connection;
pub(crate) mod tcp;

pub(crate) use connection::serve;

use std::{io, time::Duration};

use tokio::task::JoinSet;

/// After a failure to accept that is not the connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

async fn pause_after(error: &io::Error) {
    if is_ours(error) {
        tracing::warn!(%error, "connections cannot be accepted at the moment");
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
