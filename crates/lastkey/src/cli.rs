//! The command line: every command and option, with the words that its help shows.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand,
    builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser},
};

mod audit;
mod change;
mod config;
mod doctor;
mod drill;
mod files;
mod guard;
mod limits;
mod memory;
mod node;
mod node_doctor;
mod operator;
mod reach;
mod rotate;

pub(crate) use self::audit::{AuditOptions, VerifyOptions};
pub(crate) use self::change::{ChangeOptions, DisableOptions, EnableOptions};
pub(crate) use self::config::{ConfigOptions, ConfigPiece};
pub(crate) use self::doctor::DoctorOptions;
pub(crate) use self::drill::{DrillChild, DrillOptions, OutageList, OutageOptions, RestoreOptions};
pub(crate) use self::files::{DecryptOptions, EncryptOptions, Files, RewrapOptions};
pub(crate) use self::guard::{
    ForgetOptions, GuardOptions, RemoveAccessOptions, SetOptions, Switch, VersionAction,
    VersionsOptions,
};
use self::limits::LimitOptions;
pub(crate) use self::memory::MemoryOptions;
pub(crate) use self::node::{ApproveOptions, CertificateOptions, EnrolOptions, NodeAction};
pub(crate) use self::node_doctor::NodeDoctorOptions;
pub(crate) use self::operator::{
    MaybeSplitting, OperatorAction, RotateWhat, SealChoice, SealOptions, Splitting, TokenOptions,
};
pub(crate) use self::reach::{AccessOptions, StatusOptions};
pub(crate) use self::rotate::{Migration, RotateOptions};
use crate::output::Format;

/// The key-management service for Kubernetes.
///
/// `lastkey up` starts a server and a KMS plugin; the other commands talk to it.
#[derive(Debug, Parser)]
#[command(name = "lastkey", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connect: Connect,

    /// How to print: for people, or as JSON for scripts.
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server, and as whom.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Connect {
    /// The credentials file that `lastkey up` wrote [default: credentials.json in the user's
    /// configuration directory, or in the default data directory].
    #[arg(long, global = true, env = "LASTKEY_CREDENTIALS", value_name = "FILE",
          value_parser = named_file())]
    pub(crate) credentials: Option<PathBuf>,

    /// Talk to a server on this machine over its admin socket instead, as its administrator,
    /// whatever credentials there are.
    #[arg(long, global = true, value_name = "SOCKET")]
    pub(crate) admin_socket: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a server and a KMS plugin in the foreground, making on the first start what they need.
    Up(UpOptions),
    /// Run the server alone.
    Server(ServerOptions),
    /// Run a KMS plugin alone, beside an apiserver.
    KmsPlugin(PluginOptions),
    /// Make, show, change and rotate keys.
    #[command(subcommand)]
    Key(KeyAction),
    /// Encrypt files, or standard input.
    Encrypt(EncryptOptions),
    /// Decrypt files that `lastkey encrypt` made, or standard input.
    Decrypt(DecryptOptions),
    /// Give encrypted files to other keys, or to the newest versions of theirs, without touching
    /// what is in them.
    Rewrap(RewrapOptions),
    /// Read and verify the audit log.
    #[command(subcommand)]
    Audit(AuditAction),
    /// Register clusters and print their configuration.
    #[command(subcommand)]
    Cluster(ClusterAction),
    /// Print the CA, renew the server's certificate.
    #[command(subcommand)]
    Ca(CaAction),
    /// Make, enter and change what protects the root key.
    #[command(subcommand)]
    Operator(OperatorAction),
    /// Show how the server is.
    Status,
    /// Look at this control-plane node: apiserver flags, EncryptionConfiguration, the plugin's
    /// socket, certificate and clock, the server. Changes nothing.
    Doctor(NodeDoctorOptions),
    /// Starts a process of a drill.
    #[command(hide = true, disable_help_flag = true)]
    DrillChild(DrillChild),
    /// Removes what a killed drill has left.
    #[command(hide = true)]
    DrillSweep {
        /// Its scratch directory.
        directory: PathBuf,
    },
    /// Print the completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page a command.
    Man {
        /// Write lastkey.1, lastkey-key.1, … into this directory.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,

    #[command(flatten)]
    pub(crate) memory: MemoryOptions,
}

/// Options of `up` and `server`.
#[derive(Debug, Args)]
pub(crate) struct ServerOptions {
    /// Where everything is kept [default: /var/lib/lastkey for root, else
    /// ~/.local/state/lastkey].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7343", value_name = "HOST:PORT")]
    pub(crate) listen: String,

    /// A further name or address that clients know the server by, for its certificate.
    #[arg(long = "tls-name", value_name = "NAME", conflicts_with = "tls_cert")]
    pub(crate) tls_names: Vec<String>,

    /// A certificate of your own (PEM, leaf first) instead of one of Lastkey's CA.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// The CA of that certificate (PEM), for clients to trust: it goes into ca.pem, beside
    /// Lastkey's own.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_ca: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) seal: SealOptions,

    #[command(flatten)]
    pub(crate) audit: AuditOptions,

    /// How long a plugin that cannot reach the server may go on by what it was told, 30s to 15m: a
    /// number with s or m. Plugins may be told to stop earlier, never later.
    #[arg(long, default_value = "15m", value_name = "TIME", value_parser = memory::server_lease)]
    pub(crate) plugin_lease: Duration,

    #[command(flatten)]
    pub(crate) limits: LimitOptions,

    /// Reach out to no cluster, whatever was registered: what a drill runs on is a copy, and the
    /// clusters it knows are in use.
    #[arg(long, hide = true)]
    pub(crate) isolated: bool,
}

/// Options of `kms-plugin`.
#[derive(Debug, Args)]
pub(crate) struct PluginOptions {
    /// The socket for the apiserver: a path, or @NAME for an abstract one. May be given twice; not
    /// needed where LISTEN_FDS hands one over.
    #[arg(long = "socket", value_name = "PATH")]
    pub(crate) sockets: Vec<String>,

    /// Hold the socket in a process of its own, which starts the plugin anew when it ends, so that a
    /// crash fails no call but those in flight: for pods, where no systemd holds the socket.
    #[arg(long)]
    pub(crate) supervise: bool,

    /// The key: its id, or alias/NAME.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: String,

    /// An address of the server; several are tried one after the other.
    #[arg(long = "server", value_name = "URL")]
    pub(crate) servers: Vec<String>,

    /// The plugin's certificate (PEM), as `lastkey cluster add` wrote it.
    #[arg(long, value_name = "FILE", requires_all = ["client_key", "ca_file", "servers"])]
    pub(crate) client_cert: Option<PathBuf>,

    /// The private key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,

    /// The CA of the server (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// The cluster to act for, where the credentials are an administrator's [default: the
    /// installation's first], or to enrol in. A certificate names its own.
    #[arg(long, value_name = "ID", conflicts_with = "client_cert")]
    pub(crate) cluster: Option<String>,

    #[command(flatten)]
    pub(crate) enrol: EnrolOptions,

    /// The KMS API version that Status names: v2beta1 suits every apiserver from 1.27 on.
    #[arg(long, default_value = "v2beta1", value_parser = ["v2", "v2beta1"])]
    pub(crate) api_version: String,

    /// Serve /healthz and /metrics on this loopback address.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics_listen: Option<std::net::SocketAddr>,

    /// Where what was answered from memory is recorded until the server takes it; this plugin's
    /// alone [default: one for each socket in $STATE_DIRECTORY, or in /var/lib/lastkey-kms-plugin
    /// for root, else in ~/.local/state/lastkey-kms-plugin].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) memory: MemoryOptions,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Make a key.
    Create {
        /// What kind: aes-256, aes-192 or aes-128.
        #[arg(long, default_value = "aes-256", value_parser = ["aes-256", "aes-192", "aes-128"])]
        spec: String,
        /// Free text.
        #[arg(long)]
        description: Option<String>,
        /// A name for it: alias/NAME.
        #[arg(long, value_name = "ALIAS")]
        alias: Option<String>,
        /// A label; may be given several times.
        #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
        /// Rotate by itself after so many days (7–730), or `off`.
        #[arg(long, value_name = "DAYS", default_value = "365")]
        rotate_every: String,
    },
    /// Show a key.
    Describe {
        /// Its id, or alias/NAME.
        key: String,
    },
    /// List keys.
    List {
        /// Which page of 50.
        #[arg(long, default_value_t = 1)]
        page: u64,
        /// All of them.
        #[arg(long, conflicts_with = "page")]
        all: bool,
    },
    /// Allow the use of a key again.
    Enable {
        /// Its id, or alias/NAME.
        key: String,
    },
    /// Stop the use of a key: nothing can be encrypted or decrypted with it any more. Refused while
    /// something needs it.
    Disable {
        /// Its id, or alias/NAME.
        key: String,
        #[command(flatten)]
        twice: Twice,
    },
    /// Schedule a key's deletion: what it encrypted is lost when the window ends. Refused while
    /// something needs it.
    #[command(visible_alias = "schedule-deletion")]
    Delete {
        /// Its id, or alias/NAME.
        key: String,
        /// In how many days (7–366).
        #[arg(long, default_value_t = 30, value_name = "DAYS")]
        in_days: u16,
        #[command(flatten)]
        twice: Twice,
    },
    /// Show what would become unreadable without a key, or without one of its versions.
    #[command(disable_version_flag = true)]
    Impact {
        /// Its id, or alias/NAME.
        key: String,
        /// Only this version.
        #[arg(long, value_name = "ID")]
        version: Option<String>,
    },
    /// List what needs a key, and what has needed it; or forget something that is gone.
    Dependants {
        /// Its id, or alias/NAME.
        key: String,
        /// Forget this one: nobody will look after it any more.
        #[arg(long, value_name = "KIND/ID", requires = "reason")]
        remove: Option<String>,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", requires = "remove")]
        reason: Option<String>,
    },
    /// Cancel a scheduled deletion.
    CancelDeletion {
        /// Its id, or alias/NAME.
        key: String,
    },
    /// Refuse deletion until it is allowed again.
    Protect {
        /// Its id, or alias/NAME.
        key: String,
        /// Why.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Allow deletion again.
    Unprotect {
        /// Its id, or alias/NAME.
        key: String,
    },
    /// Give a key a new version at once; older versions go on decrypting.
    Rotate {
        /// Its id, or alias/NAME.
        key: String,
    },
    /// Change when a key rotates by itself.
    RotationPolicy {
        /// Its id, or alias/NAME.
        key: String,
        /// After so many days (7–730), or `off`.
        #[arg(long, value_name = "DAYS")]
        every: String,
    },
    /// List a key's versions; or retire one, or take that back.
    Versions(VersionsOptions),
    /// List what somebody wants done although something needs it, and what waits for a second
    /// person.
    Overrides,
    /// Confirm, as a second person, what somebody wants done although something needs it.
    ConfirmOverride {
        /// The request's id.
        id: String,
    },
    /// Drop what somebody wants done although something needs it.
    RejectOverride {
        /// The request's id.
        id: String,
    },
    /// Change a key's description.
    SetDescription {
        /// Its id, or alias/NAME.
        key: String,
        /// The new text.
        description: String,
    },
    /// Add tags to a key.
    Tag {
        /// Its id, or alias/NAME.
        key: String,
        /// The tags.
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = pair)]
        tags: Vec<(String, String)>,
    },
    /// Remove tags from a key.
    Untag {
        /// Its id, or alias/NAME.
        key: String,
        /// The tags' names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Name keys.
    #[command(subcommand)]
    Alias(AliasAction),
}

/// What lets a change pass that the guard refuses.
#[derive(Debug, Default, Args)]
pub(crate) struct Twice {
    /// Do it although something needs the key: name the key once more.
    #[arg(long = "override", value_name = "KEY", requires = "reason")]
    pub(crate) overriding: Option<String>,
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT", requires = "overriding")]
    pub(crate) reason: Option<String>,
}

impl Twice {
    /// As parameters of the call.
    pub(crate) fn parameters(&self) -> Vec<(&'static str, &str)> {
        let pairs = [("Override", &self.overriding), ("OverrideReason", &self.reason)];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}

/// What to do with aliases.
#[derive(Debug, Subcommand)]
pub(crate) enum AliasAction {
    /// Give a key a name.
    Create {
        /// alias/NAME.
        alias: String,
        /// The key's id, or another alias.
        key: String,
    },
    /// Give a name to another key.
    Update {
        /// alias/NAME.
        alias: String,
        /// The key's id, or another alias.
        key: String,
    },
    /// Take a name away.
    Delete {
        /// alias/NAME.
        alias: String,
    },
    /// List all names.
    List,
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditAction {
    /// Show the newest records.
    Tail {
        /// How many, at most 10000; 0 with --follow shows only new ones.
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=10_000))]
        lines: u32,
        /// Go on with new ones until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
    },
    /// Search the log; everything that is given must match.
    Query(AuditFilter),
    /// Check that no record was changed, removed, reordered or cut off.
    Verify(VerifyOptions),
    /// Print the public key that checkpoints are verified with (PEM). Keep it away from the
    /// server.
    PublicKey,
}

/// What to look for in the audit log.
#[derive(Debug, Args)]
pub(crate) struct AuditFilter {
    /// Not before this time (2026-01-31T12:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) from: Option<String>,
    /// Before this time.
    #[arg(long, value_name = "TIME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) to: Option<String>,
    /// Who called, or a part of it.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) principal: Option<String>,
    /// A key: its id, or alias/NAME, which means the key that has it now. What a re-encryption
    /// opened with counts as well.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) key: Option<String>,
    /// The action, such as Encrypt.
    #[arg(long, visible_alias = "operation", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) action: Option<String>,
    /// `ok`, or an error's code.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) outcome: Option<String>,
    /// A name in the encryption context.
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) context_key: Option<String>,
    /// At most so many records, 1 to 10000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
    /// Go on after this record (`next` of the page before).
    #[arg(long, value_name = "SEQ", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) after: Option<String>,
}

/// What to do with clusters.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterAction {
    /// Register a cluster and make its plugin's identity.
    Add {
        /// Its name: lower-case letters, digits and hyphens.
        name: String,
        /// The key that its plugin may use: an id, or alias/NAME.
        #[arg(long, default_value = "alias/kubernetes")]
        key: String,
        /// Where to write plugin.pem, plugin.key and ca.pem [default: a directory of the
        /// cluster's name].
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Let the cluster's nodes ask for their plugins' identities by certificates of this CA
        /// (PEM), the cluster's ca.crt. No key is made here then; only ca.pem is written.
        #[arg(long, value_name = "FILE")]
        node_ca: Option<PathBuf>,
        /// How long its plugins' certificates are good, such as 90d (1m to 730d) [default: 30d for
        /// nodes that enrol, 365d otherwise].
        #[arg(long, value_name = "TIME", value_parser = node::time)]
        certificate_life: Option<std::time::Duration>,
        #[command(flatten)]
        access: Box<AccessOptions>,
    },
    /// Make another identity for a plugin of a registered cluster: where its certificate has ended or
    /// is lost, or for one more node.
    Certificate(CertificateOptions),
    /// Let nodes have identities for their plugins, and take them away.
    #[command(subcommand)]
    Node(NodeAction),
    /// List the clusters.
    List,
    /// Print the EncryptionConfiguration and what runs the plugin on a control plane.
    Config(ConfigOptions),
    /// Count what rests under which key and version, or in clear, and have the server keep it.
    Status(StatusOptions),
    /// Find what is wrong, each with what to do about it.
    Doctor(DoctorOptions),
    /// Set what the server does for a cluster by itself.
    Set(SetOptions),
    /// Forget how a cluster is reached; what it needs stays guarded as it was seen last.
    RemoveAccess(RemoveAccessOptions),
    /// Forget a cluster: nobody opens again what was encrypted for it, in its backups neither.
    /// Refused while there is, or may be, anything of it.
    Forget(ForgetOptions),
    /// Give its key a new version, and bring every object under it: waits until every apiserver
    /// uses it, writes everything anew, looks that nothing is left, and reports. The same command
    /// goes on with a rotation that is not over.
    Rotate(Box<RotateOptions>),
    /// Have a cluster's objects encrypted by the KMS, from whatever they are under: changes the
    /// apiservers' configuration step by step, waits until each has loaded it, writes everything
    /// anew, and takes out what nothing is under any more. The same command goes on with one that
    /// is not over.
    Enable(Box<EnableOptions>),
    /// The way back: to clear, or over to another provider.
    Disable(Box<DisableOptions>),
    /// Try on scratch processes whether a snapshot of etcd can be read with a backup of Lastkey's
    /// state, and what is seen when something fails. What was given is only read; everything that
    /// runs ends with the drill.
    Drill(Box<DrillOptions>),
}

/// What to do with the CA.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum CaAction {
    /// Print the CA's certificate (PEM).
    Print,
    /// Give the server a new certificate at once; it renews by itself otherwise.
    Renew,
}

/// The credentials file; of an empty name it is said what may have given it.
fn named_file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path| match path.is_empty() {
        true => Err("it is empty; name a file, or unset LASTKEY_CREDENTIALS"),
        false => Ok(PathBuf::from(path)),
    })
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }

    /// As a variable that is set to nothing gives it, which nobody sees on the command line.
    #[test]
    fn an_empty_name_of_credentials_says_which_variable_may_have_it() {
        let error = super::Cli::try_parse_from(["lastkey", "--credentials", "", "status"]);
        let said = error.unwrap_err().to_string();
        assert!(said.contains("unset LASTKEY_CREDENTIALS"), "{said}");
    }
}
