//! What configures a control plane for the plugin, ready to be written to files: the apiserver's
//! `EncryptionConfiguration`, ways to run the plugin (systemd, static pod) and to tell the apiserver
//! (kubeadm, k3s, RKE2).
//!
//! Everything is checked before it is printed, because an apiserver refuses to start with a
//! configuration it does not like, and takes some that defeat the purpose without a word.
//!
//! ```
//! use lastkey_kubernetes::cluster_config::EncryptionConfig;
//!
//! let socket = "/run/lastkey/kms.sock".parse().unwrap();
//! let yaml = EncryptionConfig::new(socket).yaml().unwrap();
//! assert!(yaml.contains("endpoint: \"unix:///run/lastkey/kms.sock\""));
//! ```

mod encryption;
mod helm;
mod image;
mod k3s;
mod kubeadm;
#[cfg(test)]
mod kubeadm_tests;
mod rke2;
mod static_pod;
mod systemd;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf};

use crate::{encryption_config::Finding, socket::SocketAddress};

pub use encryption::{EncryptionConfig, KmsVersion};
pub use helm::HelmValues;
pub use k3s::K3sConfig;
pub use kubeadm::{ApiserverPatch, KubeadmConfig};
pub use rke2::Rke2Config;
pub use static_pod::StaticPod;
pub use systemd::SystemdUnits;

/// How `lastkey kms-plugin` is started on a control-plane node.
#[derive(Debug, Clone)]
pub struct PluginCommand {
    /// The key: an id or `alias/…`.
    pub key: String,
    /// The server's addresses, in the order to try them.
    pub servers: Vec<String>,
    /// Where the apiserver dials.
    pub socket: SocketAddress,
    /// As whom the plugin calls the server.
    pub identity: Identity,
    /// Where the plugin keeps what it has to remember over restarts.
    pub state: PathBuf,
    /// Where it serves its metrics, on the loopback.
    pub metrics: Option<SocketAddr>,
}

/// As whom a plugin calls the server.
#[derive(Debug, Clone)]
pub enum Identity {
    /// By the files of `lastkey cluster add` in a directory: `plugin.pem`, `plugin.key`, `ca.pem`.
    /// The first two are replaced there before they run out.
    Files(PathBuf),
    /// By the node's own kubelet certificate, so that no secret has to be placed.
    Enrolled {
        /// The cluster's id.
        cluster: String,
        /// The CA of the server.
        ca: PathBuf,
        /// The kubelet's certificate.
        kubelet: PathBuf,
        /// Its key, where that is not in the same file.
        kubelet_key: Option<PathBuf>,
    },
}

impl PluginCommand {
    /// The arguments behind the binary's name.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["kms-plugin".to_owned()];
        let mut option = |name: &str, value: &dyn std::fmt::Display| {
            arguments.extend([name.to_owned(), value.to_string()]);
        };
        option("--socket", &self.socket);
        option("--key", &self.key);
        self.servers.iter().for_each(|server| option("--server", server));
        match &self.identity {
            Identity::Files(directory) => {
                option("--client-cert", &directory.join("plugin.pem").display());
                option("--client-key", &directory.join("plugin.key").display());
                option("--ca-file", &directory.join("ca.pem").display());
            }
            Identity::Enrolled { cluster, ca, kubelet, kubelet_key } => {
                option("--cluster", cluster);
                option("--ca-file", &ca.display());
                option("--kubelet-cert", &kubelet.display());
                if let Some(key) = kubelet_key {
                    option("--kubelet-key", &key.display());
                }
            }
        }
        option("--state-dir", &self.state.display());
        if let Some(address) = &self.metrics {
            option("--metrics-listen", address);
        }
        if matches!(self.identity, Identity::Enrolled { .. }) {
            arguments.push("--enrol".to_owned());
        }
        arguments
    }

    /// Directories that it needs, that of the socket first, each with whether it writes in it.
    fn directories(&self) -> Result<Vec<(&'static str, String, bool)>, ConfigError> {
        let mut directories = vec![
            ("socket", parent_of(self.socket_path()?), true),
            ("state", self.state.display().to_string(), true),
        ];
        match &self.identity {
            Identity::Files(directory) => {
                directories.push(("identity", directory.display().to_string(), true));
            }
            Identity::Enrolled { ca, kubelet, kubelet_key, .. } => {
                directories.push(("ca", parent_of(ca), false));
                directories.push(("kubelet", parent_of(kubelet), false));
                let key = kubelet_key.as_deref().map(parent_of);
                if let Some(apart) = key.filter(|key| *key != parent_of(kubelet)) {
                    directories.push(("kubelet-key", apart, false));
                }
            }
        }
        Ok(directories)
    }

    fn socket_path(&self) -> Result<&std::path::Path, ConfigError> {
        match &self.socket {
            SocketAddress::Path(path) => Ok(path),
            SocketAddress::Abstract(_) => Err(ConfigError::NeedsPath),
        }
    }
}

/// Why a configuration would not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The apiserver finds stored objects again by this name.
    #[error("the provider name {0:?} must be a DNS label: lower-case letters, digits and -")]
    Provider(String),
    /// Nothing would be encrypted.
    #[error("no resource is named; secrets is the usual one")]
    NoResource,
    /// The apiserver would refuse it, never match a resource, or never reach the plugin.
    #[error("the apiserver's configuration would not work: {}; {}", .0.message, .0.fix)]
    Refused(Finding),
    /// The chart brings no secret to a node.
    #[error(
        "the chart's plugins get their identity by the kubelet's certificate: give --enrol CLUSTER_ID"
    )]
    NeedsEnrolment,
    /// The chart would mount it twice, and every apiserver would refuse the pod.
    #[error(
        "the chart mounts each directory by itself, and {0:?} would be two of them: give the socket, ca.pem, \
         the kubelet's files and the state a directory each"
    )]
    Shared(String),
    /// These need a directory to mount or to make.
    #[error("this needs a socket with a path, not an abstract one")]
    NeedsPath,
    /// The socket cannot be dialled.
    #[error("the socket address is not usable: {0}")]
    Socket(String),
    /// A kubelet would not find the image, or fetch somebody else's.
    #[error("the image {image:?} cannot be used: {reason}")]
    Image {
        /// As given.
        image: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It would be taken for two paths.
    #[error("{0:?} cannot be mounted by RKE2, which splits a mount at its colons")]
    Colon(String),
    /// A control character would break the file.
    #[error("{0:?} holds a control character")]
    Control(String),
}

/// A YAML scalar: JSON's strings are YAML's double-quoted ones.
fn quoted(text: &str) -> Result<String, ConfigError> {
    // at the last two go-yaml ends a line, too
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    match text.chars().any(breaks) {
        true => Err(ConfigError::Control(text.to_owned())),
        false => Ok(serde_json::Value::from(text).to_string()),
    }
}

/// The directory of a file, to mount or to make.
fn parent_of(path: &std::path::Path) -> String {
    path.parent().unwrap_or(path).display().to_string()
}
