//! The audit log on the command line: sinks, checkpoints, offline verification, retention.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_lastkey");

/// A server of its own, whose standard output is read.
struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    ready: Value,
    place: PathBuf,
}

impl Server {
    fn start(place: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["server", "--listen", "127.0.0.1:0", "--output", "json", "--data-dir"])
            .arg(place)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap();
        Self { child, out, ready, place: place.to_owned() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY)
            .args(arguments)
            .arg("--credentials")
            .arg(self.ready["credentials_file"].as_str().unwrap())
            .output()
            .unwrap()
    }

    fn work(&self, count: usize) {
        for _ in 0..count {
            assert!(self.run(&["key", "list"]).status.success());
        }
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn offline(directory: &Path, key: &Path) -> Output {
    Command::new(BINARY)
        .args(["audit", "verify", "--output", "json", "--offline"])
        .arg(directory)
        .arg("--public-key")
        .arg(key)
        .output()
        .unwrap()
}

fn last(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn an_outsider_verifies_a_copy_with_the_public_key_alone() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&place.path().join("data"), &["--audit-segment-bytes", "4k"]);
    server.work(20);
    let key = place.path().join("public.pem");
    let printed = server.run(&["audit", "public-key"]);
    assert!(printed.status.success());
    fs::write(&key, &printed.stdout).unwrap();
    assert_eq!(fs::read(server.place.join("audit-public-key.pem")).unwrap(), printed.stdout);
    let live = server.run(&["audit", "verify", "--output", "json"]);
    assert!(live.status.success());
    let report = last(&live);
    assert_eq!((&report["event"], &report["ok"]), (&"report".into(), &true.into()), "{report}");
    let human = String::from_utf8(server.run(&["audit", "verify"]).stdout).unwrap();
    assert!(human.contains("all as they were written"), "{human}");
    let data = server.place.clone();
    server.stop();

    let found = offline(&data, &key);
    assert!(found.status.success(), "{found:?}");
    let report = last(&found);
    assert!(report["records"].as_u64().unwrap() > 20);
    assert_eq!(report["uncovered"], 0, "the last checkpoint is of the end: {report}");
    // Another key, a changed record, no key at all.
    let other = Server::start(&place.path().join("other"), &[]);
    let foreign = other.place.join("audit-public-key.pem");
    assert_eq!(offline(&data, &foreign).status.code(), Some(1));
    other.stop();
    let packed = fs::read_dir(data.join("audit")).unwrap().map(|entry| entry.unwrap().path());
    let packed: Vec<PathBuf> =
        packed.filter(|path| path.extension().is_some_and(|ending| ending == "zst")).collect();
    assert!(!packed.is_empty(), "closed segments are compressed by default");
    let mut bytes = fs::read(&packed[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packed[0], bytes).unwrap();
    let found = offline(&data, &key);
    assert_eq!(found.status.code(), Some(1));
    assert_eq!(last(&found)["ok"], false);
    let alone = Command::new(BINARY).args(["audit", "verify", "--offline", "x"]).output().unwrap();
    assert_eq!(alone.status.code(), Some(2));
}

#[test]
fn a_search_finds_what_was_meant_or_says_what_is_wrong() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&place.path().join("data"), &[]);
    let made = last(&server.run(&["key", "create", "--alias", "alias/a", "--output", "json"]));
    let id = made["key_id"].as_str().unwrap();
    server.run(&["key", "create", "--alias", "alias/b"]);
    let plain = place.path().join("plain");
    fs::write(&plain, "attack at dawn").unwrap();
    let sealed = place.path().join("plain.lastkey");
    let [plain, sealed] = [&plain, &sealed].map(|path| path.to_str().unwrap());
    assert!(server.run(&["encrypt", "--key", "alias/a", plain]).status.success());
    assert!(server.run(&["rewrap", "--key", "alias/b", sealed]).status.success());

    // By id and by name; a key from which something was re-encrypted was used.
    let query = |more: &[&str]| {
        let found = server.run(&[&["audit", "query", "--output", "json"], more].concat());
        assert!(found.status.success(), "{found:?}");
        last(&found)["items"].as_array().unwrap().clone()
    };
    for key in [id, "alias/a"] {
        let found = query(&["--key", key, "--action", "reencrypt", "--outcome", "OK"]);
        assert_eq!(found.len(), 1, "{key}: {found:?}");
        assert_eq!(found[0]["source_key"], id);
    }
    assert!(!query(&["--limit", "10000"]).is_empty());

    // What can find nothing is not answered by nothing.
    for (wrong, code) in [
        (&["--key", "alias/none"][..], 3),
        (&["--limit", "0"], 2),
        (&["--limit", "10001"], 2),
        (&["--from", "yesterday"], 1),
        (&["--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z"], 1),
    ] {
        let refused = server.run(&[&["audit", "query"], wrong].concat());
        assert_eq!(refused.status.code(), Some(code), "{wrong:?}");
    }
    let strange = server.run(&["audit", "query", "--action", "Encrpt"]);
    assert!(strange.status.success());
    assert!(String::from_utf8_lossy(&strange.stderr).contains("no action Encrpt"));
    assert!(
        server
            .run(&["audit", "tail", "-n", "0", "--output", "json"])
            .stdout
            .starts_with(b"{\"items\":[]")
    );

    // A witness that says nothing is none.
    let empty = place.path().join("empty.log");
    fs::write(&empty, "\n").unwrap();
    let data = server.place.clone();
    server.stop();
    let key = data.join("audit-public-key.pem");
    let [data, key, empty] = [&data, &key, &empty].map(|path| path.to_str().unwrap());
    let offline = ["audit", "verify", "--offline", data, "--public-key", key];
    let run = |more: &[&str]| {
        Command::new(BINARY).args(offline).args(more).output().unwrap().status.code()
    };
    assert_eq!((run(&[]), run(&["--checkpoint", empty])), (Some(0), Some(2)));
}

#[test]
fn what_is_no_log_or_no_checkpoint_is_the_wrong_argument() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&place.path().join("data"), &[]);
    server.work(1);
    let (data, key) = (server.place.clone(), server.place.join("audit-public-key.pem"));
    server.stop();
    let refused = |output: Output, why: &str| {
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    };
    let nothing = place.path().join("nothing");
    fs::create_dir(&nothing).unwrap();
    refused(offline(&nothing, &key), "no audit log in");
    fs::create_dir(nothing.join("audit")).unwrap();
    refused(offline(&nothing, &key), "no audit log in");
    refused(offline(&place.path().join("dta"), &key), "No such file");

    // A log of which something is left was tampered with, and so was one that lacks what a
    // checkpoint says.
    let checkpoints = fs::read_to_string(data.join("audit/checkpoints.log")).unwrap();
    fs::write(nothing.join("audit/checkpoints.log"), &checkpoints).unwrap();
    assert_eq!(offline(&nothing, &key).status.code(), Some(1));

    let witnessed = |text: &str| {
        let witness = place.path().join("witness.log");
        fs::write(&witness, text).unwrap();
        let mut verify = Command::new(BINARY);
        verify.args(["audit", "verify", "--offline"]).arg(&data).arg("--public-key").arg(&key);
        verify.arg("--checkpoint").arg(&witness).output().unwrap()
    };
    assert!(witnessed(&checkpoints).status.success());
    assert!(witnessed(&checkpoints.replace('\n', "\r\n\n")).status.success());
    refused(witnessed("Dear auditor,\n"), "line 1 is no checkpoint");
    refused(witnessed(&format!("{checkpoints}{{}}\n")), "is no checkpoint");
    let forged = checkpoints.lines().next().unwrap().replace("\"seq\":", "\"seq\":9");
    assert_eq!(witnessed(&forged).status.code(), Some(1));
}

#[test]
fn following_ends_when_nothing_more_can_be_written() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&place.path().join("data"), &[]);
    let follow = |out: Stdio| {
        Command::new(BINARY)
            .args(["audit", "tail", "--follow", "--lines", "1000", "--credentials"])
            .arg(server.ready["credentials_file"].as_str().unwrap())
            .stdout(out)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let ended = |mut child: Child| {
        let started = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
            }
            server.work(1);
        }
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // A reader that has read enough.
    let mut read = follow(Stdio::piped());
    let mut line = String::new();
    BufReader::new(read.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(ended(read), (Some(0), String::new()));
    // A disk without room.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (code, said) = ended(follow(full.into()));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("could not be written to standard output"), "{said}");
    server.stop();
}

#[test]
fn segments_that_are_not_compressed_stay_as_they_were_written() {
    let place = tempfile::tempdir().unwrap();
    let options = ["--audit-segment-bytes", "4k", "--audit-compress", "off"];
    let server = Server::start(&place.path().join("data"), &options);
    server.work(40);
    let data = server.place.clone();
    server.stop();
    let names = fs::read_dir(data.join("audit")).unwrap();
    let names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().filter(|name| name.ends_with(".jsonl")).count() > 2, "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with(".zst")), "{names:?}");
    assert!(offline(&data, &data.join("audit-public-key.pem")).status.success());
}

#[test]
fn standard_output_gets_the_ready_line_first_and_then_every_record() {
    let place = tempfile::tempdir().unwrap();
    let mut server = Server::start(place.path(), &["--audit-sink", "stdout"]);
    assert!(server.ready["url"].is_string());
    server.work(3);
    let mut lists = 0;
    let mut line = String::new();
    while lists < 3 {
        line.clear();
        assert!(server.out.read_line(&mut line).unwrap() > 0);
        let record: Value = serde_json::from_str(&line).unwrap();
        assert!(record["seq"].is_u64(), "{record}");
        lists += usize::from(record["action"] == "ListKeys");
    }
    let status = last(&server.run(&["status", "--output", "json"]));
    assert_eq!(status["audit_sinks"][0]["sink"], "stdout");
    assert_eq!(status["audit_sinks"][0]["ok"], true);
    server.stop();
}

#[test]
fn a_reader_that_does_not_read_and_a_sink_that_is_not_there_stop_nobody() {
    let place = tempfile::tempdir().unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}/in", gone.local_addr().unwrap());
    drop(gone);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let slow = format!("syslog+tcp://{}", held.local_addr().unwrap());
    let sinks = ["--audit-sink", "stdout", "--audit-sink", &dead, "--audit-sink", &slow];
    let server = Server::start(place.path(), &sinks);
    // More than a pipe holds.
    let many: Vec<_> = (0..4)
        .map(|_| {
            let credentials = server.ready["credentials_file"].as_str().unwrap().to_owned();
            std::thread::spawn(move || {
                for _ in 0..40 {
                    let listed = Command::new(BINARY)
                        .args(["key", "list", "--credentials", &credentials])
                        .output()
                        .unwrap();
                    assert!(listed.status.success());
                }
            })
        })
        .collect();
    many.into_iter().for_each(|one| one.join().unwrap());
    let mut dead = Value::Null;
    for _ in 0..100 {
        let status = last(&server.run(&["status", "--output", "json"]));
        dead = status["audit_sinks"][1].clone();
        if dead["ok"] == false {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(dead["lag"].as_u64().unwrap() > 0 && dead["error"].is_string(), "{dead}");
    server.stop();
}

#[test]
fn options_that_make_no_sense_are_wrong_usage() {
    for wrong in [
        ["--audit-sink", "http://siem.example/"],
        ["--audit-sink", "carrier-pigeon"],
        ["--audit-segment-bytes", "1"],
        ["--audit-retain-days", "0"],
        ["--audit-retain-bytes", "much"],
        ["--audit-compress", "perhaps"],
    ] {
        let refused = Command::new(BINARY).arg("server").args(wrong).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
        // and it is the value that is wrong
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains(&format!("invalid value '{}'", wrong[1])), "{said}");
    }
}

/// What a script's empty variable gives is no filter that everything matches.
#[test]
fn an_empty_filter_is_wrong_usage() {
    for filter in
        ["--from", "--to", "--principal", "--key", "--action", "--outcome", "--context-key"]
    {
        let refused = Command::new(BINARY).args(["audit", "query", filter, ""]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{filter}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("a value is required for") && said.contains(filter), "{said}");
    }
}

#[test]
fn when_the_log_was_signed_last_is_in_the_metrics() {
    let signed = |server: &Server| -> u64 {
        let socket = server.ready["admin_socket"].as_str().unwrap();
        let asked = ["-sS", "--unix-socket", socket, "http://localhost/metrics"];
        let page = String::from_utf8(Command::new("curl").args(asked).output().unwrap().stdout);
        let page = page.unwrap();
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix("lastkey_audit_checkpoint_seconds "));
        value.unwrap_or_else(|| panic!("{page}")).parse().unwrap()
    };
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let server = Server::start(&data, &[]);
    assert_eq!(signed(&server), 0);
    server.stop();
    // A clean end signs.
    let server = Server::start(&data, &[]);
    let newest = fs::metadata(data.join("audit/checkpoints.log")).unwrap().mtime();
    assert!(newest.unsigned_abs().abs_diff(signed(&server)) < 600);
    server.stop();
}
