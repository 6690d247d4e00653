//! Binds a socket.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use super::{SocketAddress, SocketError, parent};

/// How many connections may wait to be accepted; an apiserver opens one.
const BACKLOG: i32 = 64;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    pub(super) listener: UnixListener,
    pub(super) address: String,
    /// Whether each connection must show its peer credential.
    pub(super) checks_peer: bool,
    /// The file to remove at the end, if we made it.
    _file: Option<OwnFile>,
}

/// A socket file, as we made it.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Listener {
    /// Binds and listens.
    pub fn bind(address: &SocketAddress) -> Result<Self, SocketError> {
        address.check()?;
        match address {
            SocketAddress::Path(path) => bind_path(path),
            SocketAddress::Abstract(name) => bind_abstract(name),
        }
    }

    /// A socket that somebody else made, and will remove.
    pub(super) fn inherited(listener: UnixListener) -> Self {
        let local = listener.local_addr().ok();
        let path = local.as_ref().and_then(|it| it.as_pathname()).map(Path::to_owned);
        let checks_peer = path.is_none();
        let address = path.map_or_else(|| "@(inherited)".into(), |it| it.display().to_string());
        Self { listener, address, checks_peer, _file: None }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for OwnFile {
    /// Removes the file, unless another plugin has replaced it since.
    fn drop(&mut self) {
        if identity(&self.path).ok() == Some(self.device_and_inode) {
            let _ = fs::remove_file(&self.path);
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
    let directory = prepare_directory(parent(path))?;
    // 2. One plugin at a time from here on, so that two don't take turns at reclaiming.
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)
        .map_err(|error| SocketError::io("lock the directory of", &address)(error.into()))?;
    // 3. Remove what a dead plugin left.
    remove_stale(path)?;
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
    let device_and_inode = identity(path).map_err(SocketError::io("inspect", &address))?;
    let file = OwnFile { path: path.to_owned(), device_and_inode };
    let listener = UnixListener::from(socket);
    Ok(Listener { listener, address, checks_peer: false, _file: Some(file) })
}

fn bind_abstract(name: &str) -> Result<Listener, SocketError> {
    let address = format!("@{name}");
    let listener = SocketAddr::from_abstract_name(name)
        .and_then(|name| UnixListener::bind_addr(&name))
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => SocketError::InUse(address.clone()),
            _ => SocketError::io("listen on", &address)(error),
        })?;
    listener.set_nonblocking(true).map_err(SocketError::io("listen on", &address))?;
    Ok(Listener { listener, address, checks_peer: true, _file: None })
}

/// Opens the directory, made with mode 0700 if it is missing, and checks who can write in it.
fn prepare_directory(path: &Path) -> Result<File, SocketError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(SocketError::io("make the directory", path.display())(error));
        }
        _ => {}
    }
    let directory = File::open(path).map_err(SocketError::io("open", path.display()))?;
    let metadata = directory.metadata().map_err(SocketError::io("inspect", path.display()))?;
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(SocketError::ForeignDirectory { path: path.to_owned(), owner: metadata.uid() });
    }
    // in a sticky directory such as /tmp, others can add files but not replace ours
    let (writable, sticky) = (metadata.mode() & 0o022 != 0, metadata.mode() & 0o1000 != 0);
    if writable && !sticky {
        return Err(SocketError::OpenDirectory(path.to_owned()));
    }
    Ok(directory)
}

/// Removes a socket that nobody listens on; anything else stays, and is an error.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let address = || path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::io("inspect", address())(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %address(), "replacing a socket that nobody listens on");
            fs::remove_file(path).map_err(SocketError::io("remove", address()))
        }
        // connected, or a full backlog: somebody is there
        _ => Err(SocketError::InUse(address().to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
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
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let chmod = |mode| {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        };
        chmod(0o777);
        assert!(matches!(bind(&path), Err(SocketError::OpenDirectory(_))));
        chmod(0o1777);
        assert!(bind(&path).is_ok());
    }

    #[test]
    fn an_abstract_name_has_one_owner() {
        let name = format!("lastkey-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddress::Abstract(name);
        let _listener = Listener::bind(&address).unwrap();
        assert!(matches!(Listener::bind(&address), Err(SocketError::InUse(_))));
    }
}
