//! The upgrade in place: on SIGUSR2 a plugin starts the binary that now lies at its own path, hands
//! it the listening sockets, and ends once the new process answers.
//!
//! 1. The old process starts the new one, with its own arguments and a connection as standard input.
//! 2. It sends the listening sockets, and goes on answering.
//! 3. The new one asks the server about the key, and says that it is ready.
//! 4. The old one tells the service manager who goes on, stops accepting and says so.
//! 5. The new one accepts. The old one answers what it has begun, and ends with code 0.
//!
//! Up to step 4, whatever goes wrong ends the new process, and the old one goes on. An apiserver's
//! connection ends with a goodbye in step 5; it dials again and finds the new process.
//!
//! A process that waits for step 4 hands over to nobody, or there would be two that begin; nor does
//! it begin before the old one has let go or is dead, whatever becomes of their connection.

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use lastkey_kubernetes::socket::{Inheritance, Offer, SocketError, receive};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
    process::{PidfdFlags, pidfd_open},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};

use super::{notify::notify, supervise::is_supervised};

/// Says to a process that its standard input leads to its predecessor.
const MARK: &str = "LASTKEY_TAKES_OVER";
/// From the start of the new process to its first answer from the server.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// For a process that has closed its connection.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Between a dying process's last open file and its end.
const DIES_WITHIN: Duration = Duration::from_secs(5);
/// How often its end is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);
const READY: u8 = b'r';
const YOURS: u8 = b'y';

/// Why the old process goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error(
        "this process is the first of its container, which ends with it: roll out a new image instead"
    )]
    FirstProcess,
    #[error("another process holds the sockets and runs this one: start that one anew instead")]
    Supervised,
    #[error("cannot start {}: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("cannot hand over the sockets: {0}")]
    Send(#[from] SocketError),
    #[error("cannot talk to the new process: {0}")]
    Talk(#[from] io::Error),
    #[error("the new process ended before it was ready ({0}); its own last lines say why")]
    Ended(ExitStatus),
    #[error(
        "the new process was not ready within {} s, because the server has not answered it; it was \
         stopped", READY_WITHIN.as_secs()
    )]
    Late,
}

/// What an upgrade needs, gathered before anything can have been replaced.
pub(super) struct Upgrades {
    next: Successor,
    asked: Signal,
}

/// What is to be started.
struct Successor {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Upgrades {
    /// From here on, SIGUSR2 does not end the process any more.
    pub(super) fn prepare() -> io::Result<Self> {
        let next = Successor { path: own_path()?, arguments: env::args_os().skip(1).collect() };
        Ok(Self { next, asked: signal(SignalKind::user_defined2())? })
    }

    /// Resolves once another process has taken over. Before `begun` this one has nothing to hand
    /// over.
    pub(super) async fn handed_over(self, offer: &Offer, begun: impl Future<Output = ()>) {
        let Self { next, mut asked } = self;
        let too_early = "not upgraded: this process has not taken over yet itself";
        ignoring(&mut asked, too_early, begun).await;
        loop {
            if asked.recv().await.is_none() {
                return std::future::pending().await;
            }
            tracing::info!(binary = %next.path.display(), "upgrading in place");
            let again = "an upgrade is under way already; this signal is not kept for later";
            match ignoring(&mut asked, again, next.hand_over(offer)).await {
                Ok(pid) => {
                    tracing::info!(pid, "the new process has taken over; this one ends");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "the upgrade failed; this process goes on");
                }
            }
        }
    }
}

/// Does this work; signals that come meanwhile are answered by a line in the log.
async fn ignoring<T>(asked: &mut Signal, why: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            Some(()) = asked.recv() => tracing::warn!("SIGUSR2: {why}"),
        }
    }
}

impl Successor {
    async fn hand_over(&self, offer: &Offer) -> Result<u32, UpgradeError> {
        if std::process::id() == 1 {
            return Err(UpgradeError::FirstProcess);
        }
        if is_supervised() {
            return Err(UpgradeError::Supervised);
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let mut new = self.start(theirs.into())?;
        match self.introduce(ours, offer, &mut new).await {
            Ok(talk) => self.let_go(talk, offer, new).await,
            Err(error @ (UpgradeError::Send(_) | UpgradeError::Talk(_))) => {
                // most often it has ended, and how says more
                match tokio::time::timeout(ENDS_WITHIN, new.0.wait()).await {
                    Ok(Ok(status)) => Err(UpgradeError::Ended(status)),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Steps 2 and 3.
    async fn introduce(
        &self,
        talk: std::os::unix::net::UnixStream,
        offer: &Offer,
        new: &mut NewProcess,
    ) -> Result<UnixStream, UpgradeError> {
        offer.send(&talk)?;
        talk.set_nonblocking(true)?;
        let mut talk = UnixStream::from_std(talk)?;
        let answer = tokio::select! {
            answer = tokio::time::timeout(READY_WITHIN, talk.read_u8()) => answer,
            ended = new.0.wait() => return Err(UpgradeError::Ended(ended?)),
        };
        match answer {
            Ok(Ok(READY)) => Ok(talk),
            Ok(Ok(_)) => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(UpgradeError::Late),
        }
    }

    /// Step 4.
    async fn let_go(
        &self,
        mut talk: UnixStream,
        offer: &Offer,
        mut new: NewProcess,
    ) -> Result<u32, UpgradeError> {
        // it goes on, so the manager follows it and not us
        let pid = new.0.id().unwrap_or_default();
        notify(&format!("MAINPID={pid}"));
        if let Err(error) = talk.write_u8(YOURS).await {
            notify(&format!("MAINPID={}", std::process::id()));
            return Err(error.into());
        }
        offer.let_go();
        new.release();
        Ok(pid)
    }

    fn start(&self, input: OwnedFd) -> Result<NewProcess, UpgradeError> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env(MARK, "1").stdin(Stdio::from(input));
        for handed in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(handed);
        }
        let started = command.spawn();
        let started =
            started.map_err(|source| UpgradeError::Start { path: self.path.clone(), source });
        started.map(|child| NewProcess(child, true))
    }
}

/// Stopped when dropped, unless it was released.
struct NewProcess(Child, bool);

impl NewProcess {
    fn release(&mut self) {
        self.1 = false;
    }
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        if self.1 {
            let _ = self.0.start_kill();
        }
    }
}

/// The process before this one, which still answers.
pub(super) struct Predecessor {
    talk: UnixStream,
    /// Readable once it is dead; none where the kernel cannot tell.
    process: Option<OwnedFd>,
}

/// How it comes that this process does not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeOverError {
    #[error("cannot talk to the process before this one: {0}")]
    Talk(#[from] io::Error),
    #[error("the process before this one goes on by itself, so this one ends")]
    GoesOn,
}

impl Predecessor {
    /// Whoever started this process for an upgrade, and what it hands over.
    pub(super) fn find() -> Result<Option<(Self, Inheritance)>, SocketError> {
        if env::var_os(MARK).is_none() {
            return Ok(None);
        }
        let closed = |_| SocketError::Handover("standard input is closed");
        let input = io::stdin().as_fd().try_clone_to_owned();
        let talk = input.map(std::os::unix::net::UnixStream::from).map_err(closed)?;
        let inheritance = receive(&talk)?;
        // whoever made the pair; read before it can have let go
        let process =
            socket_peercred(&talk).and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty())).ok();
        talk.set_nonblocking(true).map_err(closed)?;
        let talk = UnixStream::from_std(talk).map_err(closed)?;
        Ok(Some((Self { talk, process }, inheritance)))
    }

    /// Resolves once it has given this process up, and goes on. Never does if it died.
    pub(super) async fn gave_up(&self) {
        // it says nothing before it has heard of us: this is the connection's end
        if self.talk.readable().await.is_ok() && !self.is_dead().await {
            return;
        }
        std::future::pending().await
    }

    /// Says that this process is ready, and waits until the old one has stopped accepting, or is no
    /// more.
    pub(super) async fn take_over(mut self) -> Result<(), TakeOverError> {
        let said = async {
            self.talk.write_u8(READY).await?;
            self.talk.read_u8().await
        };
        match said.await {
            Ok(YOURS) => tracing::info!("took over from the process before"),
            Ok(_) => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            Err(_) if !self.is_dead().await => return Err(TakeOverError::GoesOn),
            Err(error) => tracing::warn!(%error, "the process before is gone: taking over"),
        }
        Ok(())
    }

    /// Whether the process whose connection has ended has ended, too.
    async fn is_dead(&self) -> bool {
        let Some(process) = &self.process else { return true };
        let has_ended = || {
            let mut polled = [PollFd::new(process, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        };
        let until = Instant::now() + DIES_WITHIN;
        while !has_ended() {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }
}

/// Where this binary was started from: the name it was called by if that leads to it (a link that an
/// upgrade points elsewhere), else its file.
pub(super) fn own_path() -> io::Result<PathBuf> {
    let file = env::current_exe()?;
    let called = env::args_os().next().map(PathBuf::from).filter(|it| it.components().count() > 1);
    let called = called.and_then(|it| std::path::absolute(it).ok());
    Ok(called.filter(|it| is_same(it, &file)).unwrap_or(file))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|it| (it.dev(), it.ino())).ok();
    identity(one).is_some() && identity(one) == identity(other)
}
