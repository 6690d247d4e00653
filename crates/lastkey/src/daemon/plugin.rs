//! `kms-plugin`: a plugin beside an apiserver, whose server is elsewhere.

use std::{net::TcpListener, path::PathBuf, sync::Arc};

use lastkey_client::{Client, ClientCertificate, Config, Endpoint};
use lastkey_kubernetes::{
    plugin::{Plugin, PluginConfig, StatusVersion},
    socket::{Offer, SocketAddress},
};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::{
    first_start::failed,
    metrics,
    notify::notify,
    on_signal,
    ready::Ready,
    stopped,
    upgrade::{Predecessor, Upgrades},
};
use crate::{
    cli::{Connect, PluginOptions},
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
    let upgrades = Upgrades::prepare().map_err(failed)?;
    let ready = Ready {
        plugin_cert_file: absolute(options.client_cert.as_ref())?,
        plugin_key_file: absolute(options.client_key.as_ref())?,
        ca_file: absolute(options.ca_file.as_ref())?,
        ..Ready::default()
    };
    // 1. The sockets: from the process before, from the service manager, or our own.
    let Opened { plugin, metrics, predecessor, ready } = open(connect, &options, ready)?;
    let offer = offer(&plugin, metrics.as_ref())?;
    let counters = plugin.metrics();
    let beginning = predecessor.is_none();
    if beginning {
        notify("READY=1\nSTATUS=listens, and asks the server about the key");
    }
    // 2. Serve.
    let (works, working) = oneshot::channel();
    let (leave, left) = watch::channel(false);
    let serve = plugin.run(
        move |state| {
            let _ = works.send(state);
        },
        stopped(left.clone()),
    );
    // 3. Once the server has answered, begin where the process before stops.
    let (begins, begun) = watch::channel(beginning);
    let say = async {
        let Ok(state) = working.await else { return };
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
            () = stopped(begun) => {}
            () = stopped(left.clone()) => return,
        }
        metrics::serve(listener, counters, stopped(left.clone())).await;
    };
    // 4. End when told to, or when another process goes on.
    let end = async {
        tokio::select! {
            () = stopped(stop) => notify("STOPPING=1"),
            () = upgrades.handed_over(&offer) => {}
        }
        leave.send_replace(true);
    };
    let served = async {
        tokio::select! {
            served = serve => served,
            // never ends before `serve`, but has to be asked
            () = async { tokio::join!(say, observe, end, std::future::pending::<()>()); } => Ok(()),
        }
    };
    served.await.map_err(failed)
}

struct Opened {
    plugin: Plugin,
    metrics: Option<TcpListener>,
    predecessor: Option<(Predecessor, oneshot::Sender<()>)>,
    ready: Ready,
}

fn open(connect: &Connect, options: &PluginOptions, mut ready: Ready) -> Result<Opened, Failure> {
    let found = Predecessor::find().map_err(failed)?;
    if options.sockets.is_empty() && found.is_none() && std::env::var_os("LISTEN_FDS").is_none() {
        let help = "give --socket PATH, where the apiserver will dial";
        return Err(Failure::new(Exit::Usage, help));
    }
    let config = plugin_config(connect, options, &mut ready)?;
    let (plugin, predecessor, handed) = match found {
        Some((predecessor, inheritance)) => {
            let (begin, begins) = oneshot::channel();
            let plugin = Plugin::succeed(config, inheritance.sockets, begins).map_err(failed)?;
            (plugin, Some((predecessor, begin)), inheritance.other.into_iter().next())
        }
        None => (Plugin::bind(config).map_err(failed)?, None, None),
    };
    let metrics = match (options.metrics_listen, handed) {
        (Some(_), Some(listener)) => Some(TcpListener::from(listener)),
        (Some(address), None) => Some(metrics::bind(address)?),
        (None, _) => None,
    };
    ready.plugin_socket = plugin.sockets().into_iter().next();
    Ok(Opened { plugin, metrics, predecessor, ready })
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
) -> Result<PluginConfig, Failure> {
    let config = client_config(connect, options)?;
    ready.url = config.servers.first().map(ToString::to_string);
    let client = Arc::new(Client::new(config)?);
    let cluster = options.cluster.as_deref().map(str::parse).transpose();
    let cluster = cluster.map_err(|error| {
        Failure::new(Exit::Usage, format_args!("--cluster takes a cluster's id: {error}"))
    })?;
    Ok(PluginConfig {
        use_listen_fds: true,
        cluster,
        version: match options.api_version.as_str() {
            "v2" => StatusVersion::V2,
            _ => StatusVersion::V2Beta1,
        },
        ..PluginConfig::new(client, options.key.clone(), sockets(&options.sockets)?)
    })
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
        let identity = ClientCertificate { certificate: certificate.clone(), key: key.clone() };
        return Ok(Config::mutual_tls(servers, ca.clone(), identity));
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

fn sockets(given: &[String]) -> Result<Vec<SocketAddress>, Failure> {
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
