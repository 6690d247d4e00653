//! What docs/plugin-outages.md and docs/kubernetes.md lead one to expect, in numbers.

use std::time::Duration;

use super::{Outage, Outages, Probe};

/// What a server allows its plugins.
const SERVERS_LEASE: Duration = Duration::from_secs(15 * 60);
/// An apiserver writes for so long after the last good Status, which it asks for each minute, or
/// each ten seconds while something is wrong.
const EARLIEST: Duration = Duration::from_secs(100);
const LATEST: Duration = Duration::from_secs(200);
/// An apiserver dials a dead socket again after up to two minutes.
const DIALS_AGAIN: Duration = Duration::from_secs(130);
/// It asks for the key id once a minute.
const FOLLOWS: Duration = Duration::from_secs(70);
const SOON: Duration = Duration::from_secs(60);

/// For how long something goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// As long as the outage lasts.
    Throughout,
    /// It stops in that time.
    UntilBetween(Duration, Duration),
    /// It may stop, from the beginning on, and that is how it is.
    MayStop,
}

impl GoesOn {
    /// Whether that is what was seen: `stopped` is when it first failed, if it did.
    pub(super) fn fits(self, stopped: Option<Duration>, length: Duration) -> bool {
        match (self, stopped) {
            (Self::MayStop, _) | (Self::Throughout, None) => true,
            (Self::Throughout, Some(_)) => false,
            (Self::UntilBetween(_, latest), None) => length <= latest,
            (Self::UntilBetween(earliest, latest), Some(at)) => at >= earliest && at <= latest,
        }
    }

    pub(super) fn in_words(self, length: Duration) -> String {
        match self {
            Self::Throughout => "goes on".to_owned(),
            Self::UntilBetween(earliest, _) if length < earliest => "goes on so long".to_owned(),
            Self::UntilBetween(earliest, latest) => {
                format!("stops after {} to {} s", earliest.as_secs(), latest.as_secs())
            }
            Self::MayStop => "may fail".to_owned(),
        }
    }
}

/// What is expected of one outage.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    outage: Outage,
    write_lease: Duration,
    /// After it was undone.
    pub(super) healed_within: Duration,
    /// In words.
    pub(super) words: String,
}

impl Expected {
    pub(super) fn of(outage: Outage, drill: &Outages) -> Self {
        let lease = |given: Option<Duration>| given.unwrap_or(SERVERS_LEASE).min(SERVERS_LEASE);
        let write_lease = lease(drill.write_lease);
        let lease_time = match write_lease.as_secs() {
            seconds if seconds < 120 => format!("{seconds} s"),
            seconds => format!("{} min", seconds / 60),
        };
        let (healed_within, words) = match outage {
            Outage::ServerDown | Outage::ServerSlow | Outage::Sealed => (
                SOON,
                format!(
                    "users see nothing for {lease_time}, then writes stop about 3 min later; reads \
                     go on from the apiservers' memory; /readyz/kms-providers says why"
                ),
            ),
            Outage::KeyDisabled => (
                SOON,
                "writes stop about 3 min later; reads go on from the apiservers' memory".to_owned(),
            ),
            Outage::PluginKilled => (
                DIALS_AGAIN,
                "writes of that apiserver stop about 3 min later, reads go on from its memory; the \
                 other one notices nothing. An apiserver dials again after up to 2 min"
                    .to_owned(),
            ),
            Outage::StuckApiserver => (
                FOLLOWS + SOON,
                "both go on writing, the stuck one under the old version; it cannot read what the \
                 other one writes under the new one, so its lists fail; both follow within about a \
                 minute once it is connected"
                    .to_owned(),
            ),
        };
        Self { outage, write_lease, healed_within, words }
    }

    /// Of one probe of the apiserver one (0) or two (1).
    pub(super) fn goes_on(&self, side: usize, probe: Probe) -> GoesOn {
        let until = GoesOn::UntilBetween(EARLIEST, LATEST);
        let after_lease =
            GoesOn::UntilBetween(self.write_lease + EARLIEST, self.write_lease + LATEST + SOON);
        match (self.outage, probe, side) {
            (_, Probe::Ready, _) => GoesOn::MayStop,
            (Outage::ServerDown | Outage::ServerSlow | Outage::Sealed, Probe::Write, _) => {
                after_lease
            }
            (Outage::KeyDisabled, Probe::Write, _) | (Outage::PluginKilled, Probe::Write, 0) => {
                until
            }
            (Outage::StuckApiserver, Probe::ReadOther | Probe::List, 1) => GoesOn::MayStop,
            _ => GoesOn::Throughout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        let seconds = Duration::from_secs;
        let until = GoesOn::UntilBetween(seconds(100), seconds(200));
        assert!(until.fits(None, seconds(30)) && until.fits(Some(seconds(170)), seconds(240)));
        assert!(!until.fits(None, seconds(240)) && !until.fits(Some(seconds(5)), seconds(240)));
        assert!(GoesOn::Throughout.fits(None, seconds(1)));
        assert!(!GoesOn::Throughout.fits(Some(seconds(1)), seconds(2)));
        assert_eq!(until.in_words(seconds(30)), "goes on so long");
        assert_eq!(until.in_words(seconds(240)), "stops after 100 to 200 s");
    }
}
