//! The admin socket: HTTP/1.1 without TLS for processes of the server's own user, and root.
//!
//! The file's mode keeps others out; the kernel's word on who connected is checked as well, so
//! that a directory with loose permissions lets nobody in.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use super::{Door, doorman::Guest, drain, pace::Paced, reap, serve};
use crate::{exchange::Peer, service::Service};

/// The longest path of a socket that the system takes: `sun_path` is 108 bytes with its NUL.
const MAX_PATH: usize = 107;

/// Why the admin socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminSocketError {
    /// The path is too long for the system.
    #[error(
        "the path of the admin socket, {}, has {length} bytes, but the system allows at most \
         {MAX_PATH}; choose a shorter --data-dir", path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Another server has it open.
    #[error(
        "another server listens on {}; stop it first, or choose another --data-dir",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{} is not a socket; move it away", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error(
        "the admin socket {} cannot be opened: {source}; the directory has to exist and be \
         writable", path.display()
    )]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening admin socket, removed when dropped.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Opens the socket with mode 0600, in place of one that nobody listens on any more.
    pub(crate) fn open(path: &Path) -> Result<Self, AdminSocketError> {
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(AdminSocketError::PathTooLong { path: path.to_owned(), length });
        }
        let failed = |source| AdminSocketError::Open { path: path.to_owned(), source };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Between these two lines the peer's credential alone guards the door.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts connections until the server stops, and then lets them end.
    pub(crate) async fn run(self, service: Arc<Service>) {
        let mut connections = JoinSet::new();
        let mut stopping = service.stopping.clone();
        let mut door = Door::default();
        loop {
            tokio::select! {
                () = stopping.wait() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        reap(&mut connections);
                        service.metrics.accepted();
                        let Some(guest) = service.doorman.admit_admin(&service.metrics) else {
                            continue;
                        };
                        let number = guest.number();
                        let task = connections.spawn(connect(Arc::clone(&service), stream, guest));
                        service.doorman.served_by(number, task);
                    }
                    Err(error) => door.failed(&error, &service, || self.listener.accept()).await,
                },
            }
        }
        drop(self);
        drain(connections, service.limits.drain).await;
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the socket of a server that was killed.
fn remove_stale(path: &Path) -> Result<(), AdminSocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(AdminSocketError::Occupied { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| AdminSocketError::Open { path: path.to_owned(), source }),
        _ => Err(AdminSocketError::InUse { path: path.to_owned() }),
    }
}

async fn connect(service: Arc<Service>, stream: UnixStream, guest: Guest) {
    let Some(peer) = admitted(&stream) else {
        service.metrics.shed("credentials");
        return;
    };
    let paced = Paced::new(stream, Arc::clone(&guest.pulse), Arc::clone(&service));
    let stopping = service.stopping.clone();
    serve(service, (TokioIo::new(paced), false, stopping), peer, guest).await;
}

/// The peer, if it is the server's own user or root.
fn admitted(stream: &UnixStream) -> Option<Peer> {
    let credential = stream.peer_cred().ok()?;
    let uid = credential.uid();
    let own = rustix::process::geteuid().as_raw();
    (uid == own || uid == 0).then(|| Peer::Admin { uid, pid: credential.pid().unwrap_or_default() })
}
