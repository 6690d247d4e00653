//! What `/metrics` shows of the front end, in the OpenMetrics text format.
//!
//! Counting costs a few atomic additions a request. Labels have few values by construction:
//! actions and codes are names of ours, never a client's text.

use std::{
    fmt,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use lastkey_engine::Action;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::Arc;

use crate::room::Admission;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Every reason for which something is refused or closed; each shows from the start, so that an
/// alert can be written before it fires. `docs/limits.md` explains them.
pub(crate) const SHED_REASONS: &[&str] = &[
    "address",
    "answers",
    "bodies",
    "coming",
    "connections",
    "credentials",
    "descriptors",
    "gone",
    "heads",
    "idle",
    "lobby",
    "log_readers",
    "newcomers",
    "queue_displaced",
    "queue_full",
    "queue_late",
    "requests",
    "slow_body",
    "slow_head",
    "slow_reader",
    "untaken",
    "waiting",
];

/// What the alert rules count the first of: an increase is seen only from a number that was there
/// before. The actions are the engine's names.
const COUNTED_FROM_THE_START: [RequestLabels; 3] = [
    RequestLabels { action: Action::ScheduleKeyDeletion.name(), outcome: "ok" },
    RequestLabels { action: Action::ConfirmOverride.name(), outcome: "ok" },
    RequestLabels { action: "unknown", outcome: "SignatureDoesNotMatch" },
];

/// The counters of the front end.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    latency: Latency,
    connections: Gauge<i64, AtomicI64>,
    accepted: Counter,
    shed: Family<ReasonLabels, Counter>,
    handshakes_failed: Counter,
    certificate_ends: Gauge<i64, AtomicI64>,
    plugin_ends: Gauge<i64, AtomicI64>,
    plugins_late: Gauge<i64, AtomicI64>,
    under_way: Gauge<i64, AtomicI64>,
    places: Gauge<i64, AtomicI64>,
    queue: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// Makes the counters and names them in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            latency: Latency::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            shed: Family::default(),
            handshakes_failed: Counter::default(),
            certificate_ends: Gauge::default(),
            plugin_ends: Gauge::default(),
            plugins_late: Gauge::default(),
            under_way: Gauge::default(),
            places: Gauge::default(),
            queue: Gauge::default(),
        };
        for &reason in SHED_REASONS {
            drop(metrics.shed.get_or_create(&ReasonLabels { reason }));
        }
        for labels in &COUNTED_FROM_THE_START {
            drop(metrics.requests.get_or_create(labels));
        }
        registry.register(
            "lastkey_requests",
            "Requests answered, by action and outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "lastkey_request_seconds",
            "From the last byte of a request to its answer",
            metrics.latency.clone(),
        );
        registry.register("lastkey_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "lastkey_connections_accepted",
            "Connections accepted",
            metrics.accepted.clone(),
        );
        registry.register(
            "lastkey_shed",
            "Connections and requests refused or closed because of a bound",
            metrics.shed.clone(),
        );
        registry.register(
            "lastkey_handshakes_failed",
            "TLS handshakes that did not complete",
            metrics.handshakes_failed.clone(),
        );
        registry.register(
            "lastkey_certificate_ends_seconds",
            "When the server's certificate ends, in seconds since 1970",
            metrics.certificate_ends.clone(),
        );
        registry.register(
            "lastkey_plugin_certificates_first_end_seconds",
            "When the first of the plugins' certificates ends, in seconds since 1970; 0 for none",
            metrics.plugin_ends.clone(),
        );
        registry.register(
            "lastkey_plugin_certificates_late",
            "Plugins' certificates with less than a quarter of their life left",
            metrics.plugins_late.clone(),
        );
        registry.register(
            "lastkey_requests_under_way",
            "Requests begun and not answered",
            metrics.under_way.clone(),
        );
        registry.register(
            "lastkey_places_taken",
            "Requests of proven callers that are worked on",
            metrics.places.clone(),
        );
        registry.register(
            "lastkey_places_queue",
            "Requests of proven callers that wait for their turn",
            metrics.queue.clone(),
        );
        metrics
    }

    /// Reads what is counted elsewhere.
    pub(crate) fn look_at(&self, admission: &Admission) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (taken, waiting) = admission.places.load();
        self.places.set(number(taken));
        self.queue.set(number(waiting));
        self.under_way.set(number(admission.under_way()));
    }

    pub(crate) fn answered(
        &self,
        action: &'static str,
        outcome: &'static str,
        took: Option<Duration>,
    ) {
        self.requests.get_or_create(&RequestLabels { action, outcome }).inc();
        if let Some(took) = took {
            self.latency.observe(took);
        }
    }

    pub(crate) fn shed(&self, reason: &'static str) {
        self.shed_many(reason, 1);
    }

    pub(crate) fn shed_many(&self, reason: &'static str, count: u64) {
        debug_assert!(SHED_REASONS.contains(&reason), "{reason} is not in the list");
        self.shed.get_or_create(&ReasonLabels { reason }).inc_by(count);
    }

    pub(crate) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(crate) fn connected(&self) {
        self.connections.inc();
    }

    pub(crate) fn disconnected(&self) {
        self.connections.dec();
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// When the first plugin's certificate ends, in seconds since 1970, and how many are late.
    pub(crate) fn plugins_end(&self, first: Option<i64>, late: usize) {
        self.plugin_ends.set(first.unwrap_or(0));
        self.plugins_late.set(i64::try_from(late).unwrap_or(i64::MAX));
    }

    pub(crate) fn certificate_ends(&self, seconds: i64) {
        self.certificate_ends.set(seconds);
    }
}

/// What the media type of [`render`] is.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything in `registry` as text.
pub(crate) fn render(registry: &Registry) -> Result<String, fmt::Error> {
    let mut out = String::with_capacity(8192);
    text::encode(&mut out, registry)?;
    Ok(out)
}

/// Upper bounds of the buckets in microseconds.
const BOUNDS: [u32; 16] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 819_200,
    3_276_800, 13_107_200,
];

/// A histogram of atomic counters; the library's takes a lock for each observation.
#[derive(Clone, Debug, Default)]
struct Latency(Arc<LatencyCounts>);

#[derive(Debug, Default)]
struct LatencyCounts {
    buckets: [AtomicU64; BOUNDS.len()],
    over: AtomicU64,
    sum_micros: AtomicU64,
}

impl Latency {
    fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|bound| u64::from(*bound) < micros);
        self.0.buckets.get(at).unwrap_or(&self.0.over).fetch_add(1, Ordering::Relaxed);
        self.0.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bound = |at: usize| BOUNDS.get(at).map_or(f64::INFINITY, |b| f64::from(*b) / 1e6);
        let counts: Vec<(f64, u64)> = (self.0.buckets.iter().chain([&self.0.over]))
            .enumerate()
            .map(|(at, count)| (bound(at), count.load(Ordering::Relaxed)))
            .collect();
        let total = counts.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.0.sum_micros.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, total, &counts, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.answered("Encrypt", "ok", Some(Duration::from_micros(120)));
        metrics.answered("Encrypt", "ok", Some(Duration::from_secs(60)));
        metrics.answered("Decrypt", "Forbidden.KeyNotFound", Some(Duration::ZERO));
        metrics.shed("requests");
        metrics.connected();
        let text = render(&registry).unwrap();
        assert!(
            text.contains(r#"lastkey_requests_total{action="Encrypt",outcome="ok"} 2"#),
            "{text}"
        );
        assert!(text.contains(r#"lastkey_request_seconds_bucket{le="0.0002"} 2"#), "{text}");
        assert!(text.contains(r#"lastkey_request_seconds_bucket{le="+Inf"} 3"#), "{text}");
        assert!(text.contains("lastkey_connections 1"), "{text}");
        assert!(text.contains(r#"lastkey_shed_total{reason="requests"} 1"#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    /// An increase from nothing to one is none, for Prometheus.
    #[test]
    fn what_alerts_count_the_first_of_is_there_before_it() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let text = render(&registry).unwrap();
        for line in [
            r#"lastkey_requests_total{action="ScheduleKeyDeletion",outcome="ok"} 0"#,
            r#"lastkey_requests_total{action="ConfirmOverride",outcome="ok"} 0"#,
            r#"lastkey_requests_total{action="unknown",outcome="SignatureDoesNotMatch"} 0"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        metrics.answered("ScheduleKeyDeletion", "ok", None);
        let text = render(&registry).unwrap();
        let line = r#"lastkey_requests_total{action="ScheduleKeyDeletion",outcome="ok"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
