//! The guard by the command line: versions that end, overrides that take two people, clusters that
//! go.

use super::support::{KEY, Lab};
use lastkey_testbed::{Outcome, Ready};
use serde_json::Value;
use std::fs;

fn run(lab: &Lab, ready: &Ready, args: &[&str]) -> Outcome {
    lab.lastkey.cli(Some(&ready.credentials_file), args).unwrap()
}

/// The same as an administrator on the server's machine.
fn run_local(lab: &Lab, ready: &Ready, args: &[&str]) -> Outcome {
    let socket = ready.admin_socket.display().to_string();
    let args = [args, &["--admin-socket", &socket]].concat();
    lab.lastkey.cli(None, &args).unwrap()
}

/// A refusal's JSON.
fn refused(outcome: &Outcome, code: i32) -> Value {
    assert_eq!(outcome.code, code, "{}{}", outcome.stdout, outcome.stderr);
    let line = outcome.stderr.lines().find(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_else(|| panic!("{}", outcome.stderr))).unwrap()
}

fn versions(lab: &Lab, ready: &Ready, key: &str) -> Vec<Value> {
    lab.cli(ready, &["key", "versions", key])["items"].as_array().unwrap().clone()
}

fn id(version: &Value) -> &str {
    version["key_version_id"].as_str().unwrap()
}

#[test]
fn a_version_is_retired_and_taken_back() {
    let lab = Lab::new();
    let up = lab.up();
    let ready = &up.ready;
    let key = "alias/files";
    lab.cli(ready, &["key", "create", "--alias", key]);
    lab.cli(ready, &["key", "rotate", key]);
    let [unused, used] = &versions(&lab, ready, key)[..] else { panic!("two versions") };
    assert_eq!(unused["never_used"], true, "{unused}");
    assert_eq!(unused["state"], "active");
    // Nobody has ever used it: it ends without a word, and comes back.
    let primary = ["key", "versions", "retire", key, "--version", id(used)];
    let refusal = refused(&run(&lab, ready, &primary), 1);
    assert_eq!(refusal["error"]["code"], "Rejected.PrimaryVersion");
    let retire = ["key", "versions", "retire", key, "--version", id(unused)];
    let retired = lab.cli(ready, &retire);
    assert_eq!(retired["state"], "retired");
    assert!(retired["destroy_at"].is_string(), "{retired}");
    let back = ["key", "versions", "reinstate", key, "--version", id(unused)];
    assert_eq!(lab.cli(ready, &back)["state"], "active");

    // What somebody has encrypted stands in the way; an override makes it unreadable.
    let (plain, sealed, opened) = (lab.path("plain"), lab.path("sealed"), lab.path("opened"));
    fs::write(&plain, "value").unwrap();
    let path = |path: &std::path::Path| path.display().to_string();
    let (plain, sealed, opened) = (path(&plain), path(&sealed), path(&opened));
    lab.cli(ready, &["encrypt", "--key", key, "-i", &plain, "-o", &sealed]);
    lab.cli(ready, &["key", "rotate", key]);
    let last = versions(&lab, ready, key);
    assert!(last[1]["last_used_by"].as_str().unwrap().starts_with("root/"), "{last:?}");
    let retire = ["key", "versions", "retire", key, "--version", id(used)];
    let refusal = refused(&run(&lab, ready, &retire), 5);
    assert_eq!(refusal["error"]["code"], "Rejected.HasDependants");
    assert_eq!(refusal["error"]["dependants"][0]["kind"], "callers", "{refusal}");
    let waits = [&retire[..], &["--when-free"]].concat();
    assert_eq!(run(&lab, ready, &waits).code, 5, "that would be for ever");
    let forced = [&retire[..], &["--override", key, "--reason", "wiped"]].concat();
    assert_eq!(lab.cli(ready, &forced)["state"], "retired");
    let decrypt = ["decrypt", "-i", &sealed, "-o", &opened];
    let refusal = refused(&run(&lab, ready, &decrypt), 1);
    assert!(refusal.to_string().contains("retired"), "{refusal}");
    lab.cli(ready, &["key", "versions", "reinstate", key, "--version", id(used)]);
    assert_eq!(run(&lab, ready, &decrypt).code, 0);
    assert_eq!(fs::read_to_string(opened).unwrap(), "value");
    let impact = lab.cli(ready, &["key", "impact", key]);
    assert_eq!(impact["versions"][1]["used_by_callers"], true);
    assert!(impact["versions"][1]["last_use"]["by"].is_string(), "{impact}");
    assert_eq!(impact["versions"][0]["never_used"], true, "{impact}");
    // Of what callers encrypted nothing is written down; it is told all the same.
    assert_eq!(impact["unwritten"][0]["kind"], "callers", "{impact}");
    assert_eq!(impact["versions"][1]["needed"], true, "{impact}");
}

#[test]
fn an_override_takes_two_people() {
    let lab = Lab::new();
    let up = lab.up();
    let ready = &up.ready;
    let on = ["operator", "guard", "--second-person", "on", "--reason", "a rule"];
    assert_eq!(lab.cli(ready, &on)["second_person"]["on"], true);
    // A backup that is kept needs the key.
    let version = versions(&lab, ready, KEY)[0].clone();
    let dependant = serde_json::json!({
        "kind": "backup", "id": "monday", "name": "monday", "seen_at": "2026-01-01T00:00:00Z",
        "versions": { id(&version): 7 },
    });
    put(&lab, ready, &dependant);
    let disable = ["key", "disable", KEY, "--override", KEY, "--reason", "it is over"];
    let refusal = refused(&run(&lab, ready, &disable), 5);
    assert_eq!(refusal["error"]["code"], "Rejected.AwaitsSecondPerson", "{refusal}");
    let waiting = lab.cli(ready, &["key", "overrides"]);
    let [request] = &waiting["items"].as_array().unwrap()[..] else { panic!("{waiting}") };
    assert_eq!(request["reason"], "it is over");
    let request = request["id"].as_str().unwrap();
    let confirm = ["key", "confirm-override", request];
    let refusal = refused(&run(&lab, ready, &confirm), 4);
    assert_eq!(refusal["error"]["code"], "Forbidden.SamePerson");
    let state = |lab: &Lab| lab.cli(ready, &["key", "describe", KEY])["key_state"].clone();
    assert_eq!(state(&lab), "Enabled");
    // A local administrator is somebody else.
    let done = run_local(&lab, ready, &confirm);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(state(&lab), "Disabled");
    // Neither the setting nor what stands in the way goes by one person.
    for alone in [
        &["operator", "guard", "--second-person", "off", "--reason", "no"][..],
        &["key", "dependants", KEY, "--remove", "backup/monday", "--reason", "no"],
    ] {
        let refusal = refused(&run(&lab, ready, alone), 5);
        assert_eq!(refusal["error"]["code"], "Rejected.AwaitsSecondPerson", "{alone:?}");
    }
    let waiting = lab.cli(ready, &["key", "overrides"]);
    let off = waiting["items"].as_array().unwrap().iter();
    let mut off = off.filter(|one| one["proposed"]["action"] == "second_person_off");
    let off = off.next().unwrap()["id"].as_str().unwrap();
    assert_eq!(run_local(&lab, ready, &["key", "confirm-override", off]).code, 0);
    assert_eq!(lab.cli(ready, &["operator", "guard"])["second_person"]["on"], false);
}

/// Writes a dependant down as whoever catalogues backups does.
fn put(lab: &Lab, ready: &Ready, dependant: &Value) {
    let file = lab.path("dependant.json");
    fs::write(&file, dependant.to_string()).unwrap();
    let key = lab.cli(ready, &["key", "describe", KEY])["key_id"].as_str().unwrap().to_owned();
    let url = format!("http://localhost/v1/keys/{key}/dependants");
    let socket = ready.admin_socket.display().to_string();
    let body = format!("@{}", file.display());
    let answer = std::process::Command::new("curl")
        .args(["-sS", "--fail-with-body", "--unix-socket", &socket, "-X", "PUT"])
        .args(["-H", "content-type: application/json", "--data-binary", &body, &url])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success(), "{said}{}", String::from_utf8_lossy(&answer.stderr));
}

#[test]
fn a_cluster_is_let_go() {
    let lab = Lab::new();
    let up = lab.up();
    let ready = &up.ready;
    let out = lab.path("identity").display().to_string();
    lab.cli(ready, &["cluster", "add", "prod", "--out", &out]);
    // Nothing can be withdrawn, or done by itself, where nothing is registered.
    let withdraw = ["cluster", "remove-access", "prod", "--reason", "no"];
    assert_eq!(run(&lab, ready, &withdraw).code, 3);
    let set = ["cluster", "set", "prod", "--rotate-automatically", "on"];
    assert_eq!(run(&lab, ready, &set).code, 3);
    assert_eq!(run(&lab, ready, &["cluster", "forget", "none", "--reason", "x"]).code, 3);
    lab.cli(ready, &["cluster", "forget", "prod", "--reason", "it was a trial"]);
    let left = lab.cli(ready, &["cluster", "list"]);
    let names = left["items"].as_array().unwrap().iter().map(|one| one["name"].clone());
    assert!(names.into_iter().all(|name| name != "prod"), "{left}");
}
