//! Lane: real kube-apiservers 1.37.0, 1.31.0 and 1.28.0 on a real etcd, with Lastkey as their
//! provider.
//!
//! 1.31.0 is the last release that sends the socket's path as `:authority`, which stock HTTP/2
//! servers in Rust refuse; `up`'s own configuration uses the path socket, so it is tried there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "apiserver/cold_start.rs"]
mod cold_start;
#[path = "apiserver/configurations.rs"]
mod configurations;
#[path = "apiserver/coverage.rs"]
mod coverage;
#[path = "apiserver/drill.rs"]
mod drill;
mod drilling;
#[path = "apiserver/etcd.rs"]
mod etcd;
#[path = "load/grpc.rs"]
#[allow(dead_code, reason = "each test target uses its own part of it")]
mod grpc;
mod nodes;
#[path = "apiserver/other_etcd.rs"]
mod other_etcd;
#[path = "apiserver/outages.rs"]
mod outages;
#[path = "apiserver/packaging.rs"]
mod packaging;
#[path = "apiserver/restarts.rs"]
mod restarts;
#[path = "apiserver/rotate.rs"]
mod rotate;
mod support;

use lastkey_testbed::{Apiserver, ApiserverOptions, Encrypted, Peers, eventually};
use std::ffi::OsStr;
use std::path::Path;
use support::{Cluster, KEY, Lab, PLAINTEXT, SOON, encryption_config, plugin_options, value_of};

/// The control: without a provider etcd holds plaintext, and these tests would see it.
#[test]
fn without_a_provider_etcd_holds_plaintext() {
    for version in ["1.37.0", "1.31.0"] {
        holds_plaintext(version);
    }
}

fn holds_plaintext(version: &str) {
    let Some(peers) = peers("without_a_provider_etcd_holds_plaintext", version) else { return };
    let lab = Lab::new();
    let config = encryption_config(&lab.path("identity.yaml"), "  - identity: {}\n").unwrap();
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), version, &config);
    let names = cluster.create_secrets("plain", 3);
    cluster.assert_readable(&names);
    assert!(Encrypted::parse(&cluster.stored("plain-0").bytes).is_err());
    assert!(cluster.etcd.disk_contains(PLAINTEXT).unwrap(), "the search for plaintext works");
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
}

#[test]
fn secrets_are_sealed_on_1_37() {
    secrets_are_sealed("secrets_are_sealed_on_1_37", "1.37.0");
}

#[test]
fn secrets_are_sealed_on_1_31() {
    secrets_are_sealed("secrets_are_sealed_on_1_31", "1.31.0");
}

/// Takes KMS v2 only from a plugin that calls itself v2beta1.
#[test]
fn secrets_are_sealed_on_1_28() {
    secrets_are_sealed("secrets_are_sealed_on_1_28", "1.28.0");
}

fn secrets_are_sealed(test: &str, version: &str) {
    let Some(peers) = peers(test, version) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), version, config);
    // 1. Create, read, list.
    let names = cluster.create_secrets("sealed", 20);
    cluster.assert_readable(&names);
    let listed = cluster.apiserver.list_secrets().unwrap();
    assert!(names.iter().all(|name| listed.contains(&(name.clone(), value_of(name)))));
    // 2. Update.
    let updated = format!("{PLAINTEXT}:updated");
    cluster.apiserver.update_secret("sealed-0", &updated).unwrap().expect_ok("update").unwrap();
    assert_eq!(cluster.apiserver.secret_value("sealed-0").unwrap(), updated);
    cluster.apiserver.update_secret("sealed-0", &value_of("sealed-0")).unwrap();
    // 3. What etcd holds: our prefix, one key_id, no plaintext anywhere.
    assert_stored(&cluster, &names);
    assert!(!cluster.etcd.disk_contains(PLAINTEXT).unwrap(), "no plaintext in etcd's files");
    // 4. An apiserver that starts anew has lost its cache and asks the plugin.
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
    assert_eq!(cluster.apiserver.list_secrets().unwrap().len(), names.len());
    // 5. The whole health, provider included.
    eventually("the apiserver is healthy, provider included", SOON, || {
        cluster.apiserver.client().get("/readyz")?.expect_ok("readyz")
    })
    .unwrap();
}

/// Every Secret is an object of KMS v2 under the key_id that the apiserver has from Status.
fn assert_stored(cluster: &Cluster, names: &[String]) {
    let objects: Vec<Encrypted> =
        names.iter().map(|name| Encrypted::parse(&cluster.stored(name).bytes).unwrap()).collect();
    let key_id = &objects[0].key_id;
    assert!(key_id.len() == 64 && key_id.bytes().all(|b| b.is_ascii_hexdigit()), "{key_id}");
    for object in &objects {
        assert_eq!(object.key_id, *key_id);
        assert!(object.seed.len() <= 1024, "a seed of {} bytes", object.seed.len());
    }
    let metrics = cluster.apiserver.metrics("envelope_encryption_key_id_hash_total").unwrap();
    assert!(!metrics.is_empty(), "the apiserver counts uses of the key_id");
}

#[test]
fn two_clusters_cannot_read_each_other() {
    let test = "two_clusters_cannot_read_each_other";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    // 1. The first cluster of an installation is `up`'s; the second gets an id of its own.
    let out = lab.path("two-out");
    let add = |name: &str, out: &Path| {
        let out = out.to_str().unwrap();
        lab.cli(&up.ready, &["cluster", "add", name, "--key", KEY, "--out", out])
    };
    let (one, two) = (add("one", &lab.path("one-out")), add("two", &out));
    assert!(one["id"].is_string() && one["id"] != two["id"], "{one} {two}");
    let socket = lab.path("two.sock");
    let _plugin = plugin_of(&lab, &up.ready, &out, &socket);
    let config = kms_config(&lab.path("two.yaml"), "v2", &socket, "");
    let first =
        Cluster::start(&peers, &lab.folder("one"), "1.37.0", &up.ready.encryption_config_file);
    let second = Cluster::start(&peers, &lab.folder("two"), "1.37.0", &config);
    // 2. Each reads its own, under key_ids that differ although the key is the same.
    first.create_secrets("own", 1);
    second.create_secrets("own", 1);
    second.create_secrets("foreign", 1);
    let (mine, theirs) = (first.stored("own-0"), second.stored("own-0"));
    let (mine, theirs) = (mine.bytes, theirs.bytes);
    let parsed = [Encrypted::parse(&mine).unwrap(), Encrypted::parse(&theirs).unwrap()];
    assert_ne!(parsed[0].key_id, parsed[1].key_id);
    // 3. The ciphertext of one, put at the same path into the other's etcd, does not open.
    let path = Apiserver::etcd_path("own-0");
    second.etcd.put(&path, &renamed(&mine, &parsed[0].provider, &parsed[1].provider)).unwrap();
    let answer = second.apiserver.get_secret("own-0").unwrap();
    assert!(answer.status >= 400, "status {}: {}", answer.status, answer.text());
    // It is the plugin that refuses the seed, before the apiserver gets as far as the object.
    assert!(answer.text().contains("failed to decrypt DEK"), "{}", answer.text());
    assert!(!answer.text().contains(PLAINTEXT));
    // 4. Its own still do, and one put back does again.
    assert_eq!(second.apiserver.secret_value("foreign-0").unwrap(), value_of("foreign-0"));
    second.etcd.put(&path, &theirs).unwrap();
    assert_eq!(second.apiserver.secret_value("own-0").unwrap(), value_of("own-0"));
}

/// The same object as if a provider of another name had written it.
fn renamed(value: &[u8], from: &str, to: &str) -> Vec<u8> {
    let prefix = format!("k8s:enc:kms:v2:{from}:");
    let rest = value.strip_prefix(prefix.as_bytes()).expect("the provider's prefix");
    [format!("k8s:enc:kms:v2:{to}:").as_bytes(), rest].concat()
}

/// A plugin on the files that `cluster add --out` has written.
fn plugin_of(
    lab: &Lab,
    ready: &lastkey_testbed::Ready,
    out: &Path,
    socket: &Path,
) -> lastkey_testbed::Running {
    let files = lastkey_testbed::Ready {
        plugin_socket: socket.to_path_buf(),
        plugin_cert_file: out.join("plugin.pem"),
        plugin_key_file: out.join("plugin.key"),
        ..ready.clone()
    };
    let options: Vec<&OsStr> = plugin_options(&files).to_vec();
    lab.lastkey.plugin(&options).unwrap()
}

/// The other way around the trap of 1.31 and before: an abstract socket has no path to send.
#[test]
fn an_abstract_socket_serves_v2_and_v1() {
    let Some(peers) = peers("an_abstract_socket_serves_v2_and_v1", "1.31.0") else { return };
    let lab = Lab::new();
    let up = lab.up();
    let name = format!("@lastkey-test-{}", std::process::id());
    // `up` itself runs on until the end of the test.
    let files = lastkey_testbed::Ready { plugin_socket: (&name).into(), ..up.ready };
    let _plugin = lab.lastkey.plugin(&plugin_options(&files)).unwrap();
    for api in ["v2", "v1"] {
        let socket = Path::new("/").join(&name);
        let config = kms_config(&lab.path(&format!("{api}.yaml")), api, &socket, "");
        let options = ApiserverOptions {
            version: "1.31.0",
            encryption_config: &config,
            flags: &["--feature-gates=KMSv1=true"],
        };
        let mut cluster = Cluster::with_flags(&peers, &lab.folder(api), &options);
        let names = cluster.create_secrets(api, 3);
        let prefix = format!("k8s:enc:kms:{api}:lastkey:");
        assert!(cluster.stored(&names[0]).bytes.starts_with(prefix.as_bytes()));
        cluster.apiserver.restart().unwrap();
        cluster.assert_readable(&names);
    }
}

#[test]
fn v1_with_more_secrets_than_its_cache_on_1_37() {
    v1_with_more_secrets("v1_with_more_secrets_than_its_cache_on_1_37", "1.37.0");
}

#[test]
fn v1_with_more_secrets_than_its_cache_on_1_31() {
    v1_with_more_secrets("v1_with_more_secrets_than_its_cache_on_1_31", "1.31.0");
}

/// KMS v1 asks the plugin once a write and once a cache miss, and always by the path socket.
fn v1_with_more_secrets(test: &str, version: &str) {
    let Some(peers) = peers(test, version) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &lab.path("v1.yaml");
    let config = kms_config(config, "v1", &up.ready.plugin_socket, "      cachesize: 20\n");
    let options = ApiserverOptions {
        version,
        encryption_config: &config,
        flags: &["--feature-gates=KMSv1=true"],
    };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    let names = cluster.create_secrets("v1", 120);
    let stored = cluster.stored("v1-0").bytes;
    assert!(stored.starts_with(b"k8s:enc:kms:v1:"), "{}", String::from_utf8_lossy(&stored));
    assert!(!cluster.etcd.disk_contains(PLAINTEXT).unwrap(), "no plaintext in etcd's files");
    cluster.assert_readable(&names);
    cluster.apiserver.restart().unwrap();
    assert_eq!(cluster.apiserver.list_secrets().unwrap().len(), names.len());
    cluster.assert_readable(&names);
    // A rotation goes unnoticed, and harms nothing.
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    cluster.create_secrets("v1-after", 5);
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&names);
}

/// An EncryptionConfiguration with a KMS provider on `socket`.
fn kms_config(file: &Path, api: &str, socket: &Path, more: &str) -> std::path::PathBuf {
    let endpoint = socket.display();
    let provider = format!(
        "  - kms:\n      apiVersion: {api}\n      name: lastkey\n      endpoint: unix://{endpoint}\n\
         \x20     timeout: 3s\n{more}"
    );
    encryption_config(file, &provider).unwrap()
}

fn peers(test: &str, version: &str) -> Option<Peers> {
    Peers::or_skip(test, &["etcd", &format!("kube-apiserver-{version}")])
}
