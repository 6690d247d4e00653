//! What is encrypted by a wildcard is gone through as a whole, whatever it is: a version that became
//! free while something is under it would be lost with that.

use std::collections::BTreeMap;
use std::path::Path;

use lastkey_testbed::{ApiserverOptions, Encrypted, Ready, eventually};
use serde_json::{Value, json};

use super::mixed::define_widgets;
use super::support::rotate::{Rotate, cli, is_needed, versions};
use super::support::{Cluster, Lab, SOON};
use super::{VERSION, peers};

/// One rule for these, by the plugin.
fn write_config(ready: &Ready, file: &Path, resources: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [{resources}]\n  providers:\n  - kms: {{apiVersion: v2, name: lastkey, \
         endpoint: 'unix://{}', timeout: 10s}}\n  - identity: {{}}\n",
        ready.plugin_socket.display()
    );
    std::fs::write(file, text).unwrap();
}

fn register(lab: &Lab, ready: &Ready, (cluster, config): (&Cluster, &Path)) {
    let text = |path: &Path| path.display().to_string();
    let (kubeconfig, config) = (text(cluster.apiserver.kubeconfig()), text(config));
    let out = text(&lab.path("identity"));
    let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--out", &out];
    let more = ["--encryption-config", &config, "--etcd", cluster.etcd.url()];
    lab.cli(ready, &[&add[..], &more].concat());
}

/// All that etcd has under a key id, by the id and the first parts of the path.
fn encrypted(cluster: &Cluster) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut found: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for (path, value) in cluster.etcd.list("/registry/").unwrap() {
        let Ok(object) = Encrypted::parse(&value.bytes) else { continue };
        let kind = path.split('/').take(4).collect::<Vec<_>>().join("/");
        *found.entry(object.key_id).or_default().entry(kind).or_default() += 1;
    }
    found
}

fn post(cluster: &Cluster, path: &str, object: &Value) {
    // Custom resources are served a moment after they were defined, and after each start.
    eventually("it is created", SOON, || {
        cluster.apiserver.client().send("POST", path, Some(object))?.expect_ok(path)
    })
    .unwrap();
}

/// Something of all sorts, in the core group, in others, and custom.
fn populate(cluster: &Cluster, group: &str) {
    cluster.create_secrets(group, 5);
    let meta = json!({ "name": format!("{group}-x") });
    let pod = json!({ "containers": [{ "name": "c", "image": "i" }] });
    let labels = json!({ "a": group });
    for (path, object) in [
        (
            "/api/v1/namespaces/default/configmaps",
            json!({ "kind": "ConfigMap", "apiVersion": "v1" }),
        ),
        (
            "/apis/example.org/v1/namespaces/default/widgets",
            json!({
                "kind": "Widget", "apiVersion": "example.org/v1", "spec": { "a": group },
            }),
        ),
        (
            "/api/v1/namespaces/default/events",
            json!({
                "kind": "Event", "apiVersion": "v1", "reason": "r", "message": "m",
                "involvedObject": { "namespace": "default", "name": "n" },
            }),
        ),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({
                "kind": "Deployment", "apiVersion": "apps/v1", "spec": {
                    "selector": { "matchLabels": labels },
                    "template": { "metadata": { "labels": labels }, "spec": pod },
                },
            }),
        ),
        (
            "/api/v1/namespaces/default/pods",
            json!({
                "kind": "Pod", "apiVersion": "v1", "spec": pod,
            }),
        ),
        (
            "/apis/apps/v1/namespaces/default/controllerrevisions",
            json!({
                "kind": "ControllerRevision", "apiVersion": "apps/v1", "revision": 1, "data": {},
            }),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({
                "kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "rules": [],
            }),
        ),
    ] {
        let mut object = object;
        object["metadata"] = meta.clone();
        post(cluster, path, &object);
    }
}

#[test]
fn what_a_wildcard_covers_is_brought_along() {
    let test = "what_a_wildcard_covers_is_brought_along";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = lab.path("config.yaml");
    write_config(&up.ready, &config, "secrets, '*.example.org'");
    let options = ApiserverOptions { version: VERSION, encryption_config: &config, flags: &[] };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    define_widgets(&cluster);
    populate(&cluster, "one");
    register(&lab, &up.ready, (&cluster, &config));

    // 1. One group, and what is named.
    let before = encrypted(&cluster);
    let report = Rotate::start(&lab, &up.ready, &[]).report();
    assert_eq!(report["resources"], json!(["secrets", "widgets.example.org"]), "{report}");
    assert_eq!((&report["whole"], &report["objects"]), (&json!(true), &json!(6)), "{report}");
    let after = encrypted(&cluster);
    let id = report["plugin_key_id"].as_str().unwrap();
    assert_eq!(after.keys().collect::<Vec<_>>(), [id], "{after:?}");
    assert_eq!(before.into_values().collect::<Vec<_>>(), [after[id].clone()]);

    // 2. The configuration covers everything now; what may be written anew is what was registered.
    write_config(&up.ready, &config, "'*.*'");
    cluster.apiserver.restart().unwrap();
    populate(&cluster, "two");
    let refused = cli(&lab, &up.ready, &["cluster", "rotate", "prod"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("lastkey cluster add"), "{}", refused.stderr);
    assert_eq!(versions(&lab, &up.ready).len(), 2);
    register(&lab, &up.ready, (&cluster, &config));
    let before = encrypted(&cluster);
    let report = Rotate::start(&lab, &up.ready, &[]).report();
    assert_eq!((&report["whole"], &report["refused"]), (&json!(true), &json!(0)), "{report}");
    let after = encrypted(&cluster);
    let id = report["plugin_key_id"].as_str().unwrap();
    assert_eq!(after.keys().collect::<Vec<_>>(), [id], "{after:#?}");
    for kind in before.into_values().flat_map(BTreeMap::into_keys) {
        assert!(after[id].contains_key(&kind), "{kind}: {after:#?}");
    }
    for kind in ["secrets", "configmaps", "pods", "deployments", "clusterroles", "events"] {
        let below = format!("/registry/{kind}/");
        assert!(after[id].keys().any(|path| path.starts_with(&below)), "{kind}: {after:#?}");
    }
    let all = versions(&lab, &up.ready);
    let needed: Vec<bool> = all.iter().map(|one| is_needed(&lab, &up.ready, one)).collect();
    assert_eq!(needed, [false, false, true]);
}

/// A definition of gadgets: version 2 is what the apiserver prefers, and knows one field less than
/// version 1, which is what it stores. Nothing converts between them.
fn define_gadgets(cluster: &Cluster) {
    let text = json!({ "type": "string" });
    let version = |name: &str, stored: bool, fields: Value| {
        let spec = json!({ "type": "object", "properties": fields });
        let schema = json!({ "type": "object", "properties": { "spec": spec } });
        json!({
            "name": name, "served": true, "storage": stored,
            "schema": { "openAPIV3Schema": schema },
        })
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "gadgets.example.org" },
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": { "plural": "gadgets", "singular": "gadget", "kind": "Gadget" },
            "versions": [
                version("v1", true, json!({ "a": text, "only": text })),
                version("v2", false, json!({ "a": text })),
            ],
        },
    });
    post(cluster, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition);
}

#[test]
fn a_custom_resource_keeps_what_only_its_stored_version_has() {
    let test = "a_custom_resource_keeps_what_only_its_stored_version_has";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = lab.path("config.yaml");
    write_config(&up.ready, &config, "gadgets.example.org");
    let options = ApiserverOptions { version: VERSION, encryption_config: &config, flags: &[] };
    let cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    define_gadgets(&cluster);
    let gadgets = "/apis/example.org/v1/namespaces/default/gadgets";
    let gadget = json!({
        "apiVersion": "example.org/v1", "kind": "Gadget", "metadata": { "name": "g" },
        "spec": { "a": "both", "only": "the stored one" },
    });
    post(&cluster, gadgets, &gadget);
    register(&lab, &up.ready, (&cluster, &config));
    let before = encrypted(&cluster);

    // The control: whoever writes it back as it is preferred takes the field away.
    let group = cluster.apiserver.client().get("/apis/example.org").unwrap().json();
    assert_eq!(group["preferredVersion"]["version"], "v2", "{group}");

    let report = Rotate::start(&lab, &up.ready, &[]).report();
    assert_eq!((&report["whole"], &report["rewritten"]), (&json!(true), &json!(1)), "{report}");
    assert_ne!(encrypted(&cluster).into_keys().next(), before.into_keys().next());
    let path = format!("{gadgets}/g");
    let after = cluster.apiserver.client().get(&path).unwrap().json();
    assert_eq!(after["spec"], gadget["spec"], "{after}");
}
