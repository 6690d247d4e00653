//! Cold start without a cycle: nothing of the cluster runs, the node has its kubelet's certificate
//! and Lastkey's CA, and no secret was brought to it.

use std::path::PathBuf;

use crate::{
    Cluster, assert_stored, kms_config,
    nodes::{Town, encrypt},
    peers,
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
