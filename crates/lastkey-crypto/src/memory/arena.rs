//! Slots of locked memory.
//!
//! Pages come from `mmap` in groups of 64 KiB, each between two guard pages that fault on any
//! access, so that a read running over from elsewhere ends there. A group is cut into slots of
//! 64 bytes for symmetric keys, or of 512 for encoded private keys; a free list of each under one
//! mutex hands them out. Groups are never given back: the number of long-lived keys has a peak,
//! and the pages of the peak are kept.
//!
//! Keys move through here when they are made, loaded or dropped; encrypting does not take the
//! mutex.

use std::{
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicIsize, Ordering},
    },
};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mlock, mmap_anonymous, mprotect,
};
use zeroize::Zeroize;

/// Bytes in a slot of each size.
const SLOT_LENS: [usize; 2] = [64, MAX_LEN];
/// The longest key that is locked.
pub(super) const MAX_LEN: usize = 512;
/// Bytes in a group of pages; a multiple of every page size in use (4, 16 and 64 KiB).
const GROUP_LEN: usize = 64 * 1024;
/// Bytes of guard on each side; likewise.
const GUARD_LEN: usize = 64 * 1024;

static ARENA: Mutex<Arena> =
    Mutex::new(Arena { free: [Vec::new(), Vec::new()], stats: Stats::NONE });
static HEAP_KEYS: AtomicIsize = AtomicIsize::new(0);

/// What the process-wide memory for keys looks like; for health and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Groups of 64 KiB mapped so far.
    pub pages_mapped: usize,
    /// Groups among them that could not be locked: a key there may reach swap.
    pub pages_unlocked: usize,
    /// Groups among them that could not be kept out of core dumps or forked children.
    pub pages_unadvised: usize,
    /// Keys in slots right now.
    pub keys_in_slots: usize,
    /// Keys on the plain heap right now: too long for a slot, or no page could be mapped.
    pub keys_on_heap: usize,
}

impl Stats {
    const NONE: Self = Self {
        pages_mapped: 0,
        pages_unlocked: 0,
        pages_unadvised: 0,
        keys_in_slots: 0,
        keys_on_heap: 0,
    };

    /// Whether every key of the process lies in locked, undumpable memory.
    pub const fn is_locked(&self) -> bool {
        self.pages_unlocked == 0 && self.pages_unadvised == 0 && self.keys_on_heap == 0
    }
}

/// How keys are held right now.
pub fn stats() -> Stats {
    let keys_on_heap = HEAP_KEYS.load(Ordering::Relaxed).try_into().unwrap_or(0);
    Stats { keys_on_heap, ..arena().stats }
}

pub(super) fn count_heap_key(change: isize) {
    HEAP_KEYS.fetch_add(change, Ordering::Relaxed);
}

/// Up to [`MAX_LEN`] bytes of locked memory, exclusively owned.
pub(super) struct Slot {
    start: NonNull<u8>,
    len: usize,
    /// Which of [`SLOT_LENS`] it is of.
    size: usize,
}

impl Slot {
    /// Takes a slot, zeroed; nothing if `len` does not fit or no page can be mapped.
    pub(super) fn take(len: usize) -> Option<Self> {
        let size = SLOT_LENS.iter().position(|slot| len <= *slot)?;
        let mut arena = arena();
        if arena.free[size].is_empty() {
            arena.grow(size)?;
        }
        let FreeSlot(start) = arena.free[size].pop()?;
        arena.stats.keys_in_slots += 1;
        Some(Self { start, len, size })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points at SLOT_LENS[size] bytes of a private mapping that is never unmapped,
        // initialised to zero by the kernel; len ≤ SLOT_LENS[size]. The slot left the free list when
        // `self` was made and returns to it when `self` is dropped, so nobody else refers to it,
        // and the borrow of `self` keeps writes away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the exclusive borrow of `self` keeps other borrows away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        let mut arena = arena();
        arena.free[self.size].push(FreeSlot(self.start));
        arena.stats.keys_in_slots -= 1;
    }
}

// SAFETY: a slot owns its bytes exclusively, and they are reachable from every thread.
unsafe impl Send for Slot {}
// SAFETY: through `&Slot` the bytes can only be read.
unsafe impl Sync for Slot {}

/// A slot nobody owns; all zeros.
struct FreeSlot(NonNull<u8>);

// SAFETY: the pointer is only handed on, and the memory behind it belongs to no thread.
unsafe impl Send for FreeSlot {}

struct Arena {
    free: [Vec<FreeSlot>; 2],
    stats: Stats,
}

fn arena() -> MutexGuard<'static, Arena> {
    // Nothing under the lock panics halfway through a change.
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    /// Maps one more group and cuts it into slots.
    fn grow(&mut self, size: usize) -> Option<()> {
        let group = map_group()?;
        self.stats.pages_mapped += 1;
        self.stats.pages_unlocked += usize::from(!lock(group));
        self.stats.pages_unadvised += usize::from(!keep_private(group));
        // Reserve first, so that a failed allocation cannot lose part of a group.
        let slot = SLOT_LENS[size];
        self.free[size].reserve(GROUP_LEN / slot);
        for offset in (0..GROUP_LEN).step_by(slot) {
            // SAFETY: offset < GROUP_LEN, the length of the mapping that `group` points at.
            self.free[size].push(FreeSlot(unsafe { group.add(offset) }));
        }
        Some(())
    }
}

/// [`GROUP_LEN`] readable and writable bytes of zeros between two guards.
fn map_group() -> Option<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing.
    let whole = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            GUARD_LEN + GROUP_LEN + GUARD_LEN,
            ProtFlags::empty(),
            MapFlags::PRIVATE,
        )
    };
    let whole = NonNull::new(whole.ok()?.cast::<u8>())?;
    // SAFETY: GUARD_LEN lies inside the mapping made above.
    let group = unsafe { whole.add(GUARD_LEN) };
    // SAFETY: the range lies inside the mapping made above, and nothing refers to it yet.
    let open = unsafe {
        mprotect(group.as_ptr().cast(), GROUP_LEN, MprotectFlags::READ | MprotectFlags::WRITE)
    };
    open.ok()?;
    Some(group)
}

/// Keeps a group out of swap.
fn lock(group: NonNull<u8>) -> bool {
    // SAFETY: the range is a mapping of ours; locking does not change its content.
    unsafe { mlock(group.as_ptr().cast(), GROUP_LEN) }.is_ok()
}

/// Keeps a group out of core dumps and forked children.
///
/// A child that touches it faults. Wiping it on fork instead would let a child go on with a key
/// of zeros.
fn keep_private(group: NonNull<u8>) -> bool {
    let advise = |advice| {
        // SAFETY: the range is a mapping of ours; neither advice changes its content here.
        unsafe { madvise(group.as_ptr().cast(), GROUP_LEN, advice) }.is_ok()
    };
    // Both are asked for, even if the first is refused.
    advise(Advice::LinuxDontDump) & advise(Advice::LinuxDontFork)
}
