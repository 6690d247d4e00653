//! Whoever takes part is killed while objects are written anew: the server, then the plugin, then the
//! command, which goes on as if on another machine, from nothing but an address and credentials.

use lastkey_testbed::Ready;
use serde_json::json;

use super::support::rotate::{
    Rotate, SECRETS, has_written, is_needed, key_ids, register, versions,
};
use super::support::{Cluster, Lab, Split};
use super::{VERSION, peers};

const COUNT: usize = 400;

#[test]
fn server_plugin_and_command_are_killed() {
    let test = "server_plugin_and_command_are_killed";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let ready = split.ready.clone();
    let config = &ready.encryption_config_file;
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), VERSION, config);
    let names = cluster.create_secrets("s", COUNT);
    let urls = [cluster.apiserver.url()];
    let access = (cluster.apiserver.kubeconfig(), &cluster.etcd);
    register(&lab, &ready, access, (&urls, &["secrets"]));
    let old = versions(&lab, &ready).pop().unwrap();
    let slowly = ["--page", "10", "--rate", "4"];

    // 1. Without its server the command waits, says so, and goes on; so it does without the plugin,
    //    as apiservers write under the seed that they have.
    let mut first = Rotate::start(&lab, &ready, &slowly);
    first.wait_for("it rewrites", has_written);
    split.kill_server();
    let away = first.wait_for("it waits", |event| event["event"] == "away");
    assert!(!away["why"].as_str().unwrap().is_empty(), "{away}");
    split.start_server();
    first.wait_for("it goes on", has_written);
    split.kill_plugin();
    first.wait_for("it goes on", has_written);
    first.wait_for("it goes on", has_written);
    split.start_plugin();
    first.kill();

    // 2. What it had done is with the server: another one goes on elsewhere.
    let place = lab.folder("elsewhere").join("credentials");
    std::fs::copy(&ready.credentials_file, &place).unwrap();
    let elsewhere = Ready { credentials_file: place, ..ready.clone() };
    let report = Rotate::start(&lab, &elsewhere, &["--page", "10"]).report();
    assert_eq!(report["verified"], json!({ "by": "etcd" }), "{report}");
    assert_eq!((&report["refused"], &report["objects"]), (&json!(0), &json!(COUNT)), "{report}");
    // None was written anew twice; what was done of a page that was not saved is not counted.
    assert!(report["rewritten"].as_u64().unwrap() <= COUNT as u64, "{report}");
    assert_eq!(key_ids(&cluster.etcd, SECRETS).len(), 1);
    assert!(!is_needed(&lab, &ready, &old));
    assert_eq!(versions(&lab, &ready).len(), 2);
    cluster.assert_readable(&names);
}
