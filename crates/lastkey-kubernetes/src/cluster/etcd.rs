//! Reads what rests under the apiservers. Nothing is ever written, and no value is kept: each is
//! shown to a function once, and zeroed.

use std::time::Duration;

use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use zeroize::Zeroize;

use super::{
    AccessError, EtcdAccess, ServerUrl,
    connect::{Connector, Trust},
};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, kv_client::KvClient};

/// Keys of one page, to begin with; fewer when they are too large together.
const PAGE: i64 = 500;
/// The largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why etcd could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// What was registered cannot be used.
    #[error("etcd: {0}")]
    Access(#[from] AccessError),
    /// None of its members answers.
    #[error("etcd cannot be reached: {reason}")]
    Unreachable {
        /// What the last one that was tried came to.
        reason: String,
    },
    /// It does not let us read.
    #[error("etcd refuses: {reason}")]
    Refused {
        /// Its words, which are about users and roles.
        reason: String,
    },
    /// It stopped in the middle.
    #[error("etcd answered with an error: {reason}")]
    Failed {
        /// Its words.
        reason: String,
    },
}

/// How a scan went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scan {
    /// Keys that were read.
    pub keys: u64,
    /// The state of the store they were read in; 0 if it has none of them.
    pub revision: i64,
    /// Whether etcd forgot that state in the middle, so that the rest is of a later one.
    pub moved: bool,
}

/// A reader of one cluster's etcd.
pub struct Etcd {
    members: Vec<KvClient<Channel>>,
    preferred: usize,
    page: i64,
}

impl Etcd {
    /// Makes a reader; nothing is sent yet.
    ///
    /// # Errors
    /// When certificates, key or addresses cannot be used.
    pub fn new(access: &EtcdAccess) -> Result<Self, AccessError> {
        let identity = match (&access.certificate_pem, &access.key_pem) {
            (Some(chain), Some(key)) => Some((chain.as_str(), key.as_str())),
            _ => None,
        };
        let tls = access.ca_pem.as_deref().map(|ca_pem| {
            let what = "etcd's certificates";
            Trust { what, ca_pem, identity, alpn: &[b"h2"] }.connector()
        });
        let tls = tls.transpose()?;
        let member = |url: &ServerUrl| -> Result<KvClient<Channel>, AccessError> {
            let connector = Connector::new(url, tls.as_ref(), None)?;
            // our connector knows whether it speaks TLS; tonic must not look for its own
            let endpoint = Endpoint::from_shared(format!("http://{}", url.authority()))
                .map_err(|_| AccessError::Url { url: url.to_string() })?
                .timeout(TIMEOUT);
            let channel = endpoint.connect_with_connector_lazy(connector);
            Ok(KvClient::new(channel).max_decoding_message_size(MAX_ANSWER))
        };
        let members = access.servers.iter().map(member).collect::<Result<Vec<_>, _>>()?;
        match members.is_empty() {
            true => Err(AccessError::NoServer),
            false => Ok(Self { members, preferred: 0, page: PAGE }),
        }
    }

    /// Shows every key below `prefix`, with its value, to `visit`: all as they were at one moment,
    /// unless etcd forgets that moment before the end.
    ///
    /// # Errors
    /// When no member answers, or it refuses.
    pub async fn scan(
        &mut self,
        prefix: &str,
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> Result<Scan, EtcdError> {
        let mut scan = Scan::default();
        let end = end_of(prefix.as_bytes());
        let mut next = prefix.as_bytes().to_vec();
        loop {
            let request = RangeRequest {
                key: next.clone(),
                range_end: end.clone(),
                limit: self.page,
                revision: scan.revision,
                ..RangeRequest::default()
            };
            let mut page = match self.range(request).await {
                Ok(page) => page,
                Err(status) => match self.what_next(&status)? {
                    Next::Smaller => continue,
                    Next::Later => {
                        scan = Scan { revision: 0, moved: true, ..scan };
                        continue;
                    }
                },
            };
            if scan.revision == 0 {
                scan.revision = page.header.as_ref().map_or(0, |header| header.revision);
            }
            for pair in &mut page.kvs {
                visit(&pair.key, &pair.value);
                pair.value.zeroize();
                scan.keys += 1;
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    next.clone_from(&last.key);
                    next.push(0);
                }
                _ => return Ok(scan),
            }
        }
    }

    /// At which revision etcd is, and of which one `key` is, if it is there. Its value stays where it is.
    ///
    /// # Errors
    /// When no member answers, or it refuses.
    pub async fn revisions(&mut self, key: &str) -> Result<(i64, Option<i64>), EtcdError> {
        let answer = self.first(key.as_bytes().to_vec(), Vec::new()).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok((revision, answer.kvs.first().map(|pair| pair.mod_revision)))
    }

    /// Whether anything lies below `prefix`.
    ///
    /// # Errors
    /// When no member answers, or it refuses.
    pub async fn has_any(&mut self, prefix: &str) -> Result<bool, EtcdError> {
        let key = prefix.as_bytes().to_vec();
        let end = end_of(&key);
        Ok(!self.first(key, end).await?.kvs.is_empty())
    }

    async fn first(
        &mut self,
        key: Vec<u8>,
        range_end: Vec<u8>,
    ) -> Result<RangeResponse, EtcdError> {
        let head = RangeRequest { limit: 1, keys_only: true, ..RangeRequest::default() };
        match self.range(RangeRequest { key, range_end, ..head }).await {
            Ok(answer) => Ok(answer),
            Err(status) => {
                self.what_next(&status)?;
                Err(EtcdError::Failed { reason: status.message().to_owned() })
            }
        }
    }

    /// Asks the member that answered last, and another if that one is away: reading twice is no
    /// harm.
    async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let count = self.members.len();
        let mut turn = 0;
        loop {
            let index = (self.preferred + turn) % count;
            turn += 1;
            match self.members[index].range(request.clone()).await {
                Err(status) if is_away(&status) && turn < count => {}
                outcome => {
                    self.preferred = index;
                    return outcome.map(tonic::Response::into_inner);
                }
            }
        }
    }

    fn what_next(&mut self, status: &Status) -> Result<Next, EtcdError> {
        let reason = status.message().to_owned();
        match status.code() {
            Code::OutOfRange if reason.contains("compacted") => Ok(Next::Later),
            // our own limit, told by tonic
            Code::OutOfRange | Code::ResourceExhausted if self.page > 1 => {
                self.page = (self.page / 4).max(1);
                Ok(Next::Smaller)
            }
            Code::PermissionDenied | Code::Unauthenticated => Err(EtcdError::Refused { reason }),
            _ if is_away(status) => Err(EtcdError::Unreachable { reason: innermost(status) }),
            _ => Err(EtcdError::Failed { reason }),
        }
    }
}

/// What to do after an answer that is none.
enum Next {
    Smaller,
    Later,
}

/// Whether it is not etcd's own word, but that of a connection which failed or broke: a member that
/// does not take our certificate says so by hanging up, at any moment of the call.
fn is_away(status: &Status) -> bool {
    use std::error::Error as _;
    let code = status.code();
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
        || (status.source().is_some() && code != Code::OutOfRange)
}

/// The words of what was wrong in the first place.
fn innermost(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => cause.to_string(),
    }
}

/// The first key after all that start with `prefix`; a zero byte, etcd's word for the end, if there
/// is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_behind_their_prefix() {
        assert_eq!(end_of(b"/registry/secrets/"), b"/registry/secrets0");
        assert_eq!(end_of(&[1, 0xff]), [2]);
        assert_eq!(end_of(&[0xff]), [0]);
        assert_eq!(end_of(b""), [0]);
    }
}
