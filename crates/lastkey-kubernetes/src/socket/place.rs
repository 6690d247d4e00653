//! The place of a socket in the file system: who could put another one there, and what lies there
//! already.

use std::{
    fs::{self, DirBuilder, File, Metadata},
    io,
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::{SocketAddr, UnixStream},
        },
    },
    path::Path,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use super::{FIRST, SocketError, parent};

/// Opens the directory, made with mode 0700 if it is missing, and checks who can write in it.
pub(super) fn prepare(path: &Path) -> Result<File, SocketError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(SocketError::io("make the directory", path.display())(error));
        }
        _ => {}
    }
    let directory = File::open(path).map_err(SocketError::io("open", path.display()))?;
    let metadata = directory.metadata().map_err(SocketError::io("inspect", path.display()))?;
    judge(path, &metadata)?;
    Ok(directory)
}

/// Whether nobody but us and root can replace what is in a directory.
pub(super) fn check(path: &Path) -> Result<(), SocketError> {
    let metadata = fs::metadata(path).map_err(SocketError::io("inspect", path.display()))?;
    judge(path, &metadata)
}

fn judge(path: &Path, metadata: &Metadata) -> Result<(), SocketError> {
    let us = rustix::process::geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != us && owner != 0 {
        return Err(SocketError::ForeignDirectory { path: path.to_owned(), owner, us });
    }
    // in a sticky directory such as /tmp, others can add files but not replace ours
    match mode & 0o022 != 0 && mode & 0o1000 == 0 {
        true => Err(SocketError::OpenDirectory { path: path.to_owned(), mode }),
        false => judge_above(path),
    }
}

/// Whoever can write above a directory can put another one in its place, also where a link leads to
/// it. Only what everybody can write is refused: a home directory's group is often its user's own.
fn judge_above(path: &Path) -> Result<(), SocketError> {
    let found = SocketError::io("find", path.display());
    let (absolute, canonical) = std::path::absolute(path)
        .and_then(|absolute| Ok((absolute, fs::canonicalize(path)?)))
        .map_err(found)?;
    for above in absolute.ancestors().skip(1).chain(canonical.ancestors().skip(1)) {
        let Ok(metadata) = fs::metadata(above) else { continue };
        let mode = metadata.mode() & 0o7777;
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Err(SocketError::OpenDirectory { path: above.to_owned(), mode });
        }
    }
    Ok(())
}

/// What there is at a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No file.
    Nothing,
    /// A socket that nobody listens on.
    Stale,
    /// A socket that a process listens on, whose id may be known.
    Alive {
        /// The process.
        by: Option<i32>,
        /// Whether any user of the machine may dial it.
        open_to_all: bool,
    },
}

/// Looks at a socket without changing anything.
///
/// # Errors
/// Where others could put another socket, where something else is in the way, or we may not look.
pub fn look(path: &Path) -> Result<Presence, SocketError> {
    check(parent(path))?;
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Presence::Nothing),
        Err(error) => return Err(SocketError::io("inspect", path.display())(error)),
        Ok(file) => file,
    };
    if !file.file_type().is_socket() {
        return Err(something_else(path, &file));
    }
    let open_to_all = is_open_to_all(path);
    match dial(path) {
        Err(Errno::CONNREFUSED) => Ok(Presence::Stale),
        Err(Errno::ACCESS | Errno::PERM) => {
            Err(SocketError::ForeignSocket { path: path.to_owned(), owner: file.uid() })
        }
        Ok(by) => Ok(Presence::Alive { by, open_to_all }),
        Err(_) => Ok(Presence::Alive { by: None, open_to_all }),
    }
}

/// Whether any user of the machine may dial a socket.
pub(super) fn is_open_to_all(path: &Path) -> bool {
    let grants = |path: &Path, bit: u32| fs::metadata(path).is_ok_and(|it| it.mode() & bit != 0);
    grants(path, 0o002) && grants(parent(path), 0o001)
}

/// What lies where a socket should.
fn something_else(path: &Path, file: &Metadata) -> SocketError {
    match file.is_dir() {
        true => SocketError::IsDirectory(path.to_owned()),
        false => SocketError::NotASocket(path.to_owned()),
    }
}

/// Removes a socket that nobody listens on; anything else stays, and is an error.
pub(super) fn clear(path: &Path) -> Result<(), SocketError> {
    let address = || path.display();
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::io("inspect", address())(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(something_else(path, &file));
        }
        Ok(file) => file,
    };
    let foreign = || SocketError::ForeignSocket { path: path.to_owned(), owner: file.uid() };
    match dial(path) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %address(), "replacing a socket that nobody listens on");
            fs::remove_file(path).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => foreign(),
                _ => SocketError::io("remove", address())(error),
            })
        }
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => Err(foreign()),
        Ok(by) => Err(SocketError::InUse { address: address().to_string(), by }),
        // a full backlog, or a socket of another kind: somebody is there
        Err(_) => Err(SocketError::InUse { address: address().to_string(), by: None }),
    }
}

/// Who listens on a path; never waits, because whoever is there may be stuck.
fn dial(path: &Path) -> Result<Option<i32>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(listener_of(&socket).and_then(known))
}

/// Who listens on an abstract name.
pub(super) fn holder(name: &str) -> Option<i32> {
    let address = SocketAddr::from_abstract_name(name).ok()?;
    listener_of(UnixStream::connect_addr(&address).ok()?).and_then(known)
}

/// The process that called `listen()`, on this socket or at its other end.
fn listener_of(socket: impl AsFd) -> Option<i32> {
    sockopt::socket_peercred(socket).ok().map(|peer| peer.pid.as_raw_nonzero().get())
}

/// Whoever called `listen()`, if people can do something with its number: it may have handed the
/// socket on and ended, or be no plugin. The first process is named, to be told apart.
fn known(process: i32) -> Option<i32> {
    let ours = program("self");
    (process == FIRST || (ours.is_some() && program(&process.to_string()) == ours))
        .then_some(process)
}

/// The file name of what a process runs, which may have been replaced since.
fn program(process: &str) -> Option<Vec<u8>> {
    let file = fs::read_link(format!("/proc/{process}/exe")).ok()?;
    let name = file.file_name()?.as_bytes();
    Some(name.strip_suffix(b" (deleted)").unwrap_or(name).to_owned())
}

/// Whether a socket that was handed over is known to those who dial it by a plugin before, and not
/// by a service manager that goes on to hold it.
pub(super) fn is_known_by_another(socket: impl AsFd) -> bool {
    listener_of(socket).is_some_and(|process| {
        let is_gone = !Path::new(&format!("/proc/{process}")).exists();
        process != FIRST && (is_gone || known(process).is_some())
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::PermissionsExt, net::UnixListener},
        path::PathBuf,
    };

    use super::{super::Listener, *};
    use crate::socket::SocketAddress;

    fn bind(path: &Path) -> Result<Listener, SocketError> {
        Listener::bind(&SocketAddress::Path(path.to_owned()))
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_until_the_command_was_run() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("a 'place'");
        fs::create_dir(&place).unwrap();
        let path = place.join("kms.sock");
        for mode in [0o777, 0o770, 0o702] {
            chmod(&place, mode);
            let error = bind(&path).unwrap_err();
            assert!(matches!(error, SocketError::OpenDirectory { .. }), "{error}");
            // what it says to do is enough
            let text = error.to_string();
            let (_, command) = text.split_once("run: ").unwrap();
            let done = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
            assert!(done.success(), "{command}");
            drop(bind(&path).unwrap());
        }
        chmod(&place, 0o1777);
        assert!(bind(&path).is_ok(), "sticky");
    }

    #[test]
    fn a_directory_above_that_everybody_can_write_is_refused_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let above = directory.path().join("above");
        let place = above.join("between/place");
        fs::create_dir_all(&place).unwrap();
        chmod(&place, 0o700);
        for mode in [0o777, 0o703] {
            chmod(&above, mode);
            for refused in [bind(&place.join("kms.sock")).map(drop), check(&place)] {
                let error = refused.unwrap_err();
                let is_it =
                    matches!(&error, SocketError::OpenDirectory { path, .. } if *path == above);
                assert!(is_it, "{error}");
            }
        }
        for mode in [0o1777, 0o775, 0o755] {
            chmod(&above, mode);
            assert!(bind(&place.join("kms.sock")).is_ok(), "{mode:o}");
        }
        // nor does a link lead around it
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&place, &link).unwrap();
        assert!(bind(&link.join("kms.sock")).is_ok());
        chmod(&above, 0o777);
        for refused in [bind(&link.join("kms.sock")).map(drop), check(&link)] {
            let error = refused.unwrap_err();
            assert!(error.to_string().ends_with(&format!("chmod go-w {}", above.display())));
        }
    }

    #[test]
    fn another_users_directory_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return; // only root can make one
        }
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(65534), None).unwrap();
        let path = directory.path().join("kms.sock");
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::ForeignDirectory { owner: 65534, .. }), "{error}");
        let text = error.to_string();
        let (_, command) = text.split_once("run: ").unwrap();
        let done = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
        assert!(done.success() && bind(&path).is_ok(), "{command}");
    }

    #[test]
    fn a_live_socket_stays_even_if_its_process_is_stuck() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let live = UnixListener::bind(&path).unwrap();
        let us = i32::try_from(std::process::id()).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { by: Some(by), .. } if by == us), "{error}");
        assert!(error.to_string().contains(&format!("kill -USR2 {us}")), "{error}");
        // of another program, as of one that was started before a hand-over, only how to find it
        assert_eq!((known(FIRST), known(us)), (Some(FIRST), Some(us)));
        let mut another = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(known(another.id().cast_signed()), None);
        another.kill().unwrap();
        another.wait().unwrap();
        assert_eq!(known(another.id().cast_signed()), None);
        // nobody accepts, and the backlog fills: dialling would wait for ever
        rustix::net::listen(&live, 0).unwrap();
        let mut waiting: Vec<Option<i32>> = Vec::new();
        while let Ok(by) = dial(&path) {
            waiting.push(by);
            assert!(waiting.len() < 100);
        }
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(path.exists());
        drop(live);
        assert!(bind(&path).is_ok(), "now it is stale");
    }

    #[test]
    fn who_may_dial() {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("kms.sock");
        let _live = UnixListener::bind(&path).unwrap();
        for (place, mode, open) in
            [(0o700, 0o666, false), (0o755, 0o660, false), (0o755, 0o666, true)]
        {
            chmod(directory.path(), place);
            chmod(&path, mode);
            assert_eq!(is_open_to_all(&path), open, "{place:o} {mode:o}");
        }
    }
}
