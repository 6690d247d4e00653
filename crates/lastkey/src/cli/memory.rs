//! Options that say what a plugin remembers, and for how long it goes on while its server is away
//! (docs/plugin-outages.md).

use std::{path::PathBuf, time::Duration};

use clap::Args;
use lastkey_kubernetes::plugin::{DEFAULT_ENTRIES, Leases, MemoryConfig};

/// The shortest lease: the server is asked three times during each.
const SHORTEST: Duration = Duration::from_secs(5);

/// What a plugin does while its server is away.
#[derive(Clone, Debug, Args)]
pub(crate) struct MemoryOptions {
    /// Remember at most so many answers to Decrypt, in locked memory, so that reads go on while
    /// the server is away; 0 remembers none.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ENTRIES as u32,
          value_parser = clap::value_parser!(u32).range(0..=65_536))]
    cache_entries: u32,

    /// Go on with reads for so long after the server was last heard, such as 90s or 15m; never for
    /// longer than the server allows, which is 15 minutes [default: what the server allows].
    #[arg(long, value_name = "TIME", value_parser = lease)]
    lease: Option<Duration>,

    /// Tell the apiserver for so long that writes may go on [default: what the server allows].
    #[arg(long, value_name = "TIME", value_parser = lease)]
    write_lease: Option<Duration>,
}

impl MemoryOptions {
    /// What to remember, recording in that directory what is answered from it.
    pub(crate) fn memory(&self, directory: PathBuf) -> Option<MemoryConfig> {
        let entries = usize::try_from(self.cache_entries).unwrap_or(DEFAULT_ENTRIES);
        (entries > 0).then_some(MemoryConfig { entries, directory })
    }

    /// For how long to go on.
    pub(crate) fn leases(&self) -> Leases {
        Leases { reads: self.lease, writes: self.write_lease }
    }
}

fn lease(text: &str) -> Result<Duration, String> {
    let wrong = || "give a number and s, m or h, such as 90s; at least 5s".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u32 = number.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
    let lease = Duration::from_secs(u64::from(number) * unit);
    if lease < SHORTEST { Err(wrong()) } else { Ok(lease) }
}

/// What a server may give its plugins: what a process before this one gave out was no longer.
const SERVERS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(30)..=Duration::from_secs(15 * 60);

pub(super) fn server_lease(text: &str) -> Result<Duration, String> {
    lease(text).ok().filter(|lease| SERVERS.contains(lease)).ok_or_else(|| {
        "give 30s to 15m, a number with s or m: no plugin goes on for longer without its server"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_leases_are_bounded() {
        assert_eq!(server_lease("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(server_lease("15m"), Ok(Duration::from_secs(900)));
        for text in ["29s", "16m", "1s", "1h", "soon"] {
            // those of a plugin are others
            assert!(server_lease(text).unwrap_err().starts_with("give 30s to 15m"), "{text}");
        }
    }

    #[test]
    fn leases() {
        for (text, seconds) in [("5s", 5), ("90s", 90), ("15m", 900), ("2h", 7200)] {
            assert_eq!(lease(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5", "4s", "0h", "+5m", "-5m", "5d", "1.5h", "99999999999h", "é"] {
            assert!(lease(text).is_err(), "{text}");
        }
    }
}
