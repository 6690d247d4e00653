//! Sockets that systemd (or another supervisor) opened before us, so that an apiserver's connection
//! waits through a restart instead of failing.
//!
//! The protocol of `sd_listen_fds(3)`: `LISTEN_PID` is our process id, `LISTEN_FDS` the number of
//! descriptors, which start at 3, `LISTEN_FDNAMES` their names, which only serve to say which one is
//! wrong.

use std::{
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    io::FdFlags,
    net::{AddressFamily, SocketType, sockopt},
};

use super::{Listener, SocketError};

const FIRST_FD: RawFd = 3;
/// More than this is a mistake, not a configuration.
const MAX_FDS: RawFd = 16;

/// The descriptors belong to whoever asks first.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over the sockets that the environment hands to this process; none if it hands over none,
/// or a second time.
///
/// # Errors
///
/// If one of them is no listening unix stream socket, or lies where others could replace it.
pub fn from_environment() -> Result<Vec<Listener>, SocketError> {
    let number = |name| std::env::var(name).ok()?.parse::<i32>().ok();
    let own = i32::try_from(std::process::id()).ok();
    if number("LISTEN_PID") != own || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MAX_FDS);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').filter(|name| !name.is_empty());
    let mut named = |fd| take(fd, names.next().unwrap_or("unnamed"));
    (FIRST_FD..FIRST_FD + count).map(&mut named).collect()
}

#[allow(unsafe_code)] // the one place where a descriptor comes as a number
fn take(fd: RawFd, name: &str) -> Result<Listener, SocketError> {
    let refused = || SocketError::NotAListener { fd, name: name.to_owned() };
    // SAFETY: the environment names this process and these descriptors, so nobody else in it owns
    // them, and `TAKEN` lets this run once. A number that is not open fails the checks below, each
    // of which is a plain system call on it; dropping it then closes nothing.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if !is_listener(&socket) {
        // a descriptor that is not even open must not be closed, or std aborts in debug builds
        std::mem::forget(socket);
        return Err(refused());
    }
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(|_| refused())?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true).map_err(|_| refused())?;
    Listener::inherited(listener)
}

/// Whether a descriptor is a unix stream socket that listens.
pub(super) fn is_listener(socket: &OwnedFd) -> bool {
    let asked = || {
        Ok::<_, rustix::io::Errno>(
            sockopt::socket_domain(socket)? == AddressFamily::UNIX
                && sockopt::socket_type(socket)? == SocketType::STREAM
                && sockopt::socket_acceptconn(socket)?,
        )
    };
    asked().unwrap_or(false)
}
