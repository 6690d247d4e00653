//! What lies around on this machine, if it is a control-plane node: the apiserver's flags, and the
//! plugin's socket with its directory.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use serde::Deserialize;

use crate::{
    encryption_config::{EncryptionConfiguration, Finding},
    node::processes,
};

const RELOAD: &str = "encryption-provider-config-automatic-reload";
/// The flags asked for here that take no word after them, as a boolean never does.
const BOOLEAN: [&str; 1] = [RELOAD];

/// Flags of one apiserver, and where they were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// A process or a file.
    pub seen_in: String,
    /// Its words, as they are given.
    pub flags: Vec<String>,
}

impl Flags {
    /// The value of a flag.
    pub fn get(&self, name: &str) -> Option<&str> {
        flag(&self.flags, name)
    }
}

/// The value of an apiserver's flag, the last one of that name: `--name=value`, `--name value` (of
/// booleans only the former), or inside k3s's `--kube-apiserver-arg`; `true` where there is none. `_`
/// stands for `-`, as there.
pub fn flag<'w>(words: &'w [String], name: &str) -> Option<&'w str> {
    let mut found = None;
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let word = word.strip_prefix("--kube-apiserver-arg=").unwrap_or(word);
        let word = word.trim_start_matches('-');
        let (own, value) = match word.split_once('=') {
            Some((own, value)) => (own, Some(value)),
            None => (word, None),
        };
        if own.replace('_', "-") == name {
            let next = words.peek().filter(|next| !next.starts_with("--"));
            let next = next.filter(|_| !BOOLEAN.contains(&name));
            found = value.or(next.copied()).or(Some("true"));
        }
    }
    found
}

/// Whether a flag's value is what Go takes for yes.
pub fn is_yes(value: Option<&str>) -> bool {
    matches!(value, Some("1" | "t" | "T" | "true" | "True" | "TRUE"))
}

/// The flags in a static pod's manifest, if it runs an apiserver.
pub fn flags_in_manifest(path: &Path) -> Option<Flags> {
    let text = fs::read_to_string(path).ok()?;
    let pod: Pod = serde_saphyr::from_str(&text).ok()?;
    let words = pod.spec.containers.into_iter().map(|c| [c.command, c.args].concat());
    let runs = |words: &Vec<String>| words.iter().any(|word| word.ends_with("kube-apiserver"));
    Some(Flags { seen_in: path.display().to_string(), flags: words.into_iter().find(runs)? })
}

#[derive(Deserialize)]
struct Pod {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
}

/// The flags of the apiserver that runs on this machine and listens on `port`.
pub fn flags_of_process(port: u16) -> Option<Flags> {
    let mut apiservers =
        processes().into_iter().filter(|it| it.name().starts_with("kube-apiserver"));
    apiservers.find_map(|process| {
        let flags = Flags {
            seen_in: format!("the process {}", process.id),
            flags: process.command.into_iter().skip(1).collect(),
        };
        let own = flags.get("secure-port").map_or(Ok(6443), str::parse).ok()?;
        (own == port).then_some(flags)
    })
}

/// What the flags say of encryption; `registered` is where its configuration is said to lie.
pub fn check_flags(flags: &Flags, registered: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let place = &flags.seen_in;
    // an empty one is none to the apiserver
    let config = flags.get("encryption-provider-config").filter(|path| !path.is_empty());
    let Some(config) = config else {
        let message = format!(
            "{place}: the apiserver runs without --encryption-provider-config: everything is written in clear"
        );
        let fix =
            "`lastkey cluster config kubeadm-config` (or k3s, rke2) prints what has to be added";
        return vec![Finding::error("flag-no-encryption", message).fix(fix)];
    };
    if registered.is_some_and(|registered| registered != Path::new(config)) {
        let message = format!(
            "{place}: the apiserver reads {config}, which is another path than the registered one"
        );
        let fix = format!(
            "`lastkey cluster add NAME --kubeconfig FILE --encryption-config {config}` with every other option as before, unless it is a path inside of a container"
        );
        findings.push(Finding::info("flag-other-config", message).fix(fix));
    }
    if !is_yes(flags.get(RELOAD)) {
        let message =
            format!("{place}: the apiserver reads its EncryptionConfiguration only when it starts");
        let fix = "add --encryption-provider-config-automatic-reload=true";
        findings.push(Finding::info("flag-no-reload", message).fix(fix));
    }
    let gates = flags.get("feature-gates").unwrap_or_default();
    if gates.split(',').any(|gate| gate == "KMSv1=true") {
        let message = format!("{place}: the apiserver runs with KMSv1=true");
        let fix = "remove it from --feature-gates once nothing is under a v1 provider";
        findings.push(Finding::warning("flag-kms-v1", message).fix(fix));
    }
    if flags.get("etcd-servers").unwrap_or_default().contains("http://") {
        let message = format!("{place}: the apiserver speaks to etcd without TLS");
        let fix = "give etcd certificates, and https:// in --etcd-servers";
        findings.push(Finding::warning("flag-etcd-without-tls", message).fix(fix));
    }
    findings
}

/// The sockets of a configuration, if they belong on this machine: those in a directory that is
/// there.
pub fn check_sockets(config: &EncryptionConfiguration) -> Vec<Finding> {
    let mut sockets: Vec<String> = config.kms().filter_map(|kms| kms.socket()).collect();
    sockets.sort();
    sockets.dedup();
    sockets.iter().filter(|s| s.starts_with('/')).flat_map(|s| check_socket(Path::new(s))).collect()
}

fn check_socket(socket: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let shown = socket.display();
    let Some((directory, about)) =
        socket.parent().and_then(|dir| Some((dir, fs::metadata(dir).ok()?)))
    else {
        return findings;
    };
    // with the sticky bit others cannot replace the socket, but can take its name while it is away
    if about.permissions().mode() & 0o022 != 0 {
        let message = format!(
            "others than its owner may write to {}: whoever does can pose as the plugin",
            directory.display()
        );
        let fix = format!("`chmod go-w {}`", directory.display());
        findings.push(Finding::warning("socket-directory", message).fix(fix));
    }
    match fs::symlink_metadata(socket) {
        Err(_) => {
            let message = format!("there is no socket at {shown}, although its directory is here");
            let fix = "`systemctl start lastkey-kms-plugin.socket`, or look at the plugin's pod";
            findings.push(Finding::warning("socket-missing", message).fix(fix));
        }
        Ok(about) if !about.file_type().is_socket() => {
            let message = format!("{shown} is not a socket");
            findings.push(
                Finding::error("socket-other", message)
                    .fix(format!("`rm {shown}` and restart the plugin")),
            );
        }
        Ok(about) if about.permissions().mode() & 0o002 != 0 => {
            let message = format!("everybody on this machine may speak to the plugin at {shown}");
            findings.push(
                Finding::warning("socket-open", message).fix(format!("`chmod 0600 {shown}`")),
            );
        }
        Ok(_) => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn codes(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn flags_are_read_and_judged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kube-apiserver.yaml");
        let pod = "spec: {containers: [{command: [kube-apiserver, --encryption-provider-config=/etc/e.yaml, \
                   '--feature-gates=A=true,KMSv1=true', '--etcd-servers=http://127.0.0.1:2379']}]}\n";
        fs::write(&path, pod).unwrap();
        let flags = flags_in_manifest(&path).unwrap();
        let found = check_flags(&flags, Some(Path::new("/etc/other.yaml")));
        assert_eq!(
            codes(&found),
            ["flag-other-config", "flag-no-reload", "flag-kms-v1", "flag-etcd-without-tls"]
        );
        let of = |line: &str| Flags {
            seen_in: String::new(),
            flags: line.split(' ').map(str::to_owned).collect(),
        };
        for none in ["--secure-port=1", "--encryption-provider-config= --secure-port=1"] {
            assert_eq!(codes(&check_flags(&of(none), None)), ["flag-no-encryption"], "{none}");
        }
        let reload = "--encryption-provider-config-automatic-reload";
        for well in [
            &format!("--encryption-provider-config /etc/e.yaml {reload} --v 2"),
            &format!("-v 2 {reload}=1 --encryption-provider-config /etc/e.yaml"),
            &format!("--encryption_provider_config=/etc/e.yaml {reload}=false {reload}=true"),
            // a boolean takes no word after it
            &format!("--encryption-provider-config=/etc/e.yaml {reload} -v 2"),
        ] {
            let flags = of(well);
            assert_eq!(codes(&check_flags(&flags, Some(Path::new("/etc/e.yaml")))), [""; 0]);
        }
        let less = of(&format!("{reload} --encryption-provider-config /a {reload}=false"));
        assert_eq!(codes(&check_flags(&less, None)), ["flag-no-reload"]);
    }

    #[test]
    fn sockets_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kms.sock");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(codes(&check_socket(&socket)), ["socket-missing"]);
        let _listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(codes(&check_socket(&socket)), [""; 0]);
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(codes(&check_socket(&socket)), ["socket-directory", "socket-open"]);
        assert_eq!(codes(&check_socket(Path::new("/nonexistent/dir/kms.sock"))), [""; 0]);
    }
}
