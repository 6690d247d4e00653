//! How drills end: interrupted, killed, with a part of theirs killed; and whom they leave alone.

use std::{
    io::Write as _,
    net::TcpListener,
    process::{Command, Stdio},
};

use lastkey_testbed::{Apiserver, ApiserverOptions, Peers};
use rustix::process::{Signal, kill_process};

use super::{Setting, report};
use crate::{
    drilling::{Drill, mode_of_scratch},
    support::{KEY, Lab, PLAINTEXT},
};

const OUTAGES: [&str; 6] =
    ["--outages", "sealed,server-down", "--outage-length", "10m", "--write-lease", "10s"];
const SEALED: &str = "the server was sealed";

#[test]
fn an_outage_drill_that_is_cut_short_tells_what_it_saw_and_leaves_nothing() {
    let test = "an_outage_drill_that_is_cut_short";
    let Some(peers) = Peers::or_skip(test, &["etcd", "kube-apiserver-1.37.0"]) else { return };
    let lab = Lab::new();
    // 1. Interrupted, the report has the outage that it is in, and names the other one.
    let html = lab.path("report.html");
    let options = [&OUTAGES[..], &["--html", html.to_str().unwrap()]].concat();
    let drill = Drill::start(&peers, &lab, "interrupted", &options);
    drill.until(SEALED);
    assert_eq!(mode_of_scratch(&drill.scratch), 0o700);
    drill.signal(Signal::INT);
    let ended = drill.end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let outages = &ended.report["outages"];
    assert_eq!((&outages["ok"], &outages["cut_short"]), (&false.into(), &"interrupted".into()));
    assert_eq!(outages["not_played"], serde_json::json!(["server-down"]));
    let one = &outages["outages"][0];
    assert_eq!((&one["outage"], &one["complete"]), (&"sealed".into(), &false.into()), "{one}");
    assert_eq!((&one["healed"], &one["lost"]), (&false.into(), &().into()), "{one}");
    assert!(one["written"].as_u64().unwrap() > 0, "{one}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("It ended early: interrupted"), "{page}");
    // 2. So has the one of a drill whose etcd is killed; who is killed is named.
    let drill = Drill::start(&peers, &lab, "without-etcd", &OUTAGES);
    drill.until(SEALED);
    kill_process(drill.process("--data-dir"), Signal::KILL).unwrap();
    let ended = drill.end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let outages = &ended.report["outages"];
    let why = outages["cut_short"].as_str().unwrap();
    assert!(why.starts_with("etcd ended (signal: 9"), "{outages}");
    assert_eq!(outages["outages"][0]["complete"], false);
    // 3. Killed itself, it tells nothing, but leaves neither processes nor files.
    let drill = Drill::start(&peers, &lab, "killed", &OUTAGES);
    drill.until("starting two apiservers");
    drill.signal(Signal::KILL);
    let ended = drill.end();
    assert_eq!((ended.code, ended.report.is_null()), (None, true));
}

#[test]
fn a_restore_drill_reaches_no_cluster_in_use() {
    let Some(setting) = Setting::new("a_restore_drill_reaches_no_cluster_in_use") else { return };
    let lab = &setting.lab;
    // 1. A cluster that its server itself brings under each new version, and a version that it was
    // not yet brought under.
    let mut up = lab.up();
    let dir = lab.folder("apiserver");
    let config = &up.ready.encryption_config_file;
    let options = ApiserverOptions { version: "1.37.0", encryption_config: config, flags: &[] };
    let apiserver = Apiserver::start(&setting.peers, &setting.etcd, &dir, &options).unwrap();
    apiserver.create_secret("one", PLAINTEXT).unwrap().expect_ok("a secret").unwrap();
    let kubeconfig = apiserver.kubeconfig().display().to_string();
    let out = lab.path("identity").display().to_string();
    let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--out", &out];
    lab.cli(&up.ready, &[&add[..], &["--rotate-automatically"]].concat());
    lab.cli(&up.ready, &["cluster", "status", "prod"]);
    let address = apiserver.url().trim_start_matches("https://").to_owned();
    drop(apiserver);
    lab.cli(&up.ready, &["key", "rotate", KEY]);
    assert!(up.stop().unwrap().success());
    // 2. Its apiserver's address is watched. The drill reads everything, and nobody comes.
    let watched = TcpListener::bind(&address).unwrap();
    watched.set_nonblocking(true).unwrap();
    let snapshot = setting.snapshot("snapshot.db");
    let outcome = setting.drill(&[("--snapshot", &snapshot), ("--state", &lab.path("data"))]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(report(&outcome)["ok"], true);
    assert!(watched.accept().is_err(), "the copy has reached out to a cluster in use");
}

#[test]
fn shares_are_asked_for_where_people_keep_the_root_key() {
    let Some(setting) = Setting::new("shares_are_asked_for") else { return };
    let lab = &setting.lab;
    let data = lab.path("data");
    let options = ["server", "--seal", "shamir", "--listen", "127.0.0.1:0", "--data-dir"];
    let args = options.into_iter().chain([data.to_str().unwrap()]).map(std::ffi::OsStr::new);
    let mut server = lab.lastkey.long_running("server", args).unwrap();
    let socket = data.join("admin.sock");
    let init = ["operator", "init", "--shares", "3", "--threshold", "2", "--admin-socket"];
    let init = [&init[..], &[socket.to_str().unwrap()]].concat();
    let made = lab.lastkey.cli(None, &init).unwrap().expect_ok("operator init").unwrap().json();
    let shares: Vec<String> = made["shares"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share["share"].as_str().unwrap().to_owned())
        .collect();
    assert!(server.stop().unwrap().success());
    setting.etcd.put("/registry/configmaps/default/a", CONFIG_MAP).unwrap();
    let snapshot = setting.snapshot("snapshot.db");
    let drill = |input: &str| {
        let scratch = lab.folder("scratch");
        let mut command = Command::new(lab.lastkey.binary());
        command.args(["cluster", "drill", "--output", "json", "--snapshot"]).arg(&snapshot);
        command.arg("--state").arg(&data).arg("--scratch-dir").arg(&scratch);
        command.arg("--kube-apiserver").arg(setting.peers.path("kube-apiserver-1.37.0"));
        command.arg("--etcd").arg(setting.peers.path("etcd"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // one that ends before it has read all is no failure of ours
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        let output = child.wait_with_output().unwrap();
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // without enough shares: who could do something is told what
    let (code, _, said) = drill(&format!("{}\n", shares[0]));
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("stays sealed") && !said.contains(&shares[0]), "{said}");
    let (code, out, said) = drill(&format!("{}\n{}\n", shares[0], shares[2]));
    assert_eq!(code, Some(0), "{said}");
    let found: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let state = &found["restore"]["state"];
    assert_eq!((&state["seal"], &state["unsealed_by"]), (&"shamir".into(), &BY_SHARES.into()));
    assert!(shares.iter().all(|share| !out.contains(share) && !said.contains(share)));
}

const BY_SHARES: &str = "2 shares that were entered";

/// A ConfigMap `default/a` as an apiserver stores it in clear.
const CONFIG_MAP: &[u8] = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"5f1c6d0e-0000-4000-8000-000000000000","creationTimestamp":"2026-01-01T00:00:00Z"},"data":{"a":"b"}}"#;
