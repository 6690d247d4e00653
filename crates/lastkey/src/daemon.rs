//! The long-running commands: wiring, readiness, and a clean end.

mod audit;
mod data_dir;
mod first_start;
mod identity;
mod keeper;
mod metrics;
mod notify;
mod plugin;
mod ready;
mod rotations;
mod serve;
mod supervise;
mod upgrade;

pub(crate) use identity::{new_key_pair, signing_request};
pub(crate) use keeper::{IdentityFiles, plugin_of};
pub(crate) use plugin::{client_of, identity_of, plugin_inside_up};
use tokio::sync::watch;

use crate::{
    cli::{Connect, PluginOptions, ServerOptions, UpOptions},
    output::{Failure, Output},
};

/// `lastkey up`: a server, and a plugin that is its first client.
pub(crate) fn up(options: UpOptions, output: &Output) -> Result<(), Failure> {
    prepare_process();
    run(serve::up(options, output))
}

/// `lastkey server`: the server alone.
pub(crate) fn server(options: ServerOptions, output: &Output) -> Result<(), Failure> {
    prepare_process();
    run(serve::server(options, output))
}

/// `lastkey kms-plugin`: the plugin alone.
pub(crate) fn kms_plugin(
    connect: &Connect,
    options: PluginOptions,
    output: &Output,
) -> Result<(), Failure> {
    prepare_process();
    run(plugin::alone(connect, options, output))
}

/// Keeps keys out of core dumps and swap, as far as the system lets us.
fn prepare_process() {
    if let Err(error) = lastkey_crypto::memory::harden_process() {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
}

fn run(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}

/// Turns true when SIGINT or SIGTERM arrives.
fn on_signal() -> Result<watch::Receiver<bool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        let _ = stop.send(true);
    });
    Ok(stopped)
}

/// SIGUSR2 upgrades a plugin that runs alone. Elsewhere it would end the process, so it is only
/// heard, and what to do instead is said.
fn hear_upgrades(instead: &'static str) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut wanted = signal(SignalKind::user_defined2()).map_err(Failure::failed)?;
    tokio::spawn(async move {
        while wanted.recv().await.is_some() {
            tracing::warn!(
                "SIGUSR2 upgrades a kms-plugin that runs alone, and does nothing here: {instead}"
            );
        }
    });
    Ok(())
}

/// Resolves once the process is to stop.
async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
