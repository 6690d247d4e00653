//! The ends of things: versions retired, overrides confirmed, clusters let go.

use clap::{Args, Subcommand};

use super::Twice;

/// Options of `key versions`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct VersionsOptions {
    /// Its id, or alias/NAME.
    #[arg(required = true)]
    pub(crate) key: Option<String>,
    #[command(subcommand)]
    pub(crate) action: Option<VersionAction>,
}

/// What to do with a key's version.
#[derive(Debug, Subcommand)]
pub(crate) enum VersionAction {
    /// Have a version decrypt no more. Refused while something needs it; it can be taken back until
    /// its material is destroyed, and that happens only while nothing needs it.
    #[command(disable_version_flag = true)]
    Retire {
        /// The key: its id, or alias/NAME.
        key: String,
        /// The version.
        #[arg(long, value_name = "ID")]
        version: String,
        /// Destroy its material in how many days (7–366).
        #[arg(long, default_value_t = 30, value_name = "DAYS")]
        in_days: u16,
        /// Wait until nothing needs it any more, such as until the last backup has ended; the
        /// server does it then by itself.
        #[arg(long, conflicts_with = "overriding")]
        when_free: bool,
        #[command(flatten)]
        twice: Twice,
    },
    /// Take a retirement back: the version decrypts again.
    #[command(disable_version_flag = true)]
    Reinstate {
        /// The key: its id, or alias/NAME.
        key: String,
        /// The version.
        #[arg(long, value_name = "ID")]
        version: String,
    },
}

/// Options of `operator guard`.
#[derive(Debug, Args)]
pub(crate) struct GuardOptions {
    /// Have an override need a second person, or no longer; to end it needs one, too.
    #[arg(long, value_enum, value_name = "STATE", requires = "reason")]
    pub(crate) second_person: Option<Switch>,
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT", requires = "second_person")]
    pub(crate) reason: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    /// It is done.
    On,
    /// It is not.
    Off,
}

/// Options of `cluster set`.
#[derive(Debug, Args)]
pub(crate) struct SetOptions {
    /// The cluster's name or id.
    pub(crate) name: String,
    /// Whether the server brings the cluster under a new version of its key by itself, as `cluster
    /// rotate --keep-version` does.
    #[arg(long, value_enum, value_name = "STATE", required_unless_present = "migration")]
    pub(crate) rotate_automatically: Option<Switch>,
    /// Who writes its objects anew in a rotation. Its account may do what it could before: `cluster
    /// add NAME --kubeconfig FILE --migration WAY` changes that too.
    #[arg(long, value_enum, value_name = "WAY")]
    pub(crate) migration: Option<super::Migration>,
    /// And has the older versions retired once nothing needs them.
    #[arg(long)]
    pub(crate) retire: bool,
}

/// Options of `cluster remove-access`.
#[derive(Debug, Args)]
pub(crate) struct RemoveAccessOptions {
    /// The cluster's name or id.
    pub(crate) name: String,
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

/// Options of `cluster forget`.
#[derive(Debug, Args)]
pub(crate) struct ForgetOptions {
    /// The cluster's name or id.
    pub(crate) name: String,
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Do it although there is something of it, which is lost then: name the cluster once more.
    #[arg(long = "override", value_name = "NAME")]
    pub(crate) overriding: Option<String>,
}
