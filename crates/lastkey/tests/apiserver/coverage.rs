//! A registered cluster: its account, what rests under which key, and what the server keeps of it.

use super::support::{Cluster, KEY, Lab, PLAINTEXT, SOON};
use lastkey_testbed::{ApiserverOptions, Encrypted, Peers, Ready, eventually};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const AES: &str =
    "  - aescbc: {keys: [{name: k1, secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=}]}\n";
const CLEAR: &str = "  - identity: {}\n";

/// A rule for Secrets and a custom resource.
fn write_config(file: &Path, providers: &[&str]) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets, widgets.example.org]\n  providers:\n{}",
        providers.concat()
    );
    std::fs::write(file, text).unwrap();
}

fn kms(ready: &Ready) -> String {
    let socket = ready.plugin_socket.display();
    format!(
        "  - kms: {{apiVersion: v2, name: lastkey, endpoint: 'unix://{socket}', timeout: 3s}}\n"
    )
}

/// A new start asks for the key id at once; a running apiserver would within a minute. The plugin
/// hears of it by its long poll, which may take until the next start.
fn start_under_the_new_version(cluster: &mut Cluster) {
    let key_id = |cluster: &Cluster, name: &str| {
        Encrypted::parse(&cluster.stored(name).bytes).unwrap().key_id
    };
    cluster.create_secrets("probe", 1);
    for _ in 0..10 {
        cluster.apiserver.restart().unwrap();
        cluster.apiserver.touch_secret("probe-0").unwrap();
        if key_id(cluster, "probe-0") != key_id(cluster, "old-0") {
            return;
        }
    }
    panic!("the apiserver goes on under the old version");
}

/// A definition that serves `widgets.example.org`.
fn define_widgets(cluster: &Cluster) {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.org" },
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget" },
            "versions": [{ "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": schema } }],
        },
    });
    let client = cluster.apiserver.client();
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    client.send("POST", path, Some(&definition)).unwrap().expect_ok("definition").unwrap();
}

fn create_widget(cluster: &Cluster, name: &str) {
    let widget = json!({
        "apiVersion": "example.org/v1", "kind": "Widget", "metadata": { "name": name },
    });
    let path = "/apis/example.org/v1/namespaces/default/widgets";
    // It is served a moment after it was defined.
    eventually("a widget is created", SOON, || {
        cluster.apiserver.client().send("POST", path, Some(&widget))?.expect_ok("widget")
    })
    .unwrap();
}

/// Objects by provider and whether they are current, of one resource in a status.
fn shares<'s>(status: &'s Value, resource: &str) -> Vec<(&'s str, Option<u64>, Option<bool>)> {
    let resources = status["items"][0]["resources"].as_array().unwrap();
    let found = resources.iter().find(|one| one["resource"] == resource).expect("the resource");
    let under = found["under"].as_array().unwrap().iter();
    let mut shares: Vec<_> = under
        .map(|share| {
            let provider = share["provider"].as_str().unwrap();
            (provider, share["objects"].as_u64(), share["current"].as_bool())
        })
        .collect();
    shares.sort();
    shares
}

fn add(lab: &Lab, ready: &Ready, (cluster, config): (&Cluster, &Path), more: &[&str]) -> Value {
    let (kubeconfig, out) = (cluster.apiserver.kubeconfig(), lab.path("identity"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let paths = [text(kubeconfig), text(config), text(&out)];
    let args =
        ["cluster", "add", "prod", "--kubeconfig", &paths[0], "--encryption-config", &paths[1]];
    lab.cli(ready, &[&args[..], &["--out", &paths[2]], more].concat())
}

#[test]
fn what_rests_under_which_key_is_counted() {
    let test = "what_rests_under_which_key_is_counted";
    let Some(peers) = Peers::or_skip(test, &["etcd", "kube-apiserver-1.37.0"]) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config: PathBuf = lab.path("config.yaml");
    // 1. Objects in clear, under a local key, and under two versions of ours.
    write_config(&config, &[CLEAR]);
    let options = ApiserverOptions { version: "1.37.0", encryption_config: &config, flags: &[] };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    define_widgets(&cluster);
    cluster.create_secrets("clear", 3);
    write_config(&config, &[AES, CLEAR]);
    cluster.apiserver.restart().unwrap();
    cluster.create_secrets("aes", 2);
    write_config(&config, &[&kms(&up.ready), AES, CLEAR]);
    cluster.apiserver.restart().unwrap();
    cluster.create_secrets("old", 4);
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    start_under_the_new_version(&mut cluster);
    cluster.create_secrets("new", 4);
    create_widget(&cluster, "w");
    // 2. The cluster is registered by an administrator's kubeconfig; a narrow account is kept.
    let etcd = cluster.etcd.url().to_owned();
    let added = add(&lab, &up.ready, (&cluster, &config), &["--etcd", &etcd]);
    let account = "system:serviceaccount:kube-system:lastkey";
    assert_eq!(added["access"]["account"], account, "{added}");
    assert!(added["access"]["role"].as_str().unwrap().contains("kind: ClusterRole\n"), "{added}");
    for (verb, resource, may) in [
        ("update", "secrets", true),
        ("list", "widgets.example.org", true),
        ("create", "secrets", false),
        ("delete", "secrets", false),
        ("list", "configmaps", false),
        ("list", "pods", false),
    ] {
        assert_eq!(is_allowed(&cluster, account, (verb, resource)), may, "{verb} {resource}");
    }
    // 3. Every object is counted, exactly.
    let status = lab.cli(&up.ready, &["cluster", "status", "prod"]);
    assert_eq!(status["items"][0]["exact"], true, "{status}");
    let ours = "kms v2 lastkey";
    let secrets = shares(&status, "secrets");
    let expected = [
        ("aescbc", Some(2), Some(false)),
        ("clear", Some(3), Some(false)),
        (ours, Some(4), Some(false)),
        (ours, Some(5), Some(true)),
    ];
    assert_eq!(secrets, expected, "{status}");
    assert_eq!(shares(&status, "widgets.example.org"), [(ours, Some(1), Some(true))]);
    assert!(!status.to_string().contains(PLAINTEXT));
    // 4. The server keeps it as what needs each version.
    let dependants = lab.cli(&up.ready, &["key", "dependants", KEY]);
    let dependant = &dependants["items"][0];
    assert_eq!((&dependant["kind"], &dependant["name"]), (&json!("cluster"), &json!("prod")));
    let versions = dependant["versions"].as_object().unwrap();
    let mut counts: Vec<u64> = versions.values().filter_map(Value::as_u64).collect();
    counts.sort_unstable();
    assert_eq!(counts, [4, 6], "{dependants}");
    // What a snapshot of etcd holds now needs the same versions until it is thrown away.
    let snapshot = ["cluster", "status", "prod", "--backup", "monday", "--keep", "30d"];
    lab.cli(&up.ready, &snapshot);
    let dependants = lab.cli(&up.ready, &["key", "dependants", KEY]);
    let of_kind = |kind| dependants["items"].as_array().unwrap().iter().find(|d| d["kind"] == kind);
    let (now, backup) = (of_kind("cluster").unwrap(), of_kind("backup").unwrap());
    assert_eq!((&backup["name"], &backup["versions"]), (&json!("prod/monday"), &now["versions"]));
    assert!(backup["until"].as_str() > now["seen_at"].as_str(), "{dependants}");
    // 5. The doctor sees what is amiss, and what would be after the next start.
    eventually("the apiserver is ready, its provider too", SOON, || {
        cluster.apiserver.client().get("/readyz")?.expect_ok("readyz")
    })
    .unwrap();
    what_the_apiserver_uses(&lab, &up.ready);
    let (code, found) = doctor(&lab, &up.ready);
    assert_eq!(code, 0, "{found:?}");
    for expected in ["identity-last", "provider-weak", "objects-in-clear", "etcd-without-tls"] {
        assert!(found.iter().any(|code| code == expected), "{expected} in {found:?}");
    }
    for unexpected in ["credential-static", "config-not-loaded", "apiserver-unreachable"] {
        assert!(!found.iter().any(|code| code == unexpected), "{unexpected} in {found:?}");
    }
    write_config(&config, &[&kms(&up.ready), CLEAR]);
    let (code, found) = doctor(&lab, &up.ready);
    assert_eq!(code, 1, "{found:?}");
    for expected in ["provider-removed", "config-not-loaded"] {
        assert!(found.iter().any(|code| code == expected), "{expected} in {found:?}");
    }
    // 6. Every kind of object is found where the apiserver keeps it.
    add(&lab, &up.ready, (&cluster, &config), &["--etcd", &etcd, "--resource", "*.*"]);
    // the file would be read again, and says less
    std::fs::remove_file(&config).unwrap();
    let everything = lab.cli(&up.ready, &["cluster", "status", "prod"]);
    for (resource, path) in PLACES {
        assert_eq!(counted(&everything, resource), listed(&cluster, path), "{resource}");
    }
    // 7. Without etcd: what the apiservers count.
    write_config(&config, &[&kms(&up.ready), AES, CLEAR]);
    add(&lab, &up.ready, (&cluster, &config), &[]);
    let status = lab.cli(&up.ready, &["cluster", "status", "prod"]);
    assert_eq!(status["items"][0]["exact"], false, "{status}");
    let providers: Vec<&str> = shares(&status, "secrets").iter().map(|share| share.0).collect();
    assert_eq!(providers, ["aescbc", "clear", ours], "{status}");
    // What was counted exactly is still what the server goes by.
    let still = lab.cli(&up.ready, &["key", "dependants", KEY]);
    let names: Vec<&Value> =
        still["items"].as_array().unwrap().iter().map(|d| &d["name"]).collect();
    assert!(names.contains(&&json!("prod")), "{still}");
    // Of a snapshot only etcd can say what it holds.
    let credentials = Some(up.ready.credentials_file.as_path());
    assert_eq!(lab.lastkey.cli(credentials, &snapshot).unwrap().code, 1);
}

/// The apiserver says what it writes under: the version that was superseded a moment ago is settled
/// by a look, although less than twenty minutes have passed.
fn what_the_apiserver_uses(lab: &Lab, ready: &Ready) {
    let status = lab.cli(ready, &["cluster", "status", "prod"]);
    let impact = lab.cli(ready, &["key", "impact", KEY]);
    let versions = impact["versions"].as_array().unwrap();
    let primary = versions.iter().find(|version| version["primary"] == true).unwrap();
    let primary = &primary["key_version_id"];
    assert_eq!(status["items"][0]["in_use"], json!([primary]), "{status}");
    assert_eq!(status["items"][0]["apiservers"][0]["key_version_ids"], json!([primary]));
    let dependants = lab.cli(ready, &["key", "dependants", KEY]);
    let mut items = dependants["items"].as_array().unwrap().iter();
    let cluster = items.find(|one| one["kind"] == "cluster").unwrap();
    let used: Vec<&String> =
        cluster["used"].as_object().into_iter().flat_map(|u| u.keys()).collect();
    assert!(used.iter().all(|version| *version == primary), "{cluster} {primary}");
}

/// How the doctor ends, and the codes of what it finds.
fn doctor(lab: &Lab, ready: &Ready) -> (i32, Vec<String>) {
    let outcome = lab.lastkey.cli(Some(&ready.credentials_file), &["cluster", "doctor", "prod"]);
    let outcome = outcome.unwrap();
    let json = outcome.json();
    let items = json["items"].as_array().unwrap_or_else(|| panic!("{outcome:?}")).iter();
    let codes = items.map(|item| item["code"].as_str().unwrap().to_owned());
    (outcome.code, codes.collect())
}

/// Where apiservers keep what they serve has exceptions: one of each.
const PLACES: [(&str, &str); 9] = [
    ("secrets", "/api/v1/secrets"),
    ("services", "/api/v1/services"),
    ("namespaces", "/api/v1/namespaces"),
    ("priorityclasses.scheduling.k8s.io", "/apis/scheduling.k8s.io/v1/priorityclasses"),
    ("clusterroles.rbac.authorization.k8s.io", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    (
        "flowschemas.flowcontrol.apiserver.k8s.io",
        "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
    ),
    (
        "customresourcedefinitions.apiextensions.k8s.io",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    ),
    ("apiservices.apiregistration.k8s.io", "/apis/apiregistration.k8s.io/v1/apiservices"),
    ("widgets.example.org", "/apis/example.org/v1/widgets"),
];

fn counted(status: &Value, resource: &str) -> u64 {
    let resources = status["items"][0]["resources"].as_array().unwrap();
    let found = resources.iter().find(|one| one["resource"] == resource);
    found.unwrap_or_else(|| panic!("{resource} in {status}"))["objects"].as_u64().unwrap()
}

fn listed(cluster: &Cluster, path: &str) -> u64 {
    let list = cluster.apiserver.client().get(path).unwrap().expect_ok(path).unwrap().json();
    let count = list["items"].as_array().unwrap().len() as u64;
    assert!(count > 0, "{path} has objects");
    count
}

fn is_allowed(cluster: &Cluster, account: &str, (verb, resource): (&str, &str)) -> bool {
    let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": account,
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": { "verb": verb, "resource": name, "group": group, "namespace": "default" },
        },
    });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = cluster.apiserver.client().send("POST", path, Some(&review)).unwrap();
    answer.expect_ok("review").unwrap().json()["status"]["allowed"] == true
}
