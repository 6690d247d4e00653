//! Where the database's bytes rest: a file of ours, locked for as long as the store is open.
//!
//! redb's own file backend gives the lock up whenever a database is closed, also when it is only
//! closed to be reopened after an error. Ours keeps it, so that no second process slips in.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::StorageBackend;
use rustix::{
    fs::{Advice, CWD, FallocateFlags, RenameFlags},
    io::Errno,
};

use super::{OpenError, failure::Failure};

/// What the first bytes of each redb file are.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// Who may read and write the file: its owner.
const MODE: u32 = 0o600;
/// Free space below which a full disk still counts as full, for a small store. One that grows
/// doubles, so a larger one needs as much again.
const ROOM: u64 = 1 << 20;

/// Something that holds one database, and can be opened again after an error.
pub(super) trait Medium: Send + 'static {
    /// How redb reaches it.
    type Backend: StorageBackend;

    /// A backend that knows nothing of earlier errors.
    fn backend(&self) -> Self::Backend;

    /// Whether a full medium has room again, as far as it can be told without writing.
    fn has_room(&self) -> bool;

    /// Lets others open it.
    fn release(&self);
}

/// A locked file.
#[derive(Debug)]
pub(super) struct FileMedium {
    file: Arc<File>,
}

impl FileMedium {
    /// Opens and locks the store's file, or creates it by `initialise`.
    ///
    /// A creation that is cut short leaves no file at `path`, only one beside it that the next
    /// creation replaces: the database is made there, synced, and renamed.
    pub(super) fn open(
        path: &Path,
        initialise: impl Fn(&Self) -> Result<(), Failure>,
    ) -> Result<Self, OpenError> {
        // More than once only if another process creates the store at this moment.
        for _ in 0..3 {
            if let Some(existing) = Self::open_existing(path)? {
                return Ok(existing);
            }
            if let Some(created) = Self::create(path, &initialise)? {
                return Ok(created);
            }
        }
        Err(OpenError::InUse { path: path.to_owned() })
    }

    fn open_existing(path: &Path) -> Result<Option<Self>, OpenError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io(path, error)),
        };
        let medium = Self::lock(path, file)?;
        let mut magic = [0; MAGIC.len()];
        match (&*medium.file).read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                return Err(OpenError::io(path, error));
            }
            _ => return Err(OpenError::NotOurs { path: path.to_owned() }),
        }
        let mode = medium.file.metadata().map_err(|e| OpenError::io(path, e))?.permissions();
        if mode.mode() & 0o077 != 0 {
            let owner_only = std::fs::Permissions::from_mode(MODE);
            medium.file.set_permissions(owner_only).map_err(|e| OpenError::io(path, e))?;
        }
        Ok(Some(medium))
    }

    /// `None` if another process was faster.
    fn create(
        path: &Path,
        initialise: &impl Fn(&Self) -> Result<(), Failure>,
    ) -> Result<Option<Self>, OpenError> {
        let draft = draft_path(path);
        // 1. Lock the draft; whoever holds its lock is the only one to go on.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        let file = options.open(&draft).map_err(|e| OpenError::io(&draft, e))?;
        let medium = Self::lock(path, file)?;
        // 2. What was locked may have been renamed meanwhile, and then it is no draft any more.
        if path.try_exists().map_err(|e| OpenError::io(path, e))? {
            // Ours and empty, or the name of nothing.
            let _ = std::fs::remove_file(&draft);
            return Ok(None);
        }
        // 3. Fill it, and make it durable.
        medium.file.set_len(0).map_err(|e| OpenError::io(&draft, e))?;
        initialise(&medium).map_err(|failure| OpenError::failure(path, failure))?;
        medium.file.sync_all().map_err(|e| OpenError::io(&draft, e))?;
        // 4. Put it in place, and make that durable.
        rename_new(&draft, path).map_err(|e| OpenError::io(path, e))?;
        sync_directory(path).map_err(|e| OpenError::io(path, e))?;
        Ok(Some(medium))
    }

    fn lock(path: &Path, file: File) -> Result<Self, OpenError> {
        match file.try_lock() {
            Ok(()) => Ok(Self { file: Arc::new(file) }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(OpenError::io(path, error)),
        }
    }
}

impl Medium for FileMedium {
    type Backend = FileBackend;

    fn backend(&self) -> FileBackend {
        // After a failed sync, Linux keeps pages that it calls clean and never wrote. Dropping
        // them makes redb's check at opening see what the disk has. Only advice: errors are moot.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        FileBackend { file: Arc::clone(&self.file) }
    }

    fn has_room(&self) -> bool {
        let needed = self.file.metadata().map_or(ROOM, |metadata| metadata.len().max(ROOM));
        rustix::fs::fstatvfs(&self.file)
            .is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= needed)
    }

    fn release(&self) {
        // Closing the file would release the lock as well, if no reader were left.
        let _ = self.file.unlock();
    }
}

/// The file as redb sees it.
#[derive(Debug)]
pub(super) struct FileBackend {
    file: Arc<File>,
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// Growth reserves its blocks or fails, so that whatever redb finds free in the file can be
    /// written on a full disk, too: small changes mostly go on, and syncs need not allocate.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old
            && let Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) =
                rustix::fs::fallocate(&self.file, FallocateFlags::empty(), old, len - old)
        {
            // Gives back what was taken of it.
            self.file.set_len(old)?;
            return Err(Errno::NOSPC.into());
        }
        // File systems that cannot reserve grow without.
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

fn draft_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Renames, but never over an existing file where the file system can promise that.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => std::fs::rename(from, to),
        other => Ok(other?),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
