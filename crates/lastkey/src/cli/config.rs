//! What `cluster config` prints.

use std::path::PathBuf;

use clap::Args;

/// Options of `cluster config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigOptions {
    /// What to print.
    #[arg(value_enum, default_value = "all")]
    pub(crate) piece: ConfigPiece,
    /// The key that the plugin uses: an id, or alias/NAME.
    #[arg(long, default_value = "alias/kubernetes")]
    pub(crate) key: String,
    /// The server's address as the control plane knows it; repeat it where that one server has
    /// several addresses [default: that of the credentials].
    #[arg(long = "server", value_name = "URL")]
    pub(crate) servers: Vec<String>,
    /// The plugin's socket on the control plane.
    #[arg(long, default_value = "/run/lastkey/kms.sock", value_name = "PATH")]
    pub(crate) plugin_socket: PathBuf,
    /// The directory on the control plane with the files of `cluster add`; with --enrol, only
    /// with ca.pem.
    #[arg(long, default_value = "/etc/lastkey", value_name = "DIR")]
    pub(crate) identity_dir: PathBuf,
    /// Have the plugin get its identity by the node's kubelet certificate, for the cluster of this
    /// id; it needs the approval of `cluster node approve`.
    #[arg(long, value_name = "CLUSTER_ID")]
    pub(crate) enrol: Option<String>,
    /// The kubelet's client certificate on the control plane (PEM).
    #[arg(
        long,
        value_name = "FILE",
        requires = "enrol",
        default_value = "/var/lib/kubelet/pki/kubelet-client-current.pem"
    )]
    pub(crate) kubelet_cert: PathBuf,
    /// The kubelet's private key there (PEM) [default: in the same file].
    #[arg(long, value_name = "FILE", requires = "enrol")]
    pub(crate) kubelet_key: Option<PathBuf>,
    /// Have the plugin serve its metrics on this loopback address, such as 127.0.0.1:9099.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics_listen: Option<std::net::SocketAddr>,
    /// The provider's name.
    #[arg(long, default_value = "lastkey", value_name = "NAME")]
    pub(crate) provider: String,
    /// What to encrypt, such as secrets, deployments.apps, *.apps or *.*; may be given several
    /// times. Without secrets among it, those stay in clear.
    #[arg(long = "resource", default_value = "secrets", value_name = "RESOURCE")]
    pub(crate) resources: Vec<String>,
    /// The apiserver's KMS API version; v1 is only for releases before 1.27.
    #[arg(long, default_value = "v2", value_parser = ["v1", "v2"])]
    pub(crate) kms_version: String,
    /// The plugin's container image with its registry, for the static pod and the Helm chart;
    /// localhost/ is for an image that was imported on the node, and is never pulled.
    #[arg(long, default_value = concat!("localhost/lastkey:", env!("CARGO_PKG_VERSION")),
          value_name = "REGISTRY/IMAGE:TAG")]
    pub(crate) image: String,
}

/// A piece of a cluster's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ConfigPiece {
    /// Everything for a control plane.
    All,
    /// The EncryptionConfiguration for the apiserver.
    Encryption,
    /// A static pod that runs the plugin.
    StaticPod,
    /// systemd units that run the plugin.
    Systemd,
    /// Values for the Helm chart that runs the plugin; needs --enrol.
    Helm,
    /// A kubeadm patch for the apiserver; to be given again at every upgrade and every join.
    Kubeadm,
    /// What kubeadm's ClusterConfiguration needs in place of the patch, which lasts.
    KubeadmConfig,
    /// A configuration file for k3s.
    K3s,
    /// A configuration file for RKE2.
    Rke2,
    /// Prometheus alert rules.
    Alerts,
    /// A Grafana board.
    Dashboard,
}
