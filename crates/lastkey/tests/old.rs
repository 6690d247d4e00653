//! Lane, run on request: kube-apiserver 1.27.8, the first release with KMS v2 as a beta, and 1.20.2,
//! which knows KMS v1 alone. Both send the socket's path as `:authority`.
//!
//! Their configurations are those that Lastkey prints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use lastkey_testbed::{ApiserverOptions, Encrypted, Peers, eventually};
use support::{Cluster, KEY, Lab, PLAINTEXT, SOON, plugin_options};

/// The release without KMS v2.
const VERSION: &str = "1.20.2";
/// An apiserver asks a healthy plugin once a minute.
const NEW_KEY_ID: Duration = Duration::from_secs(200);

fn key_id(cluster: &Cluster, name: &str) -> String {
    Encrypted::parse(&cluster.stored(name).bytes).unwrap().key_id
}

/// KMS v2 as 1.27 has it: a key of AES-GCM for all writes under one key_id, and no seed.
#[test]
fn secrets_are_sealed_on_1_27() {
    let test = "secrets_are_sealed_on_1_27";
    let Some(peers) = Peers::or_skip(test, &["etcd", "kube-apiserver-1.27.8"]) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.27.8", config);
    // 1. Sealed, readable, and readable after a restart of the apiserver.
    let names = cluster.create_secrets("beta", 20);
    cluster.assert_readable(&names);
    let first = key_id(&cluster, "beta-0");
    assert!(names.iter().all(|name| key_id(&cluster, name) == first));
    assert!(!cluster.etcd.disk_contains(PLAINTEXT).unwrap(), "no plaintext in etcd's files");
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
    eventually("the apiserver is healthy, provider included", SOON, || {
        cluster.apiserver.client().get("/readyz")?.expect_ok("readyz")
    })
    .unwrap();
    // 2. A rotation is taken, and an update brings a Secret under the new version.
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    eventually("writes are under another key_id", NEW_KEY_ID, || {
        sleep(Duration::from_secs(2));
        let value = format!("{:?}", Instant::now());
        let answer = cluster.apiserver.update_secret("beta-0", &value);
        answer.and_then(|answer| answer.expect_ok("an update")).map_err(|e| e.to_string())?;
        if key_id(&cluster, "beta-0") == first {
            Err("still the old one".to_owned())
        } else {
            Ok(())
        }
    })
    .unwrap();
    assert_eq!(key_id(&cluster, "beta-1"), first, "what nobody wrote stays as it was");
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names[1..]);
}

#[test]
fn secrets_are_sealed_on_1_20_by_a_path() {
    secrets_are_sealed("secrets_are_sealed_on_1_20_by_a_path", None);
}

#[test]
fn secrets_are_sealed_on_1_20_by_an_abstract_socket() {
    let name = format!("@lastkey-old-{}", std::process::id());
    secrets_are_sealed("secrets_are_sealed_on_1_20_by_an_abstract_socket", Some(&name));
}

fn secrets_are_sealed(test: &str, abstract_name: Option<&str>) {
    let peers = Peers::or_skip(test, &["etcd", &format!("kube-apiserver-{VERSION}")]);
    let Some(peers) = peers else { return };
    let lab = Lab::new();
    let mut up = lab.up();
    let socket = match abstract_name {
        Some(name) => name.into(),
        None => up.ready.plugin_socket.clone(),
    };
    let files = lastkey_testbed::Ready { plugin_socket: socket.clone(), ..up.ready.clone() };
    let _plugin = abstract_name.map(|_| lab.lastkey.plugin(&plugin_options(&files)).unwrap());
    // 1. What is printed for it.
    let socket = socket.to_str().unwrap();
    let args =
        ["cluster", "config", "encryption", "--kms-version", "v1", "--plugin-socket", socket];
    let printed = lab.cli(&up.ready, &args);
    let config = lab.path("v1.yaml");
    std::fs::write(&config, printed["items"][0]["content"].as_str().unwrap()).unwrap();
    let options = ApiserverOptions { version: VERSION, encryption_config: &config, flags: &[] };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    // 2. Sealed, readable, and readable after a restart of the apiserver.
    let names = cluster.create_secrets("old", 20);
    cluster.assert_readable(&names);
    let stored = cluster.stored("old-0").bytes;
    assert!(stored.starts_with(b"k8s:enc:kms:v1:lastkey:"), "{}", String::from_utf8_lossy(&stored));
    assert!(Encrypted::parse(&stored).is_err(), "it is none of v2");
    assert!(!cluster.etcd.disk_contains(PLAINTEXT).unwrap(), "no plaintext in etcd's files");
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
    // 3. A rotation goes unnoticed, and harms nothing.
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    let more = cluster.create_secrets("rotated", 3);
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&[names, more].concat());
    eventually("the apiserver is healthy, provider included", SOON, || {
        cluster.apiserver.client().get("/readyz")?.expect_ok("readyz")
    })
    .unwrap();
    // 4. It sees a server that is away, and that it is back.
    let answer = || cluster.apiserver.create_secret("away", "x");
    if abstract_name.is_some() {
        up.stop().unwrap();
        assert_eq!(answer().unwrap().status, 500, "nothing is encrypted without the server");
        cluster.assert_readable(&["old-0".to_owned()]);
        let listen = up.ready.address().to_owned();
        let _server = lab.lastkey.server(&lab.path("data"), &listen).unwrap();
        eventually("writes heal", SOON, || answer()?.expect_ok("a write")).unwrap();
    }
}
