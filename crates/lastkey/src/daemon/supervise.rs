//! `kms-plugin --supervise`: a process that holds the apiserver's sockets, and runs the plugin in
//! another one, for places where no service manager can hold them (a pod).
//!
//! 1. It opens the sockets, and never accepts from them.
//! 2. It starts its own binary with its own arguments and a connection as standard input, and sends
//!    the sockets over it ([`Offer`]).
//! 3. The plugin accepts at once. The connection stays open as long as both live.
//! 4. When the plugin ends without having been told to, another is started: what was in flight fails,
//!    all others wait in the listening socket meanwhile.
//! 5. Told to end, it tells the plugin, waits for it, and removes the sockets.
//!
//! When this process ends in any other way, the plugin sees the connection's end and stops: whoever
//! comes next finds nobody on the socket.

use std::{
    env, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use lastkey_kubernetes::socket::{Inheritance, Listener, Offer, SocketError, receive};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    process::{Child, Command},
    sync::watch,
};

use super::{first_start::failed, plugin::sockets, stopped, upgrade::own_path};
use crate::{
    cli::PluginOptions,
    output::{Exit, Failure},
};

/// Says to a process that its standard input leads to its supervisor.
const MARK: &str = "LASTKEY_SUPERVISED";
/// A first plugin that fails so soon was given something wrong, and its supervisor ends as it did.
const FAILS_WITHIN: Duration = Duration::from_secs(5);
/// One that ran for so long is started anew at once.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// The first pause between two that were not steady; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For a plugin that was told to end: longer than it gives to what it has begun.
const ENDS_WITHIN: Duration = Duration::from_secs(12);

/// Whether this process is the one that holds the sockets.
pub(super) fn is_wanted(options: &PluginOptions) -> bool {
    options.supervise && !is_supervised()
}

/// Whether this process is a plugin that was started here.
pub(super) fn is_supervised() -> bool {
    env::var_os(MARK).is_some()
}

/// Runs plugins until told to end.
pub(super) async fn supervise(
    options: &PluginOptions,
    stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    if env::var_os("LISTEN_FDS").is_some() {
        let help = "leave --supervise away: whoever set LISTEN_FDS holds the socket already";
        return Err(Failure::new(Exit::Usage, help));
    }
    if options.sockets.is_empty() {
        let help = "give --socket PATH, where the apiserver will dial";
        return Err(Failure::new(Exit::Usage, help));
    }
    super::hear_upgrades(
        "the plugin's supervisor does not upgrade in place: roll out a new image, or start it anew",
    )?;
    let binary = own_path().map_err(failed)?;
    let open = |address| Listener::bind(address).map_err(failed);
    let listeners: Vec<Listener> =
        sockets(&options.sockets)?.iter().map(open).collect::<Result<_, _>>()?;
    let handles = listeners.iter().map(Listener::handle).collect::<Result<_, _>>();
    let offer = Offer::new(handles.map_err(failed)?, Vec::new());
    let (mut is_first, mut pause) = (true, Duration::ZERO);
    loop {
        let began = Instant::now();
        let mut plugin = Supervised::start(&binary, &offer)?;
        let ended = tokio::select! {
            ended = plugin.process.wait() => ended.map_err(failed)?,
            () = stopped(stop.clone()) => return plugin.end().await.map_err(failed),
        };
        let ran = began.elapsed();
        if let (true, true, Some(code @ 1..)) = (is_first, ran < FAILS_WITHIN, ended.code()) {
            let what = format!("the plugin ended ({ended}); its own last lines say why");
            return Err(Failure::new(exit_of(code), what));
        }
        is_first = false;
        pause = match ran < STEADY_AFTER {
            true => (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE),
            false => Duration::ZERO,
        };
        tracing::error!(status = %ended, ?pause, "the plugin ended; another one is started");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopped(stop.clone()) => return Ok(()),
        }
    }
}

fn exit_of(code: i32) -> Exit {
    let all = [Exit::Usage, Exit::NotFound, Exit::Denied, Exit::Dependency, Exit::Unavailable];
    all.into_iter().find(|exit| *exit as i32 == code).unwrap_or(Exit::Failed)
}

/// A plugin that runs.
struct Supervised {
    process: Child,
    /// Its end is how the plugin learns of ours.
    _talk: std::os::unix::net::UnixStream,
}

impl Supervised {
    fn start(binary: &Path, offer: &Offer) -> Result<Self, Failure> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(binary);
        command.args(env::args_os().skip(1)).env(MARK, "1");
        command.stdin(Stdio::from(OwnedFd::from(theirs))).kill_on_drop(true);
        let process = command.spawn().map_err(|error| {
            Failure::failed(format_args!("cannot start {}: {error}", binary.display()))
        })?;
        // Theirs must be open in that process alone, or its end would not be seen.
        drop(command);
        offer.send(&ours).map_err(failed)?;
        Ok(Self { process, _talk: ours })
    }

    /// Tells it to end, and waits for that.
    async fn end(mut self) -> io::Result<()> {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        match tokio::time::timeout(ENDS_WITHIN, self.process.wait()).await {
            Ok(ended) => said(ended?),
            Err(_) => {
                tracing::error!("the plugin does not end; it is killed");
                self.process.kill().await
            }
        }
    }
}

fn said(ended: ExitStatus) -> io::Result<()> {
    match ended.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("the plugin ended badly: {ended}"))),
    }
}

/// The process that holds the sockets, as the plugin sees it.
pub(super) struct Supervisor {
    talk: UnixStream,
}

impl Supervisor {
    /// Whoever started this process to run the plugin, and the sockets it holds.
    pub(super) fn find() -> Result<Option<(Self, Inheritance)>, SocketError> {
        if !is_supervised() {
            return Ok(None);
        }
        let broken = |_| SocketError::Handover("standard input leads to no supervisor");
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(broken)?;
        let talk = std::os::unix::net::UnixStream::from(input);
        let inheritance = receive(&talk)?;
        talk.set_nonblocking(true).map_err(broken)?;
        Ok(Some((Self { talk: UnixStream::from_std(talk).map_err(broken)? }, inheritance)))
    }

    /// Resolves once it is no more.
    pub(super) async fn gone(mut self) {
        while self.talk.read_u8().await.is_ok() {}
        tracing::error!("the supervisor is gone; this process ends, too");
    }
}
