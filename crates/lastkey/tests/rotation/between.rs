//! What comes in between: whoever changes, deletes or makes anew what was read just now, answers
//! that get lost, apiservers that ask to wait, lists that expire, webhooks that are down.
//!
//! A proxy in front of the apiserver does each of these between the read and the write of one
//! Secret, so that it happens in every run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lastkey_testbed::{
    Act, Answer, ApiserverOptions, Encrypted, Ready, Request, eventually, free_port,
};
use serde_json::{Value, json};

use super::support::rotate::{
    Rotate, SECRETS, cli, has_written, is_needed, key_ids, kubeconfig_of, register, versions,
};
use super::support::{Cluster, Lab, SOON, value_of};
use super::{VERSION, peers};

const PATH: &str = "/api/v1/namespaces/default/secrets";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
/// So many Secrets that nobody interferes with.
const PLAIN: usize = 60;
/// How long a throttled write is told to wait.
const WAIT: u64 = 2;

/// What the proxy has seen.
#[derive(Default)]
struct Seen {
    /// When each name was written back.
    writes: Mutex<BTreeMap<String, Vec<Instant>>>,
    /// Whether a list has expired.
    expired: AtomicBool,
}

impl Seen {
    /// How often that name was written back before.
    fn again(&self, name: &str) -> usize {
        let mut writes = self.writes.lock().unwrap();
        let times = writes.entry(name.to_owned()).or_default();
        times.push(Instant::now());
        times.len() - 1
    }
}

/// The name of the Secret that a request writes back.
fn written(request: &Request) -> Option<String> {
    let path = request.target.split('?').next()?.replace("%2D", "-");
    let name = path.strip_prefix(PATH)?.strip_prefix('/')?;
    (request.method == "PUT").then(|| name.to_owned())
}

/// One who does everything that may go wrong.
fn interfere(cluster: &Cluster, seen: &Seen, request: &Request) -> Act {
    let Some(name) = written(request) else {
        let goes_on = request.method == "GET" && request.target.contains("continue=");
        if goes_on && request.target.starts_with("/api/v1/secrets?") {
            // What was listed is no longer kept.
            if !seen.expired.swap(true, Ordering::SeqCst) {
                expire(cluster, &request.target);
            }
        }
        return Act::Pass;
    };
    let (kind, again) = (name.split('-').next().unwrap_or_default(), seen.again(&name));
    match (kind, again) {
        ("changed", 0) | ("busy", _) => update(cluster, &name, &format!("changed {again}")),
        ("deleted", 0) => delete(cluster, &name),
        ("remade", 0) => {
            delete(cluster, &name);
            let made = cluster.apiserver.create_secret(&name, "made anew").unwrap();
            made.expect_ok("making it anew").unwrap();
        }
        ("lost", 0) => return Act::Lose,
        ("throttled", 0) => return Act::Answer(answer(429, &[("retry-after", &WAIT.to_string())])),
        ("broken", 0 | 1) => return Act::Answer(answer(503, &[])),
        _ => {}
    }
    Act::Pass
}

fn answer(status: u16, headers: &[(&str, &str)]) -> Answer {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Answer { status, headers: headers.iter().map(owned).collect(), body: Vec::new() }
}

fn update(cluster: &Cluster, name: &str, value: &str) {
    cluster.apiserver.update_secret(name, value).unwrap().expect_ok("an update").unwrap();
}

fn delete(cluster: &Cluster, name: &str) {
    let path = format!("{PATH}/{name}");
    let answer = cluster.apiserver.client().send("DELETE", &path, None).unwrap();
    answer.expect_ok("a deletion").unwrap();
}

/// Has etcd forget the past, and waits until the apiserver knows that it has.
fn expire(cluster: &Cluster, target: &str) {
    update(cluster, "mark-0", &format!("{:?}", Instant::now()));
    cluster.etcd.compact().unwrap();
    eventually("the list has expired", SOON * 3, || {
        let status = cluster.apiserver.client().get(target)?.status;
        if status == 410 { Ok(Ok(())) } else { Ok::<_, lastkey_testbed::Error>(Err(status)) }
    })
    .unwrap()
    .unwrap();
}

fn create(cluster: &Cluster, path: &str, object: &Value) {
    let made = cluster.apiserver.client().send("POST", path, Some(object)).unwrap();
    made.expect_ok(path).unwrap();
}

/// Everything that is to be rotated.
fn populate(cluster: &Cluster) {
    for kind in ["changed", "busy", "deleted", "remade", "lost", "throttled", "broken", "mark"] {
        cluster.create_secrets(kind, 1);
    }
    cluster.create_secrets("plain", PLAIN);
    let secret = |meta: Value, immutable: bool| {
        let data = json!({ "value": "aXQgc3RheXM=" });
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": meta,
            "immutable": immutable, "data": data,
        })
    };
    create(cluster, PATH, &secret(json!({ "name": "immutable-0" }), true));
    for n in 0..6 {
        let labels = json!({ "hook": "down" });
        let meta = json!({ "name": format!("hooked-{n}"), "labels": labels });
        create(cluster, PATH, &secret(meta, false));
    }
    // On its way out, held by somebody who has not let go of it yet.
    let held = json!({ "name": "held-0", "finalizers": ["example.org/hold"] });
    create(cluster, PATH, &secret(held, false));
    delete(cluster, "held-0");
    let space = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "other" } });
    create(cluster, "/api/v1/namespaces", &space);
    for n in 0..5 {
        let meta = json!({ "name": format!("elsewhere-{n}") });
        create(cluster, "/api/v1/namespaces/other/secrets", &secret(meta, false));
    }
}

/// A webhook that nobody answers, for what is labelled so.
fn hook(cluster: &Cluster) {
    let rule = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["secrets"],
    });
    let url = format!("https://127.0.0.1:{}/", free_port().unwrap());
    let hook = json!({
        "name": "down.example.org", "clientConfig": { "url": url }, "rules": [rule],
        "objectSelector": { "matchLabels": { "hook": "down" } },
        "failurePolicy": "Fail", "timeoutSeconds": 1, "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    });
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "down" }, "webhooks": [hook],
    });
    create(cluster, HOOKS, &configuration);
    eventually("updates are refused", SOON, || match cluster.apiserver.touch_secret("hooked-0") {
        Err(_) => Ok(()),
        Ok(()) => Err("it was allowed"),
    })
    .unwrap();
}

/// An administrator's kubeconfig with a token: a certificate does not get through the proxy.
fn with_token(lab: &Lab, cluster: &Cluster) -> PathBuf {
    let meta = json!({ "name": "operator", "namespace": "default" });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta });
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    create(cluster, accounts, &account);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "operator" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "operator", "namespace": "default" }],
    });
    create(cluster, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding);
    kubeconfig_of(lab, cluster, ("default", "operator"))
}

/// The key ids of the Secrets in `default` whose name begins so.
fn ids_of(cluster: &Cluster, kind: &str) -> Vec<String> {
    key_ids(&cluster.etcd, &format!("/registry/secrets/default/{kind}-")).into_iter().collect()
}

fn uid(cluster: &Cluster, name: &str) -> Value {
    cluster.apiserver.get_secret(name).unwrap().json()["metadata"]["uid"].clone()
}

#[test]
fn nothing_that_comes_in_between_does_harm() {
    let test = "nothing_that_comes_in_between_does_harm";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    // From its memory, an apiserver goes on with a list that etcd has forgotten.
    let options = ApiserverOptions {
        version: VERSION,
        encryption_config: config,
        flags: &[
            "--watch-cache-sizes=secrets#0",
            // one write at a time: the others are asked to wait (administrators are not)
            "--enable-priority-and-fairness=false",
            "--max-mutating-requests-inflight=1",
        ],
    };
    let cluster = Arc::new(Cluster::with_flags(&peers, &lab.folder("cluster"), &options));
    populate(&cluster);
    hook(&cluster);
    let seen = Arc::new(Seen::default());
    let (behind, sees) = (Arc::clone(&cluster), Arc::clone(&seen));
    let proxy = cluster.apiserver.proxy(move |request| interfere(&behind, &sees, request)).unwrap();
    let urls = [proxy.url()];
    let kubeconfig = with_token(&lab, &cluster);
    register(&lab, &up.ready, (&kubeconfig, &cluster.etcd), (&urls, &["secrets"]));
    let (old_id, first_uid) = (ids_of(&cluster, "plain"), uid(&cluster, "remade-0"));

    // 1. Everything at once.
    let report = Rotate::start(&lab, &up.ready, &["--page", "20", "--workers", "4"]).report();
    let new_id = vec![report["plugin_key_id"].as_str().unwrap().to_owned()];
    assert_ne!(new_id, old_id);
    for kind in
        ["changed", "busy", "remade", "lost", "throttled", "broken", "plain", "immutable", "held"]
    {
        assert_eq!(ids_of(&cluster, kind), new_id, "{kind}: {report}");
    }
    assert_eq!(
        key_ids(&cluster.etcd, "/registry/secrets/other/").into_iter().collect::<Vec<_>>(),
        new_id
    );
    assert!(seen.expired.load(Ordering::SeqCst), "a list had more than one page");
    let value = |name: &str| cluster.apiserver.secret_value(name).unwrap();
    assert_eq!(value("changed-0"), "changed 0");
    assert!(value("busy-0").starts_with("changed "));
    assert_eq!(value("remade-0"), "made anew");
    assert_ne!(uid(&cluster, "remade-0"), first_uid);
    for name in ["lost-0", "throttled-0", "broken-0", "plain-7"] {
        assert_eq!(value(name), value_of(name), "{name}");
    }
    assert_eq!(value("immutable-0"), "it stays");
    assert_eq!(cluster.apiserver.get_secret("deleted-0").unwrap().status, 404, "it stays deleted");
    let held = cluster.apiserver.get_secret("held-0").unwrap().json();
    assert_eq!(held["metadata"]["finalizers"][0], "example.org/hold", "{held}");
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    assert!(report["conflicts"].as_u64().unwrap() >= 8, "{report}");
    assert!(report["gone"].as_u64().unwrap() >= 2, "{report}");
    // Whoever was asked to wait has waited.
    let writes = seen.writes.lock().unwrap()["throttled-0"].clone();
    assert!(writes[1] - writes[0] >= Duration::from_secs(WAIT), "{writes:?}");
    // 2. What the webhook keeps from being written is named, and keeps the old version.
    assert_eq!(report["refused"], 6, "{report}");
    assert_eq!(ids_of(&cluster, "hooked"), old_id);
    for refusal in report["refusals"].as_array().unwrap() {
        assert!(refusal["name"].as_str().unwrap().starts_with("hooked-"), "{report}");
        let reason = refusal["reason"].as_str().unwrap();
        assert!(reason.contains("webhook down.example.org"), "{report}");
    }
    assert_eq!(report["verified"]["by"], "pass", "{report}");
    let known = versions(&lab, &up.ready);
    assert!(is_needed(&lab, &up.ready, &known[0]));
    parts_and_giving_up((&lab, &up.ready), &cluster, &new_id[0]);
}

/// One namespace alone; given up in the middle; done after all.
fn parts_and_giving_up((lab, ready): (&Lab, &Ready), cluster: &Cluster, second_id: &str) {
    let other = "/registry/secrets/other/";
    // A name that is mistyped is no namespace without an object.
    let before = versions(lab, ready).len();
    let typo = cli(lab, ready, &["cluster", "rotate", "prod", "--namespace", "othre"]);
    assert!(typo.code == 1 && typo.stderr.contains("no namespace othre"), "{}", typo.stderr);
    assert_eq!(versions(lab, ready).len(), before, "the key has no new version by it");
    // 1. One namespace: the others stay as they are, and nothing becomes free.
    let report = Rotate::start(lab, ready, &["--namespace", "other"]).report();
    assert_eq!(
        (&report["namespace"], &report["objects"]),
        (&json!("other"), &json!(5)),
        "{report}"
    );
    let third_id = report["plugin_key_id"].as_str().unwrap().to_owned();
    assert_eq!(key_ids(&cluster.etcd, other), BTreeSet::from([third_id.clone()]));
    assert_eq!(ids_of(cluster, "plain"), [second_id]);
    let known = versions(lab, ready);
    assert_eq!(known.len(), 3);
    for version in &known {
        assert!(is_needed(lab, ready, version), "{version}");
    }
    // 2. Given up: what was written anew stays so, and nothing becomes free.
    let mut given_up = Rotate::start(lab, ready, &["--keep-version", "--rate", "4", "--page", "5"]);
    given_up.wait_for("it rewrites", has_written);
    lab.cli(ready, &["cluster", "rotate", "prod", "--cancel"]);
    assert_eq!(given_up.code(), Some(1));
    assert_eq!(cli(lab, ready, &["cluster", "rotate", "prod", "--resume"]).code, 3);
    let stored = cluster.etcd.list(SECRETS).unwrap();
    let under = |id: &str| {
        let is = |value: &[u8]| Encrypted::parse(value).unwrap().key_id == id;
        stored.iter().filter(|(_, value)| is(&value.bytes)).count()
    };
    assert!(under(&third_id) > 5 && under(second_id) > 5, "some were written, some were not");
    for version in &known {
        assert!(is_needed(lab, ready, version), "{version}");
    }
    // 3. With the webhook gone, all of it is done, without another version.
    let client = cluster.apiserver.client();
    client.send("DELETE", &format!("{HOOKS}/down"), None).unwrap().expect_ok("hook").unwrap();
    eventually("updates are allowed again", SOON, || cluster.apiserver.touch_secret("hooked-0"))
        .unwrap();
    let report = Rotate::start(lab, ready, &["--keep-version"]).report();
    assert_eq!(report["refused"], 0, "{report}");
    assert_eq!(report["verified"], json!({ "by": "etcd" }), "{report}");
    assert_eq!(key_ids(&cluster.etcd, SECRETS), BTreeSet::from([third_id]));
    let needed: Vec<bool> = known.iter().map(|version| is_needed(lab, ready, version)).collect();
    assert_eq!(needed, [false, false, true]);
}
