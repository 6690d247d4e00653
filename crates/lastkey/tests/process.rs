//! Process tests: the real binary, real sockets, and what scripts rely on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "process/guard.rs"]
mod guard;
mod support;

use lastkey_testbed::{Client, Daemon, Outcome, Ready, Running};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{KEY, Lab, PLAINTEXT};

/// What stops within ten seconds by contract.
const STOP: Duration = Duration::from_secs(10);

#[test]
fn the_ready_line_names_everything_and_all_of_it_lies_in_the_data_directory() {
    let lab = Lab::new();
    let up = lab.up();
    let data = lab.path("data");
    let line: serde_json::Value = serde_json::from_str(&up.line).unwrap();
    let files = [
        "ca_file",
        "credentials_file",
        "admin_socket",
        "plugin_socket",
        "plugin_cert_file",
        "plugin_key_file",
        "encryption_config_file",
    ];
    for name in files {
        let path = Path::new(line[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")));
        assert!(path.starts_with(&data) && path.exists(), "{name}: {}", path.display());
    }
    assert!(up.ready.url.starts_with("https://127.0.0.1:"), "{}", up.ready.url);
    assert!(!up.ready.key_id.is_empty());
    for secret in [&up.ready.credentials_file, &up.ready.plugin_key_file] {
        let mode = fs::metadata(secret).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", secret.display());
    }
    let credentials = credentials(&up.ready);
    for name in ["url", "ca_file", "access_key_id", "access_key_secret"] {
        assert!(credentials[name].is_string(), "{name} in {}", up.ready.credentials_file.display());
    }
    assert!(data.join("audit").is_dir());
    let config = fs::read_to_string(&up.ready.encryption_config_file).unwrap();
    let socket = format!("unix://{}", up.ready.plugin_socket.display());
    assert!(
        config.contains("kind: EncryptionConfiguration") && config.contains(&socket),
        "{config}"
    );
    let size = folder_size(&data);
    assert!(size <= 48 << 20, "a first start takes {size} bytes of disk");
}

#[test]
fn health_and_metrics_need_no_credentials_and_nothing_else_goes_without() {
    let lab = Lab::new();
    let up = lab.up();
    let client = up.client().unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(client.get(path).unwrap().status, 200, "{path}");
    }
    for path in ["/v1/status", "/v1/clusters", "/v1/audit", "/?Action=ListKeys&Version=2016-01-20"]
    {
        let answer = client.get(path).unwrap();
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
    }
    // Not without TLS either.
    assert!(
        Client::plain(up.ready.address()).get("/healthz").is_err_and(|_| true)
            || Client::plain(up.ready.address()).get("/healthz").unwrap().status >= 400
    );
}

#[test]
fn a_second_start_resumes() {
    let lab = Lab::new();
    let mut first = lab.up();
    let (key_id, address) = (first.ready.key_id.clone(), first.ready.address().to_owned());
    let file = lab.path("plain");
    fs::write(&file, PLAINTEXT).unwrap();
    let sealed = lab.path("sealed");
    encrypt(&lab, &first.ready, &file, &sealed);
    let before = credentials(&first.ready);
    assert!(first.stop().unwrap().success());
    let second = lab.lastkey.up(&lab.path("data"), &address).unwrap();
    assert_eq!(second.ready.key_id, key_id);
    assert_eq!(credentials(&second.ready), before);
    let opened = lab.path("opened");
    decrypt(&lab, &second.ready, &sealed, &opened).expect_ok("decrypt").unwrap();
    assert_eq!(fs::read_to_string(opened).unwrap(), PLAINTEXT);
}

#[test]
fn signals_stop_cleanly_even_with_a_connection_open() {
    for (verb, signal) in [("up", Signal::INT), ("up", Signal::TERM), ("server", Signal::INT)] {
        let lab = Lab::new();
        let mut running = match verb {
            "up" => lab.up(),
            _ => lab.lastkey.server(&lab.path("data"), "127.0.0.1:0").unwrap(),
        };
        let _idle = std::net::TcpStream::connect(running.ready.address()).unwrap();
        let status = running.process.stop(signal, STOP).unwrap();
        assert_eq!(status.code(), Some(0), "{verb} after {signal:?}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let lab = Lab::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let data = lab.path("data");
    let options = ["up", "--data-dir", data.to_str().unwrap(), "--listen", &address];
    let (code, log) = fails_to_start(&lab, &options);
    assert_eq!(code, 1, "{log}");
    let (host, port) = address.split_once(':').unwrap();
    assert!(log.contains(host) && log.contains(port), "the address is named: {log}");
}

#[test]
fn options_that_cannot_work_leave_nothing_behind() {
    let lab = Lab::new();
    let data = lab.path("data");
    let fixed = ["--data-dir", data.to_str().unwrap()];
    for (wrong, named) in [
        (&["--listen", "127.0.0.1:0", "--seal", "pkcs11"][..], "--pkcs11-module"),
        (&["--listen", "127.0.0.1:0", "--tls-name", "https://kms.example"], "https://kms.example"),
        (&["--listen", "7343"], "HOST:PORT"),
    ] {
        for verb in ["up", "server"] {
            let (code, log) = fails_to_start(&lab, &[&[verb], &fixed[..], wrong].concat());
            assert_eq!(code, 2, "{wrong:?}: {log}");
            assert!(log.contains(named) && !log.contains("PUBLIC KEY"), "{wrong:?}: {log}");
            assert!(!data.exists(), "{verb} {wrong:?} has made something");
        }
    }
    let missing = ["--tls-cert", "/missing.pem", "--tls-key", "/missing.key"];
    let (code, log) = fails_to_start(&lab, &[&["server"], &fixed[..], &missing].concat());
    assert!(code == 1 && log.contains("/missing.pem"), "{log}");
    assert!(!data.exists());
}

#[test]
fn an_unwritable_directory_is_named() {
    let lab = Lab::new();
    // Root may write anywhere, but not below a file.
    let file = lab.path("file");
    fs::write(&file, "").unwrap();
    let data = file.join("data");
    let data = data.to_str().unwrap();
    let (code, log) = fails_to_start(&lab, &["up", "--data-dir", data, "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains(data), "the directory is named: {log}");
}

#[test]
fn a_store_in_use_is_left_alone() {
    let lab = Lab::new();
    let up = lab.up();
    let data = lab.path("data");
    let data = data.to_str().unwrap();
    for verb in ["up", "server"] {
        let options = [verb, "--data-dir", data, "--listen", "127.0.0.1:0"];
        let (code, log) = fails_to_start(&lab, &options);
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("in use"), "the reason is said: {log}");
    }
    lab.cli(&up.ready, &["key", "list"]);
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_its_limit() {
    let lab = Lab::new();
    let data = lab.path(&"long".repeat(30));
    let data = data.to_str().unwrap();
    let (code, log) = fails_to_start(&lab, &["up", "--data-dir", data, "--listen", "127.0.0.1:0"]);
    assert!(code == 1 || code == 2, "code {code}: {log}");
    assert!(log.contains("107") && log.contains("--data-dir"), "the way out is said: {log}");
}

#[test]
fn exit_codes_tell_causes_apart() {
    let lab = Lab::new();
    let mut up = lab.up();
    let ready = up.ready.clone();
    let code = |file: &Path, args: &[&str]| {
        let outcome = lab.lastkey.cli(Some(file), args).unwrap();
        assert!(outcome.code == 0 || !outcome.stderr.is_empty(), "a failure says why: {outcome:?}");
        outcome.code
    };
    let ours = &ready.credentials_file;
    assert_eq!(code(ours, &["key", "list"]), 0);
    assert_eq!(code(ours, &["key", "frobnicate"]), 2);
    assert_eq!(code(ours, &["key", "describe", "alias/nobody"]), 3);
    // A name that is none becomes no directory.
    let unnamed = lab.path("No Name");
    assert_eq!(code(ours, &["cluster", "add", unnamed.to_str().unwrap()]), 1);
    assert_eq!(code(ours, &["cluster", "add", ""]), 1);
    assert!(!unnamed.exists());
    let mut forged = credentials(&ready);
    forged["access_key_secret"] = "forged".into();
    let stranger = lab.path("stranger.json");
    fs::write(&stranger, forged.to_string()).unwrap();
    assert_eq!(code(&stranger, &["key", "list"]), 4);
    assert_eq!(code(ours, &["key", "protect", KEY]), 0);
    assert_eq!(code(ours, &["key", "delete", KEY]), 5);
    assert!(up.stop().unwrap().success());
    assert_eq!(code(ours, &["key", "list"]), 6);
}

#[test]
fn nothing_ends_because_standard_error_cannot_be_written() {
    let lab = Lab::new();
    let data = lab.path("data");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut server = Command::new(lab.lastkey.binary())
        .args(["up", "--listen", "127.0.0.1:0", "--output", "json", "--data-dir"])
        .arg(&data)
        .env("LASTKEY_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(full())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Ready = serde_json::from_str(&line).expect("it starts");
    let cli = |args: &[&str]| {
        let mut command = Command::new(lab.lastkey.binary());
        command.args(args).env("LASTKEY_CREDENTIALS", &ready.credentials_file);
        command
    };
    let code = |mut command: Command| command.stderr(full()).status().unwrap().code();
    assert_eq!(
        code(cli(&["key", "describe", "alias/nobody"])),
        Some(3),
        "the cause, though unsaid"
    );
    // What was to be read is not there: that is a failure, and it says what was done.
    let unheard = cli(&["key", "create", "--alias", "alias/unheard"]).stdout(full()).output();
    let unheard = unheard.unwrap();
    let said = String::from_utf8(unheard.stderr).unwrap();
    assert_eq!(unheard.status.code(), Some(1), "{said}");
    assert!(said.contains("did its work") && said.contains("standard output"), "{said}");
    assert_eq!(code(cli(&["key", "describe", "alias/unheard"])), Some(0));
    let pid = Pid::from_child(&server);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0), "it stops cleanly");
}

#[test]
fn a_result_without_a_place_to_go_is_not_made() {
    let lab = Lab::new();
    let up = lab.up();
    let with = |redirected: &str, args: &[&str]| {
        Command::new("sh")
            .args(["-c", &format!("exec \"$0\" \"$@\" {redirected}")])
            .arg(lab.lastkey.binary())
            .args(args)
            .env("LASTKEY_CREDENTIALS", &up.ready.credentials_file)
            .output()
            .unwrap()
    };
    let create = ["key", "create", "--alias", "alias/unheard"];
    let split = ["operator", "init", "--shares", "3", "--threshold", "2"];
    let split = [&split[..], &["--admin-socket", "/nowhere"]].concat();
    // Closed, or open for reading alone, which a write would not tell either.
    for redirected in [">&-", "1</dev/null", "<&- >&-"] {
        for args in [&create[..], &split] {
            let unheard = with(redirected, args);
            let said = String::from_utf8(unheard.stderr).unwrap();
            assert_eq!(unheard.status.code(), Some(2), "{redirected}: {said}");
            assert!(said.contains("standard output is closed"), "{redirected}: {said}");
        }
    }
    assert_eq!(with(">&- 2>&-", &create).status.code(), Some(2));
    // Who names the null device means it.
    assert_eq!(with("", &["key", "describe", "alias/unheard"]).status.code(), Some(3));
    for (n, redirected) in [">/dev/null", "<&-", "<>/dev/null 1>&0"].into_iter().enumerate() {
        let alias = format!("alias/heard-{n}");
        let made = with(redirected, &["key", "create", "--alias", &alias]);
        assert_eq!(made.status.code(), Some(0), "{redirected}");
        assert_eq!(with("", &["key", "describe", &alias]).status.code(), Some(0));
    }
}

#[test]
fn wrong_usage_is_told_to_scripts_as_every_error_is() {
    let lab = Lab::new();
    let run = |args: &[&str]| {
        let output = Command::new(lab.lastkey.binary()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (args, why) in [
        (&["key", "tag", "alias/a", "novalue", "--output", "json"][..], "novalue"),
        (&["--output=json", "key", "create", "--spec", "rsa"], "rsa"),
        (&["key", "--output", "json"], "--help"),
        (&["encrypt", "plan.txt", "--output", "json"], "--key"),
    ] {
        let said: serde_json::Value = serde_json::from_str(&run(args)).expect("one object");
        let error = &said["error"];
        assert!(error["exit_code"] == 2 && error["code"].is_null(), "{said}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(why) && message.contains("--help"), "{said}");
    }
    let said = run(&["key", "frobnicate"]);
    assert!(said.starts_with("error: ") && said.contains("\n\nUsage: "), "{said}");
}

#[test]
fn a_key_goes_through_its_life_by_the_command_line() {
    let lab = Lab::new();
    let up = lab.up();
    let cli = |args: &[&str]| lab.cli(&up.ready, args);
    let made = cli(&["key", "create", "--description", "by a test"]);
    let id = key_id(&made).unwrap_or_else(|| panic!("no key id in {made}"));
    let listed = cli(&["key", "list"]);
    assert!(listed["items"].as_array().unwrap().iter().any(|k| key_id(k).as_ref() == Some(&id)));
    for verb in ["describe", "rotate", "disable", "enable", "delete", "cancel-deletion"] {
        cli(&["key", verb, &id]);
    }
    let log = cli(&["audit", "query", "--key", &id]);
    assert!(log["items"].as_array().is_some_and(|items| items.len() >= 6), "audited: {log}");
    cli(&["audit", "verify"]);
    cli(&["status"]);
}

#[test]
fn files_are_sealed_and_damage_is_seen() {
    let lab = Lab::new();
    let up = lab.up();
    for size in [0, 1, 1 << 20, (3 << 20) + 17] {
        let plain: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        let dir = lab.folder(&format!("{size}"));
        let [source, sealed, opened] = ["plain", "sealed", "opened"].map(|name| dir.join(name));
        fs::write(&source, &plain).unwrap();
        encrypt(&lab, &up.ready, &source, &sealed);
        decrypt(&lab, &up.ready, &sealed, &opened).expect_ok("decrypt").unwrap();
        assert!(fs::read(&opened).unwrap() == plain, "{size} bytes");
        fs::remove_file(&opened).unwrap();
        // One bit changed, or the end cut off: no file comes into being.
        let good = fs::read(&sealed).unwrap();
        let mut flipped = good.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        for bad in [&flipped[..], &good[..good.len() - 1]] {
            fs::write(&sealed, bad).unwrap();
            let outcome = decrypt(&lab, &up.ready, &sealed, &opened);
            assert_ne!(outcome.code, 0, "{size} bytes");
            assert!(!opened.exists(), "nothing is left behind");
        }
    }
}

#[test]
fn pipes_are_sealed() {
    let lab = Lab::new();
    let up = lab.up();
    let sealed = pipe(&lab, &up, &["encrypt", "--key", KEY], PLAINTEXT.as_bytes());
    assert!(!sealed.windows(PLAINTEXT.len()).any(|w| w == PLAINTEXT.as_bytes()));
    assert_eq!(pipe(&lab, &up, &["decrypt"], &sealed), PLAINTEXT.as_bytes());
}

#[test]
fn a_changed_audit_log_is_seen() {
    let lab = Lab::new();
    let up = lab.up();
    lab.cli(&up.ready, &["key", "create", "--description", "seen"]);
    lab.cli(&up.ready, &["audit", "verify"]);
    let mut files =
        fs::read_dir(lab.path("data/audit")).unwrap().map(|entry| entry.unwrap().path());
    // Beside the segments lie the checkpoints.
    let segment = files.find(|path| path.extension() == Some("jsonl".as_ref())).unwrap();
    let text = fs::read_to_string(&segment).unwrap();
    let changed = text.replacen("CreateKey", "DeleteKey", 1);
    assert_ne!(changed, text, "there is a record of the creation in {}", segment.display());
    fs::write(&segment, changed).unwrap();
    let outcome = lab.lastkey.cli(Some(&up.ready.credentials_file), &["audit", "verify"]).unwrap();
    assert_ne!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn no_secret_reaches_the_log() {
    let lab = Lab::new();
    let up = lab.up();
    pipe(&lab, &up, &["encrypt", "--key", KEY], PLAINTEXT.as_bytes());
    let secret = credentials(&up.ready)["access_key_secret"].as_str().unwrap().to_owned();
    let log = up.process.log();
    assert!(!log.contains(&secret) && !up.line.contains(&secret));
    assert!(!log.contains(PLAINTEXT));
}

fn credentials(ready: &Ready) -> serde_json::Value {
    serde_json::from_slice(&fs::read(&ready.credentials_file).unwrap()).unwrap()
}

fn key_id(json: &serde_json::Value) -> Option<String> {
    ["key_id", "KeyId", "id"].iter().find_map(|name| json[name].as_str()).map(str::to_owned)
}

fn encrypt(lab: &Lab, ready: &Ready, source: &Path, target: &Path) {
    let [source, target] = [source, target].map(|path| path.to_str().unwrap());
    let args = ["encrypt", "--key", KEY, "-i", source, "-o", target];
    lab.lastkey.cli(Some(&ready.credentials_file), &args).unwrap().expect_ok("encrypt").unwrap();
}

fn decrypt(lab: &Lab, ready: &Ready, source: &Path, target: &Path) -> Outcome {
    let [source, target] = [source, target].map(|path| path.to_str().unwrap());
    let args = ["decrypt", "-i", source, "-o", target];
    lab.lastkey.cli(Some(&ready.credentials_file), &args).unwrap()
}

fn pipe(lab: &Lab, up: &Running, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(lab.lastkey.binary())
        .args(args)
        .env("LASTKEY_CREDENTIALS", &up.ready.credentials_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "lastkey {}", args.join(" "));
    output.stdout
}

/// Starts a long-running command that cannot work; gives its exit code and what it said.
fn fails_to_start(lab: &Lab, args: &[&str]) -> (i32, String) {
    let mut process: Daemon = lab.lastkey.start("failing", args.iter().map(OsStr::new)).unwrap();
    let status = process.wait(Duration::from_secs(30)).unwrap();
    (status.code().unwrap_or(-1), process.log())
}

fn folder_size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { folder_size(&entry.path()) } else { meta.len() }
        })
        .sum()
}
