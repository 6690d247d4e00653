//! The data directory: what lies where in it.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use lastkey_store::disk::{self, FileSystem, Readers};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use zeroize::Zeroizing;

use crate::output::{Exit, Failure};

/// The longest path of a unix socket (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// A directory of ours, which exists and can be written.
#[derive(Clone, Debug)]
pub(super) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Makes the directory if need be, for its owner alone.
    pub(super) fn prepare(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "; choose one that you may write with --data-dir DIR"
                }
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    "; it is a file: choose a directory with --data-dir DIR"
                }
                io::ErrorKind::StorageFull => "; make room on that disk",
                _ => "",
            };
            Failure::failed(format_args!(
                "the data directory {} cannot be used: {error}{advice}",
                path.display()
            ))
        };
        check_socket_length(path)?;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let root = fs::canonicalize(path).map_err(failed)?;
        // A nameless file tells whether we may write here, and leaves nothing behind.
        let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
        match OpenOptions::new().write(true).custom_flags(flags).mode(0o600).open(&root) {
            Err(error)
                if error.raw_os_error() != Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
            {
                Err(failed(error))
            }
            _ => Ok(Self { root }),
        }
    }

    /// Another process's; nothing is made.
    pub(super) fn of_another(root: PathBuf) -> Self {
        Self { root }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.file("store.redb")
    }

    pub(super) fn anchor(&self) -> PathBuf {
        self.file("anchor")
    }

    pub(super) fn root_key(&self) -> PathBuf {
        self.file("root.key")
    }

    /// Only its medium's marks count: what tells this directory from a copy where there is no
    /// root key file.
    fn marker(&self) -> PathBuf {
        self.file("installation")
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn audit(&self) -> PathBuf {
        self.file("audit")
    }

    /// Signs audit checkpoints.
    pub(super) fn checkpoint_key(&self) -> PathBuf {
        self.file("checkpoint.key")
    }

    /// What checkpoints are verified with.
    pub(super) fn audit_public_key(&self) -> PathBuf {
        self.file("audit-public-key.pem")
    }

    /// How far each sink has come.
    pub(super) fn audit_sinks(&self) -> PathBuf {
        self.file("audit-sinks")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.file("journal")
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    pub(super) fn credentials(&self) -> PathBuf {
        self.file("credentials.json")
    }

    pub(super) fn admin_socket(&self) -> PathBuf {
        self.file("admin.sock")
    }

    pub(super) fn plugin_socket(&self) -> PathBuf {
        self.file("kms.sock")
    }

    pub(super) fn plugin_certificate(&self) -> PathBuf {
        self.file("plugin.pem")
    }

    pub(super) fn plugin_key(&self) -> PathBuf {
        self.file("plugin.key")
    }

    /// Where the plugin records what it answers from memory.
    pub(super) fn plugin_state(&self) -> PathBuf {
        self.file("plugin-state")
    }

    pub(super) fn encryption_config(&self) -> PathBuf {
        self.file("encryption-config.yaml")
    }

    /// What tells this copy of the installation from a copy of it. A store that was restored from
    /// a backup has another inode or birth; where a backup was written over it, the root key,
    /// which we write once and never again, has changed meanwhile: that time nobody can set.
    pub(super) fn incarnation(&self) -> io::Result<String> {
        let look = |path: &Path| {
            let wanted = StatxFlags::INO | StatxFlags::BTIME | StatxFlags::CTIME;
            statx(CWD, path, AtFlags::empty(), wanted)
        };
        let root = match look(&self.root_key()) {
            Err(rustix::io::Errno::NOENT) => {
                // Made once: what was there stays as it is.
                let mut make = OpenOptions::new();
                match make.write(true).create_new(true).mode(0o600).open(self.marker()) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => look(&self.marker())?,
                }
            }
            root => root?,
        };
        let store = look(&self.store())?;
        let (birth, change) = (store.stx_btime, root.stx_ctime);
        Ok(format!(
            "{}:{}.{:09} {}:{}.{:09}",
            store.stx_ino, birth.tv_sec, birth.tv_nsec, root.stx_ino, change.tv_sec, change.tv_nsec
        ))
    }
}

/// A directory too deep for sockets is refused before anything is made in it.
fn check_socket_length(directory: &Path) -> Result<(), Failure> {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let socket = absolute.join("admin.sock");
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(Failure::failed(format_args!(
            "the path of the admin socket, {}, has {length} bytes, but the system allows at most \
             {MAX_SOCKET_PATH}; choose a shorter --data-dir",
            socket.display()
        )));
    }
    Ok(())
}

/// Puts a whole file in place of another, durably, with this mode. One that is what it is to be
/// stays, so that a full disk keeps no server from starting again.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let readers = if mode & 0o077 == 0 { Readers::Owner } else { Readers::All };
    if is_already(path, content, mode) {
        return Ok(());
    }
    disk::replace(&FileSystem, path, content, readers).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => {
            let message = format_args!("{}: {error}; make room on that disk", path.display());
            Failure::new(Exit::Unavailable, message)
        }
        _ => Failure::file(path, &error),
    })
}

fn is_already(path: &Path, content: &[u8], mode: u32) -> bool {
    let as_it_was = |metadata: fs::Metadata| {
        metadata.is_file() && metadata.permissions().mode() & 0o777 == mode
    };
    path.symlink_metadata().is_ok_and(as_it_was)
        && fs::read(path).map(Zeroizing::new).is_ok_and(|found| *found == content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_written_over_or_beside_is_another_incarnation() {
        let place = tempfile::tempdir().unwrap();
        let data = DataDir::prepare(&place.path().join("data")).unwrap();
        fs::write(data.store(), "store").unwrap();
        fs::write(data.root_key(), "root").unwrap();
        let first = data.incarnation().unwrap();
        fs::write(data.store(), "store, used").unwrap();
        assert_eq!(data.incarnation().unwrap(), first);

        let beside = DataDir::prepare(&place.path().join("beside")).unwrap();
        for (from, to) in [(data.store(), beside.store()), (data.root_key(), beside.root_key())] {
            fs::copy(from, to).unwrap();
        }
        assert_ne!(beside.incarnation().unwrap(), first);
        // The clock behind a file's times may stand still for some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::copy(beside.root_key(), data.root_key()).unwrap();
        assert_ne!(data.incarnation().unwrap(), first);
    }

    #[test]
    fn a_directory_too_deep_for_sockets_is_refused_before_it_is_made() {
        let place = tempfile::tempdir().unwrap();
        let deep = place.path().join("d".repeat(100));
        assert!(DataDir::prepare(&deep).is_err());
        assert!(!deep.exists());
    }
}
