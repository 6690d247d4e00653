//! Process tests: the plugin's listening socket outlives its process, by an upgrade in place and by
//! a service manager that holds the socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "load/grpc.rs"]
#[allow(dead_code, reason = "one call of it is used here")]
mod grpc;
mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use lastkey_testbed::{Client, Ready, eventually, free_port};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::{
    Lab, SOON,
    keeper::{Keeper, ended},
    plugin_options,
};

/// How many call at once.
const CALLERS: usize = 4;

/// Dials and calls Status over and over.
struct Callers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Callers {
    fn start(socket: &Path) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let failed = Arc::<Mutex<Vec<String>>>::default();
        let caller = |_| {
            let (stop, answered, socket) = (stop.clone(), answered.clone(), socket.to_owned());
            let failed = failed.clone();
            thread::spawn(move || call(&socket, &stop, (&answered, &failed)))
        };
        let threads = (0..CALLERS).map(caller).collect();
        Self { stop, answered, failed, threads }
    }

    /// Waits for calls that begin after this.
    fn go_on(&self) {
        let from = self.answered.load(Ordering::SeqCst);
        eventually("calls are answered", SOON, || match self.answered.load(Ordering::SeqCst) {
            now if now >= from + 20 => Ok(()),
            now => Err(format!("{} calls", now - from)),
        })
        .unwrap();
    }

    /// None of them failed.
    fn finish(self) {
        let failed = self.failures();
        assert!(failed.is_empty(), "calls failed: {failed:#?}");
    }

    /// Ends; how those failed that did.
    fn failures(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut self.failed.lock().unwrap())
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn call(socket: &Path, stop: &AtomicBool, (answered, failed): (&AtomicUsize, &Mutex<Vec<String>>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    while !stop.load(Ordering::SeqCst) {
        let call = async { tokio::time::timeout(SOON, grpc::status(socket)).await };
        match runtime.block_on(call) {
            Ok(Ok(_)) => drop(answered.fetch_add(1, Ordering::SeqCst)),
            // said goodbye to before it had begun: every client dials again, as grpc-go does
            Ok(Err(error)) if is_goodbye(&error) => {}
            other => failed.lock().unwrap().push(format!("{other:?}")),
        }
    }
}

fn is_goodbye(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|it| it.downcast_ref::<h2::Error>());
    cause.is_some_and(|it| it.is_go_away() && it.reason() == Some(h2::Reason::NO_ERROR))
}

fn is_running(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

#[test]
fn upgrades_in_place_fail_no_call() {
    let lab = Lab::new();
    let up = lab.up();
    let metrics = format!("127.0.0.1:{}", free_port().unwrap());
    let mut plugin = Keeper::new(&lab, &up.ready).with(&["--metrics-listen", &metrics]);
    plugin.start();
    plugin.works();
    let file = fs::metadata(&plugin.socket).unwrap();
    let callers = Callers::start(&plugin.socket);
    for _ in 0..3 {
        callers.go_on();
        plugin.upgrade();
    }
    callers.go_on();
    callers.finish();
    // the same socket, the same port for metrics
    let now = fs::metadata(&plugin.socket).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&file),
        std::os::unix::fs::MetadataExt::ino(&now)
    );
    let answer = Client::plain(&metrics).get("/metrics").unwrap();
    assert!(answer.text().contains("lastkey_plugin_usable 1"), "{}", answer.text());
    // the last one cleans up behind it
    plugin.stop();
    assert!(!plugin.socket.exists());
}

#[test]
fn restarts_with_a_held_socket_fail_no_call() {
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::holding(&lab, &up.ready);
    // dialled before there is any process
    let callers = Callers::start(&plugin.socket);
    plugin.start();
    plugin.works();
    for round in 0..3 {
        callers.go_on();
        // an upgraded process can be restarted, and the other way round
        if round == 1 {
            plugin.upgrade();
            callers.go_on();
        }
        plugin.restart();
    }
    callers.go_on();
    callers.finish();
    plugin.stop();
    assert!(plugin.socket.exists(), "it belongs to whoever made it");
}

/// A server is not upgraded so, and does not end by it either.
#[test]
fn a_server_hears_the_signal_and_goes_on() {
    let lab = Lab::new();
    hears_and_goes_on(lab.up());
    hears_and_goes_on(lab.lastkey.server(&lab.path("data"), "127.0.0.1:0").unwrap());
}

fn hears_and_goes_on(mut daemon: lastkey_testbed::Running) {
    daemon.process.signal(Signal::USR2);
    eventually("it says what to do", SOON, || match daemon.process.log() {
        log if log.contains("SIGUSR2 upgrades a kms-plugin") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    daemon.process.check().unwrap();
    daemon.client().unwrap().get("/healthz").unwrap().expect_ok("healthz").unwrap();
    assert!(daemon.stop().unwrap().success());
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready);
    plugin.start();
    plugin.works();
    let callers = Callers::start(&plugin.socket);
    let (old, good) = (plugin.main(), lab.path("lastkey-good"));
    fs::rename(plugin.binary(), &good).unwrap();
    // nothing there, a new release that does not know the arguments, one that dies at once
    let failures = [
        (None, "cannot start"),
        (Some("echo unknown option >&2; exit 2"), "exit status: 2"),
        (Some("kill -9 $$"), "signal: 9"),
    ];
    for (script, reason) in failures {
        if let Some(script) = script {
            replace(plugin.binary(), script);
        }
        let seen = plugin.log().matches("the upgrade failed").count();
        plugin.signal(Signal::USR2);
        eventually("it says that it goes on", SOON, || {
            let log = plugin.log();
            let lines: Vec<&str> =
                log.lines().filter(|it| it.contains("the upgrade failed")).collect();
            match lines.get(seen) {
                Some(line) if line.contains(reason) => Ok(()),
                line => Err(format!("{line:?}")),
            }
        })
        .unwrap();
        callers.go_on();
    }
    assert!(plugin.socket.exists() && is_running(old));
    // with the right binary in place it works
    fs::rename(&good, plugin.binary()).unwrap();
    plugin.upgrade();
    callers.go_on();
    callers.finish();
}

/// A service manager that stops a plugin in the middle of an upgrade stops all of it.
#[test]
fn whoever_is_stopped_takes_an_unready_successor_along() {
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready);
    plugin.start();
    plugin.works();
    let started: PathBuf = lab.path("successor");
    fs::remove_file(plugin.binary()).unwrap();
    replace(plugin.binary(), &format!("echo $$ > {}; exec sleep 1000", started.display()));
    plugin.signal(Signal::USR2);
    let successor = eventually("the successor starts", SOON, || {
        let pid = fs::read_to_string(&started).map_err(|error| error.to_string())?;
        pid.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(|| "no pid yet".to_owned())
    })
    .unwrap();
    assert!(is_running(successor));
    plugin.stop();
    // killed by the old process, or left to us by its death
    let gone =
        || match rustix::process::waitpid(Some(successor), rustix::process::WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(rustix::io::Errno::CHILD) => Ok(()),
            other => Err(format!("{other:?}")),
        };
    eventually("the successor is gone", SOON, gone).unwrap();
    assert!(!plugin.socket.exists());
}

/// If the old process dies before it has let go, the new one goes on with its sockets.
#[test]
fn a_successor_survives_the_death_of_its_predecessor() {
    let lab = Lab::new();
    let mut up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready);
    plugin.start();
    plugin.works();
    // without a server the successor cannot become ready
    up.stop().unwrap();
    let old = plugin.main();
    plugin.signal(Signal::USR2);
    eventually("the successor asks the server", SOON, || {
        match plugin.log().contains("waiting for the server") {
            true => Ok(()),
            false => Err("not yet"),
        }
    })
    .unwrap();
    let successor = eventually("the successor is known", SOON, || child_of(old)).unwrap();
    plugin.kill();
    let listen = up.ready.address().to_owned();
    let _server = lab.lastkey.server(&lab.path("data"), &listen).unwrap();
    let callers = Callers::start(&plugin.socket);
    callers.go_on();
    callers.finish();
    rustix::process::kill_process(successor, Signal::TERM).unwrap();
    assert_eq!(ended(successor).exit_status(), Some(0));
    assert!(!plugin.socket.exists(), "it removes the file that became its own");
}

/// Told twice during an outage, as `pkill -USR2 lastkey` does, there were two plugins on one socket.
#[test]
fn a_successor_that_waits_hands_over_to_nobody() {
    let lab = Lab::new();
    let mut up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready);
    plugin.start();
    plugin.works();
    // without a server the successor cannot become ready
    up.stop().unwrap();
    let old = plugin.main();
    plugin.signal(Signal::USR2);
    logs(&plugin, "waiting for the server");
    let successor = eventually("the successor is known", SOON, || child_of(old)).unwrap();
    kill_process(successor, Signal::USR2).unwrap();
    logs(&plugin, "this process has not taken over yet itself");
    plugin.signal(Signal::USR2);
    logs(&plugin, "an upgrade is under way already");
    assert_eq!(child_of(successor), Err("it has no child".to_owned()));
    // what it was told before is forgotten once it has begun
    let listen = up.ready.address().to_owned();
    let _server = lab.lastkey.server(&lab.path("data"), &listen).unwrap();
    plugin.works();
    assert_eq!((plugin.main(), ended(old).exit_status()), (successor, Some(0)));
    let callers = Callers::start(&plugin.socket);
    callers.go_on();
    assert_eq!(plugin.log().matches("upgrading in place").count(), 1, "{}", plugin.log());
    // and from then on it hears
    plugin.upgrade();
    callers.go_on();
    callers.finish();
    plugin.stop();
    assert!(!plugin.socket.exists());
}

/// The end of their connection is not its predecessor's: a script between the two may have ended.
#[test]
fn a_successor_that_was_given_up_ends() {
    let lab = Lab::new();
    let mut up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready);
    plugin.start();
    plugin.works();
    up.stop().unwrap();
    let (started, good) = (lab.path("successor"), lab.path("lastkey-good"));
    fs::rename(plugin.binary(), &good).unwrap();
    let script = "exec 3<&0; 'GOOD' \"$@\" <&3 3<&- & echo $! > STARTED; sleep 2; exit 1";
    let script = script.replace("GOOD", good.to_str().unwrap());
    replace(plugin.binary(), &script.replace("STARTED", started.to_str().unwrap()));
    plugin.signal(Signal::USR2);
    logs(&plugin, "the upgrade failed");
    let successor = fs::read_to_string(&started).unwrap().trim().parse().unwrap();
    assert_eq!(ended(Pid::from_raw(successor).unwrap()).exit_status(), Some(0));
    logs(&plugin, "the process before goes on without this one");
    let listen = up.ready.address().to_owned();
    let _server = lab.lastkey.server(&lab.path("data"), &listen).unwrap();
    let callers = Callers::start(&plugin.socket);
    callers.go_on();
    callers.finish();
    plugin.stop();
    assert!(!plugin.socket.exists());
}

fn logs(plugin: &Keeper, wanted: &str) {
    eventually(wanted, SOON, || match plugin.log() {
        log if log.contains(wanted) => Ok(()),
        log => Err(log),
    })
    .unwrap();
}

/// After an upgrade the process before was named, which had ended, and with a held socket the manager.
#[test]
fn whoever_is_in_the_way_is_named_for_what_it_is() {
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready);
    let refused = |plugin: &Keeper| {
        let files = Ready { plugin_socket: plugin.socket.clone(), ..up.ready.clone() };
        let second = Command::new(plugin.binary())
            .arg("kms-plugin")
            .args(plugin_options(&files))
            .output()
            .unwrap();
        assert!(!second.status.success());
        String::from_utf8(second.stderr).unwrap()
    };
    plugin.start();
    plugin.works();
    for _ in 0..3 {
        let main = plugin.main().as_raw_nonzero();
        let said = refused(&plugin);
        assert!(said.contains(&format!("the process {main} listens on ")), "{main}: {said}");
        assert!(said.contains(&format!("kill -USR2 {main}")), "{main}: {said}");
        plugin.upgrade();
    }
    plugin.stop();
    let held = std::os::unix::net::UnixListener::bind(&plugin.socket).unwrap();
    let said = refused(&plugin);
    assert!(said.contains("another process listens on ") && said.contains("ss -xlp"), "{said}");
    drop(held);
}

/// Whichever of its threads started it.
fn child_of(parent: Pid) -> Result<Pid, String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero()));
    let tasks = tasks.map_err(|error| error.to_string())?.flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let all = children.collect::<Vec<_>>().join(" ");
    let first = all.split_whitespace().next().and_then(|it| it.parse().ok());
    first.and_then(Pid::from_raw).ok_or_else(|| "it has no child".to_owned())
}

fn replace(binary: &Path, script: &str) {
    let new = binary.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, binary).unwrap();
}

#[test]
fn a_supervised_plugin_that_is_killed_fails_only_what_was_in_flight() {
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready).with(&["--supervise"]);
    plugin.start();
    plugin.works();
    let callers = Callers::start(&plugin.socket);
    const KILLS: usize = 4;
    for _ in 0..KILLS {
        callers.go_on();
        let child = plugin.supervised();
        kill_process(child, Signal::KILL).unwrap();
        plugin.works();
        assert_ne!(plugin.supervised(), child);
    }
    // told to end by somebody, it is started anew, and no call fails
    callers.go_on();
    let before = callers.failed.lock().unwrap().len();
    kill_process(plugin.supervised(), Signal::TERM).unwrap();
    plugin.works();
    callers.go_on();
    assert_eq!(callers.failed.lock().unwrap().len(), before);
    // an upgrade in place is refused by both, and harms nobody
    plugin.signal(Signal::USR2);
    kill_process(plugin.supervised(), Signal::USR2).unwrap();
    eventually("both have said why", SOON, || match plugin.log() {
        log if log.contains("roll out a new image") && log.contains("start that one anew") => {
            Ok(())
        }
        log => Err(log),
    })
    .unwrap();
    callers.go_on();
    let failed = callers.failures();
    assert!(failed.len() <= KILLS * CALLERS, "{failed:#?}");
    let refused = failed.iter().filter(|it| it.contains("refused") || it.contains("NotFound"));
    assert_eq!(refused.count(), 0, "the socket was always there: {failed:#?}");

    let child = plugin.supervised();
    plugin.stop();
    assert!(!plugin.socket.exists() && !is_running(child));
}

#[test]
fn a_supervisors_end_is_its_plugins() {
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::new(&lab, &up.ready).with(&["--supervise"]);
    plugin.start();
    plugin.works();
    let child = plugin.supervised();
    plugin.kill();
    // whoever outlives its parent becomes ours
    assert_eq!(ended(child).exit_status(), Some(0), "{}", plugin.log());
    // the socket that is left is reclaimed
    plugin.start();
    plugin.works();
    plugin.stop();
    // what was given wrong ends both, with the code that says so, and nothing is left
    let mut wrong = plugin.with(&["--server", "nonsense"]);
    wrong.start();
    let status = ended(wrong.main()).exit_status();
    wrong.forget();
    assert_eq!(status, Some(2), "{}", wrong.log());
    assert!(!wrong.socket.exists());
}
