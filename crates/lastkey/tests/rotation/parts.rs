//! A rotation that was begun for a part of what is encrypted and is gone on with as a whole: nothing
//! becomes free before the rest has been gone through, too.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::rotate::{
    Rotate, SECRETS, cli, has_written, is_needed, key_ids, register, versions,
};
use super::support::{Cluster, Lab};
use super::{VERSION, peers};

const CONFIG_MAPS: &str = "/registry/configmaps/default/";
const EACH: usize = 30;
/// Slow enough to be killed in the middle.
const SLOWLY: [&str; 4] = ["--page", "5", "--rate", "4"];

fn create_config_maps(cluster: &Cluster) {
    for n in 0..EACH {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("m-{n}") },
            "data": { "a": "b" },
        });
        let path = "/api/v1/namespaces/default/configmaps";
        let made = cluster.apiserver.client().send("POST", path, Some(&map)).unwrap();
        made.expect_ok("a config map").unwrap();
    }
}

/// The key ids of all that is encrypted.
fn ids(cluster: &Cluster) -> BTreeSet<String> {
    let ids = [SECRETS, CONFIG_MAPS].map(|prefix| key_ids(&cluster.etcd, prefix));
    ids.into_iter().flatten().collect()
}

#[test]
fn a_part_that_is_gone_on_with_as_a_whole_is_one() {
    let test = "a_part_that_is_gone_on_with_as_a_whole_is_one";
    let Some(peers) = peers(test) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let text = std::fs::read_to_string(&up.ready.encryption_config_file).unwrap();
    let both = text.replace("- \"secrets\"\n", "- \"secrets\"\n      - configmaps\n");
    assert_ne!(both, text);
    let config = lab.path("config.yaml");
    std::fs::write(&config, both).unwrap();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), VERSION, &config);
    cluster.create_secrets("s", EACH);
    create_config_maps(&cluster);
    assert_eq!(ids(&cluster).len(), 1);
    let urls = [cluster.apiserver.url()];
    let access = (cluster.apiserver.kubeconfig(), &cluster.etcd);
    register(&lab, &up.ready, access, (&urls, &["secrets", "configmaps"]));
    let rotate = |more: &[&str]| Rotate::start(&lab, &up.ready, more);
    let command =
        |more: &[&str]| cli(&lab, &up.ready, &[&["cluster", "rotate", "prod"], more].concat());

    // 1. What is not served is refused before the key has a new version.
    let refused = command(&["--resource", "configmaps", "--resource", "confgmaps"]);
    assert!(refused.code == 1 && refused.stderr.contains("no confgmaps"), "{}", refused.stderr);
    assert_eq!(versions(&lab, &up.ready).len(), 1);

    // 2. A part is begun, and left; the whole goes on with it.
    let mut part = rotate(&[&["--resource", "configmaps"], &SLOWLY[..]].concat());
    part.wait_for("it rewrites", has_written);
    part.kill();
    let refused = command(&["--namespace", "default"]);
    let said = "for all namespaces is under way";
    assert!(refused.code == 1 && refused.stderr.contains(said), "{}", refused.stderr);
    let report = rotate(&[]).report();
    let names = |report: &Value| report["resources"].as_array().map(Vec::len);
    assert_eq!((&report["whole"], names(&report)), (&json!(true), Some(2)), "{report}");
    // What else there is was made by the apiserver itself.
    assert!(report["objects"].as_u64().unwrap() >= 2 * EACH as u64, "{report}");
    let id = report["plugin_key_id"].as_str().unwrap().to_owned();
    assert_eq!(ids(&cluster), BTreeSet::from([id]));
    let all = versions(&lab, &up.ready);
    assert_eq!(all.len(), 2);
    assert!(!is_needed(&lab, &up.ready, &all[0]) && is_needed(&lab, &up.ready, &all[1]));

    // 3. The other way round: what was begun as a whole stays so.
    let mut whole = rotate(&SLOWLY);
    whole.wait_for("it rewrites", has_written);
    whole.kill();
    let report = rotate(&["--resource", "secrets"]).report();
    assert_eq!((&report["whole"], names(&report)), (&json!(true), Some(2)), "{report}");
    assert_eq!(ids(&cluster).len(), 1);
    let all = versions(&lab, &up.ready);
    assert!(!is_needed(&lab, &up.ready, &all[1]) && is_needed(&lab, &up.ready, &all[2]));

    // 4. One namespace is one namespace to its end; nothing becomes free by it.
    let mut inside = rotate(&[&["--namespace", "default"], &SLOWLY[..]].concat());
    inside.wait_for("it rewrites", has_written);
    inside.kill();
    let report = rotate(&[]).report();
    assert_eq!(
        (&report["whole"], &report["namespace"]),
        (&json!(false), &json!("default")),
        "{report}"
    );
    assert!(is_needed(&lab, &up.ready, &all[2]));
    let report = rotate(&["--keep-version"]).report();
    assert_eq!(report["whole"], true, "{report}");
    assert!(!is_needed(&lab, &up.ready, &all[2]));
}
