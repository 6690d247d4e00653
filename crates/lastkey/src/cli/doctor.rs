//! What looks at a cluster.

use std::path::PathBuf;

use clap::Args;

/// Options of `cluster doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Look at this registered cluster: its apiservers, what rests in it, its credentials, and on a
    /// control-plane node the apiserver's flags and the plugin's socket.
    #[arg(required_unless_present = "encryption_config")]
    pub(crate) name: Option<String>,

    /// Judge this EncryptionConfiguration as an apiserver (1.37) would read it. Alone it needs no
    /// server and no cluster; with a cluster it stands in for the registered one.
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_config: Option<PathBuf>,

    /// The static pod that runs the apiserver, for its flags. Used if it is there.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    )]
    pub(crate) apiserver_manifest: PathBuf,
}
