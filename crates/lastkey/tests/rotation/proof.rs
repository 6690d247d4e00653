//! What proves that nothing is left: etcd where it is the apiserver's, otherwise another pass.

use lastkey_testbed::Etcd;
use serde_json::{Value, json};

use super::support::rotate::{Rotate, register};
use super::support::{Cluster, Lab};
use super::{VERSION, peers};

const SECRETS: usize = 30;

#[test]
fn only_the_apiservers_own_etcd_is_a_proof() {
    let Some(peers) = peers("only_the_apiservers_own_etcd_is_a_proof") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), VERSION, config);
    cluster.create_secrets("s", SECRETS);
    let other = Etcd::start(&peers, &lab.folder("other")).unwrap();
    let registered = |etcd: &Etcd, names: &[&str]| -> Value {
        let urls = [cluster.apiserver.url()];
        register(&lab, &up.ready, (cluster.apiserver.kubeconfig(), etcd), (&urls, names));
        Rotate::start(&lab, &up.ready, &["--keep-version", "--page", "7"]).report()
    };
    // 1. One that has none of the Secrets that the apiserver serves.
    let report = registered(&other, &["secrets"]);
    assert_eq!((&report["verified"]["by"], &report["objects"]), (&json!("pass"), &json!(SECRETS)));
    let why = report["verified"]["why"].as_str().unwrap();
    assert!(why.contains("no secrets") && why.contains("30"), "{report}");
    // 2. One in which something is that is not under the key.
    let clear = "/registry/secrets/default/clear";
    other.put(clear, b"k8s\0").unwrap();
    let report = registered(&other, &["secrets"]);
    assert_eq!(report["verified"]["by"], "pass", "{report}");
    assert!(report["verified"]["why"].as_str().unwrap().contains("1 of secrets"), "{report}");
    // 3. The apiserver's own.
    let report = registered(&cluster.etcd, &["secrets"]);
    assert_eq!(
        (&report["verified"], &report["objects"]),
        (&json!({ "by": "etcd" }), &json!(SECRETS))
    );
    assert!(report["proof"].as_str().unwrap().starts_with("etcd was read"), "{report}");
    // 4. What the configuration leaves in clear is not under the key, and no pass writes it.
    let report = registered(&cluster.etcd, &["secrets", "configmaps"]);
    assert_eq!((&report["verified"]["by"], &report["rewritten"]), (&json!("pass"), &json!(0)));
    assert!(report["verified"]["why"].as_str().unwrap().contains("of configmaps"), "{report}");
}
