//! Standard input and output as this process was given them.
//!
//! Rust's runtime opens `/dev/null` in place of a standard stream that is closed, before `main`
//! begins: what is written there is gone, what is read there is empty, and neither is an error. So
//! it is looked before that, and a command that needs a stream it was not given is refused before
//! it does anything: no share is printed into nothing, and nothing is encrypted in place of data
//! that never came. Who names `/dev/null` means it.

use std::{
    os::fd::{BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{OFlags, fcntl_getfl};

use crate::output::{Exit, Failure};

/// Whether standard input can be read.
static INPUT: AtomicBool = AtomicBool::new(true);
/// Whether standard output can be written.
static OUTPUT: AtomicBool = AtomicBool::new(true);

#[used]
#[allow(unsafe_code, reason = "nothing else runs before the runtime opens what is closed")]
// SAFETY: the section holds pointers to functions of the C calling convention, which are called
// once each before `main`, while there is one thread. This one makes two system calls and stores
// two flags: it needs nothing that is set up later.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    INPUT.store(opened(0).is_some_and(|mode| mode != OFlags::WRONLY), Ordering::Relaxed);
    OUTPUT.store(opened(1).is_some_and(|mode| mode != OFlags::RDONLY), Ordering::Relaxed);
}

/// What a descriptor was opened for, if it is open for anything.
#[allow(unsafe_code, reason = "there is no safe name of a descriptor that may be closed")]
fn opened(fd: RawFd) -> Option<OFlags> {
    // SAFETY: nobody in this process owns or closes descriptors yet, and it is borrowed for one
    // system call alone, which changes nothing and fails if it is not open.
    let flags = fcntl_getfl(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    (!flags.contains(OFlags::PATH)).then_some(flags & OFlags::ACCMODE)
}

/// Refuses what would read standard input where there is none, with [`Exit::Usage`].
pub(crate) fn require_input() -> Result<(), Failure> {
    match INPUT.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(refused(
            "standard input is closed or cannot be read, and the command would read it; name a \
             file instead",
        )),
    }
}

/// Refuses what would write its result to standard output where there is none, with
/// [`Exit::Usage`].
pub(crate) fn require_output() -> Result<(), Failure> {
    match OUTPUT.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(refused(
            "standard output is closed or cannot be written, and the result would go there; send \
             it to a file, or to /dev/null",
        )),
    }
}

fn refused(why: &str) -> Failure {
    Failure::new(Exit::Usage, format_args!("{why}; nothing was done"))
}
