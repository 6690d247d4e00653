//! What k3s tells its apiserver, which is part of its own process.

use std::path::{Path, PathBuf};

use super::{ConfigError, Rke2Config, quoted};
use crate::socket::SocketAddress;

/// Where the plugin listens unless told otherwise.
const SOCKET: &str = "/run/lastkey/kms.sock";

/// A file for `/etc/rancher/k3s/config.yaml.d`.
#[derive(Debug, Clone)]
pub struct K3sConfig {
    /// Where the `EncryptionConfiguration` lies on the node.
    pub encryption_config: PathBuf,
}

impl K3sConfig {
    /// The file's content. The plus sign adds to a list that other files may have begun. What RKE2
    /// needs instead ([`Rke2Config`]) is in it as a comment, for the usual socket.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        let encryption_config = self.encryption_config.clone();
        let socket = SocketAddress::Path(SOCKET.into());
        let rke2: String = Rke2Config { encryption_config, socket }
            .yaml()?
            .lines()
            .map(|line| format!("#{line}\n"))
            .collect();
        Ok(format!(
            "{}
# RKE2 runs its apiserver in a pod. There, in /etc/rancher/rke2/config.yaml.d/lastkey.yaml, put the
# following in place of the lines above; with another --plugin-socket, its directory in place of
# /run/lastkey.
{rke2}",
            arguments(&self.encryption_config)?
        ))
    }
}

/// The apiserver's own arguments, for a configuration at that path.
pub(super) fn arguments(encryption_config: &Path) -> Result<String, ConfigError> {
    Ok(format!(
        "kube-apiserver-arg+:\n  - {}\n  - {}\n",
        quoted(&format!("encryption-provider-config={}", encryption_config.display()))?,
        quoted("encryption-provider-config-automatic-reload=true")?,
    ))
}
