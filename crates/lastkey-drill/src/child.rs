//! Processes that die with us.
//!
//! Each one is started through our own binary ([`become_program`]), which has the kernel promise to
//! kill it when we die, and then becomes the program. So `kill -9` of a drill leaves nothing behind.
//! The promise is tied to the *thread* that starts the process: start them from one that lives as
//! long as the drill, which is the main thread.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::time::Instant;

use crate::DrillError;

/// The hidden command of our binary that [`become_program`] is behind.
pub(crate) const COMMAND: &str = "drill-child";

/// How often something that is awaited is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So much of a log is quoted.
const LAST_LINES: usize = 15;
const LAST_BYTES: usize = 4000;

/// Turns this process into `program`, to be killed when `parent` dies. Does not come back unless
/// that fails.
pub fn become_program(parent: u32, program: &OsStr, args: &[OsString]) -> io::Error {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // it may have died before the promise was given
    let there = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if there != Some(parent) {
        return io::Error::other("who started this is gone");
    }
    Command::new(program).args(args).exec()
}

/// What a process sees of our environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    /// Next to nothing: etcd and others take options from it.
    Bare,
    /// All but what tells a `lastkey` whom to talk to: a token's module may be set up by it.
    Ours,
}

/// What is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is called in errors, and its log.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) environment: Environment,
}

/// Where programs are started.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    /// Our binary.
    pub(crate) lastkey: PathBuf,
    /// Home, and place of the logs.
    pub(crate) directory: PathBuf,
}

/// A running process, in a process group of its own; killed when dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    child: std::process::Child,
    log: PathBuf,
    out: PathBuf,
}

impl Child {
    pub(crate) fn start(program: &Program, ground: &Ground) -> Result<Self, DrillError> {
        let Program { name, path, args, environment } = program;
        let log = ground.directory.join(format!("{name}.log"));
        let out = ground.directory.join(format!("{name}.out"));
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(DrillError::file(path))
        };
        // a line that a process before has printed is not this one's
        fs::remove_file(&out).ok();
        let mut command = Command::new(&ground.lastkey);
        command.arg(COMMAND).arg(std::process::id().to_string()).arg(path).args(args);
        command.stdin(Stdio::null()).stdout(open(&out)?).stderr(open(&log)?);
        environment.apply(&mut command, &ground.directory);
        // Ctrl-C is for us; we end them in our order
        command.process_group(0);
        let start = |source| DrillError::Start { program: name.clone(), source };
        let child = command.spawn().map_err(start)?;
        Ok(Self { name: name.clone(), child, log, out })
    }

    /// Fails with the end of its log once it is no longer running.
    pub(crate) fn check(&mut self) -> Result<(), DrillError> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.ended(status)),
            _ => Ok(()),
        }
    }

    /// Waits for its end, and gives what it printed.
    pub(crate) async fn output(mut self, patience: Duration) -> Result<String, DrillError> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(self.printed()),
                Ok(Some(status)) => return Err(self.ended(status)),
                _ if start.elapsed() > patience => {
                    return Err(late(&format!("{} ends", self.name), patience, "it runs on"));
                }
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// The first line that it prints.
    pub(crate) async fn line(&mut self, patience: Duration) -> Result<String, DrillError> {
        let start = Instant::now();
        loop {
            if let Some((line, _)) = self.printed().split_once('\n') {
                return Ok(line.to_owned());
            }
            self.check()?;
            if start.elapsed() > patience {
                let what = format!("{} says that it is ready", self.name);
                return Err(late(&what, patience, &last_words(&self.log)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn printed(&self) -> String {
        fs::read(&self.out).map(|it| String::from_utf8_lossy(&it).into_owned()).unwrap_or_default()
    }

    /// The end of what it logged.
    pub(crate) fn last_words(&self) -> String {
        last_words(&self.log)
    }

    fn ended(&self, status: ExitStatus) -> DrillError {
        let (name, log) = (self.name.clone(), self.last_words());
        DrillError::Ended { name, status: status.to_string(), log }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(pid, signal).ok();
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // its number may be another's once it was waited for
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::KILL);
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Environment {
    fn apply(self, command: &mut Command, home: &Path) {
        match self {
            Self::Bare => {
                command.env_clear().env("HOME", home).env("TMPDIR", home);
                if let Some(path) = std::env::var_os("PATH") {
                    command.env("PATH", path);
                }
            }
            Self::Ours => {
                for name in ["LASTKEY_CREDENTIALS", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"] {
                    command.env_remove(name);
                }
                command.env("STATE_DIRECTORY", home.join("plugin-state"));
            }
        }
    }
}

pub(crate) fn late(what: &str, patience: Duration, last: &str) -> DrillError {
    DrillError::Late { what: what.to_owned(), seconds: patience.as_secs(), last: last.to_owned() }
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LAST_BYTES)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
