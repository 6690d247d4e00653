//! The apiserver's flags and its EncryptionConfiguration.

use std::{io::ErrorKind, path::Path};

use lastkey_kubernetes::{
    doctor::{flag, is_yes},
    encryption_config::{EncryptionConfiguration, Finding, MAX_FILE, examine_bytes},
    socket::SocketAddress,
};
use zeroize::Zeroizing;

use super::Program;

const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const LISTED_BY: &str = "pgrep -x kube-apiserver";
const CONFIG: &str = "encryption-provider-config";
const RELOAD: &str = "encryption-provider-config-automatic-reload";

pub(super) fn find(named: Option<&str>, findings: &mut Vec<Finding>) -> Option<Program> {
    let is = |process: &lastkey_kubernetes::node::Process| {
        matches!(process.name(), "kube-apiserver") || runs_one(&process.command)
    };
    match Program::find((named, LISTED_BY), (MANIFEST, true), is) {
        Ok(Some(apiserver)) => {
            flags(&apiserver, findings);
            Some(apiserver)
        }
        Ok(None) => {
            let message = "no apiserver was found: neither kubeadm's manifest nor a process";
            findings.push(
                Finding::warning("no-apiserver", message)
                    .fix("run this on a control-plane node, or give --apiserver FILE or PID"),
            );
            None
        }
        Err(finding) => {
            findings.push(finding);
            None
        }
    }
}

/// k3s and its kind have the apiserver inside, and its flags on their own command line or in files.
fn runs_one(command: &[String]) -> bool {
    let name = command.first().map_or("", String::as_str).rsplit('/').next();
    let names_it = command.iter().any(|word| word.contains("kube-apiserver-arg"));
    matches!(name, Some("k3s" | "rke2")) && names_it
}

fn flags(apiserver: &Program, findings: &mut Vec<Finding>) {
    let from = &apiserver.from;
    if config_path(apiserver).is_none() {
        let message = format!("the apiserver ({from}) encrypts nothing: it has no --{CONFIG}");
        let fix = "lastkey cluster config kubeadm-config (or k3s, rke2) prints what it needs";
        return findings.push(Finding::error("apiserver-does-not-encrypt", message).fix(fix));
    }
    let reloads = is_yes(flag(&apiserver.command, RELOAD));
    if !reloads {
        let message = format!("the apiserver ({from}) reads its configuration only when it starts");
        let fix = format!("add --{RELOAD}=true");
        findings.push(Finding::warning("apiserver-does-not-reload", message).fix(fix));
    }
    let liveness = apiserver.manifest.as_ref().and_then(|manifest| manifest.liveness.as_deref());
    findings.extend(liveness.and_then(|path| probe(path, reloads)));
}

/// What is wrong with the path of the liveness probe.
fn probe(path: &str, reloads: bool) -> Option<Finding> {
    // One check for all providers, or one for each: it depends on the flag, and a name that is not
    // there excludes nothing.
    let check = if reloads { "kms-providers" } else { "kms-provider-0" };
    let query = path.split_once('?').map_or("", |(_, query)| query);
    if query.split('&').any(|term| term.strip_prefix("exclude=") == Some(check)) {
        return None;
    }
    let message = "up to 1.28 the kubelet may restart the apiserver because its KMS is away, and the \
                   restart drops the keys that it still holds; from 1.29 on /livez has no KMS in it";
    let fix = match reloads {
        true => "set the liveness probe's path to /livez?exclude=kms-providers".to_owned(),
        false => format!(
            "set the liveness probe's path to /livez?exclude=kms-provider-0, with another \
             exclude=kms-provider-N for each further kms provider of the configuration: without \
             --{RELOAD}=true there is no kms-providers to exclude"
        ),
    };
    Some(Finding::info("apiserver-liveness", message).fix(fix))
}

/// The file that it was given; an empty one is none to the apiserver.
fn config_path(apiserver: &Program) -> Option<&Path> {
    flag(&apiserver.command, CONFIG).filter(|path| !path.is_empty()).map(Path::new)
}

/// Reads and judges the file that was named, or that the apiserver names.
pub(super) fn encryption_config(
    apiserver: Option<&Program>,
    named: Option<&Path>,
    findings: &mut Vec<Finding>,
) -> Option<EncryptionConfiguration> {
    let path = match (named, apiserver) {
        (Some(path), _) => path.to_owned(),
        (None, Some(apiserver)) => {
            let path = config_path(apiserver)?;
            if let Some(manifest) = &apiserver.manifest
                && manifest.on_node(path).is_none()
            {
                let message = format!("{} is not mounted into the apiserver's pod", path.display());
                let fix = "lastkey cluster config kubeadm-config prints the mount";
                findings.push(Finding::error("encryption-config-not-mounted", message).fix(fix));
            }
            apiserver.sees(path)
        }
        (None, None) => return None,
    };
    let bytes = match std::fs::read(&path).map(Zeroizing::new) {
        Ok(bytes) => bytes,
        Err(error) => {
            let message = format!("{}: {error}", path.display());
            // what is printed for new clusters fails every list on one that encrypts
            let fix = match error.kind() {
                ErrorKind::PermissionDenied => "run this as root",
                _ => {
                    "copy it from another control-plane node; on a new cluster `lastkey cluster \
                     enable NAME` makes it"
                }
            };
            findings.push(Finding::error("encryption-config-unreadable", message).fix(fix));
            return None;
        }
    };
    if bytes.len() > MAX_FILE {
        let message = format!("{}: larger than {} MiB", path.display(), MAX_FILE >> 20);
        findings.push(Finding::error("encryption-config-too-large", message));
        return None;
    }
    let examined = examine_bytes(&bytes);
    findings.extend(examined.findings);
    Some(examined.config)
}

/// Where the apiserver dials.
pub(super) fn endpoints(config: &EncryptionConfiguration) -> Vec<SocketAddress> {
    let mut found: Vec<SocketAddress> = Vec::new();
    for socket in config.kms().filter_map(|kms| kms.socket()?.parse().ok()) {
        if !found.contains(&socket) {
            found.push(socket);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_in_every_spelling() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let long = words("kube-apiserver --encryption-provider-config=/a --v=2");
        assert_eq!(flag(&long, CONFIG), Some("/a"));
        assert_eq!(flag(&long, RELOAD), None);
        let spaced = words("kube-apiserver --encryption-provider-config /a --v 2");
        assert_eq!(flag(&spaced, CONFIG), Some("/a"));
        let bare = words("kube-apiserver --encryption-provider-config-automatic-reload --v=2");
        assert_eq!(flag(&bare, RELOAD), Some("true"));
        assert_eq!(flag(&bare, CONFIG), None);
        let before_a_word =
            words("kube-apiserver --encryption-provider-config-automatic-reload -v 2");
        assert_eq!(flag(&before_a_word, RELOAD), Some("true"), "a boolean takes no word");
        let k3s =
            words("/usr/local/bin/k3s server --kube-apiserver-arg=encryption-provider-config=/b");
        assert_eq!(flag(&k3s, CONFIG), Some("/b"));
        assert!(runs_one(&k3s) && !runs_one(&long));
        let twice =
            words("kube-apiserver --encryption-provider-config=/a --encryption-provider-config=/b");
        assert_eq!(flag(&twice, CONFIG), Some("/b"), "the last one counts");
    }

    fn started_as(line: &str) -> Program {
        let command = line.split(' ').map(str::to_owned).collect();
        Program { command, from: "a test".to_owned(), process: None, manifest: None }
    }

    /// As 1.28 to 1.37 name their checks.
    #[test]
    fn the_probe_excludes_what_the_apiserver_calls_it() {
        let (all, each) = ("/livez?exclude=kms-providers", "/livez?exclude=kms-provider-0");
        assert!(probe(all, true).is_none() && probe(each, false).is_none());
        let both = "/livez?exclude=kms-providers&exclude=kms-provider-0";
        assert!(probe(both, true).is_none() && probe(both, false).is_none());
        for path in ["/livez", all] {
            let fix = probe(path, false).unwrap().fix;
            assert!(fix.contains(each) && fix.contains(RELOAD), "{path}: {fix}");
        }
        for path in ["/livez", each] {
            assert!(probe(path, true).unwrap().fix.ends_with(all), "{path}");
        }
    }

    #[test]
    fn a_file_that_is_missing_is_copied() {
        let mut findings = Vec::new();
        let joined = started_as("kube-apiserver --encryption-provider-config=/nonexistent/e.yaml");
        assert!(encryption_config(Some(&joined), None, &mut findings).is_none());
        let [found] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(found.code, "encryption-config-unreadable");
        assert!(found.fix.starts_with("copy it from another control-plane node"), "{found:?}");
    }

    #[test]
    fn an_empty_path_is_none_and_yes_is_what_go_takes_for_it() {
        let mut findings = Vec::new();
        let empty = started_as("kube-apiserver --encryption-provider-config=");
        flags(&empty, &mut findings);
        assert!(encryption_config(Some(&empty), None, &mut findings).is_none());
        let codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["apiserver-does-not-encrypt"]);
        for (value, reloads) in [("=1", true), ("=T", true), ("", true), ("=false", false)] {
            let mut findings = Vec::new();
            let line = format!("kube-apiserver --{CONFIG}=/a --{RELOAD}{value}");
            flags(&started_as(&line), &mut findings);
            assert_eq!(findings.is_empty(), reloads, "{value}: {findings:?}");
        }
    }
}
