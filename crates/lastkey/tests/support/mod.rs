//! What the process tests and lanes share: a folder that survives a failure, and a cluster.
#![allow(dead_code, reason = "each test target uses its own part of it")]
#![allow(clippy::print_stderr, reason = "a failed test says where its files are")]

pub(crate) mod keeper;
pub(crate) mod rotate;

use lastkey_testbed::{
    Apiserver, ApiserverOptions, Daemon, Error, Etcd, Lastkey, Peers, Ready, Running,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The key that `up` makes for Kubernetes.
pub(crate) const KEY: &str = "alias/kubernetes";

/// Enough for what should happen soon, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A folder of its own for each test, and the binary. After a failure the folder is kept.
pub(crate) struct Lab {
    dir: TempDir,
    pub(crate) lastkey: Lastkey,
}

impl Lab {
    /// The binary is cargo's, or the one that `LASTKEY_TEST_BINARY` names: a release, say.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("lastkey-test-").tempdir().unwrap();
        let named = std::env::var_os("LASTKEY_TEST_BINARY");
        let binary = named.unwrap_or_else(|| env!("CARGO_BIN_EXE_lastkey").into());
        let lastkey = Lastkey::new(binary, dir.path());
        Self { dir, lastkey }
    }

    /// A path inside the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A folder inside the folder.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// `lastkey up` on `<folder>/data`.
    pub(crate) fn up(&self) -> Running {
        self.lastkey.up(&self.path("data"), "127.0.0.1:0").unwrap()
    }

    /// A one-shot command as the administrator that `ready` names; it must succeed.
    pub(crate) fn cli(&self, ready: &Ready, args: &[&str]) -> serde_json::Value {
        let outcome = self.lastkey.cli(Some(&ready.credentials_file), args).unwrap();
        outcome.expect_ok(&format!("lastkey {}", args.join(" "))).unwrap().json()
    }

    /// A one-shot command that changes a key in use: through the guard, if there is one.
    pub(crate) fn cli_overriding(&self, ready: &Ready, args: &[&str], key: &str) {
        let outcome = self.lastkey.cli(Some(&ready.credentials_file), args).unwrap();
        if outcome.code == 5 {
            let args = [args, &["--override", key, "--reason", "the test wants it"]].concat();
            self.cli(ready, &args);
        } else {
            outcome.expect_ok(&format!("lastkey {}", args.join(" "))).unwrap();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("the logs and files of this test stay in {}", self.dir.path().display());
        }
    }
}

/// An etcd and an apiserver on it.
pub(crate) struct Cluster {
    pub(crate) apiserver: Apiserver,
    pub(crate) etcd: Etcd,
}

impl Cluster {
    pub(crate) fn start(peers: &Peers, dir: &Path, version: &str, config: &Path) -> Self {
        Self::with_flags(
            peers,
            dir,
            &ApiserverOptions { version, encryption_config: config, flags: &[] },
        )
    }

    pub(crate) fn with_flags(peers: &Peers, dir: &Path, options: &ApiserverOptions<'_>) -> Self {
        let etcd = Etcd::start(peers, dir).unwrap();
        let apiserver = Apiserver::start(peers, &etcd, dir, options).unwrap();
        Self { apiserver, etcd }
    }

    /// Creates Secrets `<prefix>-0…` whose values come from [`value_of`].
    pub(crate) fn create_secrets(&self, prefix: &str, count: usize) -> Vec<String> {
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        for name in &names {
            let answer = self.apiserver.create_secret(name, &value_of(name)).unwrap();
            answer.expect_ok(&format!("creating secret {name}")).unwrap();
        }
        names
    }

    /// Every one of these Secrets has its value.
    pub(crate) fn assert_readable(&self, names: &[String]) {
        for name in names {
            assert_eq!(self.apiserver.secret_value(name).unwrap(), value_of(name), "{name}");
        }
    }

    /// What etcd holds of a Secret.
    pub(crate) fn stored(&self, name: &str) -> lastkey_testbed::Value {
        self.etcd.get(&Apiserver::etcd_path(name)).unwrap().expect("the secret is in etcd")
    }
}

/// The value that a test's Secret has: long and unlike anything else on the disk.
pub(crate) fn value_of(name: &str) -> String {
    format!("{PLAINTEXT}:{name}")
}

/// Starts every value, so that plaintext shows wherever it leaks to.
pub(crate) const PLAINTEXT: &str = "a-plaintext-that-must-not-rest-anywhere";

/// Server and plugin as processes of their own, on what `up` has made.
pub(crate) struct Split {
    pub(crate) server: Option<Running>,
    pub(crate) plugin: Option<Running>,
    unready: Option<Daemon>,
    /// What `up` said when it made everything.
    pub(crate) ready: Ready,
    lastkey: Lastkey,
    data: PathBuf,
}

impl Split {
    pub(crate) fn start(lab: &Lab) -> Self {
        let mut up = lab.up();
        let ready = up.ready.clone();
        assert!(up.stop().unwrap().success(), "up stops cleanly");
        let (lastkey, data) = (lab.lastkey.clone(), lab.path("data"));
        let mut split = Self { server: None, plugin: None, unready: None, ready, lastkey, data };
        split.start_server();
        split.start_plugin();
        split
    }

    pub(crate) fn start_server(&mut self) {
        self.server = None;
        // The same port again, which the plugin knows.
        self.server = Some(self.lastkey.server(&self.data, self.ready.address()).unwrap());
    }

    /// Starts the plugin; fails unless it becomes ready.
    pub(crate) fn start_plugin(&mut self) {
        self.plugin = None;
        self.plugin = Some(self.lastkey.plugin(&plugin_options(&self.ready)).unwrap());
    }

    /// Starts the plugin without waiting until it is ready, which it may not be without a server.
    pub(crate) fn start_plugin_unready(&mut self) {
        self.unready = None;
        let options = plugin_options(&self.ready);
        let verb: &OsStr = "kms-plugin".as_ref();
        let args = std::iter::once(verb).chain(options);
        self.unready = Some(self.lastkey.start("kms-plugin", args).unwrap());
    }

    /// `kill -9`.
    pub(crate) fn kill_server(&mut self) {
        self.server = None;
    }

    /// `kill -9`.
    pub(crate) fn kill_plugin(&mut self) {
        self.plugin = None;
        self.unready = None;
    }
}

/// The options of a plugin on the files that a ready line names.
pub(crate) fn plugin_options(ready: &Ready) -> [&OsStr; 12] {
    [
        "--socket".as_ref(),
        ready.plugin_socket.as_os_str(),
        "--key".as_ref(),
        KEY.as_ref(),
        "--server".as_ref(),
        ready.url.as_ref(),
        "--client-cert".as_ref(),
        ready.plugin_cert_file.as_os_str(),
        "--client-key".as_ref(),
        ready.plugin_key_file.as_os_str(),
        "--ca-file".as_ref(),
        ready.ca_file.as_os_str(),
    ]
}

/// An EncryptionConfiguration for Secrets with one provider, given as YAML lines.
pub(crate) fn encryption_config(file: &Path, provider: &str) -> Result<PathBuf, Error> {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers:\n{provider}"
    );
    std::fs::write(file, text)
        .map(|()| file.to_path_buf())
        .map_err(|source| Error::File { path: file.to_path_buf(), source })
}
