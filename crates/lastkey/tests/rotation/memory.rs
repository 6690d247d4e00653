//! Memory is bounded by the page, not by how many objects there are.

use super::support::rotate::{Rotate, SECRETS, key_ids, register};
use super::support::{Cluster, Lab};
use super::{VERSION, model, peers, size};
use serde_json::{Value, json};

/// Bytes of each Secret's value.
const VALUE: usize = 2048;
/// What the least and the most may differ by, beside a tenth.
const SLACK_KIB: u64 = 4 * 1024;

#[test]
fn memory_stays_flat() {
    let test = "memory_stays_flat";
    let Some(peers) = peers(test) else { return };
    // In full size with pages of 500, as by default.
    let many = size("LASTKEY_TEST_OBJECTS", 50_000);
    let (few, page) = (many / 50, (many / 100).to_string());
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), VERSION, config);
    let urls = [cluster.apiserver.url()];
    register(
        &lab,
        &up.ready,
        (cluster.apiserver.kubeconfig(), &cluster.etcd),
        (&urls, &["secrets"]),
    );
    let options = ["--page", page.as_str()];
    create(&cluster, 0..few);
    let (small, at_first) = rotated(&lab, &up.ready, &options);
    assert_eq!(small["objects"], few, "{small}");
    create(&cluster, few..many);
    let (large, at_last) = rotated(&lab, &up.ready, &options);
    assert_eq!(large["objects"], many, "{large}");
    assert!(large["rewritten"].as_u64().unwrap() >= many as u64, "{large}");
    assert_eq!(key_ids(&cluster.etcd, SECRETS).len(), 1);
    eprintln!(
        "{test}: pages of {page}: {few} objects {at_first} KiB, {many} objects {at_last} KiB; {large}"
    );
    assert!(
        at_last <= at_first + at_first / 10 + SLACK_KIB,
        "{few} objects took {at_first} KiB, {many} took {at_last} KiB"
    );
}

/// The report of one that was gone through to its end, and the most memory it took in KiB.
fn rotated(lab: &Lab, ready: &lastkey_testbed::Ready, options: &[&str]) -> (Value, u64) {
    let mut rotate = Rotate::start(lab, ready, options);
    let report = rotate.wait_for("a report", |event| event["event"] == "report");
    (report, rotate.peak)
}

fn create(cluster: &Cluster, numbers: std::ops::Range<usize>) {
    let names: Vec<String> = numbers.map(|n| format!("m-{n}")).collect();
    let filler = "0123456789abcdef".repeat(VALUE / 16);
    let secret = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "stringData": { "value": filler },
        })
    };
    model::in_parallel(&cluster.apiserver, &names, |session, name| {
        let path = "/api/v1/namespaces/default/secrets";
        let answer = session.send("POST", path, Some(&secret(name))).unwrap();
        assert!(answer.status < 300, "{name}: {answer:?}");
    });
}
