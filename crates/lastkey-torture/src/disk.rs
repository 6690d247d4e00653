//! A disk in memory that knows what was synced, forgets what was not, and fails on demand.
//!
//! One list of everything that is not durable yet for each file and each directory; what a crash
//! leaves of it is [`crash`](crate::crash)'s choice. Every change waits at the [`Gate`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use lastkey_store::disk::{Access, Disk, DiskFile, Rights};
use parking_lot::Mutex;

use crate::{
    fault::{Fault, Kind},
    gate::{Gate, Step, Verdict},
    image::{Image, PAGE},
    world::AUDIT,
};

/// A change of a file that is not durable yet.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes at an offset.
    Write {
        /// Where.
        at: usize,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// Another length.
    Length(usize),
}

impl Change {
    /// Makes it to an image.
    pub fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { at, bytes } => image.write(bytes, *at),
            Self::Length(length) => image.set_len(*length),
        }
    }
}

/// A change of a directory that is not durable yet.
#[derive(Clone, Debug)]
pub enum NameChange {
    /// A name for a file.
    Link(OsString, usize),
    /// A name is gone.
    Unlink(OsString),
    /// A file has another name, in one step.
    Rename(OsString, OsString, usize),
}

impl NameChange {
    /// Makes it to a directory.
    pub fn apply(&self, names: &mut BTreeMap<OsString, usize>) {
        match self {
            Self::Link(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

/// A file.
#[derive(Clone, Debug, Default)]
pub struct Inode {
    /// The name it was made with; for faults and the trace.
    pub name: String,
    /// What reads see: the page cache.
    pub content: Image,
    /// What a power cut leaves for certain.
    pub durable: Image,
    /// What came since.
    pub pending: Vec<Change>,
    /// Pages that have their place on the disk.
    allocated: BTreeSet<usize>,
    locked: bool,
}

impl Inode {
    /// Its process is gone, and so is its lock.
    pub fn unlock(&mut self) {
        self.locked = false;
    }
}

/// A directory: the same for names.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// What readers see.
    pub names: BTreeMap<OsString, usize>,
    /// What a power cut leaves for certain.
    pub durable: BTreeMap<OsString, usize>,
    /// What came since.
    pub pending: Vec<NameChange>,
}

/// A lie: a sync that says it was done, and was not.
#[derive(Clone, Debug, Default)]
pub struct Lie {
    /// In files whose name begins so.
    pub file: String,
}

/// What is on the disk, and how it is.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// By number.
    pub files: Vec<Inode>,
    /// By path.
    pub directories: BTreeMap<PathBuf, Directory>,
    /// What fails.
    pub faults: Vec<Fault>,
    /// What is lied about.
    pub lie: Option<Lie>,
    /// What files of the log's directory held when their names were removed.
    pub buried: BTreeMap<OsString, Image>,
    capacity: Option<usize>,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    gate: Arc<Gate>,
}

impl SimDisk {
    /// Where its users wait.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Looks at the disk, or changes it behind its users' backs.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock())
    }

    /// Another disk with the same on it.
    pub fn copy(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state.lock().clone())), gate: Arc::default() }
    }

    /// Leaves so many pages free; `None`: as many as anybody wants.
    pub fn leave_room(&self, pages: Option<usize>) {
        let mut state = self.state.lock();
        state.capacity = pages.map(|pages| state.used() + pages);
    }

    /// What a file holds at present, if it is there.
    pub fn content(&self, path: &Path) -> Option<Image> {
        let state = self.state.lock();
        Some(state.files[state.find(path)?].content.clone())
    }

    /// Waits at the gate and then does it.
    fn step<T: Default>(
        &self,
        step: Step,
        detail: impl std::hash::Hash,
        act: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.gate.pass(step, detail) {
            Verdict::Go => act(&mut self.state.lock()),
            Verdict::LastBreath => {
                let _ = act(&mut self.state.lock());
                Err(dead())
            }
            Verdict::Dead => Err(dead()),
        }
    }

    fn look<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        if self.gate.is_dead() {
            return Err(dead());
        }
        act(&mut self.state.lock())
    }
}

fn dead() -> io::Error {
    io::Error::other("the machine is off")
}

impl State {
    fn find(&self, path: &Path) -> Option<usize> {
        let (directory, name) = split(path);
        self.directories.get(directory)?.names.get(name).copied()
    }

    fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(path).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn change_name(&mut self, directory: &Path, change: NameChange) -> io::Result<()> {
        let directory = self.directory(directory)?;
        change.apply(&mut directory.names);
        directory.pending.push(change);
        Ok(())
    }

    fn is_linked(&self, file: usize) -> bool {
        self.directories.values().any(|directory| directory.names.values().any(|at| *at == file))
    }

    fn used(&self) -> usize {
        let linked = (0..self.files.len()).filter(|file| self.is_linked(*file));
        linked.map(|file| self.files[file].allocated.len()).sum()
    }

    /// How many of these pages get their place; the first ones do.
    fn allocate(&mut self, file: usize, pages: std::ops::Range<usize>) -> usize {
        let mut room = match self.capacity {
            Some(capacity) => capacity.saturating_sub(self.used()),
            None => usize::MAX,
        };
        let wanted = pages.len();
        let allocated = &mut self.files[file].allocated;
        for (done, page) in pages.enumerate() {
            if allocated.contains(&page) {
                continue;
            }
            if room == 0 {
                return done;
            }
            room -= 1;
            allocated.insert(page);
        }
        wanted
    }

    /// The error that is due for this, if one is.
    fn fault(&mut self, file: usize, kind: Kind) -> Option<Fault> {
        let name = self.files.get(file).map_or("", |inode| inode.name.as_str());
        let mut faults = self.faults.iter_mut();
        faults.find_map(|fault| fault.strikes(name, kind).then(|| fault.clone()))
    }

    fn write(&mut self, file: usize, bytes: &[u8], at: usize) -> io::Result<()> {
        let fault = self.fault(file, Kind::Write);
        let pages = at / PAGE..(at + bytes.len()).div_ceil(PAGE);
        let wanted = pages.len();
        let first = pages.start;
        let got = self.allocate(file, pages);
        // A write that fails may have come any part of its way.
        let mut end = if got == wanted { bytes.len() } else { ((first + got) * PAGE).max(at) - at };
        if let Some(fault) = &fault {
            end = end.min(fault.part(bytes.len()));
        }
        let change = Change::Write { at, bytes: bytes[..end].into() };
        let inode = &mut self.files[file];
        if end > 0 {
            change.apply(&mut inode.content);
            inode.pending.push(change);
        }
        match fault {
            Some(fault) => Err(fault.error()),
            None if end < bytes.len() => Err(ErrorKind::StorageFull.into()),
            None => Ok(()),
        }
    }

    fn set_length(&mut self, file: usize, length: usize) -> io::Result<()> {
        if let Some(fault) = self.fault(file, Kind::Write) {
            return Err(fault.error());
        }
        let inode = &mut self.files[file];
        let change = Change::Length(length);
        // Also what was reserved behind the end, if the length stays.
        if length <= inode.content.len() {
            inode.allocated.retain(|page| *page < length.div_ceil(PAGE));
        }
        change.apply(&mut inode.content);
        inode.pending.push(change);
        Ok(())
    }

    fn sync(&mut self, file: usize) -> io::Result<()> {
        let fault = self.fault(file, Kind::Sync);
        let lied =
            self.lie.as_ref().is_some_and(|lie| self.files[file].name.starts_with(&lie.file));
        if fault.is_none() && lied {
            return Ok(());
        }
        let inode = &mut self.files[file];
        let mut survives = fault.as_ref().map(Fault::coins);
        for change in std::mem::take(&mut inode.pending) {
            // Linux forgets what a failed sync could not write: the pages count as clean.
            if survives.as_mut().is_none_or(|coins| coins.percent(50)) {
                change.apply(&mut inode.durable);
            }
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default())
}

impl Disk for SimDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.look(|state| {
            state.directories.entry(path.to_owned()).or_default();
            Ok(())
        })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.step(Step::Look, ("list", directory), |state| {
            Ok(state.directory(directory)?.names.keys().cloned().collect())
        })
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let found = self.step(Step::Look, ("open", path), |state| Ok(state.find(path)))?;
        let file = match found {
            Some(file) => file,
            None if access == Access::Create => {
                self.step(Step::Change, ("create", path), |state| {
                    let (directory, name) = split(path);
                    let file = state.files.len();
                    let name = name.to_owned();
                    let known = name.to_string_lossy().into_owned();
                    state.files.push(Inode { name: known, ..Inode::default() });
                    state.change_name(directory, NameChange::Link(name, file))?;
                    Ok(file)
                })?
            }
            None => return Err(ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { disk: self.clone(), file, writes: access != Access::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Change, ("rename", from), |state| {
            let file = state.find(from).ok_or(ErrorKind::NotFound)?;
            let ((directory, old), (other, new)) = (split(from), split(to));
            if directory != other {
                return Err(ErrorKind::CrossesDevices.into());
            }
            let change = NameChange::Rename(old.to_owned(), new.to_owned(), file);
            state.files[file].name = new.to_string_lossy().into_owned();
            state.change_name(directory, change)
        })
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.look(|state| Ok(state.find(to).is_some()))? {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Change, ("remove", path), |state| {
            let file = state.find(path).ok_or(ErrorKind::NotFound)?;
            let (directory, name) = split(path);
            if directory == Path::new(AUDIT) {
                let held = state.files[file].content.clone();
                state.buried.insert(name.to_owned(), held);
            }
            state.change_name(directory, NameChange::Unlink(name.to_owned()))
        })
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.step(Step::Change, ("sync", directory), |state| {
            if let Some(fault) = state.fault(usize::MAX, Kind::Sync) {
                return Err(fault.error());
            }
            let directory = state.directory(directory)?;
            for change in std::mem::take(&mut directory.pending) {
                change.apply(&mut directory.durable);
            }
            Ok(())
        })
    }
}

/// An open file.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
    writes: bool,
}

impl SimFile {
    fn look<T>(&self, act: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        self.disk.look(|state| act(&mut state.files[self.file]))
    }

    fn change(
        &self,
        detail: impl std::hash::Hash,
        act: impl FnOnce(&mut State) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.writes {
            return Err(ErrorKind::PermissionDenied.into());
        }
        self.disk.step(Step::Change, (self.file, detail), act)
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.look(|inode| Ok(inode.content.len() as u64))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.look(|state| match state.fault(self.file, Kind::Read) {
            Some(fault) => Err(fault.error()),
            None => Ok(state.files[self.file].content.read(out, position(offset)?)),
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = position(offset)?;
        tracing::trace!(file = self.file, at, bytes = bytes.len(), "writes");
        self.change(("write", at, bytes.len()), |state| state.write(self.file, bytes, at))
    }

    fn allocate(&self, length: u64) -> io::Result<bool> {
        let pages = position(length)?.div_ceil(PAGE);
        self.change(("allocate", length), |state| {
            if let Some(fault) = state.fault(self.file, Kind::Write) {
                return Err(fault.error());
            }
            if state.allocate(self.file, 0..pages) < pages {
                return Err(ErrorKind::StorageFull.into());
            }
            Ok(())
        })?;
        Ok(true)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let length = position(length)?;
        self.change(("length", length), |state| state.set_length(self.file, length))
    }

    fn sync(&self) -> io::Result<()> {
        self.change("sync", |state| state.sync(self.file))
    }

    fn is_removed(&self) -> io::Result<bool> {
        self.disk.look(|state| Ok(!state.is_linked(self.file)))
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.look(|inode| Ok(!std::mem::replace(&mut inode.locked, true)))
    }

    fn unlock(&self) {
        self.disk.with(|state| state.files[self.file].locked = false);
    }

    fn restrict(&self) -> io::Result<()> {
        Ok(())
    }

    fn share(&self) -> io::Result<()> {
        Ok(())
    }

    fn rights(&self) -> io::Result<Rights> {
        Ok(Rights { owner: rustix::process::geteuid().as_raw(), mode: 0o600 })
    }

    fn forget_cache(&self) {
        let _ = self.disk.step(Step::Look, (self.file, "forget"), |state| {
            let inode = &mut state.files[self.file];
            inode.content = inode.durable.clone();
            inode.pending.iter().for_each(|change| change.apply(&mut inode.content));
            Ok(())
        });
    }

    fn free_space(&self) -> Option<u64> {
        let found = self.disk.step(Step::Look, (self.file, "room"), |state| {
            let free = state.capacity.map(|capacity| capacity.saturating_sub(state.used()));
            Ok(free.map_or(u64::MAX, |pages| (pages * PAGE) as u64))
        });
        found.ok()
    }

    fn gather(&self) {
        let _ = self.disk.step(Step::Look, (self.file, "gather"), |_| Ok(()));
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| ErrorKind::InvalidInput.into())
}
