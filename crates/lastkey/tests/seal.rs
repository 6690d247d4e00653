//! Process tests of the seal: the real binary, from `operator init` to a change of the seal.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lastkey_testbed::{Outcome, Running};
use serde_json::Value;
use support::{Lab, PLAINTEXT, SOON};

/// Runs `lastkey … --output json` with a line on standard input.
pub(crate) fn with_input(lab: &Lab, args: &[&str], input: &str) -> Outcome {
    let mut child = Command::new(lab.lastkey.binary())
        .args(args)
        .args(["--output", "json"])
        .env_remove("LASTKEY_CREDENTIALS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A server or `up`, and its operator on the admin socket.
struct Site {
    lab: Lab,
    running: Option<Running>,
}

impl Site {
    fn start(verb: &str, options: &[&str]) -> Self {
        let mut site = Self { lab: Lab::new(), running: None };
        site.restart(verb, options);
        site
    }

    fn restart(&mut self, verb: &str, options: &[&str]) {
        if let Some(mut running) = self.running.take() {
            let status = running.stop().unwrap();
            assert_eq!(status.code(), Some(0), "{}", running.process.log());
        }
        let data = self.data();
        let fixed = [verb, "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let args: Vec<&OsStr> = fixed.iter().chain(options).map(OsStr::new).collect();
        self.running = Some(self.lab.lastkey.long_running(verb, args).unwrap());
    }

    fn data(&self) -> PathBuf {
        self.lab.path("data")
    }

    fn up(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn operator(&self, args: &[&str], input: &str) -> Outcome {
        let socket = self.data().join("admin.sock");
        let place = ["--admin-socket", socket.to_str().unwrap()];
        with_input(&self.lab, &[&["operator"], args, &place].concat(), input)
    }

    /// The same over the network, with the credentials and the authority of a client.
    fn over_tls(&self, args: &[&str], input: &str) -> Outcome {
        // A port may have changed since the file was written, which is made anew at an unsealing.
        let own = self.data().join("credentials.json");
        let mut text: Value = serde_json::from_slice(&fs::read(own).unwrap()).unwrap();
        text["url"] = Value::from(self.up().ready.url.as_str());
        let file = self.lab.path("keeper.json");
        fs::write(&file, text.to_string()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let place = ["--credentials", file.to_str().unwrap()];
        with_input(&self.lab, &[&["operator"], args, &place].concat(), input)
    }

    /// The same by somebody whose credentials lie beside the admin socket, and who names neither
    /// with the command: they lie where every command looks, or the environment names them.
    fn at_hand(&self, named: bool, args: &[&str]) -> Outcome {
        let mut command = Command::new(self.lab.lastkey.binary());
        if named {
            command.env("LASTKEY_CREDENTIALS", self.data().join("credentials.json"));
        } else {
            let configuration = self.lab.folder("configuration");
            let ours = configuration.join("lastkey");
            if !ours.exists() {
                std::os::unix::fs::symlink(self.data(), ours).unwrap();
            }
            command.env_remove("LASTKEY_CREDENTIALS").env("XDG_CONFIG_HOME", configuration);
        }
        let operator = command.arg("operator").args(args).args(["--output", "json"]);
        let output = operator.output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn ok(&self, args: &[&str], input: &str) -> Value {
        self.operator(args, input).expect_ok(&args.join(" ")).unwrap().json()
    }

    fn status(&self) -> Value {
        self.ok(&["status"], "")
    }

    fn health(&self, path: &str) -> (u16, String) {
        // Not every certificate of a sealed server proves something: the admin socket answers too.
        let url = format!("http://localhost{path}");
        let socket = self.data().join("admin.sock");
        let output = Command::new("curl")
            .args(["-s", "-w", "\n%{http_code}", "--unix-socket"])
            .arg(socket)
            .arg(url)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), body.to_owned())
    }

    fn unseal(&self, shares: &[String]) {
        for share in shares {
            self.ok(&["unseal"], share);
        }
        assert_eq!(self.status()["state"], "unsealed");
    }

    /// What the process has logged, once `text` is in it.
    fn log_with(&self, text: &str) -> String {
        let mut log = String::new();
        lastkey_testbed::eventually(text, SOON, || {
            log = self.up().process.log();
            if log.contains(text) {
                return Ok(());
            }
            Err(lastkey_testbed::Error::ReadyLine { line: log.clone(), cause: "not yet".into() })
        })
        .unwrap();
        log
    }

    fn keys(&self) -> Outcome {
        let credentials = self.data().join("credentials.json");
        self.lab.lastkey.cli(Some(&credentials), &["key", "list"]).unwrap()
    }

    fn encrypt(&self) -> PathBuf {
        let (plain, sealed) = (self.lab.path("plain"), self.lab.path("sealed"));
        fs::write(&plain, PLAINTEXT).unwrap();
        let credentials = self.data().join("credentials.json");
        let paths = [plain.to_str().unwrap(), sealed.to_str().unwrap()];
        let args = ["encrypt", "--key", "alias/app", "-i", paths[0], "-o", paths[1]];
        self.lab
            .lastkey
            .cli(Some(&credentials), &["key", "create", "--alias", "alias/app"])
            .unwrap();
        self.lab.lastkey.cli(Some(&credentials), &args).unwrap().expect_ok("encrypt").unwrap();
        sealed
    }

    fn assert_decrypts(&self, sealed: &Path) {
        let opened = self.lab.path("opened");
        let _ = fs::remove_file(&opened);
        let credentials = self.data().join("credentials.json");
        let args = ["decrypt", "-i", sealed.to_str().unwrap(), "-o", opened.to_str().unwrap()];
        self.lab.lastkey.cli(Some(&credentials), &args).unwrap().expect_ok("decrypt").unwrap();
        assert_eq!(fs::read_to_string(opened).unwrap(), PLAINTEXT);
    }

    fn logs(&self) -> String {
        self.up().process.log()
    }
}

fn shares(made: &Value) -> Vec<String> {
    let shares = made["shares"].as_array().unwrap();
    shares.iter().map(|share| share["share"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_server_under_shares_from_init_to_a_restart() {
    let mut site = Site::start("server", &["--seal", "shamir"]);
    let line: Value = serde_json::from_str(&site.up().line).unwrap();
    assert_eq!(line["sealed"], true, "{line}");
    assert!(site.logs().contains("operator init"), "{}", site.logs());
    assert_eq!(site.status()["state"], "uninitialised");
    assert_eq!(site.operator(&["init", "--shares", "3", "--threshold", "1"], "").code, 1);

    let made = site.ok(&["init", "--shares", "3", "--threshold", "2"], "");
    let shares = shares(&made);
    assert_eq!(site.operator(&["init", "--shares", "3", "--threshold", "2"], "").code, 1);
    assert_eq!(site.health("/healthz"), (200, "sealed\n".to_owned()));
    assert_eq!(site.health("/readyz").0, 503);
    // Mistyped, repeated, of nobody: refused, and nothing is lost.
    site.ok(&["unseal"], &shares[0]);
    for (wrong, code) in [
        (shares[0].clone(), 1),
        (shares[1].replace(&shares[1][80..], "0000-0000-0000"), 1),
        (String::new(), 2),
        ("what".to_owned(), 1),
    ] {
        assert_eq!(site.operator(&["unseal"], &wrong).code, code, "{wrong}");
    }
    assert_eq!(site.status()["progress"]["entered"], 1);
    site.unseal(&shares[1..2]);
    assert_eq!(site.health("/healthz"), (200, "ok\n".to_owned()));
    for secret in ["credentials.json", "server.key"] {
        let mode = fs::metadata(site.data().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    assert!(!site.data().join("root.key").exists());
    let sealed = site.encrypt();

    // Sealed: nothing but health and unseal, with the exit code of what is unavailable.
    site.ok(&["seal"], "");
    let refused = site.keys();
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(refused.stderr.contains("Unavailable.Sealed"), "{}", refused.stderr);
    assert_eq!(site.operator(&["rotate", "root"], &shares[0]).code, 6);
    assert_eq!(site.operator(&["seal"], "").code, 6);
    site.unseal(&shares[1..]);
    site.assert_decrypts(&sealed);

    // A restart is sealed, whatever it is started with; clients trust its certificate.
    site.restart("server", &[]);
    assert_eq!(site.status()["state"], "sealed");
    let client = site.up().client().unwrap();
    assert_eq!(client.get("/healthz").unwrap().status, 200);
    let status = client.get("/v1/operator/status").unwrap();
    assert_eq!(status.status, 200);
    let set = site.status()["seal"]["set"].as_str().unwrap().to_owned();
    assert!(!String::from_utf8_lossy(&status.body).contains(&set), "strangers learn the set");
    assert_eq!(client.get("/v1/status").unwrap().status, 503);
    site.unseal(&shares[..2]);
    site.assert_decrypts(&sealed);

    // No share and no secret is anywhere it should not be.
    let logs = site.logs();
    for share in &shares {
        assert!(!logs.contains(&share[20..40]), "a share is in the log");
    }
    for entry in fs::read_dir(site.data().join("audit")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        for share in &shares {
            assert!(!String::from_utf8_lossy(&bytes).contains(&share[20..40]));
        }
    }
}

/// `operator unseal`, as a shell runs it.
fn unseal_command(site: &Site) -> String {
    format!(
        "{} operator unseal --admin-socket {}",
        site.lab.lastkey.binary().display(),
        site.data().join("admin.sock").display()
    )
}

/// Runs a command at a terminal and, once it asks for a share, answers; `answer` gets what was on
/// the screen by then. Whether it went well, and what was on the screen in the end.
fn asked(command: &str, answer: impl FnOnce(&str, &mut dyn io::Write)) -> (bool, String) {
    use std::io::Read as _;
    // `script` gives the command a terminal of its own.
    let mut child = Command::new("script")
        .args(["-qec", command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("not shown): ") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    answer(&String::from_utf8_lossy(&said), &mut input);
    output.read_to_end(&mut said).unwrap();
    (child.wait().unwrap().success(), String::from_utf8_lossy(&said).into_owned())
}

/// Types an answer to the question for a share.
fn typed(site: &Site, answer: &str) -> (bool, String) {
    asked(&unseal_command(site), |_, input| input.write_all(answer.as_bytes()).unwrap())
}

#[test]
fn who_is_ended_at_the_question_leaves_a_terminal_that_shows_what_is_typed() {
    let site = Site::start("server", &["--seal", "shamir"]);
    site.ok(&["init", "--shares", "2", "--threshold", "2"], "");
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("QUIT", 131)] {
        let command =
            format!("sh -c 'echo pid=$$; exec {}'; echo ended=$?; stty -a", unseal_command(&site));
        let (_, said) = asked(&command, |said, _| {
            let pid = said.split("pid=").nth(1).unwrap().split_whitespace().next().unwrap();
            let killed = Command::new("kill").args(["-s", signal, pid]).status().unwrap();
            assert!(killed.success());
        });
        assert!(said.contains(&format!("ended={code}")), "{said}");
        assert!(said.contains(" echo ") && !said.contains("-echo "), "{signal}: {said}");
    }
}

#[test]
fn a_share_is_asked_for_without_echo() {
    let site = Site::start("server", &["--seal", "shamir"]);
    let shares = shares(&site.ok(&["init", "--shares", "2", "--threshold", "2"], ""));
    let (well, said) = typed(&site, &format!("{}\n", shares[0]));
    assert!(well && said.contains("1 of 2 shares entered"), "{said}");
    assert!(!said.contains(&shares[0][10..30]), "the share is on the screen: {said}");
    // Ctrl-C ends it at once, without a line's end, and whatever was typed before is dropped.
    let (well, said) = typed(&site, &format!("{}\u{3}", &shares[1]));
    assert!(!well && !said.contains("unsealed") && !said.contains(&shares[1][10..30]), "{said}");
    assert_eq!(site.status()["progress"]["entered"], 1);
}

impl Site {
    /// Runs the operator's command into a pipe that nobody reads any more; what it said.
    fn unread(&self, args: &[&str], input: &str) -> String {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut child = Command::new(self.lab.lastkey.binary())
            .args([&["operator"], args].concat())
            .arg("--admin-socket")
            .arg(self.data().join("admin.sock"))
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!said.contains("lks1-"), "{said}");
        said
    }
}

#[test]
fn shares_that_nobody_got_are_told_and_there_is_a_way_on() {
    let mut site = Site::start("server", &["--seal", "shamir"]);
    let init = ["init", "--shares", "3", "--threshold", "2"];
    let said = site.unread(&init, "");
    assert!(said.contains("move its data directory away"), "{said}");
    // Whoever missed that is told again.
    let again = site.operator(&init, "");
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("never unsealed"), "{}", again.stderr);
    drop(site.running.take().map(|mut running| running.stop()));
    fs::rename(site.data(), site.lab.path("away")).unwrap();
    site.restart("server", &["--seal", "shamir"]);
    let old = shares(&site.ok(&init, ""));
    site.unseal(&old[..2]);
    let sealed = site.encrypt();
    let again = site.operator(&init, "");
    assert!(again.stderr.contains("with their keepers"), "{}", again.stderr);

    // New shares that nobody got take nothing from the old ones.
    site.ok(&["rekey", "--shares", "3", "--threshold", "2"], &old[0]);
    let said = site.unread(&["rekey"], &old[1]);
    assert!(said.contains("operator cancel"), "{said}");
    site.ok(&["cancel"], "");
    site.restart("server", &["--seal", "shamir"]);
    site.unseal(&old[1..]);
    site.assert_decrypts(&sealed);
    assert!(!site.logs().contains("--seal"), "{}", site.logs());
}

#[test]
fn a_seal_that_was_asked_for_in_vain_is_told() {
    let mut site = Site::start("server", &[]);
    site.restart("server", &["--seal", "shamir"]);
    let log = site.log_with("--seal shamir is for a new data directory alone");
    assert!(log.contains("migrate --to shamir"), "{log}");
    let init = site.operator(&["init", "--shares", "3", "--threshold", "2"], "");
    assert_eq!(init.code, 1);
    assert!(init.stderr.contains("no shares of it"), "{}", init.stderr);
    assert!(init.stderr.contains("migrate --to shamir"), "{}", init.stderr);
}

#[test]
fn an_older_store_is_held_until_the_operator_says_why_it_is_served() {
    let mut site = Site::start("server", &[]);
    site.encrypt();
    let (store, old) = (site.data().join("store.redb"), site.lab.path("old.redb"));
    site.restart("server", &[]);
    drop(site.running.take().map(|mut running| running.stop()));
    fs::copy(&store, &old).unwrap();
    site.restart("server", &[]);
    let credentials = site.data().join("credentials.json");
    let more = ["key", "create", "--alias", "alias/more"];
    site.lab.lastkey.cli(Some(&credentials), &more).unwrap().expect_ok("create").unwrap();
    drop(site.running.take().map(|mut running| running.stop()));
    fs::copy(&old, &store).unwrap();
    site.restart("server", &[]);
    let status = site.status();
    assert_eq!(status["state"], "held", "{status}");
    let refused = site.keys();
    assert!(refused.code == 6 && !refused.stderr.contains("TLS"), "{}", refused.stderr);
    assert_eq!(site.health("/readyz").0, 503);
    // Clients know it by the authority that they trust.
    let ready = site.up().client().unwrap().get("/readyz").unwrap();
    assert_eq!(ready.status, 503, "{}", ready.text());
    // An alert that it is sealed would have it unsealed, which it refuses.
    let shows = |site: &Site, line: &str| {
        let page = site.up().client().unwrap().get("/metrics").unwrap().text();
        assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
    };
    shows(&site, "lastkey_held 1");
    shows(&site, "lastkey_unsealed 0");
    let socket = site.data().join("admin.sock");
    let way_out = format!("accept-restore --reason TEXT --admin-socket {}", socket.display());
    site.log_with(&way_out);
    for named in [false, true] {
        // Not what strangers are told.
        let told = site.at_hand(named, &["status"]).expect_ok("status").unwrap().json();
        assert_eq!((&told["state"], &told["held"]), (&status["state"], &status["held"]));
        let refused = site.at_hand(named, &["accept-restore", "--reason", " "]);
        assert!(refused.stderr.contains("say why"), "{}", refused.stderr);
    }
    let accept = ["accept-restore", "--reason", "the test put a backup back"];
    site.at_hand(true, &accept).expect_ok("accept-restore").unwrap();
    assert_eq!(site.status()["state"], "unsealed");
    assert_eq!(site.keys().code, 0);
    shows(&site, "lastkey_held 0");
}

#[test]
fn a_held_server_asks_for_no_shares_and_says_what_to_do() {
    let mut site = Site::start("server", &["--seal", "shamir"]);
    let shares = shares(&site.ok(&["init", "--shares", "3", "--threshold", "2"], ""));
    site.unseal(&shares[..2]);
    let (store, old) = (site.data().join("store.redb"), site.lab.path("old.redb"));
    drop(site.running.take().map(|mut running| running.stop()));
    fs::copy(&store, &old).unwrap();
    site.restart("server", &[]);
    site.unseal(&shares[..2]);
    site.encrypt();
    drop(site.running.take().map(|mut running| running.stop()));
    fs::copy(&old, &store).unwrap();
    site.restart("server", &[]);
    site.ok(&["unseal"], &shares[0]);
    assert_ne!(site.operator(&["unseal"], &shares[1]).code, 0);
    let status = site.status();
    assert_eq!(status["state"], "held", "{status}");
    assert!(status["order"].is_null() && status["progress"].is_null(), "{status}");
    let refused = site.operator(&["unseal"], &shares[2]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("accept-restore --reason"), "{}", refused.stderr);
    site.ok(&["accept-restore", "--reason", "the test put a backup back"], "");
    assert_eq!(site.status()["state"], "unsealed");
}

#[test]
fn up_waits_for_its_root_key_and_its_plugin_for_both() {
    let mut site = Site::start("up", &["--seal", "shamir"]);
    assert!(!site.data().join("kms.sock").exists());
    let shares = shares(&site.ok(&["init", "--shares", "2", "--threshold", "2"], ""));
    site.unseal(&shares);
    let socket = site.data().join("kms.sock");
    lastkey_testbed::eventually("the plugin's socket", SOON, || {
        if socket.exists() {
            Ok(())
        } else {
            Err(lastkey_testbed::Error::ReadyLine {
                line: String::new(),
                cause: "no socket".into(),
            })
        }
    })
    .unwrap();
    assert!(site.data().join("encryption-config.yaml").exists());
    site.restart("up", &[]);
    assert_eq!(site.status()["state"], "sealed");
    site.unseal(&shares);
}

#[test]
fn what_is_in_the_plugins_way_after_unsealing_is_told_and_waited_for() {
    let site = Site::start("up", &["--seal", "shamir"]);
    let shares = shares(&site.ok(&["init", "--shares", "2", "--threshold", "2"], ""));
    let mode = |mode| fs::set_permissions(site.data(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    site.unseal(&shares);
    let log = site.log_with("the KMS plugin does not start yet");
    assert!(log.contains("chmod"), "{log}");
    assert!(!site.data().join("kms.sock").exists());
    mode(0o700);
    site.log_with("the KMS plugin works");
    assert!(site.data().join("kms.sock").exists());
}

#[test]
fn the_seal_is_changed_while_the_server_runs() {
    let mut site = Site::start("server", &[]);
    let sealed = site.encrypt();
    let root = site.data().join("root.key");
    let first = fs::read_to_string(&root).unwrap();
    site.ok(&["rotate", "root"], "");
    assert_ne!(fs::read_to_string(&root).unwrap(), first);
    let made = site.ok(&["migrate", "--to", "shamir", "--shares", "3", "--threshold", "2"], "");
    let old = shares(&made);
    assert!(root.exists(), "the file went before the shares were proven");
    site.ok(&["confirm"], &old[0]);
    site.ok(&["confirm"], &old[2]);
    assert!(!root.exists());
    assert!(site.data().join("server.key").exists());
    site.assert_decrypts(&sealed);
    site.restart("server", &[]);
    assert_eq!(site.keys().code, 6);
    site.unseal(&old[1..]);

    // New shares, by two of the old ones, each from its keeper.
    site.ok(&["rekey", "--shares", "4", "--threshold", "3"], &old[0]);
    assert_eq!(site.operator(&["migrate", "--to", "file"], &old[1]).code, 1);
    let new = shares(&site.ok(&["rekey"], &old[1]));
    for share in &new[1..] {
        site.ok(&["confirm"], share);
    }
    site.ok(&["seal"], "");
    assert_eq!(site.operator(&["unseal"], &old[0]).code, 1);
    site.unseal(&new[..3]);

    for share in &new[..3] {
        site.ok(&["migrate", "--to", "file"], share);
    }
    assert!(root.exists());
    site.assert_decrypts(&sealed);
    site.restart("server", &[]);
    assert_eq!(site.status()["state"], "unsealed");
    site.assert_decrypts(&sealed);
}

#[test]
fn keepers_enter_their_shares_over_the_network() {
    let mut site = Site::start("server", &["--seal", "shamir"]);
    let old = shares(&site.ok(&["init", "--shares", "3", "--threshold", "2"], ""));
    // There is no authority a keeper could trust before the first unsealing.
    site.unseal(&old[..2]);
    let sealed = site.encrypt();
    let ok = |site: &Site, args: &[&str], input: &str| {
        site.over_tls(args, input).expect_ok(&args.join(" ")).unwrap().json()
    };
    // What belongs on the server's machine is refused from anywhere else.
    ok(&site, &["seal"], "");
    for args in [&["unseal", "--reset"][..], &["init", "--shares", "3", "--threshold", "2"]] {
        let outcome = site.over_tls(args, "");
        assert_eq!(outcome.code, 4, "{args:?}: {}", outcome.stderr);
    }
    let entered = ok(&site, &["unseal"], &old[2]);
    assert_eq!(entered["progress"]["entered"], 1, "{entered}");
    assert_eq!(ok(&site, &["unseal"], &old[0])["state"], "unsealed");
    site.assert_decrypts(&sealed);

    // New shares, each keeper from a machine of their own; the old ones are worthless afterwards.
    ok(&site, &["rekey", "--shares", "3", "--threshold", "3"], &old[0]);
    let new = shares(&ok(&site, &["rekey"], &old[1]));
    for share in &new {
        ok(&site, &["confirm"], share);
    }
    assert_eq!(site.status()["seal"]["generation"], 2, "{}", site.status());
    // Another process, sealed: it shows the certificate that the keepers trust.
    site.restart("server", &[]);
    let refused = site.over_tls(&["unseal"], &old[0]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("generation"), "{}", refused.stderr);
    for share in &new {
        ok(&site, &["unseal"], share);
    }
    assert_eq!(ok(&site, &["status"], "")["state"], "unsealed");
    site.assert_decrypts(&sealed);
}

impl Site {
    /// What a stranger is told, each of so many times, who sends this as a share.
    fn stranger(&self, share: &str, times: usize) -> Vec<String> {
        let url = format!("{}/v1/operator/unseal", self.up().ready.url);
        let body = format!("{{\"share\":\"{share}\"}}");
        let urls = vec![url; times];
        let output = Command::new("curl")
            .args(["-sk", "-w", "\n%{http_code}\n", "-d", &body])
            .args(urls)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_code = |line: &&str| line.len() == 3 && line.parse::<u16>().is_ok();
        text.lines().filter(is_code).map(str::to_owned).collect()
    }
}

#[test]
fn a_stranger_who_sends_shares_keeps_no_keeper_out() {
    let site = Site::start("server", &["--seal", "shamir"]);
    let own = shares(&site.ok(&["init", "--shares", "2", "--threshold", "2"], ""));
    site.unseal(&own);
    site.ok(&["seal"], "");
    // What is no share is refused, however often.
    assert_eq!(site.stranger("x", 60), vec!["400"; 60]);
    // One of another set has its turn, until there were too many.
    let entropy = lastkey_crypto::SystemEntropy;
    let key = lastkey_crypto::KeyMaterial::generate(lastkey_crypto::share::KEY_LEN, &entropy);
    let set = lastkey_crypto::share::SetId::random(&entropy);
    let splitting =
        lastkey_crypto::share::Splitting { set, generation: 1, shares: 2, threshold: 2 };
    let strange = lastkey_crypto::share::split(&key, splitting, &entropy).unwrap();
    let told = site.stranger(&strange[0].to_text(), 60);
    assert_eq!((told.len(), told[0].as_str(), told[59].as_str()), (60, "400", "429"));
    // From the same address.
    for share in &own {
        site.over_tls(&["unseal"], share).expect_ok("unseal").unwrap();
    }
    assert_eq!(site.status()["state"], "unsealed");
}

#[test]
fn a_server_whose_file_unseals_it_asks_for_no_share() {
    let site = Site::start("server", &[]);
    let made = site.ok(&["migrate", "--to", "shamir", "--shares", "2", "--threshold", "2"], "");
    site.ok(&["seal"], "");
    assert_eq!(site.ok(&["unseal"], "")["state"], "unsealed");
    // Where the file is not there, the new shares are.
    site.ok(&["seal"], "");
    let (root, away) = (site.data().join("root.key"), site.lab.path("away"));
    fs::rename(&root, &away).unwrap();
    site.unseal(&shares(&made));
    assert_eq!(site.status()["seal"]["kind"], "shamir");
}

#[test]
fn no_keepers_share_is_used_for_a_seal_that_they_did_not_name() {
    let site = Site::start("server", &["--seal", "shamir"]);
    let own = shares(&site.ok(&["init", "--shares", "2", "--threshold", "2"], ""));
    site.unseal(&own);
    let status = site.ok(&["migrate", "--to", "file"], &own[0]);
    assert_eq!((&status["order"], &status["target"]), (&"migrate".into(), &"file".into()));
    let other = site.operator(&["migrate", "--to", "pkcs11"], &own[1]);
    assert_eq!(other.code, 1, "{}", other.stderr);
    assert!(other.stderr.contains("migrate to file"), "{}", other.stderr);
    assert!(!site.data().join("root.key").exists());
    // Who is not known is told that something is under way, and not where to.
    let url = format!("{}/v1/operator/status", site.up().ready.url);
    let told = Command::new("curl").args(["-sk", &url]).output().unwrap().stdout;
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert_eq!((&told["order"], &told["target"]), (&"migrate".into(), &Value::Null));
    site.ok(&["migrate", "--to", "file"], &own[1]);
    assert_eq!(site.status()["seal"]["kind"], "file");
}

#[test]
fn the_keyring_is_rotated_and_the_old_one_is_dropped() {
    let mut site = Site::start("server", &["--seal", "shamir"]);
    let shares = shares(&site.ok(&["init", "--shares", "2", "--threshold", "2"], ""));
    site.unseal(&shares);
    let sealed = site.encrypt();
    // Nobody enters a share for it, and it needs no word but the caller's: over both doors.
    assert_eq!(site.ok(&["rotate", "keyring"], "")["keyring_key"], 2);
    let made = site.over_tls(&["rotate", "keyring"], "").expect_ok("rotate keyring").unwrap();
    assert_eq!(made.json()["keyring_key"], 3);
    let credentials = site.data().join("credentials.json");
    let query = ["audit", "query", "--operation", "DropKeyringKeys"];
    lastkey_testbed::eventually("the old keys are dropped", SOON, || {
        let found = site.lab.lastkey.cli(Some(&credentials), &query)?.expect_ok("audit query")?;
        let dropped = found.json()["items"].as_array().is_some_and(|items| {
            items.iter().any(|item| item.to_string().contains("\"keyring_key\":3"))
        });
        let late = |line| lastkey_testbed::Error::ReadyLine { line, cause: "not yet".to_owned() };
        dropped.then_some(()).ok_or_else(|| late(found.stdout))
    })
    .unwrap();
    site.assert_decrypts(&sealed);
    site.restart("server", &[]);
    site.unseal(&shares);
    site.assert_decrypts(&sealed);
    assert_eq!(site.ok(&["rotate", "keyring"], "")["keyring_key"], 4);
}
