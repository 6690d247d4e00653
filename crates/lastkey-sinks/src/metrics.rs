//! How the sinks do, in the OpenMetrics text format.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{Carrier, SinkStatus};

/// What a metric shows of a sink.
type Value = fn(&SinkStatus) -> u64;

/// Reads the carriers when it is asked.
#[derive(Debug)]
pub struct SinkMetrics(Arc<[Arc<Carrier>]>);

impl SinkMetrics {
    /// Of these.
    pub fn new(carriers: Arc<[Arc<Carrier>]>) -> Self {
        Self(carriers)
    }
}

impl Collector for SinkMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all: Vec<SinkStatus> = self.0.iter().map(|carrier| carrier.status()).collect();
        if all.is_empty() {
            return Ok(());
        }
        let gauges: [(&str, &str, Value); 3] = [
            ("lastkey_audit_sink_up", "1 while the sink takes records", |sink| sink.ok.into()),
            ("lastkey_audit_sink_lag", "Audit records that wait for the sink", |sink| sink.lag),
            ("lastkey_audit_sink_seq", "The last audit record that the sink took", |sink| sink.seq),
        ];
        for (name, help, value) in gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for sink in &all {
                let labels = [("sink", sink.sink.as_str())];
                ConstGauge::new(value(sink)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let counters: [(&str, &str, Value); 2] = [
            ("lastkey_audit_sink_failures", "Deliveries that failed", |sink| sink.failures),
            (
                "lastkey_audit_sink_missed",
                "Audit records that were deleted before the sink took them",
                |sink| sink.missed,
            ),
        ];
        for (name, help, value) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for sink in &all {
                let labels = [("sink", sink.sink.as_str())];
                ConstCounter::new(value(sink)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
