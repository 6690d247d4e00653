//! Process tests: a server with a certificate that somebody brought, and who can go by it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use lastkey_testbed::{Authority, Daemon, Running, eventually, free_port};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use support::{Lab, SOON};

/// A certificate of that CA for these names; its file and its key's.
fn issue(ca: &Authority, lab: &Lab, names: &[&str]) -> (PathBuf, PathBuf) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let pair = ca.client_with(("kms", &[]), |params| {
        params.subject_alt_names = rcgen::CertificateParams::new(names).unwrap().subject_alt_names;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    pair.unwrap().write(&lab.path(""), "kms").unwrap()
}

struct Site {
    lab: Lab,
    ca: Authority,
    ca_file: PathBuf,
    port: u16,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let ca = Authority::new("ours").unwrap();
        let ca_file = lab.path("our-ca.pem");
        fs::write(&ca_file, ca.certificate()).unwrap();
        Self { lab, ca, ca_file, port: free_port().unwrap() }
    }

    /// What `verb` is started with, and a certificate for these names.
    fn args(&self, verb: &str, names: &[&str]) -> Vec<String> {
        let (certificate, key) = issue(&self.ca, &self.lab, names);
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        let (data, listen) = (shown(&self.lab.path("data")), format!("127.0.0.1:{}", self.port));
        let (certificate, key, ca) = (shown(&certificate), shown(&key), shown(&self.ca_file));
        let options = ["--data-dir", &data, "--listen", &listen, "--tls-cert", &certificate];
        let more = ["--tls-key", &key, "--tls-ca", &ca];
        [&[verb], &options[..], &more].concat().into_iter().map(str::to_owned).collect()
    }

    fn server(&self, names: &[&str]) -> Running {
        let args = self.args("server", names);
        self.lab.lastkey.long_running("server", args.iter().map(OsStr::new)).unwrap()
    }

    fn start(&self, args: &[String]) -> Daemon {
        self.lab.lastkey.start("started", args.iter().map(OsStr::new)).unwrap()
    }

    fn credentials(&self) -> PathBuf {
        self.lab.path("data/credentials.json")
    }

    fn url(&self) -> String {
        let text = fs::read(self.credentials()).unwrap();
        let content: serde_json::Value = serde_json::from_slice(&text).unwrap();
        content["url"].as_str().unwrap().to_owned()
    }

    fn code(&self) -> i32 {
        self.lab.lastkey.cli(Some(&self.credentials()), &["key", "list"]).unwrap().code
    }
}

#[test]
fn an_address_that_the_certificate_is_not_for_is_told_and_one_put_right_by_hand_stays() {
    let site = Site::new();
    let port = site.port;
    // 1. Nobody here can go by it: it is said at the start, with the way out.
    let mut server = site.server(&["kms.invalid"]);
    eventually("the log says so", SOON, || {
        let log = server.process.log();
        let told = format!("cannot go by https://127.0.0.1:{port}");
        let all = [&told, "but for kms.invalid", "credentials.json"];
        if all.iter().all(|part| log.contains(*part)) { Ok(()) } else { Err(log) }
    })
    .unwrap();
    assert_eq!((site.url(), site.code()), (format!("https://127.0.0.1:{port}"), 6));
    server.stop().unwrap();
    // 2. What somebody puts there stays, as long as it is this server's.
    let by_hand = format!("https://kms.invalid:{port}");
    let text = fs::read_to_string(site.credentials()).unwrap();
    fs::write(site.credentials(), text.replace(&site.url(), &by_hand)).unwrap();
    let mut server = site.server(&["kms.invalid"]);
    assert_eq!(site.url(), by_hand);
    server.stop().unwrap();
    let log = server.process.log();
    assert_eq!(log.matches("cannot go by").count(), 1, "of the start before: {log}");
    // 3. One of its names is taken where that means this server.
    let server = site.server(&["kms.invalid", "localhost"]);
    assert_eq!((site.url(), site.code()), (format!("https://localhost:{port}"), 0));
    // 4. There is no new certificate to be had of files.
    let renewed = site.lab.cli(&server.ready, &["ca", "renew"]);
    assert_eq!(renewed["from_files"], true, "{renewed}");
}

#[test]
fn up_says_why_its_plugin_cannot_work() {
    let site = Site::new();
    for (names, ca, why) in [
        (&["kms.invalid"][..], None, "but for kms.invalid"),
        (&["127.0.0.1"], Some(Authority::new("ours").unwrap()), "--tls-ca"),
    ] {
        if let Some(ca) = ca {
            fs::write(&site.ca_file, ca.certificate()).unwrap();
        }
        let mut up = site.start(&site.args("up", names));
        eventually("the log says so", SOON, || {
            let log = up.log();
            let line = log.lines().rfind(|line| line.contains("the KMS plugin cannot work"));
            if line.is_some_and(|line| line.contains(why)) { Ok(()) } else { Err(log) }
        })
        .unwrap();
        up.kill();
    }
}

#[test]
fn names_are_not_asked_for_where_a_certificate_is_brought() {
    let site = Site::new();
    let mut args = site.args("server", &["localhost"]);
    args.extend(["--tls-name", "kms.example.org"].map(str::to_owned));
    let mut started = site.start(&args);
    let status = started.wait(SOON).unwrap();
    assert_eq!(status.code(), Some(2), "{}", started.log());
    assert!(started.log().contains("--tls-name"), "{}", started.log());
    assert!(!site.lab.path("data").exists());
}
