//! One connection: HTTP/1.1 or HTTP/2, watched for idleness.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::{
    rt::{Read, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::{exchange::Peer, limits::Limits, service::Service};

/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 128;
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PONG_WITHIN: Duration = Duration::from_secs(20);

/// Serves a connection until it ends, idles, or the server stops.
pub(crate) async fn serve<I>(service: Arc<Service>, io: I, peer: Peer, is_http2: bool)
where
    I: Read + Write + Unpin + Send + 'static,
{
    service.metrics.connected();
    let pulse = Arc::new(Pulse::new());
    let (peer, limits) = (Arc::new(peer), service.limits.clone());
    let mut stopping = service.stopping.clone();
    let answer = {
        let (service, pulse) = (Arc::clone(&service), Arc::clone(&pulse));
        service_fn(move |request| {
            let (service, peer) = (Arc::clone(&service), Arc::clone(&peer));
            let beat = pulse.begin();
            async move {
                let response = service.answer(&peer, request).await;
                drop(beat);
                Ok::<_, Infallible>(response)
            }
        })
    };
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            let mut looks = tokio::time::interval(look_every(&limits));
            let (mut closing, mut stop_seen) = (false, false);
            loop {
                tokio::select! {
                    // Errors are the peer's: it went away, or did not speak HTTP.
                    _ = connection.as_mut() => break,
                    () = stopping.wait(), if !stop_seen => {
                        stop_seen = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    _ = looks.tick() => match (pulse.is_idle(&limits), closing) {
                        (false, _) => {}
                        (true, false) => {
                            closing = true;
                            connection.as_mut().graceful_shutdown();
                        }
                        // It did not go when it was asked to.
                        (true, true) => break,
                    },
                }
            }
        }};
    }
    if is_http2 {
        drive!(http2_builder(&limits).serve_connection(io, answer));
    } else {
        drive!(http1_builder(&limits).serve_connection(io, answer));
    }
    service.metrics.disconnected();
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.headers)
        .max_buf_size(limits.head.max(8192))
        // Nobody reads on while a request is worked on: that would take a second buffer each time,
        // only to learn a little earlier that the client has gone.
        .half_close(true)
        // Idleness and slow heads are the pulse's business, without a timer for each request.
        .header_read_timeout(None);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PONG_WITHIN);
    builder
}

/// Often enough to be a quarter late at most.
fn look_every(limits: &Limits) -> Duration {
    (limits.first_request.min(limits.idle) / 4).max(Duration::from_millis(10))
}

/// When a connection's last request began or ended. A head that never ends is no request, so who
/// sends one byte a minute is idle all the same; so is who does not read an answer.
struct Pulse {
    opened: Instant,
    in_flight: AtomicU32,
    served: AtomicBool,
    /// Milliseconds since `opened`.
    last: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            in_flight: AtomicU32::new(0),
            served: AtomicBool::new(false),
            last: AtomicU64::new(0),
        }
    }

    fn begin(self: &Arc<Self>) -> Beat {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        Beat(Arc::clone(self))
    }

    fn is_idle(&self, limits: &Limits) -> bool {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let served = self.served.load(Ordering::Relaxed);
        let limit = if served { limits.idle } else { limits.first_request };
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(last) > limit
    }
}

/// A request under way.
struct Beat(Arc<Pulse>);

impl Drop for Beat {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(since, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_a_connection_awake() {
        let limits = Limits {
            first_request: Duration::from_millis(1),
            idle: Duration::from_secs(60),
            ..Limits::default()
        };
        let pulse = Arc::new(Pulse::new());
        std::thread::sleep(Duration::from_millis(5));
        assert!(pulse.is_idle(&limits));
        let beat = pulse.begin();
        assert!(!pulse.is_idle(&limits));
        drop(beat);
        assert!(!pulse.is_idle(&limits));
        assert!(
            pulse.is_idle(&Limits { idle: Duration::ZERO, ..limits }) || {
                std::thread::sleep(Duration::from_millis(5));
                pulse.is_idle(&Limits { idle: Duration::ZERO, ..Limits::default() })
            }
        );
    }
}
