//! The plugin is restarted, upgraded and killed while an apiserver writes through it.
//!
//! KMS v1, because there every write is a call of the plugin; a v2 provider on the same socket shows
//! that Status goes on, too.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use lastkey_testbed::{Apiserver, ApiserverOptions, eventually};
use rustix::process::{Signal, kill_process};

use crate::{
    peers,
    support::{Cluster, Lab, SOON, keeper::Keeper, value_of},
};

/// Writes at a time, so at most as many are in flight when the plugin dies.
const WRITERS: usize = 4;

/// What writers did, and what became of it.
struct Load<'a> {
    apiserver: &'a Apiserver,
    ends: AtomicBool,
    written: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
    /// Whether each answer of the provider's health has to be ok.
    healthy: AtomicBool,
    unhealthy: Mutex<Vec<String>>,
    checks: AtomicUsize,
}

impl<'a> Load<'a> {
    fn new(apiserver: &'a Apiserver) -> Self {
        Self {
            apiserver,
            ends: AtomicBool::new(false),
            written: Mutex::default(),
            failed: Mutex::default(),
            healthy: AtomicBool::new(true),
            unhealthy: Mutex::default(),
            checks: AtomicUsize::new(0),
        }
    }

    fn goes_on(&self) -> bool {
        !self.ends.load(Ordering::SeqCst)
    }

    /// Creates Secrets, one after the other.
    fn write(&self, writer: usize) {
        for number in 0.. {
            if !self.goes_on() {
                return;
            }
            let name = format!("load-{writer}-{number}");
            let begun = Instant::now();
            match self.apiserver.create_secret(&name, &value_of(&name)) {
                Ok(answer) if answer.status < 300 => self.written.lock().unwrap().push(name),
                answer => {
                    let answer = answer.map(|it| (it.status, it.text()));
                    let text = format!("{name} after {:?}: {answer:?}", begun.elapsed());
                    self.failed.lock().unwrap().push(text);
                }
            }
        }
    }

    /// Asks for the providers' health, which asks the plugin.
    fn check(&self) {
        while self.goes_on() {
            let matters = self.healthy.load(Ordering::SeqCst);
            match self.apiserver.client().get("/healthz/kms-providers") {
                Ok(answer) if answer.status == 200 => {}
                answer if matters && self.healthy.load(Ordering::SeqCst) => {
                    let answer = answer.map(|it| (it.status, it.text()));
                    self.unhealthy.lock().unwrap().push(format!("{answer:?}"));
                }
                _ => {}
            }
            self.checks.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits for writes and checks that begin after this.
    fn some_more(&self) {
        let now = || (self.written.lock().unwrap().len(), self.checks.load(Ordering::SeqCst));
        let from = now();
        eventually("writes go on", SOON * 2, || {
            let now = now();
            match now.0 >= from.0 + 10 * WRITERS && now.1 >= from.1 + 2 {
                true => Ok(()),
                false => Err(format!("{from:?} → {now:?}; {:?}", self.failed.lock().unwrap())),
            }
        })
        .unwrap();
    }

    fn assert_no_failure(&self, of: &str) {
        assert_eq!(*self.failed.lock().unwrap(), [""; 0], "{of}");
        assert_eq!(*self.unhealthy.lock().unwrap(), [""; 0], "{of}");
    }
}

/// Ends the load, also when an assertion fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_plugin_comes_and_goes_under_a_write_load_on_1_37() {
    comes_and_goes("a_plugin_comes_and_goes_under_a_write_load_on_1_37", "1.37.0", false);
}

#[test]
fn a_plugin_comes_and_goes_under_a_write_load_on_1_31() {
    comes_and_goes("a_plugin_comes_and_goes_under_a_write_load_on_1_31", "1.31.0", false);
}

/// As in a pod, where no systemd holds the socket.
#[test]
fn a_supervised_plugin_comes_and_goes_under_a_write_load() {
    comes_and_goes("a_supervised_plugin_comes_and_goes_under_a_write_load", "1.37.0", true);
}

/// `is_supervised` if the plugin's own supervisor holds the socket, else a service manager does.
fn comes_and_goes(test: &str, version: &str, is_supervised: bool) {
    let Some(peers) = peers(test, version) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = match is_supervised {
        true => Keeper::new(&lab, &up.ready).with(&["--supervise"]),
        false => Keeper::holding(&lab, &up.ready),
    };
    plugin.start();
    plugin.works();
    let config = both(&lab.path("both.yaml"), &plugin.socket);
    let options = ApiserverOptions {
        version,
        encryption_config: &config,
        // reloading makes one check of both providers
        flags: &[
            "--feature-gates=KMSv1=true",
            "--encryption-provider-config-automatic-reload=true",
        ],
    };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    eventually("both providers are healthy", SOON, || {
        cluster.apiserver.client().get("/healthz/kms-providers")?.expect_ok("health")
    })
    .unwrap();
    let load = Load::new(&cluster.apiserver);
    thread::scope(|scope| {
        let _ending = Ending(&load.ends);
        for writer in 0..WRITERS {
            let load = &load;
            scope.spawn(move || load.write(writer));
        }
        scope.spawn(|| load.check());
        load.some_more();
        // 1. Upgrades in place, and restarts: nobody notices.
        for round in 0..3 {
            if is_supervised {
                kill_process(plugin.supervised(), Signal::TERM).unwrap();
                plugin.works();
            } else {
                plugin.upgrade();
                load.some_more();
                load.assert_no_failure(&format!("upgrade {round}"));
                plugin.restart();
            }
            load.some_more();
            load.assert_no_failure(&format!("restart {round}"));
        }
        // 2. Killed: what was in flight fails, at most one write of each writer.
        load.healthy.store(false, Ordering::SeqCst);
        for round in 1..=3 {
            if is_supervised {
                kill_process(plugin.supervised(), Signal::KILL).unwrap();
            } else {
                plugin.kill();
                plugin.start();
            }
            plugin.works();
            load.some_more();
            let failed = load.failed.lock().unwrap();
            assert!(failed.len() <= round * WRITERS, "kill {round}: {failed:#?}");
        }
    });
    // 3. What was acknowledged is there, also for an apiserver that knows nothing by heart.
    let written = load.written.into_inner().unwrap();
    let stored = cluster.stored(&written[0]).bytes;
    assert!(stored.starts_with(b"k8s:enc:kms:v1:"), "{}", String::from_utf8_lossy(&stored));
    cluster.apiserver.restart().unwrap();
    let listed = cluster.apiserver.list_secrets().unwrap();
    for name in &written {
        assert!(listed.contains(&(name.clone(), value_of(name))), "{name} is lost");
    }
}

/// As under systemd: nobody starts it by hand, and the call that waits fails as little as others.
#[test]
fn the_first_call_that_waits_starts_the_plugin() {
    let Some(peers) = peers("the_first_call_that_waits_starts_the_plugin", "1.31.0") else {
        return;
    };
    let lab = Lab::new();
    let up = lab.up();
    let mut plugin = Keeper::holding(&lab, &up.ready);
    plugin.start();
    plugin.works();
    let config = both(&lab.path("both.yaml"), &plugin.socket);
    let options = ApiserverOptions {
        version: "1.31.0",
        encryption_config: &config,
        flags: &["--feature-gates=KMSv1=true"],
    };
    let cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    cluster.create_secrets("before", 1);
    for round in 0..3 {
        plugin.stop();
        thread::scope(|scope| {
            let (cluster, prefix) = (&cluster, format!("waits-{round}"));
            let write = scope.spawn(move || cluster.create_secrets(&prefix, 1));
            plugin.is_wanted();
            plugin.start();
            write.join().unwrap();
        });
        plugin.works();
    }
}

/// Secrets by v1, ConfigMaps by v2, on one socket; patient, because the machine may be busy.
fn both(file: &Path, socket: &Path) -> std::path::PathBuf {
    let provider = |api: &str| {
        let socket = socket.display();
        format!(
            "  - kms:\n      apiVersion: {api}\n      name: lastkey-{api}\n      \
             endpoint: unix://{socket}\n      timeout: 30s\n"
        )
    };
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers:\n{}- resources: [configmaps]\n  providers:\n{}  \
         - identity: {{}}\n",
        provider("v1"),
        provider("v2"),
    );
    std::fs::write(file, text).unwrap();
    file.to_path_buf()
}
