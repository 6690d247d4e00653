//! What must not be taken for free: by an etcd that is not the one under the apiservers, or because
//! somebody has taken a resource out of the configuration.

use lastkey_testbed::Etcd;
use serde_json::{Value, json};

use super::peers;
use super::support::rotate::{Rotate, cli, is_needed, versions};
use super::support::{Cluster, KEY, Lab};

const SECRETS: u64 = 5;

#[test]
fn what_another_etcd_has_frees_nothing() {
    let Some(peers) = peers("what_another_etcd_has_frees_nothing", "1.37.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", config);
    let names = cluster.create_secrets("s", 5);
    let kubeconfig = cluster.apiserver.kubeconfig().display().to_string();
    let out = lab.path("identity").display().to_string();
    let status = |etcd: &str, prefix: &str| -> Value {
        let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--resource", "secrets"];
        let more = ["--out", &out, "--etcd", etcd, "--etcd-prefix", prefix];
        lab.cli(&up.ready, &[&add[..], &more].concat());
        lab.cli(&up.ready, &["cluster", "status", "prod"])["items"][0].clone()
    };
    let needed = || -> u64 {
        let impact = lab.cli(&up.ready, &["key", "impact", KEY]);
        let versions = impact["versions"].as_array().unwrap();
        versions.iter().filter_map(|version| version["objects"].as_u64()).sum()
    };
    // 1. Their own.
    let own = cluster.etcd.url().to_owned();
    assert_eq!(status(&own, "/registry")["exact"], true);
    assert_eq!(needed(), SECRETS);
    // 2. The key has moved on, and the apiserver with it: only the objects need the older version.
    let old = versions(&lab, &up.ready).pop().unwrap();
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    let new = versions(&lab, &up.ready).pop().unwrap();
    let started_under_the_new = (0..10).any(|_| {
        cluster.apiserver.restart().unwrap();
        let status = lab.cli(&up.ready, &["cluster", "status", "prod"]);
        status["items"][0]["in_use"] == json!([new])
    });
    assert!(started_under_the_new);
    // 3. Another one: empty; with as much in it; their own below another prefix.
    let other = Etcd::start(&peers, &lab.folder("other")).unwrap();
    let filled = Etcd::start(&peers, &lab.folder("filled")).unwrap();
    for name in &names {
        filled.put(&format!("/registry/secrets/default/{name}"), b"k8s\0").unwrap();
    }
    let wrong = [(other.url(), "/registry"), (filled.url(), "/registry"), (&*own, "/elsewhere")];
    for (etcd, prefix) in wrong {
        let seen = status(etcd, prefix);
        assert_eq!(seen["exact"], false, "{seen}");
        assert!(
            seen["remarks"][0].as_str().unwrap().contains("is not known to be the one under"),
            "{seen}"
        );
        assert!(is_needed(&lab, &up.ready, &old), "{seen}");
        let retire = ["key", "versions", "retire", KEY, "--version", &old];
        assert_eq!(cli(&lab, &up.ready, &retire).code, 5);
        let backup = ["cluster", "status", "prod", "--backup", "b", "--keep", "1d"];
        let backup = cli(&lab, &up.ready, &backup);
        let said = backup.stderr.contains("is not known to be the one");
        assert!(backup.code == 1 && said, "{}", backup.stderr);
    }
    // 4. Their own again.
    assert_eq!(status(&own, "/registry")["exact"], true);
    assert_eq!(needed(), SECRETS);
}

#[test]
fn what_was_taken_out_of_the_configuration_is_still_needed() {
    let test = "what_was_taken_out_of_the_configuration_is_still_needed";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = lab.path("config.yaml");
    let write = |names: &str| {
        let socket = up.ready.plugin_socket.display();
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [{names}]\n  providers:\n  - kms: {{apiVersion: v2, name: lastkey, \
             endpoint: 'unix://{socket}', timeout: 10s}}\n  - identity: {{}}\n"
        );
        std::fs::write(&config, text).unwrap();
    };
    write("secrets, configmaps");
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    cluster.create_secrets("s", 5);
    let kubeconfig = cluster.apiserver.kubeconfig().display().to_string();
    let (file, out) = (config.display().to_string(), lab.path("identity").display().to_string());
    let etcd = ["--etcd", cluster.etcd.url()];
    let register = |etcd: &[&str]| {
        let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--out", &out];
        let more = [&["--encryption-config", &file], etcd].concat();
        lab.cli(&up.ready, &[&add[..], &more].concat());
    };
    let rotate = || Rotate::start(&lab, &up.ready, &[]).report();
    // 1. The file was changed since, and no apiserver has it yet: the ConfigMaps are counted.
    register(&etcd);
    write("secrets");
    let old = versions(&lab, &up.ready).pop().unwrap();
    let report = rotate();
    assert_eq!(report["whole"], false, "{report}");
    assert!(report["verified"]["why"].as_str().unwrap().contains("of configmaps"), "{report}");
    assert!(is_needed(&lab, &up.ready, &old));
    let status = lab.cli(&up.ready, &["cluster", "status", "prod"]);
    assert!(status["items"][0]["versions"].to_string().contains(&old), "{status}");
    assert!(is_needed(&lab, &up.ready, &old));
    // 2. The same without etcd, where nothing else says so.
    register(&[]);
    lab.cli(&up.ready, &["cluster", "status", "prod"]);
    assert!(is_needed(&lab, &up.ready, &old));
    // 3. Registered anew as it is now: what is left elsewhere in etcd is found, and kept.
    register(&etcd);
    let report = rotate();
    assert_eq!(report["whole"], true, "{report}");
    assert!(report["verified"]["why"].as_str().unwrap().contains("of configmaps"), "{report}");
    assert!(is_needed(&lab, &up.ready, &old));
    let status = lab.cli(&up.ready, &["cluster", "status", "prod"]);
    assert!(status["items"][0]["remarks"].to_string().contains("not configured"), "{status}");
    let retire = ["key", "versions", "retire", KEY, "--version", &old];
    assert_eq!(cli(&lab, &up.ready, &retire).code, 5);
}
