//! What a snapshot brings along of the world outside is sent nothing.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lastkey_testbed::{Apiserver, ApiserverOptions, eventually};
use serde_json::{Value, json};

use super::{CLEAR, Setting, report};
use crate::support::{SOON, encryption_config};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Counts who connects.
fn listener() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/convert", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (url, count)
}

fn send(apiserver: &Apiserver, method: &str, path: &str, body: Option<&Value>) -> Value {
    let mut answer = Value::Null;
    eventually(path, SOON, || {
        let sent = apiserver.client().send(method, path, body)?.expect_ok(path)?;
        answer = serde_json::from_slice(&sent.body).unwrap();
        Ok::<(), lastkey_testbed::Error>(())
    })
    .unwrap();
    answer
}

/// Widgets that only a webhook converts, stored as v2.
fn definition(webhook: &str) -> Value {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let version = |name: &str, stored: bool| {
        json!({
            "name": name, "served": true, "storage": stored,
            "schema": { "openAPIV3Schema": schema },
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.org" },
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget" },
            "versions": [version("v1", false), version("v2", true)],
            "conversion": { "strategy": "Webhook", "webhook": {
                "clientConfig": { "url": webhook }, "conversionReviewVersions": ["v1"],
            } },
        },
    })
}

#[test]
fn no_webhook_of_a_snapshot_is_asked() {
    let Some(setting) = Setting::new("no_webhook_of_a_snapshot_is_asked") else { return };
    let lab = &setting.lab;
    let mut up = lab.up();
    assert!(up.stop().unwrap().success());
    let (url, asked) = listener();
    let config = encryption_config(&lab.path("clear.yaml"), CLEAR).unwrap();
    let options = ApiserverOptions { version: "1.37.0", encryption_config: &config, flags: &[] };
    let dir = lab.folder("apiserver");
    let apiserver = Apiserver::start(&setting.peers, &setting.etcd, &dir, &options).unwrap();
    send(&apiserver, "POST", DEFINITIONS, Some(&definition(&url)));
    let widgets = "/apis/example.org/v2/namespaces/default/widgets";
    let widget = json!({
        "apiVersion": "example.org/v2", "kind": "Widget", "metadata": { "name": "one" },
    });
    send(&apiserver, "POST", widgets, Some(&widget));
    // From now on v1 is stored: the widget has to be converted to be read in it.
    let path = format!("{DEFINITIONS}/widgets.example.org");
    let mut stored = send(&apiserver, "GET", &path, None);
    for (version, is_stored) in [(0, true), (1, false)] {
        stored["spec"]["versions"][version]["storage"] = is_stored.into();
    }
    send(&apiserver, "PUT", &path, Some(&stored));
    drop(apiserver);
    let snapshot = setting.snapshot("snapshot.db");
    let before = asked.load(Ordering::SeqCst);

    let given = [("--snapshot", snapshot.as_path()), ("--state", &lab.path("data"))];
    let outcome = setting.drill(&given);
    let found = report(&outcome);
    assert_eq!(asked.load(Ordering::SeqCst), before, "somebody outside was asked");
    assert_eq!(outcome.code, 0, "{found}\n{}", outcome.stderr);
    let rows = found["resources"].as_array().unwrap().iter();
    let mut rows = rows.filter(|row| row["resource"] == "widgets.example.org");
    assert_eq!(rows.next().unwrap()["readable"], 1, "as it was stored: {found}");
    let verdict = found["verdict"].as_str().unwrap();
    assert!(verdict.contains("none of them is encrypted by Lastkey"), "{verdict}");
}
