//! Process tests of the PKCS#11 seal, on SoftHSM2.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lastkey_testbed::{Error, Lastkey, Outcome, Peers, Running, eventually};
use serde_json::Value;
use support::{PLAINTEXT, SOON};
use tempfile::TempDir;

const PIN: &str = "271828";
/// Takes mechanisms from a SoftHSM token; it overlooks the first one that is named.
const NO_GCM: &str = "slots.mechanisms = -CKM_MD5,CKM_AES_GCM";
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

fn make_token(peers: &Peers, config: &Path, label: &str) {
    let made = Command::new(peers.path("softhsm2-util"))
        .env("SOFTHSM2_CONF", config)
        .args(["--init-token", "--free", "--label", label, "--so-pin", "314159", "--pin", PIN])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A token of its own for each test, and the binary with it in its environment.
struct Site {
    dir: TempDir,
    lastkey: Lastkey,
    module: PathBuf,
    running: Option<Running>,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        Self::with(test, "")
    }

    /// On a token with one more line of configuration.
    fn with(test: &str, line: &str) -> Option<Self> {
        let peers = Peers::or_skip(test, &["softhsm2-util"])?;
        let dir = tempfile::Builder::new().prefix("lastkey-token-").tempdir().unwrap();
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens).unwrap();
        let config = dir.path().join("softhsm2.conf");
        let text =
            format!("directories.tokendir = {}\nlog.level = ERROR\n{line}\n", tokens.display());
        fs::write(&config, text).unwrap();
        make_token(&peers, &config, "lab");
        // The module reads its configuration from the environment.
        let wrapper = dir.path().join("lastkey");
        let binary = env!("CARGO_BIN_EXE_lastkey");
        let conf = config.display();
        let script = format!("#!/bin/sh\nSOFTHSM2_CONF={conf} exec {binary} \"$@\"\n");
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists()).unwrap();
        let lastkey = Lastkey::new(&wrapper, dir.path());
        let site = Self { dir, lastkey, module, running: None };
        site.write_pin(PIN, 0o600);
        Some(site)
    }

    fn write_pin(&self, pin: &str, mode: u32) {
        fs::write(self.pin_file(), format!("{pin}\n")).unwrap();
        fs::set_permissions(self.pin_file(), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn token_options(&self) -> Vec<String> {
        let (module, pin) = (self.module.display(), self.pin_file());
        ["--pkcs11-module", &module.to_string(), "--pkcs11-token", "lab", "--pkcs11-pin-file"]
            .into_iter()
            .chain([pin.to_str().unwrap()])
            .map(str::to_owned)
            .collect()
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let data = self.data();
        let fixed = ["server", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        fixed.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    fn start(&mut self, more: &[&str]) {
        if let Some(mut running) = self.running.take() {
            assert!(running.stop().unwrap().success(), "{}", running.process.log());
        }
        let options = self.token_options();
        let mut args = self.args(more);
        args.extend(options);
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.running = Some(self.lastkey.long_running("server", args).unwrap());
    }

    /// A start that fails.
    fn refused(&mut self, more: &[&str]) -> Outcome {
        self.running = None;
        let args = self.args(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.lastkey.cli(None, &args).unwrap()
    }

    fn operator(&self, args: &[&str]) -> Outcome {
        let socket = self.data().join("admin.sock");
        let place = ["--admin-socket", socket.to_str().unwrap()];
        self.lastkey.cli(None, &[&["operator"], args, &place].concat()).unwrap()
    }

    fn status(&self) -> Value {
        self.operator(&["status"]).expect_ok("status").unwrap().json()
    }

    fn cli(&self, args: &[&str]) -> Outcome {
        self.lastkey.cli(Some(&self.data().join("credentials.json")), args).unwrap()
    }

    fn encrypt(&self) -> PathBuf {
        let (plain, sealed) = (self.dir.path().join("plain"), self.dir.path().join("sealed"));
        fs::write(&plain, PLAINTEXT).unwrap();
        self.cli(&["key", "create", "--alias", "alias/app"]).expect_ok("create").unwrap();
        let (from, to) = (plain.to_str().unwrap(), sealed.to_str().unwrap());
        self.cli(&["encrypt", "--key", "alias/app", "-i", from, "-o", to])
            .expect_ok("encrypt")
            .unwrap();
        sealed
    }

    fn assert_decrypts(&self, sealed: &Path) {
        let opened = self.dir.path().join("opened");
        let _ = fs::remove_file(&opened);
        let (from, to) = (sealed.to_str().unwrap(), opened.to_str().unwrap());
        self.cli(&["decrypt", "-i", from, "-o", to]).expect_ok("decrypt").unwrap();
        assert_eq!(fs::read_to_string(opened).unwrap(), PLAINTEXT);
    }

    /// Takes the token away, or puts it back.
    fn token(&self, there: bool) {
        let (near, far) = (self.dir.path().join("tokens"), self.dir.path().join("gone"));
        let (from, to) = if there { (far, near) } else { (near, far) };
        fs::rename(from, to).unwrap();
        if !there {
            fs::create_dir(self.dir.path().join("tokens")).unwrap();
        }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("softhsm2.conf")
    }

    /// Has the module wait for ever: it reads its configuration with each call, and nobody writes
    /// into this one.
    fn hang(&self) {
        fs::rename(self.config(), self.dir.path().join("kept.conf")).unwrap();
        let made = Command::new("mkfifo").arg(self.config()).status().unwrap();
        assert!(made.success());
    }

    /// Lets go of who waits, and of who comes.
    fn let_go(&self) {
        let pipe = self.dir.path().join("pipe");
        fs::rename(self.config(), &pipe).unwrap();
        fs::rename(self.dir.path().join("kept.conf"), self.config()).unwrap();
        // Whoever reads it is there.
        drop(fs::OpenOptions::new().write(true).open(pipe).unwrap());
    }

    fn put_back(&self) {
        fs::remove_dir(self.dir.path().join("tokens")).unwrap();
        self.token(true);
    }
}

#[test]
fn a_token_unseals_by_itself_and_a_missing_one_is_waited_for() {
    let Some(mut site) = Site::new("the PKCS#11 seal") else { return };
    site.start(&["--seal", "pkcs11"]);
    assert_eq!(site.status()["state"], "unsealed");
    assert_eq!(site.status()["seal"]["kind"], "pkcs11");
    assert!(!site.data().join("root.key").exists());
    let sealed = site.encrypt();
    site.start(&[]);
    assert_eq!(site.status()["state"], "unsealed");
    site.assert_decrypts(&sealed);
    site.operator(&["rotate", "root"]).expect_ok("rotate").unwrap();
    site.operator(&["seal"]).expect_ok("seal").unwrap();
    assert_eq!(site.cli(&["key", "list"]).code, 6);
    site.operator(&["unseal"]).expect_ok("unseal").unwrap();
    site.assert_decrypts(&sealed);

    // Gone at the start: the server waits sealed, and goes on when the token is back.
    site.running = None;
    site.token(false);
    site.start(&[]);
    let status = site.status();
    assert_eq!(status["state"], "sealed");
    assert!(status["waiting"].as_str().unwrap().contains("lab"), "{status}");
    assert_eq!(site.cli(&["key", "list"]).code, 6);
    assert_eq!(site.operator(&["unseal"]).code, 6);
    site.put_back();
    eventually("the token to be found", SOON, || match &site.status()["state"] {
        Value::String(state) if state == "unsealed" => Ok(()),
        other => Err(Error::ReadyLine { line: other.to_string(), cause: "still".into() }),
    })
    .unwrap();
    site.assert_decrypts(&sealed);
    let log = site.running.as_ref().unwrap().process.log();
    assert!(!log.contains(PIN), "the PIN is in the log");
    assert!(!log.contains("Mechanism type"), "no error at all: {log}");
}

#[test]
fn a_token_that_comes_back_with_another_pin_is_asked_once() {
    let Some(mut site) = Site::new("a PIN that is wrong in the end") else { return };
    site.start(&["--seal", "pkcs11"]);
    let sealed = site.encrypt();
    site.running = None;
    site.token(false);
    site.start(&[]);
    assert_eq!(site.status()["state"], "sealed");
    site.write_pin("000000", 0o600);
    site.put_back();
    eventually("the PIN to be refused", SOON, || match &site.status()["waiting"] {
        Value::String(why) if why.contains("PIN") => Ok(()),
        other => Err(Error::ReadyLine { line: other.to_string(), cause: "not yet".into() }),
    })
    .unwrap();
    // The right one is of no use to who does not ask, for longer than two more would take.
    site.write_pin(PIN, 0o600);
    thread::sleep(Duration::from_secs(12));
    let status = site.status();
    assert_eq!(status["state"], "sealed");
    assert!(status["waiting"].as_str().unwrap().contains("operator unseal"), "{status}");
    site.operator(&["unseal"]).expect_ok("unseal").unwrap();
    assert!(site.status()["waiting"].is_null());
    site.assert_decrypts(&sealed);
}

/// As one in another machine does whose network is dead.
#[test]
fn a_token_that_hangs_holds_nobody_up_for_long() {
    let Some(mut site) = Site::new("a token that hangs") else { return };
    site.start(&["--seal", "pkcs11"]);
    let sealed = site.encrypt();
    site.hang();
    let rotated = site.operator(&["rotate", "root"]);
    assert!(rotated.code == 6 && rotated.stderr.contains("did not answer"), "{}", rotated.stderr);
    site.assert_decrypts(&sealed);

    // The end of the process waits for no order.
    thread::scope(|scope| {
        let mut running = site.running.take().unwrap();
        let site = &site;
        scope.spawn(|| site.operator(&["rotate", "root"]));
        thread::sleep(Duration::from_secs(2));
        let began = Instant::now();
        assert!(running.stop().unwrap().success(), "{}", running.process.log());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });

    // Nor does a start wait for ever: it goes on sealed, says why, and opens when it can.
    site.start(&[]);
    let status = site.status();
    assert_eq!(status["state"], "sealed");
    assert!(status["waiting"].as_str().unwrap().contains("did not answer"), "{status}");
    site.let_go();
    eventually("the token to answer", SOON, || match &site.status()["state"] {
        Value::String(state) if state == "unsealed" => Ok(()),
        other => Err(Error::ReadyLine { line: other.to_string(), cause: "still".into() }),
    })
    .unwrap();
    site.assert_decrypts(&sealed);
}

#[test]
fn new_shares_that_wait_hide_no_failure_of_the_token() {
    let Some(mut site) = Site::new("a token that fails while new shares wait") else { return };
    site.start(&["--seal", "pkcs11"]);
    let sealed = site.encrypt();
    let migrate = ["migrate", "--to", "shamir", "--shares", "2", "--threshold", "2"];
    site.operator(&migrate).expect_ok("migrate").unwrap();
    site.operator(&["seal"]).expect_ok("seal").unwrap();
    site.write_pin("000000", 0o600);
    // Those who come one after the other.
    for again in [false, true, true] {
        let keeper = site.operator(&["unseal"]);
        assert_eq!(keeper.code, 1, "{}", keeper.stderr);
        assert!(keeper.stderr.contains("the PIN in "), "{}", keeper.stderr);
        assert_eq!(keeper.stderr.contains("not asked again"), again, "{}", keeper.stderr);
    }
    let status = site.status();
    assert!(status["waiting"].as_str().unwrap().contains("the PIN in "), "{status}");
    site.write_pin(PIN, 0o600);
    assert_eq!(site.operator(&["unseal"]).code, 1);
    site.operator(&["unseal", "--reset"]).expect_ok("reset").unwrap();
    site.operator(&["unseal"]).expect_ok("unseal").unwrap();
    site.assert_decrypts(&sealed);

    site.running = None;
    site.token(false);
    site.start(&[]);
    let status = site.status();
    assert!(status["waiting"].as_str().unwrap().contains("lab"), "{status}");
    site.put_back();
    eventually("the token to be found", SOON, || match &site.status()["state"] {
        Value::String(state) if state == "unsealed" => Ok(()),
        other => Err(Error::ReadyLine { line: other.to_string(), cause: "still".into() }),
    })
    .unwrap();
    site.assert_decrypts(&sealed);
    assert_eq!(site.status()["pending"]["kind"], "shamir");
}

#[test]
fn a_migration_that_fails_leaves_the_token_that_is_used() {
    let Some(mut site) = Site::new("migrations that fail") else { return };
    site.start(&["--seal", "pkcs11"]);
    let sealed = site.encrypt();
    let options = site.token_options();
    let wrong_pin = site.dir.path().join("wrong-pin");
    fs::write(&wrong_pin, "000000\n").unwrap();
    fs::set_permissions(&wrong_pin, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = [(1, "/nonexistent/module.so"), (3, "nobody"), (5, wrong_pin.to_str().unwrap())];
    for (at, value) in wrong {
        let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
        options[at] = value;
        let migrate = site.operator(&[&["migrate", "--to", "pkcs11"], &options[..]].concat());
        assert_ne!(migrate.code, 0, "{value}");
        site.operator(&["seal"]).expect_ok("seal").unwrap();
        site.operator(&["unseal"]).expect_ok("unseal").unwrap();
        site.operator(&["rotate", "root"]).expect_ok("rotate").unwrap();
        site.assert_decrypts(&sealed);
    }
}

#[test]
fn another_token_than_the_right_one_is_named() {
    let Some(mut site) = Site::new("a token that is not the one") else { return };
    let peers = Peers::or_skip("a token that is not the one", &["softhsm2-util"]).unwrap();
    let config = site.dir.path().join("softhsm2.conf");
    make_token(&peers, &config, "empty");
    make_token(&peers, &config, "other");
    site.start(&["--seal", "pkcs11"]);
    let sealed = site.encrypt();
    let mut options = site.token_options();
    // A key of the same label on the other one.
    let mut migrate = |site: &Site, token: &str| {
        options[3] = token.to_owned();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let args = [&["migrate", "--to", "pkcs11"], &options[..]].concat();
        site.operator(&args).expect_ok("migrate").unwrap();
    };
    migrate(&site, "other");
    migrate(&site, "lab");
    for token in ["empty", "other"] {
        options[3] = token.to_owned();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let outcome = site.refused(&options);
        assert_eq!(outcome.code, 1, "{token}: {}", outcome.stderr);
        let said = outcome.stderr.replace('\\', "");
        assert!(said.contains("token \"lab\" (serial "), "{said}");
        assert!(said.contains(&format!("--pkcs11-token names \"{token}\" (serial ")), "{said}");
    }
    site.start(&[]);
    assert_eq!(site.status()["state"], "unsealed");
    site.assert_decrypts(&sealed);
}

#[test]
fn a_token_that_cannot_be_used_is_named() {
    let Some(mut site) = Site::new("refusals of the PKCS#11 seal") else { return };
    assert_eq!(site.refused(&["--seal", "pkcs11"]).code, 2);
    let options = |site: &Site| -> Vec<String> {
        ["--seal".to_owned(), "pkcs11".to_owned()].into_iter().chain(site.token_options()).collect()
    };
    let refused = |site: &mut Site, options: &[String]| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        site.refused(&options)
    };
    // No such token: there may be one later.
    let mut other = options(&site);
    other[5] = "nobody".to_owned();
    let outcome = refused(&mut site, &other);
    assert_eq!(outcome.code, 6, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("nobody"), "{}", outcome.stderr);
    // A wrong PIN is not tried again: three times would lock the token.
    site.write_pin("000000", 0o600);
    let all = options(&site);
    let outcome = refused(&mut site, &all);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("PIN") && !outcome.stderr.contains("000000"));
    site.write_pin(PIN, 0o644);
    let outcome = refused(&mut site, &all);
    assert!(outcome.stderr.contains("chmod 600"), "{}", outcome.stderr);
    let mut gone = options(&site);
    gone[3] = "/nonexistent/module.so".to_owned();
    site.write_pin(PIN, 0o600);
    let outcome = refused(&mut site, &gone);
    assert!(outcome.stderr.contains("/nonexistent/module.so"), "{}", outcome.stderr);
    // Nothing of all this has left a store that does not open.
    site.start(&["--seal", "pkcs11"]);
    assert_eq!(site.status()["state"], "unsealed");
}

#[test]
fn to_a_token_and_to_another_key_and_back_to_a_file() {
    let Some(mut site) = Site::new("migration to a PKCS#11 token") else { return };
    // Started without a word of the token; the operator names it on the server's machine.
    let args = site.args(&[]);
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    site.running = Some(site.lastkey.long_running("server", args).unwrap());
    let sealed = site.encrypt();
    let options = site.token_options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let migrate = |site: &Site, more: &[&str]| {
        site.operator(&[&["migrate", "--to"], more, &options].concat())
    };
    // Over the network nobody names a module.
    let over_tls = site.cli(&[&["operator", "migrate", "--to", "pkcs11"], &options[..]].concat());
    assert_eq!(over_tls.code, 4, "{}", over_tls.stderr);
    migrate(&site, &["pkcs11"]).expect_ok("migrate").unwrap();
    assert!(!site.data().join("root.key").exists());
    assert_eq!(site.status()["seal"]["kind"], "pkcs11");
    site.assert_decrypts(&sealed);
    // A start that is not told of the token says what it needs.
    let outcome = site.refused(&[]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--pkcs11-module"), "{}", outcome.stderr);
    site.start(&[]);
    site.assert_decrypts(&sealed);
    let other = migrate(&site, &["pkcs11", "--pkcs11-key", "another"]);
    other.expect_ok("another key").unwrap();
    assert_eq!(site.status()["seal"]["key"], "another");
    site.operator(&["migrate", "--to", "file"]).expect_ok("back").unwrap();
    site.start(&[]);
    assert_eq!(site.status()["seal"]["kind"], "file");
    site.assert_decrypts(&sealed);
}

#[test]
fn a_token_without_gcm_wraps_the_root_key() {
    let Some(mut site) = Site::with("AES key wrap", NO_GCM) else {
        return;
    };
    site.start(&["--seal", "pkcs11"]);
    assert_eq!(site.status()["state"], "unsealed");
    // What says how the root key rests lies in clear.
    let store = fs::read(site.data().join("store.redb")).unwrap();
    assert!(memchr::memmem::find(&store, b"aes-key-wrap").is_some());
    let sealed = site.encrypt();
    site.start(&[]);
    assert_eq!(site.status()["state"], "unsealed");
    site.operator(&["rotate", "root"]).expect_ok("rotate").unwrap();
    site.start(&[]);
    site.assert_decrypts(&sealed);
    // The record says how, so a module that learns AES-GCM later opens it all the same.
    let conf = site.dir.path().join("softhsm2.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, text.replace(NO_GCM, "")).unwrap();
    site.start(&[]);
    assert_eq!(site.status()["state"], "unsealed");
    site.assert_decrypts(&sealed);
}

#[test]
fn a_token_without_a_mechanism_is_refused_before_anything_is_written() {
    let line = &format!("{NO_GCM},CKM_AES_KEY_WRAP");
    let Some(mut site) = Site::with("a token without AES", line) else { return };
    let options = site.token_options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let outcome = site.refused(&[&["--seal", "pkcs11"], &options[..]].concat());
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    for named in ["CKM_AES_GCM", "CKM_AES_KEY_WRAP"] {
        assert!(outcome.stderr.contains(named), "{}", outcome.stderr);
    }
}
