//! Running other programs, and saying clearly which one failed and what to do about it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// What can go wrong in a tool of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot start `{program}`: {source}")]
    Start { program: String, source: io::Error },
    #[error("{what} failed: `{command}` ended with {status}")]
    Step { what: String, command: String, status: ExitStatus },
    #[error(
        "{what} failed: `{command}` ended with {status}. Its last lines:\n{tail}\nAll of it: {log}"
    )]
    Logged { what: String, command: String, status: ExitStatus, tail: String, log: String },
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: String, source: io::Error },
    #[error("{0}")]
    Refused(String),
}

/// The root of the work tree.
pub(crate) fn root() -> PathBuf {
    // xtask lives one level below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// What a file system has left for us, in GiB; `None` when `df` does not tell.
pub(crate) fn free_gib(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|dir| dir.is_dir())?;
    let table =
        Step::new("df").args(["--output=avail", "--block-size=1G"]).args([there]).output()?;
    table.lines().last()?.trim().parse().ok()
}

/// Whether this run is CI's, where nothing may be left out.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|v| !v.is_empty() && v != "0" && v != "false")
}

/// Wraps an I/O error with what was being done to which file.
pub(crate) fn file_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File { action, path: path.display().to_string(), source }
}

/// One program to run.
pub(crate) struct Step {
    command: Command,
}

impl Step {
    /// A program, started in the root of the work tree.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(root());
        Self { command }
    }

    /// `cargo <subcommand>` by the toolchain of the work tree.
    pub(crate) fn cargo(subcommand: &str) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        Self::new(cargo).args([subcommand])
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it on this terminal; `what` names the step in a failure.
    pub(crate) fn run(mut self, what: &str) -> Result<(), Error> {
        let status = self.command.status().map_err(|e| self.not_started(e))?;
        if status.success() { Ok(()) } else { Err(self.failed(what, status)) }
    }

    /// Runs it with its output in `log`, whose last lines are shown when it fails.
    pub(crate) fn run_logged(mut self, what: &str, log: &Path) -> Result<(), Error> {
        let out = File::create(log).map_err(file_error("write", log))?;
        let err = out.try_clone().map_err(file_error("write", log))?;
        self.command.stdin(Stdio::null()).stdout(out).stderr(err);
        let status = self.command.status().map_err(|e| self.not_started(e))?;
        if status.success() {
            return Ok(());
        }
        let (text, command) = (std::fs::read_to_string(log).unwrap_or_default(), self.line());
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        let (what, log) = (what.to_owned(), log.display().to_string());
        Err(Error::Logged { what, command, status, tail, log })
    }

    /// Runs it quietly and gives its standard output; `None` when it cannot be started or fails.
    pub(crate) fn output(mut self) -> Option<String> {
        let output = self.command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whether it runs and succeeds; quiet.
    pub(crate) fn succeeds(self) -> bool {
        self.output().is_some()
    }

    /// Runs it and hands each line of its standard output to `each`; says whether it succeeded.
    pub(crate) fn run_lines(mut self, mut each: impl FnMut(&str)) -> Result<bool, Error> {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| self.not_started(e))?;
        let stdout = child.stdout.take().map(BufReader::new);
        for line in stdout.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            each(&line);
        }
        let status = child.wait().map_err(|e| self.not_started(e))?;
        Ok(status.success())
    }

    fn line(&self) -> String {
        let parts = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        parts.map(|p| p.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    fn not_started(&self, source: io::Error) -> Error {
        Error::Start { program: self.command.get_program().to_string_lossy().into_owned(), source }
    }

    fn failed(&self, what: &str, status: ExitStatus) -> Error {
        Error::Step { what: what.to_owned(), command: self.line(), status }
    }
}
