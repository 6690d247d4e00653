//! A key's own policy comes due, and nobody rotates anything: the server makes the version at its hour,
//! and the cluster follows, to a report that can be verified without the server.
//!
//! A policy has at least seven days, and the server reads the system's clock. So the key's version is made
//! beforehand by an engine of this test on the same data directory, whose clock is nine days behind.

use std::{path::Path, sync::Arc, time::Duration};

use lastkey_crypto::SystemEntropy;
use lastkey_engine::{
    BuiltinPolicy, Clock as _, Engine, FileAnchor, FileSeal, KeyRef, ManualClock, Parts,
    SystemClock, Timestamp, audit::AuditLog, command::CreateKeyVersion,
};
use lastkey_store::{OpenOptions, RedbStore};
use lastkey_testbed::eventually;
use serde_json::json;

use super::support::rotate::{SECRETS, cli, is_needed, key_ids, versions};
use super::support::{Cluster, KEY, Lab};
use super::{VERSION, peers};

const DAY: i64 = 86_400_000;
/// The server looks once a minute what is due, an apiserver once a minute for the key id.
const FOLLOWED: Duration = Duration::from_secs(400);

/// Gives the key a version of nine days ago.
async fn rotate_nine_days_ago(data: &Path) {
    let then = Timestamp::from_millis(SystemClock.now().as_millis() - 9 * DAY);
    let store = RedbStore::open(data.join("store.redb"), OpenOptions::default()).unwrap();
    let (audit, journal) = (data.join("audit"), data.join("journal"));
    let engine = Engine::start(Parts {
        store: Arc::new(store),
        seal: Arc::new(FileSeal::new(data.join("root.key"))),
        clock: Arc::new(ManualClock::at(then)),
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| {
            AuditLog::open(&audit, &journal, key).map(|log| Arc::new(log) as _)
        }),
        anchor: Arc::new(FileAnchor::new(data.join("anchor"))),
        incarnation: Box::new(|| Ok("nine days ago".to_owned())),
    });
    let engine = engine.await.unwrap();
    let rotate = CreateKeyVersion { key: KeyRef::parse(KEY).unwrap() };
    engine.execute(&engine.system_caller(), rotate).await.unwrap();
    engine.shutdown().await;
}

#[test]
fn a_policy_that_comes_due_is_followed_to_its_report() {
    let test = "a_policy_that_comes_due_is_followed_to_its_report";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let mut up = lab.up();
    let address = up.ready.address().to_owned();
    assert!(up.stop().unwrap().success());
    let data = lab.path("data");
    tokio::runtime::Runtime::new().unwrap().block_on(rotate_nine_days_ago(&data));
    let up = lab.lastkey.up(&data, &address).unwrap();
    let config = up.ready.encryption_config_file.clone();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), VERSION, &config);
    let names = cluster.create_secrets("s", 30);
    let before = key_ids(&cluster.etcd, SECRETS);
    let kubeconfig = cluster.apiserver.kubeconfig().display().to_string();
    let out = lab.path("identity").display().to_string();
    let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--rotate-automatically"];
    let more = ["--etcd", cluster.etcd.url(), "--out", &out];
    lab.cli(&up.ready, &[&add[..], &more].concat());
    lab.cli(&up.ready, &["cluster", "status", "prod"]);
    let known = versions(&lab, &up.ready);
    let old = known.last().unwrap().clone();

    // 1. Every seven days: it is nine since the last time.
    lab.cli(&up.ready, &["key", "rotation-policy", KEY, "--every", "7"]);
    eventually("the cluster has followed", FOLLOWED, || {
        std::thread::sleep(Duration::from_secs(2));
        let status = cli(&lab, &up.ready, &["cluster", "status", "prod"]).json();
        let rotation = &status["items"][0]["rotation"];
        match rotation["automatic"] == true && rotation["phase"] == "finished" {
            true => Ok(()),
            false => Err(rotation.to_string()),
        }
    })
    .unwrap();

    // 2. One version more, made by the server itself; everything is under it, and the old one is free.
    let now = versions(&lab, &up.ready);
    assert_eq!(now.len(), known.len() + 1, "{now:?}");
    let due = lab.cli(&up.ready, &["audit", "query", "--action", "RotateDueKey"]);
    assert_eq!(due["items"].as_array().map(Vec::len), Some(1), "{due}");
    assert_eq!(
        (&due["items"][0]["principal"], &due["items"][0]["outcome"]),
        (&json!("system"), &json!("ok"))
    );
    let after = key_ids(&cluster.etcd, SECRETS);
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(before.is_disjoint(&after));
    cluster.assert_readable(&names);
    assert!(!is_needed(&lab, &up.ready, &old));

    // 3. The report is believed without the server, and nothing else is.
    let report = cli(&lab, &up.ready, &["cluster", "rotate", "prod", "--report"]);
    let content = &report.json()["content"];
    assert_eq!(content["key_version"], now.last().unwrap().as_str(), "{content}");
    assert_eq!((&content["verified"], &content["refused"]), (&json!({ "by": "etcd" }), &json!(0)));
    let (file, pem) = (lab.path("report.json"), lab.path("audit.pem"));
    let key = cli(&lab, &up.ready, &["audit", "public-key"]).json();
    std::fs::write(&pem, key["public_key_pem"].as_str().unwrap()).unwrap();
    let verified = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let (file, pem) = (file.to_str().unwrap(), pem.to_str().unwrap());
        let verify = ["cluster", "rotate", "--verify", file, "--public-key", pem];
        lab.lastkey.cli(None, &verify).unwrap().code
    };
    assert_eq!(verified(&report.stdout), 0);
    assert_eq!(verified(&report.stdout.replace("\"objects\":30", "\"objects\":31")), 1);
}
