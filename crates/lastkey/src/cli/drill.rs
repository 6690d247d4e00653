//! Options of `cluster drill`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};
use lastkey_drill::outage::Outage;

use super::operator::TokenOptions;

/// Options of `cluster drill`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("drill").args(["snapshot", "outages"]).required(true).multiple(true))]
pub(crate) struct DrillOptions {
    /// Restore this snapshot of etcd (`etcdctl snapshot save`) on scratch processes, together with
    /// the backup --state, and say which of its objects can be read.
    #[arg(long, value_name = "FILE", requires = "state")]
    pub(crate) snapshot: Option<PathBuf>,

    /// Play outages on an installation of the drill's own, and say what was observed: all of them,
    /// or those of a list: server-down, server-slow, sealed, key-disabled, plugin-killed,
    /// stuck-apiserver.
    #[arg(long, value_name = "LIST", num_args = 0..=1, default_missing_value = "all", value_parser = outages)]
    pub(crate) outages: Option<OutageList>,

    #[command(flatten)]
    pub(crate) restore: RestoreOptions,

    #[command(flatten)]
    pub(crate) outage: OutageOptions,

    #[command(flatten)]
    pub(crate) programs: ProgramOptions,

    /// Write the report as a web page, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Where the scratch directory is made, which is removed in the end [default: the system's
    /// directory for temporary files].
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch_dir: Option<PathBuf>,
}

/// What is restored, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restore drill")]
pub(crate) struct RestoreOptions {
    /// A copy of the data directory of `up` or `server`. It is only read: the drill works on a copy
    /// of its own.
    #[arg(long, value_name = "DIR", requires = "snapshot")]
    pub(crate) state: Option<PathBuf>,

    /// Its root.key, where that is kept apart from the rest.
    #[arg(long, value_name = "FILE", requires = "state")]
    pub(crate) root_key: Option<PathBuf>,

    /// The apiservers' EncryptionConfiguration, for keys of aescbc, aesgcm and secretbox.
    #[arg(long, value_name = "FILE", requires = "snapshot")]
    pub(crate) encryption_config: Option<PathBuf>,

    /// What the apiservers' keys in etcd start with (their --etcd-prefix).
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub(crate) etcd_prefix: String,

    /// Take a snapshot that has no hash: a copy of etcd's own file (member/snap/db).
    #[arg(long, requires = "snapshot")]
    pub(crate) skip_hash_check: bool,

    /// A kind that no apiserver serves any more and nobody misses, as it is called in etcd, such as
    /// podsecuritypolicy; may be given several times.
    #[arg(long, value_name = "KIND", requires = "snapshot")]
    pub(crate) leftover: Vec<String>,

    /// How many objects are read at once.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: u16,

    #[command(flatten)]
    pub(crate) token: TokenOptions,
}

/// Which outages.
#[derive(Clone, Debug)]
pub(crate) struct OutageList(pub(crate) Vec<Outage>);

/// How outages are played.
#[derive(Debug, Args)]
#[command(next_help_heading = "Outage drill")]
pub(crate) struct OutageOptions {
    /// How long each outage lasts, such as 30s. An apiserver writes on for three minutes after it
    /// has lost its plugin.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "4m")]
    pub(crate) outage_length: Duration,

    /// How long it is awaited that all is well again after each.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "4m")]
    pub(crate) recovery: Duration,

    /// The plugins' --lease, as yours have it [default: what the server allows, 15 minutes].
    #[arg(long, value_name = "TIME", value_parser = time, requires = "outages")]
    pub(crate) lease: Option<Duration>,

    /// The plugins' --write-lease, as yours have it [default: what the server allows].
    #[arg(long, value_name = "TIME", value_parser = time, requires = "outages")]
    pub(crate) write_lease: Option<Duration>,
}

fn outages(text: &str) -> Result<OutageList, String> {
    if text == "all" {
        return Ok(OutageList(Outage::ALL.to_vec()));
    }
    let mut list: Vec<Outage> = Vec::new();
    for name in text.split(',').map(str::trim) {
        let outage = name.parse()?;
        if !list.contains(&outage) {
            list.push(outage);
        }
    }
    Ok(OutageList(list))
}

/// What would lead the scratch apiserver to another etcd, or others to it, is the drill's own.
fn apiserver_flag(text: &str) -> Result<String, String> {
    let name = text.split('=').next().unwrap_or_default();
    let Some(name) = name.strip_prefix("--").filter(|name| !name.is_empty()) else {
        return Err("a flag begins with --, and has its value behind =".to_owned());
    };
    let own = [
        "etcd-",
        "bind-address",
        "advertise-address",
        "secure-port",
        "encryption-provider-",
        "egress-selector-",
    ];
    match own.iter().any(|own| name.replace('_', "-").starts_with(own)) {
        true => Err("a drill sets that one itself: its apiserver is nobody else's".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// At least as long as it takes to see anything.
fn time(text: &str) -> Result<Duration, String> {
    match super::node::time(text)? {
        time if time < Duration::from_secs(5) => Err("give at least 5s".to_owned()),
        time => Ok(time),
    }
}

/// The programs that a drill starts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Programs")]
pub(crate) struct ProgramOptions {
    /// The kube-apiserver [default: in PATH, beside lastkey, or where it usually is].
    #[arg(long, value_name = "PATH")]
    pub(crate) kube_apiserver: Option<PathBuf>,

    /// etcd [default: in PATH, beside lastkey or the kube-apiserver, or where it usually is].
    #[arg(long, value_name = "PATH")]
    pub(crate) etcd: Option<PathBuf>,

    /// etcdutl [default: in PATH, beside lastkey or etcd, or where it usually is].
    #[arg(long, value_name = "PATH")]
    pub(crate) etcdutl: Option<PathBuf>,

    /// One more flag for the scratch kube-apiserver, such as --feature-gates=…; may be given several
    /// times.
    #[arg(long = "apiserver-flag", value_name = "FLAG", allow_hyphen_values = true, value_parser = apiserver_flag)]
    pub(crate) apiserver_flags: Vec<String>,
}

/// What the hidden command that starts a drill's processes is given.
#[derive(Debug, Args)]
pub(crate) struct DrillChild {
    /// Whose end ends it.
    pub(crate) parent: u32,
    /// The program.
    pub(crate) program: std::ffi::OsString,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<std::ffi::OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_outages() {
        assert_eq!(outages("all").unwrap().0, Outage::ALL);
        let two = outages("sealed, server-down,sealed").unwrap().0;
        assert_eq!(two, [Outage::Sealed, Outage::ServerDown]);
        assert!(outages("sealed,fire").is_err() && outages("").is_err());
        assert!(time("1s").is_err() && time("30s").is_ok());
    }

    #[test]
    fn the_scratch_apiserver_stays_a_scratch_apiserver() {
        let flag = "--feature-gates=KMSv1=true";
        assert_eq!(apiserver_flag(flag), Ok(flag.to_owned()));
        for wrong in [
            "--etcd-servers=https://live:2379",
            "--etcd_prefix=/x",
            "--bind-address=0.0.0.0",
            "--encryption-provider-config=/etc/x",
            "--egress-selector-config-file=/etc/x",
            "v=4",
            "--",
            "",
        ] {
            assert!(apiserver_flag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_of_the_two_has_to_be_asked_for() {
        use clap::Parser as _;
        let parse = |args: &[&str]| {
            let args = ["lastkey", "cluster", "drill"].into_iter().chain(args.iter().copied());
            crate::cli::Cli::try_parse_from(args).map(drop).map_err(|error| error.to_string())
        };
        let said = parse(&[]).unwrap_err();
        assert!(said.contains("--snapshot") && said.contains("--outages"), "{said}");
        assert!(parse(&["--snapshot", "a"]).unwrap_err().contains("--state"));
        assert!(parse(&["--state", "b"]).is_err());
        assert_eq!(parse(&["--outages"]), Ok(()));
        assert_eq!(parse(&["--snapshot", "a", "--state", "b", "--outages", "sealed"]), Ok(()));
    }
}
