//! `kms-plugin`: a plugin beside an apiserver, whose server is elsewhere.

use std::{path::PathBuf, sync::Arc};

use lastkey_client::{Client, ClientCertificate, Config, Endpoint};
use lastkey_kubernetes::{
    plugin::{Plugin, PluginConfig, StatusVersion},
    socket::SocketAddress,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::{first_start::failed, metrics, on_signal, ready::Ready, stopped};
use crate::{
    cli::{Connect, PluginOptions},
    connect,
    output::{Exit, Failure, Output},
};

pub(super) async fn alone(
    connect: &Connect,
    options: PluginOptions,
    output: &Output,
) -> Result<(), Failure> {
    let stop = on_signal()?;
    let mut ready = Ready {
        plugin_cert_file: absolute(options.client_cert.as_ref())?,
        plugin_key_file: absolute(options.client_key.as_ref())?,
        ca_file: absolute(options.ca_file.as_ref())?,
        ..Ready::default()
    };
    let config = client_config(connect, &options)?;
    ready.url = config.servers.first().map(ToString::to_string);
    let client = Arc::new(Client::new(config)?);
    if options.sockets.is_empty() && std::env::var_os("LISTEN_FDS").is_none() {
        let help = "give --socket PATH, where the apiserver will dial";
        return Err(Failure::new(Exit::Usage, help));
    }
    let sockets = sockets(&options.sockets)?;
    let cluster = options.cluster.as_deref().map(str::parse).transpose();
    let cluster = cluster.map_err(|error| {
        Failure::new(Exit::Usage, format_args!("--cluster takes a cluster's id: {error}"))
    })?;
    let plugin = Plugin::bind(PluginConfig {
        use_listen_fds: true,
        cluster,
        version: match options.api_version.as_str() {
            "v2" => StatusVersion::V2,
            _ => StatusVersion::V2Beta1,
        },
        ..PluginConfig::new(client, options.key, sockets)
    })
    .map_err(failed)?;
    let endpoint = match options.metrics_listen {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let counters = plugin.metrics();
    ready.plugin_socket = plugin.sockets().into_iter().next();
    let (works, working) = oneshot::channel();
    let serve = plugin.run(
        move |state| {
            let _ = works.send(state);
        },
        stopped(stop.clone()),
    );
    let say = async {
        if let Ok(state) = working.await {
            ready.key_id = state.key;
            let sockets = state.sockets.join(" and ");
            output.object(&json!(ready), || match &state.key_id {
                Some(key_id) => {
                    format!("the KMS plugin works on {sockets}; its key_id is {key_id}")
                }
                None => format!(
                    "the KMS plugin listens on {sockets}, but the server refuses the key: the log \
                     says why"
                ),
            });
        }
    };
    let observe = async {
        if let Some(listener) = endpoint {
            metrics::serve(listener, counters, stopped(stop)).await;
        }
    };
    let (served, (), ()) = tokio::join!(serve, say, observe);
    served.map_err(failed)
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
