//! A real server on loopback over an engine with a store in memory, and clients of every kind.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lastkey_crypto::{SecretBytes, SystemEntropy, mac};
use lastkey_engine::{
    BuiltinPolicy, Clock as _, Engine, FileSeal, ManualClock, Parts, SystemClock, Timestamp,
    audit::AuditLog, command::CreateAccessKey,
};
use lastkey_server::{CertificateSource, Limits, Server, ServerConfig};
use lastkey_store::MemoryStore;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) const ACCESS_KEY_ID: &str = "LKtest";
pub(crate) const SECRET: &str = "0123456789012345678901234567890123456789012";

/// A server that runs until it is dropped or stopped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
    pub(crate) admin: PathBuf,
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) directory: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub(crate) async fn engine(directory: &std::path::Path, clock: Arc<ManualClock>) -> Engine {
    let (audit, journal) = (directory.join("audit"), directory.join("journal"));
    let engine = Engine::start(Parts {
        store: Arc::new(MemoryStore::new()),
        seal: Arc::new(FileSeal::new(directory.join("root.key"))),
        clock,
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| {
            AuditLog::open(&audit, &journal, key).map(|log| Arc::new(log) as _)
        }),
        anchor: std::sync::Arc::new(lastkey_engine::NoAnchor),
        incarnation: Box::new(|| Ok("here".to_owned())),
    })
    .await
    .unwrap();
    let key = CreateAccessKey {
        id: ACCESS_KEY_ID.to_owned(),
        secret: SecretBytes::new(SECRET.as_bytes().to_vec()),
    };
    engine.execute(&engine.system_caller(), key).await.unwrap();
    engine
}

/// Starts a server with these limits.
pub(crate) async fn start_with(limits: Limits) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let engine = engine(directory.path(), clock.clone()).await;
    let admin = directory.path().join("admin.sock");
    let config = ServerConfig {
        limits,
        admin_socket: Some(admin.clone()),
        certificate: CertificateSource::Authority { names: vec!["kms.example".to_owned()] },
        ..ServerConfig::on("127.0.0.1:0")
    };
    let bound = Server::bind(config, engine.clone()).await.unwrap();
    let address = bound.address();
    assert_eq!(bound.url(), format!("https://127.0.0.1:{}", address.port()));
    let ca_pem = bound.pki().unwrap().ca_pem().to_owned();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(bound.run(async move {
        let _ = stopped.await;
    }));
    Running { address, ca_pem, admin, engine, clock, directory, stop: Some(stop), task }
}

pub(crate) async fn start() -> Running {
    start_with(Limits::default()).await
}

/// A client's certificate and key.
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key: rcgen::KeyPair,
}

impl Running {
    /// Stops the server and waits for its end.
    pub(crate) async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        (&mut self.task).await.unwrap();
    }

    pub(crate) fn client_config(&self, identity: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let certificate =
                    CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        }
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn tls(&self, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, self.tcp().await).await
    }

    /// Sends one request over a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.send_as(None, request).await
    }

    pub(crate) async fn send_as(
        &self,
        identity: Option<&Identity>,
        request: Request<Full<Bytes>>,
    ) -> Answer {
        let stream = self.tls(self.client_config(identity)).await.unwrap();
        exchange(TokioIo::new(stream), request).await
    }

    pub(crate) async fn send_h2(&self, request: Request<Full<Bytes>>) -> Answer {
        let mut config = self.client_config(None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TokioIo::new(self.tls(config).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        Answer::read(sender.send_request(request).await.unwrap()).await
    }

    /// Sends one request over the admin socket.
    pub(crate) async fn send_admin(&self, request: Request<Full<Bytes>>) -> Answer {
        let stream = UnixStream::connect(&self.admin).await.unwrap();
        exchange(TokioIo::new(stream), request).await
    }

    /// Calls an operation of the Alibaba wire, signed with ACS3.
    pub(crate) async fn call(&self, action: &str, params: &[(&str, &str)]) -> Answer {
        self.send(self.signed(action, params)).await
    }

    pub(crate) fn signed(&self, action: &str, params: &[(&str, &str)]) -> Request<Full<Bytes>> {
        Signer::new(self, action).sign(("POST", "/"), params, b"")
    }

    /// A native call of a local administrator.
    pub(crate) async fn native(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send_admin(json_request(method, path, body)).await
    }

    /// Sends bytes as they are over TLS and reads until the end.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.tls(self.client_config(None)).await.unwrap();
        let _ = stream.write_all(bytes).await;
        read_to_end(&mut stream).await
    }

    /// As [`Self::raw`], of a connection that may stay open: the head of the answer, and of its
    /// body what came with it.
    pub(crate) async fn raw_answer(&self, bytes: &[u8]) -> String {
        let mut stream = self.tls(self.client_config(None)).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        let mut answer = vec![0; 8192];
        let mut length = 0;
        let complete = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            let (head, body) = text.split_once("\r\n\r\n")?;
            let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() >= announced.parse().ok()?).then_some(())
        };
        while complete(&answer[..length]).is_none() {
            match stream.read(&mut answer[length..]).await {
                Ok(0) | Err(_) => break,
                Ok(more) => length += more,
            }
        }
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// The value of a metric, asked for over the admin socket.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.native("GET", "/metrics", &Value::Null).await.text;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// How often something was refused or closed for this reason.
    pub(crate) async fn shed(&self, reason: &str) -> u64 {
        self.metric(&format!("lastkey_shed_total{{reason=\"{reason}\"}}")).await
    }

    pub(crate) fn audit_text(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.directory.path().join("audit")).unwrap() {
            text += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
        }
        text
    }
}

pub(crate) async fn read_to_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("the server hangs");
    String::from_utf8_lossy(&text).into_owned()
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> Answer
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    Answer::read(sender.send_request(request).await.unwrap()).await
}

pub(crate) fn json_request(method: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A response, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    async fn read(response: Response<hyper::body::Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Self { status: head.status, headers: head.headers, text }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    /// Status and code of an error of either wire.
    pub(crate) fn error(&self) -> (u16, String) {
        let json = self.json();
        let code = json["Code"].as_str().or(json["code"].as_str()).unwrap_or_default();
        (self.status.as_u16(), code.to_owned())
    }
}

/// An ACS3 signer written from the protocol's description alone.
pub(crate) struct Signer {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) secret: String,
    pub(crate) access_key_id: String,
}

impl Signer {
    pub(crate) fn new(server: &Running, action: &str) -> Self {
        let nonce = hex::encode(server.engine.new_request_id().to_string());
        Self::at(server.clock.now(), action, &nonce)
    }

    pub(crate) fn at(time: Timestamp, action: &str, nonce: &str) -> Self {
        let headers = [
            ("host", "localhost"),
            ("x-acs-action", action),
            ("x-acs-version", "2016-01-20"),
            ("x-acs-date", &time.to_seconds_text()),
            ("x-acs-signature-nonce", nonce),
        ];
        Self {
            headers: headers.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
            secret: SECRET.to_owned(),
            access_key_id: ACCESS_KEY_ID.to_owned(),
        }
    }

    pub(crate) fn sign(
        mut self,
        (method, path): (&str, &str),
        params: &[(&str, &str)],
        body: &[u8],
    ) -> Request<Full<Bytes>> {
        let hash = hex::encode(mac::sha256(&[body]));
        self.headers.push(("x-acs-content-sha256".to_owned(), hash.clone()));
        self.headers.sort();
        let mut params: Vec<_> = params.iter().map(|(n, v)| (escape(n), escape(v))).collect();
        params.sort();
        let query: Vec<_> = params.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let query = query.join("&");
        let lines: String = self.headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
        let names: Vec<_> = self.headers.iter().map(|(n, _)| n.as_str()).collect();
        let names = names.join(";");
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{hash}");
        let digest = hex::encode(mac::sha256(&[canonical.as_bytes()]));
        let text = format!("ACS3-HMAC-SHA256\n{digest}");
        let signature = hex::encode(mac::hmac_sha256(self.secret.as_bytes(), &[text.as_bytes()]));
        let credential = &self.access_key_id;
        let authorization = format!(
            "ACS3-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}"
        );
        let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
            .header("authorization", authorization)
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap()
    }
}

pub(crate) fn escape(text: &str) -> String {
    let byte = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(b).to_string()
        }
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A request of RPC v1, all in the query (GET) or in a form (POST).
pub(crate) fn rpc(
    server: &Running,
    method: &str,
    action: &str,
    params: &[(&str, &str)],
) -> Request<Full<Bytes>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let nonce = server.engine.new_request_id().to_string();
    let time = server.clock.now().to_seconds_text();
    let common = [
        ("Action", action),
        ("Version", "2016-01-20"),
        ("AccessKeyId", ACCESS_KEY_ID),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("SignatureType", ""),
        ("SignatureNonce", &nonce),
        ("Timestamp", &time),
    ];
    let mut all: Vec<_> =
        common.iter().chain(params).map(|(n, v)| format!("{}={}", escape(n), escape(v))).collect();
    all.sort();
    let text = format!("{method}&%2F&{}", escape(&all.join("&")));
    let tag = mac::hmac_sha1(format!("{SECRET}&").as_bytes(), &[text.as_bytes()]);
    all.push(format!("Signature={}", escape(&STANDARD.encode(tag))));
    let all = all.join("&");
    let request = Request::builder().method(method).header("host", "localhost");
    if method == "GET" {
        request.uri(format!("/?{all}")).body(Full::default()).unwrap()
    } else {
        request
            .uri("/")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::new(all.into()))
            .unwrap()
    }
}

/// Replaces what differs from run to run: UUIDs, times, base64 blobs.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(tail) = skip_uuid(rest) {
            out.push_str("<id>");
            rest = tail;
        } else if let Some(tail) = skip_time(rest) {
            out.push_str("<time>");
            rest = tail;
        } else {
            let length = rest.chars().next().unwrap().len_utf8();
            out.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    out
}

fn skip_uuid(text: &str) -> Option<&str> {
    let id = text.get(..36)?;
    let shape = |(at, b): (usize, u8)| match at {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    };
    id.bytes().enumerate().all(shape).then(|| &text[36..])
}

fn skip_time(text: &str) -> Option<&str> {
    let time = text.get(..20)?;
    let shape = |(at, b): (usize, u8)| match at {
        4 | 7 => b == b'-',
        10 => b == b'T',
        13 | 16 => b == b':',
        19 => b == b'Z',
        _ => b.is_ascii_digit(),
    };
    time.bytes().enumerate().all(shape).then(|| &text[20..])
}
