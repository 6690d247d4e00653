//! A server with a cluster whose nodes may enrol, and plugins on such nodes.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::{
    ffi::{OsStr, OsString},
    fmt::Display,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use lastkey_testbed::{
    Authority, Client, Daemon, Error, Pair, Response, Running, eventually, free_port,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    grpc,
    support::{KEY, Lab},
};

/// A plugin that waits asks every 15 seconds, on a machine that may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// `up`, and the cluster `prod` with a CA of its own.
pub(crate) struct Town {
    pub(crate) lab: Lab,
    pub(crate) up: Running,
    pub(crate) ca: Authority,
    /// The id of `prod`.
    pub(crate) cluster: String,
}

impl Town {
    pub(crate) fn new() -> Self {
        Self::with(Lab::new(), &[])
    }

    /// With these options for `cluster add`.
    pub(crate) fn with(lab: Lab, options: &[&str]) -> Self {
        let up = lab.up();
        let ca = Authority::new("kubernetes").unwrap();
        let mut town = Self { lab, up, ca, cluster: String::new() };
        town.cluster = town.add(("prod", options), town.ca.certificate());
        town
    }

    pub(crate) fn add_cluster(&self, name: &str, ca: &Authority) -> String {
        self.add((name, &[]), ca.certificate())
    }

    fn add(&self, (name, options): (&str, &[&str]), ca: &str) -> String {
        let (file, out) = (self.lab.path(&format!("{name}-ca.crt")), self.lab.path(name));
        fs::write(&file, ca).unwrap();
        let fixed = ["cluster", "add", name, "--key", KEY, "--node-ca", file.to_str().unwrap()];
        let out = ["--out", out.to_str().unwrap()];
        let added = self.cli(&[&fixed[..], &out, options].concat());
        assert!(!Path::new(out[1]).join("plugin.key").exists(), "no key is made here");
        assert!(added["plugin_key_file"].is_null(), "{added}");
        added["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn cli(&self, args: &[&str]) -> Value {
        self.lab.cli(&self.up.ready, args)
    }

    /// The certificate of a node's kubelet.
    pub(crate) fn kubelet(&self, node: &str) -> Pair {
        self.ca.client(&format!("system:node:{node}"), &["system:nodes"]).unwrap()
    }

    /// A client of the server that shows this certificate.
    pub(crate) fn client(&self, pair: &Pair) -> Client {
        let ca = fs::read_to_string(&self.up.ready.ca_file).unwrap();
        Client::tls(self.up.ready.address(), &ca, Some(pair)).unwrap()
    }

    /// One request to enrol.
    pub(crate) fn enrol(&self, pair: &Pair, cluster: &str) -> Result<Response, Error> {
        let body = serde_json::json!({ "csr_pem": csr() });
        let path = format!("/v1/clusters/{cluster}/nodes/enrol");
        self.client(pair).send("POST", &path, Some(&body))
    }

    /// What the list says of a node, once it is in that state.
    pub(crate) fn until_node(&self, node: &str, state: &str) -> Value {
        eventually(&format!("{node} is {state}"), PATIENCE, || {
            let listed = self.cli(&["cluster", "node", "list"]);
            let items = listed["items"].as_array().cloned().unwrap_or_default();
            let found = items.into_iter().find(|one| one["node"] == node && one["state"] == state);
            found.ok_or_else(|| listed.to_string())
        })
        .unwrap()
    }

    /// A plugin that enrols by a kubelet's certificate, in one file as the kubelet has it.
    pub(crate) fn plugin(&self, name: &str, kubelet: &Pair) -> Plugin {
        let file = self.lab.path(&format!("{name}-kubelet.pem"));
        fs::write(&file, format!("{}{}", kubelet.certificate, kubelet.key)).unwrap();
        self.plugin_by(name, &file)
    }

    pub(crate) fn plugin_by(&self, name: &str, kubelet: &Path) -> Plugin {
        let options = ["--enrol", "--cluster", &self.cluster, "--kubelet-cert"].map(OsString::from);
        let kubelet = kubelet.as_os_str().to_owned();
        self.start(name, options.into_iter().chain([kubelet]).collect(), None)
    }

    /// A plugin with the files that `cluster add` has written.
    pub(crate) fn plugin_with_files(&self, name: &str, out: &Path) -> Plugin {
        let files = [out.join("plugin.pem"), out.join("plugin.key")];
        let options = vec![
            "--client-cert".into(),
            files[0].clone().into(),
            "--client-key".into(),
            files[1].clone().into(),
        ];
        self.start(name, options, Some(files))
    }

    fn start(&self, name: &str, more: Vec<OsString>, files: Option<[PathBuf; 2]>) -> Plugin {
        let socket = self.lab.path(&format!("{name}.sock"));
        let state = self.lab.path(&format!("{name}-state"));
        let ready = &self.up.ready;
        let mut options: Vec<OsString> = vec!["kms-plugin".into()];
        for (option, value) in [
            ("--socket", socket.as_os_str()),
            ("--key", OsStr::new(KEY)),
            ("--server", OsStr::new(&ready.url)),
            ("--ca-file", ready.ca_file.as_os_str()),
            ("--state-dir", state.as_os_str()),
        ] {
            options.extend([option.into(), value.to_owned()]);
        }
        let port = free_port().unwrap();
        options.extend(["--metrics-listen".into(), format!("127.0.0.1:{port}").into()]);
        options.extend(more);
        let identity = state.join("identity.pem");
        let files = files.unwrap_or([identity.clone(), identity]);
        let lastkey = self.lab.lastkey.clone();
        let process = start(&lastkey, name, &options);
        Plugin { name: name.to_owned(), socket, port, files, options, lastkey, process }
    }
}

fn start(lastkey: &lastkey_testbed::Lastkey, name: &str, options: &[OsString]) -> Daemon {
    lastkey.start(name, options.iter().map(OsString::as_os_str)).unwrap()
}

/// A running plugin.
pub(crate) struct Plugin {
    name: String,
    pub(crate) socket: PathBuf,
    /// Of its metrics.
    port: u16,
    files: [PathBuf; 2],
    options: Vec<OsString>,
    lastkey: lastkey_testbed::Lastkey,
    process: Daemon,
}

impl Plugin {
    /// Where its identity lies.
    pub(crate) fn identity(&self) -> &Path {
        &self.files[0]
    }

    /// Its identity.
    pub(crate) fn pair(&self) -> Pair {
        let read = |path: &Path, what: &str| {
            let text = fs::read_to_string(path).unwrap();
            let begin = text.find(&format!("-----BEGIN {what}")).unwrap();
            let end = text[begin..].find("-----END").unwrap() + begin;
            let end = text[end..].find('\n').map_or(text.len(), |at| end + at + 1);
            text[begin..end].to_owned()
        };
        Pair {
            certificate: read(&self.files[0], "CERTIFICATE"),
            key: read(&self.files[1], "PRIVATE KEY"),
        }
    }

    /// Waits until it can do its work.
    pub(crate) fn until_ready(&mut self) {
        self.process.check().unwrap();
        eventually(&format!("the plugin of {} works", self.name), PATIENCE, || {
            encrypt(&self.socket).map_err(|error| format!("{error}\n{}", self.process.log()))
        })
        .unwrap();
    }

    pub(crate) fn pid(&self) -> String {
        self.process.pid().to_string()
    }

    /// Its page of metrics, if it answers.
    pub(crate) fn metrics(&self) -> Option<String> {
        let page = Client::plain(&format!("127.0.0.1:{}", self.port));
        Some(page.get("/metrics").ok()?.text())
    }

    /// Everything that it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    pub(crate) fn until_log(&mut self, text: &str) {
        eventually(&format!("the log says {text}"), PATIENCE, || {
            let log = self.process.log();
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .unwrap();
    }

    pub(crate) fn stop(&mut self) {
        assert!(self.process.stop(Signal::TERM, Duration::from_secs(10)).unwrap().success());
    }

    pub(crate) fn restart(&mut self) {
        self.process.kill();
        self.process = start(&self.lastkey, &self.name, &self.options);
    }
}

/// Has a plugin encrypt a seed.
pub(crate) fn encrypt(socket: &Path) -> Result<(), String> {
    let message = [&[0x0a, 4][..], b"seed", &[0x12, 3], b"uid"].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let call = async {
        let call = grpc::call(socket, "Encrypt", &message);
        tokio::time::timeout(Duration::from_secs(30), call).await
    };
    let say = |error: &dyn Display| error.to_string();
    runtime.block_on(call).map_err(|error| say(&error))?.map(drop).map_err(|error| say(&error))
}

/// A signing request by a key that is thrown away.
pub(crate) fn csr() -> String {
    let pair = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&pair).unwrap().pem().unwrap()
}

/// The fingerprint of a certificate (PEM), in hexadecimal.
pub(crate) fn sha256_of(pem: &str) -> String {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    hex::encode(lastkey_crypto::mac::sha256(&[&der]))
}

/// The answer to a POST over the admin socket.
pub(crate) fn over_socket(socket: &Path, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
