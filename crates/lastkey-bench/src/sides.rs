//! The two processes under load: `lastkey up`, and the floor.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    net::ToSocketAddrs as _,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_testbed::{Daemon, Lastkey, Running};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use crate::{
    error::Error,
    floor::FloorReady,
    load::{Connection, Credentials, PluginCall, PluginCaller, Target, Template},
    options::Options,
    scenario::Scenario,
};

/// The key that `up` makes.
const KEY: &str = "alias/kubernetes";
const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// `lastkey up` on a fresh data directory.
pub(crate) struct Ours {
    running: Running,
    pub(crate) target: Target,
    credentials: Credentials,
    plaintext: String,
    /// What Encrypt of the plaintext gives, for Decrypt.
    ciphertext: String,
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
}

impl Ours {
    pub(crate) async fn start(options: &Options, dir: &Path) -> Result<Self, Error> {
        let binary = binary(options)?;
        let running = Lastkey::new(binary, dir).up(&dir.join("data"), "127.0.0.1:0")?;
        let ready = &running.ready;
        let credentials = std::fs::read_to_string(&ready.credentials_file)?;
        let credentials = serde_json::from_str(&credentials)
            .map_err(|source| Error::Json { path: ready.credentials_file.clone(), source })?;
        let authority = CertificateDer::from_pem_file(&ready.ca_file)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let address = ready.address().to_socket_addrs()?.next();
        let address = address.ok_or_else(|| std::io::Error::other("the url has no address"))?;
        let target = Target::new(address, "127.0.0.1", [authority], HTTP1)?;
        let plaintext = "plain-text.".chars().cycle().take(options.plaintext.into()).collect();
        let mut ours = Self { running, target, credentials, plaintext, ciphertext: String::new() };
        let answer = ours.ask(options, Scenario::Encrypt).await?;
        ours.ciphertext = answer["CiphertextBlob"].as_str().unwrap_or_default().to_owned();
        Ok(ours)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.process.pid()
    }

    pub(crate) fn plugin_socket(&self) -> &Path {
        &self.running.ready.plugin_socket
    }

    /// The requests of a scenario over HTTPS; the floor gets the same.
    pub(crate) fn template(&self, options: &Options, scenario: Scenario) -> Template {
        let encrypt = [("KeyId", KEY), ("Plaintext", &self.plaintext)];
        let decrypt = [("CiphertextBlob", self.ciphertext.as_str())];
        let data_key = [("KeyId", KEY), ("KeySpec", "AES_256")];
        let call: (&str, &[(&str, &str)]) = match scenario {
            Scenario::Decrypt => ("Decrypt", &decrypt),
            Scenario::DataKey => ("GenerateDataKey", &data_key),
            _ => ("Encrypt", &encrypt),
        };
        Template::new(options.signature, &self.credentials, self.running.ready.address(), call)
    }

    /// One call of a plugin's scenario.
    pub(crate) fn plugin_call(&self, scenario: Scenario) -> PluginCall {
        match scenario {
            Scenario::PluginStatus => PluginCall::Status,
            _ => PluginCall::Encrypt(self.plaintext.clone().into_bytes()),
        }
    }

    /// How large the answers of this scenario are.
    pub(crate) async fn sizes(
        &self,
        options: &Options,
        scenario: Scenario,
    ) -> Result<Sizes, Error> {
        let scenario = if scenario.is_https() { scenario } else { Scenario::Encrypt };
        let body = self.ask(options, scenario).await?.to_string().len();
        let call = self.plugin_call(Scenario::PluginEncrypt);
        let mut plugin = PluginCaller::open(self.plugin_socket(), call, "ours").await?;
        let plugin_ciphertext = plugin.encrypt(self.plaintext.clone().into_bytes()).await?;
        Ok(Sizes { body, plugin_ciphertext })
    }

    async fn ask(&self, options: &Options, scenario: Scenario) -> Result<Value, Error> {
        let template = self.template(options, scenario);
        let mut connection = Connection::open(&self.target, template, "ours").await?;
        let body = connection.exchange().await?;
        serde_json::from_slice(body)
            .map_err(|source| Error::Json { path: PathBuf::from("the answer"), source })
    }
}

impl Floor {
    pub(crate) fn start(options: &Options, sizes: Sizes, dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor").args([OsStr::new("--dir"), dir.as_os_str()]);
        command.args(["--plaintext", &options.plaintext.to_string()]);
        command.args(["--answer", &sizes.body.to_string()]);
        command.args(["--ciphertext", &sizes.plugin_ciphertext.to_string()]);
        let mut process = Daemon::start_piped("floor", &command, dir)?;
        let mut line = String::new();
        if let Some(stdout) = process.take_stdout() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        process.check()?;
        let ready: FloorReady = serde_json::from_str(&line)
            .map_err(|source| Error::Json { path: PathBuf::from("the floor's line"), source })?;
        let certificate = STANDARD.decode(&ready.certificate).map_err(std::io::Error::other)?;
        let target = Target::new(ready.address, "127.0.0.1", [certificate.into()], HTTP1)?;
        Ok(Self { process, ready, target })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The binary to measure: the one that was named, or the one beside ours.
fn binary(options: &Options) -> Result<PathBuf, Error> {
    let path = match &options.lastkey {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("lastkey"),
    };
    if path.is_file() { Ok(path) } else { Err(Error::NoBinary(path)) }
}
