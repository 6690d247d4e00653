//! Calls that do no harm when they are made twice, and must not wait for a server that is dead.
//!
//! 1. The server that answered last is asked.
//! 2. The next is asked as well as soon as that one fails, or after [`HEDGE`] without an answer: a
//!    host that drops packets, or an open connection to a host that is gone, says nothing at all.
//! 3. After [`SPARE`] the first is asked once more over a connection of its own: the network in
//!    between may have forgotten the old one.
//! 4. The first answer counts, and its server is asked first from then on. What answers nonsense has
//!    not answered, and nor has what is overloaded or at fault (408, 429, 5xx): its refusal counts
//!    only where nobody else does better.

use std::{
    collections::VecDeque,
    future::{Future, ready},
    pin::Pin,
    sync::atomic::Ordering,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::HeaderMap;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Call, Read, Transport, Way};
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

/// An attempt under way, and what it ends with.
type UnderWay<'a> = Pin<Box<dyn Future<Output = Ended> + Send + 'a>>;
type Ended = (usize, Way, Result<Reply, Error>);

/// One call.
struct Hedged<'a, H> {
    transport: &'a Transport,
    call: &'a Call,
    headers: H,
    first: usize,
    deadline: Instant,
}

/// What one attempt was worth.
enum Worth {
    /// The server answered, be it with a refusal of the call.
    Answer(Result<(), Error>),
    Failure(Error),
}

/// Sends the call to one server after the other, until one answers.
pub(super) async fn send(
    transport: &Transport,
    (call, headers): (&Call, impl Fn(&Call, &str) -> HeaderMap + Send + Sync),
    read: Read<'_>,
) -> Result<(), Error> {
    let count = transport.servers.len();
    let first = transport.preferred.load(Ordering::Relaxed) % count;
    let now = Instant::now();
    let hedged = Hedged { transport, call, headers, first, deadline: now + call.timeout };
    // Nearly always the first answers, which takes one timer, and nothing of what is below.
    let mut usual = hedged.ask(first, Way::Usual);
    let alone = if count > 1 { HEDGE } else { SPARE };
    let due = now + alone;
    match timeout_at(due.min(hedged.deadline), &mut usual).await {
        Ok((_, _, outcome)) => match worth(outcome, read) {
            Worth::Answer(answer) => {
                transport.preferred.store(first, Ordering::Relaxed);
                answer
            }
            Worth::Failure(error) if count == 1 && has_said_enough(&error) => Err(error),
            // On the heap, so that a call that needs none of it does not carry it about.
            Worth::Failure(error) => {
                let ended = Box::pin(ready((first, Way::Usual, Err(error))));
                Box::pin(hedged.go_on((ended, hedged.deadline), read)).await
            }
        },
        Err(_) => Box::pin(hedged.go_on((usual, due), read)).await,
    }
}

impl<H: Fn(&Call, &str) -> HeaderMap + Send + Sync> Hedged<'_, H> {
    fn ask(&self, server: usize, way: Way) -> UnderWay<'_> {
        let asked = &self.transport.servers[server];
        let headers = (self.headers)(self.call, asked.authority.as_str());
        let answer = asked.ask((self.call, headers), way);
        Box::pin(async move { (server, way, answer.await) })
    }

    /// Goes on after the first attempt has ended without an answer, or while it is under way; the
    /// next one begins when it is due, or as soon as one has failed.
    async fn go_on(
        &self,
        (begun, mut due): (UnderWay<'_>, Instant),
        read: Read<'_>,
    ) -> Result<(), Error> {
        let Self { transport, call, first, mut deadline, .. } = *self;
        let servers = &transport.servers;
        let mut plan = plan(first, servers.len());
        plan.pop_front();
        let (mut under_way, mut failed) = (FuturesUnordered::from_iter([begun]), None);
        let mut may_repeat = true;
        loop {
            let idle = under_way.is_empty();
            if (idle || Instant::now() >= due)
                && let Some(Attempt { server, way, .. }) = plan.pop_front()
            {
                under_way.push(self.ask(server, way));
                due = Instant::now() + plan.front().map_or(call.timeout, |next| next.after);
            } else if idle {
                return Err(failed.unwrap_or_else(|| servers[first].silent(call.timeout)));
            }
            tokio::select! {
                Some((server, way, outcome)) = under_way.next() => match worth(outcome, read) {
                    Worth::Answer(answer) => {
                        transport.preferred.store(server, Ordering::Relaxed);
                        return answer;
                    }
                    Worth::Failure(error) => {
                        if server == first && matches!(error, Error::Garbage { .. }) {
                            transport.turn_from(first);
                        }
                        if has_said_enough(&error) {
                            // others have so long to do better
                            deadline = deadline.min(Instant::now() + SPARE);
                            plan.retain(|next| next.server != server);
                        }
                        // a connection that had been idle for long may break under the first call
                        if matches!(error, Error::Broken { .. }) && std::mem::take(&mut may_repeat)
                        {
                            plan.push_front(Attempt { server, way, after: Duration::ZERO });
                        }
                        failed = Some(more_telling(failed, error));
                        due = Instant::now();
                    }
                },
                () = sleep_until(due), if !plan.is_empty() => {}
                () = sleep_until(deadline) => {
                    // whoever said nothing is not asked first any more
                    transport.turn_from(first);
                    return Err(failed.unwrap_or_else(|| servers[first].silent(call.timeout)));
                }
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

fn worth(outcome: Result<Reply, Error>, read: Read<'_>) -> Worth {
    match outcome.map(read) {
        Err(error) | Ok(Err(error @ Error::Garbage { .. })) => Worth::Failure(error),
        Ok(Err(error)) if is_at_fault(&error) => Worth::Failure(error),
        Ok(answer) => Worth::Answer(answer),
    }
}

/// Whether the refusal is about the server and not about the call.
fn is_at_fault(error: &Error) -> bool {
    error.api().is_some_and(|said| {
        matches!(said.status.as_u16(), 408 | 429) || said.status.is_server_error()
    })
}

/// Whether another connection to the same server would change nothing; one that stops may have a
/// successor there.
fn has_said_enough(error: &Error) -> bool {
    is_at_fault(error)
        && error.api().is_some_and(|said| !matches!(said.status.as_u16(), 408 | 503 | 504))
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
