//! The key service is away, or takes something back: what users of a real apiserver see.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::TcpStream,
    thread::sleep,
    time::Duration,
};

use lastkey_testbed::{ApiserverOptions, Error, Running, eventually, free_port};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    kms_config, peers,
    support::{Cluster, KEY, Lab, SOON, Split, plugin_options},
};

fn late(last: &str) -> Error {
    Error::Late { what: "one attempt".into(), seconds: 0, last: last.into() }
}

/// The audit records of an action.
fn records(lab: &Lab, split: &Split, action: &str) -> Vec<Value> {
    let page = lab.cli(&split.ready, &["audit", "query", "--action", action, "--limit", "1000"]);
    page["items"].as_array().unwrap().clone()
}

/// 3 a.m.: the control plane restarts while the key service is away. Reads go on, from what the
/// plugin has seen; writes wait; what was read is in the server's log afterwards, once.
///
/// KMS v1, because an apiserver of v2 reads nothing before it has had a seed of its own encrypted.
#[test]
fn a_control_plane_restarts_while_the_key_service_is_away() {
    let test = "a_control_plane_restarts_while_the_key_service_is_away";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = kms_config(&lab.path("v1.yaml"), "v1", &split.ready.plugin_socket, "");
    let options = ApiserverOptions {
        version: "1.37.0",
        encryption_config: &config,
        flags: &["--feature-gates=KMSv1=true"],
    };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    let names = cluster.create_secrets("kept", 20);
    // Each Secret's key was opened by the server in the call that encrypted it.
    split.kill_server();
    // 1. A cold start has no cache of its own, and reads all of them.
    cluster.apiserver.launch().unwrap();
    eventually("the apiserver serves, its provider aside", SOON * 2, || {
        sleep(Duration::from_millis(500));
        let ready = cluster.apiserver.client().get("/readyz?exclude=kms-provider-0")?;
        ready.expect_ok("readyz")
    })
    .unwrap();
    cluster.assert_readable(&names);
    assert_eq!(cluster.apiserver.list_secrets().unwrap().len(), names.len());
    // 2. Nothing is encrypted without the server; what there is stays readable.
    let refused = cluster.apiserver.create_secret("refused", "x").unwrap();
    assert_eq!(refused.status, 500, "{}", refused.text());
    cluster.assert_readable(&names);
    // 3. All of it heals by itself.
    split.start_server();
    eventually("writes heal", SOON, || {
        sleep(Duration::from_millis(500));
        cluster.apiserver.create_secret("healed", "x")?.expect_ok("a write")
    })
    .unwrap();
    // 4. The server's log says what was answered without it.
    let count = |told: &[Value]| told.iter().filter_map(|it| it["count"].as_u64()).sum::<u64>();
    let told = eventually("the log has what was answered meanwhile", SOON, || {
        sleep(Duration::from_millis(500));
        let told = records(&lab, &split, "PluginCachedDecrypt");
        if count(&told) < 20 { Err(late(&format!("{told:?}"))) } else { Ok(told) }
    })
    .unwrap();
    for record in &told {
        let said = (&record["outcome"], &record["api"]);
        assert_eq!(said, (&"ok".into(), &"v1beta1".into()), "{record}");
        assert!(record["key_version"].is_string() && record["cluster"].is_string(), "{record}");
    }
    let batches: Vec<_> = told.iter().map(|it| it["batch"].as_u64().unwrap()).collect();
    let mut once = batches.clone();
    once.dedup();
    assert_eq!(batches, once, "no batch is there twice");
}

/// What the plugin's page of metrics says.
fn metric(port: u16, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.parse().ok()
}

fn becomes(what: &str, port: u16, (name, value): (&str, f64)) {
    eventually(what, SOON, || {
        sleep(Duration::from_millis(100));
        let now = metric(port, name);
        if now == Some(value) { Ok(()) } else { Err(late(&format!("{name} is {now:?}"))) }
    })
    .unwrap();
}

/// Disabling a key is answered once the plugin has emptied its cache; an apiserver that restarts
/// then reads nothing. A plugin that cannot be reached is named, with the end of its lease.
#[test]
fn a_disable_reaches_the_plugins_cache_before_it_is_answered() {
    let test = "a_disable_reaches_the_plugins_cache_before_it_is_answered";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    split.kill_plugin();
    let port = free_port().unwrap();
    let listen = format!("127.0.0.1:{port}");
    let mut options: Vec<&OsStr> = plugin_options(&split.ready).to_vec();
    options.extend::<[&OsStr; 2]>(["--metrics-listen".as_ref(), listen.as_ref()]);
    let plugin: Running = lab.lastkey.plugin(&options).unwrap();
    let (usable, entries) = ("lastkey_plugin_usable", "lastkey_plugin_cache_entries");
    let config = split.ready.encryption_config_file.clone();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    let names = cluster.create_secrets("kept", 3);
    becomes("the plugin remembers the seed", port, (entries, 1.0));
    // 1. It confirms, so nobody is named, and it has nothing left.
    let answer = disable(&lab, &split);
    assert!(answer["unconfirmed"].is_null(), "{answer}");
    assert_eq!(metric(port, entries), Some(0.0), "empty when the answer comes");
    lab.cli(&split.ready, &["key", "enable", KEY]);
    cluster.assert_readable(&names);
    // 2. One that stands still cannot confirm, and is named.
    becomes("it has heard that the key is enabled", port, (usable, 1.0));
    plugin.process.signal(Signal::STOP);
    let answer = disable(&lab, &split);
    plugin.process.signal(Signal::CONT);
    let named = &answer["unconfirmed"];
    assert_eq!(named.as_array().map(Vec::len), Some(1), "{answer}");
    assert!(named[0]["plugin"] == "up" && named[0]["lease_ends"].is_string(), "{answer}");
    // 3. As soon as it runs again, it knows.
    becomes("it has heard that the key is disabled", port, (usable, 0.0));
}

fn disable(lab: &Lab, split: &Split) -> Value {
    // Its apiserver needs the key: it is said twice.
    let args = ["key", "disable", KEY, "--override", KEY, "--reason", "the test wants it"];
    let outcome = lab.lastkey.cli(Some(&split.ready.credentials_file), &args).unwrap();
    outcome.expect_ok("disabling").unwrap().json()
}

/// Up to 1.28 the KMS is part of `/livez`, so that the kubelet restarts an apiserver that works. What
/// the kubeadm patch has the probes ask does not have it.
#[test]
fn the_probes_of_1_28_leave_the_kms_out() {
    let Some(peers) = peers("the_probes_of_1_28_leave_the_kms_out", "1.28.0") else { return };
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = split.ready.encryption_config_file.clone();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.28.0", &config);
    let names = cluster.create_secrets("kept", 2);
    let ask = |path: &str| cluster.apiserver.client().get(path);
    split.kill_plugin();
    eventually("livez fails with the plugin", SOON, || {
        sleep(Duration::from_millis(500));
        let livez = ask("/livez")?;
        if livez.status == 500 { Ok(()) } else { Err(late(&livez.text())) }
    })
    .unwrap();
    let patch =
        lab.lastkey.cli(Some(&split.ready.credentials_file), &["cluster", "config", "kubeadm"]);
    let patch = patch.unwrap().expect_ok("the patch").unwrap().json();
    let patch = patch["items"][0]["content"].as_str().unwrap();
    let probe = "/livez?exclude=kms-providers";
    assert_eq!(patch.matches(probe).count(), 2, "liveness and startup: {patch}");
    ask(probe).unwrap().expect_ok("what the kubelet asks").unwrap();
    cluster.assert_readable(&names);
    split.start_plugin();
}
