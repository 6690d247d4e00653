//! `lastkey cluster …`.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use lastkey_client::{Client, native};
use lastkey_engine::ClusterName;
use serde_json::{Value, json};

use crate::{
    cli::{ClusterAction, Connect},
    connect::{block_on, client},
    daemon::{new_key_pair, signing_request},
    output::{Column, Failure, Output},
};

pub(crate) use config::encryption_config;
pub(crate) use drill::become_program;
pub(crate) use rotate::{Resources, holder, reach as reach_to_rotate};

use access::{Known, Prepared};

mod access;
mod change;
mod config;
mod doctor;
mod drill;
mod end;
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
            let terms = Terms {
                node_ca_pem: node_ca.as_deref().map(read_pem).transpose()?,
                certificate_life_seconds: certificate_life.map(|life| life.as_secs()),
            };
            block_on(async {
                let prepared = access.kubeconfig.as_deref();
                let prepared = prepared.map(|path| Prepared::read(path, &access)).transpose()?;
                let client = client(connect)?;
                register(&client, (&name, &key), (&out, terms, prepared), output).await
            })
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

/// On which terms a cluster's plugins have identities.
struct Terms {
    node_ca_pem: Option<String>,
    certificate_life_seconds: Option<u64>,
}

/// The PEM text of a file that somebody named.
fn read_pem(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::file(path, &error))
}

/// Registers a cluster, unless it is, and how it is reached, if that is given.
async fn register(
    client: &Client,
    (name, key): (&str, &str),
    (out, terms, prepared): (&Path, Terms, Option<Prepared>),
    output: &Output,
) -> Result<(), Failure> {
    let known = Known::all(client).await?.into_iter().find(|known| known.name == name);
    let (mut said, mut text) = match (&known, &prepared) {
        (Some(known), Some(_)) => (
            json!({ "id": known.id, "name": name }),
            format!("the cluster {name} was registered already"),
        ),
        _ => add(client, (name, key), (out, terms)).await?,
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

/// Registers a cluster. The plugin's key is made here and stays here; where the nodes enrol, none
/// is made.
async fn add(
    client: &Client,
    (name, key): (&str, &str),
    (out, terms): (&Path, Terms),
) -> Result<(Value, String), Failure> {
    let files = Files::reserve(out)?;
    let Terms { node_ca_pem, certificate_life_seconds } = terms;
    let nodes_enrol = node_ca_pem.is_some();
    let (pair, key_pem) = new_key_pair()?;
    let request = native::AddCluster {
        name: name.to_owned(),
        key: key.to_owned(),
        csr_pem: if nodes_enrol { None } else { Some(signing_request(&pair)?) },
        plugin: None,
        node_ca_pem,
        certificate_life_seconds,
    };
    if nodes_enrol {
        let added = client.add_cluster(&request).await?;
        write_new(&files.ca, added.ca_pem.as_bytes())?;
        return Ok(how_to_enrol(&added, &files));
    }
    // The private key is kept before anybody relies on it.
    write_new(&files.key, key_pem.as_bytes())?;
    let added = match client.add_cluster(&request).await {
        Ok(added) => added,
        Err(error) => {
            let _ = fs::remove_file(&files.key);
            return Err(error.into());
        }
    };
    let certificate = added.certificate_pem.clone().unwrap_or_default();
    write_new(&files.certificate, certificate.as_bytes())?;
    write_new(&files.ca, added.ca_pem.as_bytes())?;
    let said = json!({
        "id": added.id,
        "name": added.name,
        "key_id": added.key_id,
        "plugin_cert_file": files.certificate,
        "plugin_key_file": files.key,
        "ca_file": files.ca,
    });
    let text = format!(
        "the cluster {name} has the id {}\n\
         its plugin's identity lies in {}: plugin.pem, plugin.key and ca.pem\n\
         next: lastkey cluster config --key {key}",
        added.id,
        files.directory.display()
    );
    Ok((said, text))
}

fn how_to_enrol(added: &native::AddedCluster, files: &Files) -> (Value, String) {
    let said = json!({
        "id": added.id, "name": added.name, "key_id": added.key_id, "ca_file": files.ca,
    });
    let text = format!(
        "the cluster {} has the id {}\n\
             its nodes may ask for identities; on each control-plane node, with {}:\n\
             \x20 lastkey kms-plugin --enrol --cluster {} --ca-file ca.pem --server URL …\n\
             next: lastkey cluster node approve NODE --cluster {}",
        added.name.as_deref().unwrap_or_default(),
        added.id,
        files.ca.display(),
        added.id,
        added.name.as_deref().unwrap_or_default()
    );
    (said, text)
}

/// The files of a plugin's identity.
struct Files {
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl Files {
    /// Makes the directory, and refuses one that has such files already.
    fn reserve(out: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::file(out, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(out).map_err(failed)?;
        let directory = fs::canonicalize(out).map_err(failed)?;
        let files = Self {
            certificate: directory.join("plugin.pem"),
            key: directory.join("plugin.key"),
            ca: directory.join("ca.pem"),
            directory,
        };
        for path in [&files.certificate, &files.key, &files.ca] {
            if path.exists() {
                return Err(Failure::failed(format_args!(
                    "{} exists already and is left as it is; give another directory with --out",
                    path.display()
                )));
            }
        }
        Ok(files)
    }
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), Failure> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(|error| Failure::file(path, &error))
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
