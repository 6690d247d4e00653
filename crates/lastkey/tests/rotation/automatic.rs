//! The server's own worker: a cluster that wants it follows its key by itself, over a restart of the
//! server, and the older version is retired.

use std::time::Duration;

use lastkey_testbed::{Error, eventually};

use super::support::rotate::{SECRETS, cli, is_needed, key_ids, versions};
use super::support::{Cluster, KEY, Lab, SOON};
use super::{VERSION, peers};

/// The apiserver hears of a key id within a minute; two of them, and a restart.
const FOLLOWED: Duration = Duration::from_secs(300);

fn late(what: &str) -> Error {
    Error::Late { what: "one attempt".into(), seconds: 0, last: what.to_owned() }
}

#[test]
fn a_cluster_follows_its_key_by_itself() {
    let Some(peers) = peers("a_cluster_follows_its_key_by_itself") else { return };
    let lab = Lab::new();
    let mut up = lab.up();
    let config = up.ready.encryption_config_file.clone();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), VERSION, &config);
    let names = cluster.create_secrets("s", 40);
    let before = key_ids(&cluster.etcd, SECRETS);
    let kubeconfig = cluster.apiserver.kubeconfig().display().to_string();
    let out = lab.path("identity").display().to_string();
    let etcd = cluster.etcd.url().to_owned();
    let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--etcd", &etcd];
    let added =
        lab.cli(&up.ready, &[&add[..], &["--out", &out, "--rotate-automatically"]].concat());
    assert_eq!(added["access"]["rotate_automatically"], true, "{added}");
    let set = ["cluster", "set", "prod", "--rotate-automatically", "on", "--retire"];
    assert_eq!(lab.cli(&up.ready, &set)["retire"], true);
    lab.cli(&up.ready, &["cluster", "status", "prod"]);
    let old = versions(&lab, &up.ready).pop().unwrap();

    // 1. The key moves on, and nobody does anything. It has begun, when the server is stopped.
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    let rotation = || {
        let status = cli(&lab, &up.ready, &["cluster", "status", "prod"]).json();
        status["items"][0]["rotation"].clone()
    };
    eventually("a rotation begins", SOON, || match rotation()["automatic"] == true {
        true => Ok(()),
        false => Err(late("no rotation yet")),
    })
    .unwrap();
    let address = up.ready.address().to_owned();
    assert!(up.stop().unwrap().success());
    let up = lab.lastkey.up(&lab.path("data"), &address).unwrap();

    // 2. The next server goes on: all is under one new key id, and the report is kept.
    let rotation = || {
        let status = cli(&lab, &up.ready, &["cluster", "status", "prod"]).json();
        status["items"][0]["rotation"].clone()
    };
    eventually("the rotation ends", FOLLOWED, || {
        std::thread::sleep(Duration::from_secs(2));
        match rotation()["phase"] == "finished" {
            true => Ok(()),
            false => Err(late(&format!("it is at {}", rotation()))),
        }
    })
    .unwrap();
    let after = key_ids(&cluster.etcd, SECRETS);
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(before.is_disjoint(&after));
    cluster.assert_readable(&names);
    assert!(!is_needed(&lab, &up.ready, &old));
    let report = cli(&lab, &up.ready, &["cluster", "rotate", "prod", "--report"]).json();
    assert_eq!(report["content"]["refused"], 0, "{report}");
    assert_eq!(report["content"]["retiring"][0], old.as_str(), "{report}");
    assert_eq!(report["content"]["migration"]["used"], false);

    // 3. It shows in the metrics, and the old version is retired within a minute or two.
    let metrics = up.client().unwrap().get("/metrics").unwrap().text();
    let line = r#"lastkey_rotation_state{cluster="prod",state="finished"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    eventually("the old version is retired", FOLLOWED, || {
        std::thread::sleep(Duration::from_secs(2));
        let all = lab.cli(&up.ready, &["key", "versions", KEY]);
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let is_old = |one: &&serde_json::Value| one["key_version_id"] == old.as_str();
        match items.iter().find(is_old).is_some_and(|one| one["state"] == "retired") {
            true => Ok(()),
            false => Err(late("not yet")),
        }
    })
    .unwrap();
    // The apiserver reads everything after a restart, too: nothing was under it.
    let mut cluster = cluster;
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
}
