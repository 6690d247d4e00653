//! The sockets an apiserver dials: made so that nobody else can, and never taken from a plugin that
//! is alive.
//!
//! - A *path* socket has mode 0600 from its first moment on, in a directory that only we (or root)
//!   can write. What a crashed plugin left behind is replaced; a socket that answers is not.
//! - An *abstract* socket has no permissions, so each connection shows its peer credential: our own
//!   user or root.
//! - A socket handed over by `LISTEN_FDS` belongs to systemd, which set its permissions; where they
//!   let everybody in, each connection shows its peer credential.
//! - A socket handed over by a predecessor (an upgrade in place) is accepted from by one of the two
//!   processes at any time, and its file belongs to the one that goes on.

mod activation;
mod door;
mod guests;
mod handover;
mod listen;
mod peer;
mod place;
mod refusals;

use std::{
    fmt, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::{
    AsciiSet, CONTROLS, percent_decode_str, percent_encode, utf8_percent_encode,
};

pub use activation::from_environment;
pub use door::Door;
pub use guests::{Closed, MAX_CONNECTIONS, PROVES_ITSELF_WITHIN};
pub use handover::{Inheritance, Offer, receive};
pub use listen::{Handle, Listener};
pub use peer::{Connection, PeerInfo, accept_all, accept_through};
pub use place::{Presence, look};

/// The longest path that fits in `sockaddr_un` with its final zero.
pub const MAX_PATH: usize = 107;

/// The process that holds sockets for others, where it is a service manager.
const FIRST: i32 = 1;

/// What ends the path of a URL, or means something else in it.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'?');

/// Where an apiserver dials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A file.
    Path(PathBuf),
    /// A name in the abstract namespace, without the `@` that stands for its leading zero byte.
    Abstract(String),
}

impl SocketAddress {
    /// What an `EncryptionConfiguration` names as the provider's endpoint: a URL, because the
    /// apiserver reads it as one.
    pub fn endpoint(&self) -> String {
        match self {
            Self::Path(path) => {
                format!("unix://{}", percent_encode(path.as_os_str().as_bytes(), ENCODED))
            }
            Self::Abstract(name) => format!("unix:///@{}", utf8_percent_encode(name, ENCODED)),
        }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

impl FromStr for SocketAddress {
    type Err = SocketError;

    /// Takes an absolute path, `@name`, or either as `unix://…`.
    fn from_str(text: &str) -> Result<Self, SocketError> {
        let decoded = |rest| {
            let text = percent_decode_str(rest).decode_utf8();
            text.map_err(|_| SocketError::NotAnAddress(rest.to_owned()))
        };
        let plain = match text.strip_prefix("unix://") {
            // the apiserver's own spelling of an abstract socket has a slash first
            Some(rest) => {
                decoded(rest.strip_prefix('/').filter(|it| it.starts_with('@')).unwrap_or(rest))?
            }
            None => text.into(),
        };
        let address = match plain.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(plain.as_ref().into()),
        };
        address.check()?;
        Ok(address)
    }
}

impl SocketAddress {
    /// Whether the operating system and the apiserver can take it.
    pub fn check(&self) -> Result<(), SocketError> {
        let (bytes, usable) = match self {
            // an endpoint with /@ first would mean an abstract socket
            Self::Path(path) => {
                let bytes = path.as_os_str().as_bytes();
                let usable = bytes.starts_with(b"/") && !bytes.starts_with(b"/@");
                (bytes.len(), usable && !bytes.contains(&0))
            }
            Self::Abstract(name) => (name.len(), !name.is_empty() && !name.contains('\0')),
        };
        if !usable {
            return Err(SocketError::NotAnAddress(self.to_string()));
        }
        if bytes > MAX_PATH {
            return Err(SocketError::TooLong { address: self.to_string(), bytes });
        }
        Ok(())
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Neither an absolute path nor `@name`.
    #[error("{0:?} is neither an absolute path nor an abstract name such as @lastkey")]
    NotAnAddress(String),
    /// The kernel's limit.
    #[error(
        "the socket address {address} has {bytes} bytes, and the kernel takes {MAX_PATH}; choose a \
         shorter one, such as /run/lastkey/kms.sock"
    )]
    TooLong {
        /// The address.
        address: String,
        /// Its length.
        bytes: usize,
    },
    /// Others could replace the socket by their own.
    #[error(
        "the directory {} can be written by others (mode {mode:04o}), who could put a socket of \
         their own there; run: chmod go-w {}", path.display(), shell(path)
    )]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else's directory.
    #[error(
        "the directory {} belongs to user {owner}, who could put a socket of their own there; \
         run: chown {us} {}", path.display(), shell(path)
    )]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// A plugin is there and answers.
    #[error("{} listens on {address}; {}", process(*.by), way_out(*.by, address))]
    InUse {
        /// The socket.
        address: String,
        /// The process that listens: the machine's first, or one of this program.
        by: Option<i32>,
    },
    /// Somebody else's socket, which we may neither dial nor remove.
    #[error(
        "the socket {} belongs to user {owner}, and only they or root can remove it; \
         run: rm {}", path.display(), shell(path)
    )]
    ForeignSocket {
        /// The socket.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A file that is no socket is in the way.
    #[error(
        "{} exists and is no socket; it was left as it is: if nobody needs it, run: rm {}",
        .0.display(), shell(.0)
    )]
    NotASocket(PathBuf),
    /// A directory is in the way.
    #[error(
        "{} is a directory, and no socket: give the path of a socket in it, such as {}",
        .0.display(), .0.join("kms.sock").display()
    )]
    IsDirectory(PathBuf),
    /// What `LISTEN_FDS` hands over is not what it should be.
    #[error("descriptor {fd} ({name}) from LISTEN_FDS is no listening unix stream socket")]
    NotAListener {
        /// The descriptor.
        fd: i32,
        /// Its name in LISTEN_FDNAMES.
        name: String,
    },
    /// What a predecessor hands over is not what it should be.
    #[error("what the process before this one hands over cannot be used: {0}")]
    Handover(&'static str),
    /// The operating system refused.
    #[error("cannot {what} {address}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which socket.
        address: String,
        /// Why not.
        source: io::Error,
    },
}

impl SocketError {
    fn io(what: &'static str, address: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        let address = address.to_string();
        move |source| Self::Io { what, address, source }
    }
}

/// A path as a shell's word.
pub fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@=,+".contains(&byte);
    match text.bytes().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn process(id: Option<i32>) -> String {
    match id {
        Some(FIRST) => "the service manager (the process 1)".to_owned(),
        Some(id) => format!("the process {id}"),
        None => "another process".to_owned(),
    }
}

fn way_out(id: Option<i32>, address: &str) -> String {
    match id {
        Some(FIRST) => "stop the socket's unit first (systemctl list-sockets names it, systemctl \
                        stop UNIT.socket stops it)"
            .to_owned(),
        Some(id) => {
            format!("stop it first (kill {id}), or let it upgrade itself (kill -USR2 {id})")
        }
        None => {
            let address = shell(Path::new(address));
            format!("stop it first; as root, this names it: ss -xlp | grep -F {address}")
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, shown, endpoint) in [
            ("/run/lastkey/kms.sock", "/run/lastkey/kms.sock", "unix:///run/lastkey/kms.sock"),
            ("unix:///run/kms.sock", "/run/kms.sock", "unix:///run/kms.sock"),
            ("@lastkey", "@lastkey", "unix:///@lastkey"),
            ("unix:///@lastkey", "@lastkey", "unix:///@lastkey"),
            ("unix://@lastkey", "@lastkey", "unix:///@lastkey"),
            ("/run/100% #1?.sock", "/run/100% #1?.sock", "unix:///run/100%25%20%231%3F.sock"),
            ("unix:///run/a%20b", "/run/a b", "unix:///run/a%20b"),
        ] {
            let address: SocketAddress = text.parse().unwrap();
            assert_eq!((address.to_string(), address.endpoint()), (shown.into(), endpoint.into()));
            assert_eq!(address.endpoint().parse::<SocketAddress>().unwrap(), address);
        }
        for text in
            ["", "@", "relative/kms.sock", "unix://", "tcp://127.0.0.1:1", "@a\0b", "/@a", "/a\0b"]
        {
            assert!(text.parse::<SocketAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_path_is_one_word_of_the_shell() {
        for (path, word) in
            [("/run/a.b", "/run/a.b"), ("/run/a b", "'/run/a b'"), ("/o'x", r"'/o'\''x'")]
        {
            assert_eq!(shell(Path::new(path)), word);
        }
    }

    #[test]
    fn whoever_is_in_the_way_can_be_found() {
        let in_use = |by| SocketError::InUse { address: "/run/a b".into(), by }.to_string();
        let known = in_use(Some(1234));
        assert!(known.contains("kill 1234") && known.contains("kill -USR2 1234"), "{known}");
        let manager = in_use(Some(FIRST));
        assert!(manager.contains("systemctl stop") && !manager.contains("kill"), "{manager}");
        let unknown = in_use(None);
        assert!(unknown.ends_with("ss -xlp | grep -F '/run/a b'"), "{unknown}");
    }

    #[test]
    fn a_long_path_is_explained() {
        let fits = format!("/{}", "x".repeat(MAX_PATH - 1));
        assert!(fits.parse::<SocketAddress>().is_ok());
        let error = format!("{fits}x").parse::<SocketAddress>().unwrap_err().to_string();
        assert!(error.contains("108 bytes") && error.contains("shorter"), "{error}");
    }
}
