//! `kms-plugin`: a plugin beside an apiserver, whose server is elsewhere.

use std::{
    ffi::OsStr,
    net::TcpListener,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use lastkey_client::{Client, ClientCertificate, Config, Credentials, Endpoint};
use lastkey_crypto::ClusterId;
use lastkey_crypto::mac::sha256;
use lastkey_kubernetes::{
    plugin::{Plugin, PluginConfig, StatusVersion, TakeUp},
    socket::{Offer, SocketAddress},
};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::{
    data_dir::DataDir,
    first_start::{KUBERNETES, failed},
    keeper::{Enrolling, IdentityFiles, Keeper, Kubelet},
    metrics,
    notify::notify,
    on_signal,
    ready::Ready,
    stopped,
    supervise::{self, Supervisor},
    upgrade::{Predecessor, Upgrades},
};
use crate::{
    cli::{Connect, EnrolOptions, PluginOptions},
    connect,
    output::{Exit, Failure, Output},
};

/// Runs until SIGINT or SIGTERM, or until another process has taken over.
pub(super) async fn alone(
    connect: &Connect,
    options: PluginOptions,
    output: &Output,
) -> Result<(), Failure> {
    let stop = on_signal()?;
    if supervise::is_wanted(&options) {
        return supervise::supervise(&options, stop).await;
    }
    let upgrades = Upgrades::prepare().map_err(failed)?;
    let ready = Ready { ca_file: absolute(options.ca_file.as_ref())?, ..Ready::default() };
    // 1. The sockets: from the process before, from the service manager, or our own.
    let Opened { plugin, metrics, before, ready, mut keeper } = open(connect, &options, ready)?;
    let (predecessor, supervisor) = match before {
        Some(Before::Predecessor(it, begin)) => (Some((it, begin)), None),
        Some(Before::Supervisor(it)) => (None, Some(it)),
        None => (None, None),
    };
    let offer = offer(&plugin, metrics.as_ref())?;
    let counters = plugin.metrics();
    let (identity, usable) = (keeper.as_ref().map(Keeper::metrics), plugin.metrics());
    let usable = move || usable.is_usable();
    let beginning = predecessor.is_none();
    if beginning {
        notify("READY=1\nSTATUS=listens, and asks the server about the key");
    }
    // 2. Serve, as soon as there is an identity to ask the server with.
    let (works, working) = oneshot::channel();
    let (leave, left) = watch::channel(false);
    let (has_one, had) = oneshot::channel();
    let serve = async {
        if let Some(mut keeper) = keeper.take() {
            tokio::select! {
                ready = keeper.have_one() => ready?,
                () = stopped(left.clone()) => return Ok(()),
            }
            let _ = has_one.send(keeper.resuming(usable));
        }
        let says = move |state| {
            let _ = works.send(state);
        };
        plugin.run(says, stopped(left.clone())).await.map_err(failed)
    };
    let keep = async {
        if let Ok(keeper) = had.await {
            keeper.keep().await;
        }
    };
    // 3. Once the server has answered, begin where the process before stops.
    let (begins, begun) = watch::channel(beginning);
    let say = async {
        let gave_up = async {
            match &predecessor {
                Some((predecessor, _)) => predecessor.gave_up().await,
                None => std::future::pending().await,
            }
        };
        let state = tokio::select! {
            biased;
            () = gave_up => {
                tracing::error!("the process before goes on without this one, which ends");
                let _ = leave.send(true);
                return;
            }
            state = working => match state {
                Ok(state) => state,
                Err(_) => return,
            },
        };
        if let Some((predecessor, begin)) = predecessor {
            if let Err(error) = predecessor.take_over().await {
                tracing::error!(%error, "the process before does not let go");
                let _ = leave.send(true);
                return;
            }
            offer.take();
            let _ = begin.send(());
            begins.send_replace(true);
        }
        announce(ready, state, output);
    };
    let observe = async {
        let Some(listener) = metrics else { return };
        tokio::select! {
            () = stopped(begun.clone()) => {}
            () = stopped(left.clone()) => return,
        }
        metrics::serve(listener, (counters, identity), stopped(left.clone())).await;
    };
    // 4. End when told to, when another process goes on, or when the sockets are held no longer.
    let gone = async {
        match supervisor {
            Some(supervisor) => supervisor.gone().await,
            None => std::future::pending().await,
        }
    };
    let end = async {
        tokio::select! {
            () = stopped(stop) => notify("STOPPING=1"),
            () = gone => {}
            () = upgrades.handed_over(&offer, stopped(begun.clone())) => {}
        }
        leave.send_replace(true);
    };
    let served = async {
        tokio::select! {
            served = serve => served,
            // never ends before `serve`, but has to be asked
            () = async { tokio::join!(say, observe, end, keep, std::future::pending::<()>()); } => Ok(()),
        }
    };
    served.await
}

struct Opened {
    plugin: Plugin,
    metrics: Option<TcpListener>,
    before: Option<Before>,
    ready: Ready,
    /// Looks after the certificate by which the plugin is known, if it is.
    keeper: Option<Keeper>,
}

/// Whoever had the sockets before this process.
enum Before {
    /// A plugin that still answers, and what lets this one begin.
    Predecessor(Predecessor, oneshot::Sender<()>),
    /// Whoever goes on to hold them.
    Supervisor(Supervisor),
}

fn open(connect: &Connect, options: &PluginOptions, mut ready: Ready) -> Result<Opened, Failure> {
    let found = Predecessor::find().map_err(failed)?;
    let held = Supervisor::find().map_err(failed)?;
    if options.sockets.is_empty() && found.is_none() && std::env::var_os("LISTEN_FDS").is_none() {
        let help = "give --socket PATH, where the apiserver will dial";
        return Err(Failure::new(Exit::Usage, help));
    }
    let (config, keeper) = plugin_config(connect, options, &mut ready)?;
    let (plugin, before, handed) = match (held, found) {
        (Some((supervisor, inheritance)), _) => {
            let plugin = Plugin::inherit(config, inheritance.sockets).map_err(failed)?;
            (plugin, Some(Before::Supervisor(supervisor)), None)
        }
        (None, Some((predecessor, inheritance))) => {
            let (begin, begins) = oneshot::channel();
            let plugin = Plugin::succeed(config, inheritance.sockets, begins).map_err(failed)?;
            let before = Before::Predecessor(predecessor, begin);
            (plugin, Some(before), inheritance.other.into_iter().next())
        }
        (None, None) => (Plugin::bind(config).map_err(failed)?, None, None),
    };
    let metrics = match (options.metrics_listen, handed) {
        (Some(_), Some(listener)) => Some(TcpListener::from(listener)),
        (Some(address), None) => Some(metrics::bind(address)?),
        (None, _) => None,
    };
    ready.plugin_socket = plugin.sockets().into_iter().next();
    Ok(Opened { plugin, metrics, before, ready, keeper })
}

/// What a process after this one gets.
fn offer(plugin: &Plugin, metrics: Option<&TcpListener>) -> Result<Offer, Failure> {
    let metrics = metrics.map(|it| it.try_clone().map(Into::into)).transpose().map_err(failed)?;
    Ok(Offer::new(plugin.handles().map_err(failed)?, metrics.into_iter().collect()))
}

fn announce(mut ready: Ready, state: lastkey_kubernetes::plugin::Ready, output: &Output) {
    ready.key_id = state.key;
    let sockets = state.sockets.join(" and ");
    notify(&match state.key_id {
        Some(_) => "READY=1\nSTATUS=works".to_owned(),
        None => "READY=1\nSTATUS=the server refuses the key: the log says why".to_owned(),
    });
    output.object(&json!(ready), || match &state.key_id {
        Some(key_id) => {
            format!("the KMS plugin works on {sockets}; its key_id is {key_id}")
        }
        None => format!(
            "the KMS plugin listens on {sockets}, but the server refuses the key: the log says why"
        ),
    });
}

fn plugin_config(
    connect: &Connect,
    options: &PluginOptions,
    ready: &mut Ready,
) -> Result<(PluginConfig, Option<Keeper>), Failure> {
    let config = client_config(connect, options)?;
    let servers = config.servers.clone();
    ready.url = servers.first().map(ToString::to_string);
    let client = Arc::new(Client::new(config)?);
    let cluster = options.cluster.as_deref().map(str::parse).transpose();
    let cluster: Option<ClusterId> = cluster.map_err(|error| {
        Failure::new(Exit::Usage, format_args!("--cluster takes a cluster's id: {error}"))
    })?;
    let keeper = keeper(options, (&client, servers, cluster))?;
    if let Some((_, files)) = &keeper {
        ready.plugin_cert_file = Some(files.certificate.clone());
        ready.plugin_key_file = Some(files.key.clone());
    }
    let config = PluginConfig {
        use_listen_fds: true,
        // a certificate names its own
        cluster: cluster.filter(|_| !options.enrol.enrol),
        version: match options.api_version.as_str() {
            "v2" => StatusVersion::V2,
            _ => StatusVersion::V2Beta1,
        },
        memory: options.memory.memory(state_dir(options)?),
        leases: options.memory.leases(),
        take_up: keeper.as_ref().map(|(keeper, _)| TakeUp::new(keeper.take_up_at_once())),
        ..PluginConfig::new(client, options.key.clone(), sockets(&options.sockets)?)
    };
    Ok((config, keeper.map(|(keeper, _)| keeper)))
}

/// What looks after the certificate that was given, or the one that enrolling brings.
fn keeper(
    options: &PluginOptions,
    (client, servers, cluster): (&Arc<Client>, Vec<Endpoint>, Option<ClusterId>),
) -> Result<Option<(Keeper, IdentityFiles)>, Failure> {
    let ca_file = absolute(options.ca_file.as_ref())?;
    let given = (absolute(options.client_cert.as_ref())?, absolute(options.client_key.as_ref())?);
    if let (Some(certificate), Some(key)) = given {
        let files = IdentityFiles { certificate, key };
        let keeper = Keeper::new(Arc::clone(client), files.clone());
        let keeper = match ca_file {
            Some(ca_file) => keeper.trusting(ca_file),
            None => keeper,
        };
        return Ok(Some((keeper, files)));
    }
    let (true, Some(cluster), Some(ca_file)) = (options.enrol.enrol, cluster, ca_file) else {
        return Ok(None);
    };
    let EnrolOptions { kubelet_cert, kubelet_key, .. } = &options.enrol;
    let kubelet = Kubelet {
        certificate: kubelet_cert.clone(),
        key: kubelet_key.as_ref().unwrap_or(kubelet_cert).clone(),
    };
    let files = IdentityFiles::in_directory(&state_dir(options)?);
    let keeper = Keeper::new(Arc::clone(client), files.clone()).trusting(ca_file.clone());
    let keeper = keeper.enrolling(Enrolling { cluster, servers, ca_file, kubelet });
    Ok(Some((keeper, files)))
}

/// Where this plugin, and no other, keeps what it has to remember over restarts.
fn state_dir(options: &PluginOptions) -> Result<PathBuf, Failure> {
    if let Some(directory) = absolute(options.state_dir.as_ref())? {
        return Ok(directory);
    }
    // systemd names several with colons between them
    let first = |named: &OsStr| named.as_bytes().split(|byte| *byte == b':').next().map(path_of);
    let given = std::env::var_os("STATE_DIRECTORY").as_deref().and_then(first);
    let base = match given.filter(|directory| directory.is_absolute()) {
        Some(base) => base,
        None => connect::data_dir_or("--state-dir")?.with_file_name("lastkey-kms-plugin"),
    };
    let socket = options.sockets.first().map_or(Ok("LISTEN_FDS".into()), |socket| {
        if socket.starts_with('@') { Ok(socket.into()) } else { std::path::absolute(socket) }
    });
    let socket = socket.map_err(|error| Failure::new(Exit::Usage, error))?;
    let name = hex::encode(&sha256(&[socket.as_os_str().as_bytes()])[..8]);
    Ok(base.join(name))
}

fn path_of(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

/// Certificate and key by which a plugin with these options is known, once it is.
pub(crate) fn identity_of(options: &PluginOptions) -> Option<IdentityFiles> {
    match (&options.client_cert, &options.client_key) {
        (Some(certificate), Some(key)) => {
            Some(IdentityFiles { certificate: certificate.clone(), key: key.clone() })
        }
        _ if options.enrol.enrol => Some(IdentityFiles::in_directory(&state_dir(options).ok()?)),
        _ => None,
    }
}

/// The arguments of a plugin alone that would be the one inside an `up` which keeps everything in this
/// directory and was told to listen there.
pub(crate) fn plugin_inside_up(directory: &Path, listen: &str) -> Vec<String> {
    let data = DataDir::of_another(directory.to_owned());
    // which says where it listens in the end
    let url = match Credentials::read(&data.credentials()) {
        Ok(credentials) => credentials.endpoint.to_string(),
        Err(_) => {
            let (host, port) = listen.rsplit_once(':').unwrap_or((listen, "7343"));
            let host = if ["0.0.0.0", "[::]"].contains(&host) { "localhost" } else { host };
            format!("https://{host}:{port}")
        }
    };
    let shown = |path: PathBuf| path.display().to_string();
    let options = [
        ("--socket", shown(data.plugin_socket())),
        ("--key", KUBERNETES.to_owned()),
        ("--server", url),
        ("--client-cert", shown(data.plugin_certificate())),
        ("--client-key", shown(data.plugin_key())),
        ("--ca-file", shown(data.ca())),
    ];
    let options = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    ["lastkey", "kms-plugin"].map(str::to_owned).into_iter().chain(options).collect()
}

/// How a plugin with these options reaches its server.
///
/// # Errors
/// When they do not say.
pub(crate) fn client_of(connect: &Connect, options: &PluginOptions) -> Result<Config, Failure> {
    let mut config = client_config(connect, options)?;
    if options.enrol.enrol
        && let (Some(files), Some(ca)) = (identity_of(options), options.ca_file.clone())
    {
        let identity = ClientCertificate { certificate: files.certificate, key: files.key };
        config = Config::mutual_tls(config.servers, ca, identity);
    }
    Ok(config)
}

fn client_config(connect: &Connect, options: &PluginOptions) -> Result<Config, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, error);
    let servers: Vec<Endpoint> = options
        .servers
        .iter()
        .map(|url| url.parse().map_err(|error| usage(&error)))
        .collect::<Result<_, _>>()?;
    if let (Some(certificate), Some(key), Some(ca)) =
        (&options.client_cert, &options.client_key, &options.ca_file)
    {
        let files = IdentityFiles { certificate: certificate.clone(), key: key.clone() };
        files.prepare(false)?;
        return Ok(Config::mutual_tls(servers, ca.clone(), files.identity()));
    }
    if let (true, Some(ca)) = (options.enrol.enrol, &options.ca_file) {
        return Ok(Config::nobody(servers, ca.clone()));
    }
    let mut config = connect::config(connect)?;
    if !servers.is_empty() {
        config.servers = servers;
    }
    if let Some(ca) = &options.ca_file {
        config.ca_file = Some(ca.clone());
    }
    Ok(config)
}

/// The addresses that were given.
pub(super) fn sockets(given: &[String]) -> Result<Vec<SocketAddress>, Failure> {
    given
        .iter()
        .map(|text| match text.strip_prefix('@') {
            Some(name) => Ok(SocketAddress::Abstract(name.to_owned())),
            None => Ok(SocketAddress::Path(
                std::path::absolute(text).map_err(|error| Failure::new(Exit::Usage, error))?,
            )),
        })
        .collect()
}

fn absolute(path: Option<&PathBuf>) -> Result<Option<PathBuf>, Failure> {
    path.map(std::path::absolute).transpose().map_err(|error| Failure::new(Exit::Usage, error))
}
