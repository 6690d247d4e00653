//! Child processes with a guard, their logs, and waiting for what they do.

use crate::Error;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The first port that [`free_port`] looks at.
const LOWEST_PORT: u16 = 20_000;

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with standard error (and output, unless it is already taken) appended to
    /// `<dir>/<name>.log`.
    ///
    /// # Errors
    /// When the program cannot be started or the log not be opened.
    pub fn start(name: &str, command: &Command, dir: &Path) -> Result<Self, Error> {
        Self::spawn(name, command, dir, false)
    }

    /// As [`Daemon::start`], with standard output left to [`Daemon::take_stdout`].
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_piped(name: &str, command: &Command, dir: &Path) -> Result<Self, Error> {
        Self::spawn(name, command, dir, true)
    }

    fn spawn(name: &str, command: &Command, dir: &Path, piped: bool) -> Result<Self, Error> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.map_err(Error::file(&log))?;
        let copy = file.try_clone().map_err(Error::file(&log))?;
        let mut command = bound_to_us(command);
        command.stdin(Stdio::null()).stderr(file);
        command.stdout(if piped { Stdio::piped() } else { Stdio::from(copy) });
        let child = command.spawn().map_err(|source| Error::Start { program: name.into(), source });
        Ok(Self { name: name.into(), child: child?, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipe of a process that was started by [`Daemon::start_piped`]; once.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Everything it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        File::open(&self.log).and_then(|mut f| f.read_to_end(&mut text)).ok();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Fails with the end of its log once it is no longer running.
    ///
    /// # Errors
    /// [`Error::Ended`] when it ended.
    pub fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(self.ended(status)),
            _ => Ok(()),
        }
    }

    /// Tries `attempt` until it succeeds, for as long as this process runs.
    ///
    /// # Errors
    /// [`Error::Ended`] as soon as it ended, [`Error::Late`] after `timeout`.
    pub fn until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        eventually(what, timeout, || match self.check() {
            Ok(()) => attempt().map(Ok),
            Err(ended) => Ok(Err(ended)),
        })?
    }

    fn ended(&self, status: ExitStatus) -> Error {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let log = lines[lines.len().saturating_sub(20)..].join("\n");
        Error::Ended { name: self.name.clone(), status: status.to_string(), log }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    /// [`Error::Late`] when it still runs after `timeout`.
    pub fn stop(&mut self, signal: Signal, timeout: Duration) -> Result<ExitStatus, Error> {
        self.signal(signal);
        self.wait(timeout)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Late`] when it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, Error> {
        let what = format!("{} ends", self.name);
        eventually(&what, timeout, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The same command, killed by the kernel when the thread that starts it ends.
fn bound_to_us(command: &Command) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    let mut bound = if setpriv.exists() {
        let mut bound = Command::new(setpriv);
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
        bound
    } else {
        Command::new(command.get_program())
    };
    bound.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        bound.current_dir(dir);
    }
    bound
}

/// Tries `attempt` until it succeeds.
///
/// # Errors
/// [`Error::Late`] with the last refusal when it did not within `timeout`.
pub fn eventually<T, E: std::fmt::Display>(
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        let refusal = match attempt() {
            Ok(value) => return Ok(value),
            Err(refusal) => refusal,
        };
        if start.elapsed() >= timeout {
            let (what, last) = (what.to_owned(), refusal.to_string());
            return Err(Error::Late { what, seconds: timeout.as_secs(), last });
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A TCP port on 127.0.0.1 that nobody listens on, and that nobody else who asks here is given for
/// as long as this process runs.
///
/// It is none that the kernel gives to outgoing connections: such a port could be taken before its
/// daemon listens, or while the daemon starts again.
///
/// # Errors
/// When no port is left.
pub fn free_port() -> Result<u16, Error> {
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let ephemeral = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let ephemeral = ephemeral.and_then(|it| it.split_whitespace().next()?.parse().ok());
    let end = ephemeral.filter(|&it: &u16| it > LOWEST_PORT).unwrap_or(u16::MAX);
    for port in LOWEST_PORT..end {
        // The name is everybody's on this machine, and gone with the process that has it.
        let name = format!("lastkey-testbed-port-{port}");
        let mine = SocketAddr::from_abstract_name(name).and_then(|it| UnixListener::bind_addr(&it));
        if let Ok(mine) = mine {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            // One that is in use is kept as well: it need not be looked at again.
            reserved.push(mine);
            if free {
                return Ok(port);
            }
        }
    }
    let source = io::Error::from(io::ErrorKind::AddrNotAvailable);
    Err(Error::Start { program: "a listener on 127.0.0.1".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_is_not_the_kernels() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap())).unwrap();
        let ports: Vec<u16> = (0..20).map(|_| free_port().unwrap()).collect();
        let mut once = ports.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ports.len(), "{ports:?}");
        assert!(!ports.contains(&taken.local_addr().unwrap().port()));
        for port in ports {
            assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
            let kernels = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            assert!(kernels.local_addr().unwrap().port() > port);
        }
    }
}
