//! Values for the chart in `packaging/helm`.

use std::path::Path;

use super::{ConfigError, Identity, PluginCommand, image::check_image, quoted};

/// What differs from cluster to cluster; the chart knows the rest.
#[derive(Debug, Clone)]
pub struct HelmValues {
    /// What each node runs.
    pub command: PluginCommand,
    /// The image with the `lastkey` binary as its entry point, named with its registry and tag.
    pub image: String,
}

impl HelmValues {
    /// A file for `helm install --values`.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        check_image(&self.image)?;
        let PluginCommand { key, servers, identity, state, metrics, .. } = &self.command;
        let Identity::Enrolled { cluster, ca, kubelet, kubelet_key } = identity else {
            return Err(ConfigError::NeedsEnrolment);
        };
        let directories = self.command.directories()?;
        for (at, (_, one, _)) in directories.iter().enumerate() {
            if directories[..at].iter().any(|(_, other, _)| Path::new(one) == Path::new(other)) {
                return Err(ConfigError::Shared(one.clone()));
            }
        }
        let path = |path: &Path| quoted(&path.display().to_string());
        let mut list = String::new();
        for server in servers {
            list += &format!("  - {}\n", quoted(server)?);
        }
        let kubelet_key = kubelet_key.as_deref().unwrap_or(Path::new(""));
        Ok(format!(
            "\
image: {image}
servers:
{list}cluster: {cluster}
key: {key}
socket: {socket}
caFile: {ca}
kubelet:
  certificate: {kubelet}
  key: {kubelet_key}
stateDir: {state}
metricsListen: {metrics}
",
            image = quoted(&self.image)?,
            cluster = quoted(cluster)?,
            key = quoted(key)?,
            socket = path(self.command.socket_path()?)?,
            ca = path(ca)?,
            kubelet = path(kubelet)?,
            kubelet_key = path(kubelet_key)?,
            state = path(state)?,
            metrics = quoted(&metrics.map(|it| it.to_string()).unwrap_or_default())?,
        ))
    }
}
