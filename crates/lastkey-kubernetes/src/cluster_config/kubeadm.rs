//! The change to kubeadm's apiserver manifest.

use serde_json::{Value, json};

use super::{ConfigError, parent_of};
use crate::socket::SocketAddress;

/// A JSON patch for `kubeadm init --patches` and `kubeadm upgrade --patches`, to be saved as
/// `kube-apiserver+json.yaml` in the directory that is named there.
#[derive(Debug, Clone)]
pub struct ApiserverPatch {
    /// Where the plugin listens.
    pub socket: SocketAddress,
    /// Where the `EncryptionConfiguration` lies on the node; its directory is mounted.
    pub encryption_config: std::path::PathBuf,
}

impl ApiserverPatch {
    /// The patch, as a list of operations.
    pub fn json(&self) -> Result<Value, ConfigError> {
        let config = self.encryption_config.display().to_string();
        let mut operations = vec![
            append("command", &json!(format!("--encryption-provider-config={config}"))),
            // a changed file takes effect without a restart
            append("command", &json!("--encryption-provider-config-automatic-reload=true")),
            // the kubelet must not restart an apiserver because its KMS is away: the restart
            // would drop the keys that the apiserver still holds
            probe("livenessProbe"),
            probe("startupProbe"),
        ];
        operations.extend(mount(
            "lastkey-config",
            &parent_of(&self.encryption_config),
            "Directory",
        ));
        // an abstract socket needs none: the apiserver shares the host's network
        if let SocketAddress::Path(path) = &self.socket {
            operations.extend(mount("lastkey-socket", &parent_of(path), "DirectoryOrCreate"));
        }
        Ok(Value::Array(operations))
    }

    /// The patch, as the file's content.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        let Value::Array(operations) = self.json()? else { return Ok(String::new()) };
        // each operation in JSON, which is YAML, on a line of its own
        Ok(operations.iter().map(|operation| format!("- {operation}\n")).collect())
    }
}

fn probe(name: &str) -> Value {
    json!({
        "op": "replace",
        "path": format!("/spec/containers/0/{name}/httpGet/path"),
        "value": "/livez?exclude=kms-providers",
    })
}

fn append(list: &str, value: &Value) -> Value {
    json!({"op": "add", "path": format!("/spec/containers/0/{list}/-"), "value": value})
}

fn mount(name: &str, path: &str, kind: &str) -> [Value; 2] {
    let volume = json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let mount = json!({"name": name, "mountPath": path, "readOnly": true});
    [
        append("volumeMounts", &mount),
        json!({"op": "add", "path": "/spec/volumes/-", "value": volume}),
    ]
}
