//! Options of the audit log.

use std::path::PathBuf;

use clap::Args;
use lastkey_sinks::SinkAddress;

/// How `up` and `server` keep the audit log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Audit log")]
pub(crate) struct AuditOptions {
    /// A segment is closed when it is this large (k, M, G, T: powers of 1024).
    #[arg(
        id = "audit_segment_bytes", long = "audit-segment-bytes",
        value_name = "SIZE", default_value = "64M", value_parser = segment_size
    )]
    pub(crate) segment_bytes: u64,

    /// Closed segments are compressed (zstd).
    #[arg(
        id = "audit_compress", long = "audit-compress", action = clap::ArgAction::Set,
        value_name = "on|off", default_value = "on", value_parser = on_or_off
    )]
    pub(crate) compress: bool,

    /// Delete the oldest segments when all together are larger [default: keep everything].
    #[arg(
        id = "audit_retain_bytes", long = "audit-retain-bytes",
        value_name = "SIZE", value_parser = size
    )]
    pub(crate) retain_bytes: Option<u64>,

    /// Delete segments whose newest record is older [default: keep everything].
    #[arg(
        id = "audit_retain_days", long = "audit-retain-days",
        value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) retain_days: Option<u32>,

    /// The key that signs checkpoints, made where it is missing [default: checkpoint.key in the
    /// data directory]. Keep it out of backups of the data directory.
    #[arg(id = "audit_checkpoint_key", long = "audit-checkpoint-key", value_name = "FILE")]
    pub(crate) checkpoint_key: Option<PathBuf>,

    /// Carry the records elsewhere too: stdout, syslog, syslog:///PATH, syslog+udp://HOST:PORT,
    /// syslog+tcp://HOST:PORT (both without :PORT, too), https://HOST/PATH. May be given several
    /// times.
    #[arg(id = "audit_sink", long = "audit-sink", value_name = "SINK")]
    pub(crate) sinks: Vec<SinkAddress>,

    /// The CA (PEM) of https sinks, instead of the system's.
    #[arg(
        id = "audit_sink_ca",
        long = "audit-sink-ca",
        value_name = "FILE",
        requires = "audit_sink"
    )]
    pub(crate) sink_ca: Option<PathBuf>,

    /// A file with the bearer token of https sinks.
    #[arg(
        id = "audit_sink_token",
        long = "audit-sink-token-file",
        value_name = "FILE",
        requires = "audit_sink"
    )]
    pub(crate) sink_token: Option<PathBuf>,
}

/// Options of `audit verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyOptions {
    /// Verify a copy of a log (a data directory, or its audit directory) without any server.
    #[arg(long, value_name = "DIR", requires = "public_key")]
    pub(crate) offline: Option<PathBuf>,

    /// The public key of the checkpoints (PEM), as `lastkey audit public-key` printed it. May be
    /// given several times, where the key was changed.
    #[arg(long, value_name = "FILE", requires = "offline")]
    pub(crate) public_key: Vec<PathBuf>,

    /// A line of checkpoints.log, or several, that were kept elsewhere: the log must hold what
    /// they say.
    #[arg(long, value_name = "FILE", requires = "offline")]
    pub(crate) checkpoint: Vec<PathBuf>,
}

/// The smallest segment that makes sense; tests take no more time than they need.
const SMALLEST_SEGMENT: u64 = 4 << 10;

fn segment_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        size if size < SMALLEST_SEGMENT => Err("give at least 4k".to_owned()),
        size => Ok(size),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let wrong = || "give a number of bytes, such as 10000000, 64M or 20G".to_owned();
    let unit = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[unit.len()..].to_ascii_lowercase()[..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = unit.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(wrong)
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        audit: AuditOptions,
    }

    #[test]
    fn compression_is_on_or_off() {
        let compress = |arguments: &[&str]| {
            let given = ["lastkey"].iter().chain(arguments);
            Command::try_parse_from(given).map(|command| command.audit.compress)
        };
        assert!(compress(&[]).unwrap());
        for (word, taken) in [("on", true), ("off", false)] {
            assert_eq!(compress(&["--audit-compress", word]).unwrap(), taken);
            assert_eq!(compress(&[&format!("--audit-compress={word}")]).unwrap(), taken);
        }
        for wrong in [&["--audit-compress"][..], &["--audit-compress", "true"]] {
            assert!(compress(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("64M", 64 << 20), ("20g", 20 << 30), ("3kB", 3 << 10)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "0", "M", "-1", "1.5G", "1X", "99999999999T", "1 M"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(segment_size("100").is_err());
    }
}
