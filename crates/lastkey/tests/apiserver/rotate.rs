//! A rotation of a live cluster's key, killed in the middle, while others write and delete; and the
//! guard before and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lastkey_client::{Client, Config, Credentials};
use lastkey_kubernetes::cluster::Kubeconfig;
use lastkey_testbed::{Apiserver, Encrypted, Ready, eventually};
use serde_json::{Value, json};

use super::peers;
use super::support::{Cluster, KEY, Lab, PLAINTEXT, SOON, value_of};

const SECRETS: usize = 240;
const PREFIX: &str = "/registry/secrets/default/";

#[test]
fn a_rotation_survives_its_death_and_loses_nothing() {
    let test = "a_rotation_survives_its_death_and_loses_nothing";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", config);
    cluster.create_secrets("s", SECRETS);
    let old_id = key_ids(&cluster).pop_first().unwrap();
    register(&lab, &up.ready, &cluster);

    // 1. The guard: nobody knows yet what the cluster has.
    let refused = cli(&lab, &up.ready, &["key", "disable", KEY]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("prod"), "{}", refused.stderr);

    // 2. Rotated while others write and delete; killed in the middle of the re-encryption.
    let over = AtomicBool::new(false);
    let (written, deleted) = thread::scope(|scope| {
        let writing = scope.spawn(|| write_until(&cluster.apiserver, &over));
        let deleting = scope.spawn(|| delete_some(&cluster.apiserver));
        let mut first = Rotate::start(&lab, &up.ready, &["--rate", "40"]);
        first.wait_for(|event| event["event"] == "progress" && event["rewritten"] != 0);
        first.kill();
        let mut second = Rotate::start(&lab, &up.ready, &[]);
        let report = second.wait_for(|event| event["event"] == "report");
        over.store(true, Ordering::SeqCst);
        assert!(second.child.wait().unwrap().success());
        assert_eq!(report["refused"], 0, "{report}");
        assert!(report["rewritten"].as_u64().unwrap() > 0, "{report}");
        let why = json!({ "by": "pass", "why": "etcd is not registered" });
        assert_eq!(report["verified"], why, "{report}");
        (writing.join().unwrap(), deleting.join().unwrap())
    });

    // 3. Nothing stale, nothing lost, nothing resurrected.
    let ids = key_ids(&cluster);
    assert_eq!(ids.len(), 1, "all under one key id: {ids:?}");
    assert!(!ids.contains(&old_id));
    let now: BTreeMap<String, String> =
        cluster.apiserver.list_secrets().unwrap().into_iter().collect();
    for name in (0..SECRETS).map(|n| format!("s-{n}")) {
        let expected = written.get(&name).cloned().unwrap_or_else(|| value_of(&name));
        match deleted.contains(&name) {
            true => assert!(!now.contains_key(&name), "{name} was resurrected"),
            false => assert_eq!(now.get(&name), Some(&expected), "{name}"),
        }
    }

    // 4. The report can be believed without any server.
    let report = cli(&lab, &up.ready, &["cluster", "rotate", "prod", "--report"]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let key = cli(&lab, &up.ready, &["audit", "public-key"]);
    let pem = key.json()["public_key_pem"].as_str().map_or(key.stdout, str::to_owned);
    let (file, key_file) = (lab.path("report.json"), lab.path("audit.pem"));
    std::fs::write(&key_file, pem).unwrap();
    std::fs::write(&file, &report.stdout).unwrap();
    assert_eq!(verify(&lab, &file, &key_file), 0);
    std::fs::write(&file, report.stdout.replace("\"refused\":0", "\"refused\":1")).unwrap();
    assert_eq!(verify(&lab, &file, &key_file), 1);

    // 5. The old version is free of this cluster, the key is not.
    let [old, primary] = &versions(&lab, &up.ready)[..] else { panic!("two versions") };
    assert!(!is_needed(&lab, &up.ready, old));
    assert!(is_needed(&lab, &up.ready, primary));
    let refused = cli(&lab, &up.ready, &["key", "disable", KEY]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    let error: Value = serde_json::from_str(&refused.stderr).unwrap();
    let objects = &error["error"]["dependants"][0]["objects"];
    assert_eq!(objects.as_u64(), Some(now.len() as u64), "{error}");
    refusals_and_rests(&lab, &up.ready, &cluster);
    let twice = ["key", "disable", KEY, "--override", KEY, "--reason", "the test is over"];
    lab.cli(&up.ready, &twice);
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

/// What refuses to be written is reported and keeps the old version from becoming free; immutable
/// Secrets are written all the same; a rotation rests when it is told to, and goes on elsewhere.
fn refusals_and_rests(lab: &Lab, ready: &Ready, cluster: &Cluster) {
    let apiserver = &cluster.apiserver;
    cluster.create_secrets("frozen", 1);
    let still = json!({
        "apiVersion": "v1", "kind": "Secret", "immutable": true, "metadata": { "name": "still" },
    });
    let made = apiserver.client().send("POST", "/api/v1/namespaces/default/secrets", Some(&still));
    made.unwrap().expect_ok("an immutable secret").unwrap();
    forbid_updates(apiserver);

    let mut first = Rotate::start(lab, ready, &["--rate", "40"]);
    first.wait_for(|event| event["event"] == "progress");
    lab.cli(ready, &["cluster", "rotate", "prod", "--pause"]);
    first.wait_for(|event| event["event"] == "paused");
    let resting = cli(lab, ready, &["cluster", "rotate", "prod"]);
    assert!(resting.code == 1 && resting.stderr.contains("--resume"), "{}", resting.stderr);
    let mut second = Rotate::start(lab, ready, &["--resume"]);
    let report = second.wait_for(|event| event["event"] == "report");
    // Whichever of the two went on, both hear of the end.
    first.wait_for(|event| event["event"] == "report");
    assert_eq!(report["refused"], 1, "{report}");
    let refusal = &report["refusals"][0];
    assert_eq!(refusal["name"], "frozen-0", "{report}");
    assert!(refusal["reason"].as_str().unwrap().contains("no-frozen"), "{report}");
    let before = versions(lab, ready).into_iter().rev().nth(1).unwrap();
    assert!(is_needed(lab, ready, &before), "what could not be written may be under it");
    assert_eq!(key_ids(cluster).len(), 2);

    // Allowed again, it is done, without another version.
    let binding = format!("{BINDINGS}/no-frozen");
    apiserver.client().send("DELETE", &binding, None).unwrap().expect_ok("binding").unwrap();
    eventually("updates are allowed again", SOON, || apiserver.touch_secret("frozen-0")).unwrap();
    let mut third = Rotate::start(lab, ready, &["--keep-version"]);
    let report = third.wait_for(|event| event["event"] == "report");
    assert_eq!(report["refused"], 0, "{report}");
    assert!(!is_needed(lab, ready, &before));
    assert_eq!(key_ids(cluster).len(), 1);
}

/// What a namespace leaves behind that is taken away by force is listed, and up to 1.31 nobody can write
/// it: NamespaceLifecycle answers with 404. It is not gone, and the version that it is under is needed.
#[test]
fn what_is_left_of_a_namespace_keeps_its_version_on_1_31() {
    let test = "what_is_left_of_a_namespace_keeps_its_version_on_1_31";
    let Some(peers) = peers(test, "1.31.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.31.0", config);
    cluster.create_secrets("s", 3);
    take_away_its_namespace(&cluster.apiserver);
    register_with(&lab, &up.ready, (&cluster, Some(config)));
    let mut first = Rotate::start(&lab, &up.ready, &["--retire"]);
    let report = first.wait_for(|event| event["event"] == "report");
    assert_eq!((&report["gone"], &report["refused"]), (&json!(0), &json!(1)), "{report}");
    let refusal = &report["refusals"][0];
    assert_eq!((&refusal["namespace"], &refusal["name"]), (&json!("lost"), &json!("orphan")));
    assert!(refusal["reason"].as_str().unwrap().contains("kubectl"), "{report}");
    let old = versions(&lab, &up.ready).swap_remove(0);
    assert!(is_needed(&lab, &up.ready, &old), "{report}");
    cluster.apiserver.restart().unwrap();
    assert_eq!(cluster.apiserver.list_secrets().unwrap().len(), 3);

    // Deleted, it needs nothing any more.
    cluster.apiserver.client().send("DELETE", ORPHAN, None).unwrap().expect_ok("orphan").unwrap();
    let mut second = Rotate::start(&lab, &up.ready, &["--keep-version"]);
    let report = second.wait_for(|event| event["event"] == "report");
    assert_eq!(report["refused"], 0, "{report}");
    assert!(!is_needed(&lab, &up.ready, &old), "{report}");
}

const ORPHAN: &str = "/api/v1/namespaces/lost/secrets/orphan";

/// Makes a Secret in a namespace, and has that go without it.
fn take_away_its_namespace(apiserver: &Apiserver) {
    let send = |method: &str, path: &str, body: Option<&Value>| {
        apiserver.client().send(method, path, body).unwrap()
    };
    let named = |kind: &str, name: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
    let (all, one) = ("/api/v1/namespaces", "/api/v1/namespaces/lost");
    send("POST", all, Some(&named("Namespace", "lost"))).expect_ok("a namespace").unwrap();
    let secrets = ORPHAN.rsplit_once('/').unwrap().0;
    eventually("a secret is made in it", SOON, || {
        send("POST", secrets, Some(&named("Secret", "orphan"))).expect_ok("a secret")
    })
    .unwrap();
    send("DELETE", one, None).expect_ok("its deletion").unwrap();
    let mut namespace = send("GET", one, None).json();
    namespace["spec"]["finalizers"] = json!([]);
    send("PUT", &format!("{one}/finalize"), Some(&namespace)).expect_ok("its end").unwrap();
    eventually("nobody can write what it had", SOON, || {
        let secret = send("GET", ORPHAN, None).json();
        match send("PUT", ORPHAN, Some(&secret)).status {
            404 => Ok(()),
            status => Err(format!("the status {status}")),
        }
    })
    .unwrap();
}

/// Something changes each Secret at each write: no pass is without one, and the apiserver's own counts
/// are the proof.
#[test]
fn what_a_policy_changes_at_each_write_is_shown_by_the_writes() {
    let test = "what_a_policy_changes_at_each_write_is_shown_by_the_writes";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", config);
    cluster.create_secrets("s", 30);
    change_at_each_write(&cluster.apiserver);
    let old_id = key_ids(&cluster).pop_first().unwrap();
    register(&lab, &up.ready, &cluster);
    let mut rotate = Rotate::start(&lab, &up.ready, &[]);
    let report = rotate.wait_for(|event| event["event"] == "report");
    assert_eq!(report["verified"]["by"], "writes", "{report}");
    assert_eq!((&report["passes"], &report["rewritten"]), (&json!(3), &json!(90)), "{report}");
    let ids = key_ids(&cluster);
    assert!(ids.len() == 1 && !ids.contains(&old_id), "{ids:?}");
    let [old, primary] = &versions(&lab, &up.ready)[..] else { panic!("two versions") };
    assert!(!is_needed(&lab, &up.ready, old) && is_needed(&lab, &up.ready, primary), "{report}");
}

/// Has the apiserver note in each Secret that is updated what it was before.
fn change_at_each_write(apiserver: &Apiserver) {
    let group = "admissionregistration.k8s.io/v1";
    let expression = "Object{metadata: Object.metadata{annotations: \
                      {\"before\": oldObject.metadata.resourceVersion}}}";
    let policy = json!({
        "apiVersion": group, "kind": "MutatingAdmissionPolicy", "metadata": { "name": "noted" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"],
                "resources": ["secrets"],
            }] },
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "mutations": [{
                "patchType": "ApplyConfiguration",
                "applyConfiguration": { "expression": expression },
            }],
        },
    });
    let binding = json!({
        "apiVersion": group, "kind": "MutatingAdmissionPolicyBinding",
        "metadata": { "name": "noted" }, "spec": { "policyName": "noted" },
    });
    let all = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies";
    for (path, body) in [(all, policy), (&all.replace("policies", "policybindings"), binding)] {
        let made = apiserver.client().send("POST", path, Some(&body)).unwrap();
        made.expect_ok("an admission policy").unwrap();
    }
    // It takes effect a moment later.
    eventually("updates are changed", SOON, || {
        apiserver.touch_secret("s-0").unwrap();
        let now = apiserver.get_secret("s-0").unwrap().json();
        match now["metadata"]["annotations"]["before"].is_string() {
            true => Ok(()),
            false => Err("it was not"),
        }
    })
    .unwrap();
}

/// Has the apiserver refuse every update of `frozen-…`.
fn forbid_updates(apiserver: &Apiserver) {
    let group = "admissionregistration.k8s.io/v1";
    let policy = json!({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": "no-frozen" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"],
                "resources": ["secrets"],
            }] },
            "validations": [{ "expression": "!object.metadata.name.startsWith('frozen')" }],
        },
    });
    let binding = json!({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "no-frozen" },
        "spec": { "policyName": "no-frozen", "validationActions": ["Deny"] },
    });
    for (path, body) in [(POLICIES, policy), (BINDINGS, binding)] {
        let made = apiserver.client().send("POST", path, Some(&body)).unwrap();
        made.expect_ok("an admission policy").unwrap();
    }
    // It takes effect a moment later.
    eventually("updates are refused", SOON, || match apiserver.touch_secret("frozen-0") {
        Err(_) => Ok(()),
        Ok(()) => Err("it was allowed"),
    })
    .unwrap();
}

/// The key's versions, oldest first.
fn versions(lab: &Lab, ready: &Ready) -> Vec<String> {
    let versions = lab.cli(ready, &["key", "versions", KEY]);
    let items = versions["items"].as_array().unwrap();
    items.iter().map(|item| item["key_version_id"].as_str().unwrap().to_owned()).collect()
}

/// Whether anything needs this version of the key.
fn is_needed(lab: &Lab, ready: &Ready, version: &str) -> bool {
    let impact = lab.cli(ready, &["key", "impact", KEY, "--version", version]);
    impact["versions"][0]["needed"].as_bool().unwrap()
}

/// The cluster as one that can be reached.
fn register(lab: &Lab, ready: &Ready, cluster: &Cluster) {
    register_with(lab, ready, (cluster, None));
}

/// The same, with the file that it works by: up to 1.31 nothing else shows what is encrypted.
fn register_with(lab: &Lab, ready: &Ready, (cluster, config): (&Cluster, Option<&Path>)) {
    let out = lab.path("prod-out");
    let added = lab.cli(ready, &["cluster", "add", "prod", "--out", out.to_str().unwrap()]);
    let id = added["id"].as_str().unwrap().parse().unwrap();
    let mut access = Kubeconfig::read(cluster.apiserver.kubeconfig()).unwrap().access;
    access.encryption_config = config.map(Path::to_owned);
    let credentials = Credentials::read(&ready.credentials_file).unwrap();
    let client = Client::new(Config::from_credentials(credentials)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(client.put_cluster_access(id, &access)).unwrap();
}

fn cli(lab: &Lab, ready: &Ready, args: &[&str]) -> lastkey_testbed::Outcome {
    lab.lastkey.cli(Some(&ready.credentials_file), args).unwrap()
}

fn verify(lab: &Lab, report: &Path, key: &Path) -> i32 {
    let (report, key) = (report.to_str().unwrap(), key.to_str().unwrap());
    let args = ["cluster", "rotate", "--verify", report, "--public-key", key];
    lab.lastkey.cli(None, &args).unwrap().code
}

/// The key ids under which etcd has Secrets.
fn key_ids(cluster: &Cluster) -> BTreeSet<String> {
    let stored = cluster.etcd.list(PREFIX).unwrap();
    stored.iter().map(|(_, value)| Encrypted::parse(&value.bytes).unwrap().key_id).collect()
}

/// Gives new values to a third of the Secrets until it is over; answers with the last ones.
fn write_until(apiserver: &Apiserver, over: &AtomicBool) -> BTreeMap<String, String> {
    let mut written = BTreeMap::new();
    for round in 0.. {
        for n in (0..SECRETS).step_by(3) {
            if over.load(Ordering::SeqCst) {
                return written;
            }
            let (name, value) = (format!("s-{n}"), format!("{PLAINTEXT}:round {round}"));
            apiserver.update_secret(&name, &value).unwrap().expect_ok("an update").unwrap();
            written.insert(name, value);
            thread::sleep(Duration::from_millis(20));
        }
    }
    written
}

/// Deletes another third, slowly.
fn delete_some(apiserver: &Apiserver) -> BTreeSet<String> {
    let names = (1..SECRETS).step_by(3).map(|n| format!("s-{n}"));
    names
        .inspect(|name| {
            let path = format!("/api/v1/namespaces/default/secrets/{name}");
            let answer = apiserver.client().send("DELETE", &path, None).unwrap();
            answer.expect_ok("a deletion").unwrap();
            thread::sleep(Duration::from_millis(200));
        })
        .collect()
}

/// `lastkey cluster rotate prod` under way.
struct Rotate {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Rotate {
    fn start(lab: &Lab, ready: &Ready, more: &[&str]) -> Self {
        let mut child = Command::new(lab.lastkey.binary())
            .args(["cluster", "rotate", "prod", "--page", "20", "--workers", "4"])
            .args(more)
            .args(["--output", "json"])
            .env("LASTKEY_CREDENTIALS", &ready.credentials_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The first event that is wanted.
    fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert!(!event.to_string().contains(PLAINTEXT), "no event shows a value");
            if wanted(&event) {
                return event;
            }
        }
        panic!("the rotation ended without what was waited for");
    }

    /// `kill -9`.
    fn kill(&mut self) {
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
