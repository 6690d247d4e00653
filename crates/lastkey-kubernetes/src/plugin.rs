//! The Kubernetes KMS plugin: KMS v2 and v1beta1 on the same sockets, in front of a Lastkey server.
//!
//! What it promises to an apiserver:
//!
//! - **Status answers from memory**, and honestly. `ok` while the plugin can work. A text while the
//!   server is away and its lease still runs, so that writes go on for now. A failed *call* when
//!   the key must not be used, because nothing else stops an apiserver from writing (kubernetes
//!   issue 138950).
//! - **The key id is recomputed here** from lineage, cluster, key version and epoch; an answer of
//!   the server that disagrees is no answer.
//! - **Encrypt never flips**: it uses the generation that Status told this very connection.
//! - **Decrypt takes back exactly what Encrypt gave**: ciphertext, key id and annotations, of this
//!   cluster.
//! - **Precise gRPC codes** on every path (one table, in `plugin/problem.rs`), inside the
//!   apiserver's deadline, and bounded work: too many calls at once are refused, not queued.
//!
//! - **Reads go on while the server is away**, for a lease, of what the plugin has opened before
//!   ([`MemoryConfig`]).
//!
//! It holds no key of ours.

mod core;
mod memory;
mod metrics;
mod problem;
mod servers;
mod service;
mod view;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

use lastkey_client::Client;
use lastkey_crypto::ClusterId;
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch as channel},
    task::AbortHandle,
};
use tonic::transport::Server;

use self::{
    core::{Announced, Core},
    memory::Memory,
    service::Services,
    view::View,
    watch::Watch,
};
use crate::socket::{
    Door, Handle, Listener, SocketAddress, SocketError, accept_through, from_environment,
};

pub use self::{
    core::KEY_VERSION_ANNOTATION,
    memory::{DEFAULT_ENTRIES, MemoryConfig},
    metrics::{MemoryMetrics, Method, Metrics},
    view::Leases,
};

/// How long an apiserver that dials waits for the server's first answer, whichever it is; then it is
/// told that there was none. Below its own deadline for Status, of 3 s.
const OPENS_WITHIN: Duration = Duration::from_millis(1500);
/// How long calls in flight have at the end.
const DRAIN: Duration = Duration::from_secs(4);
/// Streams one connection may have open; an apiserver's Decrypts are at most so many.
const MAX_STREAMS: u32 = 256;
/// Streams that a client began and reset before we looked at them; more, and it is sent away.
const MAX_RESETS: usize = 20;
/// Streams that we reset for a client's mistakes; more, and it is sent away.
const MAX_OWN_RESETS: usize = 64;
/// Bytes of one request's headers, decoded; an apiserver's have some hundred.
const MAX_HEADERS: u32 = 16 << 10;
/// Bytes that a client may send before we have read what came: on a stream, and in all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// A client that does not answer a ping, because it reads nothing or has gone, is let go.
const PING_EVERY: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// For a call from its first byte to its last; what takes longer never sent its request whole.
const CALL: Duration = Duration::from_secs(5);

/// What Status answers as its version; it may not change while an apiserver runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusVersion {
    /// Taken by every release from 1.27 on.
    #[default]
    V2Beta1,
    /// Taken from 1.29 on.
    V2,
}

impl StatusVersion {
    /// As on the wire.
    pub fn text(self) -> &'static str {
        match self {
            Self::V2Beta1 => "v2beta1",
            Self::V2 => "v2",
        }
    }
}

/// Takes up another identity where one lies ready, and answers whether it did.
#[derive(Clone)]
pub struct TakeUp(Arc<dyn Fn() -> bool + Send + Sync>);

impl TakeUp {
    /// What does so; it is asked when the server refuses the identity that is shown.
    pub fn new(take_up: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(take_up))
    }

    fn takes_up(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for TakeUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TakeUp").finish_non_exhaustive()
    }
}

/// Everything a plugin is made from, checked before a socket opens.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    /// How the server is reached, and as whom.
    pub client: Arc<Client>,
    /// The key: an id or `alias/…`.
    pub key: String,
    /// The cluster it is for; needed where the client has no plugin's certificate, which names it.
    pub cluster: Option<ClusterId>,
    /// Where to listen; sockets from `LISTEN_FDS` come first, and none of these is opened then.
    pub sockets: Vec<SocketAddress>,
    /// Whether to take sockets from `LISTEN_FDS`; not inside a process that has others.
    pub use_listen_fds: bool,
    /// What Status answers as its version.
    pub version: StatusVersion,
    /// For one call of the apiserver, below its own timeout (3 s by default).
    pub budget: Duration,
    /// Encrypt and Decrypt calls at once; more are refused.
    pub max_calls: usize,
    /// What it remembers of what it has opened; nothing without.
    pub memory: Option<MemoryConfig>,
    /// For how long it goes on while the server is away.
    pub leases: Leases,
    /// Has a refusal that is about the identity looked into before it is believed.
    pub take_up: Option<TakeUp>,
}

impl PluginConfig {
    /// The defaults, for one key.
    pub fn new(client: Arc<Client>, key: impl Into<String>, sockets: Vec<SocketAddress>) -> Self {
        Self {
            client,
            key: key.into(),
            cluster: None,
            sockets,
            use_listen_fds: false,
            version: StatusVersion::default(),
            budget: Duration::from_millis(2500),
            max_calls: 128,
            memory: None,
            leases: Leases::default(),
            take_up: None,
        }
    }
}

/// Why the plugin does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// Nowhere to listen.
    #[error("no socket is given, and LISTEN_FDS hands over none")]
    NoSocket,
    /// No key to use.
    #[error("no key is given")]
    NoKey,
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The gRPC server stopped.
    #[error("the plugin's gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The plugin works: it listens, and the server has answered.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it listens.
    pub sockets: Vec<String>,
    /// What Status answers as the key id; `None` while the server refuses the key.
    pub key_id: Option<String>,
    /// The key's own id, as far as the server told it.
    pub key: Option<String>,
}

/// A plugin whose sockets are open.
#[derive(Debug)]
pub struct Plugin {
    config: PluginConfig,
    listeners: Vec<Listener>,
    metrics: Arc<Metrics>,
    /// Where a predecessor still accepts: resolves once it has stopped.
    predecessor: Option<oneshot::Receiver<()>>,
}

impl Plugin {
    /// Checks the configuration and opens the sockets; an apiserver that dials now waits.
    pub fn bind(config: PluginConfig) -> Result<Self, PluginError> {
        if config.key.is_empty() {
            return Err(PluginError::NoKey);
        }
        config.sockets.iter().try_for_each(SocketAddress::check)?;
        let mut listeners = match config.use_listen_fds {
            true => from_environment()?,
            false => Vec::new(),
        };
        if listeners.is_empty() {
            listeners = config.sockets.iter().map(Listener::bind).collect::<Result<_, _>>()?;
        }
        Self::on(config, listeners, None)
    }

    /// As [`Plugin::bind`], on sockets that a supervisor holds; opens no others.
    ///
    /// # Errors
    /// Without a key or sockets.
    pub fn inherit(config: PluginConfig, listeners: Vec<Listener>) -> Result<Self, PluginError> {
        Self::on(config, listeners, None)
    }

    /// As [`Plugin::bind`], on sockets that a predecessor still accepts from: this plugin begins
    /// once `begin` resolves, and opens no other sockets.
    ///
    /// # Errors
    /// Without a key or sockets.
    pub fn succeed(
        config: PluginConfig,
        listeners: Vec<Listener>,
        begin: oneshot::Receiver<()>,
    ) -> Result<Self, PluginError> {
        Self::on(config, listeners, Some(begin))
    }

    fn on(
        config: PluginConfig,
        listeners: Vec<Listener>,
        predecessor: Option<oneshot::Receiver<()>>,
    ) -> Result<Self, PluginError> {
        if config.key.is_empty() {
            return Err(PluginError::NoKey);
        }
        match listeners.is_empty() {
            true => Err(PluginError::NoSocket),
            false => Ok(Self { config, listeners, metrics: Arc::default(), predecessor }),
        }
    }

    /// Second holds on its sockets, to hand them over.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn handles(&self) -> Result<Vec<Handle>, PluginError> {
        Ok(self.listeners.iter().map(Listener::handle).collect::<Result<_, _>>()?)
    }

    /// Where it listens.
    pub fn sockets(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.address().to_owned()).collect()
    }

    /// Its counters, which outlive it.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Serves until `shutdown` completes; calls `ready` once, when the server has first answered.
    pub async fn run(
        self,
        ready: impl FnOnce(Ready) + Send + 'static,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), PluginError> {
        let sockets = self.sockets();
        let Self { config, listeners, metrics, predecessor } = self;
        // 1. Watch the key.
        let starting = View::starting(config.leases).asking(names(&config.client));
        let (sender, view) = channel::channel(Arc::new(starting));
        let refresh = Arc::new(Notify::new());
        let memory = config
            .memory
            .map(|memory| Arc::new(Memory::new(memory, view.clone(), metrics.memory())));
        let watch = Watch {
            client: config.client.clone(),
            key: config.key.clone(),
            cluster: config.cluster,
            view: sender,
            refresh: refresh.clone(),
            metrics: metrics.clone(),
            memory: memory.clone(),
            warnings: Vec::new(),
            take_up: config.take_up,
        };
        let _watch = AbortOnDrop(tokio::spawn(watch.run()).abort_handle());
        let _ready =
            AbortOnDrop(tokio::spawn(announce(view.clone(), sockets, ready)).abort_handle());
        let servers = servers::look_after(config.client.clone(), metrics.memory());
        let _servers = AbortOnDrop(tokio::spawn(servers).abort_handle());
        let door = Door::default();
        let opens = open(door.clone(), view.clone(), predecessor);
        let _opens = AbortOnDrop(tokio::spawn(opens).abort_handle());
        // 2. Answer the apiserver.
        let core = Arc::new(Core {
            client: config.client.clone(),
            key: config.key,
            view,
            refresh,
            permits: Semaphore::new(config.max_calls),
            budget: config.budget,
            last_announced: Announced::default(),
            memory: memory.clone(),
            metrics: metrics.memory(),
        });
        // 3. Remember, record and deliver what was answered without the server.
        let _memory = memory.clone().map(|memory| {
            let client = config.client;
            let work = async move { memory.work(&client).await };
            AbortOnDrop(tokio::spawn(work).abort_handle())
        });
        let closed = metrics.closed();
        let services = Services::new(core, metrics, config.version);
        let incoming = accept_through::<Announced>(&door, listeners, closed)?;
        let serve = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
            .http2_max_local_error_reset_streams(Some(MAX_OWN_RESETS))
            .http2_max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PONG_WITHIN))
            .timeout(CALL)
            // the end of `incoming` ends it, so that nothing accepted is dropped
            .serve_with_incoming_shutdown(services, incoming, std::future::pending());
        // 4. At the end, let calls in flight finish, but not for ever.
        let deadline = async {
            shutdown.await;
            door.close();
            tokio::time::sleep(DRAIN).await;
        };
        let served = tokio::select! {
            served = serve => served,
            () = deadline => Ok(()),
        };
        if let Some(memory) = memory {
            memory.close().await;
        }
        Ok(served?)
    }
}

/// Opens the sockets and serves: [`Plugin::bind`] and [`Plugin::run`] in one.
pub async fn run(
    config: PluginConfig,
    ready: impl FnOnce(Ready) + Send + 'static,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), PluginError> {
    Plugin::bind(config)?.run(ready, shutdown).await
}

/// For the fuzz target: reads a spool of local answers. Answers how many batches are whole.
#[doc(hidden)]
pub fn read_spool(bytes: &[u8]) -> Option<usize> {
    memory::read_spool(bytes)
}

/// The addresses of the server, for people.
fn names(client: &Client) -> String {
    client.servers().iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets the apiserver in: after a predecessor, else once the server has answered or has failed to,
/// so that a restart never answers what it does not know yet.
async fn open(
    door: Door,
    mut view: channel::Receiver<Arc<View>>,
    predecessor: Option<oneshot::Receiver<()>>,
) {
    match predecessor {
        Some(begin) => {
            if begin.await.is_err() {
                return;
            }
        }
        None => {
            let waits = |view: &Arc<View>| {
                matches!(view.standing, view::Standing::Starting { problem: None })
            };
            let heard = view.wait_for(|view| !waits(view));
            let _ = tokio::time::timeout(OPENS_WITHIN, heard).await;
        }
    }
    door.open();
}

async fn announce(
    mut view: channel::Receiver<Arc<View>>,
    sockets: Vec<String>,
    ready: impl FnOnce(Ready),
) {
    if let Ok(heard) = view.wait_for(|view| !view.is_starting()).await {
        let said = heard.announce(view::uptime()).ok();
        let key = heard.id.map(|id| id.to_string());
        ready(Ready { sockets, key_id: said.map(|said| said.key_id), key });
    }
}
