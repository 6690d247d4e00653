//! What the plugin counts about its identity.

use std::{
    fmt,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use super::Held;

/// Numbers about the identity that is shown.
#[derive(Debug, Default)]
pub(crate) struct IdentityMetrics {
    /// In seconds since 1970; 0 while there is none.
    begins: AtomicI64,
    /// Likewise.
    ends: AtomicI64,
    renewed: AtomicU64,
    failed: AtomicU64,
    enrolled: AtomicU64,
}

impl IdentityMetrics {
    pub(super) fn shows(&self, held: &Held) {
        self.begins.store(held.not_before.as_seconds(), Ordering::Relaxed);
        self.ends.store(held.not_after.as_seconds(), Ordering::Relaxed);
    }

    pub(super) fn renewed(&self, done: bool) {
        let counter = if done { &self.renewed } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn enrolled(&self) {
        self.enrolled.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for IdentityMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = "lastkey_plugin_certificate_begins_seconds";
        writeln!(f, "# HELP {name} When the plugin's certificate begins, in seconds since 1970.")?;
        writeln!(f, "# TYPE {name} gauge\n{name} {}", self.begins.load(Ordering::Relaxed))?;
        let name = "lastkey_plugin_certificate_ends_seconds";
        writeln!(f, "# HELP {name} When the plugin's certificate ends, in seconds since 1970.")?;
        writeln!(f, "# TYPE {name} gauge\n{name} {}", self.ends.load(Ordering::Relaxed))?;
        let name = "lastkey_plugin_certificate_renewals_total";
        writeln!(f, "# HELP {name} Renewals of the plugin's certificate by how they ended.")?;
        writeln!(f, "# TYPE {name} counter")?;
        for (outcome, counter) in
            [("ok", &self.renewed), ("failed", &self.failed), ("enrolled", &self.enrolled)]
        {
            writeln!(f, "{name}{{outcome=\"{outcome}\"}} {}", counter.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lastkey_engine::Timestamp;

    use super::*;

    #[test]
    fn what_is_shown() {
        let metrics = IdentityMetrics::default();
        let at = Timestamp::from_millis;
        let held = Held {
            not_before: at(400_000),
            not_after: at(1_000_000),
            print: [0; 32],
            cluster: None,
        };
        metrics.shows(&held);
        metrics.renewed(true);
        metrics.renewed(false);
        metrics.renewed(false);
        let text = metrics.to_string();
        for line in [
            "lastkey_plugin_certificate_begins_seconds 400",
            "lastkey_plugin_certificate_ends_seconds 1000",
            "lastkey_plugin_certificate_renewals_total{outcome=\"ok\"} 1",
            "lastkey_plugin_certificate_renewals_total{outcome=\"failed\"} 2",
            "lastkey_plugin_certificate_renewals_total{outcome=\"enrolled\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
