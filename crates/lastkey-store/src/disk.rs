//! The file system, as narrow as the product needs it, so that tests can put one in its place that
//! loses what was not synced, tears what was being written, and fails on demand.
//!
//! [`FileSystem`] is the real one. One dynamic call an access is all it costs.

use std::{
    ffi::OsString,
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{Advice, CWD, FallocateFlags, RenameFlags},
    io::Errno,
};

mod patience;
mod whole;

pub use patience::Patience;
pub use whole::{Readers, replace, write_new};

/// Who may read and write a file that is made here: its owner.
const FILE_MODE: u32 = 0o600;
/// The same for one that everybody may read.
const SHARED_MODE: u32 = 0o644;
/// The same for a directory.
const DIRECTORY_MODE: u32 = 0o700;
/// What `st_blocks` counts in, whatever the file system.
const BLOCK: u64 = 512;
/// So much behind a file's end is not given back: a part of it is the file system's own.
const WORTHLESS: u64 = 64 << 10;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading. The file must be there.
    Read,
    /// Reading and writing. The file must be there.
    Write,
    /// Reading and writing. The file is made, empty, for its owner alone, if it is not there.
    Create,
}

/// A file system.
///
/// Names in a directory (made, renamed, removed) survive a power cut once
/// [`sync_directory`](Disk::sync_directory) answered; a file's bytes and length once
/// [`DiskFile::sync`] did.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory and those above it, for their owner alone, where they are not there.
    ///
    /// # Errors
    /// The file system refused.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// Opens a file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where it is not there (and not to be made), or the file system
    /// refused.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name in the same file system, in one step; replaces what had it.
    ///
    /// # Errors
    /// The file system refused.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// The same, but refuses with [`ErrorKind::AlreadyExists`] where the name is taken (on a file
    /// system that can promise it in one step).
    ///
    /// # Errors
    /// The name is taken, or the file system refused.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or the file system refused.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes durable which names a directory holds.
    ///
    /// # Errors
    /// The disk refused; what was changed since the last time may be lost.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// Whose a file is, and who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The owner's user id.
    pub owner: u32,
    /// The nine bits of `chmod`.
    pub mode: u32,
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The file system refused.
    fn length(&self) -> io::Result<u64>;

    /// Reads up to `out.len()` bytes from `offset`, and says how many; 0 at the end.
    ///
    /// # Errors
    /// The disk cannot read them.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`; the file grows as far as that needs.
    ///
    /// # Errors
    /// The disk refused; any part of it may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes sure that the first `length` bytes have their place on the disk, so that writing them
    /// cannot find it full. The file's length stays. False on a file system that cannot promise it.
    ///
    /// # Errors
    /// There is no room.
    fn allocate(&self, length: u64) -> io::Result<bool>;

    /// Cuts the file, or lengthens it by zeros.
    ///
    /// # Errors
    /// The file system refused.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Gives back the place that was reserved behind the end, where that is worth it: nothing is
    /// written to the file any more.
    ///
    /// # Errors
    /// The file system refused.
    fn give_back(&self) -> io::Result<()> {
        self.set_length(self.length()?)
    }

    /// Makes bytes and length durable (`fdatasync`).
    ///
    /// # Errors
    /// The disk lost something that was written since the last time, maybe for good.
    fn sync(&self) -> io::Result<()>;

    /// Whether it has no name any more: what is written to it would be lost with us.
    ///
    /// # Errors
    /// The file system refused.
    fn is_removed(&self) -> io::Result<bool>;

    /// Locks the file against other processes, until it is unlocked or closed for good; false if
    /// another one holds it.
    ///
    /// # Errors
    /// The file system refused.
    fn try_lock(&self) -> io::Result<bool>;

    /// Gives the lock up, however many hold the file open. A failure is moot: closing it does too.
    fn unlock(&self);

    /// Takes away the rights that others than the owner have.
    ///
    /// # Errors
    /// The file system refused.
    fn restrict(&self) -> io::Result<()>;

    /// Lets everybody read it.
    ///
    /// # Errors
    /// The file system refused.
    fn share(&self) -> io::Result<()>;

    /// Whose it is.
    ///
    /// # Errors
    /// The file system refused.
    fn rights(&self) -> io::Result<Rights>;

    /// Lets the next reads see what the disk has. After a failed sync, Linux keeps pages that it
    /// calls clean and never wrote; a reader of those would believe in what a power cut takes away.
    /// Only advice, and so without errors.
    fn forget_cache(&self);

    /// Free bytes of the file system, as far as it can tell.
    fn free_space(&self) -> Option<u64>;

    /// A writer is about to take what waits for it as one batch. A test's disk decides when that
    /// is, so that a run can be repeated; a real one does nothing.
    fn gather(&self) {}
}

/// Whether an error is that there was no room: on the disk, or in somebody's quota.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Fills `out` from `offset`, as far as the file goes, and says how far that was.
///
/// # Errors
/// The disk cannot read it.
pub fn read_full(file: &dyn DiskFile, out: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read_at(&mut out[filled..], offset + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Reads a file from its beginning.
#[derive(Debug)]
pub struct Reader {
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl Reader {
    /// At the file's beginning.
    pub fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(out, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read);
        if access == Access::Create {
            options.create(true).truncate(false).mode(FILE_MODE);
        }
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(from, to),
            other => Ok(other?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, out, offset) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<bool> {
        match rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, 0, length) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    /// Does nothing where there is little to give back: it would change the file's times.
    fn give_back(&self) -> io::Result<()> {
        let metadata = self.metadata()?;
        let needed = metadata.len() + WORTHLESS;
        match metadata.blocks() * BLOCK > needed {
            true => self.set_len(metadata.len()),
            false => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn is_removed(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() == 0)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) {
        let _ = File::unlock(self);
    }

    fn restrict(&self) -> io::Result<()> {
        if self.metadata()?.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        self.set_permissions(Permissions::from_mode(FILE_MODE))
    }

    fn share(&self) -> io::Result<()> {
        self.set_permissions(Permissions::from_mode(SHARED_MODE))
    }

    fn rights(&self) -> io::Result<Rights> {
        let metadata = self.metadata()?;
        Ok(Rights { owner: metadata.uid(), mode: metadata.mode() & 0o777 })
    }

    fn forget_cache(&self) {
        let _ = rustix::fs::fadvise(self, 0, None, Advice::DontNeed);
    }

    fn free_space(&self) -> Option<u64> {
        let found = rustix::fs::fstatvfs(self).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody sees a disk being written; but that the kernel was asked shows where it refuses.
    #[test]
    fn what_cannot_be_made_durable_is_told() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(DiskFile::sync(&pipe).is_err());
        let directory = tempfile::tempdir().unwrap();
        let missing = FileSystem.sync_directory(&directory.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_machines_file_system_does_what_the_trait_says() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("a/b");
        let disk: &dyn Disk = &FileSystem;
        disk.create_directory(&inner).unwrap();
        disk.create_directory(&inner).unwrap();
        let path = inner.join("file");
        for access in [Access::Read, Access::Write] {
            let missing = disk.open(&path, access).unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
        }
        let file = disk.open(&path, Access::Create).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, FILE_MODE);
        file.write_at(b"hello", 3).unwrap();
        file.allocate(1 << 16).unwrap();
        assert_eq!(file.length().unwrap(), 8);
        let mut found = [7; 16];
        assert_eq!(read_full(&*file, &mut found, 0).unwrap(), 8);
        assert_eq!(&found[..8], b"\0\0\0hello");
        file.sync().unwrap();

        let other = inner.join("other");
        disk.open(&other, Access::Create).unwrap().set_length(3).unwrap();
        disk.rename(&path, &other).unwrap();
        disk.sync_directory(&inner).unwrap();
        assert_eq!(disk.list(&inner).unwrap(), ["other"]);
        let taken = disk.rename_new(&other, &other).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        let mut text = Vec::new();
        let read = disk.open(&other, Access::Read).unwrap();
        Reader::new(Arc::clone(&read)).read_to_end(&mut text).unwrap();
        assert_eq!(text, b"\0\0\0hello");
        assert!(read.write_at(b"x", 0).is_err());
        assert!(file.try_lock().unwrap() && !read.try_lock().unwrap());
        file.unlock();
        assert!(read.try_lock().unwrap() && read.free_space().unwrap() > 0);
        assert!(!file.is_removed().unwrap());
        disk.remove(&other).unwrap();
        assert!(file.is_removed().unwrap() && disk.list(&inner).unwrap().is_empty());
    }

    #[test]
    fn room_is_reserved_and_the_length_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = FileSystem.open(&path, Access::Create).unwrap();
        assert!(file.allocate(1 << 20).unwrap(), "as on any file system that tests are run on");
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 >= 1 << 20 && metadata.len() == 0);
        // What is free is counted in bytes.
        assert!(file.free_space().unwrap() > 4096);
        // It is given back, and what was written stays; a second time there is nothing to do.
        file.write_at(b"hello", 0).unwrap();
        file.give_back().unwrap();
        let given = fs::metadata(&path).unwrap();
        assert!(given.blocks() * 512 <= 1 << 16, "{} blocks", given.blocks());
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        file.give_back().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), given.modified().unwrap());
    }

    #[test]
    fn rights_are_told_and_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = FileSystem.open(&path, Access::Create).unwrap();
        let owner = fs::metadata(&path).unwrap().uid();
        for (mode, restricted) in [
            (0o600, 0o600),
            (0o640, 0o600),
            (0o604, 0o600),
            (0o777, 0o600),
            (0o400, 0o400),
            (0o700, 0o700),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(file.rights().unwrap(), Rights { owner, mode });
            file.restrict().unwrap();
            assert_eq!(file.rights().unwrap().mode, restricted, "{mode:o}");
        }
        file.share().unwrap();
        assert_eq!(file.rights().unwrap().mode, 0o644);
    }
}
