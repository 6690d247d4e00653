//! `lastkey cluster …`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lastkey_client::Client;
use lastkey_engine::ClusterName;
use serde_json::{Value, json};

use crate::{
    cli::{ClusterAction, Connect},
    connect::{block_on, client},
    output::{Column, Failure, Output},
};

pub(crate) use config::encryption_config;
pub(crate) use drill::become_program;
pub(crate) use rotate::{Resources, holder, reach as reach_to_rotate};

use access::{Known, Prepared};
use add::{Wanted, add};

mod access;
mod add;
mod certificate;
mod change;
mod config;
mod doctor;
mod drill;
mod end;
mod identity;
mod node;
mod rotate;
mod rotation_state;
mod status;

pub(crate) fn run(
    connect: &Connect,
    action: ClusterAction,
    output: &Output,
) -> Result<(), Failure> {
    match action {
        ClusterAction::Add { name, key, out, node_ca, certificate_life, access } => {
            // before it becomes a directory
            ClusterName::parse(&name).map_err(Failure::failed)?;
            let out = out.unwrap_or_else(|| PathBuf::from(&name));
            let wanted = Wanted {
                name: &name,
                key: &key,
                node_ca_pem: node_ca.as_deref().map(read_pem).transpose()?,
                certificate_life_seconds: certificate_life.map(|life| life.as_secs()),
                next: config::next(connect, &key),
            };
            block_on(async {
                let prepared = access.kubeconfig.as_deref();
                let prepared = prepared.map(|path| Prepared::read(path, &access)).transpose()?;
                let client = client(connect)?;
                register(&client, &wanted, (&out, prepared), output).await
            })
        }
        ClusterAction::Certificate(options) => {
            block_on(certificate::run(&client(connect)?, &options, output))
        }
        ClusterAction::Node(action) => block_on(node::run(&client(connect)?, action, output)),
        ClusterAction::List => block_on(list(&client(connect)?, output)),
        ClusterAction::Config(options) => config::run(connect, &options, output),
        ClusterAction::Status(options) => {
            block_on(status::run(&client(connect)?, &options, output))
        }
        ClusterAction::Doctor(options) => doctor::run(connect, &options, output),
        ClusterAction::Set(options) => block_on(end::set(&client(connect)?, &options, output)),
        ClusterAction::RemoveAccess(options) => {
            block_on(end::remove_access(&client(connect)?, &options, output))
        }
        ClusterAction::Forget(options) => {
            block_on(end::forget(&client(connect)?, &options, output))
        }
        ClusterAction::Rotate(options) => rotate::run(connect, &options, output),
        ClusterAction::Enable(options) => change::enable(connect, &options, output),
        ClusterAction::Disable(options) => change::disable(connect, &options, output),
        ClusterAction::Drill(options) => drill::run(&options, output),
    }
}

/// The PEM text of a file that somebody named.
fn read_pem(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::file(path, &error))
}

/// Registers a cluster, unless it is, and how it is reached, if that is given.
async fn register(
    client: &Client,
    wanted: &Wanted<'_>,
    (out, prepared): (&Path, Option<Prepared>),
    output: &Output,
) -> Result<(), Failure> {
    let name = wanted.name;
    let known = Known::all(client).await?.into_iter().find(|known| known.name == name);
    let (mut said, mut text) = match (&known, &prepared) {
        (Some(known), Some(_)) => (
            json!({ "id": known.id, "name": name }),
            format!("the cluster {name} was registered already"),
        ),
        _ => add(client, wanted, out).await?,
    };
    if let Some(prepared) = prepared {
        let known = Known::all(client).await?.into_iter().find(|known| known.name == name);
        let known = known.ok_or_else(|| Failure::failed("the cluster is gone again"))?;
        let (access, more) = prepared.register(client, &known).await?;
        said["access"] = access;
        text += &format!("\n{more}");
    }
    output.object(&said, || text);
    Ok(())
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let page = client.clusters().await?;
    let items: Vec<Value> = page
        .items
        .into_iter()
        .map(|mut cluster| {
            let plugins = cluster["plugins"].as_array().cloned().unwrap_or_default();
            cluster["plugin_names"] = plugins.iter().map(|plugin| plugin["name"].clone()).collect();
            cluster
        })
        .collect();
    let columns = [
        Column("NAME", "name"),
        Column("ID", "id"),
        Column("KEYS", "keys"),
        Column("PLUGINS", "plugin_names"),
        Column("CREATED", "created_at"),
    ];
    output.list(&items, &page.next.unwrap_or(Value::Null), &columns);
    Ok(())
}
