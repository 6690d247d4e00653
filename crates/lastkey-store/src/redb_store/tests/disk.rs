//! A disk in memory that remembers each change, loses what was not synced, and fails on demand.

use std::{
    collections::HashSet,
    io::{self, ErrorKind},
    sync::Arc,
};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::super::medium::Medium;

const BLOCK: u64 = 4096;

/// What redb did to the disk.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { at: usize, data: Arc<[u8]> },
    Resize(usize),
    Sync,
}

impl Change {
    /// Makes the change to an image of a disk.
    pub(super) fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { at, data } => write(image, *at, data),
            Self::Resize(len) => image.resize(*len, 0),
            Self::Sync => {}
        }
    }
}

pub(super) fn write(image: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[at..end].copy_from_slice(data);
}

/// Which accesses fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// How many changes (or reads, see `reads`) still succeed before it.
    pub(super) after: usize,
    /// How many fail then.
    pub(super) times: usize,
    pub(super) kind: ErrorKind,
    /// Whether reads fail, instead of writes, resizes and syncs.
    pub(super) reads: bool,
    /// Whether a failed sync forgets what it should have written, as Linux does.
    pub(super) forget: bool,
}

impl Fault {
    pub(super) fn of_changes(after: usize, times: usize, kind: ErrorKind) -> Self {
        Self { after, times, kind, reads: false, forget: true }
    }

    /// Whether this access is to fail.
    fn strikes(&mut self, read: bool) -> bool {
        if read != self.reads {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        let strikes = self.times > 0;
        self.times = self.times.saturating_sub(1);
        strikes
    }
}

#[derive(Default, Debug)]
struct State {
    /// What reads see: the page cache.
    content: Vec<u8>,
    /// What a power cut leaves for certain.
    durable: Vec<u8>,
    /// Whether a sync failed and forgot, so that `content` is more than will ever be durable.
    forgot: bool,
    log: Option<Vec<Change>>,
    allocated: HashSet<u64>,
    capacity: Option<usize>,
    fault: Option<Fault>,
}

/// The disk; clones are the same disk.
#[derive(Clone, Default, Debug)]
pub(super) struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub(super) fn of(image: Vec<u8>) -> Self {
        let disk = Self::default();
        {
            let mut state = disk.0.lock();
            state.allocated = (0..(image.len() as u64).div_ceil(BLOCK)).collect();
            state.durable = image.clone();
            state.content = image;
        }
        disk
    }

    pub(super) fn record(&self) {
        self.0.lock().log = Some(Vec::new());
    }

    /// How many changes were recorded.
    pub(super) fn position(&self) -> usize {
        self.0.lock().log.as_ref().map_or(0, Vec::len)
    }

    pub(super) fn recorded(&self) -> Vec<Change> {
        self.0.lock().log.take().unwrap_or_default()
    }

    /// What a power cut would leave now, if nothing that was not synced had reached the disk.
    pub(super) fn durable(&self) -> Vec<u8> {
        self.0.lock().durable.clone()
    }

    /// Puts another content in place, as if nothing of this one had been written.
    pub(super) fn replace(&self, image: Vec<u8>) {
        let mut state = self.0.lock();
        state.durable.clone_from(&image);
        state.content = image;
    }

    pub(super) fn fail(&self, fault: Option<Fault>) {
        self.0.lock().fault = fault;
    }

    /// Makes every access wait until the answer is dropped; fails as told from then on.
    pub(super) fn pause(&self, fault: Fault) -> impl Drop {
        let mut state = self.0.lock();
        state.fault = Some(fault);
        state
    }

    /// Leaves this many blocks free.
    pub(super) fn leave_room(&self, blocks: usize) {
        let mut state = self.0.lock();
        state.capacity = Some(state.allocated.len() + blocks);
    }

    pub(super) fn make_room(&self) {
        self.0.lock().capacity = None;
    }
}

impl State {
    fn change(&mut self, change: Change) -> io::Result<()> {
        if let Some(fault) = &mut self.fault
            && fault.strikes(false)
        {
            if matches!(change, Change::Sync) && fault.forget {
                self.forgot = true;
            }
            return Err(fault.kind.into());
        }
        self.allocate(&change)?;
        change.apply(&mut self.content);
        if matches!(change, Change::Sync) && !self.forgot {
            self.durable.clone_from(&self.content);
        }
        if let Some(log) = &mut self.log {
            log.push(change);
        }
        Ok(())
    }

    fn allocate(&mut self, change: &Change) -> io::Result<()> {
        match change {
            Change::Write { at, data } => {
                for block in *at as u64 / BLOCK..((at + data.len()) as u64).div_ceil(BLOCK) {
                    let full = self.capacity.is_some_and(|most| self.allocated.len() >= most);
                    if full && !self.allocated.contains(&block) {
                        return Err(ErrorKind::StorageFull.into());
                    }
                    self.allocated.insert(block);
                }
            }
            Change::Resize(len) => {
                let blocks = (*len as u64).div_ceil(BLOCK);
                self.allocated.retain(|block| *block < blocks);
            }
            Change::Sync => {}
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Some(fault) = &mut state.fault
            && fault.strikes(true)
        {
            return Err(fault.kind.into());
        }
        let start = usize::try_from(offset).unwrap();
        let found = state.content.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().change(Change::Resize(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.lock().change(Change::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0.lock().change(Change::Write { at, data: data.into() })
    }
}

impl Medium for Disk {
    type Backend = Self;

    fn backend(&self) -> Self {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.forgot) {
            // The pages that were called clean are dropped from the cache.
            state.content = state.durable.clone();
        }
        drop(state);
        self.clone()
    }

    fn has_room(&self) -> bool {
        let state = self.0.lock();
        state.capacity.is_none_or(|most| state.allocated.len() + 256 <= most)
    }

    fn release(&self) {}
}
