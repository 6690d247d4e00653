//! What a real kube-apiserver says of an EncryptionConfiguration, without a store or a plugin.
//!
//! It reads the file before it reads its file of tokens, and ends at the first of them that it does
//! not like. So with a file of tokens that does not exist, its last words tell whether the
//! configuration was taken.

use crate::pki::Authority;
use crate::process::{Daemon, free_port};
use crate::{Error, Peers};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// It ends within a second by itself; each KMS provider may cost its timeout.
const PATIENCE: Duration = Duration::from_secs(240);
/// The port that was free a moment ago may be taken by then.
const ATTEMPTS: usize = 5;

/// An apiserver's verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It would start.
    Taken {
        /// All it logged: which sockets it dialled, for one.
        log: String,
    },
    /// It does not start.
    Refused {
        /// Why.
        reason: String,
    },
}

/// A kube-apiserver that is started for each file, and does not get far.
pub struct Judge {
    program: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    dir: PathBuf,
}

impl Judge {
    /// `version` is `1.37.0` or `1.31.0`.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn new(peers: &Peers, dir: &Path, version: &str) -> Result<Self, Error> {
        let pair = Authority::new("judge")?.server("kube-apiserver")?;
        let (cert, key) = pair.write(dir, "judge")?;
        let program = peers.path(&format!("kube-apiserver-{version}"));
        Ok(Self { program, cert, key, dir: dir.to_path_buf() })
    }

    /// Gives it a file, with further flags. `name` is the log's.
    ///
    /// # Errors
    /// When it ends for another reason than these two.
    pub fn judge(&self, name: &str, config: &Path, flags: &[&str]) -> Result<Verdict, Error> {
        let mut ended = String::new();
        for attempt in 0..ATTEMPTS {
            let log = format!("{name}-{attempt}");
            let mut process = Daemon::start(&log, &self.command(config, flags)?, &self.dir)?;
            process.wait(PATIENCE)?;
            let log = process.log();
            // its reason may go over several lines, the last of them empty
            let last = log.rfind("command failed").map_or("", |start| &log[start..]);
            let last = last.to_owned();
            if last.contains(NO_TOKENS) {
                return Ok(Verdict::Taken { log });
            }
            if last.contains("error while parsing file")
                || last.contains("error while building transformers")
            {
                return Ok(Verdict::Refused { reason: last });
            }
            ended = last;
            if !ended.contains("address already in use") {
                break;
            }
        }
        Err(Error::Ended { name: name.to_owned(), status: "no verdict".to_owned(), log: ended })
    }

    fn command(&self, config: &Path, flags: &[&str]) -> Result<Command, Error> {
        let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut command = Command::new(&self.program);
        command
            // never asked: it does not get that far
            .arg("--etcd-servers=http://127.0.0.1:1")
            .arg(format!("--secure-port={}", free_port()?))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg("--endpoint-reconciler-type=none")
            .arg(file("tls-cert-file", &self.cert))
            .arg(file("tls-private-key-file", &self.key))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(file("service-account-key-file", &self.cert))
            .arg(file("service-account-signing-key-file", &self.key))
            .args(["--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC"])
            .arg(format!("--token-auth-file={NO_TOKENS}"))
            .arg(file("encryption-provider-config", config))
            .args(flags);
        Ok(command)
    }
}

const NO_TOKENS: &str = "/nonexistent/file-of-tokens";
