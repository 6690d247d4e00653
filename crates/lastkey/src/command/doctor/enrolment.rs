//! Why a node that enrols its plugin has no identity: its kubelet's certificate, as the server takes
//! it, or the approval that is missing.
//!
//! The request to enrol itself is not made here: it may use up an approval.

use std::path::Path;

use lastkey_client::{ClientCertificate, Config, Endpoint, Error, native::PluginStatusRequest};
use lastkey_kubernetes::encryption_config::Finding;

use super::{
    identity::Certificate,
    plugin::{ask, client, judge},
};
use crate::{
    cli::{Connect, PluginOptions},
    daemon::client_of,
    output::chain,
};

/// The server's code for a kubelet's certificate that asks for anything else than to enrol: its TLS
/// has let it in.
const LET_IN: &str = "Forbidden.KubeletCertificate";

pub(super) async fn examine(
    connect: &Connect,
    options: &PluginOptions,
    findings: &mut Vec<Finding>,
) {
    findings.push(match kubelet(&options.enrol.kubelet_cert) {
        Ok(kubelet) => as_the_server_finds_it((connect, options), &kubelet).await,
        Err(finding) => finding,
    });
}

/// The certificate as it lies there.
fn kubelet(path: &Path) -> Result<Certificate, Finding> {
    let unreadable = |why: &dyn std::fmt::Display| {
        let message = format!(
            "the node has no identity yet, and the kubelet's certificate, by which it would ask for \
             one, cannot be read: {}: {why}",
            path.display()
        );
        Finding::error("kubelet-certificate-unreadable", message).fix(
            "run lastkey doctor as root, and give the plugin --kubelet-cert FILE with the kubelet's \
             client certificate (client-certificate in the kubelet's kubeconfig)",
        )
    };
    let pem = std::fs::read(path).map_err(|error| unreadable(&error))?;
    let certificate = Certificate::read(&pem);
    let certificate = certificate.ok_or_else(|| unreadable(&"it holds no certificate in PEM"))?;
    match certificate.has_ended() {
        true => Err(Finding::error(
            "kubelet-certificate-ended",
            format!("{} ended at {}", path.display(), certificate.ends_at()),
        )
        .fix(
            "if this clock is right (timedatectl): the kubelet renews it by itself where it reaches an \
             apiserver; journalctl -u kubelet says why it has not",
        )),
        false => Ok(certificate),
    }
}

async fn as_the_server_finds_it(
    (connect, options): (&Connect, &PluginOptions),
    kubelet: &Certificate,
) -> Finding {
    let config = client_of(connect, options).map(|config| by_the_kubelet(config, options));
    let client = match client(config) {
        Ok(client) => client,
        Err(finding) => return finding,
    };
    let question = PluginStatusRequest {
        key: &options.key,
        cluster: None,
        known: "",
        wait: std::time::Duration::ZERO,
        instance: None,
    };
    let answer = ask(&client, question).await;
    let cluster = options.cluster.as_deref().unwrap_or("CLUSTER");
    match answer {
        Err(error) if error.code() != Some(LET_IN) => refused(&error, cluster),
        _ => waits(kubelet, cluster),
    }
}

fn by_the_kubelet(config: Config, options: &PluginOptions) -> Config {
    let certificate = options.enrol.kubelet_cert.clone();
    let key = options.enrol.kubelet_key.clone().unwrap_or_else(|| certificate.clone());
    let ca = options.ca_file.clone().unwrap_or_default();
    let servers: Vec<Endpoint> = config.servers;
    Config::mutual_tls(servers, ca, ClientCertificate { certificate, key })
}

/// The connection is not made, or the answer is not what a kubelet's certificate gets.
fn refused(error: &Error, cluster: &str) -> Finding {
    let (code, fix) = judge(error);
    match code {
        "identity-refused" => {
            let message = format!(
                "the server does not take the kubelet's certificate, by which the node would get its \
                 identity: {}",
                chain(error)
            );
            let fix = format!(
                "`lastkey cluster node trust {cluster} --ca FILE` on the server's side, with the CA of \
                 the kubelet's certificate (/etc/kubernetes/pki/ca.crt)"
            );
            Finding::error("kubelet-certificate-refused", message).fix(fix)
        }
        _ => Finding::error(code, chain(error)).fix(fix),
    }
}

/// Nothing but somebody's word is missing, as far as can be seen from here.
fn waits(kubelet: &Certificate, cluster: &str) -> Finding {
    let node = kubelet.node().unwrap_or("NODE");
    let message = "the node has no identity yet: it waits for approval, unless the plugin's log says \
                   otherwise";
    Finding::error("node-not-enrolled", message).fix(format!(
        "on the server's side: lastkey cluster node approve {node} --cluster {cluster} --fingerprint {}",
        kubelet.fingerprint()
    ))
}
