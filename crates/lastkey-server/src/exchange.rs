//! One request, read whole, and its reply.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use lastkey_engine::{Principal, RequestId, Source, Timestamp};
use rustls_pki_types::CertificateDer;

use crate::{room::Gate, tls::Shown};

/// Who is at the other end of a connection, as far as the connection proves it.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// Somebody over TLS.
    Tls {
        /// From where.
        address: SocketAddr,
        /// Who it is by its certificate.
        shown: Shown,
    },
    /// A process of this machine over the admin socket; its user was checked when it connected.
    Admin {
        /// Its user.
        uid: u32,
        /// Its process.
        pid: i32,
    },
}

impl Peer {
    /// Where commands of this peer come from.
    pub(crate) fn source(&self) -> Source {
        match self {
            Self::Tls { address, .. } => Source::Network(*address),
            Self::Admin { pid, .. } => Source::Socket { pid: *pid },
        }
    }

    /// Who this peer is without a signature, at this time.
    pub(crate) fn principal(&self, now: Timestamp) -> Option<Principal> {
        match self {
            Self::Tls { shown: Shown::Plugin(plugin), .. } if plugin.not_after >= now => {
                Some(Principal::Plugin {
                    cluster: plugin.cluster,
                    name: plugin.name.clone(),
                    fingerprint: plugin.fingerprint.clone(),
                })
            }
            Self::Tls { .. } => None,
            Self::Admin { uid, .. } => Some(Principal::Local { uid: *uid }),
        }
    }

    /// Whether it has shown a certificate of ours that has ended by this time.
    pub(crate) fn has_ended(&self, now: Timestamp) -> bool {
        match self {
            Self::Tls { shown: Shown::Plugin(plugin), .. } => plugin.not_after < now,
            Self::Tls { shown: Shown::Ended, .. } => true,
            Self::Tls { .. } | Self::Admin { .. } => false,
        }
    }

    /// Where it is, unless its connection proves who it is. A certificate that has ended meanwhile
    /// is good enough for that.
    pub(crate) fn stranger(&self) -> Option<IpAddr> {
        match self {
            Self::Tls { shown: Shown::Plugin(_), .. } | Self::Admin { .. } => None,
            Self::Tls { address, .. } => Some(address.ip()),
        }
    }

    /// What it has shown of a CA that is not ours; good for a request to enrol alone.
    pub(crate) fn foreign(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Tls { shown: Shown::Foreign(chain), .. } => Some(chain),
            _ => None,
        }
    }
}

/// A request that was read whole.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    /// Method, address and headers.
    pub(crate) head: http::request::Parts,
    /// The body.
    pub(crate) body: Bytes,
    /// Who sent it.
    pub(crate) peer: &'a Peer,
    /// Its id.
    pub(crate) request_id: RequestId,
    /// Where its sender waits for a place, once it is known who that is.
    pub(crate) gate: Gate<'a>,
}

impl Exchange<'_> {
    pub(crate) fn path(&self) -> &str {
        self.head.uri.path()
    }

    pub(crate) fn query(&self) -> &str {
        self.head.uri.query().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, if it says that it is a form.
    pub(crate) fn form(&self) -> &[u8] {
        const FORM: &str = "application/x-www-form-urlencoded";
        let is_form = self.header("content-type").is_some_and(|kind| {
            kind.get(..FORM.len()).is_some_and(|start| start.eq_ignore_ascii_case(FORM))
        });
        if is_form { &self.body } else { &[] }
    }
}

/// What goes back, and what the metrics say about it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
    /// Which operation it was, by a name of ours.
    pub(crate) action: &'static str,
    /// `ok` or the error's code.
    pub(crate) outcome: &'static str,
}

pub(crate) const TEXT: &str = "text/plain;charset=utf-8";
pub(crate) const JSON: &str = "application/json";

impl Reply {
    pub(crate) fn text(status: StatusCode, action: &'static str, body: impl Into<Bytes>) -> Self {
        let outcome = if status.is_success() { "ok" } else { "refused" };
        Self { status, content_type: TEXT, body: body.into(), action, outcome }
    }

    /// The response; a client that came too early is told when to come again.
    ///
    /// It is written into `headers`, which come in as they may: the map of the request does, whose
    /// memory the HTTP/1 library then takes for the headers of the connection's next request.
    pub(crate) fn into_response(self, mut headers: HeaderMap) -> Response<Full<Bytes>> {
        let busy =
            matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        // What is left of a body that we do not read must not be taken for a request.
        let unread =
            matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT);
        headers.clear();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        // Answers hold plaintexts.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if unread {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if busy {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use lastkey_crypto::{ClusterId, SystemEntropy};

    use super::*;
    use crate::tls::PluginCertificate;

    /// A connection outlives the certificate that it began with.
    #[test]
    fn a_certificate_that_has_ended_is_nobody_and_is_known() {
        let ends = Timestamp::from_millis(1_000);
        let plugin = PluginCertificate {
            cluster: ClusterId::random(&SystemEntropy),
            name: "plugin".into(),
            fingerprint: "print".into(),
            not_after: ends,
        };
        let by = |shown| Peer::Tls { address: (Ipv4Addr::LOCALHOST, 1).into(), shown };
        let late = ends.after(Duration::from_millis(1));
        let peer = by(Shown::Plugin(plugin));
        assert!(peer.principal(ends).is_some() && !peer.has_ended(ends));
        assert!(peer.principal(late).is_none() && peer.has_ended(late));
        assert!(by(Shown::Ended).principal(ends).is_none() && by(Shown::Ended).has_ended(ends));
        assert!(!by(Shown::Nobody).has_ended(late));
    }
}
