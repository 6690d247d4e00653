//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{floor::shape::Shape, scenario::Scenario};

/// Measures lastkey and the bare floor, alternating, on this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve as the floor; started by the benchmark itself
    #[command(hide = true)]
    Floor(FloorOptions),
    /// Make keys in this process; started by the benchmark itself
    #[command(hide = true)]
    Worker(WorkerOptions),
    /// Write a cluster's Secrets back; started by the benchmark itself
    #[command(hide = true)]
    BareRotate(BareOptions),
    /// Serve as lastkey's server and count allocations; started by the benchmark itself
    #[command(hide = true)]
    CountedServer(CountedOptions),
}

/// What to measure, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 0.3)]
    pub(crate) warm_up: f64,
    /// How often floor and ours take turns; medians are reported
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Only these
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<Scenario>,
    /// All of them
    #[arg(long, conflicts_with = "only")]
    pub(crate) all: bool,
    /// Connections (or calls in flight) at one time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    pub(crate) connections: Vec<usize>,
    /// Bytes of the plaintext
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) plaintext: u16,
    /// How requests are signed
    #[arg(long, value_enum, default_value_t = Signature::Acs3)]
    pub(crate) signature: Signature,
    /// The binary to measure [default: the one beside this]
    #[arg(long)]
    pub(crate) lastkey: Option<PathBuf>,
    /// Where both sides keep their files; a real disk [default: target/bench]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// MiB of the file that is encrypted
    #[arg(long, default_value_t = 1024)]
    pub(crate) file_mib: usize,
    /// Secrets of the cluster that is rotated
    #[arg(long, default_value_t = 3000)]
    pub(crate) objects: usize,
    /// Make the stores for `start` anew [they are kept in target/bench-stores]
    #[arg(long)]
    pub(crate) fresh_stores: bool,
    /// Write tables and plots into docs/benchmarks.md, as far as they were measured
    #[arg(long)]
    pub(crate) write_docs: bool,
    /// A table, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Put load for this long on ours alone, for a profiler; needs one --only and one --connections
    #[arg(long, value_name = "SECONDS")]
    pub(crate) soak: Option<f64>,
}

/// The two signature protocols of the Alibaba wire that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Signature {
    /// ACS3-HMAC-SHA256 in the headers, parameters in the query, as the current SDKs send it
    Acs3,
    /// RPC v1, HMAC-SHA1, everything in the query, as the older SDKs send it
    Rpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table
    Text,
    /// One JSON object a line, the last one a report
    Json,
}

/// The floor's side of a benchmark.
#[derive(Clone, Debug, Args)]
pub(crate) struct FloorOptions {
    /// Where its file and sockets go
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// What it does for each request
    #[arg(long, value_enum)]
    pub(crate) job: Job,
    /// Bytes it encrypts for each request
    #[arg(long)]
    pub(crate) plaintext: usize,
    /// Bytes of each HTTP answer's body
    #[arg(long)]
    pub(crate) answer: usize,
    /// Bytes of each ciphertext over gRPC
    #[arg(long)]
    pub(crate) ciphertext: usize,
    /// The records that one creation of a key writes, JSON
    #[arg(long)]
    pub(crate) shape: Option<Shape>,
    /// Count allocations
    #[arg(long)]
    pub(crate) count: bool,
}

/// What the floor does for each request, beside making a record durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Job {
    /// Encrypt as many bytes
    Seal,
    /// Decrypt as many bytes
    Open,
    /// Draw a data key and encrypt it
    DataKey,
    /// Commit a key's records to redb instead
    Keep,
}

/// One measurement of key creation, in a process of its own.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkerOptions {
    /// Whose
    #[arg(long, value_enum)]
    pub(crate) engine: Engine,
    /// Where its files go
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Who makes keys at one time
    #[arg(long)]
    pub(crate) callers: usize,
    /// Seconds before the measurement
    #[arg(long)]
    pub(crate) warm_up: f64,
    /// Seconds of the measurement
    #[arg(long)]
    pub(crate) seconds: f64,
    /// The records that one creation writes, JSON
    #[arg(long)]
    pub(crate) shape: Option<Shape>,
}

/// Who keeps keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Lastkey's engine
    Ours,
    /// Lastkey's engine, not measured: tells what records it writes
    Watched,
    /// Bare redb
    Redb,
}

impl Engine {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Watched => "watched",
            Self::Redb => "redb",
        }
    }
}

impl Job {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seal => "seal",
            Self::Open => "open",
            Self::DataKey => "data-key",
            Self::Keep => "keep",
        }
    }
}

/// Workers that write a cluster's Secrets back and do nothing else.
#[derive(Clone, Debug, Args)]
pub(crate) struct BareOptions {
    /// How the cluster is reached
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
    /// How many write at once
    #[arg(long)]
    pub(crate) workers: usize,
    /// How many are listed at once
    #[arg(long)]
    pub(crate) page: u32,
}

/// The server whose allocations are counted.
#[derive(Clone, Debug, Args)]
pub(crate) struct CountedOptions {
    /// Where its files go
    #[arg(long)]
    pub(crate) dir: PathBuf,
}

impl Signature {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Acs3 => "acs3",
            Self::Rpc => "rpc",
        }
    }
}
