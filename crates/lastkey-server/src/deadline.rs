//! A time limit on a request's work that costs no timer where none is needed.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

/// Does `work`, or gives up after `limit` and answers `None`.
///
/// A timer is a lock and a place in a wheel, twice for each request. An HTTP/1 connection polls
/// the request it works on whenever it looks after itself, which it does every few seconds
/// (`listener/connection.rs`), so with `is_polled` the clock is read then, and the limit is kept
/// to that precision. The streams of HTTP/2 are tasks of their own and get a timer.
pub(crate) async fn within<F: Future>(
    limit: Duration,
    is_polled: bool,
    work: F,
) -> Option<F::Output> {
    if !is_polled {
        return tokio::time::timeout(limit, work).await.ok();
    }
    let began = Instant::now();
    let mut work = pin!(work);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if began.elapsed() > limit => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_ends_by_itself_or_by_the_limit() {
        for is_polled in [true, false] {
            let done = within(Duration::from_secs(60), is_polled, async { 7 }).await;
            assert_eq!(done, Some(7));
            // Polled again after the limit, as a connection does.
            let never = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let done: Option<()> = within(Duration::from_millis(20), is_polled, never).await;
            assert_eq!(done, None);
        }
    }
}
