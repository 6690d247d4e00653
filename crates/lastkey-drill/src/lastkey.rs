//! Our own server and plugin on the scratch copy of a backup, or on an installation of its own.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use lastkey_client::{Client, Config, native::AddPlugin};
use lastkey_crypto::ClusterId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    DrillError, Operator,
    child::{Child, Environment, Ground, LOOK_EVERY, Program},
    pki,
    scratch::write_private,
};

/// A backup's store is read to its end at each start.
const START: Duration = Duration::from_secs(600);
/// For a token that has to be found, and for what follows an unsealing.
const UNSEAL: Duration = Duration::from_secs(60);
const PLUGIN: Duration = Duration::from_secs(120);

/// The ready line, as far as it is needed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ready {
    url: String,
    admin_socket: PathBuf,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) client: Client,
}

/// What it took to have it serve.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// `file`, `shamir`, `pkcs11`.
    pub(crate) seal: String,
    /// How many shares were entered for it.
    shares: u64,
    /// Why it would not serve before somebody accepted the restore.
    pub(crate) held: Option<String>,
}

impl Opened {
    /// What it took to unseal the copy, and so takes after a real restore.
    pub(crate) fn by(&self) -> String {
        match (&*self.seal, self.shares) {
            ("shamir", 1) => "1 share that was entered".to_owned(),
            ("shamir", shares) => format!("{shares} shares that were entered"),
            ("pkcs11", _) => "the token".to_owned(),
            ("file", _) => "the root key in it, or beside it".to_owned(),
            (other, _) => other.to_owned(),
        }
    }
}

impl Server {
    /// Starts one on a data directory; `listen` is `127.0.0.1:PORT`.
    pub(crate) async fn start(
        ground: &Ground,
        data: &Path,
        listen: &str,
        token: &[OsString],
    ) -> Result<Self, DrillError> {
        let mut args: Vec<OsString> = vec!["server".into(), "--data-dir".into(), data.into()];
        args.extend(["--listen".into(), listen.into(), "--output".into(), "json".into()]);
        // a backup knows how its clusters are reached, and some are rotated by their server itself
        args.push("--isolated".into());
        args.extend_from_slice(token);
        let mut child = Child::start(&ours("lastkey-server", args, ground), ground)?;
        let line = child.line(START).await?;
        let ready: Ready =
            serde_json::from_str(&line).map_err(|_| DrillError::Answer("a ready line"))?;
        let client = Client::new(Config::admin(ready.admin_socket))?;
        Ok(Self { child, url: ready.url, client })
    }

    /// Brings it to where it serves: shares are asked for, and a restore that it would not take
    /// without a word is accepted, on this copy.
    pub(crate) async fn open(&self, operator: &mut dyn Operator) -> Result<Opened, DrillError> {
        let mut opened = Opened::default();
        let start = Instant::now();
        loop {
            let status = self.client.get("/v1/operator/status", &[]).await?;
            let seal = status["seal"]["kind"].as_str().unwrap_or_default();
            seal.clone_into(&mut opened.seal);
            match status["state"].as_str() {
                Some("unsealed") => return Ok(opened),
                Some("held") => {
                    let held = status["held"].as_str().unwrap_or("it does not say why").to_owned();
                    if opened.held.replace(held.clone()).is_some() {
                        return Err(DrillError::Sealed(held));
                    }
                    let reason = json!({ "reason": "a drill, on a copy that is thrown away" });
                    self.client.operator("accept-restore", &reason).await?;
                }
                Some("sealed") if seal == "shamir" => {
                    opened.shares += u64::from(self.enter(&status, operator).await?);
                }
                Some("sealed") if start.elapsed() < UNSEAL => {
                    tokio::time::sleep(LOOK_EVERY * 5).await;
                }
                Some("sealed") => {
                    let why = status["waiting"].as_str().unwrap_or("it does not say why");
                    return Err(DrillError::Sealed(why.to_owned()));
                }
                _ => {
                    let why = "the backup is of an installation that was never initialised";
                    return Err(DrillError::Sealed(why.to_owned()));
                }
            }
        }
    }

    /// One share; whether it was taken.
    async fn enter(&self, status: &Value, operator: &mut dyn Operator) -> Result<bool, DrillError> {
        let share = operator.share(status).map_err(DrillError::Sealed)?;
        match self.client.operator("unseal", &json!({ "share": &*share })).await {
            Ok(_) => Ok(true),
            Err(lastkey_client::Error::Api(error)) if operator.share_refused(&error.message) => {
                Ok(false)
            }
            Err(lastkey_client::Error::Api(error)) => Err(DrillError::Sealed(error.message)),
            Err(error) => Err(error.into()),
        }
    }

    /// An identity for a plugin of that cluster, as files in `directory`.
    pub(crate) async fn identity(
        &self,
        (cluster, name): (ClusterId, &str),
        directory: &Path,
    ) -> Result<Identity, DrillError> {
        let (key_pem, csr_pem) = pki::request()?;
        let plugin = AddPlugin { name: name.to_owned(), csr_pem };
        let issued = self.client.add_plugin(cluster, &plugin).await?;
        Identity::write(directory, &key_pem, (&issued.certificate_pem, &issued.ca_pem))
    }
}

/// What a plugin is known by.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    state: PathBuf,
}

impl Identity {
    pub(crate) fn write(
        directory: &Path,
        key_pem: &str,
        (certificate_pem, ca_pem): (&str, &str),
    ) -> Result<Self, DrillError> {
        let file = |name: &str| directory.join(name);
        let it = Self {
            certificate: file("plugin.pem"),
            key: file("plugin.key"),
            ca: file("ca.pem"),
            state: file("plugin-state"),
        };
        write_private(&it.certificate, certificate_pem.as_bytes())?;
        write_private(&it.key, key_pem.as_bytes())?;
        write_private(&it.ca, ca_pem.as_bytes())?;
        Ok(it)
    }
}

/// A plugin to be started.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    /// What it is called, and its log.
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    /// The key that it encrypts with.
    pub(crate) key: String,
    pub(crate) server: String,
    pub(crate) identity: Identity,
    /// Its leases, where they are to be other than the server's.
    pub(crate) leases: Vec<OsString>,
}

impl Plugin {
    /// Starts it, and waits until the server has answered it.
    pub(crate) async fn start(&self, ground: &Ground) -> Result<Child, DrillError> {
        let Identity { certificate, key, ca, state } = &self.identity;
        let mut args: Vec<OsString> = vec!["kms-plugin".into()];
        let options: [(&str, OsString); 8] = [
            ("--socket", self.socket.as_os_str().to_owned()),
            ("--key", self.key.clone().into()),
            ("--server", self.server.clone().into()),
            ("--client-cert", certificate.into()),
            ("--client-key", key.into()),
            ("--ca-file", ca.into()),
            ("--state-dir", state.into()),
            ("--output", "json".into()),
        ];
        for (option, value) in options {
            args.extend([option.into(), value]);
        }
        args.extend_from_slice(&self.leases);
        let mut child = Child::start(&ours(&self.name, args, ground), ground)?;
        child.line(PLUGIN).await?;
        Ok(child)
    }
}

fn ours(name: &str, args: Vec<OsString>, ground: &Ground) -> Program {
    Program {
        name: name.to_owned(),
        path: ground.lastkey.clone(),
        args,
        environment: Environment::Ours,
    }
}
