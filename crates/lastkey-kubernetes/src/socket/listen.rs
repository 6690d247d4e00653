//! Binds a socket, and passes it on.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{FlockOperation, Mode},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use super::{SocketAddress, SocketError, parent, place};

/// How many connections may wait to be accepted; an apiserver opens one.
const BACKLOG: i32 = 64;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    pub(super) listener: UnixListener,
    pub(super) address: String,
    /// Whether each connection must show its peer credential.
    pub(super) checks_peer: bool,
    /// The file to remove at the end, if it is ours.
    file: Option<Arc<OwnFile>>,
    /// The file by which it is dialled, whoever removes it.
    pub(super) seen: Option<SocketFile>,
}

/// A second hold on a listening socket, to pass it on to another process.
///
/// The socket lives as long as anybody holds it.
#[derive(Debug)]
pub struct Handle {
    listener: UnixListener,
    file: Option<Arc<OwnFile>>,
}

/// A socket's file, to be known again.
#[derive(Debug, Clone)]
pub(super) struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

/// A socket file that is ours to remove.
#[derive(Debug)]
struct OwnFile {
    file: SocketFile,
    /// False once, or as long as, another process removes it.
    is_ours: AtomicBool,
}

impl Listener {
    /// Binds and listens.
    ///
    /// # Errors
    /// Where others could put a socket of their own, where one is alive, or something else is in
    /// the way.
    pub fn bind(address: &SocketAddress) -> Result<Self, SocketError> {
        address.check()?;
        match address {
            SocketAddress::Path(path) => bind_path(path),
            SocketAddress::Abstract(name) => bind_abstract(name),
        }
    }

    /// A socket that somebody else made, and will remove.
    ///
    /// # Errors
    /// If its directory is one where others could put a socket of their own.
    pub(super) fn inherited(listener: UnixListener) -> Result<Self, SocketError> {
        let local = listener.local_addr().ok();
        let path = local.as_ref().and_then(|it| it.as_pathname()).map(Path::to_owned);
        let Some(path) = path else {
            let name = local.as_ref().and_then(|it| it.as_abstract_name());
            let name = name.map_or_else(|| "(unnamed)".into(), String::from_utf8_lossy);
            return Ok(Self {
                listener,
                address: format!("@{name}"),
                checks_peer: true,
                file: None,
                seen: None,
            });
        };
        place::check(parent(&path))?;
        let checks_peer = place::is_open_to_all(&path);
        if checks_peer {
            tracing::warn!(
                socket = %path.display(),
                "everybody may dial this socket, so each connection must show that it is our own \
                 user's or root's; better: SocketMode=0600 in the .socket unit"
            );
        }
        let (address, seen) = (path.display().to_string(), SocketFile::at(&path).ok());
        Ok(Self { listener, address, checks_peer, file: None, seen })
    }

    /// A socket that our predecessor hands over; `owned` if its file goes with it.
    pub(super) fn succeeded(listener: UnixListener, owned: bool) -> Result<Self, SocketError> {
        let mut inherited = Self::inherited(listener)?;
        // ours only once the predecessor has let go of it
        let own = |file| Arc::new(OwnFile { file, is_ours: AtomicBool::new(false) });
        inherited.file = inherited.seen.clone().filter(|_| owned).map(own);
        Ok(inherited)
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A second hold on it.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn handle(&self) -> Result<Handle, SocketError> {
        let listener = self.listener.try_clone();
        let listener = listener.map_err(SocketError::io("hold", &self.address))?;
        Ok(Handle { listener, file: self.file.clone() })
    }
}

impl Handle {
    /// Whether the socket's file has to be removed at the end.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// From now on, another process removes the file.
    pub fn let_go(&self) {
        self.own(false);
    }

    /// From now on, this process removes the file, and is the one that those who dial can name.
    pub fn take(&self) {
        self.own(true);
        if place::is_known_by_another(&self.listener) {
            // the kernel takes down who called this last
            let _ = rustix::net::listen(&self.listener, BACKLOG);
        }
    }

    fn own(&self, is_ours: bool) {
        if let Some(file) = &self.file {
            file.is_ours.store(is_ours, Ordering::SeqCst);
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    /// Nobody dials a socket that is no longer accepted from: its file goes first.
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

impl OwnFile {
    /// Removes the file, unless another plugin has replaced it since.
    fn remove(&self) {
        if self.is_ours.load(Ordering::SeqCst) && self.file.is_there().is_ok_and(|is| is) {
            let _ = fs::remove_file(&self.file.path);
        }
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), device_and_inode: identity(path)? })
    }

    /// Whether it is still there, and not another in its place.
    ///
    /// # Errors
    /// It cannot be told.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        match identity(&self.path) {
            Ok(found) => Ok(found == self.device_and_inode),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(false),
                _ => Err(error),
            },
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

fn bind_path(path: &Path) -> Result<Listener, SocketError> {
    let address = path.display().to_string();
    // 1. A directory where nobody else can put a socket.
    let directory = place::prepare(parent(path))?;
    // 2. One plugin at a time from here on, so that two don't take turns at reclaiming.
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)
        .map_err(|error| SocketError::io("lock the directory of", &address)(error.into()))?;
    // 3. Remove what a dead plugin left.
    place::clear(path)?;
    // 4. Bind: on Linux, the file gets the mode that the socket had before.
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .and_then(|socket| {
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    })
    .map_err(|error| SocketError::io("listen on", &address)(error.into()))?;
    let seen = SocketFile::at(path).map_err(SocketError::io("inspect", &address))?;
    let own = OwnFile { file: seen.clone(), is_ours: AtomicBool::new(true) };
    let (file, seen) = (Some(Arc::new(own)), Some(seen));
    Ok(Listener { listener: UnixListener::from(socket), address, checks_peer: false, file, seen })
}

fn bind_abstract(name: &str) -> Result<Listener, SocketError> {
    let address = format!("@{name}");
    let abstract_name = SocketAddr::from_abstract_name(name);
    let listener = abstract_name.and_then(|name| UnixListener::bind_addr(&name)).map_err(
        |error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                SocketError::InUse { by: place::holder(name), address: address.clone() }
            }
            _ => SocketError::io("listen on", &address)(error),
        },
    )?;
    listener.set_nonblocking(true).map_err(SocketError::io("listen on", &address))?;
    Ok(Listener { listener, address, checks_peer: true, file: None, seen: None })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    };

    use super::*;

    fn bind(path: &Path) -> Result<Listener, SocketError> {
        Listener::bind(&SocketAddress::Path(path.to_owned()))
    }

    #[test]
    fn only_the_owner_may_connect_and_the_directory_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/kms.sock");
        let _listener = bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(parent(&path)), 0o700);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        // dropped without removing the file, like a process that was killed
        drop(UnixListener::bind(&path).unwrap());
        let live = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let old = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let new = bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
    }

    #[test]
    fn other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let inside = directory.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let error = bind(&inside).unwrap_err();
        assert!(matches!(error, SocketError::IsDirectory(_)), "{error:?}");
        let (said, inside) = (error.to_string(), inside.join("kms.sock"));
        assert!(said.ends_with(&*inside.to_string_lossy()) && !said.contains("rm "), "{said}");
    }

    #[test]
    fn the_file_goes_with_whoever_it_was_handed_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let old = bind(&path).unwrap();
        let handle = old.handle().unwrap();
        let copy = handle.listener.try_clone().unwrap();
        let new = Listener::succeeded(copy, handle.has_file()).unwrap();
        // a successor that failed removes nothing
        drop(Listener::succeeded(handle.listener.try_clone().unwrap(), true).unwrap());
        assert!(path.exists());
        new.handle().unwrap().take();
        handle.let_go();
        drop((old, handle));
        UnixStream::connect(&path).unwrap();
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn an_abstract_name_has_one_owner() {
        let name = format!("lastkey-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddress::Abstract(name);
        let _listener = Listener::bind(&address).unwrap();
        assert!(matches!(Listener::bind(&address), Err(SocketError::InUse { .. })));
    }
}
