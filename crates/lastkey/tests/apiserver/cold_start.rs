//! Cold start without a cycle: nothing of the cluster runs, the node has its kubelet's certificate
//! and Lastkey's CA, and no secret was brought to it.

use std::path::PathBuf;

use lastkey_testbed::eventually;

use crate::{
    Cluster, assert_stored, kms_config,
    nodes::{Town, encrypt},
    peers,
    support::{Lab, SOON, Split},
};

#[test]
fn a_node_enrols_and_then_its_apiserver_starts() {
    let Some(peers) = peers("a_node_enrols_and_then_its_apiserver_starts", "1.37.0") else {
        return;
    };
    let town = Town::new();
    let lab = &town.lab;
    // 1. The plugin asks by the kubelet's certificate, somebody approves it, it works.
    let kubelet = town.kubelet("cp-1");
    let mut plugin = town.plugin("cp-1", &kubelet);
    town.until_node("cp-1", "waiting");
    town.cli(&["cluster", "node", "approve", "cp-1", "--cluster", "prod"]);
    plugin.until_ready();
    // 2. Now the apiserver.
    let config: PathBuf = kms_config(&lab.path("cold.yaml"), "v2", &plugin.socket, "");
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    let names = cluster.create_secrets("cold", 5);
    cluster.assert_readable(&names);
    assert_stored(&cluster, &names);
    // 3. The node goes down as a whole, and comes up again: nobody has to do anything.
    cluster.apiserver.kill();
    plugin.restart();
    plugin.until_ready();
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
    // 4. The disk with the identity is lost meanwhile: the kubelet's key is known.
    cluster.apiserver.kill();
    plugin.stop();
    std::fs::remove_file(plugin.identity()).unwrap();
    plugin.restart();
    plugin.until_ready();
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
    encrypt(&plugin.socket).unwrap();
}

/// A plugin that is itself a pod of the cluster is no cycle: an apiserver that waits for its KMS
/// tells the kubelet which pods there are.
#[test]
fn an_apiserver_that_waits_for_its_plugin_gives_out_pods() {
    let test = "an_apiserver_that_waits_for_its_plugin_gives_out_pods";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = split.ready.encryption_config_file.clone();
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    let names = cluster.create_secrets("kept", 3);
    let pods = "/api/v1/namespaces/kube-system/pods";
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lastkey-kms-plugin"},
        "spec": {"containers": [{"name": "kms-plugin", "image": "lastkey"}]},
    });
    let made = cluster.apiserver.client().send("POST", pods, Some(&pod)).unwrap();
    made.expect_ok("a pod").unwrap();
    // The whole control plane stops; the apiserver comes back first.
    cluster.apiserver.kill();
    split.kill_plugin();
    cluster.apiserver.launch().unwrap();
    let listed = eventually("pods are given out", SOON * 3, || {
        cluster.apiserver.client().get(pods)?.expect_ok("pods")
    })
    .unwrap();
    assert_eq!(listed.json()["items"][0]["metadata"]["name"], "lastkey-kms-plugin");
    let secrets = cluster.apiserver.get_secret("kept-0").unwrap();
    assert!(secrets.status >= 500, "it has no plugin: {}", secrets.text());
    // The kubelet starts the plugin.
    split.start_plugin();
    cluster.apiserver.wait_until_serving().unwrap();
    cluster.assert_readable(&names);
}
