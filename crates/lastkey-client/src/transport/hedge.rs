//! Calls that do no harm when they are made twice, and must not wait for a server that is dead.
//!
//! 1. The server that answered last is asked.
//! 2. The next is asked as well as soon as that one fails, or after [`HEDGE`] without an answer: a
//!    host that drops packets, or an open connection to a host that is gone, says nothing at all.
//! 3. After [`SPARE`] the first is asked once more over a connection of its own: the network in
//!    between may have forgotten the old one.
//! 4. The first answer counts, and its server is asked first from then on. What answers nonsense has
//!    not answered.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::HeaderMap;
use tokio::time::{Instant, sleep_until};

use super::{Call, Transport, Way};
use crate::{Error, api::Reply};

/// How long a server has before another is asked as well: many times what an answer takes.
pub(super) const HEDGE: Duration = Duration::from_millis(300);
/// How long the first server has before it is asked over another connection.
pub(super) const SPARE: Duration = Duration::from_millis(1000);

/// One more attempt, and how long after the one before.
struct Attempt {
    server: usize,
    way: Way,
    after: Duration,
}

/// Sends the call to one server after the other, until one answers.
pub(super) async fn send(
    transport: &Transport,
    call: &Call,
    headers: impl Fn(&Call, &str) -> HeaderMap,
) -> Result<Reply, Error> {
    let servers = &transport.servers;
    let first = transport.preferred.load(Ordering::Relaxed) % servers.len();
    let (mut plan, deadline) = (plan(first, servers.len()), Instant::now() + call.timeout);
    let (mut under_way, mut failed) = (FuturesUnordered::new(), None);
    let (mut due, mut may_repeat) = (Instant::now(), true);
    loop {
        let idle = under_way.is_empty();
        if (idle || Instant::now() >= due)
            && let Some(Attempt { server, way, .. }) = plan.pop_front()
        {
            let headers = headers(call, &servers[server].endpoint.authority());
            under_way
                .push(async move { (server, way, servers[server].send(call, headers, way).await) });
            due = Instant::now() + plan.front().map_or(call.timeout, |next| next.after);
        } else if idle {
            let server = servers[first].endpoint.to_string();
            return Err(failed.unwrap_or(Error::Timeout { server, after: call.timeout }));
        }
        tokio::select! {
            Some((server, way, outcome)) = under_way.next() => match outcome.and_then(sensible) {
                Ok(reply) => {
                    transport.preferred.store(server, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(error) => {
                    // a connection that had been idle for long may break under the first call
                    if matches!(error, Error::Broken { .. }) && std::mem::take(&mut may_repeat) {
                        plan.push_front(Attempt { server, way, after: Duration::ZERO });
                    }
                    failed = Some(more_telling(failed, error));
                    due = Instant::now();
                }
            },
            () = sleep_until(due), if !plan.is_empty() => {}
            () = sleep_until(deadline) => {
                // whoever said nothing is not asked first any more
                transport.preferred.store((first + 1) % servers.len(), Ordering::Relaxed);
                let server = servers[first].endpoint.to_string();
                return Err(failed.unwrap_or(Error::Timeout { server, after: call.timeout }));
            }
        }
    }
}

fn plan(first: usize, servers: usize) -> VecDeque<Attempt> {
    let each = (0..servers).map(|turn| Attempt {
        server: (first + turn) % servers,
        way: Way::Usual,
        after: HEDGE,
    });
    let spare = Attempt { server: first, way: Way::Spare, after: SPARE };
    each.chain([spare]).collect()
}

/// Every answer to such a call is a JSON object.
fn sensible(reply: Reply) -> Result<Reply, Error> {
    match reply.body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(reply),
        _ => Err(reply.garbage("it is not a JSON object")),
    }
}

/// Of two failures the one that says more about what is wrong.
fn more_telling(known: Option<Error>, new: Error) -> Error {
    let rank = |error: &Error| match error {
        // sealed, stopping: a server of ours that says why
        Error::Api(_) => 4,
        Error::Garbage { .. } => 3,
        Error::Tls { .. } => 2,
        Error::Broken { .. } | Error::Timeout { .. } => 1,
        Error::Unreachable { .. } => 0,
    };
    match known {
        Some(known) if rank(&known) >= rank(&new) => known,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_is_asked_and_the_first_once_more() {
        let order = |first, servers| -> Vec<_> {
            plan(first, servers).into_iter().map(|it| (it.server, it.way == Way::Spare)).collect()
        };
        assert_eq!(order(0, 1), [(0, false), (0, true)]);
        assert_eq!(order(2, 3), [(2, false), (0, false), (1, false), (2, true)]);
    }
}
