//! `lastkey cluster rotate` as a process, and what rests in etcd before and after it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use lastkey_testbed::{Encrypted, Etcd, Outcome, Ready};
use serde_json::{Value, json};

use super::{Cluster, KEY, Lab, PLAINTEXT};

/// Where etcd keeps the Secrets of all namespaces.
pub(crate) const SECRETS: &str = "/registry/secrets/";

/// A rotation of the cluster `prod`, as its events.
pub(crate) struct Rotate {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    errors: PathBuf,
    /// All that it has said.
    pub(crate) events: Vec<Value>,
    /// The most memory it has had, in KiB, as of its last event.
    pub(crate) peak: u64,
}

impl Rotate {
    pub(crate) fn start(lab: &Lab, ready: &Ready, more: &[&str]) -> Self {
        let errors = lab.path("rotate.log");
        let file = std::fs::File::options().create(true).append(true).open(&errors).unwrap();
        let mut child = Command::new(lab.lastkey.binary())
            .args(["cluster", "rotate", "prod"])
            .args(more)
            .args(["--output", "json"])
            .env("LASTKEY_CREDENTIALS", &ready.credentials_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, errors, events: Vec::new(), peak: 0 }
    }

    /// The next event; `None` once it has ended.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let line = self.lines.next()?.unwrap();
        assert!(!line.contains(PLAINTEXT), "no event shows a value");
        let event: Value = serde_json::from_str(&line).unwrap();
        self.peak = peak_of(self.child.id()).unwrap_or(self.peak);
        self.events.push(event.clone());
        Some(event)
    }

    /// The first event that is wanted.
    pub(crate) fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        while let Some(event) = self.next() {
            if wanted(&event) {
                return event;
            }
        }
        let status = self.child.wait().unwrap();
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        panic!("{what}: the rotation ended with {status}\n{:#?}\n{errors}", self.events);
    }

    /// Its report, once it has ended well.
    pub(crate) fn report(mut self) -> Value {
        let report = self.wait_for("a report", |event| event["event"] == "report");
        assert!(self.child.wait().unwrap().success());
        report
    }

    /// Its exit code, once it has ended.
    pub(crate) fn code(mut self) -> Option<i32> {
        while self.next().is_some() {}
        self.child.wait().unwrap().code()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Rotate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The most memory that a process has had, in KiB.
fn peak_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether an event says that this phase begins.
pub(crate) fn begins(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["event"] == "phase" && event["phase"] == phase
}

/// Whether an event says that something was written anew.
pub(crate) fn has_written(event: &Value) -> bool {
    event["event"] == "progress" && event["rewritten"].as_u64().unwrap() > 0
}

/// Registers the cluster as `prod`, reached by these addresses, with a narrow account.
pub(crate) fn register(
    lab: &Lab,
    ready: &Ready,
    (kubeconfig, etcd): (&Path, &Etcd),
    (urls, resources): (&[String], &[&str]),
) {
    let (kubeconfig, out) = (kubeconfig.display(), lab.path("identity"));
    let mut args: Vec<String> = ["cluster", "add", "prod"].map(str::to_owned).to_vec();
    args.extend(["--kubeconfig".into(), kubeconfig.to_string()]);
    args.extend(["--etcd".into(), etcd.url().to_owned()]);
    args.extend(["--out".into(), out.display().to_string()]);
    args.extend(urls.iter().flat_map(|url| ["--apiserver".to_owned(), url.clone()]));
    args.extend(resources.iter().flat_map(|name| ["--resource".to_owned(), (*name).to_owned()]));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    lab.cli(ready, &args);
}

/// A kubeconfig with a token of this service account, by its namespace and name.
pub(crate) fn kubeconfig_of(lab: &Lab, cluster: &Cluster, account: (&str, &str)) -> PathBuf {
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", account.0, account.1);
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {},
    });
    let made = cluster.apiserver.client().send("POST", &path, Some(&request)).unwrap();
    let token = made.expect_ok("a token").unwrap().json()["status"]["token"].clone();
    let text = std::fs::read_to_string(cluster.apiserver.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["users"][0]["user"] = json!({ "token": token });
    let file = lab.path(&format!("{}.json", account.1));
    std::fs::write(&file, config.to_string()).unwrap();
    file
}

pub(crate) fn cli(lab: &Lab, ready: &Ready, args: &[&str]) -> Outcome {
    lab.lastkey.cli(Some(&ready.credentials_file), args).unwrap()
}

/// The key's versions, oldest first.
pub(crate) fn versions(lab: &Lab, ready: &Ready) -> Vec<String> {
    let versions = lab.cli(ready, &["key", "versions", KEY]);
    let items = versions["items"].as_array().unwrap();
    items.iter().map(|item| item["key_version_id"].as_str().unwrap().to_owned()).collect()
}

/// Whether anything needs this version of the key.
pub(crate) fn is_needed(lab: &Lab, ready: &Ready, version: &str) -> bool {
    let impact = lab.cli(ready, &["key", "impact", KEY, "--version", version]);
    impact["versions"][0]["needed"].as_bool().unwrap()
}

/// The key ids under which etcd has what lies below `prefix`; all of it has to be under one.
pub(crate) fn key_ids(etcd: &Etcd, prefix: &str) -> BTreeSet<String> {
    let stored = etcd.list(prefix).unwrap();
    let id = |(path, value): &(String, lastkey_testbed::Value)| {
        Encrypted::parse(&value.bytes).unwrap_or_else(|why| panic!("{path}: {why}")).key_id
    };
    stored.iter().map(id).collect()
}

/// The configuration that `up` has made, with the plugin at another socket.
pub(crate) fn config_at(ready: &Ready, file: &Path, socket: &Path) -> PathBuf {
    let text = std::fs::read_to_string(&ready.encryption_config_file).unwrap();
    let (old, new) = (ready.plugin_socket.to_str().unwrap(), socket.to_str().unwrap());
    assert!(text.contains(old), "{text}");
    std::fs::write(file, text.replace(old, new)).unwrap();
    file.to_path_buf()
}
