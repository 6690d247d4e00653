//! `lastkey cluster config`: everything a control plane needs, filled in.

use std::{
    borrow::Cow,
    net::IpAddr,
    path::{Path, PathBuf},
};

use lastkey_client::Endpoint;
use lastkey_crypto::ClusterId;
use lastkey_kubernetes::{
    cluster_config::{
        ApiserverPatch, EncryptionConfig, HelmValues, Identity, K3sConfig, KmsVersion,
        KubeadmConfig, PluginCommand, Rke2Config, StaticPod, SystemdUnits,
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

/// Where the plugin keeps what it has to remember there.
const STATE: &str = "/var/lib/lastkey-kms-plugin";

/// Above the printed EncryptionConfiguration. With it an apiserver writes what only those read that
/// have it, too, and reads nothing that was encrypted by anything else.
const BY_HAND: &str = "\
# As it is printed, this file is for a new cluster, or for one whose only apiserver encrypts nothing yet.
# Elsewhere Secrets would not be readable. There `lastkey cluster enable` makes the file, step by step.
";

/// Above what tells an apiserver of it.
const FILE_FIRST: &str = "\
# The file that this names, and the plugin, have to be on the node first. `lastkey cluster enable` makes that
# file where there are several apiservers, or where something is encrypted already.
";

/// The EncryptionConfiguration for a plugin on that socket, with all defaults.
pub(crate) fn encryption_config(socket: &Path) -> Result<String, Failure> {
    let config = EncryptionConfig::new(SocketAddress::Path(socket.to_owned()));
    config.yaml().map_err(wrong)
}

/// The command that comes after `cluster add`. An address that means this machine alone is no
/// address of the server's on a control plane.
pub(super) fn next(connect: &Connect, key: &str) -> String {
    let known = connect::credentials(connect).ok().map(|credentials| credentials.endpoint);
    let command = format!("lastkey cluster config --key {key}");
    match known {
        Some(endpoint) if !is_loopback(&endpoint) => command,
        _ => format!(
            "{command} --server https://HOST:PORT\n      (the server's address as the control \
             plane knows it)"
        ),
    }
}

/// Whether it names the machine that asks, whichever that is.
fn is_loopback(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Tls { host, .. } => {
            let ip = host.parse::<IpAddr>();
            host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
        }
        _ => false,
    }
}

pub(super) fn run(
    connect: &Connect,
    options: &ConfigOptions,
    output: &Output,
) -> Result<(), Failure> {
    let pieces = Pieces::new(connect, options)?;
    let wanted: Vec<Piece> = match options.piece {
        ConfigPiece::All => pieces.all()?,
        ConfigPiece::Encryption => vec![pieces.encryption()?],
        ConfigPiece::StaticPod => vec![pieces.static_pod()?],
        ConfigPiece::Systemd => pieces.systemd()?,
        ConfigPiece::Helm => vec![pieces.helm()?],
        ConfigPiece::Kubeadm => vec![pieces.kubeadm()?],
        ConfigPiece::KubeadmConfig => vec![pieces.kubeadm_config()?],
        ConfigPiece::K3s => vec![pieces.k3s()?],
        ConfigPiece::Rke2 => vec![pieces.rke2()?],
        ConfigPiece::Alerts => vec![ALERTS],
        ConfigPiece::Dashboard => vec![DASHBOARD],
    };
    let items: Vec<_> =
        wanted.iter().map(|(path, content)| json!({ "path": path, "content": content })).collect();
    output.object(&json!({ "items": items, "next": null }), || human(&wanted));
    Ok(())
}

/// One piece goes to a file as it is; several are told apart by where they belong.
fn human(wanted: &[Piece]) -> String {
    if let [(_, only)] = wanted {
        return only.trim_end().to_owned();
    }
    let shown = wanted.iter().map(|(path, content)| format!("# ── {path}\n{}", content.trim_end()));
    shown.collect::<Vec<_>>().join("\n\n")
}

/// Where it belongs, and what it is.
type Piece = (&'static str, Cow<'static, str>);

/// For Prometheus; the same for every cluster.
const ALERTS: Piece = (
    "/etc/prometheus/rules/lastkey.yaml",
    Cow::Borrowed(include_str!("../../../../../packaging/prometheus/lastkey.rules.yaml")),
);
/// For Grafana; the same for every cluster.
const DASHBOARD: Piece = (
    "grafana/dashboards/lastkey.json",
    Cow::Borrowed(include_str!("../../../../../packaging/grafana/lastkey.json")),
);

struct Pieces {
    encryption: EncryptionConfig,
    command: PluginCommand,
    socket: SocketAddress,
    image: String,
}

impl Pieces {
    fn new(connect: &Connect, options: &ConfigOptions) -> Result<Self, Failure> {
        let socket = options.plugin_socket.to_str().ok_or_else(|| not_text("--plugin-socket"))?;
        let socket: SocketAddress = socket.parse().map_err(wrong)?;
        let servers = match options.servers.is_empty() {
            false => options.servers.clone(),
            true => vec![own_server(connect, options.piece)?],
        };
        check(options, &servers)?;
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
                servers,
                socket: socket.clone(),
                identity: match &options.enrol {
                    None => Identity::Files(options.identity_dir.clone()),
                    Some(cluster) => Identity::Enrolled {
                        cluster: cluster.clone(),
                        ca: options.identity_dir.join("ca.pem"),
                        kubelet: options.kubelet_cert.clone(),
                        kubelet_key: options.kubelet_key.clone(),
                    },
                },
                state: PathBuf::from(STATE),
                metrics: options.metrics_listen,
            },
            socket,
            image: options.image.clone(),
        })
    }

    fn all(&self) -> Result<Vec<Piece>, Failure> {
        let mut pieces = vec![self.encryption()?, self.static_pod()?];
        pieces.extend(self.systemd()?);
        pieces.extend([self.kubeadm()?, self.k3s()?, self.kubeadm_config()?]);
        Ok(pieces)
    }

    fn encryption(&self) -> Result<Piece, Failure> {
        let yaml = self.encryption.yaml().map_err(wrong)?;
        if self.encryption.leaves_secrets() {
            Output::note(
                "warning: this file leaves Secrets in clear; add --resource secrets unless another \
                 rule of yours covers them",
            );
        }
        Ok((ENCRYPTION_CONFIG, format!("{BY_HAND}{yaml}").into()))
    }

    fn static_pod(&self) -> Result<Piece, Failure> {
        let pod = StaticPod { command: self.command.clone(), image: self.image.clone() };
        Ok(("/etc/kubernetes/manifests/lastkey-kms-plugin.yaml", pod.yaml().map_err(wrong)?.into()))
    }

    fn helm(&self) -> Result<Piece, Failure> {
        let values = HelmValues { command: self.command.clone(), image: self.image.clone() };
        Ok((
            "values.yaml (helm install --values values.yaml)",
            values.yaml().map_err(wrong)?.into(),
        ))
    }

    fn systemd(&self) -> Result<Vec<Piece>, Failure> {
        let units = SystemdUnits {
            command: self.command.clone(),
            binary: "/usr/local/bin/lastkey".to_owned(),
        };
        Ok(vec![
            (
                "/etc/systemd/system/lastkey-kms-plugin.socket",
                units.socket().map_err(wrong)?.into(),
            ),
            (
                "/etc/systemd/system/lastkey-kms-plugin.service",
                units.service().map_err(wrong)?.into(),
            ),
        ])
    }

    fn kubeadm(&self) -> Result<Piece, Failure> {
        let patch = ApiserverPatch {
            socket: self.socket.clone(),
            encryption_config: PathBuf::from(ENCRYPTION_CONFIG),
        };
        Ok((
            "patches/kube-apiserver+json.yaml (kubeadm --patches patches)",
            patch.yaml().map_err(wrong)?.into(),
        ))
    }

    fn kubeadm_config(&self) -> Result<Piece, Failure> {
        let config = KubeadmConfig {
            socket: self.socket.clone(),
            encryption_config: PathBuf::from(ENCRYPTION_CONFIG),
        };
        let yaml = config.yaml().map_err(wrong)?;
        Ok((
            "kubeadm.yaml (kubeadm init --config kubeadm.yaml; later the ConfigMap kubeadm-config)",
            format!("{FILE_FIRST}{yaml}").into(),
        ))
    }

    fn k3s(&self) -> Result<Piece, Failure> {
        let config = K3sConfig { encryption_config: PathBuf::from(ENCRYPTION_CONFIG) };
        let yaml = config.yaml().map_err(wrong)?;
        Ok(("/etc/rancher/k3s/config.yaml.d/lastkey.yaml", format!("{FILE_FIRST}{yaml}").into()))
    }

    fn rke2(&self) -> Result<Piece, Failure> {
        let config = Rke2Config {
            encryption_config: PathBuf::from(ENCRYPTION_CONFIG),
            socket: self.socket.clone(),
        };
        let yaml = config.yaml().map_err(wrong)?;
        Ok(("/etc/rancher/rke2/config.yaml.d/lastkey.yaml", format!("{FILE_FIRST}{yaml}").into()))
    }
}

/// The server's address as the credentials have it.
fn own_server(connect: &Connect, piece: ConfigPiece) -> Result<String, Failure> {
    let endpoint = connect::credentials(connect)?.endpoint;
    let runs_a_plugin = matches!(
        piece,
        ConfigPiece::All | ConfigPiece::StaticPod | ConfigPiece::Systemd | ConfigPiece::Helm
    );
    if runs_a_plugin && is_loopback(&endpoint) {
        Output::note(&format!(
            "warning: {endpoint} is the server's address on its own machine alone; for a control \
             plane elsewhere, give --server https://HOST:PORT as that knows it"
        ));
    }
    Ok(endpoint.to_string())
}

/// What the plugin would refuse when it starts is refused before it is printed.
fn check(options: &ConfigOptions, servers: &[String]) -> Result<(), Failure> {
    for server in servers {
        server.parse::<Endpoint>().map_err(wrong)?;
    }
    if options.key.is_empty() {
        return Err(wrong("--key is empty: name a key by its id or as alias/NAME"));
    }
    if let Some(cluster) = &options.enrol {
        let what = "--enrol takes a cluster's id, as `lastkey cluster list` shows it";
        cluster.parse::<ClusterId>().map_err(|error| wrong(format_args!("{what}: {error}")))?;
    }
    if let Some(address) = options.metrics_listen.filter(|address| !address.ip().is_loopback()) {
        let message = format!(
            "--metrics-listen takes a loopback address, such as 127.0.0.1:9343, and {address} is none"
        );
        return Err(wrong(message));
    }
    let paths = [
        ("--identity-dir", Some(&options.identity_dir)),
        ("--kubelet-cert", Some(&options.kubelet_cert)),
        ("--kubelet-key", options.kubelet_key.as_ref()),
    ];
    let is_bytes = |path: &PathBuf| path.to_str().is_none();
    if let Some((option, _)) = paths.iter().find(|(_, path)| path.is_some_and(is_bytes)) {
        return Err(not_text(option));
    }
    match paths.into_iter().find(|(_, path)| path.is_some_and(|path| !path.is_absolute())) {
        Some((option, _)) => {
            Err(wrong(format_args!("{option} takes an absolute path on the control plane")))
        }
        None => Ok(()),
    }
}

/// Another path would be printed, of which nobody would know.
fn not_text(option: &str) -> Failure {
    wrong(format_args!(
        "{option} is not UTF-8, and the files that are printed are: give another path"
    ))
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, error)
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        options: ConfigOptions,
    }

    fn checked(args: &[&str]) -> Result<(), String> {
        let args = ["config"].iter().chain(args);
        let options = Only::try_parse_from(args).unwrap().options;
        check(&options, &options.servers).map_err(|failure| failure.to_string())
    }

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        options: ConfigOptions,
    }

    /// Placed on the wrong cluster it makes Secrets unreadable, so the file itself says where it belongs.
    /// The patch is as it is: scripts take it apart.
    #[test]
    fn what_is_printed_says_who_may_place_it() {
        let args = ["config", "--server", "https://kms.example.org:7343"];
        let Whole { connect, options } = Whole::try_parse_from(args).unwrap();
        let pieces = Pieces::new(&connect, &options).unwrap();
        let printed = |piece: Result<Piece, Failure>| piece.unwrap().1.into_owned();
        let encryption = printed(pieces.encryption());
        let rest = encryption.strip_prefix(BY_HAND).unwrap();
        assert!(rest.starts_with("apiVersion: ") && BY_HAND.contains("lastkey cluster enable"));
        for piece in [pieces.kubeadm_config(), pieces.k3s(), pieces.rke2()] {
            let text = printed(piece);
            assert!(text.starts_with(FILE_FIRST), "{text}");
        }
        for comment in [BY_HAND, FILE_FIRST] {
            assert!(comment.lines().all(|line| line.starts_with("# ")), "{comment}");
        }
        let patch = printed(pieces.kubeadm());
        assert!(patch.lines().all(|line| line.starts_with("- {")), "{patch}");
        let all = pieces.all().unwrap();
        assert!(all.iter().any(|(path, _)| path.starts_with("kubeadm.yaml")));
    }

    #[test]
    fn only_an_address_that_others_have_is_taken_from_the_credentials() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("credentials.json");
        for (url, is_for_others) in [
            ("https://kms.example.org:7343", true),
            ("https://10.0.0.5:7343", true),
            ("https://127.0.0.1:7343", false),
            ("https://localhost:7343", false),
            ("https://[::1]:7343", false),
        ] {
            let content = json!({
                "url": url, "ca_file": "/ca.pem", "access_key_id": "a", "access_key_secret": "b",
            });
            std::fs::write(&file, content.to_string()).unwrap();
            let connect = Connect { credentials: Some(file.clone()), ..Connect::default() };
            let said = next(&connect, "alias/kubernetes");
            assert_eq!(
                !said.contains("--server https://HOST:PORT"),
                is_for_others,
                "{url}: {said}"
            );
        }
        let nowhere = Connect { credentials: Some("/nowhere".into()), ..Connect::default() };
        assert!(next(&nowhere, "alias/kubernetes").contains("--server https://HOST:PORT"));
    }

    #[test]
    fn a_path_that_cannot_be_printed_as_it_is_is_refused() {
        let odd = || OsString::from_vec(b"/etc/last\xffkey".to_vec());
        for option in ["--plugin-socket", "--identity-dir", "--kubelet-cert", "--kubelet-key"] {
            let mut args: Vec<OsString> =
                ["config", "--server", "https://kms:7343", "--enrol"].map(OsString::from).to_vec();
            args.extend(["83eb9abc-da3e-494e-b0e6-96b3c401cd15".into(), option.into(), odd()]);
            let Whole { connect, options } = Whole::try_parse_from(args).unwrap();
            let said = Pieces::new(&connect, &options).err().map(|failure| failure.to_string());
            assert!(said.as_ref().is_some_and(|said| said.contains(option)), "{option}: {said:?}");
        }
    }

    #[test]
    fn what_the_plugin_would_refuse_is_not_printed() {
        let cluster = "83eb9abc-da3e-494e-b0e6-96b3c401cd15";
        for args in [
            &["--server", "https://[fd00::1]:7343", "--identity-dir", "/etc/last key"][..],
            &["--enrol", cluster, "--metrics-listen", "[::1]:9099"],
        ] {
            assert_eq!(checked(args), Ok(()), "{args:?}");
        }
        for (args, said) in [
            (&["--server", "http://kms"][..], "https"),
            (&["--server", "https://kms:99999"], "https://kms:99999"),
            (&["--key", ""], "--key"),
            (&["--enrol", "prod"], "cluster list"),
            (&["--metrics-listen", "0.0.0.0:9099"], "loopback"),
            (&["--identity-dir", "lastkey"], "--identity-dir takes an absolute path"),
            (&["--enrol", cluster, "--kubelet-key", "k"], "--kubelet-key takes an absolute path"),
        ] {
            let error = checked(args).unwrap_err();
            assert!(error.contains(said), "{args:?}: {error}");
        }
    }
}
