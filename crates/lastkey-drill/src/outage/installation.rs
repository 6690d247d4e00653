//! A small installation of the drill's own: a server with one key, and twice a plugin with its
//! apiserver, on one etcd.

use std::{
    collections::HashMap,
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use lastkey_client::{Client, native::AddCluster};
use lastkey_crypto::{ClusterId, KeyVersionId};
use lastkey_kubernetes::{cluster::ApiServer, coverage::parse};
use serde_json::json;

use super::{Outages, relay::Relay};
use crate::{
    DrillError, Event, Operator, Scratch,
    apiserver::{Apiserver, Options},
    child::{Child, Ground},
    etcd::Etcd,
    lastkey::{Identity, Plugin, Server},
    pki::{self, Authority},
    scratch::write_private,
};

const ALIAS: &str = "alias/drill";
const PREFIX: &str = "/registry";
const REASON: &str = "a drill";
/// A port that was free a moment ago may be taken now; relays know where the server is.
const ANY_PORT: &str = "127.0.0.1:0";

/// One control plane's half.
pub(super) struct Side {
    pub(super) relay: Relay,
    plugin: Plugin,
    running: Option<Child>,
    apiserver: Apiserver,
}

/// All of it. What is dropped first ends first.
pub(super) struct Installation {
    pub(super) sides: [Side; 2],
    server: Option<Server>,
    pub(super) etcd: Etcd,
    key: String,
    data: PathBuf,
    ground: Ground,
}

impl Installation {
    pub(super) async fn start(
        outages: &Outages,
        scratch: &Scratch,
        operator: &mut dyn Operator,
    ) -> Result<Self, DrillError> {
        let mut step = |what: &str| operator.tell(&Event::Step(what.to_owned()));
        scratch.needs(700 << 20)?;
        let ground =
            Ground { lastkey: outages.programs.lastkey.clone(), directory: scratch.folder("run")? };
        step("starting etcd and a server of its own");
        let ca = Authority::new()?;
        let etcd = (outages.programs.etcd.as_path(), &ground);
        let etcd = Etcd::start(etcd, &ca, scratch.root(), PREFIX).await?;
        let data = scratch.folder("state")?;
        let server = Server::start(&ground, &data, ANY_PORT, &[]).await?;
        let key = make_key(&server.client).await?;
        let identities = identities(&server, &key, scratch).await?;
        let [one, two] = identities;
        let make = Make {
            outages,
            scratch,
            ground: &ground,
            cluster: (&etcd, &ca),
            key: &key,
            server: address_of(&server)?,
        };
        step("starting two apiservers, each with a plugin");
        // one after the other: the first one fills etcd
        let sides = [make.side("one", one).await?, make.side("two", two).await?];
        Ok(Self { sides, server: Some(server), etcd, key, data, ground })
    }

    pub(super) fn client(&self) -> Result<&Client, DrillError> {
        let server = self.server.as_ref().map(|server| &server.client);
        server.ok_or(DrillError::Answer("anything: it was stopped"))
    }

    /// `kill -9`.
    pub(super) fn kill_server(&mut self) {
        self.sides.iter().for_each(|side| side.relay.lead_to(None));
        self.server = None;
    }

    /// The same again, where the plugins look for it.
    pub(super) async fn start_server(&mut self) -> Result<(), DrillError> {
        let server = Server::start(&self.ground, &self.data, ANY_PORT, &[]).await?;
        let address = address_of(&server)?;
        self.sides.iter().for_each(|side| side.relay.lead_to(Some(address)));
        self.server = Some(server);
        Ok(())
    }

    /// `kill -9` of the first plugin.
    pub(super) fn kill_plugin(&mut self) {
        self.sides[0].running = None;
    }

    pub(super) async fn start_plugin(&mut self) -> Result<(), DrillError> {
        let side = &mut self.sides[0];
        side.running = Some(side.plugin.start(&self.ground).await?);
        Ok(())
    }

    pub(super) async fn seal(&self, sealed: bool) -> Result<(), DrillError> {
        let order = if sealed { "seal" } else { "unseal" };
        self.client()?.operator(order, &json!({})).await?;
        Ok(())
    }

    pub(super) async fn disable_key(&self) -> Result<(), DrillError> {
        let twice = [("KeyId", &*self.key), ("Override", &self.key), ("OverrideReason", REASON)];
        self.client()?.alibaba("DisableKey", &twice).await?;
        Ok(())
    }

    pub(super) async fn enable_key(&self) -> Result<(), DrillError> {
        self.client()?.alibaba("EnableKey", &[("KeyId", &self.key)]).await?;
        Ok(())
    }

    pub(super) async fn rotate(&self) -> Result<(), DrillError> {
        self.client()?.alibaba("CreateKeyVersion", &[("KeyId", &self.key)]).await?;
        Ok(())
    }

    /// The version that encrypts.
    pub(super) async fn primary(&self) -> Result<KeyVersionId, DrillError> {
        let answer = self.client()?.alibaba("DescribeKey", &[("KeyId", &self.key)]).await?;
        let primary = answer["KeyMetadata"]["PrimaryKeyVersion"].as_str();
        let primary = primary.and_then(|id| id.parse().ok());
        primary.ok_or(DrillError::Answer("the key's primary version"))
    }

    /// Both apiservers.
    pub(super) fn apis(&self) -> [Rc<ApiServer>; 2] {
        [Rc::clone(&self.sides[0].apiserver.api), Rc::clone(&self.sides[1].apiserver.api)]
    }

    /// The key version that each Secret of a namespace rests under, by name.
    pub(super) async fn versions_of(
        &self,
        namespace: &str,
    ) -> Result<HashMap<String, KeyVersionId>, DrillError> {
        self.scan(&format!("{PREFIX}/secrets/{namespace}/")).await
    }

    /// That of one Secret.
    pub(super) async fn version_of(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<KeyVersionId>, DrillError> {
        let mut found = self.scan(&format!("{PREFIX}/secrets/{namespace}/{name}")).await?;
        Ok(found.remove(name))
    }

    async fn scan(&self, prefix: &str) -> Result<HashMap<String, KeyVersionId>, DrillError> {
        let mut found = HashMap::new();
        let note = |key: &[u8], value: &[u8]| {
            let key = String::from_utf8_lossy(key);
            let name = key.rsplit('/').next().unwrap_or_default().to_owned();
            found.extend(parse(value).under().key_version.map(|version| (name, version)));
        };
        self.etcd.reader()?.scan(prefix, note).await?;
        Ok(found)
    }

    /// Fails when something ended that nobody ended.
    pub(super) fn check(&mut self) -> Result<(), DrillError> {
        self.etcd.child.check()?;
        if let Some(server) = &mut self.server {
            server.child.check()?;
        }
        for side in &mut self.sides {
            side.apiserver.child.check()?;
            if let Some(plugin) = &mut side.running {
                plugin.check()?;
            }
        }
        Ok(())
    }
}

fn address_of(server: &Server) -> Result<SocketAddr, DrillError> {
    let address = server.url.strip_prefix("https://").and_then(|it| it.parse().ok());
    address.ok_or(DrillError::Answer("an address"))
}

async fn make_key(client: &Client) -> Result<String, DrillError> {
    let made = client.alibaba("CreateKey", &[("Description", "a drill's")]).await?;
    let id = made["KeyMetadata"]["KeyId"].as_str().ok_or(DrillError::Answer("the key's id"))?;
    client.alibaba("CreateAlias", &[("AliasName", ALIAS), ("KeyId", id)]).await?;
    Ok(id.to_owned())
}

/// A cluster, and an identity for each of its two plugins.
async fn identities(
    server: &Server,
    key: &str,
    scratch: &Scratch,
) -> Result<[Identity; 2], DrillError> {
    let (key_pem, csr_pem) = pki::request()?;
    let cluster = AddCluster {
        name: "drill".to_owned(),
        key: key.to_owned(),
        csr_pem: Some(csr_pem),
        plugin: Some("one".to_owned()),
        node_ca_pem: None,
        certificate_life_seconds: None,
    };
    let added = server.client.add_cluster(&cluster).await?;
    let certificate = added.certificate_pem.ok_or(DrillError::Answer("a certificate"))?;
    let one = scratch.folder("plugin-one")?;
    let one = Identity::write(&one, &key_pem, (&certificate, &added.ca_pem))?;
    let cluster: ClusterId = added.id;
    let two = server.identity((cluster, "two"), &scratch.folder("plugin-two")?).await?;
    Ok([one, two])
}

/// What both sides are made of.
struct Make<'a> {
    outages: &'a Outages,
    scratch: &'a Scratch,
    ground: &'a Ground,
    cluster: (&'a Etcd, &'a Authority),
    key: &'a str,
    server: SocketAddr,
}

impl Make<'_> {
    async fn side(&self, name: &'static str, identity: Identity) -> Result<Side, DrillError> {
        let relay = Relay::to(self.server).await?;
        let socket = self.scratch.root().join(format!("{name}.sock"));
        let plugin = Plugin {
            name: format!("kms-plugin-{name}"),
            socket: socket.clone(),
            key: self.key.to_owned(),
            server: relay.url(),
            identity,
            leases: self.leases(),
        };
        let running = Some(plugin.start(self.ground).await?);
        let config = self.scratch.root().join(format!("encryption-config-{name}.json"));
        write_private(&config, encryption_config(&socket).as_bytes())?;
        let directory = self.scratch.folder(&format!("apiserver-{name}"))?;
        let apiserver = format!("kube-apiserver-{name}");
        let options = Options {
            name: &apiserver,
            encryption_config: &config,
            flags: &self.outages.apiserver_flags,
            patience: Duration::from_secs(120),
        };
        let program = (self.outages.programs.kube_apiserver.as_path(), self.ground);
        let apiserver = Apiserver::start(program, self.cluster, &directory, &options).await?;
        Ok(Side { relay, plugin, running, apiserver })
    }

    fn leases(&self) -> Vec<OsString> {
        let options =
            [("--lease", self.outages.lease), ("--write-lease", self.outages.write_lease)];
        let given = options.into_iter().filter_map(|(option, time)| Some((option, time?)));
        given
            .flat_map(|(name, time)| [name.into(), format!("{}s", time.as_secs()).into()])
            .collect()
    }
}

fn encryption_config(socket: &Path) -> String {
    let endpoint = format!("unix://{}", socket.display());
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{ "resources": ["secrets"], "providers": [
            { "kms": { "apiVersion": "v2", "name": "lastkey", "endpoint": endpoint, "timeout": "3s" } },
            { "identity": {} },
        ] }],
    })
    .to_string()
}
