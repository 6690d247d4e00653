//! Two clusters under one key: an older version is free once both have moved, and is retired once the
//! last snapshot of etcd that has something under it has ended.

use lastkey_testbed::{Error, Ready, eventually};
use serde_json::Value;

use super::support::rotate::{SECRETS, cli, config_at, is_needed, key_ids, versions};
use super::support::{Cluster, KEY, Lab, SOON, plugin_options};
use super::{VERSION, peers};

const COUNT: usize = 30;

struct Two {
    lab: Lab,
    ready: Ready,
}

impl Two {
    fn run(&self, args: &[&str]) -> Value {
        self.lab.cli(&self.ready, args)
    }

    fn register(&self, name: &str, cluster: &Cluster) {
        let kubeconfig = cluster.apiserver.kubeconfig().display().to_string();
        let out = self.lab.path(&format!("{name}-out")).display().to_string();
        let add = ["cluster", "add", name, "--key", KEY, "--kubeconfig", &kubeconfig];
        self.run(&[&add[..], &["--etcd", cluster.etcd.url(), "--out", &out]].concat());
    }

    /// Runs it to its end; answers with the signed report's content.
    fn rotate(&self, name: &str, more: &[&str]) -> Value {
        let done = cli(&self.lab, &self.ready, &[&["cluster", "rotate", name], more].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        let report = cli(&self.lab, &self.ready, &["cluster", "rotate", name, "--report"]);
        report.json()["content"].clone()
    }

    fn state(&self, version: &str) -> Value {
        let all = self.run(&["key", "versions", KEY]);
        let mut items = all["items"].as_array().unwrap().iter();
        items.find(|one| one["key_version_id"] == version).unwrap()["state"].clone()
    }

    /// What needs this version, as kinds and names.
    fn dependants(&self, version: &str) -> Vec<(String, String)> {
        let all = self.run(&["key", "dependants", KEY]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let items = all["items"].as_array().unwrap().iter();
        let needing = items.filter(|one| one["versions"][version].as_u64().unwrap_or(0) > 0);
        needing.map(|one| (text(&one["kind"]), text(&one["name"]))).collect()
    }
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[test]
fn a_version_is_free_once_the_last_cluster_and_the_last_backup_are() {
    let test = "a_version_is_free_once_the_last_cluster_and_the_last_backup_are";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let two = Two { lab, ready: up.ready };
    let first =
        Cluster::start(&peers, &two.lab.folder("one"), VERSION, &two.ready.encryption_config_file);
    two.register("prod", &first);
    // The other cluster has a plugin with an identity of its own.
    let out = two.lab.path("test-out");
    two.run(&["cluster", "add", "test", "--key", KEY, "--out", out.to_str().unwrap()]);
    let socket = two.lab.path("test.sock");
    let files = Ready {
        plugin_socket: socket.clone(),
        plugin_cert_file: out.join("plugin.pem"),
        plugin_key_file: out.join("plugin.key"),
        ..two.ready.clone()
    };
    let state = two.lab.path("test-state");
    let state = ["--state-dir".as_ref(), state.as_os_str()];
    let _plugin = two.lab.lastkey.plugin(&[&plugin_options(&files)[..], &state].concat()).unwrap();
    let config = config_at(&two.ready, &two.lab.path("test.yaml"), &socket);
    let second = Cluster::start(&peers, &two.lab.folder("two"), VERSION, &config);
    two.register("test", &second);
    let names = (first.create_secrets("s", COUNT), second.create_secrets("s", COUNT));
    // A snapshot of the other's etcd is taken, and kept for a month.
    two.run(&["cluster", "status", "prod"]);
    two.run(&["cluster", "status", "test", "--backup", "monday", "--keep", "30d"]);
    let old = versions(&two.lab, &two.ready).pop().unwrap();

    // 1. One has moved: the other one, and the snapshot, need the old version as before.
    // Two that begin it at the same moment are one rotation.
    let (report, same) = std::thread::scope(|scope| {
        let other = scope.spawn(|| two.rotate("prod", &["--retire"]));
        (two.rotate("prod", &["--retire"]), other.join().unwrap())
    });
    assert_eq!(report, same);
    assert_eq!(report["objects"], COUNT, "{report}");
    assert_eq!(report["retiring"][0], old.as_str(), "{report}");
    assert_eq!(key_ids(&first.etcd, SECRETS).len(), 1);
    let mut left = two.dependants(&old);
    left.sort();
    assert_eq!(left, [pair("backup", "test/monday"), pair("cluster", "test")]);
    assert_eq!(two.state(&old), "scheduled", "it is retired once nothing needs it");
    let retire = ["key", "versions", "retire", KEY, "--version", &old];
    assert_eq!(cli(&two.lab, &two.ready, &retire).code, 5);
    second.assert_readable(&names.1);

    // 2. Both have, under the same version: the snapshot alone needs it.
    let report = two.rotate("test", &["--keep-version", "--retire"]);
    assert_eq!(report["objects"], COUNT, "{report}");
    let [_, newest] = &versions(&two.lab, &two.ready)[..] else { panic!("two versions") };
    assert_eq!(report["key_version"], newest.as_str(), "{report}");
    assert_eq!(two.dependants(&old), [pair("backup", "test/monday")]);
    assert!(is_needed(&two.lab, &two.ready, &old));
    let refused = cli(&two.lab, &two.ready, &retire);
    assert!(refused.code == 5 && refused.stderr.contains("monday"), "{}", refused.stderr);
    assert_eq!(two.state(&old), "scheduled");

    // 3. The snapshot is thrown away: the server retires the version by itself.
    let all = two.run(&["key", "dependants", KEY]);
    let mut items = all["items"].as_array().unwrap().iter();
    let backup = items.find(|one| one["kind"] == "backup").unwrap()["id"].as_str().unwrap();
    let backup = format!("backup/{backup}");
    let forget = ["key", "dependants", KEY, "--remove", &backup, "--reason", "thrown away"];
    two.run(&forget);
    eventually("the old version is retired", SOON * 3, || match two.state(&old) {
        state if state == "retired" => Ok(()),
        state => Err(Error::ReadyLine { line: state.to_string(), cause: "not yet".to_owned() }),
    })
    .unwrap();
    // Nothing was under it: both read everything after a start.
    for (mut cluster, names) in [(first, names.0), (second, names.1)] {
        cluster.apiserver.restart().unwrap();
        cluster.assert_readable(&names);
    }
}
