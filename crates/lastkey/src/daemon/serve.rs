//! `up` and `server`: from options to a running server.

use std::{path::PathBuf, sync::Arc};

use lastkey_client::{Client, ClientCertificate, Config};
use lastkey_crypto::SystemEntropy;
use lastkey_engine::{
    BuiltinPolicy, Engine, FileSeal, Parts, SystemClock,
    audit::{AuditLog, AuditSink},
};
use lastkey_kubernetes::{
    plugin::{Plugin, PluginConfig},
    socket::SocketAddress,
};
use lastkey_server::{Bound, CertificateSource, Server, ServerConfig};
use lastkey_store::{OpenOptions, RedbStore};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::{
    data_dir::{DataDir, replace},
    first_start::{self, KUBERNETES, failed},
    identity, on_signal,
    ready::Ready,
    stopped,
};
use crate::{
    cli::ServerOptions,
    connect::default_data_dir,
    output::{Exit, Failure, Output},
};

/// A server that is open but does not answer yet, and what it stands on.
struct Opened {
    data: DataDir,
    engine: Engine,
    bound: Bound,
    ready: Ready,
}

/// Runs the server alone.
pub(super) async fn server(options: ServerOptions, output: &Output) -> Result<(), Failure> {
    let stop = on_signal()?;
    let Opened { data, engine, bound, ready } = open(options).await?;
    announce(output, &ready, &data, None);
    bound.run(stopped(stop)).await;
    engine.shutdown().await;
    Ok(())
}

/// Runs the server, and a plugin that is its client like any other.
pub(super) async fn up(options: ServerOptions, output: &Output) -> Result<(), Failure> {
    if options.tls_cert.is_some() && options.tls_ca.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "with --tls-cert, up needs --tls-ca FILE as well: its own plugin has to trust the \
             certificate's CA",
        ));
    }
    let stop = on_signal()?;
    let Opened { data, engine, bound, mut ready } = open(options).await?;
    let ended = with_plugin(&data, &engine, (bound, stop), (&mut ready, output)).await;
    engine.shutdown().await;
    ended
}

async fn with_plugin(
    data: &DataDir,
    engine: &Engine,
    (bound, stop): (Bound, watch::Receiver<bool>),
    (ready, output): (&mut Ready, &Output),
) -> Result<(), Failure> {
    ready.key_id = Some(first_start::kubernetes_key(engine).await?);
    let cluster = first_start::cluster(engine).await?;
    identity::issue(engine, &bound.pki(), cluster, data).await?;
    let plugin = plugin(data, &bound)?;
    let socket = data.plugin_socket();
    let config = encryption_config(&socket)?;
    replace(&data.encryption_config(), config.as_bytes(), 0o644)?;
    ready.plugin_socket = Some(socket.display().to_string());
    ready.plugin_cert_file = Some(data.plugin_certificate());
    ready.plugin_key_file = Some(data.plugin_key());
    ready.encryption_config_file = Some(data.encryption_config());

    let (works, working) = oneshot::channel();
    let server = bound.run(stopped(stop.clone()));
    let serve_plugin = plugin.run(
        move |_| {
            let _ = works.send(());
        },
        stopped(stop),
    );
    let say = async {
        if working.await.is_ok() {
            announce(output, ready, data, Some(&config));
        }
    };
    let ((), served, ()) = tokio::join!(server, serve_plugin, say);
    served.map_err(failed)
}

/// Everything up to the open doors, in the order in which it can fail harmlessly.
async fn open(options: ServerOptions) -> Result<Opened, Failure> {
    let directory = options.data_dir.clone().unwrap_or_else(default_data_dir);
    let data = DataDir::prepare(&directory)?;
    // The first random bytes of a process are slow; nobody should wait for them later.
    SystemEntropy.warm();
    let store = RedbStore::open(data.store(), OpenOptions::default()).map_err(failed)?;
    let engine = start_engine(&data, store).await?;
    match open_doors(&data, &engine, options).await {
        Ok((bound, ready)) => Ok(Opened { data, engine, bound, ready }),
        Err(failure) => {
            engine.shutdown().await;
            Err(failure)
        }
    }
}

async fn start_engine(data: &DataDir, store: RedbStore) -> Result<Engine, Failure> {
    let (audit, journal) = (data.audit(), data.journal());
    let medium = data.clone();
    let parts = Parts {
        store: Arc::new(store),
        seal: Arc::new(FileSeal::new(data.root_key())),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| {
            let log = AuditLog::open(&audit, &journal, key)?;
            Ok(Arc::new(log) as Arc<dyn AuditSink>)
        }),
        anchor: Arc::new(lastkey_engine::FileAnchor::new(data.anchor())),
        incarnation: Box::new(move || medium.incarnation()),
    };
    Engine::start(parts).await.map_err(failed)
}

async fn open_doors(
    data: &DataDir,
    engine: &Engine,
    options: ServerOptions,
) -> Result<(Bound, Ready), Failure> {
    let certificate = match (options.tls_cert, options.tls_key) {
        (Some(certificate), Some(key)) => {
            CertificateSource::Files { certificate, key, ca: options.tls_ca }
        }
        _ => CertificateSource::Authority { names: options.tls_names },
    };
    let config = ServerConfig {
        certificate,
        admin_socket: Some(data.admin_socket()),
        ..ServerConfig::on(options.listen)
    };
    let bound = Server::bind(config, engine.clone()).await.map_err(failed)?;
    replace(&data.ca(), bound.pki().ca_pem().as_bytes(), 0o644)?;
    let url = bound.url();
    let has_credentials = first_start::credentials(engine, data, &url).await?;
    let ready = Ready {
        url: Some(url),
        ca_file: Some(data.ca()),
        credentials_file: has_credentials.then(|| data.credentials()),
        admin_socket: Some(data.admin_socket()),
        ..Ready::default()
    };
    Ok((bound, ready))
}

/// The plugin inside `up`: over TLS, with a certificate, like any other.
fn plugin(data: &DataDir, bound: &Bound) -> Result<Plugin, Failure> {
    let endpoint = bound.url().parse().map_err(failed)?;
    let certificate =
        ClientCertificate { certificate: data.plugin_certificate(), key: data.plugin_key() };
    let client = Client::new(Config::mutual_tls(vec![endpoint], data.ca(), certificate))?;
    let sockets = vec![SocketAddress::Path(data.plugin_socket())];
    Plugin::bind(PluginConfig::new(Arc::new(client), KUBERNETES, sockets)).map_err(failed)
}

fn encryption_config(socket: &std::path::Path) -> Result<String, Failure> {
    crate::command::cluster::encryption_config(socket)
}

/// Says what runs where, and what to do next.
fn announce(output: &Output, ready: &Ready, data: &DataDir, config: Option<&str>) {
    output.object(&json!(ready), || greeting(ready, data, config));
    tracing::info!(
        path = %data.root_key().display(),
        "the root key is kept in a file: whoever can read it can read every key"
    );
}

fn greeting(ready: &Ready, data: &DataDir, config: Option<&str>) -> String {
    let shown = |path: &Option<PathBuf>| {
        path.as_ref().map_or_else(|| "(moved away)".to_owned(), |path| path.display().to_string())
    };
    let url = ready.url.as_deref().unwrap_or_default();
    let credentials = shown(&ready.credentials_file);
    let mut text = format!(
        "Lastkey {version} runs. Ctrl-C stops it.\n\n\
         \x20 server       {url}\n\
         \x20 CA           {ca}\n\
         \x20 credentials  {credentials}\n\
         \x20 admin        {admin}\n\
         \x20 root key     {root} (a file: whoever can read it can read every key)\n",
        version = env!("CARGO_PKG_VERSION"),
        ca = shown(&ready.ca_file),
        admin = shown(&ready.admin_socket),
        root = data.root_key().display(),
    );
    if let (Some(socket), Some(config)) = (&ready.plugin_socket, config) {
        let key = ready.key_id.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "\x20 KMS plugin   {socket}\n\
             \x20 its key      {KUBERNETES} ({key})\n\n\
             For the apiserver, --encryption-provider-config={file}\n\n{config}",
            file = shown(&ready.encryption_config_file),
        ));
    }
    let next = match &ready.credentials_file {
        Some(path) => format!("--credentials {}", path.display()),
        None => format!("--admin-socket {}", data.admin_socket().display()),
    };
    text.push_str(&format!("\nNext, in another terminal:\n  lastkey key list {next}"));
    text
}
