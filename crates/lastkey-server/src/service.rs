//! From a request on a connection to its response: room, body, wire, deadline, metrics.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use lastkey_engine::{Engine, Error, RequestId};
use parking_lot::Mutex;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

use crate::{
    alibaba::{self, Place, Refusal, document::Format},
    exchange::{Exchange, Peer, Reply},
    limits::{Admission, Limits, Room},
    metrics::{self, Metrics},
    native,
    pki::Pki,
    stopping::Stopping,
};

/// What all connections share.
pub(crate) struct Service {
    pub(crate) engine: Engine,
    pub(crate) pki: Arc<Pki>,
    pub(crate) place: Place,
    pub(crate) limits: Limits,
    pub(crate) admission: Admission,
    pub(crate) metrics: Metrics,
    pub(crate) stopping: Stopping,
    registry: Mutex<Registry>,
    gauges: EngineGauges,
}

/// What is read from the engine when somebody looks.
struct EngineGauges {
    ready: Gauge,
    keys: Gauge,
    audit_records: Gauge,
}

/// Which wire a path belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Alibaba,
    Native,
}

impl Service {
    pub(crate) fn new(
        engine: Engine,
        pki: Arc<Pki>,
        (place, limits): (Place, Limits),
        stopping: Stopping,
    ) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let gauges = EngineGauges::register(&mut registry);
        let admission = Admission::new(&limits);
        let registry = Mutex::new(registry);
        Self { engine, pki, place, limits, admission, metrics, stopping, registry, gauges }
    }

    /// Answers one request.
    pub(crate) async fn answer(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let started = Instant::now();
        let waits = native::may_wait(request.uri().path());
        let reply = self.reply(peer, request).await;
        // How long somebody chose to wait says nothing about how fast we are.
        let took = (!waits).then(|| started.elapsed());
        self.metrics.answered(reply.action, reply.outcome, took);
        reply.into_response()
    }

    async fn reply(&self, peer: &Peer, request: Request<Incoming>) -> Reply {
        let wire = match request.uri().path() {
            "/" => Wire::Alibaba,
            "/healthz" => return Reply::text(StatusCode::OK, "healthz", "ok\n"),
            "/readyz" => return self.readyz(),
            "/metrics" => return self.metrics_page(),
            _ => Wire::Native,
        };
        let request_id = self.engine.new_request_id();
        let refuse = |refusal: Refusal| refused(wire, request_id, &refusal);
        let Some(room) = self.room(request.uri().path()) else {
            self.metrics.shed("requests");
            return refuse(Error::Busy.into());
        };
        let (head, body) = request.into_parts();
        let (body, body_room) = match self.read(body).await {
            Ok(read) => read,
            Err(refusal) => return refuse(refusal),
        };
        let path_limit = self.time_for(head.uri.path());
        let exchange = Exchange { head, body, peer, request_id };
        let reply = tokio::time::timeout(path_limit, self.handle(wire, &exchange)).await;
        drop((room, body_room));
        reply.unwrap_or_else(|_| {
            tracing::warn!(%request_id, "a request took too long");
            refuse(Error::Unavailable("the request took too long".to_owned()).into())
        })
    }

    async fn handle(&self, wire: Wire, exchange: &Exchange<'_>) -> Reply {
        match wire {
            Wire::Alibaba => alibaba::handle(&self.engine, &self.place, exchange).await,
            Wire::Native => {
                let stopping = self.stopping.clone();
                let context = native::Context { engine: &self.engine, pki: &self.pki, stopping };
                native::handle(&context, exchange).await
            }
        }
    }

    /// Room for a request; those that may wait take none away from those that work.
    fn room(&self, path: &str) -> Option<Room> {
        if native::may_wait(path) { self.admission.waiting() } else { self.admission.request() }
    }

    fn time_for(&self, path: &str) -> std::time::Duration {
        if native::may_take_long(path) {
            self.limits.answer + 10 * native::MAX_WAIT
        } else {
            self.limits.answer
        }
    }

    /// Reads a body whole, within the limits of size and time.
    async fn read(&self, body: Incoming) -> Result<(Bytes, Option<Room>), Refusal> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let limit = self.limits.body;
        let most = body
            .size_hint()
            .upper()
            .map_or(limit, |most| usize::try_from(most).unwrap_or(usize::MAX));
        if most > limit {
            return Err(Refusal::TooLarge(limit));
        }
        let Some(room) = self.admission.body(most) else {
            self.metrics.shed("bodies");
            return Err(Error::Busy.into());
        };
        let read = Limited::new(body, limit).collect();
        match tokio::time::timeout(self.limits.read_body, read).await {
            Ok(Ok(body)) => Ok((body.to_bytes(), Some(room))),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(Refusal::TooLarge(limit))
            }
            Ok(Err(_)) | Err(_) => Err(Refusal::Incomplete),
        }
    }

    fn readyz(&self) -> Reply {
        match self.engine.readiness() {
            Ok(()) => Reply::text(StatusCode::OK, "readyz", "ready\n"),
            // The code alone: whoever asks has shown no credential.
            Err(error) => Reply::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "readyz",
                format!("not ready: {}\n", error.code()),
            ),
        }
    }

    fn metrics_page(&self) -> Reply {
        self.gauges.look_at(&self.engine);
        match metrics::render(&self.registry.lock()) {
            Ok(text) => Reply {
                content_type: metrics::CONTENT_TYPE,
                ..Reply::text(StatusCode::OK, "metrics", text)
            },
            Err(_) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, "metrics", "no metrics\n"),
        }
    }
}

impl EngineGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self {
            ready: Gauge::default(),
            keys: Gauge::default(),
            audit_records: Gauge::default(),
        };
        registry.register(
            "lastkey_ready",
            "1 while requests can be recorded and changes kept",
            gauges.ready.clone(),
        );
        registry.register("lastkey_keys", "Keys", gauges.keys.clone());
        registry.register(
            "lastkey_audit_records",
            "The newest audit record's number",
            gauges.audit_records.clone(),
        );
        gauges
    }

    fn look_at(&self, engine: &Engine) {
        self.ready.set(engine.readiness().is_ok().into());
        self.keys.set(i64::try_from(engine.key_count()).unwrap_or(i64::MAX));
        self.audit_records.set(i64::try_from(engine.audit_records()).unwrap_or(i64::MAX));
    }
}

/// A refusal in the words of the wire it came over.
fn refused(wire: Wire, request_id: RequestId, refusal: &Refusal) -> Reply {
    let told = refusal.told(false);
    match wire {
        Wire::Alibaba => alibaba::refused(request_id, Format::Json, "unknown", &told),
        Wire::Native => native::refused(request_id, "unknown", &told),
    }
}
