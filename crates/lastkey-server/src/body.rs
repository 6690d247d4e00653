//! Reads a request's body: bounded in size, in time, in rate, and together with all others in
//! memory.

use std::{
    error::Error as _,
    future::{Future as _, poll_fn},
    io,
    net::IpAddr,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming};
use lastkey_engine::Error;
use tokio::time::Instant;

use crate::{
    alibaba::Refusal,
    limits::Limits,
    metrics::Metrics,
    room::{Admission, BodyRoom, ComingBody},
    stopping::Stopping,
};

/// A body may still arrive for so long after the server began to stop.
const AFTER_STOP: Duration = Duration::from_secs(2);

/// What bounds a body.
pub(crate) struct Bounds<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) admission: &'a Admission,
    pub(crate) metrics: &'a Metrics,
    pub(crate) stopping: &'a Stopping,
    /// Where it comes from, unless its sender has proven who it is.
    pub(crate) stranger: Option<IpAddr>,
}

/// Reads `body` whole.
///
/// # Errors
/// It is too large, too slow, incomplete, malformed, or there is no room for it.
pub(crate) async fn read(
    mut body: Incoming,
    bounds: &Bounds<'_>,
) -> Result<(Bytes, Option<BodyRoom>), Refusal> {
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
    }
    let limit = bounds.limits.body;
    // What is announced is refused by its announcement; what is not, when it comes.
    if body.size_hint().lower() > limit as u64 {
        return Err(Refusal::TooLarge(limit));
    }
    let mut room = bounds.admission.body();
    let mut clock = Clock::new(bounds);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut length = 0_usize;
    while let Some(piece) = clock.next(&mut body, length).await? {
        let Ok(data) = piece.map_err(|error| unread(&error))?.into_data() else { continue };
        length += data.len();
        if length > limit {
            return Err(Refusal::TooLarge(limit));
        }
        if !room.reach(length) {
            bounds.metrics.shed("bodies");
            return Err(Error::Busy.into());
        }
        // Most bodies are one piece, which is kept as it came.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    let whole = if all.is_empty() { first } else { all.freeze() };
    Ok((whole, Some(room)))
}

/// What came was not what frames a body, or nothing more will come.
fn unread(error: &hyper::Error) -> Refusal {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match source.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Refusal::Malformed,
        _ => Refusal::Incomplete,
    }
}

/// How long the next piece may take.
struct Clock<'a> {
    bounds: &'a Bounds<'a>,
    /// Since when a piece was waited for, and who says that the server stops; hardly any body
    /// is ever waited for.
    waits: Option<Waits>,
}

struct Waits {
    /// Its place among those that are waited for.
    _coming: Option<ComingBody>,
    started: Instant,
    stopping: Stopping,
    stopped: Option<Instant>,
}

type Piece = Option<Result<Frame<Bytes>, hyper::Error>>;

impl<'a> Clock<'a> {
    fn new(bounds: &'a Bounds<'a>) -> Self {
        Self { bounds, waits: None }
    }

    async fn next(&mut self, body: &mut Incoming, length: usize) -> Result<Piece, Refusal> {
        let mut frame = body.frame();
        let at_once = poll_fn(|cx| Poll::Ready(Pin::new(&mut frame).poll(cx))).await;
        if let Poll::Ready(piece) = at_once {
            return Ok(piece);
        }
        let bounds = self.bounds;
        let waits = match &mut self.waits {
            Some(waits) => waits,
            none => none.insert(Waits::begin(bounds)?),
        };
        loop {
            let deadline = waits.deadline(bounds.limits, length);
            tokio::select! {
                biased;
                piece = &mut frame => return Ok(piece),
                () = waits.stopping.wait(), if waits.stopped.is_none() => {
                    waits.stopped = Some(Instant::now());
                }
                () = tokio::time::sleep_until(deadline) => {
                    bounds.metrics.shed("slow_body");
                    return Err(Refusal::Incomplete);
                }
            }
        }
    }
}

impl Waits {
    fn begin(bounds: &Bounds<'_>) -> Result<Self, Refusal> {
        let _coming = match bounds.stranger {
            None => None,
            Some(address) => Some(bounds.admission.coming(address).ok_or_else(|| {
                bounds.metrics.shed("coming");
                Refusal::from(Error::Busy)
            })?),
        };
        let (started, stopping) = (Instant::now(), bounds.stopping.clone());
        Ok(Self { _coming, started, stopping, stopped: None })
    }

    /// When the next piece must have come: at any moment, what has come so far must have come at
    /// the least rate, except for a first while.
    fn deadline(&self, limits: &Limits, length: usize) -> Instant {
        let rate = u64::try_from(limits.rate.max(1)).unwrap_or(1);
        let millis = (length as u64).saturating_mul(1000) / rate;
        let earned = Duration::from_millis(millis).max(limits.stall).min(limits.read_body);
        let deadline = self.started + earned;
        self.stopped.map_or(deadline, |stopped| deadline.min(stopped + AFTER_STOP))
    }
}
