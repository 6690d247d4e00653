//! `up` and `server`: from options to a running server.
//!
//! A server under a seal that opens by itself is unsealed before a port opens. Under any other it
//! opens its doors sealed, and what a first start makes is made when it is unsealed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use lastkey_client::{Client, Config};
use lastkey_crypto::SystemEntropy;
use lastkey_engine::{
    BuiltinPolicy, Error, FileSeal, Instance, Life, OperatorError, Parts, Seal, SealKind, Seals,
    StartError, SystemClock, TokenConfig, TokenSeal, audit::AuditOpenError,
};
use lastkey_kubernetes::{
    plugin::{Plugin, PluginConfig},
    socket::SocketAddress,
};
use lastkey_server::{
    BindError, Bound, CertificateError, CertificateSource, OnOpen, Opening, Reach, Server,
    ServerConfig,
};
use lastkey_store::{OpenError, OpenOptions, RedbStore, disk};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::{
    audit::Audit,
    data_dir::{DataDir, replace},
    first_start::{self, KUBERNETES, failed},
    hear_upgrades, identity,
    keeper::{IdentityFiles, Keeper},
    on_signal,
    ready::Ready,
    rotations, stopped,
};
use crate::{
    cli::{MemoryOptions, SealChoice, SealOptions, ServerOptions, TokenOptions, UpOptions},
    connect::data_dir_or,
    output::{Exit, Failure, Output, chain},
};

/// A server whose doors are open but that does not answer yet, and what it stands on.
struct Opened {
    data: DataDir,
    audit: Audit,
    instance: Instance,
    bound: Bound,
    /// What was made the last time that the server was unsealed.
    made: watch::Receiver<Option<Made>>,
}

/// What an operator does who sends SIGUSR2 to a server.
const UPGRADE: &str = "to upgrade a server, put the new binary in place and restart it (plugins go on \
                       meanwhile, by what they remember)";

/// How long until a plugin that something was in the way of is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// What is made when the server is unsealed.
#[derive(Clone, Debug)]
struct Made {
    has_credentials: bool,
    /// Where `up` runs its plugin: the id of the plugin's key.
    key_id: Option<String>,
}

/// Runs the server alone.
pub(super) async fn server(options: ServerOptions, output: &Output) -> Result<(), Failure> {
    let stop = on_signal()?;
    hear_upgrades(UPGRADE)?;
    let isolated = options.isolated;
    let opened = open(options, false).await?;
    let Opened { data, audit, instance, bound, made } = opened;
    let ready = Ready::of(&data, &bound, made.borrow().as_ref());
    announce(output, (&ready, &instance), &data, None);
    tell_doubt(&data, bound.reach());
    audit.start_sinks();
    let worker = rotations::run(instance.clone(), data.admin_socket(), stop.clone());
    match isolated {
        false => serve_beside(bound, stop, worker).await,
        true => serve_beside(bound, stop, std::future::ready(())).await,
    }
    instance.shutdown().await;
    audit.stop_sinks().await;
    Ok(())
}

/// Runs the server, and a plugin that is its client like any other.
pub(super) async fn up(options: UpOptions, output: &Output) -> Result<(), Failure> {
    let UpOptions { server: options, memory } = options;
    if options.isolated {
        return Err(Failure::new(Exit::Usage, "--isolated is for server alone"));
    }
    if options.tls_cert.is_some() && options.tls_ca.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "with --tls-cert, up needs --tls-ca FILE as well: its own plugin has to trust the \
             certificate's CA",
        ));
    }
    let stop = on_signal()?;
    hear_upgrades(UPGRADE)?;
    let Opened { data, audit, instance, bound, made } = open(options, true).await?;
    let ended =
        with_plugin((&data, &audit, &memory), (&instance, made), (bound, stop), output).await;
    instance.shutdown().await;
    audit.stop_sinks().await;
    ended
}

async fn with_plugin(
    (data, audit, memory): (&DataDir, &Audit, &MemoryOptions),
    (instance, mut made): (&Instance, watch::Receiver<Option<Made>>),
    (bound, stop): (Bound, watch::Receiver<bool>),
    output: &Output,
) -> Result<(), Failure> {
    let url = bound.url();
    tell_doubt_of_up(bound.reach());
    let sealed = made.borrow().is_none();
    let mut ready = Ready::of(data, &bound, made.borrow().as_ref());
    let mut plugin = None;
    if sealed {
        announce(output, (&ready, instance), data, None);
        audit.start_sinks();
    } else {
        // What can fail fails before a request is answered.
        plugin = Some(bind_plugin(data, &url, memory)?);
        ready = ready.with_plugin(data);
    }
    // The server ends with the process, and with a plugin that cannot go on.
    let (halt, halted) = watch::channel(false);
    let worker = rotations::run(instance.clone(), data.admin_socket(), halted.clone());
    let server = serve_beside(bound, halted, worker);
    let pass_on = async {
        stopped(stop.clone()).await;
        let _ = halt.send(true);
        std::future::pending().await
    };
    let serve_plugin = async {
        let (plugin, mut keeper) = match plugin {
            Some(plugin) => plugin,
            None => {
                let unsealed = made.wait_for(Option::is_some);
                tokio::select! {
                    _ = unsealed => {}
                    () = stopped(stop.clone()) => return Ok(()),
                }
                // Keepers came for this: what is in the plugin's way is told and waited for.
                tokio::select! {
                    bound = bind_in_the_end(data, &url, memory) => bound,
                    () = stopped(stop.clone()) => return Ok(()),
                }
            }
        };
        let (works, working) = oneshot::channel();
        let run = plugin.run(
            move |_| {
                let _ = works.send(());
            },
            stopped(stop.clone()),
        );
        let say = async {
            if working.await.is_ok() {
                if sealed {
                    tracing::info!("the KMS plugin works");
                } else {
                    let config = encryption_config(&data.plugin_socket()).ok();
                    announce(output, (&ready, instance), data, config.as_deref());
                    audit.start_sinks();
                }
            }
        };
        keeper.have_one().await?;
        let serve = async { tokio::join!(run, say).0.map_err(failed) };
        tokio::select! {
            served = serve => served,
            () = keeper.keep() => Ok(()),
        }
    };
    let serve_plugin = async {
        let served = serve_plugin.await;
        if let Err(failure) = &served {
            tracing::error!("the KMS plugin cannot go on, and the server stops with it: {failure}");
        }
        let _ = halt.send(true);
        served
    };
    let server = async {
        tokio::select! {
            () = server => {}
            () = pass_on => {}
        }
    };
    let ((), served) = tokio::join!(server, serve_plugin);
    served
}

/// The plugin, as soon as nothing is in its way.
async fn bind_in_the_end(data: &DataDir, url: &str, memory: &MemoryOptions) -> (Plugin, Keeper) {
    let mut told = String::new();
    loop {
        let why = match bind_plugin(data, url, memory) {
            Ok(bound) => return bound,
            Err(failure) => failure.to_string(),
        };
        if why != told {
            tracing::error!("the KMS plugin does not start yet, and is tried again: {why}");
            told = why;
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// Says so where the command line on this machine will not accept the server's certificate.
fn tell_doubt(data: &DataDir, reach: &Reach) {
    let url = first_start::url(data, reach);
    let is_put_right = reach.is_about_the_name() && url != reach.url();
    let Some(why) = reach.doubt().filter(|_| !is_put_right) else { return };
    tracing::warn!(
        "commands on this machine cannot go by {url}, for they do not accept the certificate: \
         {why}; an address with a name of the certificate may be put into \"url\" of {}, and \
         stays there; --admin-socket needs none",
        data.credentials().display()
    );
}

/// Says so where the plugin inside `up` will not: no apiserver is answered until that is mended.
fn tell_doubt_of_up(reach: &Reach) {
    let Some(why) = reach.doubt() else { return };
    tracing::error!(
        "the KMS plugin cannot work: it goes by {}, and does not accept the certificate: {why}; \
         without --tls-cert, Lastkey's own CA issues one that will do",
        reach.url()
    );
}

/// Serves until the server is to stop, and for as long as the worker that is its client takes to
/// save where it is.
async fn serve_beside(bound: Bound, stop: watch::Receiver<bool>, worker: impl Future<Output = ()>) {
    let (done, worked) = oneshot::channel();
    let worker = async {
        worker.await;
        let _ = done.send(());
    };
    let end = async {
        stopped(stop).await;
        let _ = worked.await;
    };
    tokio::join!(bound.run(end), worker);
}

/// Everything up to the open doors, in the order in which it can fail harmlessly.
async fn open(options: ServerOptions, with_plugin: bool) -> Result<Opened, Failure> {
    let directory = options.data_dir.clone().map_or_else(|| data_dir_or("--data-dir"), Ok)?;
    check(&options)?;
    let data = DataDir::prepare(&directory)?;
    // The first random bytes of a process are slow; nobody should wait for them later.
    SystemEntropy.warm();
    let store = RedbStore::open(data.store(), OpenOptions::default()).map_err(store_failed)?;
    let audit = Audit::prepare(&data, &options.audit)?;
    let instance = Instance::new(parts(&data, store, seals(&data, &options.seal), &audit));
    instance.start().await.map_err(start_failed)?;
    compare_seals(options.seal.seal, &instance);
    match open_doors(&data, &instance, options, with_plugin).await {
        Ok((bound, made)) => {
            audit.show_sinks(&bound);
            Ok(Opened { data, audit, instance, bound, made })
        }
        Err(failure) => {
            instance.shutdown().await;
            Err(failure)
        }
    }
}

/// A missing option of the token's, and what is wrong with the address or the certificate, is said
/// before anything is made: no such start may leave an installation behind that nobody meant. The
/// audit log's sinks are not looked at here.
fn check(options: &ServerOptions) -> Result<(), Failure> {
    let SealOptions { seal, token: token_options } = &options.seal;
    if *seal == Some(SealChoice::Pkcs11) && token(token_options).is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "--seal pkcs11 needs --pkcs11-module, --pkcs11-token and --pkcs11-pin-file",
        ));
    }
    let config = ServerConfig {
        certificate: certificate(options),
        ..ServerConfig::on(options.listen.clone())
    };
    config.check().map_err(|error| match error {
        BindError::Address { .. } | BindError::Certificate(CertificateError::Authority(_)) => {
            Failure::new(Exit::Usage, chain(&error))
        }
        // A file can be put right.
        error => failed(error),
    })
}

/// A seal that cannot be reached is another exit code than one that refuses, and so is a full disk.
fn start_failed(error: StartError) -> Failure {
    let is_full = match &error {
        StartError::Engine(error) => matches!(error, Error::StorageFull),
        StartError::Audit(AuditOpenError::Io { source, .. }) => disk::is_full(source),
        _ => false,
    };
    let error = OperatorError::from(error);
    let is_away = matches!(&error, OperatorError::Start(StartError::Seal(_)))
        && error.kind() == lastkey_engine::ErrorKind::Unavailable;
    match is_full || is_away {
        true => Failure::new(Exit::Unavailable, chain(&error)),
        false => failed(error),
    }
}

/// The same of a store that did not open.
fn store_failed(error: OpenError) -> Failure {
    match &error {
        OpenError::Io { source, .. } if disk::is_full(source) => {
            Failure::new(Exit::Unavailable, chain(&error))
        }
        _ => failed(error),
    }
}

/// The seals that this process can use.
fn seals(data: &DataDir, options: &SealOptions) -> Seals {
    let token = token(&options.token).map(|token| Arc::new(token) as Arc<dyn Seal>);
    let first = kind(options.seal.unwrap_or_default());
    Seals::new(FileSeal::new(data.root_key()), token, first)
}

fn kind(choice: SealChoice) -> SealKind {
    match choice {
        SealChoice::File => SealKind::File,
        SealChoice::Shamir => SealKind::Shamir,
        SealChoice::Pkcs11 => SealKind::Pkcs11,
    }
}

/// Says so where the store has another seal than the one that it was started with.
fn compare_seals(asked: Option<SealChoice>, instance: &Instance) {
    let Some((asked, kept)) = asked.map(kind).zip(instance.status().seal) else { return };
    if asked != kept.kind {
        let kept = kept.kind;
        tracing::warn!(
            "--seal {asked} is for a new data directory alone, and this one has a {kept} seal; \
             `lastkey operator migrate --to {asked}` changes it"
        );
    }
}

fn token(options: &TokenOptions) -> Option<TokenSeal> {
    let TokenOptions { pkcs11_module, pkcs11_token, pkcs11_key, pkcs11_pin_file } = options;
    Some(TokenSeal::new(TokenConfig {
        module: pkcs11_module.clone()?,
        token: pkcs11_token.clone()?,
        key: pkcs11_key.clone(),
        pin_file: pkcs11_pin_file.clone()?,
    }))
}

fn parts(data: &DataDir, store: RedbStore, seals: Seals, audit: &Audit) -> Parts {
    let audit = audit.clone();
    let medium = data.clone();
    Parts {
        store: Arc::new(store),
        seal: Arc::new(seals),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| audit.open(key)),
        anchor: Arc::new(lastkey_engine::FileAnchor::new(data.anchor())),
        incarnation: Box::new(move || medium.incarnation()),
    }
}

async fn open_doors(
    data: &DataDir,
    instance: &Instance,
    options: ServerOptions,
    with_plugin: bool,
) -> Result<(Bound, watch::Receiver<Option<Made>>), Failure> {
    let lease = options.plugin_lease;
    let config = ServerConfig {
        certificate: certificate(&options),
        admin_socket: Some(data.admin_socket()),
        limits: options.limits.limits(),
        certificate_dir: Some(data.root().to_owned()),
        ..ServerConfig::on(options.listen)
    };
    let bound = Server::bind(config, instance.clone()).await.map_err(failed)?;
    let (tell, made) = watch::channel(None);
    let prepare = on_open(data.clone(), (bound.reach().clone(), lease), with_plugin, tell);
    bound.on_open(prepare).await.map_err(Failure::failed)?;
    Ok((bound, made))
}

fn certificate(options: &ServerOptions) -> CertificateSource {
    match (options.tls_cert.clone(), options.tls_key.clone()) {
        (Some(certificate), Some(key)) => {
            CertificateSource::Files { certificate, key, ca: options.tls_ca.clone() }
        }
        _ => CertificateSource::Authority { names: options.tls_names.clone() },
    }
}

/// Makes what a first start makes, whenever the server is unsealed: each step sees for itself
/// what is there.
fn on_open(
    data: DataDir,
    (reach, lease): (Reach, Duration),
    with_plugin: bool,
    tell: watch::Sender<Option<Made>>,
) -> OnOpen {
    let shared = Arc::new((data, reach, tell));
    Arc::new(move |opening| {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (data, reach, tell) = &*shared;
            // before anybody is answered
            opening.engine.set_plugin_lease(lease);
            let made = make(data, reach, &opening, with_plugin).await;
            tell.send_replace(Some(made.map_err(|failure| failure.to_string())?));
            Ok(())
        })
    })
}

async fn make(
    data: &DataDir,
    reach: &Reach,
    Opening { engine, pki }: &Opening,
    with_plugin: bool,
) -> Result<Made, Failure> {
    replace(&data.ca(), pki.ca_pem().as_bytes(), 0o644)?;
    let has_credentials = first_start::credentials(engine, data, reach).await?;
    let mut key_id = None;
    if with_plugin {
        key_id = Some(first_start::kubernetes_key(engine).await?);
        let cluster = first_start::cluster(engine).await?;
        identity::issue(engine, pki, cluster, data).await?;
        let config = encryption_config(&data.plugin_socket())?;
        replace(&data.encryption_config(), config.as_bytes(), 0o644)?;
    }
    Ok(Made { has_credentials, key_id })
}

/// The plugin inside `up`: over TLS, with a certificate, like any other.
fn bind_plugin(
    data: &DataDir,
    url: &str,
    memory: &MemoryOptions,
) -> Result<(Plugin, Keeper), Failure> {
    let endpoint = url.parse().map_err(failed)?;
    let files = IdentityFiles { certificate: data.plugin_certificate(), key: data.plugin_key() };
    files.prepare(false)?;
    let config = Config::mutual_tls(vec![endpoint], data.ca(), files.identity());
    let client = Arc::new(Client::new(config)?);
    let keeper = Keeper::new(Arc::clone(&client), files);
    let sockets = vec![SocketAddress::Path(data.plugin_socket())];
    let plugin = Plugin::bind(PluginConfig {
        memory: memory.memory(data.plugin_state()),
        leases: memory.leases(),
        ..PluginConfig::new(client, KUBERNETES, sockets)
    });
    Ok((plugin.map_err(failed)?, keeper))
}

fn encryption_config(socket: &std::path::Path) -> Result<String, Failure> {
    crate::command::cluster::encryption_config(socket)
}

impl Ready {
    fn of(data: &DataDir, bound: &Bound, made: Option<&Made>) -> Self {
        let has_credentials = match made {
            Some(made) => made.has_credentials,
            None => data.credentials().exists(),
        };
        Self {
            url: Some(bound.url()),
            ca_file: Some(data.ca()).filter(|ca| ca.exists()),
            credentials_file: has_credentials.then(|| data.credentials()),
            admin_socket: Some(data.admin_socket()),
            key_id: made.and_then(|made| made.key_id.clone()),
            sealed: made.is_none().then_some(true),
            ..Self::default()
        }
    }

    fn with_plugin(self, data: &DataDir) -> Self {
        Self {
            plugin_socket: Some(data.plugin_socket().display().to_string()),
            plugin_cert_file: Some(data.plugin_certificate()),
            plugin_key_file: Some(data.plugin_key()),
            encryption_config_file: Some(data.encryption_config()),
            ..self
        }
    }
}

/// Says what runs where, and what to do next.
fn announce(
    output: &Output,
    (ready, instance): (&Ready, &Instance),
    data: &DataDir,
    config: Option<&str>,
) {
    let status = instance.status();
    let kind = status.seal.as_ref().map(|seal| seal.kind);
    output.object(&json!(ready), || match ready.sealed {
        Some(true) => closed_greeting(ready, status.state),
        _ => greeting(ready, data, (kind, config)),
    });
    let socket = data.admin_socket();
    match status.state {
        Life::Uninitialised => tracing::warn!(
            "there is no root key yet; next: lastkey operator init --shares 5 --threshold 3 \
             --admin-socket {}",
            socket.display()
        ),
        Life::Sealed => tracing::warn!(
            waiting = status.waiting,
            "the server is sealed; next: lastkey operator unseal --admin-socket {}",
            socket.display()
        ),
        Life::Held => tracing::error!(
            "the server does not serve; why: lastkey operator status --admin-socket {socket}; to go \
             on with what is there: lastkey operator accept-restore --reason TEXT --admin-socket \
             {socket}",
            socket = socket.display()
        ),
        Life::Unsealed if kind == Some(SealKind::File) => tracing::info!(
            path = %data.root_key().display(),
            "the root key is kept in a file: whoever can read it can read every key"
        ),
        Life::Unsealed => {}
    }
}

fn closed_greeting(ready: &Ready, state: Life) -> String {
    let what = match state {
        Life::Uninitialised => "waits for its root key",
        Life::Held => "does not serve what it found in its store",
        Life::Sealed | Life::Unsealed => "waits to be unsealed",
    };
    format!(
        "Lastkey {version} {what}. Ctrl-C stops it.\n\n\
         \x20 server       {url}\n\
         \x20 admin        {admin}",
        version = env!("CARGO_PKG_VERSION"),
        url = ready.url.as_deref().unwrap_or_default(),
        admin = ready.admin_socket.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
    )
}

fn greeting(
    ready: &Ready,
    data: &DataDir,
    (kind, config): (Option<SealKind>, Option<&str>),
) -> String {
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
         \x20 root key     {root}\n",
        version = env!("CARGO_PKG_VERSION"),
        ca = shown(&ready.ca_file),
        admin = shown(&ready.admin_socket),
        root = match kind {
            Some(SealKind::File) | None => format!(
                "{} (a file: whoever can read it can read every key)",
                data.root_key().display()
            ),
            Some(other) => format!("under the {other} seal"),
        },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_a_full_disk_has_ended_says_so_by_its_exit_code() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let log = AuditOpenError::Io { path: "audit".into(), source: full() };
        let store = OpenError::Io { path: "store".into(), source: Arc::new(full()) };
        for failure in
            [start_failed(Error::StorageFull.into()), start_failed(log.into()), store_failed(store)]
        {
            assert_eq!(failure.exit(), Exit::Unavailable, "{failure}");
        }
        assert_eq!(start_failed(Error::Internal.into()).exit(), Exit::Failed);
    }

    #[test]
    fn only_a_sealed_server_is_to_be_unsealed() {
        for (state, waits) in
            [(Life::Sealed, true), (Life::Held, false), (Life::Uninitialised, false)]
        {
            let text = closed_greeting(&Ready::default(), state);
            assert_eq!(text.contains("waits to be unsealed"), waits, "{state}: {text}");
        }
    }
}
