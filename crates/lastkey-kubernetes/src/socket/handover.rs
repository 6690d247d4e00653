//! The listening sockets' way from one process to the next (an upgrade in place).
//!
//! Both are connected by a stream socket. What crosses it, in this order:
//!
//! 1. old → new: one line, `lastkey-handover 1`, then a word for each descriptor that comes with it:
//!    `socket` (a listening unix socket), `file` (the same, and its file goes with it) or `other` (for
//!    whoever made it, such as a listener for metrics).
//! 2. new → old: `ready`, once it could answer an apiserver.
//! 3. old → new: `yours`. The old process has stopped accepting, the new one begins.
//!
//! Until step 3 the new process accepts nothing and removes nothing, so the old one can go on at any
//! time. The connection's end means that the old process died: then, too, the sockets are the new
//! one's.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::{Handle, Listener, SocketError, activation::is_listener};

/// More than any plugin has.
const MAX_FDS: usize = 16;
const MAX_LINE: usize = 256;
const HEAD: &str = "lastkey-handover 1";
/// The old process sends at once, or never.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a process passes on.
#[derive(Debug)]
pub struct Offer {
    sockets: Vec<Handle>,
    other: Vec<OwnedFd>,
}

/// What a process was left.
#[derive(Debug)]
pub struct Inheritance {
    /// The apiserver's sockets.
    pub sockets: Vec<Listener>,
    /// Everything else, in the order it was offered.
    pub other: Vec<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Socket,
    File,
    Other,
}

impl Kind {
    const ALL: [(Self, &str); 3] =
        [(Self::Socket, "socket"), (Self::File, "file"), (Self::Other, "other")];

    fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl Offer {
    /// Sockets for the apiserver, and what else shall go with them.
    pub fn new(sockets: Vec<Handle>, other: Vec<OwnedFd>) -> Self {
        Self { sockets, other }
    }

    /// Sends it to the process at the other end.
    ///
    /// # Errors
    /// When that process is gone, or there is more than fits.
    pub fn send(&self, to: &UnixStream) -> Result<(), SocketError> {
        let sockets = self.sockets.iter().map(|it| match it.has_file() {
            true => (Kind::File, it.as_fd()),
            false => (Kind::Socket, it.as_fd()),
        });
        let other = self.other.iter().map(|it| (Kind::Other, it.as_fd()));
        let (kinds, fds): (Vec<Kind>, Vec<BorrowedFd<'_>>) = sockets.chain(other).unzip();
        let mut line = HEAD.to_owned();
        for kind in kinds {
            line.push(' ');
            line += kind.word();
        }
        line.push('\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if fds.len() > MAX_FDS || !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(SocketError::Handover("there are too many sockets"));
        }
        let line = [IoSlice::new(line.as_bytes())];
        rustix::net::sendmsg(to, &line, &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|error| SocketError::io("send", "the sockets")(error.into()))
    }

    /// Lets go of the sockets' files: the other process removes them.
    pub fn let_go(&self) {
        self.sockets.iter().for_each(Handle::let_go);
    }

    /// Takes the sockets' files: this process removes them.
    pub fn take(&self) {
        self.sockets.iter().for_each(Handle::take);
    }
}

/// Takes what the process at the other end offers.
///
/// # Errors
/// When it offers nothing, or something else than sockets.
pub fn receive(from: &UnixStream) -> Result<Inheritance, SocketError> {
    let failed = |error| SocketError::io("receive", "the sockets")(error);
    from.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut bytes = [0; MAX_LINE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut line = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(from, &mut line, &mut control, flags)
        .map_err(|error| failed(error.into()))?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    from.set_read_timeout(None).map_err(failed)?;
    let kinds = parse(&bytes[..message.bytes])?;
    if kinds.len() != fds.len() {
        return Err(SocketError::Handover("not every socket came through"));
    }
    let mut inheritance = Inheritance { sockets: Vec::new(), other: Vec::new() };
    for (kind, fd) in kinds.into_iter().zip(fds) {
        match kind {
            Kind::Other => inheritance.other.push(fd),
            Kind::File | Kind::Socket if !is_listener(&fd) => {
                return Err(SocketError::Handover("a descriptor is no listening socket"));
            }
            Kind::File | Kind::Socket => {
                let owned = kind == Kind::File;
                inheritance.sockets.push(Listener::succeeded(UnixListener::from(fd), owned)?);
            }
        }
    }
    Ok(inheritance)
}

fn parse(line: &[u8]) -> Result<Vec<Kind>, SocketError> {
    let refused = || SocketError::Handover("it is not in a form that this release knows");
    let line = std::str::from_utf8(line).map_err(|_| refused())?;
    let words = line.strip_prefix(HEAD).and_then(|it| it.strip_suffix('\n')).ok_or_else(refused)?;
    let kind = |word: &str| Kind::ALL.iter().find(|(_, name)| *name == word).map(|(kind, _)| *kind);
    match words.strip_prefix(' ') {
        None if words.is_empty() => Ok(Vec::new()),
        // Another number: of a later release.
        None => Err(refused()),
        Some(words) => words.split(' ').map(|word| kind(word).ok_or_else(refused)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::SocketAddress;

    #[test]
    fn the_line() {
        assert_eq!(parse(b"lastkey-handover 1\n").unwrap(), []);
        let kinds = [Kind::File, Kind::Socket, Kind::Other];
        assert_eq!(parse(b"lastkey-handover 1 file socket other\n").unwrap(), kinds);
        for wrong in [
            &b""[..],
            b"lastkey-handover 1",
            b"lastkey-handover 2 file\n",
            b"lastkey-handover 1 \n",
            b"lastkey-handover 1 files\n",
            b"lastkey-handover 12\n",
            // fuzzing (kubernetes_handover): what stood before the first space counted for nothing
            b"lastkey-handover 1file socket\n",
            b"lastkey-handover 1\xff\n",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sockets_go_from_one_end_to_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let old = Listener::bind(&SocketAddress::Path(path.clone())).unwrap();
        let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = metrics.local_addr().unwrap();
        let offer = Offer::new(vec![old.handle().unwrap()], vec![metrics.into()]);
        let (here, there) = UnixStream::pair().unwrap();
        offer.send(&here).unwrap();
        let new = receive(&there).unwrap();
        assert_eq!(new.sockets[0].address(), path.display().to_string());
        let metrics = std::net::TcpListener::from(new.other.into_iter().next().unwrap());
        assert_eq!(metrics.local_addr().unwrap(), port);
        new.sockets[0].handle().unwrap().take();
        offer.let_go();
        drop((old, offer));
        assert!(path.exists());
        drop(new.sockets);
        assert!(!path.exists());
    }

    #[test]
    fn nothing_and_something_else_are_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(receive(&there).is_err());
        let (here, there) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        Offer::new(vec![], vec![file.into()]).send(&here).unwrap();
        assert_eq!(receive(&there).unwrap().other.len(), 1);
    }
}
