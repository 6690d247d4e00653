//! Options of `cluster rotate`.

use std::path::PathBuf;

use clap::Args;
use lastkey_kubernetes::cluster::Migrate;

/// Who writes a cluster's objects anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Migration {
    /// Lastkey where the account may update what is encrypted, else the cluster where the account may
    /// ask for that.
    Auto,
    /// Lastkey: it reads and writes back every object.
    Own,
    /// The cluster, by StorageVersionMigrations (Kubernetes 1.37 or later): no object passes through
    /// Lastkey, which need not even be allowed to read any.
    Cluster,
}

impl From<Migration> for Migrate {
    fn from(given: Migration) -> Self {
        match given {
            Migration::Auto => Self::Auto,
            Migration::Own => Self::Own,
            Migration::Cluster => Self::Cluster,
        }
    }
}

/// Options of `cluster rotate`.
#[derive(Debug, Args)]
pub(crate) struct RotateOptions {
    /// The cluster's name.
    #[arg(required_unless_present = "verify")]
    pub(crate) name: Option<String>,
    /// The key to rotate, where the cluster has several: an id, or alias/NAME.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Make no new version: bring everything under the present one, as after a key has rotated by
    /// itself.
    #[arg(long)]
    pub(crate) keep_version: bool,
    /// Have the older versions retired once nothing needs them any more: no cluster, and no backup
    /// within its retention. The server does that by itself; `lastkey key versions` shows it.
    #[arg(long, conflicts_with = "namespace")]
    pub(crate) retire: bool,
    /// Only this namespace; no version becomes free by it.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// What to write anew, as the EncryptionConfiguration names it; may be given several times
    /// [default: what the registered configuration encrypts, if it lies on this machine, else
    /// secrets].
    #[arg(long = "resource", value_name = "RESOURCE")]
    pub(crate) resources: Vec<String>,
    /// How many objects are written at once [default: 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// At most so many objects a second [default: as many as the apiserver takes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// How many objects are read, and held in memory, at once.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) page: u32,
    /// Who writes the objects anew [default: what was registered with the cluster, else auto].
    #[arg(long, value_enum, value_name = "WAY")]
    pub(crate) migration: Option<Migration>,
    /// How long to wait for kube-controller-manager to take up a migration of the cluster's own; ten
    /// times as long for one that is under way and stands still.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = super::node::time)]
    pub(crate) migration_patience: std::time::Duration,
    /// Have the rotation rest, whoever works on it.
    #[arg(long, conflicts_with_all = ["resume", "cancel", "report"])]
    pub(crate) pause: bool,
    /// Go on with one that rests.
    #[arg(long, conflicts_with_all = ["cancel", "report"])]
    pub(crate) resume: bool,
    /// Give the rotation up; what was written anew stays so.
    #[arg(long, conflicts_with = "report")]
    pub(crate) cancel: bool,
    /// Print the newest report, one signed line.
    #[arg(long)]
    pub(crate) report: bool,
    /// Check a report offline, without any server.
    #[arg(long, value_name = "FILE", requires = "public_key", conflicts_with_all = ["name", "pause", "resume", "cancel", "report"])]
    pub(crate) verify: Option<PathBuf>,
    /// The public key of `lastkey audit public-key` (PEM), to check a report with.
    #[arg(long, value_name = "FILE", requires = "verify")]
    pub(crate) public_key: Option<PathBuf>,
}
