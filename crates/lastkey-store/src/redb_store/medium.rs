//! Where the database's bytes rest: a file of ours, locked for as long as the store is open.
//!
//! redb's own file backend gives the lock up whenever a database is closed, also when it is only
//! closed to be reopened after an error. Ours keeps it, so that no second process slips in.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::StorageBackend;

use super::{OpenError, failure::Failure};
use crate::disk::{Access, Disk, DiskFile, read_full};

/// What the first bytes of each redb file are.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
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

    /// See [`DiskFile::gather`].
    fn gather(&self) {}
}

/// A locked file.
#[derive(Debug)]
pub(super) struct FileMedium {
    file: Arc<dyn DiskFile>,
}

impl FileMedium {
    /// Opens and locks the store's file, or creates it by `initialise`.
    ///
    /// A creation that is cut short leaves no file at `path`, only one beside it that the next
    /// creation replaces: the database is made there, synced, and renamed.
    pub(super) fn open(
        disk: &dyn Disk,
        path: &Path,
        initialise: impl Fn(&Self) -> Result<(), Failure>,
    ) -> Result<Self, OpenError> {
        // More than once only if another process creates the store at this moment.
        for _ in 0..3 {
            if let Some(existing) = Self::open_existing(disk, path)? {
                return Ok(existing);
            }
            if let Some(created) = Self::create(disk, path, &initialise)? {
                return Ok(created);
            }
        }
        Err(OpenError::InUse { path: path.to_owned() })
    }

    fn open_existing(disk: &dyn Disk, path: &Path) -> Result<Option<Self>, OpenError> {
        let io = |error| OpenError::io(path, error);
        let file = match disk.open(path, Access::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let medium = Self::lock(path, file)?;
        let mut magic = [0; MAGIC.len()];
        let read = read_full(&*medium.file, &mut magic, 0).map_err(io)?;
        if read < MAGIC.len() || magic != MAGIC {
            return Err(OpenError::NotOurs { path: path.to_owned() });
        }
        medium.file.restrict().map_err(io)?;
        // The process before this one may have died between the rename and this.
        sync_directory(disk, path).map_err(io)?;
        Ok(Some(medium))
    }

    /// `None` if another process was faster.
    fn create(
        disk: &dyn Disk,
        path: &Path,
        initialise: &impl Fn(&Self) -> Result<(), Failure>,
    ) -> Result<Option<Self>, OpenError> {
        let draft = draft_path(path);
        // 1. Lock the draft; whoever holds its lock is the only one to go on.
        let file = disk.open(&draft, Access::Create).map_err(|e| OpenError::io(&draft, e))?;
        let medium = Self::lock(path, file)?;
        // 2. What was locked may have been renamed meanwhile, and then it is no draft any more.
        match disk.open(path, Access::Read) {
            Ok(_) => {
                // Ours and empty, or the name of nothing.
                let _ = disk.remove(&draft);
                return Ok(None);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::io(path, error)),
        }
        // 3. Fill it, and make it durable.
        medium.file.set_length(0).map_err(|e| OpenError::io(&draft, e))?;
        initialise(&medium).map_err(|failure| OpenError::failure(path, failure))?;
        medium.file.sync().map_err(|e| OpenError::io(&draft, e))?;
        // 4. Put it in place, and make that durable.
        disk.rename_new(&draft, path).map_err(|e| OpenError::io(path, e))?;
        sync_directory(disk, path).map_err(|e| OpenError::io(path, e))?;
        Ok(Some(medium))
    }

    fn lock(path: &Path, file: Arc<dyn DiskFile>) -> Result<Self, OpenError> {
        match file.try_lock() {
            Ok(true) => Ok(Self { file }),
            Ok(false) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(error) => Err(OpenError::io(path, error)),
        }
    }
}

impl Medium for FileMedium {
    type Backend = FileBackend;

    fn backend(&self) -> FileBackend {
        // redb's check at opening is to see what the disk has.
        self.file.forget_cache();
        FileBackend { file: Arc::clone(&self.file) }
    }

    fn has_room(&self) -> bool {
        let needed = self.file.length().map_or(ROOM, |length| length.max(ROOM));
        self.file.free_space().is_some_and(|free| free >= needed)
    }

    fn release(&self) {
        // Closing the file would release the lock as well, if no reader were left.
        self.file.unlock();
    }

    fn gather(&self) {
        self.file.gather();
    }
}

/// The file as redb sees it.
#[derive(Debug)]
pub(super) struct FileBackend {
    file: Arc<dyn DiskFile>,
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match read_full(&*self.file, out, offset)? {
            read if read < out.len() => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Growth reserves its blocks or fails, so that whatever redb finds free in the file can be
    /// written on a full disk, too: small changes mostly go on, and syncs need not allocate.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old
            && let Err(error) = self.file.allocate(len)
            && is_full(&error)
        {
            // Gives back what was taken of it.
            self.file.set_length(old)?;
            return Err(ErrorKind::StorageFull.into());
        }
        // File systems that cannot reserve grow without.
        self.file.set_length(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(data, offset)
    }
}

fn is_full(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn draft_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn sync_directory(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    disk.sync_directory(parent.unwrap_or(Path::new(".")))
}
