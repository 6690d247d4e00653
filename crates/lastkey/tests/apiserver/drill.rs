//! `lastkey cluster drill`: a snapshot and a backup are brought up together and read.

#[path = "drill/ends.rs"]
mod ends;
#[path = "drill/token.rs"]
mod token;
#[path = "drill/webhook.rs"]
mod webhook;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use lastkey_testbed::{Apiserver, ApiserverOptions, Etcd, Lastkey, Outcome, Peers, Running};
use serde_json::Value;

use crate::support::{KEY, Lab, PLAINTEXT, encryption_config, value_of};

const LOCAL: &str = "  - aescbc:\n      keys:\n      - name: local\n        secret: \
                     c2VjcmV0LW9mLWEtdGVzdC5zZWNyZXQtb2YtYS10ZXM=\n";
const CLEAR: &str = "  - identity: {}\n";

/// Where everything of one test is.
struct Setting {
    peers: Peers,
    lab: Lab,
    etcd: Etcd,
}

impl Setting {
    fn new(test: &str) -> Option<Self> {
        let names = ["etcd", "etcdutl", "etcdctl", "kube-apiserver-1.37.0"];
        let peers = Peers::or_skip(test, &names)?;
        let lab = Lab::new();
        let etcd = Etcd::start(&peers, &lab.folder("cluster")).unwrap();
        Some(Self { peers, lab, etcd })
    }

    /// Has an apiserver with this configuration write Secrets, and ends it.
    fn write(&self, prefix: &str, config: &Path, flags: &[&str]) -> BTreeSet<String> {
        let dir = self.lab.folder(&format!("apiserver-{prefix}"));
        let options = ApiserverOptions { version: "1.37.0", encryption_config: config, flags };
        let apiserver = Apiserver::start(&self.peers, &self.etcd, &dir, &options).unwrap();
        let names = (0..3).map(|number| format!("{prefix}-{number}"));
        names
            .inspect(|name| {
                let answer = apiserver.create_secret(name, &value_of(name)).unwrap();
                answer.expect_ok(&format!("creating secret {name}")).unwrap();
            })
            .collect()
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        let file = self.lab.path(name);
        let mut command = Command::new(self.peers.path("etcdctl"));
        command.args(["--endpoints", self.etcd.url(), "snapshot", "save"]).arg(&file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        file
    }

    fn drill(&self, options: &[(&str, &Path)]) -> Outcome {
        let apiserver = self.peers.path("kube-apiserver-1.37.0");
        let scratch = self.lab.folder("scratch");
        let programs = [
            ("--kube-apiserver", apiserver.as_path()),
            ("--etcd", &self.peers.path("etcd")),
            // found beside etcd
            ("--scratch-dir", &scratch),
        ];
        let outcome = drill(&self.lab.lastkey, &[&programs[..], options].concat());
        let left: Vec<_> = std::fs::read_dir(&scratch).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?} is left behind");
        assert!(!outcome.stdout.contains(PLAINTEXT) && !outcome.stderr.contains(PLAINTEXT));
        outcome
    }
}

fn drill(lastkey: &Lastkey, options: &[(&str, &Path)]) -> Outcome {
    let mut args = vec!["cluster", "drill"];
    for (option, value) in options {
        args.extend([*option, value.to_str().unwrap()]);
    }
    lastkey.cli(None, &args).unwrap()
}

fn report(outcome: &Outcome) -> Value {
    let last = outcome.stdout.lines().last().unwrap_or_default();
    let report: Value = serde_json::from_str(last).unwrap_or_default();
    assert_eq!(report["event"], "report", "{}\n{}", outcome.stdout, outcome.stderr);
    report["restore"].clone()
}

/// Objects under each provider and key version.
fn under(report: &Value) -> BTreeMap<(String, String), (u64, u64)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap();
    let rows = report["under"].as_array().unwrap().iter();
    rows.map(|row| {
        let key = (text(&row["provider"]), text(&row["key_version"]));
        (key, (number(&row["readable"]), number(&row["unreadable"])))
    })
    .collect()
}

/// Every file of a directory with its content.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// What the Secrets of the test are under.
struct Written {
    /// The configuration of all providers.
    config: PathBuf,
    /// A snapshot with all of them.
    snapshot: PathBuf,
    /// The state from before the rotation.
    backup: PathBuf,
    /// Key versions.
    old: String,
    new: String,
    /// Secrets under the new one.
    names: BTreeSet<String>,
}

/// Secrets in clear, under a local key, under KMS v1, and under two versions of ours; `up` runs on.
fn write_under_everything(setting: &Setting) -> (Written, Running) {
    let lab = &setting.lab;
    let config =
        |name: &str, providers: &str| encryption_config(&lab.path(name), providers).unwrap();
    setting.write("clear", &config("clear.yaml", CLEAR), &[]);
    setting.write("local", &config("local.yaml", &format!("{LOCAL}{CLEAR}")), &[]);
    let mut up = lab.up();
    let socket = up.ready.plugin_socket.display().to_string();
    let ours = |api: &str, name: &str| {
        format!(
            "  - kms:\n      apiVersion: {api}\n      name: {name}\n      endpoint: unix://{socket}\n"
        )
    };
    // an apiserver becomes ready only if it can read what is there
    let v1 = format!("{}{LOCAL}{CLEAR}", ours("v1", "lastkey-v1"));
    let flags = ["--feature-gates=KMSv1=true"];
    setting.write("v1", &config("v1.yaml", &v1), &flags);
    let config = config("ours.yaml", &format!("{}{v1}", ours("v2", "lastkey")));
    setting.write("old", &config, &flags);
    let version = |ready: &lastkey_testbed::Ready| {
        let key = lab.cli(ready, &["key", "describe", KEY]);
        key["primary_key_version"].as_str().unwrap().to_owned()
    };
    let old = version(&up.ready);
    // A backup before the rotation, as the documentation has it made.
    assert!(up.stop().unwrap().success());
    let backup = lab.path("backup");
    let copied = Command::new("cp").arg("-a").arg(lab.path("data")).arg(&backup).status().unwrap();
    assert!(copied.success());
    let up = lab.up();
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    let new = version(&up.ready);
    let names = setting.write("new", &config, &flags);
    let snapshot = setting.snapshot("snapshot.db");
    (Written { config, snapshot, backup, old, new, names }, up)
}

fn secrets(found: &Value) -> Value {
    let rows = found["resources"].as_array().unwrap().clone();
    rows.into_iter().find(|row| row["resource"] == "secrets").unwrap()
}

/// The names of what cannot be read for that reason.
fn named(found: &Value, reason: &str) -> BTreeSet<String> {
    let all = found["unreadable_objects"].as_array().unwrap().iter();
    all.filter(|object| object["reason"] == reason)
        .inspect(|object| assert_eq!(object["namespace"], "default"))
        .map(|object| object["name"].as_str().unwrap().to_owned())
        .collect()
}

fn kms(version: &str) -> (String, String) {
    ("kms v2 lastkey".to_owned(), version.to_owned())
}

#[test]
fn a_restore_drill_reads_everything_or_names_what_is_missing() {
    let Some(setting) = Setting::new("a_restore_drill") else { return };
    let (written, up) = write_under_everything(&setting);
    everything_can_be_read(&setting, &written);
    // the server that runs on that state was not disturbed
    setting.lab.cli(&up.ready, &["status"]);
    a_version_is_missing(&setting, &written);
    one_is_damaged(&setting, &written);
    they_do_not_belong_together(&setting, &written);
}

/// With the state of now, which a server is running on.
fn everything_can_be_read(setting: &Setting, written: &Written) {
    let (html, data) = (setting.lab.path("report.html"), setting.lab.path("data"));
    let before = std::fs::read(&written.snapshot).unwrap();
    let outcome = setting.drill(&[
        ("--snapshot", &written.snapshot),
        ("--state", &data),
        ("--encryption-config", &written.config),
        ("--html", &html),
    ]);
    let found = report(&outcome);
    assert_eq!(outcome.code, 0, "{}\n{}", found, outcome.stderr);
    assert_eq!((&found["ok"], &found["unreadable"]), (&true.into(), &0.into()));
    let counts = under(&found);
    assert_eq!(counts[&kms(&written.old)], (3, 0));
    assert_eq!(counts[&kms(&written.new)], (3, 0));
    assert_eq!(counts[&("kms v1 lastkey-v1".to_owned(), written.old.clone())], (3, 0));
    assert_eq!(counts[&("aescbc".to_owned(), String::new())], (3, 0));
    assert!(counts[&("clear".to_owned(), String::new())].0 >= 3);
    assert_eq!(secrets(&found)["readable"], 15);
    assert_eq!(found["state"]["seal"], "file");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains(&written.new) && !page.contains(PLAINTEXT), "{page}");
    assert!(std::fs::read(&written.snapshot).unwrap() == before, "the snapshot is as it was");
}

/// With the backup from before the rotation and no local keys: exactly what was written after the
/// one and under the others is missing, by name.
fn a_version_is_missing(setting: &Setting, written: &Written) {
    let before = files(&written.backup);
    let outcome = setting.drill(&[("--snapshot", &written.snapshot), ("--state", &written.backup)]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    let found = report(&outcome);
    let missing = found["missing_key_versions"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{missing:?}");
    let new = &written.new;
    assert_eq!(
        (&missing[0]["key_version"], &missing[0]["objects"]),
        (&new.as_str().into(), &3.into())
    );
    assert_eq!(missing[0]["key"], KEY);
    assert_eq!(named(&found, "key-version-missing"), written.names);
    let local = (0..3).map(|n| format!("local-{n}")).collect();
    assert_eq!(named(&found, "local-key-missing"), local);
    assert_eq!((&found["unreadable"], &secrets(&found)["readable"]), (&6.into(), &9.into()));
    assert_eq!(under(&found)[&kms(&written.old)], (3, 0));
    assert!(outcome.stderr.contains(new), "{}", outcome.stderr);
    assert!(files(&written.backup) == before, "the backup is as it was");
}

/// A byte of one value was changed; the others beside it are read all the same.
fn one_is_damaged(setting: &Setting, written: &Written) {
    let name = written.names.first().unwrap();
    let path = Apiserver::etcd_path(name);
    let mut value = setting.etcd.get(&path).unwrap().unwrap().bytes;
    let last = value.iter().rposition(|byte| byte.is_ascii_graphic()).unwrap();
    // the annotation's text is at the end, the sealed data at the beginning
    let inside = value.len().min(last) / 4;
    value[inside] ^= 1;
    setting.etcd.put(&path, &value).unwrap();
    let snapshot = setting.snapshot("damaged-value.db");
    let outcome = setting.drill(&[
        ("--snapshot", &snapshot),
        ("--state", &setting.lab.path("data")),
        ("--encryption-config", &written.config),
    ]);
    let found = report(&outcome);
    assert_eq!((outcome.code, &found["unreadable"]), (1, &1.into()), "{found}");
    assert_eq!(named(&found, "damaged"), BTreeSet::from([name.clone()]), "{found}");
    assert!(found["missing_key_versions"].as_array().unwrap().is_empty());
}

/// The backup of another installation.
fn they_do_not_belong_together(setting: &Setting, written: &Written) {
    let other = Lab::new();
    let mut up = other.up();
    assert!(up.stop().unwrap().success());
    let state = other.path("data");
    let outcome = setting.drill(&[("--snapshot", &written.snapshot), ("--state", &state)]);
    let found = report(&outcome);
    assert_eq!(outcome.code, 1, "{found}");
    assert_eq!(named(&found, "cluster-unknown").len(), 9, "{found}");
    assert!(outcome.stderr.contains("the snapshot is of another cluster"), "{}", outcome.stderr);
}

#[test]
fn what_cannot_be_drilled_is_said_clearly() {
    let Some(setting) = Setting::new("what_cannot_be_drilled") else { return };
    let lab = &setting.lab;
    let mut up = lab.up();
    assert!(up.stop().unwrap().success());
    let state = lab.path("data");
    let snapshot = setting.snapshot("empty.db");
    let why = |options: &[(&str, &Path)]| {
        let outcome = setting.drill(options);
        assert_ne!(outcome.code, 0);
        outcome.stderr
    };
    // a snapshot that is none, one that was changed, one of something else, and no backup
    std::fs::write(lab.path("garbage.db"), "garbage").unwrap();
    let said = why(&[("--snapshot", &lab.path("garbage.db")), ("--state", &state)]);
    assert!(said.contains("garbage.db cannot be restored"), "{said}");
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(lab.path("changed.db"), bytes).unwrap();
    let said = why(&[("--snapshot", &lab.path("changed.db")), ("--state", &state)]);
    assert!(said.contains("damaged or was changed"), "{said}");
    let said = why(&[("--snapshot", &snapshot), ("--state", &state)]);
    assert!(said.contains("holds nothing below /registry/"), "{said}");
    let said = why(&[("--snapshot", &snapshot), ("--state", &setting.lab.folder("empty"))]);
    assert!(said.contains("there is no store.redb"), "{said}");
    // a root key that is kept apart and was forgotten
    std::fs::rename(state.join("root.key"), lab.path("apart.key")).unwrap();
    setting.etcd.put("/registry/configmaps/default/a", b"k8s\0").unwrap();
    let snapshot = setting.snapshot("one.db");
    let said = why(&[("--snapshot", &snapshot), ("--state", &state)]);
    assert!(said.contains("root.key is missing"), "{said}");
    // programs that are not there
    let given = [("--snapshot", snapshot.as_path()), ("--state", &state)];
    let nowhere = [("--kube-apiserver", Path::new("/nowhere/kube-apiserver"))];
    let outcome = drill(&lab.lastkey, &[&given[..], &nowhere].concat());
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("https://dl.k8s.io/"), "{}", outcome.stderr);
}
