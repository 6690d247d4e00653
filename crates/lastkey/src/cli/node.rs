//! Options about nodes that get a plugin's identity by their kubelet certificate (docs/nodes.md).

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

/// How a plugin gets an identity by the node's own.
#[derive(Debug, Default, Args)]
pub(crate) struct EnrolOptions {
    /// Get an identity by the kubelet's certificate, renew it, and keep it in the state directory;
    /// needs --cluster, --server and --ca-file, and somebody's approval.
    #[arg(long, requires_all = ["cluster", "servers", "ca_file"],
          conflicts_with_all = ["client_cert", "client_key"])]
    pub(crate) enrol: bool,

    /// The kubelet's client certificate (PEM).
    #[arg(
        long,
        value_name = "FILE",
        requires = "enrol",
        default_value = "/var/lib/kubelet/pki/kubelet-client-current.pem"
    )]
    pub(crate) kubelet_cert: PathBuf,

    /// Its private key (PEM) [default: in the same file].
    #[arg(long, value_name = "FILE", requires = "enrol")]
    pub(crate) kubelet_key: Option<PathBuf>,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeAction {
    /// List nodes that were approved, wait, are enrolled or were revoked.
    List {
        /// Only of this cluster: its name or id.
        #[arg(long, value_name = "CLUSTER")]
        cluster: Option<String>,
    },
    /// Let a node's plugin have an identity: one that waits, or one that will come.
    Approve(ApproveOptions),
    /// End the identity of a node's plugin at once. The node stays out until it is approved again.
    Revoke {
        /// The node's name; or with --plugin, the plugin's.
        node: String,
        /// Its cluster: name or id [default: the only one].
        #[arg(long, value_name = "CLUSTER")]
        cluster: Option<String>,
        /// End the identity of a plugin that `cluster add` made instead.
        #[arg(long)]
        plugin: bool,
    },
    /// Say which CA vouches for a cluster's nodes, and how long its plugins' certificates are good.
    Trust {
        /// The cluster: name or id [default: the only one].
        cluster: Option<String>,
        /// The cluster's CA certificate, or several (PEM), in place of those before: ca.crt.
        #[arg(long, value_name = "FILE", required_unless_present_any = ["none", "certificate_life"])]
        ca: Option<PathBuf>,
        /// Trust none: no node can enrol any more. Identities that there are stay.
        #[arg(long, conflicts_with = "ca")]
        none: bool,
        /// How long certificates issued from now on are good, such as 30d or 12h (1m to 730d).
        #[arg(long, value_name = "TIME", value_parser = time)]
        certificate_life: Option<Duration>,
    },
}

/// Options of `cluster node approve`.
#[derive(Debug, Args)]
pub(crate) struct ApproveOptions {
    /// The node's name as Kubernetes has it.
    #[arg(required_unless_present = "fingerprint")]
    pub(crate) node: Option<String>,
    /// Its cluster: name or id [default: the only one].
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Only with this kubelet certificate or public key: its SHA-256 in hexadecimal, as `openssl
    /// x509 -fingerprint -sha256` prints it [default: the key that waits, or the first that comes].
    #[arg(long, value_name = "SHA256")]
    pub(crate) fingerprint: Option<String>,
    /// For how long an approval by name alone waits for its node, such as 24h (at most 30d).
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "24h")]
    pub(crate) within: Duration,
}

/// Options of `cluster certificate`.
#[derive(Debug, Args)]
pub(crate) struct CertificateOptions {
    /// The cluster's name or id.
    pub(crate) cluster: String,
    /// Where to write plugin.pem, plugin.key and ca.pem: a directory without such files.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Whose identity it is; another name than those of `cluster list` is one more plugin.
    #[arg(long, value_name = "NAME", default_value = "plugin")]
    pub(crate) plugin: String,
    /// Also while the certificate of that plugin is good. It is refused at once then, wherever a copy
    /// of it lies.
    #[arg(long)]
    pub(crate) replace: bool,
}

/// A number of seconds, minutes, hours or days.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "give a number and s, m, h or d, such as 12h".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u32 = number.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [("90s", 90), ("2m", 120), ("12h", 43_200), ("30d", 2_592_000)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5", "+5m", "-5m", "1.5h", "5w", "99999999999d", "é"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
