//! Lane: what waits for the apiserver's own timers. It asks Status once a minute while all is well,
//! and writes under a seed for three minutes after the last good Status.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what was measured")]

mod drilling;
#[path = "timers/drills.rs"]
mod drills;
#[path = "load/grpc.rs"]
#[allow(dead_code, reason = "each test target uses its own part of it")]
mod grpc;
#[path = "timers/many.rs"]
mod many;
mod nodes;
mod support;

use lastkey_testbed::{Encrypted, Error, Peers, eventually};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::{Cluster, KEY, Lab, SOON, Split, encryption_config};

/// A new key_id was seen after 19–53 s; the poll is once a minute.
const NEW_KEY_ID: Duration = Duration::from_secs(100);

/// Three minutes of writing on, and the way there.
const WRITES_STOP: Duration = Duration::from_secs(200);

#[test]
fn rotation_reaches_etcd_on_1_37() {
    rotation("rotation_reaches_etcd_on_1_37", "1.37.0");
}

#[test]
fn rotation_reaches_etcd_on_1_31() {
    rotation("rotation_reaches_etcd_on_1_31", "1.31.0");
}

#[test]
fn rotation_reaches_etcd_on_1_28() {
    rotation("rotation_reaches_etcd_on_1_28", "1.28.0");
}

fn rotation(test: &str, version: &str) {
    let Some(peers) = peers(test, version) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), version, config);
    let old = cluster.create_secrets("old", 5);
    let old_id = key_id(&cluster, "old-0");
    // 1. Rotate. A no-op update changes nothing while the key_id is current.
    let before = cluster.stored("old-0").revision;
    cluster.apiserver.touch_secret("old-0").unwrap();
    assert_eq!(cluster.stored("old-0").revision, before, "a no-op update writes nothing");
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    // 2. The new key_id arrives with the next Status, and writes use it.
    let new_id = eventually("writes use the new key_id", NEW_KEY_ID, || {
        sleep(Duration::from_secs(2));
        let answer = cluster.apiserver.update_secret("old-4", &format!("{:?}", Instant::now()))?;
        answer.expect_ok("updating a secret")?;
        let now = key_id(&cluster, "old-4");
        if now == old_id { Err(late("still the old key_id")) } else { Ok(now) }
    })
    .unwrap();
    // 3. Old Secrets are readable, under the old key_id.
    cluster.assert_readable(&old[..4]);
    assert_eq!(key_id(&cluster, "old-1"), old_id);
    // 4. A no-op update rewrites a stale one exactly once.
    let stale = cluster.stored("old-1");
    cluster.apiserver.touch_secret("old-1").unwrap();
    let fresh = cluster.stored("old-1");
    assert_eq!(fresh.version, stale.version + 1, "rewritten");
    assert_eq!(key_id(&cluster, "old-1"), new_id);
    cluster.apiserver.touch_secret("old-1").unwrap();
    assert_eq!(cluster.stored("old-1"), fresh, "and only once");
    // 5. With its cache gone, the apiserver still reads both generations.
    cluster.apiserver.restart().unwrap();
    cluster.assert_readable(&old[..4]);
    assert_eq!(key_id(&cluster, "old-2"), old_id);
    let again = cluster.create_secrets("again", 1);
    cluster.assert_readable(&again);
    assert_eq!(key_id(&cluster, "again-0"), new_id, "the key_id does not flip back");
}

#[test]
fn a_minute_without_the_server_goes_unnoticed() {
    let test = "a_minute_without_the_server_goes_unnoticed";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = split.ready.encryption_config_file.clone();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    let names = cluster.create_secrets("before", 5);
    let id = key_id(&cluster, "before-0");
    split.kill_server();
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < Duration::from_secs(65) {
        cluster.create_secrets(&format!("during{number}"), 1);
        cluster.assert_readable(&names);
        number += 1;
        sleep(Duration::from_secs(1));
    }
    split.start_server();
    healthy(&cluster);
    cluster.assert_readable(&cluster.create_secrets("after", 5));
    assert_eq!(key_id(&cluster, "after-0"), id, "the key_id is the same as before");
}

#[test]
fn a_disabled_key_stops_writes_on_1_37() {
    disabled_key("a_disabled_key_stops_writes_on_1_37", "1.37.0");
}

#[test]
fn a_disabled_key_stops_writes_on_1_31() {
    disabled_key("a_disabled_key_stops_writes_on_1_31", "1.31.0");
}

fn disabled_key(test: &str, version: &str) {
    let Some(peers) = peers(test, version) else { return };
    let lab = Lab::new();
    let up = lab.up();
    let config = &up.ready.encryption_config_file;
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), version, config);
    let names = cluster.create_secrets("kept", 3);
    // 1. Disabled: writes stop, and say why.
    lab.cli_overriding(&up.ready, &["key", "disable", KEY], KEY);
    let mut number = 0;
    let refusal = eventually("writes stop", WRITES_STOP, || {
        sleep(Duration::from_secs(2));
        number += 1;
        let answer = cluster.apiserver.create_secret(&format!("late-{number}"), "x")?;
        if answer.status < 300 { Err(late("writes go on")) } else { Ok(answer) }
    })
    .unwrap();
    // The words of the refusal are the apiserver's own; the cause is in its health.
    assert_eq!(refusal.status, 500, "{}", refusal.text());
    assert!(refusal.text().contains("expired"), "{}", refusal.text());
    let health = cluster.apiserver.client().get("/healthz/kms-providers").unwrap();
    assert!(health.status == 500 && health.text().contains("key is disabled"), "{}", health.text());
    assert!(up.process.log().contains("key is disabled"), "and in the log of the plugin");
    // 2. Enabled again: writes heal by themselves.
    lab.cli(&up.ready, &["key", "enable", KEY]);
    eventually("writes heal", SOON * 2, || {
        sleep(Duration::from_secs(2));
        number += 1;
        cluster.apiserver.create_secret(&format!("late-{number}"), "x")?.expect_ok("a write")
    })
    .unwrap();
    healthy(&cluster);
    cluster.assert_readable(&names);
}

/// Apiserver, plugin and server are all stopped, and started in each of the six orders.
#[test]
fn starts_in_every_order() {
    let Some(peers) = peers("starts_in_every_order", "1.37.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = split.ready.encryption_config_file.clone();
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    let mut names = cluster.create_secrets("start", 5);
    let id = key_id(&cluster, "start-0");
    for order in ["ASP", "APS", "SAP", "SPA", "PAS", "PSA"] {
        cluster.apiserver.kill();
        split.kill_plugin();
        split.kill_server();
        for part in order.chars() {
            match part {
                // It is not ready before Secrets can be decrypted.
                'A' => cluster.apiserver.launch().unwrap(),
                'S' => split.start_server(),
                // Without a server it may not say that it is ready yet.
                _ => split.start_plugin_unready(),
            }
        }
        cluster.apiserver.wait_until_serving().unwrap();
        healthy(&cluster);
        cluster.assert_readable(&names);
        names.extend(cluster.create_secrets(&format!("order-{}", order.to_lowercase()), 2));
        assert_eq!(key_id(&cluster, names.last().unwrap()), id, "the same key_id after {order}");
    }
}

/// Each part is killed and started again alone, while the others go on.
#[test]
fn each_part_restarts_alone() {
    let Some(peers) = peers("each_part_restarts_alone", "1.31.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = split.ready.encryption_config_file.clone();
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.31.0", &config);
    let mut names = cluster.create_secrets("alone", 5);
    for round in 0..2 {
        split.start_server();
        names.extend(cluster.create_secrets(&format!("server-{round}"), 2));
        cluster.assert_readable(&names);
        split.start_plugin();
        names.extend(cluster.create_secrets(&format!("plugin-{round}"), 2));
        cluster.assert_readable(&names);
        cluster.apiserver.restart().unwrap();
        healthy(&cluster);
        names.extend(cluster.create_secrets(&format!("apiserver-{round}"), 2));
        cluster.assert_readable(&names);
    }
}

/// The apiserver's readiness with the KMS provider counted in. An apiserver that could not reach
/// its provider dials again after up to two minutes.
fn healthy(cluster: &Cluster) {
    eventually("the apiserver is healthy, provider included", Duration::from_secs(180), || {
        cluster.apiserver.client().get("/readyz")?.expect_ok("readyz")
    })
    .unwrap();
}

fn key_id(cluster: &Cluster, name: &str) -> String {
    Encrypted::parse(&cluster.stored(name).bytes).unwrap().key_id
}

/// An EncryptionConfiguration with the plugin at `socket` as its only provider; YAML lines of the
/// provider can be added to the file.
fn key_config(file: &Path, api: &str, socket: &Path) -> PathBuf {
    let provider = format!(
        "  - kms:\n      apiVersion: {api}\n      name: lastkey\n      endpoint: unix://{}\n\
         \x20     timeout: 3s\n",
        socket.display()
    );
    encryption_config(file, &provider).unwrap()
}

fn late(last: &str) -> Error {
    Error::Late { what: "one attempt".into(), seconds: 0, last: last.into() }
}

fn peers(test: &str, version: &str) -> Option<Peers> {
    Peers::or_skip(test, &["etcd", &format!("kube-apiserver-{version}")])
}
