//! A static pod manifest, as far as the doctor looks at it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Larger files are refused unread.
const MAX_FILE: usize = 1 << 20;

/// A pod's first container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// What it runs, with its arguments; the image's own entry point is not in it.
    pub command: Vec<String>,
    /// The path of its liveness probe.
    pub liveness: Option<String>,
    /// Paths inside the container, and the node's own that are mounted there.
    mounts: Vec<(PathBuf, PathBuf)>,
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Far larger than any manifest.
    #[error("it is larger than {} MiB", MAX_FILE >> 20)]
    TooLarge,
    /// Not YAML, or not a pod.
    #[error("it is no pod: {0}")]
    NotAPod(String),
    /// A pod without one.
    #[error("the pod has no container")]
    NoContainer,
}

#[derive(Deserialize)]
struct Pod {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    volume_mounts: Vec<Mount>,
    #[serde(default)]
    liveness_probe: Option<Probe>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    name: String,
    mount_path: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    #[serde(default)]
    host_path: Option<HostPath>,
}

#[derive(Deserialize)]
struct HostPath {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    http_get: Option<HttpGet>,
}

#[derive(Deserialize)]
struct HttpGet {
    #[serde(default)]
    path: Option<String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is no pod.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MAX_FILE {
            return Err(ManifestError::TooLarge);
        }
        let pod: Pod = serde_saphyr::from_str(text)
            .map_err(|error| ManifestError::NotAPod(error.to_string()))?;
        let Spec { containers, volumes } = pod.spec;
        let container = containers.into_iter().next().ok_or(ManifestError::NoContainer)?;
        let host = |name: &str| {
            let volume = volumes.iter().find(|volume| volume.name == name)?;
            volume.host_path.as_ref().map(|host| host.path.clone())
        };
        let mounts = container
            .volume_mounts
            .iter()
            .filter_map(|mount| Some((mount.mount_path.clone(), host(&mount.name)?)))
            .collect();
        let probe = container.liveness_probe.and_then(|probe| probe.http_get);
        Ok(Self {
            command: [container.command, container.args].concat(),
            liveness: probe.and_then(|get| get.path),
            mounts,
        })
    }

    /// Where on the node a path of the container is, if it is mounted.
    pub fn on_node(&self, path: &Path) -> Option<PathBuf> {
        let inside = |(at, host): &(PathBuf, PathBuf)| {
            let rest = path.strip_prefix(at).ok()?;
            let host = if rest.as_os_str().is_empty() { host.clone() } else { host.join(rest) };
            Some((at.components().count(), host))
        };
        let found = self.mounts.iter().filter_map(inside);
        found.max_by_key(|(depth, _)| *depth).map(|(_, host)| host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "
apiVersion: v1
kind: Pod
spec:
  containers:
  - name: kube-apiserver
    command: [kube-apiserver, --secure-port=6443]
    args: [\"--v=2\"]
    livenessProbe: {httpGet: {path: /livez, port: 6443}}
    volumeMounts:
    - {name: pki, mountPath: /etc/kubernetes/pki}
    - {name: config, mountPath: /etc/kubernetes}
    - {name: scratch, mountPath: /tmp}
  volumes:
  - {name: pki, hostPath: {path: /srv/pki}}
  - {name: config, hostPath: {path: /etc/k8s}}
  - {name: scratch, emptyDir: {}}
";

    #[test]
    fn a_pod_is_read() {
        let pod = Manifest::parse(POD).unwrap();
        assert_eq!(pod.command, ["kube-apiserver", "--secure-port=6443", "--v=2"]);
        assert_eq!(pod.liveness.as_deref(), Some("/livez"));
        for (path, host) in [
            ("/etc/kubernetes/pki/ca.crt", Some("/srv/pki/ca.crt")),
            ("/etc/kubernetes", Some("/etc/k8s")),
            ("/etc/kubernetes/a/b", Some("/etc/k8s/a/b")),
            ("/tmp/x", None),
            ("/run/x", None),
        ] {
            assert_eq!(pod.on_node(Path::new(path)), host.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for text in ["", "[]", "spec: {}", "spec: {containers: []}", "a: [", "\0"] {
            assert!(Manifest::parse(text).is_err(), "{text:?}");
        }
        assert!(matches!(Manifest::parse(&" ".repeat(MAX_FILE + 1)), Err(ManifestError::TooLarge)));
    }
}
