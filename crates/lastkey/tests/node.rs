//! Nodes that get their plugin's identity by the kubelet's certificate: the real binary, with
//! certificates of a cluster CA that is made up for the test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "load/grpc.rs"]
#[allow(dead_code, reason = "each test target uses its own part of it")]
mod grpc;
mod nodes;
mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use lastkey_testbed::{Authority, Error, Pair, eventually};
use nodes::{PATIENCE, Plugin, Town, encrypt, sha256_of};
use serde_json::json;
use support::Lab;

/// The whole life: ask, be approved, work, restart, lose the disk, be turned out, come back.
#[test]
fn a_node_enrols_works_and_is_turned_out() {
    let town = Town::new();
    let kubelet = town.kubelet("cp-1");
    let mut plugin = town.plugin("cp-1", &kubelet);

    // 1. It waits, and both sides say for what.
    let waiting = town.until_node("cp-1", "waiting");
    let key = waiting["waiting_key"].as_str().unwrap().to_owned();
    let advice = format!("node approve cp-1 --cluster {} --fingerprint {key}", town.cluster);
    plugin.until_log(&advice);
    assert!(!plugin.identity().exists());

    // 2. It is approved, and works.
    let approved = town.cli(&["cluster", "node", "approve", "cp-1", "--fingerprint", &key]);
    assert_eq!(approved["waits"], true, "{approved}");
    plugin.until_ready();
    let node = town.until_node("cp-1", "enrolled");
    assert_eq!(node["kubelet_key"], key.as_str());
    let ends = node["not_after"].as_str().unwrap();
    assert!(ends > "2026", "it ends: {ends}");
    encrypt(&plugin.socket).unwrap();
    let mode = fs::metadata(plugin.identity()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the key is nobody else's");

    // 3. A restart needs nobody.
    plugin.restart();
    plugin.until_ready();
    // 4. A lost disk neither: the kubelet's key is known by now.
    plugin.stop();
    fs::remove_file(plugin.identity()).unwrap();
    plugin.restart();
    plugin.until_ready();
    encrypt(&plugin.socket).unwrap();

    // 5. Turned out: refused at once, and asking again does not help.
    town.cli(&["cluster", "node", "revoke", "cp-1"]);
    town.until_node("cp-1", "revoked");
    eventually("a revoked plugin encrypts nothing", PATIENCE, || match encrypt(&plugin.socket) {
        Err(_) => Ok(()),
        Ok(()) => Err("it still does"),
    })
    .unwrap();
    plugin.until_log("the node was revoked");

    // 6. Approved again, it comes back without a restart.
    town.cli(&["cluster", "node", "approve", "cp-1"]);
    eventually("it works again", PATIENCE, || encrypt(&plugin.socket)).unwrap();

    // 7. All of it is in the log.
    let log = town.cli(&["audit", "query", "--limit", "1000"]);
    let actions: Vec<&str> =
        log["items"].as_array().unwrap().iter().filter_map(|r| r["action"].as_str()).collect();
    for action in ["AddCluster", "EnrolNode", "ApproveNode", "RevokeNode", "PluginEncrypt"] {
        assert!(actions.contains(&action), "{action} in {actions:?}");
    }
    let by_kubelet = format!("kubelet/{}/cp-1", town.cluster);
    assert!(log["items"].as_array().unwrap().iter().any(|r| r["principal"] == by_kubelet.as_str()));
    assert!(!town.up.process.log().contains("outbox"), "each change has its record");
}

/// By name, by certificate, by key; and not by another one's.
#[test]
fn approval_beforehand() {
    let town = Town::new();
    let (by_name, by_certificate, other) =
        (town.kubelet("by-name"), town.kubelet("by-certificate"), town.kubelet("other"));
    let approve = |args: &[&str]| {
        town.cli(&[&["cluster", "node", "approve", "--cluster", "prod"], args].concat())
    };
    approve(&["by-name"]);
    approve(&["--fingerprint", &sha256_of(&by_certificate.certificate).to_uppercase()]);
    // Another certificate's than the one that will come.
    approve(&["other", "--fingerprint", &sha256_of(&by_name.certificate)]);
    let listed = town.cli(&["cluster", "node", "list"]);
    assert_eq!(listed["items"].as_array().unwrap().len(), 3, "{listed}");
    let approved = |item: &serde_json::Value| item["state"] == "approved";
    assert!(listed["items"].as_array().unwrap().iter().all(approved), "{listed}");

    let mut plugins =
        [town.plugin("by-name", &by_name), town.plugin("by-certificate", &by_certificate)];
    plugins.iter_mut().for_each(Plugin::until_ready);
    let mut late = town.plugin("other", &other);
    town.until_node("other", "waiting");
    late.until_log("waiting for approval");
    assert!(!late.identity().exists(), "another fingerprint was approved");
    // An approval was for one time and one node.
    let listed = town.cli(&["cluster", "node", "list"]);
    let left = listed["items"].as_array().unwrap().iter().filter(|item| approved(item)).count();
    assert_eq!(left, 1, "{listed}");
    approve(&["other"]);
    late.until_ready();
}

/// What nobody may get in by, each with its answer.
#[test]
fn certificates_that_prove_something_else_are_refused() {
    let town = Town::new();
    let nodes = ("system:node:cp-9", &["system:nodes"][..]);
    let refused = |pair: &lastkey_testbed::Pair, why: &str| {
        let answer = town.enrol(pair, &town.cluster).unwrap();
        assert_eq!(answer.status, 403, "{why}: {}", answer.text());
        let json = answer.json();
        assert_eq!(json["code"], "Forbidden.KubeletCertificate", "{json}");
        assert!(json["message"].as_str().unwrap().contains(why), "{why}: {json}");
    };
    // Of the right CA, but not a kubelet's.
    let masters = town.ca.client("system:node:cp-9", &["system:masters"]).unwrap();
    refused(&masters, "system:nodes");
    refused(&town.ca.client("system:node:cp-9", &[]).unwrap(), "system:nodes");
    refused(&town.ca.client("kubernetes-admin", &["system:nodes"]).unwrap(), "system:node:NAME");
    // Without the extension that says what it is for.
    let no_usage = town.ca.client_with(nodes, |params| params.extended_key_usages.clear()).unwrap();
    refused(&no_usage, "client authentication");
    // For servers only, expired, or of another CA of the same name: not even a handshake.
    let server_only = town
        .ca
        .client_with(nodes, |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        })
        .unwrap();
    let expired = town
        .ca
        .client_with(nodes, |params| params.not_after = rcgen::date_time_ymd(2021, 1, 1))
        .unwrap();
    let impostor = Authority::new("kubernetes").unwrap();
    let same_name = impostor.client("system:node:cp-9", &["system:nodes"]).unwrap();
    for (what, pair) in
        [("server only", &server_only), ("expired", &expired), ("same name", &same_name)]
    {
        assert!(town.enrol(pair, &town.cluster).is_err(), "{what}");
    }
    // A node of another cluster, whose CA is pinned there, and has the same name.
    let other = town.add_cluster("other", &impostor);
    let answer = town.enrol(&same_name, &town.cluster).unwrap();
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!(town.enrol(&same_name, &other).unwrap().json()["state"], "waiting");
    // A cluster that does not exist looks the same.
    let nowhere = town.enrol(&same_name, "00000000-0000-4000-8000-000000000000").unwrap();
    assert_eq!(nowhere.json()["message"], answer.json()["message"]);
    // Nobody of all these waits for approval in the first cluster.
    let listed = town.cli(&["cluster", "node", "list", "--cluster", "prod"]);
    assert_eq!(listed["items"].as_array().unwrap().len(), 0, "{listed}");
}

/// A kubelet's certificate is good for one request and nothing else, approved or not; nor does
/// anything that a cluster's CA writes into a certificate make its holder a plugin.
#[test]
fn a_kubelet_certificate_does_nothing_but_enrol() {
    let town = Town::new();
    let kubelet = town.kubelet("cp-1");
    town.cli(&["cluster", "node", "approve", "cp-1", "--cluster", "prod"]);
    let mut plugin = town.plugin("cp-1", &kubelet);
    plugin.until_ready();
    let uri = format!("lastkey://cluster/{}/node/cp-1", town.cluster);
    let forged = town
        .ca
        .client_with(("system:node:cp-1", &["system:nodes"]), |params| {
            let uri = rcgen::SanType::URI(uri.clone().try_into().unwrap());
            params.subject_alt_names.push(uri);
        })
        .unwrap();
    for pair in [&kubelet, &forged] {
        let client = town.client(pair);
        let encrypt = json!({ "key": support::KEY, "plaintext": "c2VlZA==" });
        let nodes = format!("/v1/clusters/{}/nodes", town.cluster);
        for (path, body) in [
            ("/v1/plugin/encrypt".to_owned(), encrypt.clone()),
            ("/v1/plugin/decrypt".to_owned(), json!({})),
            ("/v1/plugin/status".to_owned(), encrypt),
            ("/v1/plugin/renew".to_owned(), json!({ "csr_pem": nodes::csr() })),
            (format!("{nodes}/approve"), json!({ "node": "cp-2" })),
            (format!("{nodes}/revoke"), json!({ "node": "cp-1" })),
            ("/?Action=ListKeys&Version=2016-01-20".to_owned(), json!({})),
        ] {
            let answer = client.send("POST", &path, Some(&body)).unwrap();
            assert_eq!(answer.status, 403, "{path}: {}", answer.text());
            assert!(answer.text().contains("Forbidden.KubeletCertificate"), "{}", answer.text());
        }
        for path in ["/v1/status", "/v1/clusters", "/v1/audit", "/v1/nodes", &nodes] {
            assert_eq!(client.get(path).unwrap().status, 403, "{path}");
        }
    }
    // The account root is no node, and the plugin none either.
    let path = format!("/v1/clusters/{}/nodes/enrol", town.cluster);
    let csr = json!({ "csr_pem": nodes::csr() });
    let answer = town.client(&plugin.pair()).send("POST", &path, Some(&csr)).unwrap();
    assert_eq!(answer.json()["code"], "Forbidden.NoPermission", "{}", answer.text());
    let by_admin = nodes::over_socket(&town.up.ready.admin_socket, &path, &csr.to_string());
    assert!(by_admin.contains("Forbidden.NoPermission"), "{by_admin}");
    // Nobody without a certificate learns anything.
    let anybody = town.up.client().unwrap().send("POST", &path, Some(&csr)).unwrap();
    assert_eq!(anybody.status, 400, "{}", anybody.text());
    // Trust that ends, ends: the identity that there is stays.
    town.cli(&["cluster", "node", "trust", "prod", "--none"]);
    assert!(town.enrol(&kubelet, &town.cluster).is_err(), "its CA is not asked for any more");
    encrypt(&plugin.socket).unwrap();
}

/// Renewed at two thirds of its life, with a new key, over connections of its own, while calls go
/// on; the identity before it ends. For an enrolled plugin and for one with files.
#[test]
fn identities_renew_themselves_without_failing_a_call() {
    let lab = Lab::new();
    let town = Town::with(lab, &["--certificate-life", "90s"]);
    let kubelet = town.kubelet("cp-1");
    town.cli(&["cluster", "node", "approve", "cp-1", "--cluster", "prod"]);
    let mut enrolled = town.plugin("cp-1", &kubelet);
    enrolled.until_ready();
    let out = town.lab.path("files-out");
    let add = ["cluster", "add", "files", "--certificate-life", "90s", "--out"];
    town.cli(&[&add[..], &[out.to_str().unwrap()]].concat());
    let mut files = town.plugin_with_files("files", &out);
    files.until_ready();

    // One whose plugin nobody runs.
    let out = town.lab.path("forgotten-out");
    let add = ["cluster", "add", "forgotten", "--certificate-life", "60s", "--out"];
    town.cli(&[&add[..], &[out.to_str().unwrap()]].concat());

    let before = [enrolled.pair(), files.pair()];
    let started = std::time::Instant::now();
    let mut calls = 0;
    let is_old = |plugin: &Plugin, before: &Pair| {
        // Certificate and key are two files, which are replaced one after the other.
        let now = plugin.pair();
        now.certificate == before.certificate || now.key == before.key
    };
    while is_old(&enrolled, &before[0]) || is_old(&files, &before[1]) {
        for plugin in [&enrolled, &files] {
            encrypt(&plugin.socket).unwrap();
            calls += 1;
        }
        assert!(started.elapsed() < Duration::from_secs(90) + PATIENCE, "they are renewed");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(calls > 100, "{calls} calls");
    for (plugin, before) in [&enrolled, &files].into_iter().zip(&before) {
        let after = plugin.pair();
        assert_ne!(after.key, before.key, "a new key");
        assert_ne!(after.certificate, before.certificate);
        // Once the plugin has said so, the identity before is worth nothing, though it is valid.
        let body = json!({ "key": support::KEY, "plaintext": "c2VlZA==" });
        let ask = |pair| {
            let answer = town.client(pair).send("POST", "/v1/plugin/encrypt", Some(&body));
            answer.map(|answer| answer.status)
        };
        eventually("the identity before it ends", PATIENCE, || match ask(before) {
            Ok(200) => Err("it is still good".to_owned()),
            _ => Ok(()),
        })
        .unwrap();
        assert_eq!(ask(&after).unwrap(), 200);
        encrypt(&plugin.socket).unwrap();
    }
    // The next start goes on with what is on disk.
    enrolled.restart();
    enrolled.until_ready();
    // What was not renewed is said where an operator looks.
    eventually("status, metric and log name it", PATIENCE, || {
        let status = town.cli(&["status"])["warnings"].to_string();
        let page = town.up.client()?.get("/metrics")?.text();
        let log = town.up.process.log();
        let said = status.contains("the plugin plugin of the cluster forgotten")
            && page.contains("lastkey_plugin_certificates_late 1")
            && log.contains("about to end and was not renewed");
        let seen = format!("{status}\n{page}\n{log}");
        if said {
            Ok(())
        } else {
            Err(Error::Ended { name: "it".into(), status: seen, log: String::new() })
        }
    })
    .unwrap();
}

/// Two plugins on one node by one pair of files, and a third one by a copy of them elsewhere: all
/// renew, and no call of any fails by what another did.
#[test]
fn copies_of_one_identity_renew_without_failing_a_call() {
    let town = Town::new();
    let (out, elsewhere) = (town.lab.path("files-out"), town.lab.folder("elsewhere"));
    let add = ["cluster", "add", "files", "--certificate-life", "60s", "--out"];
    town.cli(&[&add[..], &[out.to_str().unwrap()]].concat());
    for file in ["plugin.pem", "plugin.key"] {
        fs::copy(out.join(file), elsewhere.join(file)).unwrap();
    }
    let mut plugins = [("a", &out), ("b", &out), ("c", &elsewhere)]
        .map(|(name, files)| town.plugin_with_files(name, files));
    plugins.iter_mut().for_each(Plugin::until_ready);
    let first = plugins[0].pair();
    let begun = std::time::Instant::now();
    // Each is renewed every 40 seconds.
    while begun.elapsed() < Duration::from_secs(110) {
        for plugin in &plugins {
            encrypt(&plugin.socket).unwrap();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let pairs = plugins.each_ref().map(Plugin::pair);
    assert_eq!(pairs[0].key, pairs[1].key, "who shares files renews once");
    assert_ne!(pairs[0].key, pairs[2].key);
    assert_ne!(first.key, pairs[0].key);
    for plugin in &plugins {
        let log = plugin.log();
        assert!(!log.contains("the key is refused"), "{log}");
        assert!(!log.contains("could not be renewed"), "{log}");
    }
    eventually("an operator learns of the copies", PATIENCE, || {
        match town.cli(&["status"])["warnings"].to_string() {
            said if said.contains("under several certificates") => Ok(()),
            said => Err(said),
        }
    })
    .unwrap();
}

/// A certificate that cannot be replaced has ended: the plugin says so, and takes it for no word about
/// the key.
#[test]
fn a_certificate_that_has_ended_is_said_by_its_name() {
    let town = Town::new();
    let out = town.lab.path("files-out");
    let add = ["cluster", "add", "files", "--certificate-life", "60s", "--out"];
    let added = town.cli(&[&add[..], &[out.to_str().unwrap()]].concat());
    // Not even root can write a file here.
    fs::create_dir(out.join("plugin.pem.try")).unwrap();
    let mut plugin = town.plugin_with_files("files", &out);
    plugin.until_ready();
    let said = eventually("its calls fail", PATIENCE, || match encrypt(&plugin.socket) {
        Ok(()) => Err("they do not"),
        Err(said) => Ok(said),
    })
    .unwrap();
    // As gRPC writes a message.
    assert!(said.contains("the%20client%20certificate%20has%20ended"), "{said}");
    assert!(said.contains("\"16\""), "it is said to be unauthenticated: {said}");
    plugin.until_log("the plugin's certificate has ended");
    let log = plugin.log();
    assert!(!log.contains("the key is refused"), "{log}");
    // Another one in its place heals it, without a restart.
    fs::remove_dir(out.join("plugin.pem.try")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let path = format!("/v1/clusters/{}/plugins", added["id"].as_str().unwrap());
    let request = json!({ "name": "plugin", "csr_pem": csr.pem().unwrap() });
    let answer = nodes::over_socket(&town.up.ready.admin_socket, &path, &request.to_string());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    fs::write(out.join("plugin.key"), key.serialize_pem()).unwrap();
    fs::write(out.join("plugin.pem"), body["certificate_pem"].as_str().unwrap()).unwrap();
    eventually("it works again", PATIENCE, || encrypt(&plugin.socket)).unwrap();
}

/// The kubelet has no certificate yet, or the server is not there: the plugin waits, and says why.
#[test]
fn a_cold_start_waits_for_what_is_missing() {
    let town = Town::new();
    let missing = town.lab.path("kubelet-to-come.pem");
    let mut plugin = town.plugin_by("cp-1", &missing);
    plugin.until_log("kubelet-to-come.pem");
    town.cli(&["cluster", "node", "approve", "cp-1", "--cluster", "prod"]);
    let kubelet = town.kubelet("cp-1");
    let both = format!("{}{}", kubelet.certificate, kubelet.key);
    fs::write(&missing, both).unwrap();
    plugin.until_ready();
    encrypt(&plugin.socket).unwrap();
}

/// An identity has ended by a clock that is wrong, or is refused, and the kubelet has another key by
/// now, so that nobody lets the plugin in. Then the identity is good again: with that the plugin goes
/// on, while it runs and when it starts. (Other files stand for the clock and for the refusal.)
#[test]
fn an_identity_that_is_good_again_needs_no_approval() {
    let town = Town::new();
    let ended = ended();
    for (node, bad, starts, noticed) in [
        ("cp-1", Some(&ended), true, "the plugin's certificate has ended"),
        ("cp-2", Some(&ended), false, "the plugin's certificate has ended"),
        ("cp-3", None, false, "the server refuses this identity"),
    ] {
        let kubelet = town.kubelet(node);
        town.cli(&["cluster", "node", "approve", node, "--cluster", "prod"]);
        let mut plugin = town.plugin(node, &kubelet);
        plugin.until_ready();
        // The identity from before another enrolment is refused.
        let refused = fs::read_to_string(plugin.identity()).unwrap();
        fs::remove_file(plugin.identity()).unwrap();
        plugin.restart();
        plugin.until_ready();
        let good = fs::read_to_string(plugin.identity()).unwrap();
        let next = town.kubelet(node);
        let both = format!("{}{}", next.certificate, next.key);
        fs::write(town.lab.path(&format!("{node}-kubelet.pem")), both).unwrap();

        if starts {
            plugin.stop();
        }
        place(plugin.identity(), bad.unwrap_or(&refused));
        if starts {
            plugin.restart();
        }
        plugin.until_log(noticed);
        plugin.until_log("waiting for approval");
        place(plugin.identity(), &good);
        plugin.until_log("the plugin's certificate is good again");
        plugin.until_ready();

        // It asked as the new key, and nobody has let it in.
        let listed = town.until_node(node, "enrolled");
        assert_ne!(listed["waiting_key"], serde_json::Value::Null, "{listed}");
        assert_eq!(fs::read_to_string(plugin.identity()).unwrap(), good);
    }
}

/// Puts an identity in place of another, as the plugin itself does.
fn place(identity: &Path, content: &str) {
    let beside = identity.with_extension("new");
    fs::write(&beside, content).unwrap();
    fs::rename(beside, identity).unwrap();
}

/// An identity that ended long ago.
fn ended() -> String {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    format!("{}{}", pair.serialize_pem(), params.self_signed(&pair).unwrap().pem())
}

/// What the doctor says of a plugin, once it says that.
fn doctor_finds(town: &Town, plugin: &Plugin, (code, fix): (&str, &str)) {
    let (pid, none) = (plugin.pid(), town.lab.path("none.yaml"));
    let words = ["doctor", "--plugin", &pid, "--apiserver", none.to_str().unwrap()];
    eventually(code, PATIENCE, || {
        let outcome = town.lab.lastkey.cli(None, &words).unwrap();
        let items = outcome.json()["items"].as_array().unwrap().clone();
        let fixes = |it: &serde_json::Value| it["fix"].as_str().unwrap().contains(fix);
        match items.iter().any(|it| it["code"] == code && it["severity"] == "error" && fixes(it)) {
            true => Ok(()),
            false => Err(format!("{items:#?}")),
        }
    })
    .unwrap();
}

/// By the certificate that the node would get it by, as it lies there and as the server takes it.
#[test]
fn the_doctor_says_what_keeps_a_node_from_an_identity() {
    let town = Town::new();
    let kubelet = town.kubelet("cp-1");
    let mut plugin = town.plugin("cp-1", &kubelet);
    let file = town.lab.path("cp-1-kubelet.pem");
    let put = |pair: &Pair| fs::write(&file, format!("{}{}", pair.certificate, pair.key)).unwrap();
    // 1. What is missing is somebody's word.
    let key = town.until_node("cp-1", "waiting")["waiting_key"].as_str().unwrap().to_owned();
    let approve =
        format!("lastkey cluster node approve cp-1 --cluster {} --fingerprint {key}", town.cluster);
    doctor_finds(&town, &plugin, ("node-not-enrolled", &approve));
    // 2. The certificate is none that the server takes.
    let strange = Authority::new("kubernetes").unwrap();
    put(&strange.client("system:node:cp-1", &["system:nodes"]).unwrap());
    let trust = format!("lastkey cluster node trust {} --ca FILE", town.cluster);
    doctor_finds(&town, &plugin, ("kubelet-certificate-refused", &trust));
    let ended = |params: &mut rcgen::CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    };
    let nodes = ("system:node:cp-1", &["system:nodes"][..]);
    put(&town.ca.client_with(nodes, ended).unwrap());
    doctor_finds(&town, &plugin, ("kubelet-certificate-ended", "journalctl -u kubelet"));
    fs::remove_file(&file).unwrap();
    doctor_finds(&town, &plugin, ("kubelet-certificate-unreadable", "--kubelet-cert FILE"));
    // 3. What lies in its place is none: it is not taken for one, and the way out is named.
    put(&kubelet);
    town.cli(&["cluster", "node", "approve", "cp-1", "--fingerprint", &key]);
    plugin.until_ready();
    fs::write(plugin.identity(), "nonsense").unwrap();
    let aside = format!("mv {0} {0}.bad", plugin.identity().display());
    doctor_finds(&town, &plugin, ("certificate-unreadable", &aside));
    plugin.restart();
    plugin.until_log("move that file away, and the plugin enrols again");
}

/// Nobody has to start the plugin anew: it would be without a server for as long as that is forgotten.
#[test]
fn another_ca_is_taken_up_without_a_restart() {
    let mut town = Town::new();
    let ours = fs::read(&town.up.ready.ca_file).unwrap();
    let (ca, out) = (town.lab.path("plugins-ca.pem"), town.lab.path("files"));
    let add = ["cluster", "add", "files", "--key", support::KEY, "--out", out.to_str().unwrap()];
    town.cli(&add);
    fs::write(&ca, Authority::new("other").unwrap().certificate()).unwrap();
    town.up.ready.ca_file = ca.clone();
    let mut plugin = town.plugin_with_files("files", &out);
    plugin.until_log("UnknownIssuer");
    assert!(encrypt(&plugin.socket).is_err());
    fs::write(&ca, "nonsense").unwrap();
    plugin.until_log("files of the plugin's identity were not taken up");
    fs::write(&ca, ours).unwrap();
    plugin.until_ready();
}
