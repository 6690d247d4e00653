//! `lastkey cluster config`: everything a control plane needs, filled in.

use std::path::{Path, PathBuf};

use lastkey_kubernetes::{
    cluster_config::{
        ApiserverPatch, EncryptionConfig, KmsVersion, PluginCommand, StaticPod, SystemdUnits,
    },
    socket::SocketAddress,
};
use serde_json::json;

use crate::{
    cli::{ConfigOptions, ConfigPiece, Connect},
    connect,
    output::{Exit, Failure, Output},
};

/// Where the apiserver's file lies on a control plane.
const ENCRYPTION_CONFIG: &str = "/etc/kubernetes/lastkey/encryption-config.yaml";

/// The EncryptionConfiguration for a plugin on that socket, with all defaults.
pub(crate) fn encryption_config(socket: &Path) -> Result<String, Failure> {
    let config = EncryptionConfig::new(SocketAddress::Path(socket.to_owned()));
    config.yaml().map_err(wrong)
}

pub(super) fn run(
    connect: &Connect,
    options: &ConfigOptions,
    output: &Output,
) -> Result<(), Failure> {
    let pieces = Pieces::new(connect, options)?;
    let wanted: Vec<(&str, String)> = match options.piece {
        ConfigPiece::All => pieces.all()?,
        ConfigPiece::Encryption => vec![pieces.encryption()?],
        ConfigPiece::StaticPod => vec![pieces.static_pod()?],
        ConfigPiece::Systemd => pieces.systemd()?,
        ConfigPiece::Kubeadm => vec![pieces.kubeadm()?],
    };
    let items: Vec<_> =
        wanted.iter().map(|(path, content)| json!({ "path": path, "content": content })).collect();
    output.object(&json!({ "items": items, "next": null }), || human(&wanted));
    Ok(())
}

/// One piece goes to a file as it is; several are told apart by where they belong.
fn human(wanted: &[(&str, String)]) -> String {
    if let [(_, only)] = wanted {
        return only.trim_end().to_owned();
    }
    let shown = wanted.iter().map(|(path, content)| format!("# ── {path}\n{}", content.trim_end()));
    shown.collect::<Vec<_>>().join("\n\n")
}

struct Pieces {
    encryption: EncryptionConfig,
    command: PluginCommand,
    socket: SocketAddress,
    image: String,
}

impl Pieces {
    fn new(connect: &Connect, options: &ConfigOptions) -> Result<Self, Failure> {
        let socket: SocketAddress =
            options.plugin_socket.to_string_lossy().parse().map_err(wrong)?;
        let server = match &options.server {
            Some(server) => server.clone(),
            None => connect::credentials(connect)?.endpoint.to_string(),
        };
        Ok(Self {
            encryption: EncryptionConfig {
                provider: options.provider.clone(),
                resources: options.resources.clone(),
                version: match options.kms_version.as_str() {
                    "v1" => KmsVersion::V1,
                    _ => KmsVersion::V2,
                },
                ..EncryptionConfig::new(socket.clone())
            },
            command: PluginCommand {
                key: options.key.clone(),
                servers: vec![server],
                socket: socket.clone(),
                identity: options.identity_dir.clone(),
            },
            socket,
            image: options.image.clone(),
        })
    }

    fn all(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let mut pieces = vec![self.encryption()?, self.static_pod()?];
        pieces.extend(self.systemd()?);
        pieces.push(self.kubeadm()?);
        Ok(pieces)
    }

    fn encryption(&self) -> Result<(&'static str, String), Failure> {
        Ok((ENCRYPTION_CONFIG, self.encryption.yaml().map_err(wrong)?))
    }

    fn static_pod(&self) -> Result<(&'static str, String), Failure> {
        let pod = StaticPod { command: self.command.clone(), image: self.image.clone() };
        Ok(("/etc/kubernetes/manifests/lastkey-kms-plugin.yaml", pod.yaml().map_err(wrong)?))
    }

    fn systemd(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let units = SystemdUnits {
            command: self.command.clone(),
            binary: "/usr/local/bin/lastkey".to_owned(),
        };
        Ok(vec![
            ("/etc/systemd/system/lastkey-kms-plugin.socket", units.socket().map_err(wrong)?),
            ("/etc/systemd/system/lastkey-kms-plugin.service", units.service().map_err(wrong)?),
        ])
    }

    fn kubeadm(&self) -> Result<(&'static str, String), Failure> {
        let patch = ApiserverPatch {
            socket: self.socket.clone(),
            encryption_config: PathBuf::from(ENCRYPTION_CONFIG),
        };
        Ok((
            "patches/kube-apiserver+json.yaml (kubeadm --patches patches)",
            patch.yaml().map_err(wrong)?,
        ))
    }
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, error)
}
