//! What looks at a control-plane node.

use std::path::PathBuf;

use clap::Args;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct NodeDoctorOptions {
    /// The apiserver: its static pod manifest, or its process id [default: kubeadm's manifest, else
    /// a running kube-apiserver].
    #[arg(long, value_name = "FILE|PID")]
    pub(crate) apiserver: Option<String>,

    /// The plugin: its static pod manifest, or its process id, or that of `lastkey up` [default: a
    /// running lastkey kms-plugin, else the manifest that `cluster config` prints].
    #[arg(long, value_name = "FILE|PID")]
    pub(crate) plugin: Option<String>,

    /// The EncryptionConfiguration [default: the one that the apiserver names].
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_config: Option<PathBuf>,
}
