//! The machine's file system, with somebody who looks on and may refuse.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use lastkey_store::disk::{Access, Disk, DiskFile, FileSystem, Rights};
use parking_lot::Mutex;

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    List,
    Open,
    /// So many bytes.
    Read(usize),
    Write,
    Allocate,
    Sync,
    Rename,
    Remove,
}

type Hook = dyn Fn(Deed, &Path) -> io::Result<()> + Send + Sync;

/// A disk that asks before it does anything.
#[derive(Clone, Default)]
pub(crate) struct Meddler {
    hook: Arc<Mutex<Option<Arc<Hook>>>>,
}

impl Meddler {
    /// From now on this is asked.
    pub(crate) fn ask(&self, hook: impl Fn(Deed, &Path) -> io::Result<()> + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// Nobody is asked any more.
    pub(crate) fn rest(&self) {
        *self.hook.lock() = None;
    }

    fn may(&self, deed: Deed, path: &Path) -> io::Result<()> {
        let hook = self.hook.lock().clone();
        hook.map_or(Ok(()), |hook| hook(deed, path))
    }
}

impl fmt::Debug for Meddler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meddler")
    }
}

impl Disk for Meddler {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        FileSystem.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.may(Deed::List, directory)?;
        FileSystem.list(directory)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.may(Deed::Open, path)?;
        let file = FileSystem.open(path, access)?;
        Ok(Arc::new(Watched { file, path: path.to_owned(), by: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may(Deed::Rename, to)?;
        FileSystem.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may(Deed::Rename, to)?;
        FileSystem.rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.may(Deed::Remove, path)?;
        FileSystem.remove(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.may(Deed::Sync, directory)?;
        FileSystem.sync_directory(directory)
    }
}

#[derive(Debug)]
struct Watched {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    by: Meddler,
}

impl DiskFile for Watched {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.by.may(Deed::Read(out.len()), &self.path)?;
        self.file.read_at(out, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.by.may(Deed::Write, &self.path)?;
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<bool> {
        self.by.may(Deed::Allocate, &self.path)?;
        self.file.allocate(length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.by.may(Deed::Sync, &self.path)?;
        self.file.sync()
    }

    fn is_removed(&self) -> io::Result<bool> {
        self.file.is_removed()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn unlock(&self) {
        self.file.unlock();
    }

    fn restrict(&self) -> io::Result<()> {
        self.file.restrict()
    }

    fn share(&self) -> io::Result<()> {
        self.file.share()
    }

    fn rights(&self) -> io::Result<Rights> {
        self.file.rights()
    }

    fn forget_cache(&self) {
        self.file.forget_cache();
    }

    fn free_space(&self) -> Option<u64> {
        self.file.free_space()
    }
}
