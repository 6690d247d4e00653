//! Counters of what the plugin does without its server, and of how its server fails.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

const REASONS: [&str; 3] = ["refused", "lease", "stopped"];
const FAILURES: [&str; 10] = [
    "unreachable",
    "tls",
    "broken",
    "timeout",
    "garbage",
    "split",
    "unavailable",
    "throttled",
    "internal",
    "refused",
];

/// What is remembered, recorded and delivered.
#[derive(Debug, Default)]
pub struct MemoryMetrics {
    entries: AtomicU64,
    cached: AtomicU64,
    joined: AtomicU64,
    emptied: [AtomicU64; REASONS.len()],
    lease: AtomicU64,
    /// What becomes of notes; nothing, where nothing is remembered.
    recording: Mutex<Option<bool>>,
    waiting: AtomicU64,
    delivered: AtomicU64,
    failures: [AtomicU64; FAILURES.len()],
    servers: Mutex<Vec<(Arc<str>, bool)>>,
}

impl MemoryMetrics {
    /// Answers from the cache, and to calls that joined an identical one.
    pub fn answers(&self) -> (u64, u64) {
        (self.cached.load(Ordering::Relaxed), self.joined.load(Ordering::Relaxed))
    }

    /// Answers that are remembered now.
    pub fn remembered(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Batches of answers that the server has taken.
    pub fn batches_delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// How often a call to the server failed in that way.
    pub fn failures(&self, kind: &str) -> u64 {
        let at = FAILURES.iter().position(|known| *known == kind);
        at.map_or(0, |at| self.failures[at].load(Ordering::Relaxed))
    }

    /// Each server, and whether it answered when it was asked last.
    pub fn servers_up(&self) -> Vec<(Arc<str>, bool)> {
        self.servers.lock().clone()
    }

    pub(in crate::plugin) fn servers(&self, found: impl Iterator<Item = (Arc<str>, bool)>) {
        *self.servers.lock() = found.collect();
    }

    pub(in crate::plugin) fn cached(&self) {
        self.cached.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::plugin) fn joined(&self) {
        self.joined.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::plugin) fn entries(&self, count: usize) {
        self.entries.store(count as u64, Ordering::Relaxed);
    }

    pub(in crate::plugin) fn emptied(&self, reason: &str) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.emptied[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(in crate::plugin) fn lease(&self, left: Duration) {
        self.lease.store(left.as_secs(), Ordering::Relaxed);
    }

    pub(in crate::plugin) fn spool(&self, (recording, waiting): (bool, usize)) {
        *self.recording.lock() = Some(recording);
        self.waiting.store(waiting as u64, Ordering::Relaxed);
    }

    pub(in crate::plugin) fn delivered(&self, count: usize) {
        self.delivered.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(in crate::plugin) fn failed(&self, kind: &str) {
        if let Some(at) = FAILURES.iter().position(|known| *known == kind) {
            self.failures[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for MemoryMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = "lastkey_plugin_server_failures_total";
        head(f, name, "counter", "Calls to the server that failed.")?;
        for (kind, count) in FAILURES.iter().zip(&self.failures) {
            writeln!(f, "{name}{{kind=\"{kind}\"}} {}", read(count))?;
        }
        let name = "lastkey_plugin_server_up";
        head(f, name, "gauge", "Whether each server is ready, asked every 5 seconds.")?;
        for (server, is_up) in &*self.servers.lock() {
            // as the format wants what stands between quotes
            let server = server.replace('\\', "\\\\").replace('"', "\\\"");
            writeln!(f, "{name}{{server=\"{server}\"}} {}", u8::from(*is_up))?;
        }
        let name = "lastkey_plugin_local_answers_total";
        head(f, name, "counter", "Decrypts answered without a call to the server of their own.")?;
        writeln!(f, "{name}{{how=\"cached\"}} {}", read(&self.cached))?;
        writeln!(f, "{name}{{how=\"joined\"}} {}", read(&self.joined))?;
        let name = "lastkey_plugin_cache_emptied_total";
        head(f, name, "counter", "How often remembered answers were forgotten, and why.")?;
        for (reason, count) in REASONS.iter().zip(&self.emptied) {
            writeln!(f, "{name}{{reason=\"{reason}\"}} {}", read(count))?;
        }
        let name = "lastkey_plugin_records_delivered_total";
        head(f, name, "counter", "Batches of local answers that the server has recorded.")?;
        writeln!(f, "{name} {}", read(&self.delivered))?;
        for (name, help, value) in [
            ("lastkey_plugin_cache_entries", "Answers that are remembered.", read(&self.entries)),
            (
                "lastkey_plugin_lease_seconds",
                "For how long reads would go on without the server.",
                read(&self.lease),
            ),
            (
                "lastkey_plugin_records_waiting",
                "Batches of local answers that no server has taken yet.",
                read(&self.waiting),
            ),
        ] {
            head(f, name, "gauge", help)?;
            writeln!(f, "{name} {value}")?;
        }
        // Where nothing is remembered nothing has to be recorded: it would look like a fault.
        let Some(recording) = *self.recording.lock() else { return Ok(()) };
        let name = "lastkey_plugin_recording";
        head(
            f,
            name,
            "gauge",
            "Whether local answers can be recorded; without that none are given.",
        )?;
        writeln!(f, "{name} {}", u8::from(recording))
    }
}

fn head(f: &mut fmt::Formatter<'_>, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(f, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_happened() {
        let metrics = MemoryMetrics::default();
        metrics.cached();
        metrics.emptied("lease");
        metrics.failed("garbage");
        metrics.spool((true, 3));
        metrics.servers([("https://a:1".into(), true), ("unix:/b\"c".into(), false)].into_iter());
        let text = metrics.to_string();
        for line in [
            "lastkey_plugin_local_answers_total{how=\"cached\"} 1",
            "lastkey_plugin_local_answers_total{how=\"joined\"} 0",
            "lastkey_plugin_cache_emptied_total{reason=\"lease\"} 1",
            "lastkey_plugin_server_failures_total{kind=\"garbage\"} 1",
            "lastkey_plugin_recording 1",
            "lastkey_plugin_server_up{server=\"https://a:1\"} 1",
            "lastkey_plugin_server_up{server=\"unix:/b\\\"c\"} 0",
            "lastkey_plugin_records_waiting 3",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        // None of a plugin that remembers nothing: an alert would take it for one that cannot.
        assert!(!MemoryMetrics::default().to_string().contains("lastkey_plugin_recording"));
        metrics.spool((false, 3));
        assert!(metrics.to_string().contains("\nlastkey_plugin_recording 0\n"));
        assert_eq!((metrics.answers(), metrics.failures("garbage")), ((1, 0), 1));
    }
}
