//! What kubeadm's apiserver is started with.
//!
//! kubeadm writes the apiserver's manifest anew with each upgrade, and on each node that joins: from
//! the `ClusterConfiguration` that it keeps in the cluster, and from the patches that are given that
//! time. So what an apiserver must never be without belongs into the first ([`KubeadmConfig`]); a
//! patch ([`ApiserverPatch`]) lasts until somebody forgets it.

use serde_json::{Value, json};

use super::{ConfigError, parent_of, quoted};
use crate::socket::SocketAddress;

/// The mounted directories' names, in the patch and in the `ClusterConfiguration` alike.
const CONFIG: &str = "lastkey-config";
const SOCKET: &str = "lastkey-socket";

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
        operations.extend(mount(CONFIG, &parent_of(&self.encryption_config), "Directory"));
        // an abstract socket needs none: the apiserver shares the host's network
        if let SocketAddress::Path(path) = &self.socket {
            operations.extend(mount(SOCKET, &parent_of(path), "DirectoryOrCreate"));
        }
        Ok(Value::Array(operations))
    }

    /// The patch, as the file's content.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        let Value::Array(operations) = self.json()? else { return Ok(String::new()) };
        Ok(lines(&operations))
    }
}

/// Each operation in JSON, which is YAML, on a line of its own.
fn lines(operations: &[Value]) -> String {
    operations.iter().map(|operation| format!("- {operation}\n")).collect()
}

/// The `apiServer` of a `ClusterConfiguration`, for `kubeadm init --config` and for the one that
/// kubeadm keeps in the ConfigMap `kubeadm-config`. It is applied by every `kubeadm upgrade` and
/// every `kubeadm join --control-plane` without being given again.
#[derive(Debug, Clone)]
pub struct KubeadmConfig {
    /// Where the plugin listens; its directory is mounted.
    pub socket: SocketAddress,
    /// Where the `EncryptionConfiguration` lies on the node; its directory is mounted.
    pub encryption_config: std::path::PathBuf,
}

impl KubeadmConfig {
    /// The file's content, in the form of kubeadm 1.31 and later (`kubeadm.k8s.io/v1beta4`). As
    /// comments in it: the form of kubeadm 1.22 to 1.30 ([`Self::before_1_31`]), and what no
    /// `ClusterConfiguration` can say, for a patch ([`Self::probes`]).
    pub fn yaml(&self) -> Result<String, ConfigError> {
        let arguments = self.arguments().map(|(name, value)| {
            let (name, value) = (quoted(name)?, quoted(&value)?);
            Ok(format!("    - name: {name}\n      value: {value}\n"))
        });
        let current = self.file("v1beta4", arguments)?;
        Ok(format!(
            "\
{current}
# kubeadm 1.22 to 1.30: this in place of the lines above.
{before}
# Up to 1.28 the probes ask for the KMS, too. Save this as patches/kube-apiserver+json.yaml, and give
# --patches patches to kubeadm each time; later releases do without.
{probes}",
            before = comment(&self.before_1_31()?),
            probes = comment(&self.probes()),
        ))
    }

    /// The same as kubeadm 1.22 to 1.30 have it (`kubeadm.k8s.io/v1beta3`): arguments are a map.
    pub fn before_1_31(&self) -> Result<String, ConfigError> {
        let arguments = self.arguments().map(|(name, value)| {
            let (name, value) = (quoted(name)?, quoted(&value)?);
            Ok(format!("    {name}: {value}\n"))
        });
        self.file("v1beta3", arguments)
    }

    /// The part of [`ApiserverPatch`] that goes together with this; all of it would mount the same
    /// directories twice, which no kubelet takes.
    pub fn probes(&self) -> String {
        lines(&[probe("livenessProbe"), probe("startupProbe")])
    }

    fn arguments(&self) -> impl Iterator<Item = (&'static str, String)> {
        let path = self.encryption_config.display().to_string();
        let reload = "true".to_owned();
        [
            ("encryption-provider-config", path),
            ("encryption-provider-config-automatic-reload", reload),
        ]
        .into_iter()
    }

    fn file(
        &self,
        version: &str,
        arguments: impl Iterator<Item = Result<String, ConfigError>>,
    ) -> Result<String, ConfigError> {
        let mut yaml =
            format!("apiVersion: kubeadm.k8s.io/{version}\nkind: ClusterConfiguration\n");
        yaml += "apiServer:\n  extraArgs:\n";
        yaml += &arguments.collect::<Result<String, _>>()?;
        yaml += "  extraVolumes:\n";
        yaml += &extra_volume(CONFIG, &parent_of(&self.encryption_config), "Directory")?;
        if let SocketAddress::Path(path) = &self.socket {
            yaml += &extra_volume(SOCKET, &parent_of(path), "DirectoryOrCreate")?;
        }
        Ok(yaml)
    }
}

fn extra_volume(name: &str, path: &str, kind: &str) -> Result<String, ConfigError> {
    let path = quoted(path)?;
    Ok(format!(
        "    - name: {name}\n      hostPath: {path}\n      mountPath: {path}\n      readOnly: true\n\
         \x20     pathType: {kind}\n"
    ))
}

fn comment(text: &str) -> String {
    text.lines().map(|line| format!("#{line}\n")).collect()
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
