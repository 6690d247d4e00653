//! This binary's allocator: the system's, unless a process of it was told to count or to zero.
//!
//! The floor runs on the bare heap. Processes that stand for lastkey zero freed memory as its
//! binary does, so that what this costs is in their numbers.
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait; every call is handed on unchanged")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use lastkey_crypto::memory::GUARDED_HEAP;

/// See the module.
pub(crate) struct Heap;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ZEROES: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn note(bytes: usize) {
    if COUNTS.load(Relaxed) {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

// SAFETY: every call goes to `System` with the arguments it came with; `GUARDED_HEAP` is `System`
// with memory zeroed before it is freed, so either may free what the other allocated.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps `realloc`'s contract, and both free what `System` allocated.
        unsafe {
            if ZEROES.load(Relaxed) {
                GUARDED_HEAP.realloc(old, layout, size)
            } else {
                System.realloc(old, layout, size)
            }
        }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and both free what `System` allocated.
        unsafe {
            if ZEROES.load(Relaxed) {
                GUARDED_HEAP.dealloc(old, layout);
            } else {
                System.dealloc(old, layout);
            }
        }
    }
}

/// Zeroes freed memory from now on, as the `lastkey` binary does.
pub(crate) fn guard() {
    ZEROES.store(true, Relaxed);
}

/// Counts from now on; whoever connects to the socket at `path` is told.
pub(crate) fn count(path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let counts = [ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed)];
            let _ = stream.write_all(&counts.map(u64::to_be_bytes).concat());
        }
    });
    COUNTS.store(true, Relaxed);
    Ok(())
}

/// Allocations and reallocations so far, and their bytes, of the process behind the socket.
pub(crate) fn ask(path: &Path) -> io::Result<[u64; 2]> {
    let mut counts = [[0; 8]; 2];
    let mut stream = UnixStream::connect(path)?;
    for count in &mut counts {
        stream.read_exact(count)?;
    }
    Ok(counts.map(u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counters");
        count(&path).unwrap();
        let [allocations, bytes] = ask(&path).unwrap();
        drop(std::hint::black_box(vec![1_u8; 12_345]));
        let [later_allocations, later_bytes] = ask(&path).unwrap();
        assert!(later_allocations > allocations);
        assert!(later_bytes >= bytes + 12_345);
        guard();
        drop(std::hint::black_box(vec![1_u8; 12_345]));
    }
}
