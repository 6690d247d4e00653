//! The plugin as a static pod, which the kubelet runs before there is an apiserver.

use std::path::Path;

use super::{
    ConfigError, PluginCommand,
    image::{check_image, pull_policy},
    quoted,
};

/// A manifest for `/etc/kubernetes/manifests`.
#[derive(Debug, Clone)]
pub struct StaticPod {
    /// What the container runs.
    pub command: PluginCommand,
    /// The image with the `lastkey` binary as its entry point, named with its registry and tag.
    pub image: String,
}

impl StaticPod {
    /// The manifest.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        check_image(&self.image)?;
        let mut arguments = String::new();
        // Nobody else could hold the socket while the plugin is started anew.
        let supervise = std::iter::once("--supervise".to_owned());
        for argument in self.command.arguments().into_iter().chain(supervise) {
            arguments += &format!("        - {}\n", quoted(&argument)?);
        }
        let (mut mounts, mut volumes) = (String::new(), String::new());
        for Mount { name, path, writes, makes } in mounts_of(&self.command)? {
            let path = quoted(&path)?;
            let read_only = if writes { "" } else { "          readOnly: true\n" };
            let kind = if makes { "DirectoryOrCreate" } else { "Directory" };
            mounts += &format!("        - name: {name}\n          mountPath: {path}\n{read_only}");
            volumes += &format!(
                "    - name: {name}\n      hostPath:\n        path: {path}\n        type: {kind}\n"
            );
        }
        Ok(format!(
            "\
apiVersion: v1
kind: Pod
metadata:
  name: lastkey-kms-plugin
  namespace: kube-system
  labels:
    app.kubernetes.io/name: lastkey-kms-plugin
    tier: control-plane
spec:
  # the plugin must be there before the apiserver, and must not need a cluster network
  hostNetwork: true
  priorityClassName: system-node-critical
  terminationGracePeriodSeconds: 15
  containers:
    - name: kms-plugin
      image: {image}
      imagePullPolicy: {pull}
      args:
{arguments}      resources:
        requests:
          cpu: 10m
          memory: 32Mi
        limits:
          memory: 128Mi
      securityContext:
        # the apiserver's user, so that only it can dial
        runAsUser: 0
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
        seccompProfile:
          type: RuntimeDefault
      volumeMounts:
{mounts}  volumes:
{volumes}",
            image = quoted(&self.image)?,
            pull = pull_policy(&self.image),
        ))
    }
}

/// A directory of the node's.
struct Mount {
    name: &'static str,
    path: String,
    writes: bool,
    /// Whether it may be missing.
    makes: bool,
}

/// Each directory once, though it may be of use for two things: no apiserver takes two mounts at
/// one path.
fn mounts_of(command: &PluginCommand) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts: Vec<Mount> = Vec::new();
    for (name, path, writes) in command.directories()? {
        let makes = matches!(name, "socket" | "state");
        match mounts.iter_mut().find(|mount| Path::new(&mount.path) == Path::new(&path)) {
            Some(mount) => {
                mount.writes |= writes;
                mount.makes |= makes;
            }
            None => mounts.push(Mount { name, path, writes, makes }),
        }
    }
    Ok(mounts)
}
