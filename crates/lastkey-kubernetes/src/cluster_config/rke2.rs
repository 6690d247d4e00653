//! What RKE2 tells its apiserver.
//!
//! It runs the apiserver in a pod. Files that are named in the apiserver's arguments *and exist on
//! the node* it mounts one by one: such a file stays the old one in the pod when it is replaced by
//! a rename. So the configuration's directory is mounted where the node has nothing, and the
//! argument names the file there. The socket's directory has to be mounted as well.

use std::path::{Path, PathBuf};

use super::{ConfigError, k3s::arguments, parent_of, quoted};
use crate::socket::SocketAddress;

/// Where the apiserver's container has the configuration's directory; no path of the node.
const INSIDE: &str = "/lastkey";

/// A file for `/etc/rancher/rke2/config.yaml.d`.
#[derive(Debug, Clone)]
pub struct Rke2Config {
    /// Where the `EncryptionConfiguration` lies on the node; its directory is mounted.
    pub encryption_config: PathBuf,
    /// Where the plugin listens; its directory is mounted.
    pub socket: SocketAddress,
}

impl Rke2Config {
    /// The file's content. The plus signs add to lists that other files may have begun.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        let file = self.encryption_config.file_name().unwrap_or_default();
        let mut yaml = arguments(&Path::new(INSIDE).join(file))?;
        yaml += "kube-apiserver-extra-mount+:\n";
        yaml += &mount(&parent_of(&self.encryption_config), INSIDE)?;
        // an abstract socket needs none: the apiserver shares the node's network
        if let SocketAddress::Path(path) = &self.socket {
            let directory = parent_of(path);
            yaml += &mount(&directory, &directory)?;
        }
        Ok(yaml)
    }
}

/// RKE2 splits it at the colons. Dialling a socket needs no right to write to its directory.
fn mount(host: &str, inside: &str) -> Result<String, ConfigError> {
    match host.contains(':') {
        true => Err(ConfigError::Colon(host.to_owned())),
        false => Ok(format!("  - {}\n", quoted(&format!("{host}:{inside}:ro"))?)),
    }
}
