//! The plugin's arguments, its certificate, and the server as it finds it.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use clap::Parser as _;
use lastkey_client::{
    Category, Client, Error,
    native::{PluginStatus, PluginStatusRequest},
};
use lastkey_kubernetes::{encryption_config::Finding, socket::SocketAddress};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::Program;
use crate::{
    cli::{Cli, Command, Connect, PluginOptions},
    daemon::{client_of, identity_of},
    output::chain,
};

const MANIFEST: &str = "/etc/kubernetes/manifests/lastkey-kms-plugin.yaml";
const LISTED_BY: &str = "pgrep -f 'lastkey kms-plugin'";
/// Certificates are renewed with a third of their life left; with this part of it, that has failed.
const LATE: u32 = 4;
/// An audit record's time is the server's, a signature's is ours: more is refused.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);
/// After connections that broke.
const ASK_AGAIN: usize = 5;
const PAUSE: Duration = Duration::from_millis(100);

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
    let command = program.command.iter().skip_while(|word| *word != "kms-plugin");
    let words = std::iter::once("lastkey").chain(command.map(String::as_str));
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::KmsPlugin(mut options), connect, .. }) => {
            // the files as we see them
            let paths = [
                &mut options.client_cert,
                &mut options.client_key,
                &mut options.ca_file,
                &mut options.state_dir,
            ];
            for path in paths.into_iter().flatten() {
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

impl Plugin {
    /// Where it was told to listen.
    pub(super) fn sockets(&self) -> Vec<SocketAddress> {
        self.options.sockets.iter().filter_map(|socket| socket.parse().ok()).collect()
    }

    /// Whether its certificate is there, safe, and good for a while; false if nobody could be asked
    /// with it.
    pub(super) fn certificate(&self, findings: &mut Vec<Finding>) -> bool {
        let Some(files) = identity_of(&self.options) else { return true };
        let (certificate, key) = (files.certificate, files.key);
        let before = findings.len();
        match std::fs::read(&certificate).map(|pem| certificate_life(&pem)) {
            Ok(Some(life)) => findings.push(ends(&certificate, life)),
            Ok(None) => {
                let message = format!("{} holds no certificate", certificate.display());
                let fix = "lastkey cluster add, or cluster node approve, makes one";
                findings.push(Finding::error("certificate-unreadable", message).fix(fix));
            }
            Err(error) => {
                let message = format!("{}: {error}", certificate.display());
                let fix = "lastkey cluster add makes one; read it as root";
                findings.push(Finding::error("certificate-unreadable", message).fix(fix));
            }
        }
        let usable = findings[before..].iter().all(|it| it.code != "certificate-unreadable");
        if let Some(finding) = key_is_open(&key) {
            findings.push(finding);
        }
        usable
    }

    /// Asks the server, as the plugin does.
    pub(super) async fn server(&self, findings: &mut Vec<Finding>) {
        let client = match self.client() {
            Ok(client) => client,
            Err(message) => {
                let fix = "lastkey cluster config prints the plugin's arguments";
                return findings.push(Finding::error("plugin-arguments", message).fix(fix));
            }
        };
        // a certificate names its own
        let cluster = match identity_of(&self.options) {
            Some(_) => None,
            None => self.options.cluster.as_deref().and_then(|id| id.parse().ok()),
        };
        let question = PluginStatusRequest {
            key: &self.options.key,
            cluster,
            known: "",
            wait: Duration::ZERO,
            instance: None,
        };
        match ask(&client, question).await {
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
            }
            Err(error) => {
                let (code, fix) = judge(&error);
                findings.push(Finding::error(code, chain(&error)).fix(fix));
            }
        }
    }

    fn client(&self) -> Result<Client, String> {
        let config = client_of(&self.connect, &self.options);
        Client::new(config.map_err(|failure| failure.to_string())?).map_err(|error| chain(&error))
    }
}

/// Asks again when the connection broke: with TLS 1.3 a refused certificate is told after the
/// handshake, and a connection that is closed at the same moment can swallow why.
async fn ask(client: &Client, question: PluginStatusRequest<'_>) -> Result<PluginStatus, Error> {
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

/// What an operator calls a failure, and what to do about it.
fn judge(error: &Error) -> (&'static str, &'static str) {
    match (error, error.category()) {
        // told in an alert: it is we who are not accepted
        (Error::Tls { reason, .. }, _) if reason.contains("alert") => (
            "identity-refused",
            "this server does not know the certificate: lastkey cluster add (or cluster node approve) on \
             the server of --server makes one",
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

/// From when and until when the first certificate of a PEM file is good.
fn certificate_life(pem: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
    };
    let validity = parsed.validity();
    Some((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

fn ends(certificate: &Path, (begin, end): (SystemTime, SystemTime)) -> Finding {
    let life = end.duration_since(begin).unwrap_or_default();
    let shown = jiff::Timestamp::try_from(end).map(|end| end.to_string()).unwrap_or_default();
    let path = certificate.display();
    match end.duration_since(jiff::Timestamp::now().into()) {
        Err(_) => Finding::error("certificate-ended", format!("{path} ended at {shown}"))
            .fix("lastkey cluster add makes a new one; the plugin takes it up by itself"),
        Ok(left) if left < life / LATE => {
            let message = format!("{path} ends at {shown}, and should have been renewed by now");
            Finding::warning("certificate-ends-soon", message)
                .fix("the plugin's log says why it was not renewed")
        }
        Ok(_) => Finding::info("certificate-good", format!("{path} is good until {shown}")),
    }
}

/// A private key is its owner's alone.
fn key_is_open(key: &Path) -> Option<Finding> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = std::fs::metadata(key).ok()?.mode() & 0o7777;
    (mode & 0o077 != 0).then(|| {
        let path = key.display();
        Finding::error("private-key-open", format!("others may use {path} (mode {mode:04o})"))
            .fix(format!("chmod 0600 {path}"))
    })
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
    use lastkey_kubernetes::encryption_config::Severity;

    use super::*;

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

    #[test]
    fn certificates() {
        let path = Path::new("/etc/lastkey/plugin.pem");
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let now = SystemTime::from(jiff::Timestamp::now());
        let code = |life: u64, left: u64| {
            let end = now + days(left);
            ends(path, (end - days(life), end)).code
        };
        // each is renewed with a third left
        for (life, good, late) in [(365, 100, 90), (30, 8, 7), (20, 6, 4), (3, 1, 0)] {
            assert_eq!(code(life, good), "certificate-good", "{life}");
            assert_eq!(ends(path, (now, now + days(life))).severity, Severity::Info, "{life}");
            if late > 0 {
                assert_eq!(code(life, late), "certificate-ends-soon", "{life}");
            }
        }
        assert_eq!(ends(path, (now - days(30), now - days(1))).code, "certificate-ended");
    }
}
