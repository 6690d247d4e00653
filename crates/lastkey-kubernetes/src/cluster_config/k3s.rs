//! What k3s (and RKE2) tell their apiserver.

use std::path::PathBuf;

use super::{ConfigError, quoted};

/// A file for `/etc/rancher/k3s/config.yaml.d`, or RKE2's of the same kind.
#[derive(Debug, Clone)]
pub struct K3sConfig {
    /// Where the `EncryptionConfiguration` lies on the node.
    pub encryption_config: PathBuf,
}

impl K3sConfig {
    /// The file's content. The plus sign adds to a list that other files may have begun.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        let config = self.encryption_config.display();
        Ok(format!(
            "kube-apiserver-arg+:\n  - {}\n  - {}\n",
            quoted(&format!("encryption-provider-config={config}"))?,
            quoted("encryption-provider-config-automatic-reload=true")?,
        ))
    }
}
