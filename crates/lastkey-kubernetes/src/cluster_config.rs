//! What configures a control plane for the plugin, ready to be written to files: the apiserver's
//! `EncryptionConfiguration`, and three ways to run plugin and apiserver together.
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
mod kubeadm;
mod static_pod;
mod systemd;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use crate::socket::SocketAddress;

pub use encryption::{EncryptionConfig, KmsVersion};
pub use kubeadm::ApiserverPatch;
pub use static_pod::StaticPod;
pub use systemd::SystemdUnits;

/// How `lastkey kms-plugin` is started on a control-plane node.
#[derive(Debug, Clone)]
pub struct PluginCommand {
    /// The key: an id or `alias/…`.
    pub key: String,
    /// The servers' addresses, in the order to try them.
    pub servers: Vec<String>,
    /// Where the apiserver dials.
    pub socket: SocketAddress,
    /// The directory with the files of `lastkey cluster add`: `plugin.pem`, `plugin.key`, `ca.pem`.
    pub identity: PathBuf,
}

impl PluginCommand {
    /// The arguments behind the binary's name.
    pub fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.identity.join(name).display().to_string();
        let mut arguments = vec!["kms-plugin".to_owned()];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--socket", self.socket.to_string());
        option("--key", self.key.clone());
        self.servers.iter().for_each(|server| option("--server", server.clone()));
        option("--client-cert", file("plugin.pem"));
        option("--client-key", file("plugin.key"));
        option("--ca-file", file("ca.pem"));
        arguments
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
    /// The apiserver would refuse it, or never match it.
    #[error("{resource:?} cannot be encrypted: {reason}")]
    Resource {
        /// As given.
        resource: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// These need a directory to mount or to make.
    #[error("this needs a socket with a path, not an abstract one")]
    NeedsPath,
    /// The socket cannot be dialled.
    #[error("the socket address is not usable: {0}")]
    Socket(String),
    /// A control character would break the file.
    #[error("{0:?} holds a control character")]
    Control(String),
}

/// A YAML scalar: JSON's strings are YAML's double-quoted ones.
fn quoted(text: &str) -> Result<String, ConfigError> {
    match text.chars().any(char::is_control) {
        true => Err(ConfigError::Control(text.to_owned())),
        false => Ok(serde_json::Value::from(text).to_string()),
    }
}

/// The directory of a file, to mount or to make.
fn parent_of(path: &std::path::Path) -> String {
    path.parent().unwrap_or(path).display().to_string()
}
