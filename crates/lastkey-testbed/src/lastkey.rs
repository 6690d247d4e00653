//! The `lastkey` binary: its long-running commands and its one-shot ones.

use crate::process::Daemon;
use crate::{Client, Error};
use rustix::process::Signal;
use serde::Deserialize;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A first start makes a store, keys and certificates, on a machine that may be busy.
const START: Duration = Duration::from_secs(90);

/// The contract: SIGINT and SIGTERM stop within ten seconds.
const STOP: Duration = Duration::from_secs(10);

/// The line that a long-running command prints once it is ready, as far as it has the parts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// `https://host:port`.
    pub url: String,
    /// The server's authority.
    pub ca_file: PathBuf,
    /// What clients show, mode 0600.
    pub credentials_file: PathBuf,
    /// The operator's socket.
    pub admin_socket: PathBuf,
    /// The plugin's socket.
    pub plugin_socket: PathBuf,
    /// The plugin's certificate.
    pub plugin_cert_file: PathBuf,
    /// The plugin's key.
    pub plugin_key_file: PathBuf,
    /// For the apiserver.
    pub encryption_config_file: PathBuf,
    /// The key of the cluster.
    pub key_id: String,
}

impl Ready {
    /// `host:port` of the server.
    #[must_use]
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("https://").trim_end_matches('/')
    }
}

/// A long-running command that said that it is ready; stopped when dropped.
pub struct Running {
    /// The process.
    pub process: Daemon,
    /// What it said.
    pub ready: Ready,
    /// The ready line, exactly.
    pub line: String,
}

impl Running {
    /// Stops it as an operator would, and gives how it ended.
    ///
    /// # Errors
    /// [`Error::Late`] when it takes longer than the contract allows.
    pub fn stop(&mut self) -> Result<ExitStatus, Error> {
        self.process.stop(Signal::TERM, STOP)
    }

    /// A client of the server without any credentials.
    ///
    /// # Errors
    /// When its authority cannot be read.
    pub fn client(&self) -> Result<Client, Error> {
        let ca = &self.ready.ca_file;
        let pem = std::fs::read_to_string(ca).map_err(Error::file(ca))?;
        Client::tls(self.ready.address(), &pem, None)
    }
}

/// How a one-shot command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    /// Itself when the exit code is 0.
    ///
    /// # Errors
    /// [`Error::Ended`] otherwise.
    pub fn expect_ok(self, what: &str) -> Result<Self, Error> {
        if self.code == 0 {
            return Ok(self);
        }
        let log = format!("{}{}", self.stdout, self.stderr);
        Err(Error::Ended { name: what.to_owned(), status: format!("code {}", self.code), log })
    }
}

/// The `lastkey` binary, with a folder for logs.
#[derive(Debug, Clone)]
pub struct Lastkey {
    binary: PathBuf,
    logs: PathBuf,
}

impl Lastkey {
    /// The binary under test; the logs of its processes go into `logs`.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, logs: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), logs: logs.into() }
    }

    /// Where the binary is.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// `lastkey up` on `data`, listening on `listen` (`127.0.0.1:0` for any port).
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn up(&self, data: &Path, listen: &str) -> Result<Running, Error> {
        self.serve("up", data, listen)
    }

    /// `lastkey server` on `data`, listening on `listen`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn server(&self, data: &Path, listen: &str) -> Result<Running, Error> {
        self.serve("server", data, listen)
    }

    fn serve(&self, verb: &str, data: &Path, listen: &str) -> Result<Running, Error> {
        let options = [OsStr::new(verb), OsStr::new("--data-dir"), data.as_os_str()];
        let listen = ["--listen", listen].map(OsStr::new);
        self.long_running(verb, options.into_iter().chain(listen))
    }

    /// `lastkey kms-plugin` with these options.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn plugin(&self, options: &[&OsStr]) -> Result<Running, Error> {
        let verb = OsStr::new("kms-plugin");
        self.long_running("kms-plugin", std::iter::once(verb).chain(options.iter().copied()))
    }

    /// Starts a long-running command without waiting for its ready line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<'a>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<Daemon, Error> {
        Daemon::start(name, &self.command(args), &self.logs)
    }

    /// A long-running command with these options, once it has said that it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn long_running<'a>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<Running, Error> {
        let mut process = Daemon::start_piped(name, &self.command(args), &self.logs)?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = process.take_stdout() {
            // Reads on for as long as the process lives, so that it never blocks on its output.
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    sender.send(line).ok();
                }
            });
        }
        let line = process.until(&format!("lastkey {name} is ready"), START, || {
            lines.try_recv().map_err(|_| Error::ReadyLine {
                line: String::new(),
                cause: "none was printed yet".into(),
            })
        })?;
        let ready = serde_json::from_str(&line)
            .map_err(|e| Error::ReadyLine { line: line.clone(), cause: e.to_string() })?;
        Ok(Running { process, ready, line })
    }

    fn command<'a>(&self, args: impl IntoIterator<Item = &'a OsStr>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).args(["--output", "json"]);
        // What a plugin keeps over restarts; as a service manager names it.
        command.env("STATE_DIRECTORY", self.logs.join("state"));
        command
    }

    /// Runs a one-shot command with `--output json`, as the owner of `credentials` if there are any.
    ///
    /// # Errors
    /// When it cannot be started; any exit code is an [`Outcome`].
    pub fn cli(&self, credentials: Option<&Path>, args: &[&str]) -> Result<Outcome, Error> {
        let mut command = self.command(args.iter().map(OsStr::new));
        command.env_remove("LASTKEY_CREDENTIALS").stdin(Stdio::null());
        if let Some(file) = credentials {
            command.env("LASTKEY_CREDENTIALS", file);
        }
        let output = command.output();
        let output = output.map_err(|source| Error::Start {
            program: self.binary.display().to_string(),
            source,
        })?;
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
