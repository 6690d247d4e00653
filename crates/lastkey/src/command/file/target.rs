//! Where data is written: standard output, or a file that appears whole or not at all.
//!
//! 1. The file grows without a name (`O_TMPFILE`), mode 0600: whatever ends the process, nothing
//!    is left. Where the file system cannot do that it has a hidden name beside the target, and is
//!    removed on failure and on a signal.
//! 2. When it is complete it is synced.
//! 3. It gets its name in one step that fails if the name is taken; with `--force`, in one step
//!    that replaces what had it.
//! 4. The directory is synced; one that may be written and not read, with all of its file system.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use lastkey_crypto::{Entropy, SystemEntropy};
use rustix::{
    fs::{AtFlags, CWD, OFlags, RenameFlags},
    io::Errno,
};

use super::{
    interrupt::Temporary,
    jobs::{To, exists},
    writer::Writer,
};
use crate::output::Failure;

/// A name has at most 255 bytes, of which a temporary one needs 26 for itself.
const LONGEST: usize = 255 - 26;

/// Where data goes.
pub(super) enum Sink {
    File(Target),
    /// Standard output, a pipe or a device: what is written is gone.
    Stream(File),
}

impl Sink {
    /// Gets ready to write; nothing is visible yet.
    pub(super) fn create(to: &To, force: bool) -> Result<Self, Failure> {
        match to {
            To::Output => {
                // Not the line-buffered standard output.
                let out = io::stdout().as_fd().try_clone_to_owned();
                out.map(|out| Self::Stream(out.into())).map_err(|error| to.failed(&error))
            }
            To::File(path) if is_stream(path) => {
                let stream = OpenOptions::new().write(true).open(path);
                stream.map(Self::Stream).map_err(|error| to.failed(&error))
            }
            To::File(path) if !force && path.symlink_metadata().is_ok() => Err(exists(path)),
            To::File(path) => Target::create(path, force)
                .map(Self::File)
                .map_err(|(place, error)| Failure::file(&place, &error)),
        }
    }

    pub(super) fn writer(&self) -> Writer<'_> {
        match self {
            Self::File(target) => Writer::file(&target.file),
            Self::Stream(file) => Writer::stream(file),
        }
    }

    /// Makes what was written durable and visible.
    pub(super) fn keep(self) -> io::Result<()> {
        match self {
            Self::File(target) => target.keep(),
            Self::Stream(_) => Ok(()),
        }
    }
}

/// Whether writing to this name writes into something that is there to be written into.
pub(super) fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device()
    })
}

/// A file on its way to its name.
pub(super) struct Target {
    file: File,
    /// The name for as long as it has to have one.
    temporary: Option<Temporary>,
    path: PathBuf,
    force: bool,
}

impl Target {
    /// The place that a failure is about comes with it.
    fn create(path: &Path, force: bool) -> Result<Self, (PathBuf, io::Error)> {
        let directory = directory_of(path);
        let flags = OFlags::TMPFILE.bits().cast_signed();
        let unnamed =
            OpenOptions::new().write(true).custom_flags(flags).mode(0o600).open(directory);
        match unnamed {
            Ok(file) => Ok(Self { file, temporary: None, path: path.to_owned(), force }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                Err((directory.to_owned(), error))
            }
            Err(_) => Self::named(path, force).map_err(|error| (path.to_owned(), error)),
        }
    }

    /// Where there are no files without a name.
    fn named(path: &Path, force: bool) -> io::Result<Self> {
        let name = temporary_name(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name)?;
        let temporary = Some(Temporary::new(name));
        Ok(Self { file, temporary, path: path.to_owned(), force })
    }

    /// A copy of `of` in the making: beside it, and to replace it, with its mode and owner.
    pub(super) fn beside(path: &Path, of: &File) -> Result<Self, (PathBuf, io::Error)> {
        use std::os::unix::fs::MetadataExt;
        let target = Self::create(path, true)?;
        let about = |error| (path.to_owned(), error);
        let metadata = of.metadata().map_err(about)?;
        // The owner first, since a change of owner can take bits of the mode away. Only root can
        // give a file away; anybody else's copy is their own.
        let _ = std::os::unix::fs::fchown(&target.file, Some(metadata.uid()), Some(metadata.gid()));
        target.file.set_permissions(metadata.permissions()).map_err(about)?;
        Ok(target)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn keep(self) -> io::Result<()> {
        let Self { file, temporary, path, force } = self;
        // What can fail for good fails before the file has its name.
        let directory = match File::open(directory_of(&path)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            directory => Some(directory?),
        };
        file.sync_all()?;
        match (temporary, force) {
            (None, false) => link(&file, &path)?,
            (None, true) => {
                // No system gives a nameless file the name of another in one step.
                let temporary = temporary_name(&path);
                link(&file, &temporary)?;
                let temporary = Temporary::new(temporary);
                std::fs::rename(temporary.path(), &path)?;
            }
            (Some(temporary), false) => rename_to_new(temporary.path(), &path)?,
            (Some(temporary), true) => std::fs::rename(temporary.path(), &path)?,
        }
        match directory {
            Some(directory) => directory.sync_all(),
            None => Ok(rustix::fs::syncfs(&file)?),
        }
    }
}

/// Gives a file without a name one that is not taken.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW);
    match linked {
        // No /proc here. This way needs a privilege, or a recent kernel.
        Err(Errno::NOENT) => rustix::fs::linkat(file, "", CWD, path, AtFlags::EMPTY_PATH)?,
        linked => linked?,
    }
    Ok(())
}

/// Renames, unless the name is taken.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        renamed => return Ok(renamed?),
    }
    match rustix::fs::link(from, to) {
        Ok(()) => std::fs::remove_file(from),
        Err(Errno::EXIST) => Err(Errno::EXIST.into()),
        // A file system with neither: the last look is a moment before the rename.
        Err(_) if to.symlink_metadata().is_ok() => Err(Errno::EXIST.into()),
        Err(_) => std::fs::rename(from, to),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.NAME.lastkey-<random>` beside it; of a long NAME as much as the system allows in a name.
fn temporary_name(path: &Path) -> PathBuf {
    let mut random = [0; 8];
    SystemEntropy.fill(&mut random);
    let mut name = OsString::from(".");
    let of = path.file_name().unwrap_or_default();
    match of.len() {
        0..=LONGEST => name.push(of),
        _ => name.push(of.to_string_lossy().chars().take(LONGEST / 4).collect::<String>()),
    }
    name.push(format!(".lastkey-{:016x}", u64::from_be_bytes(random)));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, os::unix::fs::PermissionsExt};

    use super::*;

    fn listing(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Both kinds of target, one where there are nameless files and one where there are not.
    fn both(path: &Path, force: bool) -> [Target; 2] {
        [Target::create(path, force).unwrap(), Target::named(path, force).unwrap()]
    }

    #[test]
    fn a_file_appears_when_it_is_kept_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.txt");
        for target in both(&path, false) {
            (&target.file).write_all(b"attack at dawn").unwrap();
            assert!(!path.exists());
            target.keep().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"attack at dawn");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(listing(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for target in both(&dir.path().join("plan.txt"), false) {
            (&target.file).write_all(b"attack at dawn").unwrap();
            drop(target);
        }
        assert_eq!(listing(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.txt");
        for target in both(&path, false) {
            fs::write(&path, "somebody else's").unwrap();
            assert_eq!(target.keep().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(listing(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn force_replaces_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.txt");
        for target in both(&path, true) {
            fs::write(&path, "old").unwrap();
            (&target.file).write_all(b"new").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"old");
            target.keep().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
        assert_eq!(listing(dir.path()), ["plan.txt"]);
    }

    #[test]
    fn the_longest_names_are_replaced_too() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["n".repeat(255), "\u{1F511}".repeat(63)] {
            let path = dir.path().join(&name);
            for target in both(&path, true) {
                (&target.file).write_all(b"new").unwrap();
                target.keep().unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"new");
            }
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(listing(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn devices_are_written_into() {
        assert!(is_stream(Path::new("/dev/null")));
        assert!(!is_stream(Path::new("/etc/hostname")) && !is_stream(Path::new("/nowhere")));
    }
}
