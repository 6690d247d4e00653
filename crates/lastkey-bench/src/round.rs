//! What one measurement comes to, per call.

use serde::{Deserialize, Serialize};

use crate::{load::Sample, stats::percentile};

/// One measurement, in microseconds per call where it is a time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Processor time of the server process, in its own code and in the kernel.
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// Processor time of the load.
    pub(crate) client: f64,
    /// Processors that the client kept busy.
    pub(crate) client_busy: f64,
}

impl Round {
    /// The measurement that this sample is of.
    pub(crate) fn of(sample: &Sample) -> Self {
        let calls = (sample.latencies.len().max(1)) as f64;
        let seconds = sample.elapsed.as_secs_f64();
        let micros = |nanos: u32| f64::from(nanos) / 1e3;
        Self {
            per_second: sample.latencies.len() as f64 / seconds,
            p50: micros(percentile(&sample.latencies, 50)),
            p99: micros(percentile(&sample.latencies, 99)),
            user: sample.server.user.as_secs_f64() * 1e6 / calls,
            system: sample.server.system.as_secs_f64() * 1e6 / calls,
            client: sample.client.as_secs_f64() * 1e6 / calls,
            client_busy: sample.client.as_secs_f64() / seconds,
        }
    }

    /// Processor time of the server process.
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }
}
