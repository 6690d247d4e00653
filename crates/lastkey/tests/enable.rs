//! Lane: `cluster enable` and `disable` on real apiservers, there and back, killed in the middle. An
//! apiserver looks once a minute whether its configuration has changed, so these mostly wait.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "enable/apart.rs"]
mod apart;
#[path = "enable/given_up.rs"]
mod given_up;
mod support;
#[path = "enable/worlds.rs"]
mod worlds;

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, path::Path};

use lastkey_testbed::{Ready, eventually};
use serde_json::{Value, json};

use support::{KEY, SOON, plugin_options};
use worlds::{AES, BOX, CLEAR, RELOADS, World};

const OURS: &str = "kms:v2:lastkey";

#[test]
fn from_clear_there_and_back_killed_in_the_middle() {
    let test = "from_clear_there_and_back_killed_in_the_middle";
    let Some(world) = World::new(test, "1.37.0", &[CLEAR], &[RELOADS]) else { return };
    world.assert_all_under("clear");
    // 1. Killed as soon as the first file is in place, and once objects are written anew.
    let mut first = world.start("enable", &[]);
    first.wait_for(|event| event["event"] == "config");
    first.kill();
    assert_eq!(world.encryption()["status"], "updating");
    let busy = world.cli(&["cluster", "rotate", "prod"]);
    assert!(busy.code == 1 && busy.stderr.contains("enable"), "{}", busy.stderr);
    let doctor = world.cli(&["cluster", "doctor", "prod"]);
    assert!(doctor.stdout.contains("change-under-way"), "{}", doctor.stdout);
    assert_eq!(world.cli(&["key", "disable", KEY]).code, 5, "it is needed from now on");
    let forget = ["cluster", "forget", "prod", "--override", "prod", "--reason", "no"];
    let forget = world.cli(&forget);
    assert!(forget.code == 1 && forget.stderr.contains("under way"), "{}", forget.stderr);
    let mut second = world.start("enable", &["--rate", "10", "--page", "10"]);
    second.wait_for(|event| event["event"] == "progress" && event["rewritten"] != 0);
    second.kill();
    let report = world.run("enable", &[]);
    assert_eq!((&report["way"], &report["exact"]), (&"enable".into(), &true.into()), "{report}");
    assert_eq!(report["removed"], serde_json::json!(["clear"]), "{report}");
    assert_eq!(report["verified"], json!({ "by": "etcd" }), "{report}");
    assert!(report["proof"].as_str().unwrap().starts_with("etcd was read to the end"), "{report}");
    world.assert_all_under(OURS);
    assert_eq!(world.providers(), ["kms"]);
    assert_eq!(world.encryption()["status"], "running");
    let text = std::fs::read_to_string(&world.config).unwrap();
    assert!(text.starts_with("# by hand\n"), "comments stay: {text}");
    // 2. Its predecessors are kept, and the report can be believed without a server.
    let predecessors = report["predecessors"].as_array().unwrap();
    assert_eq!(predecessors.len(), 3, "{report}");
    assert!(predecessors.iter().all(|path| Path::new(path.as_str().unwrap()).exists()));
    let (file, key_file) = (world.lab.path("report.json"), world.lab.path("audit.pem"));
    let key = world.cli(&["audit", "public-key"]);
    let pem = key.json()["public_key_pem"].as_str().map_or(key.stdout, str::to_owned);
    std::fs::write(&key_file, pem).unwrap();
    std::fs::write(&file, world.cli(&["cluster", "enable", "prod", "--report"]).stdout).unwrap();
    let (file, key_file) = (file.to_str().unwrap(), key_file.to_str().unwrap());
    let verify = ["cluster", "enable", "--verify", file, "--public-key", key_file];
    assert_eq!(world.lab.lastkey.cli(None, &verify).unwrap().code, 0);
    // 3. The key is guarded while something is under it, and free once nothing is.
    assert_eq!(world.cli(&["key", "disable", KEY]).code, 5);
    let report = world.run("disable", &[]);
    assert_eq!((&report["way"], &report["to"]), (&"disable".into(), &"clear".into()), "{report}");
    assert_eq!(report["verified"], json!({ "by": "etcd" }), "{report}");
    assert_eq!(report["exact"], true, "{report}");
    world.assert_all_under("clear");
    assert_eq!(world.providers(), ["identity"]);
    assert_eq!(world.encryption()["status"], "off");
    let disabled = world.cli(&["key", "disable", KEY]);
    assert_eq!(disabled.code, 0, "{}", disabled.stderr);
    world.cluster.assert_readable(&world.names);
}

#[test]
fn from_local_keys_and_over_to_others() {
    let test = "from_local_keys_and_over_to_others";
    let Some(world) = World::new(test, "1.37.0", &[AES, CLEAR], &[RELOADS]) else { return };
    world.assert_all_under("aescbc");
    // A file that cannot be replaced is not printed with its keys, unless that is asked for.
    let chmod = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&world.config, mode).unwrap();
    };
    chmod(0o400);
    let refused = world.cli(&["cluster", "enable", "prod"]);
    assert!(refused.code == 1 && refused.stderr.contains("--by-hand"), "{}", refused.stderr);
    let secret = AES.rsplit("secret: ").next().unwrap().trim();
    assert!(!format!("{}{}", refused.stdout, refused.stderr).contains(secret));
    assert_eq!(world.encryption()["status"], "off", "nothing is begun");
    chmod(0o600);
    // Begun by several at the same moment it is one change, and each tells how it ends.
    let reports: Vec<Value> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| world.run("enable", &[]))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let report = &reports[0];
    assert!(reports.iter().all(|one| one == report), "{reports:?}");
    assert_eq!(report["removed"], serde_json::json!(["aescbc", "clear"]), "{report}");
    world.assert_all_under(OURS);
    assert_eq!(world.providers(), ["kms"]);
    // Over to local keys, which are made: never in a file that others can read.
    chmod(0o644);
    let before = std::fs::read_to_string(&world.config).unwrap();
    let refused = world.cli(&["cluster", "disable", "prod", "--to", "secretbox"]);
    assert!(refused.code == 1 && refused.stderr.contains("`chmod 600 "), "{}", refused.stderr);
    assert_eq!(world.encryption()["status"], "running", "nothing is begun");
    assert_eq!(std::fs::read_to_string(&world.config).unwrap(), before);
    chmod(0o600);
    let mut work = world.start("disable", &["--to", "secretbox"]);
    work.wait_for(|event| event["event"] == "config");
    for other in [&["--to", "aescbc"][..], &["--resource", "configmaps"]] {
        let other = world.cli(&[&["cluster", "disable", "prod"], other].concat());
        assert!(other.code == 1 && other.stderr.contains("to secretbox"), "{}", other.stderr);
    }
    let report = work.wait_for(|event| event["event"] == "report");
    assert!(work.child.wait().unwrap().success());
    assert_eq!(report["to"], "secretbox", "{report}");
    world.assert_all_under("secretbox");
    assert_eq!(world.providers(), ["secretbox"]);
    // The apiserver's metrics keep what it wrote under; it does not any more.
    let status = world.lab.cli(world.ready(), &["cluster", "status", "prod"]);
    let (used, in_use) = (&status["items"][0]["apiservers"][0], &status["items"][0]["in_use"]);
    assert_eq!((&used["key_version_ids"], in_use), (&json!([]), &json!([])), "{status}");
    assert_eq!(used["last_wrote_under"].as_array().map(Vec::len), Some(1), "{status}");
    for path in report["predecessors"].as_array().unwrap() {
        let about = std::fs::metadata(path.as_str().unwrap()).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o600, "{path}");
    }
}

#[test]
fn on_1_31_from_secretbox_to_another_plugin() {
    let test = "on_1_31_from_secretbox_to_another_plugin";
    let Some(world) = World::new(test, "1.31.0", &[BOX], &[RELOADS]) else { return };
    world.run("enable", &[]);
    world.assert_all_under(OURS);
    // A second plugin, of another cluster under another name, takes over.
    let out = world.lab.path("other-out");
    let args = ["cluster", "add", "other", "--key", KEY, "--out", out.to_str().unwrap()];
    world.lab.cli(world.ready(), &args);
    let socket = world.lab.folder("run").join("other.sock");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(world.lab.path("run"), mode).unwrap();
    let files = Ready {
        plugin_socket: socket.clone(),
        plugin_cert_file: out.join("plugin.pem"),
        plugin_key_file: out.join("plugin.key"),
        ..world.ready().clone()
    };
    let _plugin = world.lab.lastkey.plugin(&plugin_options(&files)).unwrap();
    let to = format!("other=unix://{}", socket.display());
    // Where etcd is not registered, the passes are believed, either way, and the report says so.
    world.register_without_etcd();
    let by_pass = json!({ "by": "pass", "why": "etcd is not registered" });
    let report = world.run("disable", &["--to", &to]);
    assert_eq!((&report["exact"], &report["verified"]), (&json!(false), &by_pass), "{report}");
    assert!(report["proof"].as_str().unwrap().starts_with("in the last pass"), "{report}");
    world.assert_all_under("kms:v2:other");
    // And back from there: another plugin's provider is taken out.
    let report = world.run("enable", &[]);
    assert_eq!(report["removed"], serde_json::json!(["kms v2 other"]), "{report}");
    assert_eq!((&report["exact"], &report["verified"]), (&json!(false), &by_pass), "{report}");
    world.assert_all_under(OURS);
    let ids: BTreeSet<String> = world.stored().into_keys().collect();
    assert_eq!(ids.len(), 1);
}

/// What cannot come to an end is refused before anything is begun or written.
#[test]
fn what_cannot_be_done_is_not_begun() {
    let test = "what_cannot_be_done_is_not_begun";
    let Some(world) = World::new(test, "1.37.0", &[CLEAR], &[RELOADS]) else { return };
    let before = std::fs::read_to_string(&world.config).unwrap();
    let refused = |args: &[&str], code: i32, why: &str| {
        let outcome = world.cli(&[&["cluster"], args].concat());
        assert_eq!(outcome.code, code, "{args:?}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains(why), "{args:?}: {}", outcome.stderr);
    };
    refused(&["disable", "prod"], 1, "no provider at");
    refused(&["rotate", "prod"], 1, "lastkey cluster enable prod");
    refused(&["disable", "prod", "--to", "nobody"], 2, "no KMS v2 provider");
    let nowhere = world.lab.path("run/none.sock");
    std::fs::create_dir_all(nowhere.parent().unwrap()).unwrap();
    let nowhere = nowhere.to_str().unwrap();
    refused(&["enable", "prod", "--plugin-socket", nowhere], 6, "--plugin-socket");
    // A new cluster has no file yet, and needs a plugin of its own.
    let kubeconfig = world.cluster.apiserver.kubeconfig().to_str().unwrap();
    let (file, out) = (world.lab.path("etc/new.yaml"), world.lab.path("new"));
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let add = ["cluster", "add", "new", "--key", KEY, "--kubeconfig", kubeconfig];
    let add = [&add[..], &["--encryption-config", file, "--out", out]].concat();
    assert_eq!(world.cli(&add).code, 0);
    refused(&["enable", "new"], 1, "acts for another cluster");
    // A file that no apiserver would take.
    std::fs::write(file, before.replace("identity: {}", "nonsense: {}")).unwrap();
    let ours = world.ready().plugin_socket.to_str().unwrap();
    refused(&["disable", "new", "--plugin-socket", ours], 1, "error");
    for (verb, name) in [("enable", "prod"), ("disable", "prod"), ("enable", "new")] {
        refused(&[verb, name, "--cancel"], 3, "under way");
    }
    assert_eq!(std::fs::read_to_string(&world.config).unwrap(), before);
    assert_eq!(world.encryption()["status"], "off");
    world.assert_all_under("clear");
}

/// The file is right already, as on a cluster that is made with it, but nobody has told the apiserver:
/// it is said with which flags it has to be started.
#[test]
fn without_its_flag_an_apiserver_is_not_waited_for_in_silence() {
    let test = "without_its_flag_an_apiserver_is_not_waited_for_in_silence";
    let flags = ["--encryption-provider-config="];
    let Some(world) = World::new(test, "1.37.0", &[CLEAR], &flags) else { return };
    let socket = world.ready().plugin_socket.display();
    let ours = format!(
        "  - kms:\n      apiVersion: v2\n      name: lastkey\n      endpoint: unix://{socket}\n      \
         timeout: 3s\n"
    );
    worlds::write_config(&world.config, &[&ours, CLEAR]);
    let file = world.config.to_str().unwrap();
    for verb in ["enable", "rotate"] {
        let mut work = world.start(verb, &[]);
        let event = work.wait_for(|event| event["event"] == "waiting");
        let said = event["behind"].to_string();
        let file = if verb == "enable" { file } else { "FILE" };
        let flags = format!(
            "--encryption-provider-config={file} --encryption-provider-config-automatic-reload=true"
        );
        assert!(said.contains("started without") && said.contains(&flags), "{verb}: {said}");
        work.kill();
        assert_eq!(world.cli(&["cluster", verb, "prod", "--cancel"]).code, 0);
    }
}

/// Nothing is written where somebody has forbidden it, an apiserver that does not load by itself is
/// waited for, and what somebody has changed meanwhile is left alone.
#[test]
fn by_hand_with_restarts_and_somebody_else() {
    let test = "by_hand_with_restarts_and_somebody_else";
    let Some(mut world) = World::new(test, "1.37.0", &[CLEAR], &[]) else { return };
    let before = std::fs::read_to_string(&world.config).unwrap();
    std::fs::set_permissions(&world.config, std::fs::Permissions::from_mode(0o444)).unwrap();
    let mut work = world.start("enable", &[]);
    for stage in ["readable", "writing"] {
        let event = work.wait_for(|event| event["event"] == "config" && event["stage"] == stage);
        assert!(event["by_hand"].as_str().unwrap().contains("read-only"), "{event}");
        if stage == "readable" {
            assert_eq!(std::fs::read_to_string(&world.config).unwrap(), before);
        }
        std::fs::write(&world.config, event["content"].as_str().unwrap()).unwrap();
        let said = |event: &Value| event["behind"].to_string().contains("restart it");
        work.wait_for(|event| event["event"] == "waiting" && said(event));
        world.cluster.apiserver.restart().unwrap();
    }
    work.wait_for(|event| event["phase"] == "removing");
    work.wait_for(|event| event["event"] == "config");
    work.kill();
    // Somebody edits the file before the last step was put in place.
    let text = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, format!("{text}# mine\n")).unwrap();
    let refused = world.cli(&["cluster", "enable", "prod"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("--accept-changes"), "{}", refused.stderr);
    assert!(std::fs::read_to_string(&world.config).unwrap().ends_with("# mine\n"));
    // As it was, it goes on; given up, everything stays readable.
    std::fs::write(&world.config, text).unwrap();
    let mut work = world.start("enable", &[]);
    work.wait_for(|event| event["event"] == "config");
    let gave_up = world.cli(&["cluster", "enable", "prod", "--cancel"]);
    assert_eq!(gave_up.code, 0, "{}", gave_up.stderr);
    eventually("the worker hears of it", SOON, || match work.child.try_wait() {
        Ok(Some(status)) if status.success() => Err("it ended well".to_owned()),
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    let said = work.errors();
    assert!(said.contains("was cancelled"), "{said}");
    world.assert_all_under(OURS);
    assert_eq!(world.providers(), ["kms", "identity"]);
}
