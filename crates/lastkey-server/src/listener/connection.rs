//! One connection: HTTP/1.1 or HTTP/2, watched for idleness, slow peers and the server's end.

use std::{
    convert::Infallible,
    future::pending,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{
    doorman::{Guest, Lane},
    piece::{Hold, Piece},
    pulse::Pulse,
    roused::Roused,
};
use crate::{exchange::Peer, limits::Limits, native, service::Service, stopping::Stopping};

/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 64;
/// Streams that a client began and reset before we looked at them; more, and it is sent away.
const MAX_RESETS: usize = 20;
/// Streams that we reset for a client's mistakes; more, and it is sent away.
const MAX_OWN_RESETS: usize = 64;
/// Bytes that a client may send unasked, on a stream and in all.
const H2_STREAM_WINDOW: u32 = 64 << 10;
const H2_WINDOW: u32 = 1 << 20;
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PONG_WITHIN: Duration = Duration::from_secs(20);
/// How often a connection is looked at once the server stops.
const LOOK_AT_END: Duration = Duration::from_millis(50);
/// Who leaves answers while too many are left has so long to take them.
const STALL_IN_A_CROWD: Duration = Duration::from_secs(1);
/// A request that was on its way when the server began to stop has so long to arrive.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Serves a connection until it ends, idles, stalls, or the server stops.
pub(crate) async fn serve<I>(
    service: Arc<Service>,
    (io, is_http2, stopping): (I, bool, Stopping),
    peer: Peer,
    guest: Guest,
) where
    I: Read + Write + Unpin + Send + 'static,
{
    let _counted = Counted::new(&service);
    let limits = &service.limits;
    let talk = Arc::new(Talk {
        service: Arc::clone(&service),
        peer,
        pulse: Arc::clone(&guest.pulse),
        lane: guest.lane,
        stopping: stopping.clone(),
    });
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            let mut watch = Watch::new(&guest.pulse, limits, is_http2);
            // A connection is polled twice for each request; these look at what is beside it only
            // when that has something to say.
            let mut aside = Roused::new(Box::pin(Aside::new(stopping, limits).next()));
            loop {
                let told = tokio::select! {
                    // What has come is read before anybody says that nothing came.
                    biased;
                    // Errors are the peer's: it went away, or did not speak HTTP.
                    _ = connection.as_mut() => break,
                    told = &mut aside => told,
                };
                watch.stopped = told.stopped;
                watch.is_crowded = service.admission.is_crowded();
                aside.set(Box::pin(told.next()));
                match watch.look(Instant::now()) {
                    Verdict::Stay => {}
                    Verdict::Leave => connection.as_mut().graceful_shutdown(),
                    Verdict::Cut(reason) => {
                        if let Some(reason) = reason {
                            service.metrics.shed(reason);
                        }
                        break;
                    }
                }
            }
        }};
    }
    if is_http2 {
        // Each request is a task of its own there, into which a future of some kilobytes would be
        // moved again and again.
        let answer = service_fn(move |request| Box::pin(answer(Arc::clone(&talk), request)));
        drive!(http2_builder(limits).serve_connection(Gathered(io), answer));
    } else {
        let answer = service_fn(move |request| answer(Arc::clone(&talk), request));
        drive!(http1_builder(limits).serve_connection(io, answer));
    }
}

/// A connection that takes one piece at a time.
///
/// `h2` writes each answer of more than 256 bytes by itself where it may hand over several pieces
/// at once, and up to 1 KiB together with others where it may not: with many requests in flight
/// one system call and one record of TLS for many answers.
struct Gathered<I>(I);

impl<I: Read + Unpin> Read for Gathered<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

/// Says by default that it takes no slices.
impl<I: Write + Unpin> Write for Gathered<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What goes on beside a connection: the time for another look at it, and the server's end.
struct Aside {
    looks: Interval,
    stopping: Stopping,
    /// Since when the server stops.
    stopped: Option<Instant>,
}

impl Aside {
    fn new(stopping: Stopping, limits: &Limits) -> Self {
        Self { looks: looks(look_every(limits)), stopping, stopped: None }
    }

    /// Waits until the connection is to be looked at.
    async fn next(mut self) -> Self {
        tokio::select! {
            () = self.stopping.wait(), if self.stopped.is_none() => {
                self.stopped = Some(Instant::now());
                self.looks = looks(LOOK_AT_END);
            }
            _ = self.looks.tick() => {}
        }
        self
    }
}

/// What the requests of one connection have in common.
struct Talk {
    service: Arc<Service>,
    peer: Peer,
    pulse: Arc<Pulse>,
    lane: Lane,
    stopping: Stopping,
}

/// Answers one request, if there is room for it. Health needs none.
async fn answer(
    talk: Arc<Talk>,
    request: Request<Incoming>,
) -> Result<Response<Full<Piece>>, Infallible> {
    let Talk { service, peer, pulse, lane, stopping } = &*talk;
    let path = request.uri().path();
    let already = (pulse.in_flight() + pulse.owed()) as usize;
    let Some(mut beat) = pulse.begin(native::may_wait(path)) else {
        // The connection was let go just before; its task is about to end.
        return pending().await;
    };
    // What the library does by itself over HTTP/1.1.
    let by_us = request.version() == http::Version::HTTP_2;
    let without_body = by_us && request.method() == http::Method::HEAD;
    let mut is_to_proven = false;
    let mut response = if by_us && request.headers().len() > service.limits.headers {
        let mut response = Response::new(Full::default());
        *response.status_mut() = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        response
    } else if Service::is_health(path) {
        service.answer(peer, request).await.0
    } else if *lane == Lane::Lobby {
        // Who comes back may find a place; who stays here finds none.
        pulse.send_away();
        service.turn_away(path, "lobby")
    } else if !beat.hold_head(head_size(&request), &service.admission.heads) {
        service.turn_away(path, "heads")
    } else if let Some(begun) = service.admission.begin(already) {
        let (response, is_proven) = service.answer(peer, request).await;
        drop(begun);
        is_to_proven = is_proven;
        response
    } else {
        service.turn_away(path, "requests")
    };
    drop(beat);
    if without_body {
        *response.body_mut() = Full::default();
    }
    if stopping.is_now() {
        // Requests that were on their way are answered, and that is that. The library drops this
        // over HTTP/2, which has a frame for it.
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert(http::header::CONNECTION, close);
    }
    Ok(response.map(|body| match body.into_inner() {
        Some(bytes) if by_us => owed(&talk, bytes, is_to_proven),
        bytes => Full::new(Piece::new(bytes.unwrap_or_default(), None)),
    }))
}

/// About as many bytes as a request's head takes.
fn head_size(request: &Request<Incoming>) -> usize {
    let uri = request.uri();
    let address = uri.path().len() + uri.query().map_or(0, str::len);
    let headers = request.headers();
    headers.iter().fold(address, |sum, (name, value)| sum + name.as_str().len() + value.len())
}

/// An answer over HTTP/2, where the peer may take it when it likes: counted until then. To a stranger
/// that leaves too many it goes without its body, so that there is nothing to leave; its status
/// says enough.
fn owed(talk: &Talk, bytes: Bytes, is_to_proven: bool) -> Full<Piece> {
    let Talk { service, pulse, .. } = talk;
    let admission = &service.admission;
    let begun = if is_to_proven {
        Some(admission.untaken_proven())
    } else {
        admission.untaken(pulse.owed() as usize)
    };
    let Some(begun) = begun else {
        service.metrics.shed("untaken");
        return Full::default();
    };
    let pace = service.limits.rate.saturating_mul(service.limits.stall.as_secs().max(1) as usize);
    let hold = Hold { owed: pulse.owe(pace), _begun: begun };
    Full::new(Piece::new(bytes, Some(hold)))
}

/// A connection in the metrics.
struct Counted(Arc<Service>);

impl Counted {
    fn new(service: &Arc<Service>) -> Self {
        service.metrics.connected();
        Self(Arc::clone(service))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.disconnected();
    }
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.headers)
        .max_buf_size(limits.head.max(8192))
        // Nobody reads on while a request is worked on: that would take a second buffer each time.
        // Who waits for something to happen is looked after by `Paced`.
        .half_close(true)
        // Idleness and slow heads are the watch's business, without a timer for each request.
        .header_read_timeout(None);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_OWN_RESETS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PONG_WITHIN);
    builder
}

fn looks(every: Duration) -> tokio::time::Interval {
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Often enough to be a quarter late at most.
fn look_every(limits: &Limits) -> Duration {
    let shortest = [limits.first_request, limits.idle, limits.read_head, limits.stall]
        .into_iter()
        .min()
        .unwrap_or_default();
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    /// It is to end by itself.
    Leave,
    /// It ends now, for this reason of shedding, if it is one.
    Cut(Option<&'static str>),
}

/// Looks at a connection's pulse every now and then.
struct Watch<'a> {
    pulse: &'a Pulse,
    limits: &'a Limits,
    is_http2: bool,
    /// Since when the server stops.
    stopped: Option<Instant>,
    /// Since when it was seen to take nothing, and what it had taken by then.
    blocked: Option<(Instant, u64)>,
    /// Since when there was seen a head that is not whole.
    mid_head: Option<Instant>,
    /// When answers were last told from those before them.
    turned: Option<Instant>,
    /// Too many answers are left, by whoever it is.
    is_crowded: bool,
    leaving: bool,
}

impl<'a> Watch<'a> {
    fn new(pulse: &'a Pulse, limits: &'a Limits, is_http2: bool) -> Self {
        let (stopped, blocked, mid_head, turned) = (None, None, None, None);
        let (is_crowded, leaving) = (false, false);
        Self { pulse, limits, is_http2, stopped, blocked, mid_head, turned, is_crowded, leaving }
    }

    fn look(&mut self, now: Instant) -> Verdict {
        if self.takes_too_slowly(now) || self.leaves_answers(now) {
            return Verdict::Cut(Some("slow_reader"));
        }
        if self.asks_too_slowly(now) {
            return Verdict::Cut(Some("slow_head"));
        }
        let is_owed = self.pulse.owed() > 0;
        let is_busy = self.pulse.in_flight() > 0 || self.blocked.is_some() || is_owed;
        let served = self.pulse.has_served();
        let limit = if served { self.limits.idle } else { self.limits.first_request };
        // Over HTTP/2, a client can be told that this is the end while its requests go on.
        let may_leave = !is_busy || self.is_http2;
        let is_last_call = self.stopped.is_some_and(|since| now - since > LAST_CALL);
        let is_over = is_last_call && may_leave
            || self.is_http2 && self.pulse.is_sent_away()
            || !is_busy && self.pulse.idle() > limit;
        match (is_over, self.leaving) {
            (false, _) => Verdict::Stay,
            (true, false) => {
                self.leaving = true;
                Verdict::Leave
            }
            // It did not go when it was asked to.
            (true, true) if !is_busy => Verdict::Cut(None),
            (true, true) => Verdict::Stay,
        }
    }

    /// Whether it takes what it asked for below the least rate.
    fn takes_too_slowly(&mut self, now: Instant) -> bool {
        let (written, is_blocked) = self.pulse.writing();
        if !is_blocked {
            self.blocked = None;
            return false;
        }
        let (since, before) = *self.blocked.get_or_insert((now, written));
        let elapsed = now - since;
        if elapsed < self.limits.stall {
            return false;
        }
        self.blocked = Some((now, written));
        let taken = u128::from(written - before) * 1000;
        taken < elapsed.as_millis() * self.limits.rate as u128
    }

    /// Whether it takes nothing of an answer that is there for it, though it may take others. Over
    /// HTTP/2 nobody is blocked by that: the library waits for the peer to ask for more.
    fn leaves_answers(&mut self, now: Instant) -> bool {
        let stall = self.limits.stall;
        let stall = if self.is_crowded { stall.min(STALL_IN_A_CROWD) } else { stall };
        if !self.is_http2 || now - *self.turned.get_or_insert(now) < stall {
            return false;
        }
        self.turned = Some(now);
        !self.pulse.turn()
    }

    /// Whether a head has begun, and does not end. Over HTTP/2 other things than heads come
    /// between requests, and the library bounds heads by their size.
    fn asks_too_slowly(&mut self, now: Instant) -> bool {
        if self.is_http2 || !self.pulse.is_mid_head() {
            self.mid_head = None;
            return false;
        }
        let since = *self.mid_head.get_or_insert(now);
        now - since > self.limits.read_head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::pulse::Phase;

    fn limits() -> Limits {
        Limits {
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            read_head: Duration::from_secs(5),
            stall: Duration::from_secs(4),
            rate: 1000,
            ..Limits::default()
        }
    }

    #[tokio::test]
    async fn http2_takes_one_piece_at_a_time() {
        let io = hyper_util::rt::TokioIo::new(tokio::io::duplex(1).0);
        assert!(io.is_write_vectored(), "else there is nothing to gather");
        assert!(!Gathered(io).is_write_vectored());
    }

    #[test]
    fn a_slow_reader_is_cut_and_one_that_is_fast_enough_stays() {
        let (pulse, limits, start) = (Pulse::new(Phase::Open), limits(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(&pulse, &limits, false);
        pulse.block();
        assert_eq!(watch.look(after(0)), Verdict::Stay);
        pulse.wrote(4000);
        pulse.block();
        assert_eq!(watch.look(after(4)), Verdict::Stay);
        pulse.wrote(3999);
        pulse.block();
        assert_eq!(watch.look(after(7)), Verdict::Stay);
        assert_eq!(watch.look(after(8)), Verdict::Cut(Some("slow_reader")));
        pulse.wrote(1);
        assert_eq!(watch.look(after(9)), Verdict::Stay);
    }

    #[test]
    fn a_head_has_its_time_over_http1() {
        let (pulse, limits, start) = (Pulse::new(Phase::Open), limits(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::new(&pulse, &limits, false);
        let mut second = Watch::new(&pulse, &limits, true);
        pulse.read(1);
        for seconds in [1, 6] {
            assert_eq!(watch.look(after(seconds)), Verdict::Stay);
            assert_eq!(second.look(after(seconds)), Verdict::Stay);
        }
        assert_eq!(watch.look(after(7)), Verdict::Cut(Some("slow_head")));
        assert_eq!(second.look(after(7)), Verdict::Stay);
    }

    #[test]
    fn who_leaves_an_answer_is_cut_and_who_is_sent_away_leaves() {
        let (limits, start) = (limits(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let pulse = Arc::new(Pulse::new(Phase::Open));
        let mut watch = Watch::new(&pulse, &limits, true);
        assert_eq!(watch.look(after(0)), Verdict::Stay);
        let left = pulse.owe(100);
        for seconds in [1, 4, 5, 7] {
            drop(pulse.owe(100));
            assert_eq!(watch.look(after(seconds)), Verdict::Stay);
        }
        assert_eq!(watch.look(after(8)), Verdict::Cut(Some("slow_reader")));
        let mut watch = Watch::new(&pulse, &limits, true);
        pulse.send_away();
        assert_eq!(watch.look(after(9)), Verdict::Leave);
        assert_eq!(watch.look(after(10)), Verdict::Stay, "its answer is on its way");
        drop(left);
        assert_eq!(watch.look(after(11)), Verdict::Cut(None));
    }

    #[test]
    fn a_request_with_a_body_leaves_an_idle_connection_behind() {
        let (limits, start) = (limits(), Instant::now());
        let pulse = Arc::new(Pulse::new(Phase::Open));
        let mut watch = Watch::new(&pulse, &limits, false);
        pulse.read(100);
        let beat = pulse.begin(false);
        pulse.read(500);
        drop(beat);
        for seconds in [0, 6, 12] {
            assert_eq!(watch.look(start + Duration::from_secs(seconds)), Verdict::Stay);
        }
    }

    #[test]
    fn who_has_nothing_under_way_leaves_when_the_server_stops() {
        let (pulse, limits, start) = (Arc::new(Pulse::new(Phase::Open)), limits(), Instant::now());
        let mut watch = Watch::new(&pulse, &limits, false);
        watch.stopped = Some(start);
        let beat = pulse.begin(false);
        assert_eq!(watch.look(start + 2 * LAST_CALL), Verdict::Stay);
        drop(beat);
        assert_eq!(watch.look(start + LAST_CALL / 2), Verdict::Stay);
        assert_eq!(watch.look(start + 2 * LAST_CALL), Verdict::Leave);
        assert_eq!(watch.look(start + 2 * LAST_CALL), Verdict::Cut(None));
    }
}
