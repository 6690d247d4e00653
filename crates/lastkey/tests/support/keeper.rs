//! A hand-made service manager: it holds the listening socket, or leaves it to the plugin, hears
//! what the plugin says about itself, and starts, stops, upgrades and kills it, as systemd would.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::net::{UnixDatagram, UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lastkey_testbed::{Ready, eventually};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, waitpid,
    },
};

use super::{Lab, SOON, plugin_options};

/// The plugin's process id is known only inside, and `exec` keeps it.
const WITH_SOCKET: &str =
    r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=lastkey.socket exec "$0" "$@" 3<&0 0</dev/null"#;

/// Runs one `lastkey kms-plugin` after another.
pub(crate) struct Keeper {
    pub(crate) socket: PathBuf,
    binary: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    /// Held between two processes; without one, the plugin makes the socket.
    listener: Option<UnixListener>,
    said: UnixDatagram,
    said_at: PathBuf,
    main: Option<Pid>,
}

impl Keeper {
    /// Holds the socket itself.
    pub(crate) fn holding(lab: &Lab, ready: &Ready) -> Self {
        let mut keeper = Self::new(lab, ready);
        let listener = UnixListener::bind(&keeper.socket).unwrap();
        keeper.listener = Some(listener);
        keeper
    }

    /// Leaves the socket to the plugin.
    pub(crate) fn new(lab: &Lab, ready: &Ready) -> Self {
        // whoever outlives its parent becomes ours, so that its end can be seen
        set_child_subreaper(Some(getpid())).unwrap();
        let socket = lab.folder("run").join("kms.sock");
        std::fs::set_permissions(
            lab.path("run"),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let files = Ready { plugin_socket: socket.clone(), ..ready.clone() };
        let mut arguments = plugin_options(&files).map(OsStr::to_owned).to_vec();
        if !arguments.iter().any(|word| word == "--state-dir") {
            arguments.extend(["--state-dir".into(), lab.path("state").into_os_string()]);
        }
        let said_at = lab.path("notify");
        let said = UnixDatagram::bind(&said_at).unwrap();
        said.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let binary = lab.path("lastkey");
        std::fs::hard_link(lab.lastkey.binary(), &binary)
            .or_else(|_| std::fs::copy(lab.lastkey.binary(), &binary).map(drop))
            .unwrap();
        let (log, listener, main) = (lab.path("kept-plugin.log"), None, None);
        Self { socket, binary, arguments, log, listener, said, said_at, main }
    }

    /// Adds to the plugin's arguments.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// Where the binary lies that the next process runs.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Everything all of them logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts a process, without waiting for anything.
    #[expect(clippy::zombie_processes, reason = "`ended` waits, by the process id")]
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.env("NOTIFY_SOCKET", &self.said_at).stdout(Stdio::null()).stderr(log);
        match &self.listener {
            Some(listener) => {
                command.args(["/bin/sh", "-c", WITH_SOCKET]);
                command
                    .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())));
            }
            None => drop(command.stdin(Stdio::null())),
        }
        command.arg(&self.binary).arg("kms-plugin").args(&self.arguments);
        let child = command.spawn().unwrap();
        self.main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    }

    /// Waits until somebody has dialled the held socket and nobody has accepted, which is when systemd
    /// starts the service.
    pub(crate) fn is_wanted(&self) {
        let listener = self.listener.as_ref().unwrap();
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        let limit = Timespec { tv_sec: SOON.as_secs().cast_signed(), tv_nsec: 0 };
        assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1, "nobody dials");
    }

    /// Waits until whoever is in charge says that it works.
    pub(crate) fn works(&mut self) {
        self.hears("STATUS=works");
    }

    /// Waits for a line; follows `MAINPID` meanwhile.
    pub(crate) fn hears(&mut self, wanted: &str) {
        let start = Instant::now();
        let mut all = String::new();
        loop {
            let mut message = [0; 4096];
            match self.said.recv(&mut message) {
                Ok(length) => all += &format!("{}\n", String::from_utf8_lossy(&message[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if let Some(pid) = all.lines().rev().find_map(|line| line.strip_prefix("MAINPID=")) {
                self.main = Pid::from_raw(pid.parse().unwrap());
            }
            if all.lines().any(|line| line == wanted) {
                return;
            }
            let log = self.log();
            assert!(start.elapsed() < SOON, "it did not say {wanted:?}, but:\n{all}\n{log}");
        }
    }

    /// The process in charge.
    pub(crate) fn main(&self) -> Pid {
        self.main.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.main(), signal).unwrap();
    }

    /// Upgrades in place; the old process must end with code 0.
    pub(crate) fn upgrade(&mut self) {
        let old = self.main();
        self.signal(Signal::USR2);
        self.works();
        assert_ne!(self.main(), old, "another process is in charge");
        assert_eq!(ended(old).exit_status(), Some(0), "{}", self.log());
    }

    /// Stops, and starts again; the old process must end with code 0.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start();
        self.works();
    }

    /// Stops for good; the process must end with code 0.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let main = self.main.take().unwrap();
        assert_eq!(ended(main).exit_status(), Some(0), "{}", self.log());
    }

    /// The plugin that this process supervises.
    pub(crate) fn supervised(&self) -> Pid {
        let path = format!("/proc/{}/task", self.main().as_raw_nonzero());
        eventually("the supervisor has started a plugin", SOON, || {
            let tasks = std::fs::read_dir(&path).map_err(|error| error.to_string())?;
            let children = tasks.map(|task| std::fs::read_to_string(task?.path().join("children")));
            let children = children.filter_map(Result::ok).collect::<String>();
            let mut pids = children.split_whitespace().map(|pid| pid.parse().ok());
            let pid = pids.next().flatten().and_then(Pid::from_raw);
            pid.ok_or_else(|| format!("none: {}", self.log()))
        })
        .unwrap()
    }

    /// It has ended by itself.
    pub(crate) fn forget(&mut self) {
        self.main = None;
    }

    /// `kill -9`; returns once it is dead.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        ended(self.main.take().unwrap());
    }
}

/// How a process ended, once it has.
pub(crate) fn ended(pid: Pid) -> WaitStatus {
    eventually("the process ends", SOON, || match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => Ok(status),
        Ok(None) => Err("it still runs".to_owned()),
        Err(error) => Err(error.to_string()),
    })
    .unwrap()
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(main) = self.main {
            kill_process(main, Signal::KILL).ok();
            waitpid(Some(main), WaitOptions::empty()).ok();
        }
    }
}
