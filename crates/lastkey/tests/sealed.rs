//! Process test: a server that is sealed is an outage to its plugins. Reads go on, writes wait, and
//! all of it heals with the unsealing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lastkey_kubernetes::proto::v2::{
    DecryptRequest, EncryptRequest, StatusRequest,
    key_management_service_client::KeyManagementServiceClient,
};
use lastkey_testbed::{Client, Running, eventually, free_port};
use serde_json::Value;
use support::{KEY, Lab, SOON};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

type Kms = KeyManagementServiceClient<Channel>;

/// A server under two shares, and a plugin of one of its clusters.
struct Site {
    lab: Lab,
    server: Running,
    shares: Vec<String>,
    plugin: Running,
    metrics: String,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let data = lab.path("data");
        let words = ["server", "--listen", "127.0.0.1:0", "--seal", "shamir", "--data-dir"];
        let words = words.map(OsStr::new).into_iter().chain([data.as_os_str()]);
        let server = lab.lastkey.long_running("server", words).unwrap();
        let made = operator(&lab, &["init", "--shares", "2", "--threshold", "2"], "");
        let shares = made["shares"].as_array().unwrap().iter();
        let shares: Vec<String> =
            shares.map(|share| share["share"].as_str().unwrap().to_owned()).collect();
        unseal(&lab, &shares);
        let credentials = data.join("credentials.json");
        let cli = |args: &[&str]| {
            let outcome = lab.lastkey.cli(Some(&credentials), args).unwrap();
            outcome.expect_ok(&args.join(" ")).unwrap();
        };
        cli(&["key", "create", "--alias", KEY]);
        let out = lab.path("prod");
        cli(&["cluster", "add", "prod", "--key", KEY, "--out", out.to_str().unwrap()]);
        let metrics = format!("127.0.0.1:{}", free_port().unwrap());
        let plugin = lab.lastkey.plugin(&options(&lab, (&server, &out), &metrics)).unwrap();
        Self { lab, server, shares, plugin, metrics }
    }

    async fn kms(&self) -> Kms {
        let socket = self.lab.path("kms.sock");
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Kms::new(endpoint.connect_with_connector(connector).await.unwrap())
    }

    fn failures(&self, kind: &str) -> u64 {
        let page = Client::plain(&self.metrics).get("/metrics").unwrap().text();
        let line = format!("lastkey_plugin_server_failures_total{{kind=\"{kind}\"}} ");
        let value = page.lines().find_map(|it| it.strip_prefix(&line));
        value.unwrap().parse().unwrap()
    }
}

fn options(lab: &Lab, (server, identity): (&Running, &Path), metrics: &str) -> Vec<&'static OsStr> {
    let paths: [(&str, PathBuf); 5] = [
        ("--socket", lab.path("kms.sock")),
        ("--client-cert", identity.join("plugin.pem")),
        ("--client-key", identity.join("plugin.key")),
        ("--ca-file", identity.join("ca.pem")),
        ("--state-dir", lab.path("state")),
    ];
    let words: [(&str, &str); 3] =
        [("--key", KEY), ("--server", &server.ready.url), ("--metrics-listen", metrics)];
    let paths = paths.into_iter().map(|(name, path)| (name, path.into_os_string()));
    let words = words.into_iter().map(|(name, word)| (name, OsString::from(word)));
    let words = paths.chain(words).flat_map(|(name, word)| [OsString::from(name), word]);
    words.map(|word| &*Box::leak(word.into_boxed_os_str())).collect()
}

fn operator(lab: &Lab, args: &[&str], input: &str) -> Value {
    let mut child = Command::new(lab.lastkey.binary())
        .arg("operator")
        .args(args)
        .args(["--output", "json", "--admin-socket"])
        .arg(lab.path("data").join("admin.sock"))
        .env_remove("LASTKEY_CREDENTIALS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn unseal(lab: &Lab, shares: &[String]) {
    for share in shares {
        operator(lab, &["unseal"], share);
    }
    assert_eq!(operator(lab, &["status"], "")["state"], "unsealed");
}

async fn encrypt(kms: &mut Kms) -> Result<DecryptRequest, tonic::Status> {
    let request = EncryptRequest { plaintext: vec![7; 32], uid: "a".into() };
    let sealed = kms.encrypt(request).await?.into_inner();
    Ok(DecryptRequest {
        ciphertext: sealed.ciphertext,
        key_id: sealed.key_id,
        annotations: sealed.annotations,
        uid: "b".into(),
    })
}

async fn healthz(kms: &mut Kms) -> String {
    kms.status(StatusRequest {}).await.unwrap().into_inner().healthz
}

#[test]
fn a_sealed_server_is_an_outage_to_a_plugin() {
    let mut site = Site::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut kms = runtime.block_on(site.kms());
    let kms = &mut kms;
    let known = runtime.block_on(encrypt(kms)).unwrap();
    assert_eq!(runtime.block_on(healthz(kms)), "ok");
    operator(&site.lab, &["seal"], "");
    // 1. Nothing is encrypted; that is counted as what it is, and Status says so.
    let refused = runtime.block_on(encrypt(kms)).err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("sealed"), "{refused}");
    assert!(site.failures("unavailable") > 0);
    eventually("Status says why", SOON, || match runtime.block_on(healthz(kms)) {
        text if text.contains("sealed") => Ok(()),
        text => Err(text),
    })
    .unwrap();
    // 2. What the plugin has seen is read all the while.
    let opened = runtime.block_on(kms.decrypt(known.clone())).unwrap().into_inner();
    assert_eq!(opened.plaintext, [7; 32]);
    // 3. Unsealed: everything goes on, with the same process and key id.
    unseal(&site.lab, &site.shares);
    let again = eventually("writes go on", SOON, || runtime.block_on(encrypt(kms))).unwrap();
    assert_eq!(again.key_id, known.key_id);
    eventually("Status is ok", SOON, || match runtime.block_on(healthz(kms)) {
        text if text == "ok" => Ok(()),
        text => Err(text),
    })
    .unwrap();
    // 4. What was read meanwhile is in the server's log.
    let credentials = site.lab.path("data").join("credentials.json");
    let query = ["audit", "query", "--action", "PluginCachedDecrypt"];
    eventually("the server has the records", SOON, || {
        let outcome = site.lab.lastkey.cli(Some(&credentials), &query).unwrap();
        match outcome.json()["items"].as_array().map(Vec::len) {
            Some(1..) => Ok(()),
            _ => Err(format!("{outcome:?}")),
        }
    })
    .unwrap();
    site.plugin.process.check().unwrap();
    site.server.process.check().unwrap();
}
