//! The plugins of ours that are put under load, each in the state that a scenario wants.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use lastkey_testbed::{Lastkey, Ready, Running};

use crate::{
    error::Error,
    load::{PluginCall, PluginCaller},
    options::Options,
    scenario::Scenario,
    sides::{KEY, Ours, binary},
};

/// Ciphertexts that take turns: more than are ever in flight.
const CIPHERTEXTS: usize = 256;
/// Long enough for any outage to be noticed.
const NOTICED: std::time::Duration = std::time::Duration::from_secs(30);

/// A plugin under load.
pub(crate) struct Subject {
    pub(crate) socket: PathBuf,
    pub(crate) pid: u32,
    pub(crate) call: PluginCall,
    /// What was started for it alone.
    _running: Option<Running>,
}

impl Subject {
    /// The plugin of a scenario, with its files in `dir` if it has to be one of its own.
    pub(crate) async fn of(
        options: &Options,
        ours: &Ours,
        scenario: Scenario,
        dir: &Path,
    ) -> Result<Self, Error> {
        let plaintext = vec![b'p'; options.plaintext.into()];
        let (running, socket, pid) = match scenario {
            Scenario::PluginDecrypt => alone(forgetful(options, dir)?),
            Scenario::PluginStatusAway => alone(orphan(options, dir, "orphan").await?),
            Scenario::PluginStatusAwayPaced => alone(orphan(options, dir, "paced").await?),
            _ => (None, ours.plugin_socket().to_owned(), ours.pid()),
        };
        let call = match scenario {
            Scenario::PluginStatus | Scenario::PluginStatusPaced => PluginCall::Status,
            Scenario::PluginStatusAway | Scenario::PluginStatusAwayPaced => PluginCall::AnyStatus,
            Scenario::PluginEncrypt => PluginCall::Encrypt(plaintext),
            _ => {
                let call = PluginCall::Encrypt(plaintext.clone());
                let mut caller = PluginCaller::open(&socket, call, "ours").await?;
                let mut sealed = Vec::with_capacity(CIPHERTEXTS);
                for _ in 0..CIPHERTEXTS {
                    sealed.push(caller.seal(plaintext.clone()).await?);
                }
                PluginCall::decrypt(sealed)
            }
        };
        Ok(Self { socket, pid, call, _running: running })
    }
}

fn alone(running: Running) -> (Option<Running>, PathBuf, u32) {
    let (socket, pid) = (running.ready.plugin_socket.clone(), running.process.pid());
    (Some(running), socket, pid)
}

/// `up` that remembers one answer, so that each of many in turn is asked for.
fn forgetful(options: &Options, dir: &Path) -> Result<Running, Error> {
    let data = dir.join("forgetful");
    let words = ["up", "--listen", "127.0.0.1:0", "--cache-entries", "1", "--data-dir"];
    let words = words.map(OsStr::new).into_iter().chain([data.as_os_str()]);
    Ok(Lastkey::new(binary(options)?, dir).long_running("up", words)?)
}

/// A plugin whose server is gone, and that knows it.
async fn orphan(options: &Options, dir: &Path, name: &str) -> Result<Running, Error> {
    let lastkey = Lastkey::new(binary(options)?, dir);
    let data = dir.join(name);
    let mut up = lastkey.up(&data, "127.0.0.1:0")?;
    let ready = up.ready.clone();
    up.stop()?;
    let server = lastkey.server(&data, ready.address())?;
    let words = plugin_words(&ready);
    let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
    let mut plugin = lastkey.plugin(&words)?;
    plugin.ready.plugin_socket = ready.plugin_socket;
    drop(server);
    let socket = &plugin.ready.plugin_socket;
    let mut caller = PluginCaller::open(socket, PluginCall::AnyStatus, "ours").await?;
    let deadline = tokio::time::Instant::now() + NOTICED;
    while caller.healthz().await? == "ok" {
        if tokio::time::Instant::now() > deadline {
            let what = "the outage goes unnoticed".to_owned();
            return Err(Error::Answer { side: "ours", what });
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(plugin)
}

fn plugin_words(ready: &Ready) -> Vec<OsString> {
    let mut words = Vec::new();
    for (option, value) in [
        ("--socket", ready.plugin_socket.as_os_str()),
        ("--key", OsStr::new(KEY)),
        ("--server", OsStr::new(&ready.url)),
        ("--client-cert", ready.plugin_cert_file.as_os_str()),
        ("--client-key", ready.plugin_key_file.as_os_str()),
        ("--ca-file", ready.ca_file.as_os_str()),
    ] {
        words.extend([option.into(), value.to_owned()]);
    }
    words
}
