//! From a request on a connection to its response: room, body, wire, deadline, metrics.

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use lastkey_engine::{Engine, Error, Life, RequestId};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    alibaba::{self, Place, Refusal, document::Format},
    body, deadline,
    exchange::{Exchange, Peer, Reply},
    limits::Limits,
    listener::doorman::Doorman,
    metrics::{self, Metrics},
    native,
    room::{Admission, Gate, sized},
    rotation_gauges::RotationGauges,
    sealing::Sealing,
    stopping::Stopping,
};

/// What all connections share.
pub(crate) struct Service {
    pub(crate) sealing: Arc<Sealing>,
    pub(crate) place: Place,
    pub(crate) limits: Limits,
    pub(crate) admission: Admission,
    pub(crate) doorman: Arc<Doorman>,
    pub(crate) metrics: Metrics,
    pub(crate) stopping: Stopping,
    registry: Mutex<Registry>,
    /// How the audit log's sinks do, for status.
    sinks: OnceLock<crate::SinkStatus>,
    gauges: EngineGauges,
    rotations: RotationGauges,
}

/// What is read from the engine when somebody looks.
struct EngineGauges {
    ready: Gauge,
    unsealed: Gauge,
    held: Gauge,
    keys: Gauge,
    audit_records: Gauge,
    audit_checkpoint: Gauge,
    key_uses: Family<UseLabels, Counter>,
    keyring_uses: Gauge,
    keyring_keys: Gauge,
}

/// What keys are used for: never which key, for whoever reads metrics has shown no credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UseLabels {
    operation: &'static str,
}

/// Which wire a path belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Alibaba,
    Native,
}

impl Wire {
    fn of(path: &str) -> Self {
        if path == "/" { Self::Alibaba } else { Self::Native }
    }
}

impl Service {
    pub(crate) fn new(
        sealing: Arc<Sealing>,
        (place, limits): (Place, Limits),
        stopping: Stopping,
    ) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let gauges = EngineGauges::register(&mut registry);
        let rotations = RotationGauges::register(&mut registry);
        let admission = Admission::new(&limits);
        let doorman = Arc::new(Doorman::new(&limits));
        let (registry, sinks) = (Mutex::new(registry), OnceLock::new());
        Self {
            sealing,
            place,
            limits,
            admission,
            doorman,
            metrics,
            stopping,
            registry,
            sinks,
            gauges,
            rotations,
        }
    }

    /// Answers one request, and says whether its caller has proven who it is.
    pub(crate) async fn answer(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> (Response<Full<Bytes>>, bool) {
        let started = Instant::now();
        let waits = native::may_wait(request.uri().path());
        let wire = Wire::of(request.uri().path());
        let is_health = Self::is_health(request.uri().path());
        let is_proven = AtomicBool::new(peer.stranger().is_none());
        let (mut reply, headers) = self.reply(peer, request, &is_proven).await;
        // Health needs no room.
        if !is_health {
            match sized(std::mem::take(&mut reply.body), &self.admission) {
                Ok(body) => reply.body = body,
                Err(_) => {
                    self.metrics.shed("answers");
                    let id = self.sealing.instance.new_request_id();
                    reply = refused(wire, id, &Error::Busy.into());
                }
            }
        }
        // How long somebody chose to wait says nothing about how fast we are.
        let took = (!waits).then(|| started.elapsed());
        self.metrics.answered(reply.action, reply.outcome, took);
        (reply.into_response(headers), is_proven.into_inner())
    }

    /// The reply, and the request's headers, which nobody needs any more.
    async fn reply(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
        is_proven: &AtomicBool,
    ) -> (Reply, HeaderMap) {
        let (head, body) = request.into_parts();
        let wire = match head.uri.path() {
            "/healthz" => return (self.healthz(), head.headers),
            "/readyz" => return (self.readyz(), head.headers),
            "/metrics" => return (self.metrics_page(), head.headers),
            path => Wire::of(path),
        };
        let request_id = self.sealing.instance.new_request_id();
        let refuse = |refusal: Refusal| refused(wire, request_id, &refusal);
        let (body, body_room) = match body::read(body, &self.body_bounds(peer)).await {
            Ok(read) => read,
            Err(refusal) => return (refuse(refusal), head.headers),
        };
        let path_limit = self.time_for(head.uri.path());
        let gate = Gate { admission: &self.admission, metrics: &self.metrics, is_proven };
        let is_polled = head.version < http::Version::HTTP_2;
        let exchange = Exchange { head, body, peer, request_id, gate };
        let reply = {
            // Pinned here, so that it is not moved: it is large.
            let work = pin!(self.handle(wire, &exchange));
            deadline::within(path_limit, is_polled, work).await
        };
        drop(body_room);
        let reply = reply.unwrap_or_else(|| {
            tracing::warn!(%request_id, "a request took too long");
            // What it began may be finished after all.
            let why = "the request took too long; one that only reads may be repeated";
            refuse(Error::Uncertain(why.to_owned()).into())
        });
        (reply, exchange.head.headers)
    }

    async fn handle(&self, wire: Wire, exchange: &Exchange<'_>) -> Reply {
        if native::operator::is_operator(exchange.path()) {
            // On the heap, for it is large, and every other request would carry it about.
            return Box::pin(native::operator::handle(&self.sealing, exchange)).await;
        }
        let Some(open) = self.sealing.open() else {
            return refused(wire, exchange.request_id, &self.sealed().into());
        };
        match wire {
            Wire::Alibaba => alibaba::handle(&open.engine, &self.place, exchange).await,
            Wire::Native => {
                let stopping = open.stopping.clone();
                let (engine, pki) = (&open.engine, &*open.pki);
                let context = native::Context { engine, pki, stopping, sinks: self.sinks.get() };
                native::handle(&context, exchange).await
            }
        }
    }

    fn time_for(&self, path: &str) -> std::time::Duration {
        if native::may_take_long(path) {
            self.limits.answer + 10 * native::MAX_WAIT
        } else {
            self.limits.answer
        }
    }

    /// Shows the audit log's sinks in metrics and status.
    pub(crate) fn show_sinks(&self, collector: Box<dyn Collector>, status: crate::SinkStatus) {
        self.registry.lock().register_collector(collector);
        let _ = self.sinks.set(status);
    }

    fn body_bounds(&self, peer: &Peer) -> body::Bounds<'_> {
        let Self { limits, admission, metrics, stopping, .. } = self;
        body::Bounds { limits, admission, metrics, stopping, stranger: peer.stranger() }
    }

    /// Whether a path is answered whatever else goes on.
    pub(crate) fn is_health(path: &str) -> bool {
        matches!(path, "/healthz" | "/readyz" | "/metrics")
    }

    /// Tells a client to come back, without having looked at its request, and to close its
    /// connection.
    pub(crate) fn turn_away(&self, path: &str, reason: &'static str) -> Response<Full<Bytes>> {
        self.metrics.shed(reason);
        let reply =
            refused(Wire::of(path), self.sealing.instance.new_request_id(), &Error::Busy.into());
        self.metrics.answered(reply.action, reply.outcome, None);
        let mut response = reply.into_response(HeaderMap::new());
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert(http::header::CONNECTION, close);
        response
    }

    /// The process works; whether requests are answered is another question.
    fn healthz(&self) -> Reply {
        let state = match self.sealing.instance.life() {
            Life::Unsealed => "ok\n".to_owned(),
            other => format!("{other}\n"),
        };
        Reply::text(StatusCode::OK, "healthz", state)
    }

    /// Why there is no engine.
    fn sealed(&self) -> Error {
        match self.sealing.instance.life() {
            // It is about to open, or to be sealed.
            Life::Unsealed => Error::Sealed(Life::Sealed),
            other => Error::Sealed(other),
        }
    }

    fn readyz(&self) -> Reply {
        let ready = match self.sealing.open() {
            Some(open) => open.engine.readiness(),
            None => Err(self.sealed()),
        };
        match ready {
            Ok(()) => Reply::text(StatusCode::OK, "readyz", "ready\n"),
            // The code, and what an operator looks for first: whoever asks has shown no credential.
            Err(error) => {
                let cause = match error {
                    Error::StorageFull => " (the disk is full)",
                    _ => "",
                };
                let text = format!("not ready: {}{cause}\n", error.code());
                Reply::text(StatusCode::SERVICE_UNAVAILABLE, "readyz", text)
            }
        }
    }

    fn metrics_page(&self) -> Reply {
        let open = self.sealing.open();
        let engine = open.as_ref().map(|open| &open.engine);
        self.gauges.look_at(engine);
        let state = self.sealing.instance.status().state;
        self.gauges.held.set((state == Life::Held).into());
        self.rotations.look_at(engine);
        drop(open);
        self.metrics.look_at(&self.admission);
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
            unsealed: Gauge::default(),
            held: Gauge::default(),
            keys: Gauge::default(),
            audit_records: Gauge::default(),
            audit_checkpoint: Gauge::default(),
            key_uses: Family::default(),
            keyring_uses: Gauge::default(),
            keyring_keys: Gauge::default(),
        };
        registry.register(
            "lastkey_key_uses",
            "Encryptions and decryptions under keys, since the server was unsealed",
            gauges.key_uses.clone(),
        );
        registry.register(
            "lastkey_keyring_uses",
            "Records that the newest key of the keyring has sealed, at least",
            gauges.keyring_uses.clone(),
        );
        registry.register(
            "lastkey_keyring_keys",
            "Keys in the keyring",
            gauges.keyring_keys.clone(),
        );
        registry.register(
            "lastkey_ready",
            "1 while requests can be recorded and changes kept",
            gauges.ready.clone(),
        );
        registry.register(
            "lastkey_unsealed",
            "1 while the server has its root key",
            gauges.unsealed.clone(),
        );
        registry.register(
            "lastkey_held",
            "1 while the server waits for its operator's word on what it found in its store",
            gauges.held.clone(),
        );
        registry.register("lastkey_keys", "Keys", gauges.keys.clone());
        registry.register(
            "lastkey_audit_records",
            "The newest audit record's number",
            gauges.audit_records.clone(),
        );
        registry.register(
            "lastkey_audit_checkpoint_seconds",
            "When the newest audit checkpoint was signed, in seconds since 1970",
            gauges.audit_checkpoint.clone(),
        );
        gauges
    }

    fn look_at(&self, engine: Option<&Engine>) {
        self.unsealed.set(engine.is_some().into());
        let Some(engine) = engine else {
            self.ready.set(0);
            return;
        };
        self.ready.set(engine.readiness().is_ok().into());
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.keys.set(i64::try_from(engine.key_count()).unwrap_or(i64::MAX));
        self.audit_records.set(number(engine.audit_records()));
        let signed = engine.newest_checkpoint().map(|(_, time)| time.as_seconds());
        self.audit_checkpoint.set(signed.unwrap_or_default());
        let (encrypted, decrypted) = engine.key_uses();
        for (operation, count) in [("encrypt", encrypted), ("decrypt", decrypted)] {
            // An engine that was opened anew begins at zero, as counters may.
            let uses = self.key_uses.get_or_create(&UseLabels { operation });
            uses.inner().store(count, Ordering::Relaxed);
        }
        let (sealed, keys) = engine.keyring_uses();
        self.keyring_uses.set(number(sealed));
        self.keyring_keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
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
