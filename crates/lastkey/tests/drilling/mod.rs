//! A `lastkey cluster drill` that is watched while it runs.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use lastkey_testbed::{Error, Peers, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Lab, SOON};

/// An installation starts, on a machine that is busy; and an outage of some minutes.
const PATIENCE: Duration = Duration::from_secs(900);

/// A drill that runs; killed when dropped.
pub(crate) struct Drill {
    child: Child,
    lines: Receiver<String>,
    pub(crate) scratch: PathBuf,
    errors: PathBuf,
}

/// How one ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// The last line, if that is a report.
    pub(crate) report: Value,
    pub(crate) stderr: String,
}

impl Drill {
    /// Starts one in a scratch directory of its own, with the newest apiserver.
    pub(crate) fn start(peers: &Peers, lab: &Lab, name: &str, options: &[&str]) -> Self {
        let scratch = lab.folder(&format!("scratch-{name}"));
        let errors = lab.path(&format!("drill-{name}.err"));
        let mut command = Command::new(lab.lastkey.binary());
        command.args(["cluster", "drill", "--output", "json"]).args(options);
        command.arg("--kube-apiserver").arg(peers.path("kube-apiserver-1.37.0"));
        command.arg("--etcd").arg(peers.path("etcd")).arg("--scratch-dir").arg(&scratch);
        command.env_remove("LASTKEY_CREDENTIALS").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(File::create(&errors).unwrap());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        Self { child, lines, scratch, errors }
    }

    /// Waits for the step that says so.
    pub(crate) fn until(&self, step: &str) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["step"].as_str().is_some_and(|it| it.contains(step)) {
                return;
            }
        }
        panic!("no step {step:?}; {}", fs::read_to_string(&self.errors).unwrap_or_default());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The process of it whose command line has this.
    pub(crate) fn process(&self, what: &str) -> Pid {
        let scratch = self.scratch.to_str().unwrap();
        let mut found = processes(scratch).into_iter().filter(|(_, line)| line.contains(what));
        let (pid, _) = found.next().unwrap_or_else(|| panic!("no process {what}"));
        Pid::from_raw(pid).unwrap()
    }

    /// Waits until it ends, and that nothing of it is left then.
    pub(crate) fn end(mut self) -> Ended {
        let mut last = String::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            last = line;
        }
        let code = self.child.wait().unwrap().code();
        self.assert_gone();
        let report: Value = serde_json::from_str(&last).unwrap_or_default();
        let report = if report["event"] == "report" { report } else { Value::Null };
        Ended { code, report, stderr: fs::read_to_string(&self.errors).unwrap() }
    }

    /// Neither a process nor a file.
    fn assert_gone(&self) {
        eventually("nothing is left behind", SOON, || {
            let files: Vec<_> = fs::read_dir(&self.scratch).unwrap().flatten().collect();
            let processes = processes(self.scratch.to_str().unwrap());
            match files.is_empty() && processes.is_empty() {
                true => Ok(()),
                false => Err(Error::Late {
                    what: "one look".into(),
                    seconds: 0,
                    last: format!("{files:?} {processes:?}"),
                }),
            }
        })
        .unwrap();
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Everything that works in this directory, but the drill itself, which has it as an option.
fn processes(directory: &str) -> Vec<(i32, String)> {
    let inside = format!("{directory}/");
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&inside).then_some((pid, line))
    })
    .collect()
}

/// The mode of the one directory inside.
pub(crate) fn mode_of_scratch(scratch: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    let entry = fs::read_dir(scratch).unwrap().next().unwrap().unwrap();
    entry.metadata().unwrap().permissions().mode() & 0o777
}
