//! Objects in clear, under three local ciphers, KMS v1, and KMS v2 with three versions of the key:
//! one rotation brings all of them under one.

use std::collections::BTreeMap;
use std::path::Path;

use lastkey_testbed::{ApiserverOptions, Encrypted, eventually};
use serde_json::{Value, json};

use super::support::rotate::{Rotate, register, versions};
use super::support::{Cluster, KEY, Lab, SOON};
use super::{VERSION, peers};

const CLEAR: &str = "  - identity: {}\n";
const CBC: &str =
    "  - aescbc: {keys: [{name: k1, secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=}]}\n";
const GCM: &str =
    "  - aesgcm: {keys: [{name: k3, secret: TEvM6QqJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaI=}]}\n";
const BOX: &str =
    "  - secretbox: {keys: [{name: k2, secret: Yw3sLhNfBeCa9DiXo5tQyEjMp2G0T8dJ6mPqRk1ZxVu=}]}\n";
/// Of each resource, so many under each provider.
const EACH: usize = 12;
const PREFIXES: [&str; 3] =
    ["/registry/secrets/", "/registry/configmaps/", "/registry/example.org/widgets/"];
const RESOURCES: [&str; 3] = ["secrets", "configmaps", "widgets.example.org"];

/// All three resources, by the first of these providers.
fn write_config(file: &Path, providers: &[&str]) {
    let (resources, providers) = (RESOURCES.join(", "), providers.concat());
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [{resources}]\n  providers:\n{providers}"
    );
    std::fs::write(file, text).unwrap();
}

fn kms(api: &str, socket: &Path) -> String {
    let (name, socket) = (if api == "v1" { "old" } else { "lastkey" }, socket.display());
    format!(
        "  - kms: {{apiVersion: {api}, name: {name}, endpoint: 'unix://{socket}', timeout: 10s}}\n"
    )
}

/// A definition that serves `widgets.example.org`.
pub(super) fn define_widgets(cluster: &Cluster) {
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
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let client = cluster.apiserver.client();
    client.send("POST", path, Some(&definition)).unwrap().expect_ok("definition").unwrap();
}

fn create(cluster: &Cluster, group: &str) {
    cluster.create_secrets(group, EACH);
    for n in 0..EACH {
        let meta = json!({ "name": format!("{group}-{n}") });
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": { "a": group },
        });
        let widget = json!({
            "apiVersion": "example.org/v1", "kind": "Widget", "metadata": meta, "spec": { "a": group },
        });
        for (path, object) in [
            ("/api/v1/namespaces/default/configmaps", map),
            ("/apis/example.org/v1/namespaces/default/widgets", widget),
        ] {
            // Widgets are served a moment after they were defined, and after each start.
            eventually("it is created", SOON, || {
                cluster.apiserver.client().send("POST", path, Some(&object))?.expect_ok("object")
            })
            .unwrap();
        }
    }
}

/// Everything, by what it rests under: the provider's prefix, with the key id where there is one.
fn shares(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for prefix in PREFIXES {
        for (_, value) in cluster.etcd.list(prefix).unwrap() {
            let share = match Encrypted::parse(&value.bytes) {
                Ok(object) => format!("v2 {}", object.key_id),
                Err(_) if value.bytes.starts_with(b"k8s:enc:") => {
                    let text = String::from_utf8_lossy(&value.bytes[..20]).into_owned();
                    text.split(':').skip(2).take(2).collect::<Vec<_>>().join(" ")
                }
                Err(_) => "clear".to_owned(),
            };
            *shares.entry(share).or_default() += 1;
        }
    }
    shares
}

/// Without what a write changes.
fn everything(cluster: &Cluster) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for path in ["/api/v1/secrets", "/api/v1/configmaps", "/apis/example.org/v1/widgets"] {
        let read = || cluster.apiserver.client().get(path)?.expect_ok(path);
        let list = eventually("it is served", SOON, read).unwrap().json();
        for item in list["items"].as_array().unwrap() {
            let mut item = item.clone();
            item["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            all.insert(format!("{path} {}", item["metadata"]["name"]), item);
        }
    }
    all
}

#[test]
fn all_providers_are_brought_to_one() {
    let test = "all_providers_are_brought_to_one";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let (v1, v2) = (kms("v1", &up.ready.plugin_socket), kms("v2", &up.ready.plugin_socket));
    let config = lab.path("config.yaml");
    write_config(&config, &[CLEAR]);
    let flags = ["--feature-gates=KMSv1=true"];
    let options = ApiserverOptions { version: VERSION, encryption_config: &config, flags: &flags };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    define_widgets(&cluster);
    // 1. One provider after the other comes first.
    create(&cluster, "clear");
    for (group, providers) in [
        ("cbc", &[CBC, CLEAR][..]),
        ("gcm", &[GCM, CBC, CLEAR]),
        ("box", &[BOX, GCM, CBC, CLEAR]),
        ("one", &[&v1, BOX, GCM, CBC, CLEAR]),
        ("two-a", &[&v2, &v1, BOX, GCM, CBC, CLEAR]),
    ] {
        write_config(&config, providers);
        cluster.apiserver.restart().unwrap();
        create(&cluster, group);
    }
    for group in ["two-b", "two-c"] {
        rotate_key(&lab, &up.ready, &mut cluster);
        create(&cluster, group);
    }
    let (before, objects) = (shares(&cluster), everything(&cluster));
    let kinds: Vec<&str> = before.keys().map(|share| share.split(' ').next().unwrap()).collect();
    let expected = ["aescbc", "aesgcm", "clear", "kms", "secretbox", "v2", "v2", "v2"];
    assert_eq!(kinds, expected, "{before:?}");
    // 2. One rotation.
    let urls = [cluster.apiserver.url()];
    register(&lab, &up.ready, (cluster.apiserver.kubeconfig(), &cluster.etcd), (&urls, &RESOURCES));
    let mut args = vec!["--page", "20"];
    args.extend(RESOURCES.iter().flat_map(|name| ["--resource", name]));
    let report = Rotate::start(&lab, &up.ready, &args).report();
    // 3. All of it is under one key id, and as it was.
    let total: usize = before.values().sum();
    let new = format!("v2 {}", report["plugin_key_id"].as_str().unwrap());
    assert!(!before.contains_key(&new), "{report}");
    assert_eq!(shares(&cluster), BTreeMap::from([(new, total)]), "{report}");
    assert_eq!(report["refused"], 0, "{report}");
    assert!(report["rewritten"].as_u64().unwrap() >= total as u64, "{report}");
    assert_eq!(report["objects"], total, "{report}");
    assert_eq!(everything(&cluster), objects);
    assert_eq!(versions(&lab, &up.ready).len(), 4);
    // 4. It can be read without any of the others.
    write_config(&config, &[&v2]);
    cluster.apiserver.restart().unwrap();
    assert_eq!(everything(&cluster), objects);
}

/// Gives the key another version, and starts the apiserver until it writes under that.
fn rotate_key(lab: &Lab, ready: &lastkey_testbed::Ready, cluster: &mut Cluster) {
    let under = |cluster: &Cluster| {
        cluster.apiserver.touch_secret("probe-0").unwrap();
        Encrypted::parse(&cluster.stored("probe-0").bytes).unwrap().key_id
    };
    if cluster.apiserver.get_secret("probe-0").unwrap().status == 404 {
        cluster.create_secrets("probe", 1);
    }
    let old = under(cluster);
    lab.cli(ready, &["key", "rotate", KEY]);
    // A start asks for the key id at once; the plugin may hear of it a moment later.
    for _ in 0..10 {
        cluster.apiserver.restart().unwrap();
        if under(cluster) != old {
            return;
        }
    }
    panic!("the apiserver goes on under the old version");
}
