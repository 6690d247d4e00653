//! The processes under load: lastkey, and the floor.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_testbed::{Daemon, Lastkey, Ready, Running};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use crate::{
    error::Error,
    floor::{FloorReady, shape::Shape},
    load::{Connection, Credentials, PluginCall, PluginCaller, Target, Template},
    options::{Job, Options},
    scenario::{Kind, Scenario},
};

/// The key that `up` makes.
pub(crate) const KEY: &str = "alias/kubernetes";
const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// A server of lastkey's, and what its clients need to be let in.
pub(crate) struct Account {
    pub(crate) target: Target,
    host: String,
    credentials: Credentials,
    plaintext: String,
    /// What Encrypt of the plaintext gives, for Decrypt.
    ciphertext: String,
}

/// `lastkey up` on a fresh data directory.
pub(crate) struct Ours {
    running: Running,
    pub(crate) account: Account,
}

/// Sizes of lastkey's answers, for the floor to answer with the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) body: usize,
    pub(crate) plugin_ciphertext: usize,
}

/// The floor, for answers of one size.
pub(crate) struct Floor {
    process: Daemon,
    pub(crate) ready: FloorReady,
    pub(crate) target: Target,
    /// TLS with a canned answer.
    pub(crate) null: Target,
}

impl Account {
    /// Of a server that said that it is ready. Nothing is asked of it yet.
    pub(crate) fn of(options: &Options, ready: &Ready) -> Result<Self, Error> {
        let credentials = std::fs::read_to_string(&ready.credentials_file)?;
        let credentials = serde_json::from_str(&credentials)
            .map_err(|source| Error::Json { path: ready.credentials_file.clone(), source })?;
        let authority = CertificateDer::from_pem_file(&ready.ca_file)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        Self::new(options, ready.address(), authority, credentials)
    }

    fn new(
        options: &Options,
        host: &str,
        authority: CertificateDer<'static>,
        credentials: Credentials,
    ) -> Result<Self, Error> {
        let address: Option<SocketAddr> = host.to_socket_addrs()?.next();
        let address = address.ok_or_else(|| std::io::Error::other("the url has no address"))?;
        let target = Target::new(address, "127.0.0.1", [authority], HTTP1)?;
        let plaintext = "plain-text.".chars().cycle().take(options.plaintext.into()).collect();
        let (host, ciphertext) = (host.to_owned(), String::new());
        Ok(Self { target, host, credentials, plaintext, ciphertext })
    }

    /// Makes a ciphertext for Decrypt.
    pub(crate) async fn prepare(&mut self, options: &Options) -> Result<(), Error> {
        let answer = self.ask(options, Scenario::Encrypt).await?;
        self.ciphertext = answer["CiphertextBlob"].as_str().unwrap_or_default().to_owned();
        Ok(())
    }

    /// The requests of a scenario over HTTPS; the floor gets the same.
    pub(crate) fn template(&self, options: &Options, scenario: Scenario) -> Template {
        let encrypt = [("KeyId", KEY), ("Plaintext", &self.plaintext)];
        let decrypt = [("CiphertextBlob", self.ciphertext.as_str())];
        let data_key = [("KeyId", KEY), ("KeySpec", "AES_256")];
        let call: (&str, &[(&str, &str)]) = match scenario {
            Scenario::Decrypt => ("Decrypt", &decrypt),
            Scenario::DataKey => ("GenerateDataKey", &data_key),
            Scenario::CreateKeyHttps => ("CreateKey", &[]),
            _ => ("Encrypt", &encrypt),
        };
        self.request(options, call)
    }

    /// Any other request.
    pub(crate) fn request(&self, options: &Options, call: (&str, &[(&str, &str)])) -> Template {
        Template::new(options.signature, &self.credentials, &self.host, call)
    }

    /// Sends one request and gives its answer.
    pub(crate) async fn ask(&self, options: &Options, scenario: Scenario) -> Result<Value, Error> {
        let template = self.template(options, scenario);
        let mut connection = Connection::open(&self.target, template, "ours").await?;
        parse(connection.exchange().await?)
    }
}

/// The JSON of an answer.
pub(crate) fn parse(body: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(body)
        .map_err(|source| Error::Json { path: PathBuf::from("the answer"), source })
}

impl Ours {
    pub(crate) async fn start(options: &Options, dir: &Path) -> Result<Self, Error> {
        let running = Lastkey::new(binary(options)?, dir).up(&dir.join("data"), "127.0.0.1:0")?;
        let mut account = Account::of(options, &running.ready)?;
        account.prepare(options).await?;
        Ok(Self { running, account })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.process.pid()
    }

    pub(crate) fn ready(&self) -> &Ready {
        &self.running.ready
    }

    pub(crate) fn plugin_socket(&self) -> &Path {
        &self.running.ready.plugin_socket
    }

    /// How large the answers of this scenario are.
    pub(crate) async fn sizes(
        &self,
        options: &Options,
        scenario: Scenario,
    ) -> Result<Sizes, Error> {
        let https = scenario.kind() == Kind::Https;
        let scenario = if https { scenario } else { Scenario::Encrypt };
        let body = self.account.ask(options, scenario).await?.to_string().len();
        let mut plugin =
            PluginCaller::open(self.plugin_socket(), PluginCall::Status, "ours").await?;
        let plaintext = self.account.plaintext.clone().into_bytes();
        Ok(Sizes { body, plugin_ciphertext: plugin.encrypt(plaintext).await? })
    }
}

/// How to start a floor.
#[derive(Clone, Copy)]
pub(crate) struct FloorPlan<'a> {
    /// Whose work it does.
    pub(crate) scenario: Scenario,
    pub(crate) sizes: Sizes,
    /// What a creation of a key writes.
    pub(crate) shape: Option<&'a Shape>,
    /// Whether it counts allocations.
    pub(crate) count: bool,
}

impl Floor {
    /// Starts a floor with its files in `dir`.
    pub(crate) fn start(options: &Options, plan: FloorPlan<'_>, dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir)?;
        let job = match plan.scenario {
            Scenario::Decrypt | Scenario::PluginDecrypt => Job::Open,
            Scenario::DataKey => Job::DataKey,
            Scenario::CreateKeyHttps => Job::Keep,
            _ => Job::Seal,
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor").args([OsStr::new("--dir"), dir.as_os_str()]);
        command.args(["--job", job.name()]);
        command.args(["--plaintext", &options.plaintext.to_string()]);
        command.args(["--answer", &plan.sizes.body.to_string()]);
        command.args(["--ciphertext", &plan.sizes.plugin_ciphertext.to_string()]);
        if let Some(shape) = plan.shape {
            let shape = serde_json::to_string(shape).map_err(std::io::Error::from)?;
            command.args(["--shape", &shape]);
        }
        if plan.count {
            command.arg("--count");
        }
        let mut process = Daemon::start_piped("floor", &command, dir)?;
        let ready: FloorReady = first_line(&mut process)?;
        let certificate = STANDARD.decode(&ready.certificate).map_err(std::io::Error::other)?;
        let certificate = CertificateDer::from(certificate);
        let target = Target::new(ready.address, "127.0.0.1", [certificate.clone()], HTTP1)?;
        let null = Target::new(ready.null, "127.0.0.1", [certificate], &[])?;
        Ok(Self { process, ready, target, null })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// What a process says first, parsed.
pub(crate) fn first_line<T: serde::de::DeserializeOwned>(process: &mut Daemon) -> Result<T, Error> {
    let mut line = String::new();
    if let Some(stdout) = process.take_stdout() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    process.check()?;
    serde_json::from_str(&line)
        .map_err(|source| Error::Json { path: PathBuf::from("a process's first line"), source })
}

/// The binary to measure: the one that was named, or the one beside ours.
pub(crate) fn binary(options: &Options) -> Result<PathBuf, Error> {
    let path = match &options.lastkey {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("lastkey"),
    };
    if path.is_file() { Ok(path) } else { Err(Error::NoBinary(path)) }
}
