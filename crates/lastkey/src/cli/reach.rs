//! How a cluster is reached, and what is seen then.

use std::path::PathBuf;

use clap::Args;

/// Options of `cluster add` that register how the cluster is reached.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "How the cluster is reached")]
pub(crate) struct AccessOptions {
    /// The cluster's kubeconfig: address, authority and credential of its current context. The
    /// credential is used once, to make the account `lastkey` with a narrow role; only that
    /// account's token is kept. For a cluster that is registered already, this is all that is done.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Have the server bring the cluster under each new version of its key by itself, as `cluster
    /// rotate --keep-version` does. It writes every object anew; without this, somebody has to.
    #[arg(long, requires = "kubeconfig")]
    pub(crate) rotate_automatically: bool,

    /// Who writes its objects anew in a rotation. With `cluster` the account is not made to read or
    /// write what is encrypted: it may have StorageVersionMigrations made, and no more (Kubernetes
    /// 1.37 or later; etcd has to be registered for the proof).
    #[arg(long, value_enum, value_name = "WAY", requires = "kubeconfig")]
    pub(crate) migration: Option<super::Migration>,

    /// Each apiserver's own address, instead of the kubeconfig's; may be given several times.
    #[arg(long = "apiserver", value_name = "URL", requires = "kubeconfig")]
    pub(crate) apiservers: Vec<String>,

    /// Keep the kubeconfig's own credential, and make no account.
    #[arg(long, requires = "kubeconfig")]
    pub(crate) own_credential: bool,

    /// A member of the cluster's etcd, to count what rests there; may be given several times.
    #[arg(long, value_name = "URL", requires = "kubeconfig")]
    pub(crate) etcd: Vec<String>,

    /// Who signed etcd's certificates (PEM).
    #[arg(long, value_name = "FILE", requires = "etcd")]
    pub(crate) etcd_ca: Option<PathBuf>,

    /// A client certificate for etcd (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["etcd", "etcd_key"])]
    pub(crate) etcd_cert: Option<PathBuf>,

    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["etcd", "etcd_cert"])]
    pub(crate) etcd_key: Option<PathBuf>,

    /// What the apiservers' keys in etcd start with (their --etcd-prefix).
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub(crate) etcd_prefix: String,

    /// The apiservers' EncryptionConfiguration, which says what is encrypted. It may be read again
    /// later, by whoever looks after the cluster, at the same path. A new cluster need not have it
    /// yet: `cluster enable` writes it.
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    pub(crate) encryption_config: Option<PathBuf>,

    /// What is encrypted, where there is no such file here: secrets, widgets.example.org, *.*; may
    /// be given several times [default: secrets].
    #[arg(long = "resource", value_name = "RESOURCE", requires = "kubeconfig")]
    pub(crate) resources: Vec<String>,
}

/// Options of `cluster status`.
#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// Which cluster: its name or id [default: all].
    pub(crate) name: Option<String>,

    /// A snapshot of its etcd is taken now under this name (lower-case letters, digits, `-`, `_`,
    /// `.`): what rests there now needs its key versions for as long as the snapshot is kept.
    #[arg(long, value_name = "ID", requires_all = ["name", "keep"])]
    pub(crate) backup: Option<String>,

    /// How long that snapshot is kept, such as 30d.
    #[arg(long, value_name = "TIME", requires = "backup", value_parser = super::node::time)]
    pub(crate) keep: Option<std::time::Duration>,
}
