//! Small files that are there whole or not at all, whatever interrupts the writing.
//!
//! A file that is made under its own name can be found empty after a power cut: its name was
//! durable before its bytes were. So the bytes are made durable under another name first.

use std::{
    ffi::OsStr,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{Access, Disk};

/// What follows a file's name while it is written.
const DRAFT: &str = ".new";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner.
    Owner,
    /// Everybody.
    All,
}

/// Puts a whole file in place of another, or where none is, durably. What could not be put there
/// leaves nothing behind: the content may be a private key.
///
/// # Errors
/// The file system's; the file is as it was then, or as it was to be.
pub fn replace(disk: &dyn Disk, path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    put(disk, path, content, readers, Disk::rename)
}

/// Makes a file for its owner alone, whole and durable.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] where it is there already (it stays as it is), or the file
/// system's.
pub fn write_new(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    put(disk, path, content, Readers::Owner, Disk::rename_new)
}

#[expect(clippy::too_many_arguments, reason = "what the two have in common")]
fn put<D: Disk + ?Sized>(
    disk: &D,
    path: &Path,
    content: &[u8],
    readers: Readers,
    name: impl FnOnce(&D, &Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let draft = draft_of(path);
    let write = || {
        // Whatever an earlier attempt left had other readers, maybe.
        match disk.remove(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.open(&draft, Access::Create)?;
        if readers == Readers::All {
            file.share()?;
        }
        file.write_at(content, 0)?;
        file.sync()?;
        name(disk, &draft, path)
    };
    write().inspect_err(|_| {
        let _ = disk.remove(&draft);
    })?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    disk.sync_directory(directory.unwrap_or(Path::new(".")))
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
    name.push(DRAFT);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::disk::FileSystem;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_or_nothing_is_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("server.key");
        // What an interrupted attempt left, for others to read.
        fs::write(place.path().join("server.key.new"), "longer than what comes").unwrap();
        for content in [&b"first"[..], b"second", b"3rd"] {
            replace(&FileSystem, &path, content, Readers::Owner).unwrap();
            assert_eq!((fs::read(&path).unwrap(), mode(&path)), (content.to_vec(), 0o600));
        }
        replace(&FileSystem, &path, b"public", Readers::All).unwrap();
        assert_eq!(mode(&path), 0o644);
        // A directory with something in it cannot be replaced by a file.
        let taken = place.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(replace(&FileSystem, &taken, b"secret", Readers::Owner).is_err());
        let mut names: Vec<_> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["server.key", "taken"]);
    }

    /// The machine's file system, which remembers whose names it made durable.
    #[derive(Debug, Default)]
    struct Remembering(parking_lot::Mutex<Vec<PathBuf>>);

    impl Disk for Remembering {
        fn create_directory(&self, path: &Path) -> io::Result<()> {
            FileSystem.create_directory(path)
        }
        fn list(&self, directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
            FileSystem.list(directory)
        }
        fn open(
            &self,
            path: &Path,
            access: Access,
        ) -> io::Result<std::sync::Arc<dyn super::super::DiskFile>> {
            FileSystem.open(path, access)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            FileSystem.rename(from, to)
        }
        fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
            FileSystem.rename_new(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            FileSystem.remove(path)
        }
        fn sync_directory(&self, directory: &Path) -> io::Result<()> {
            self.0.lock().push(directory.to_owned());
            FileSystem.sync_directory(directory)
        }
    }

    #[test]
    fn a_files_name_is_made_durable_where_it_is() {
        let place = tempfile::tempdir().unwrap();
        let disk = Remembering::default();
        replace(&disk, &place.path().join("file"), b"content", Readers::Owner).unwrap();
        assert_eq!(*disk.0.lock(), [place.path()]);
    }

    #[test]
    fn a_file_is_made_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("root.key");
        write_new(&FileSystem, &path, b"first").unwrap();
        let taken = write_new(&FileSystem, &path, b"second").unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"first".to_vec(), 0o600));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
