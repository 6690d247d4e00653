//! A scratch kube-apiserver.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use lastkey_kubernetes::cluster::{Access, ApiServer, Credential, Migrate};
use tokio::time::Instant;

use crate::{
    DrillError,
    child::{Child, Environment, Ground, LOOK_EVERY, Program, late},
    etcd::Etcd,
    pki::Authority,
    scratch::free_port,
};

/// One starts in 4 s alone; on a busy machine far later.
const START: Duration = Duration::from_secs(300);
/// A port that was free may be taken a moment later.
const ATTEMPTS: usize = 3;

/// How one is started.
pub(crate) struct Options<'a> {
    /// What it is called, and its log.
    pub(crate) name: &'a str,
    pub(crate) encryption_config: &'a Path,
    /// The user's flags, which come last and so count.
    pub(crate) flags: &'a [String],
    /// For how long it may have checks that fail because of what it stores.
    pub(crate) patience: Duration,
}

/// A running apiserver.
pub(crate) struct Apiserver {
    pub(crate) child: Child,
    pub(crate) api: Rc<ApiServer>,
}

/// Whose checks fail when a provider does not work, or when something that is stored cannot be
/// read. Single objects are read all the same.
fn is_about_content(check: &str) -> bool {
    let content = ["informer-sync", "poststarthook/storage-readiness"];
    check.starts_with("kms-provider") || content.contains(&check)
}

impl Apiserver {
    /// Starts one on that etcd with its files in `directory`, and waits until it serves.
    pub(crate) async fn start(
        (program, ground): (&Path, &Ground),
        (etcd, ca): (&Etcd, &Authority),
        directory: &Path,
        options: &Options<'_>,
    ) -> Result<Self, DrillError> {
        let ca_file = directory.join("cluster-ca.pem");
        crate::scratch::write_private(&ca_file, ca.certificate.as_bytes())?;
        let pair = ca.server("kube-apiserver")?.write(directory, options.name)?;
        let admin = ca.client("lastkey-drill", "system:masters")?;
        let egress = directory.join("egress.json");
        crate::scratch::write_private(&egress, nowhere(directory).to_string().as_bytes())?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let port = free_port()?;
            let files = Files { ca: &ca_file, certificate: &pair.0, key: &pair.1, egress: &egress };
            let program = Program {
                name: options.name.to_owned(),
                path: program.to_owned(),
                args: args(etcd, port, &files, options),
                environment: Environment::Bare,
            };
            let api = ApiServer::new(&Access {
                servers: vec![format!("https://127.0.0.1:{port}").parse()?],
                ca_pem: ca.certificate.clone(),
                tls_server_name: None,
                credential: Credential::Certificate {
                    certificate_pem: admin.certificate.clone(),
                    key_pem: admin.key.clone(),
                },
                etcd: None,
                encryption_config: None,
                resources: Vec::new(),
                migrate: Migrate::Auto,
            })?;
            let child = Child::start(&program, ground)?;
            let mut apiserver = Self { child, api: Rc::new(api) };
            match apiserver.wait(options.patience).await {
                Ok(()) => return Ok(apiserver),
                Err(DrillError::Ended { log, .. })
                    if attempt < ATTEMPTS && log.contains("address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The checks that fail now.
    pub(crate) async fn failing(&self) -> Result<Vec<String>, DrillError> {
        Ok(self.api.readyz(0).await?.err().unwrap_or_default())
    }

    /// Waits until it serves. Checks that fail because of what is stored are not waited for; any
    /// other only for so long, once it answers at all.
    async fn wait(&mut self, patience: Duration) -> Result<(), DrillError> {
        let start = Instant::now();
        let mut answers_since = None;
        loop {
            self.child.check()?;
            let last = match self.api.readyz(0).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failing)) => {
                    let since = *answers_since.get_or_insert_with(Instant::now);
                    let serves = self.api.read("/api/v1/namespaces?limit=1").await.is_ok();
                    let served = serves && failing.iter().all(|check| is_about_content(check));
                    if served || (serves && since.elapsed() > patience) {
                        return Ok(());
                    }
                    failing.join(", ")
                }
                Err(error) => error.to_string(),
            };
            if start.elapsed() > START {
                return Err(late("the apiserver serves", START, &last));
            }
            tokio::time::sleep(LOOK_EVERY * 2).await;
        }
    }
}

struct Files<'a> {
    ca: &'a PathBuf,
    certificate: &'a PathBuf,
    key: &'a PathBuf,
    egress: &'a Path,
}

/// Where an apiserver sends what it asks of others, such as the webhooks and aggregated apiservers
/// of a snapshot: to a proxy that is not there. It asks etcd and plugins without one.
fn nowhere(root: &Path) -> serde_json::Value {
    let proxy = root.join("nowhere.sock");
    let selections = ["cluster", "controlplane"].map(|name| {
        serde_json::json!({ "name": name, "connection": {
            "proxyProtocol": "HTTPConnect",
            "transport": { "uds": { "udsName": proxy } },
        } })
    });
    serde_json::json!({
        "apiVersion": "apiserver.k8s.io/v1beta1",
        "kind": "EgressSelectorConfiguration",
        "egressSelections": selections,
    })
}

fn args(etcd: &Etcd, port: u16, files: &Files<'_>, options: &Options<'_>) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let file = |name: &str, path: &Path| {
        let mut flag = OsString::from(format!("--{name}="));
        flag.push(path);
        flag
    };
    args.push(format!("--etcd-servers={}", etcd.url).into());
    args.push(format!("--etcd-prefix={}", etcd.access.prefix).into());
    args.push(file("etcd-cafile", &etcd.files.ca));
    args.push(file("etcd-certfile", &etcd.files.certificate));
    args.push(file("etcd-keyfile", &etcd.files.key));
    args.push(format!("--secure-port={port}").into());
    args.push(file("tls-cert-file", files.certificate));
    args.push(file("tls-private-key-file", files.key));
    args.push(file("client-ca-file", files.ca));
    // the public half is read from the certificate
    args.push(file("service-account-key-file", files.certificate));
    args.push(file("service-account-signing-key-file", files.key));
    args.push(file("encryption-provider-config", options.encryption_config));
    args.push(file("egress-selector-config-file", files.egress));
    for flag in [
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        // refused by 1.37 with a loopback address otherwise
        "--endpoint-reconciler-type=none",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        "--anonymous-auth=false",
        // nobody makes service accounts here, and webhooks of a snapshot lead nowhere
        "--disable-admission-plugins=ServiceAccount,MutatingAdmissionWebhook,\
         ValidatingAdmissionWebhook",
    ] {
        args.push(flag.into());
    }
    args.extend(options.flags.iter().map(OsString::from));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_keeps_nobody_waiting() {
        for check in ["kms-providers", "kms-provider-0", "informer-sync"] {
            assert!(is_about_content(check));
        }
        assert!(!is_about_content("poststarthook/crd-informer-synced"));
    }
}
