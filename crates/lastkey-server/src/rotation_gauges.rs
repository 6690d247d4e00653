//! The clusters' rotations, for metrics.
//!
//! A cluster's name is a label, and whoever reads metrics has shown no credential: so names of
//! clusters are public where the server's port is. The first so many are shown.

use lastkey_engine::{Engine, Phase, RotationGauge};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

/// So many clusters are shown at most, by their names.
const CLUSTERS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct In {
    cluster: String,
    state: &'static str,
}

type Number = Family<Of, Gauge>;

/// What is read from the engine when somebody looks.
#[derive(Default)]
pub(crate) struct RotationGauges {
    state: Family<In, Gauge>,
    done: Number,
    total: Number,
    rewritten: Number,
    conflicts: Number,
    refused: Number,
    failures: Number,
    last_success: Number,
}

impl RotationGauges {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "lastkey_rotation_state",
            "1 for the state that the cluster's newest rotation is in",
            gauges.state.clone(),
        );
        let numbers = [
            ("done", "Objects that its pass under way has looked at", &gauges.done),
            ("total", "Objects that there are, as far as that is known", &gauges.total),
            ("rewritten", "Objects that it has had written anew", &gauges.rewritten),
            ("conflicts", "Objects that somebody else wrote first", &gauges.conflicts),
            ("refused", "Objects that something refuses to have written", &gauges.refused),
            ("failures", "How often in a row it has failed", &gauges.failures),
            (
                "last_success_seconds",
                "When one was finished last, in seconds since 1970",
                &gauges.last_success,
            ),
        ];
        for (name, help, gauge) in numbers {
            registry.register(format!("lastkey_rotation_{name}"), help, gauge.clone());
        }
        gauges
    }

    pub(crate) fn look_at(&self, engine: Option<&Engine>) {
        let known = engine.map(Engine::rotation_gauges).unwrap_or_default();
        self.show(&known);
    }

    fn show(&self, known: &[RotationGauge]) {
        self.state.clear();
        let numbers = [&self.done, &self.total, &self.rewritten, &self.conflicts];
        let more = [&self.refused, &self.failures, &self.last_success];
        numbers.into_iter().chain(more).for_each(Family::clear);
        for one in known.iter().take(CLUSTERS) {
            let cluster = one.cluster.clone();
            let state = if one.paused && !one.phase.is_over() { "paused" } else { name(one.phase) };
            self.state.get_or_create(&In { cluster: cluster.clone(), state }).set(1);
            let of = Of { cluster };
            let set = |gauge: &Number, value: u64| {
                gauge.get_or_create(&of).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.done, one.progress.done);
            set(&self.total, one.progress.total);
            set(&self.rewritten, one.progress.rewritten);
            set(&self.conflicts, one.progress.conflicts);
            set(&self.refused, one.progress.refused);
            set(&self.failures, one.failures.into());
            if let Some(at) = one.last_success {
                self.last_success.get_or_create(&of).set(at.as_seconds());
            }
        }
    }
}

fn name(phase: Phase) -> &'static str {
    phase.name()
}

#[cfg(test)]
mod tests {
    use lastkey_engine::{Progress, Timestamp};

    use super::*;

    fn gauge(cluster: &str, phase: Phase) -> RotationGauge {
        RotationGauge {
            cluster: cluster.to_owned(),
            phase,
            paused: false,
            progress: Progress { done: 3, total: 10, refused: 1, ..Progress::default() },
            failures: 2,
            last_success: Some(Timestamp::from_millis(7_000)),
        }
    }

    #[test]
    fn what_is_shown_is_what_is_now_and_bounded() {
        let mut registry = Registry::default();
        let gauges = RotationGauges::register(&mut registry);
        gauges.show(&[gauge("prod", Phase::Rewriting)]);
        gauges.show(&[RotationGauge { paused: true, ..gauge("prod", Phase::Verifying) }]);
        let text = crate::metrics::render(&registry).unwrap();
        for line in [
            r#"lastkey_rotation_state{cluster="prod",state="paused"} 1"#,
            r#"lastkey_rotation_done{cluster="prod"} 3"#,
            r#"lastkey_rotation_total{cluster="prod"} 10"#,
            r#"lastkey_rotation_failures{cluster="prod"} 2"#,
            r#"lastkey_rotation_last_success_seconds{cluster="prod"} 7"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("rewriting"), "{text}");
        let many: Vec<_> = (0..100).map(|n| gauge(&format!("c-{n:03}"), Phase::Finished)).collect();
        gauges.show(&many);
        let text = crate::metrics::render(&registry).unwrap();
        assert_eq!(text.matches("lastkey_rotation_done{").count(), CLUSTERS);
        gauges.show(&[]);
        assert!(!crate::metrics::render(&registry).unwrap().contains("lastkey_rotation_done{"));
    }
}
