//! Options of `cluster enable` and `cluster disable`.

use std::path::PathBuf;

use clap::Args;

/// Options of `cluster enable`.
#[derive(Debug, Args)]
pub(crate) struct EnableOptions {
    /// The key, where the cluster has several: an id, or alias/NAME [default: alias/kubernetes].
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// What the new provider is named in the configuration, and in etcd before each object.
    #[arg(long, value_name = "NAME", default_value = "lastkey")]
    pub(crate) provider: String,
    #[command(flatten)]
    pub(crate) change: ChangeOptions,
}

/// Options of `cluster disable`.
#[derive(Debug, Args)]
pub(crate) struct DisableOptions {
    /// Over to this provider, instead of back to clear: `aescbc`, `aesgcm` or `secretbox` (with the
    /// keys that the configuration has, else with a new one), the NAME of another KMS provider in
    /// the configuration, or NAME=unix:///SOCKET for a new one [default: identity].
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) change: ChangeOptions,
}

/// What both have.
#[derive(Debug, Args)]
pub(crate) struct ChangeOptions {
    /// The cluster's name or id.
    #[arg(required_unless_present = "verify")]
    pub(crate) name: Option<String>,
    /// The plugin's socket on the control plane [default: the one of `lastkey up`, else
    /// /run/lastkey/kms.sock].
    #[arg(long, value_name = "PATH")]
    pub(crate) plugin_socket: Option<PathBuf>,
    /// For what, as an EncryptionConfiguration names it; may be given several times [default: to
    /// enable, secrets and what the configuration encrypts already; to disable, what is under the
    /// plugin].
    #[arg(long = "resource", value_name = "RESOURCE")]
    pub(crate) resources: Vec<String>,
    /// A copy of the apiservers' configuration as it is now, where it does not lie here.
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_config: Option<PathBuf>,
    /// Print each step's file and wait for somebody to put it in place, even if it could be
    /// replaced here.
    #[arg(long)]
    pub(crate) by_hand: bool,
    /// Take the configuration as it is now, although somebody has changed it since the last step.
    #[arg(long)]
    pub(crate) accept_changes: bool,
    /// How many objects are written at once.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: u16,
    /// At most so many objects a second [default: as many as the apiserver takes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// How many objects are read, and held in memory, at once.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) page: u32,
    /// Have it rest, whoever works on it.
    #[arg(long, conflicts_with_all = ["resume", "cancel", "report"])]
    pub(crate) pause: bool,
    /// Go on with one that rests.
    #[arg(long, conflicts_with_all = ["cancel", "report"])]
    pub(crate) resume: bool,
    /// Give it up where it is: everything stays readable, nothing more is changed.
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
