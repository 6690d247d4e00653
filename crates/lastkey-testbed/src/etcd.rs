//! A real etcd on the loopback, read and written in the raw.

use crate::pki::Authority;
use crate::process::{Daemon, free_port};
use crate::{Client, Error, Peers};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Two cores may be building and running several clusters beside it.
const START: Duration = Duration::from_secs(240);

/// One stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The bytes, exactly as they rest.
    pub bytes: Vec<u8>,
    /// How often the key was written since it was created.
    pub version: u64,
    /// The store's revision at the last write.
    pub revision: u64,
}

/// A running etcd; stopped when dropped.
pub struct Etcd {
    _process: Daemon,
    url: String,
    secure_url: Option<String>,
    client: Client,
    data: PathBuf,
}

impl Etcd {
    /// Starts one with its data in `dir` and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(peers: &Peers, dir: &Path) -> Result<Self, Error> {
        Self::launch(peers, dir, None)
    }

    /// As [`Etcd::start`], with a second address that speaks TLS and admits clients of `ca` only.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_secure(peers: &Peers, dir: &Path, ca: &Authority) -> Result<Self, Error> {
        Self::launch(peers, dir, Some(ca))
    }

    fn launch(peers: &Peers, dir: &Path, ca: Option<&Authority>) -> Result<Self, Error> {
        let (port, peer) = (free_port()?, free_port()?);
        let (url, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let data = dir.join("etcd");
        let mut command = Command::new(peers.path("etcd"));
        let (mut urls, mut secure_url) = (url.clone(), None);
        if let Some(ca) = ca {
            let secure = format!("https://127.0.0.1:{}", free_port()?);
            urls = format!("{url},{secure}");
            secure_url = Some(secure);
            let ca_file = dir.join("etcd-ca.pem");
            std::fs::write(&ca_file, ca.certificate()).map_err(Error::file(&ca_file))?;
            // etcd's own gateway is a client of its TLS address, by the same certificate
            let pair = ca.client_with(("etcd", &[]), |params| {
                params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
                params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
            })?;
            let (cert, key) = pair.write(dir, "etcd-server")?;
            command.arg("--client-cert-auth");
            for (flag, file) in
                [("--trusted-ca-file", &ca_file), ("--cert-file", &cert), ("--key-file", &key)]
            {
                command.arg(flag).arg(file);
            }
        }
        command
            .arg("--data-dir")
            .arg(&data)
            .args(["--name", "one", "--listen-client-urls", &urls, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            // Its durability is not what is tested here.
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        let mut process = Daemon::start("etcd", &command, dir)?;
        let client = Client::plain(&format!("127.0.0.1:{port}"));
        process.until("etcd is healthy", START, || {
            client.get("/health")?.expect_ok("etcd's health")
        })?;
        Ok(Self { _process: process, url, secure_url, client, data })
    }

    /// Its client URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its client URL with TLS, if it has one.
    #[must_use]
    pub fn secure_url(&self) -> Option<&str> {
        self.secure_url.as_deref()
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn get(&self, key: &str) -> Result<Option<Value>, Error> {
        let answer = self.call("range", &json!({ "key": BASE64.encode(key) }))?;
        Ok(values(&answer).into_iter().next().map(|(_, value)| value))
    }

    /// All keys that start with `prefix`, with their values.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, Error> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let range = json!({ "key": BASE64.encode(prefix), "range_end": BASE64.encode(end) });
        Ok(values(&self.call("range", &range)?))
    }

    /// Writes bytes behind everybody's back.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        let put = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        self.call("put", &put).map(drop)
    }

    /// Forgets everything older than now, as an apiserver has it do every five minutes.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn compact(&self) -> Result<(), Error> {
        let now = self.call("range", &json!({ "key": BASE64.encode("/") }))?;
        let revision = now["header"]["revision"].as_str().unwrap_or_default();
        self.call("compaction", &json!({ "revision": revision, "physical": true })).map(drop)
    }

    /// Deletes a key behind everybody's back.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        self.call("deleterange", &json!({ "key": BASE64.encode(key) })).map(drop)
    }

    /// Whether any file of etcd's contains `needle`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn disk_contains(&self, needle: &str) -> Result<bool, Error> {
        folder_contains(&self.data, needle.as_bytes())
    }

    fn call(&self, what: &str, body: &Json) -> Result<Json, Error> {
        let answer = self.client.send("POST", &format!("/v3/kv/{what}"), Some(body))?;
        Ok(answer.expect_ok(&format!("etcd {what}"))?.json())
    }
}

fn values(answer: &Json) -> Vec<(String, Value)> {
    let text = |kv: &Json, field: &str| kv[field].as_str().unwrap_or_default().to_owned();
    let bytes = |kv: &Json, field: &str| BASE64.decode(text(kv, field)).unwrap_or_default();
    let kvs = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
    kvs.iter()
        .map(|kv| {
            let value = Value {
                bytes: bytes(kv, "value"),
                // 64-bit numbers are strings in protobuf's JSON.
                version: text(kv, "version").parse().unwrap_or_default(),
                revision: text(kv, "mod_revision").parse().unwrap_or_default(),
            };
            (String::from_utf8_lossy(&bytes(kv, "key")).into_owned(), value)
        })
        .collect()
}

/// Whether any file below `dir` contains `needle`.
pub(crate) fn folder_contains(dir: &Path, needle: &[u8]) -> Result<bool, Error> {
    for entry in fs::read_dir(dir).map_err(Error::file(dir))? {
        let entry = entry.map_err(Error::file(dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::file(&path))?;
        let found = if kind.is_dir() {
            folder_contains(&path, needle)?
        } else if kind.is_file() {
            let bytes = fs::read(&path).map_err(Error::file(&path))?;
            bytes.windows(needle.len()).any(|window| window == needle)
        } else {
            false
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
