//! The plugin's arguments, its certificate, and the server as it finds it.

use std::time::Duration;

use clap::Parser as _;
use lastkey_client::{
    Category, Client, Config, Error,
    native::{PluginStatus, PluginStatusRequest},
};
use lastkey_kubernetes::{encryption_config::Finding, node::ask_status, socket::SocketAddress};

use super::{
    Program, enrolment,
    identity::{Identity, State},
};
use crate::{
    cli::{Cli, Command, Connect, PluginOptions, UpOptions},
    connect::default_data_dir,
    daemon::{client_of, identity_of, plugin_inside_up},
    output::{Failure, chain},
};

const MANIFEST: &str = "/etc/kubernetes/manifests/lastkey-kms-plugin.yaml";
const LISTED_BY: &str = "pgrep -f 'lastkey kms-plugin'";
/// An audit record's time is the server's, a signature's is ours: more is refused.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);
/// After connections that broke.
const ASK_AGAIN: usize = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// A plugin follows a change of its key within a moment; it is asked after each of these.
const CHANGE: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// A plugin as it was started.
pub(super) struct Plugin {
    options: PluginOptions,
    connect: Connect,
}

pub(super) fn find(named: Option<&str>, findings: &mut Vec<Finding>) -> Option<Plugin> {
    let is = |process: &lastkey_kubernetes::node::Process| {
        process.command.get(1).is_some_and(|word| word == "kms-plugin")
    };
    let program = match Program::find((named, LISTED_BY), (MANIFEST, false), is) {
        Ok(Some(program)) => program,
        Ok(None) => {
            let message = "no plugin was found: neither a process nor a static pod";
            let fix = "lastkey cluster config prints what runs one; or give --plugin FILE or PID";
            findings.push(Finding::error("no-plugin", message).fix(fix));
            return None;
        }
        Err(finding) => {
            findings.push(finding);
            return None;
        }
    };
    // an image's entry point is not in the manifest
    let command = program.command.iter().skip_while(|word| *word != "kms-plugin").cloned();
    let words = match inside_up(&program) {
        Some(words) => words,
        None => std::iter::once("lastkey".to_owned()).chain(command).collect(),
    };
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::KmsPlugin(mut options), connect, .. }) => {
            // the files as we see them
            let paths = [
                &mut options.client_cert,
                &mut options.client_key,
                &mut options.ca_file,
                &mut options.state_dir,
                &mut options.enrol.kubelet_key,
            ];
            let kubelet = &mut options.enrol.kubelet_cert;
            for path in paths.into_iter().flatten().chain([kubelet]) {
                *path = program.sees(path);
            }
            Some(Plugin { options, connect })
        }
        _ => {
            let message = format!("{} does not start a lastkey kms-plugin", program.from);
            let fix = "compare with what lastkey cluster config prints";
            findings.push(Finding::error("plugin-arguments", message).fix(fix));
            None
        }
    }
}

/// How the plugin of a `lastkey up` would be started alone.
fn inside_up(program: &Program) -> Option<Vec<String>> {
    let Ok(Cli { command: Command::Up(UpOptions { server, .. }), .. }) =
        Cli::try_parse_from(&program.command)
    else {
        return None;
    };
    let directory = server.data_dir.map(|path| program.sees(&path)).or_else(default_data_dir)?;
    Some(plugin_inside_up(&directory, &server.listen))
}

impl Plugin {
    /// Where it was told to listen.
    pub(super) fn sockets(&self) -> Vec<SocketAddress> {
        self.options.sockets.iter().filter_map(|socket| socket.parse().ok()).collect()
    }

    /// The files by which it is known.
    pub(super) fn identity(&self, findings: &mut Vec<Finding>) -> State {
        let Some(files) = identity_of(&self.options) else { return State::Good };
        let (ca, enrols) = (self.options.ca_file.as_deref(), self.options.enrol.enrol);
        Identity { files, ca, enrols }.examine(findings)
    }

    /// Asks the server, as the plugin does.
    pub(super) async fn server(&self, findings: &mut Vec<Finding>, has_ended: bool) {
        let client = match client(client_of(&self.connect, &self.options)) {
            Ok(client) => client,
            Err(finding) => return findings.push(finding),
        };
        match ask(&client, self.question()).await {
            Ok(status) => {
                if let Some(finding) = clock(&status.server_time) {
                    findings.push(finding);
                }
                findings.push(match &status.refusal {
                    None => Finding::info(
                        "server-allows-the-key",
                        format!("the server allows the key {}", self.options.key),
                    ),
                    Some(refusal) => Finding::error(
                        "key-refused",
                        format!(
                            "the server refuses the key: {} ({})",
                            refusal.message, refusal.code
                        ),
                    )
                    .fix(format!("lastkey key describe {}", self.options.key)),
                });
                findings.extend(self.goes_by_another(&client).await);
            }
            // has been said
            Err(error) if has_ended && says_so_of_us(&error) => {}
            Err(error) => {
                let (code, fix) = judge(&error);
                findings.push(Finding::error(code, chain(&error)).fix(fix));
            }
        }
    }

    /// Whether the plugin announces another key id than the server names for these files, for longer
    /// than a change of the key takes: it goes by other ones then.
    async fn goes_by_another(&self, client: &Client) -> Option<Finding> {
        let mut differing = None;
        for pause in CHANGE {
            tokio::time::sleep(pause).await;
            differing = self.differing(client).await;
            differing.as_ref()?;
        }
        let (address, announced, named) = differing?;
        let message = format!(
            "{address} announces the key id {announced}, and the server names {named} for the \
             certificate that lies on this node: the plugin does not go by it"
        );
        Some(Finding::error("plugin-key-differs", message).fix(
            "the plugin's log says why; if the certificate is another cluster's, put one of this \
             node's in place (`lastkey cluster certificate CLUSTER --out DIR`), and restart neither \
             the plugin nor the apiserver before",
        ))
    }

    /// The socket that announces another key id, that, and the server's.
    async fn differing(&self, client: &Client) -> Option<(SocketAddress, String, String)> {
        let status = ask(client, self.question()).await.ok()?;
        let named = status.plugin_key_id.filter(|_| status.usable)?;
        for address in self.sockets() {
            match ask_status(&address).await {
                Ok(answer) if answer.key_id != named => {
                    return Some((address, answer.key_id, named));
                }
                _ => {}
            }
        }
        None
    }

    fn question(&self) -> PluginStatusRequest<'_> {
        // a certificate names its own
        let cluster = match identity_of(&self.options) {
            Some(_) => None,
            None => self.options.cluster.as_deref().and_then(|id| id.parse().ok()),
        };
        let key = &*self.options.key;
        PluginStatusRequest { key, cluster, known: "", wait: Duration::ZERO, instance: None }
    }

    /// What keeps the node from an identity.
    pub(super) async fn enrolment(&self, findings: &mut Vec<Finding>) {
        enrolment::examine(&self.connect, &self.options, findings).await;
    }
}

/// A client as the plugin's arguments say.
pub(super) fn client(config: Result<Config, Failure>) -> Result<Client, Finding> {
    let wrong = |message: String| {
        let fix = "compare the plugin's arguments with what lastkey cluster config prints";
        Finding::error("plugin-arguments", message).fix(fix)
    };
    let config = config.map_err(|failure| wrong(failure.to_string()))?;
    Client::new(config).map_err(|error| wrong(chain(&error)))
}

/// Asks again when the connection broke: with TLS 1.3 a refused certificate is told after the
/// handshake, and a connection that is closed at the same moment can swallow why.
pub(super) async fn ask(
    client: &Client,
    question: PluginStatusRequest<'_>,
) -> Result<PluginStatus, Error> {
    let mut answer = client.plugin_status(question).await;
    for _ in 0..ASK_AGAIN {
        if !matches!(answer, Err(Error::Broken { .. })) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        answer = client.plugin_status(question).await;
    }
    answer
}

/// What the other side's TLS says of a certificate that it takes to have ended, or not to have begun.
const ENDED: [&str; 4] = ["Expired", "expired", "NotValidYet", "not valid yet"];

/// Whether it was told in an alert: it is we who are not accepted.
fn is_about_us(reason: &str) -> bool {
    reason.contains("alert")
}

/// Whether the server takes our certificate to have ended.
fn says_so_of_us(error: &Error) -> bool {
    says_ended(error) && matches!(error, Error::Tls { reason, .. } if is_about_us(reason))
}

/// Whether one side's certificate is out of its time by the other's clock.
fn says_ended(error: &Error) -> bool {
    matches!(error, Error::Tls { reason, .. } if ENDED.iter().any(|word| reason.contains(word)))
}

/// What an operator calls a failure, and what to do about it.
pub(super) fn judge(error: &Error) -> (&'static str, &'static str) {
    match (error, error.category()) {
        (Error::Tls { reason, .. }, _) if says_ended(error) => match is_about_us(reason) {
            true => (
                "clock-differs",
                "compare this clock with the server's first (timedatectl on both; timedatectl set-ntp \
                 true): by the server's, the certificate has ended, or is not good yet",
            ),
            false => (
                "clock-differs",
                "compare this clock with the server's first (timedatectl on both; timedatectl set-ntp \
                 true): by this one, the server's certificate has ended, or is not good yet; if they \
                 agree: `lastkey ca renew` there, or another --tls-cert",
            ),
        },
        (Error::Tls { reason, .. }, _) if is_about_us(reason) => (
            "identity-refused",
            "this server does not know the certificate: `lastkey cluster certificate CLUSTER --out DIR` \
             on the server of --server makes one for this node's cluster (as in `lastkey cluster list`), \
             or, where nodes enrol, `lastkey cluster node approve` lets it in",
        ),
        (Error::Tls { .. }, _) => (
            "server-not-trusted",
            "compare --ca-file with ca.pem in the server's data directory, and --server with the names \
             in its certificate (--tls-name)",
        ),
        (_, Category::Denied) => (
            "identity-refused",
            "lastkey cluster list shows which keys the cluster was given (compare --key), and lastkey \
             cluster node list whether the node was revoked",
        ),
        (_, Category::Unavailable) => (
            "server-unreachable",
            "look at the server (lastkey status there), the address and the network",
        ),
        _ => ("server-fails", "the server's log says more"),
    }
}

fn clock(server: &str) -> Option<Finding> {
    let server: jiff::Timestamp = server.parse().ok()?;
    let apart = server.duration_until(jiff::Timestamp::now());
    let finding = match apart.unsigned_abs() {
        apart if apart <= CLOCKS_DIFFER => {
            return Some(Finding::info("clock-agrees", "the clock agrees with the server's"));
        }
        apart => Finding::error(
            "clock-differs",
            format!("this clock and the server's are {} s apart", apart.as_secs()),
        ),
    };
    Some(finding.fix("let both follow a time server: timedatectl set-ntp true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_not_taken_for_a_wrong_authority() {
        let judged = |reason: &str| {
            let (server, reason) = ("https://kms:7343".to_owned(), reason.to_owned());
            judge(&Error::Tls { server, reason })
        };
        for reason in [
            "invalid peer certificate: Expired",
            "invalid peer certificate: certificate expired: verification time 1 (UNIX), but …",
            "invalid peer certificate: certificate not valid yet: verification time 1 (UNIX), but …",
            "the server answered with the alert CertificateExpired",
        ] {
            let (code, fix) = judged(reason);
            assert_eq!(code, "clock-differs", "{reason}");
            assert!(fix.starts_with("compare this clock"), "{fix}");
        }
        let of_us = |reason: &str| {
            let (server, reason) = (String::new(), reason.to_owned());
            says_so_of_us(&Error::Tls { server, reason })
        };
        assert!(of_us("the server answered with the alert CertificateExpired"));
        assert!(!of_us("invalid peer certificate: Expired"), "which is said beside ours");
        let (code, _) = judged("invalid peer certificate: UnknownIssuer");
        assert_eq!(code, "server-not-trusted");
        let (code, _) = judged("the server answered with the alert UnknownCA");
        assert_eq!(code, "identity-refused");
    }

    #[test]
    fn clocks() {
        let now = jiff::Timestamp::now();
        let shifted = |seconds| (now + jiff::SignedDuration::from_secs(seconds)).to_string();
        for (seconds, code) in [
            (0, "clock-agrees"),
            (-30, "clock-agrees"),
            (90, "clock-differs"),
            (-3600, "clock-differs"),
        ] {
            assert_eq!(clock(&shifted(seconds)).unwrap().code, code, "{seconds}");
        }
        assert_eq!(clock(""), None, "an older server does not say");
    }
}
