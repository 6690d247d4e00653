//! A fake key server with a key of its own, and a plugin in front of it.

// each test binary uses its part, and clippy sees no test in helpers
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../../../lastkey-client/tests/support/mod.rs"]
pub mod fake;

use std::{path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fake::{Answer, FakeServer, Handler, Pki, handler};
use lastkey_client::{Client, ClientCertificate, Config};
use lastkey_crypto::{
    ClusterId, Epoch, KeyMaterial, KeyVersionId, Lineage, SystemEntropy,
    blob::{self, Blob},
    plugin_blob::PluginKey,
};
use lastkey_kubernetes::{
    plugin::{Metrics, Plugin, PluginConfig, PluginError, Ready},
    socket::SocketAddress,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::transport::{Channel, Endpoint};

/// How the fake server behaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    Good,
    /// usable: false, with this code; calls fail with it and 409.
    Refused(&'static str),
    /// Every call fails with this status and code.
    Fails(u16, &'static str),
    /// Not JSON.
    Garbage,
    /// Answers after this long.
    Slow(Duration),
    /// Names a key id of its own.
    WrongKeyId,
    /// Encrypts under another epoch than it was told.
    IgnoresPin,
    /// Refuses every pin.
    AlwaysStale,
}

pub struct FakeKms {
    pub state: Mutex<State>,
    changes: watch::Sender<u64>,
}

pub struct State {
    pub mode: Mode,
    pub key: PluginKey,
    material: Vec<(KeyVersionId, Arc<KeyMaterial>)>,
    /// The generation before, while its pin is honoured.
    pub previous: Option<PluginKey>,
    pub encrypts: usize,
    pub decrypts: usize,
    pub lease_seconds: u64,
    /// Whether what was opened with the key may be used again.
    pub keeps: bool,
    /// Whether Encrypt says that it has opened what it made; older servers don't.
    pub opens: bool,
    /// What was answered elsewhere: the batches, by number.
    pub recorded: Vec<Value>,
}

fn new_version() -> (KeyVersionId, Arc<KeyMaterial>) {
    (KeyVersionId::random(&SystemEntropy), Arc::new(KeyMaterial::generate(32, &SystemEntropy)))
}

impl FakeKms {
    pub fn new() -> Arc<Self> {
        let version = new_version();
        let key = PluginKey {
            lineage: Lineage::random(&SystemEntropy),
            cluster: ClusterId::random(&SystemEntropy),
            key_version: version.0,
            epoch: Epoch::random(&SystemEntropy),
        };
        let state = State {
            mode: Mode::Good,
            key,
            material: vec![version],
            previous: None,
            encrypts: 0,
            decrypts: 0,
            lease_seconds: 900,
            keeps: true,
            opens: true,
            recorded: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), changes: watch::channel(1).0 })
    }

    /// As if its data directory were copied and served as well: the same key, in an epoch of its
    /// own, and what comes later is known to one of them only.
    pub fn copy(&self) -> Arc<Self> {
        let copy = Self::new();
        let (state, mut copied) = (self.state.lock(), copy.state.lock());
        copied.key = PluginKey { epoch: Epoch::random(&SystemEntropy), ..state.key };
        copied.material.clone_from(&state.material);
        drop(copied);
        // what it says must not look like what the other one said
        copy.changes.send_modify(|count| *count += 1000);
        copy
    }

    pub fn key(&self) -> PluginKey {
        self.state.lock().key
    }

    pub fn set(&self, mode: Mode) {
        self.state.lock().mode = mode;
        self.changes.send_modify(|count| *count += 1);
    }

    /// A new primary version; without `tell`, the watch does not hear of it.
    pub fn rotate(&self, honour_old_pins: bool, tell: bool) {
        let version = new_version();
        let mut state = self.state.lock();
        let old = state.key;
        state.previous = honour_old_pins.then_some(old);
        state.key =
            PluginKey { key_version: version.0, epoch: Epoch::random(&SystemEntropy), ..old };
        state.material.push(version);
        drop(state);
        if tell {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    pub fn handler(self: &Arc<Self>) -> Handler {
        let kms = self.clone();
        handler(move |parts, body| {
            let kms = kms.clone();
            async move {
                if parts.uri.path() == "/readyz" {
                    return kms.readyz();
                }
                let body: Value = serde_json::from_slice(&body).unwrap();
                if parts.uri.path() != "/v1/plugin/records" {
                    assert_eq!(body["key"], "alias/kubernetes");
                }
                kms.answer(parts.uri.path(), &body).await
            }
        })
    }

    async fn answer(&self, path: &str, body: &Value) -> Answer {
        let mode = self.state.lock().mode.clone();
        match mode {
            Mode::Fails(status, code) => return refusal(status, code),
            Mode::Garbage => return (200, "<html>".into()),
            Mode::Slow(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        match path {
            "/v1/plugin/status" => self.status(body).await,
            "/v1/plugin/encrypt" => self.encrypt(body),
            "/v1/plugin/decrypt" => self.decrypt(body),
            "/v1/plugin/records" => self.records(body),
            _ => refusal(404, "Forbidden.ResourceNotFound"),
        }
    }

    fn readyz(&self) -> Answer {
        match self.state.lock().mode {
            Mode::Fails(503, _) => (503, "not ready: sealed\n".into()),
            _ => (200, "ready\n".into()),
        }
    }

    async fn status(&self, body: &Value) -> Answer {
        let mut changes = self.changes.subscribe();
        let wait = Duration::from_secs(body["wait_seconds"].as_u64().unwrap());
        let known = body["known"].as_str().unwrap().to_owned();
        let news = changes.wait_for(|count| count.to_string() != known);
        let token = match tokio::time::timeout(wait, news).await {
            Ok(count) => count.unwrap().to_string(),
            Err(_) => self.changes.borrow().to_string(),
        };
        let state = self.state.lock();
        let PluginKey { lineage, cluster, key_version, epoch } = state.key;
        let refusal = match state.mode {
            Mode::Refused(code) => json!({"code": code, "message": "no"}),
            _ => Value::Null,
        };
        let plugin_key_id = match state.mode {
            Mode::WrongKeyId => "0".repeat(64),
            _ => state.key.key_id(),
        };
        let body = json!({
            "token": token, "usable": refusal.is_null(), "refusal": refusal, "cluster": cluster,
            "key_id": "1d1c6a34-5f0e-4c3b-9a58-6a8f5a0e7c21", "lineage": lineage,
            "key_version": key_version, "epoch": epoch, "plugin_key_id": plugin_key_id,
            "server_time": "2026-01-02T03:04:05Z", "lease_seconds": state.lease_seconds,
            "usable_lineages": if state.keeps { vec![lineage] } else { vec![] },
            "warnings": [],
        });
        (200, body.to_string())
    }

    fn encrypt(&self, body: &Value) -> Answer {
        let mut state = self.state.lock();
        state.encrypts += 1;
        if let Mode::Refused(code) = state.mode {
            return refusal(409, code);
        }
        let pinned = |key: &PluginKey| {
            body["key_version"] == json!(key.key_version) && body["epoch"] == json!(key.epoch)
        };
        let allowed = [Some(state.key), state.previous];
        let Some(mut key) = allowed.into_iter().flatten().find(pinned) else {
            return refusal(409, "Rejected.StaleKeyVersion");
        };
        match state.mode {
            Mode::AlwaysStale => return refusal(409, "Rejected.StaleKeyVersion"),
            Mode::IgnoresPin => key.epoch = Epoch::random(&SystemEntropy),
            _ => {}
        }
        let plaintext = BASE64.decode(body["plaintext"].as_str().unwrap()).unwrap();
        let (id, material) = state.material.iter().find(|(id, _)| *id == key.key_version).unwrap();
        let blob = blob::seal(material, id, &key.context(), &plaintext, &SystemEntropy);
        let PluginKey { lineage, cluster, key_version, epoch } = key;
        let body = json!({
            "cluster": cluster, "lineage": lineage, "key_version": key_version, "epoch": epoch,
            "plugin_key_id": key.key_id(), "blob": BASE64.encode(blob),
            "opened": state.opens,
        });
        (200, body.to_string())
    }

    fn decrypt(&self, body: &Value) -> Answer {
        let mut state = self.state.lock();
        state.decrypts += 1;
        if let Mode::Refused(code) = state.mode {
            return refusal(409, code);
        }
        let parsed = |name: &str| body[name].as_str().unwrap().to_owned();
        let key = PluginKey {
            lineage: parsed("lineage").parse().unwrap(),
            cluster: parsed("cluster").parse().unwrap(),
            key_version: parsed("key_version").parse().unwrap(),
            epoch: parsed("epoch").parse().unwrap(),
        };
        let blob = BASE64.decode(parsed("blob")).unwrap();
        let material = state.material.iter().find(|(id, _)| *id == key.key_version);
        let opened = material.and_then(|(_, material)| {
            Blob::parse(&blob).unwrap().open(material, &key.context()).ok()
        });
        match opened {
            Some(opened) => (200, json!({"plaintext": BASE64.encode(opened.expose())}).to_string()),
            None => refusal(400, "InvalidParameter"),
        }
    }
}

impl FakeKms {
    /// Says whether what was opened may be used again.
    pub fn keeps(&self, keeps: bool) {
        self.state.lock().keeps = keeps;
        self.changes.send_modify(|count| *count += 1);
    }

    /// As the server does: what came before is not recorded twice.
    fn records(&self, body: &Value) -> Answer {
        let mut state = self.state.lock();
        assert_eq!(body["cluster"], json!(state.key.cluster));
        for batch in body["batches"].as_array().unwrap() {
            let known = state.recorded.last().map_or(0, |last| last["sequence"].as_u64().unwrap());
            if batch["sequence"].as_u64().unwrap() > known {
                state.recorded.push(batch.clone());
            }
        }
        let delivered = state.recorded.last().unwrap()["sequence"].clone();
        (200, json!({"delivered": delivered}).to_string())
    }

    /// How many answers were recorded, and the apiserver's names of them.
    pub fn recorded(&self) -> (u64, Vec<String>) {
        let state = self.state.lock();
        let count = state.recorded.iter().map(|batch| batch["count"].as_u64().unwrap()).sum();
        let uids = state.recorded.iter().filter_map(|batch| batch["uids"].as_array()).flatten();
        (count, uids.map(|uid| uid.as_str().unwrap().to_owned()).collect())
    }
}

fn refusal(status: u16, code: &str) -> Answer {
    (status, json!({"code": code, "message": "no", "request_id": "r"}).to_string())
}

/// A plugin that runs in the test's own process.
pub struct Running {
    pub pki: Pki,
    pub kms: Arc<FakeKms>,
    pub server: Option<FakeServer>,
    pub socket: PathBuf,
    pub metrics: Arc<Metrics>,
    ready: Option<oneshot::Receiver<Ready>>,
    stop: Option<oneshot::Sender<()>>,
    plugin: JoinHandle<Result<(), PluginError>>,
}

impl Running {
    /// With a server that works.
    pub async fn start() -> Self {
        Self::start_with(FakeKms::new(), |_| {}).await
    }

    pub async fn start_with(kms: Arc<FakeKms>, change: impl FnOnce(&mut PluginConfig)) -> Self {
        let pki = Pki::new();
        let server = FakeServer::start(&pki, kms.handler()).await;
        let url = server.url();
        Self::launch((pki, server), kms, &[url], change)
    }

    /// With another server beside it, which is asked first.
    pub async fn start_beside(other: &Arc<FakeKms>) -> (Self, FakeServer) {
        Self::start_both(other, FakeKms::new()).await
    }

    /// With these two, of which the other one is asked first.
    pub async fn start_both(other: &Arc<FakeKms>, kms: Arc<FakeKms>) -> (Self, FakeServer) {
        let pki = Pki::new();
        let first = FakeServer::start(&pki, other.handler()).await;
        let server = FakeServer::start(&pki, kms.handler()).await;
        let urls = [first.url(), server.url()];
        (Self::launch((pki, server), kms, &urls, |_| {}), first)
    }

    /// With these addresses before its own.
    pub async fn start_after(pki: Pki, first: &[String], kms: Arc<FakeKms>) -> Self {
        Self::start_after_with((pki, first), kms, |_| {}).await
    }

    pub async fn start_after_with(
        (pki, first): (Pki, &[String]),
        kms: Arc<FakeKms>,
        change: impl FnOnce(&mut PluginConfig),
    ) -> Self {
        let server = FakeServer::start(&pki, kms.handler()).await;
        let urls = [first, &[server.url()]].concat();
        Self::launch((pki, server), kms, &urls, change)
    }

    /// With a server that runs already, on whichever thread.
    pub fn start_before(
        (pki, server): (Pki, FakeServer),
        kms: Arc<FakeKms>,
        change: impl FnOnce(&mut PluginConfig),
    ) -> Self {
        let url = server.url();
        Self::launch((pki, server), kms, &[url], change)
    }

    /// With a network in between that can fall silent.
    pub async fn start_behind(kms: Arc<FakeKms>) -> (Self, Network) {
        let pki = Pki::new();
        let server = FakeServer::start(&pki, kms.handler()).await;
        let network = Network::before(server.address).await;
        let url = format!("https://{}", network.address);
        (Self::launch((pki, server), kms, &[url], |_| {}), network)
    }

    fn launch(
        (pki, server): (Pki, FakeServer),
        kms: Arc<FakeKms>,
        urls: &[String],
        change: impl FnOnce(&mut PluginConfig),
    ) -> Self {
        let certificate =
            ClientCertificate { certificate: pki.file("client.pem"), key: pki.file("client.key") };
        let servers = urls.iter().map(|url| url.parse().unwrap()).collect();
        let client = Client::new(Config::mutual_tls(servers, pki.file("ca.pem"), certificate));
        let socket = pki.file("kms.sock");
        let addresses = vec![SocketAddress::Path(socket.clone())];
        let mut config =
            PluginConfig::new(Arc::new(client.unwrap()), "alias/kubernetes", addresses);
        change(&mut config);
        let plugin = Plugin::bind(config).unwrap();
        let metrics = plugin.metrics();
        let (ready, when_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let plugin = tokio::spawn(plugin.run(|it| drop(ready.send(it)), async {
            let _ = stopped.await;
        }));
        let (ready, stop) = (Some(when_ready), Some(stop));
        Self { pki, kms, server: Some(server), socket, metrics, ready, stop, plugin }
    }

    pub async fn ready(&mut self) -> Ready {
        self.ready.take().unwrap().await.unwrap()
    }

    /// Ready, with a connection that has asked for nothing yet.
    pub async fn connected(&mut self) -> Channel {
        self.ready().await;
        connect(self.socket.clone()).await
    }

    pub async fn stop(mut self) -> Result<(), PluginError> {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.plugin).await.unwrap()
    }

    /// Kills the server, and says where it was.
    pub async fn stop_server(&mut self) -> std::net::SocketAddr {
        self.server.take().unwrap().stop().await
    }

    pub async fn start_server(&mut self, address: std::net::SocketAddr) {
        let server = FakeServer::start_on(address, &self.pki, self.kms.handler()).await;
        self.server = Some(server);
    }
}

/// Passes bytes on, until it is told to keep them.
pub struct Network {
    address: std::net::SocketAddr,
    silent: watch::Sender<bool>,
    accept: JoinHandle<()>,
}

impl Network {
    async fn before(server: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, is_silent) = watch::channel(false);
        let accept = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(server).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                connections.spawn(pass_on(near_read, far_write, is_silent.clone()));
                connections.spawn(pass_on(far_read, near_write, is_silent.clone()));
            }
        });
        Self { address, silent, accept }
    }

    /// Connections stay open, and nothing comes through any more.
    pub fn fall_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        if silent.wait_for(|silent| !silent).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.plugin.abort();
    }
}

pub async fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.unwrap()
}

/// Asks again until the answer is as wanted, as an apiserver's polling does.
pub async fn eventually<T, F: Future<Output = T>>(
    ask: impl Fn() -> F,
    wanted: impl Fn(&T) -> bool,
) -> T {
    for _ in 0..1200 {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within a minute");
}
