//! Who calls: every engine command takes a [`Caller`], and a front end has proven it before.

use std::{fmt, net::SocketAddr, sync::Arc};

use lastkey_crypto::{ClusterId, Entropy, mac};
use parking_lot::Mutex;

use crate::node::{Fingerprint, NodeName};

/// The identity behind a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// The account root, proven by a signature with this access key.
    Root {
        /// The public half of the credential.
        access_key_id: Arc<str>,
    },
    /// An administrator on the server's own machine, proven by the admin socket's peer credential.
    Local {
        /// The peer's numeric user id.
        uid: u32,
    },
    /// A KMS plugin, proven by a client certificate of our own CA.
    Plugin {
        /// The cluster it serves.
        cluster: ClusterId,
        /// Its name within that cluster.
        name: Arc<str>,
        /// SHA-256 of the certificate's public key, lower-case hex.
        fingerprint: Arc<str>,
    },
    /// A node's kubelet, proven by a client certificate of its cluster's own CA. It may ask for a
    /// plugin's identity, and nothing else.
    Kubelet {
        /// The cluster whose CA issued it.
        cluster: ClusterId,
        /// The node that it names.
        node: NodeName,
        /// The certificate's fingerprint.
        certificate: Fingerprint,
        /// Its public key's fingerprint.
        key: Fingerprint,
    },
    /// The engine itself: rotations that fell due, deletions whose window ended.
    System,
}

impl Principal {
    /// `root`, `local`, `plugin`, `kubelet` or `system`: the kind as audit records name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Root { .. } => "root",
            Self::Local { .. } => "local",
            Self::Plugin { .. } => "plugin",
            Self::Kubelet { .. } => "kubelet",
            Self::System => "system",
        }
    }
}

impl fmt::Display for Principal {
    /// `root/<access key id>`, `local/<uid>`, `plugin/<cluster>/<name>`,
    /// `kubelet/<cluster>/<node>`, `system`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root { access_key_id } => write!(f, "root/{access_key_id}"),
            Self::Local { uid } => write!(f, "local/{uid}"),
            Self::Plugin { cluster, name, .. } => write!(f, "plugin/{cluster}/{name}"),
            Self::Kubelet { cluster, node, .. } => write!(f, "kubelet/{cluster}/{node}"),
            Self::System => f.write_str("system"),
        }
    }
}

/// Where a command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Over TLS from this address.
    Network(SocketAddr),
    /// Over the admin socket from this process.
    Socket {
        /// The peer's process id at the time it connected.
        pid: i32,
    },
    /// From within the server.
    Internal,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => write!(f, "{address}"),
            Self::Socket { pid } => write!(f, "socket:{pid}"),
            Self::Internal => f.write_str("internal"),
        }
    }
}

/// Identifies one request in the answer, the log and the audit record: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// Draws a new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        Self(bytes)
    }

    /// The request id made of these 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl RequestId {
    /// Shows its text: an upper-case UUID, as the Alibaba wire shows request ids.
    pub(crate) fn with_text<T>(&self, show: impl FnOnce(&str) -> T) -> T {
        let id = uuid::Uuid::from_bytes(self.0);
        let mut buffer = uuid::Uuid::encode_buffer();
        show(id.hyphenated().encode_upper(&mut buffer))
    }
}

impl fmt::Display for RequestId {
    /// Upper-case UUID text, as the Alibaba wire shows request ids.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Random bytes of so many request ids are drawn at once: they are no secrets, and each call of the
/// generator costs more than the bytes.
const IDS_AT_ONCE: usize = 64;

/// Deals out request ids.
pub(crate) struct RequestIds(Mutex<Vec<[u8; 16]>>);

impl Default for RequestIds {
    fn default() -> Self {
        Self(Mutex::new(Vec::with_capacity(IDS_AT_ONCE)))
    }
}

impl RequestIds {
    /// A new one.
    pub(crate) fn next(&self, entropy: &dyn Entropy) -> RequestId {
        let mut drawn = self.0.lock();
        if let Some(id) = drawn.pop() {
            return RequestId(id);
        }
        let mut bytes = [0; 16 * IDS_AT_ONCE];
        entropy.fill(&mut bytes);
        let (ids, _) = bytes.as_chunks();
        drawn.extend_from_slice(ids);
        drawn.pop().map_or_else(|| RequestId::random(entropy), RequestId)
    }
}

/// What a signed request must never repeat, reduced to 64 bits for the audit record.
///
/// The audit log is where admitted nonces survive a restart, so a record carries the print of
/// its request's nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoncePrint(pub(crate) u64);

impl NoncePrint {
    /// The print of `nonce` as used with `access_key_id`.
    pub fn of(access_key_id: &str, nonce: &str) -> Self {
        let digest =
            mac::sha256(&[b"lastkey nonce\0", access_key_id.as_bytes(), b"\0", nonce.as_bytes()]);
        let mut print = [0; 8];
        print.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(print))
    }
}

/// One proven caller and its request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// From where.
    pub source: Source,
    /// Which request.
    pub request_id: RequestId,
    /// The admitted nonce of a signed request and the time the request was signed for.
    pub nonce: Option<(NoncePrint, crate::Timestamp)>,
    /// Only say what would happen.
    pub dry_run: bool,
}

impl Caller {
    /// A caller without nonce or dry run.
    pub fn new(principal: Principal, source: Source, request_id: RequestId) -> Self {
        Self { principal, source, request_id, nonce: None, dry_run: false }
    }

    pub(crate) fn system(entropy: &dyn Entropy) -> Self {
        Self::new(Principal::System, Source::Internal, RequestId::random(entropy))
    }
}
