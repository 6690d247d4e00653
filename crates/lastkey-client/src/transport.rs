//! Connections to the servers: which one is asked, how it is reached, and what failed.
//!
//! Each server has a pool of its own: one HTTP/2 connection where the server offers it, HTTP/1.1
//! with keep-alive otherwise. A request goes to the server that answered last; the next one is
//! asked only while it is certain that nobody has carried out the call, or where that would do no
//! harm ([`Repeat`]). Whoever answers nonsense, or nothing, is not asked first again.

mod connector;
mod hedge;
mod stream;
pub(crate) mod tls;

use std::{
    borrow::Cow,
    error::Error as StdError,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use connector::{ConnectError, Connector};
use http::{
    HeaderMap, Method, Request, StatusCode,
    uri::{self, Authority, PathAndQuery, Scheme, Uri},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

pub use self::stream::MaybeTls;
use crate::{ApiError, ConfigError, Endpoint, EndpointError, Error, Timeouts, api::Reply};

/// An answer larger than this is no answer of ours: a page of audit records stays far below.
pub(crate) const MAX_ANSWER: usize = 16 << 20;
/// What a server says of itself is a line.
const MAX_READINESS: usize = 4 << 10;
/// A silent connection is probed after this long, and given up after the next constant. A host
/// that came back refuses the probe at once, so this bounds how long its return goes unnoticed.
const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(900);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(2);
/// A connection unused for this long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// One request, before it is addressed to a server and signed.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Starts with a slash, percent-encoded.
    pub(crate) path: Cow<'static, str>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
    /// The longest answer that is read, in bytes.
    pub(crate) limit: usize,
    pub(crate) repeat: Repeat,
}

/// Whether a call may be carried out more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes something.
    Never,
    /// Another server is asked as well when a connection broke, or one does not know what became of
    /// the call, or answers nonsense.
    WhenBroken,
    /// It only asks, and may wait for long, so whoever asks wants to know of every failure.
    Once,
    /// It must be answered soon, by whichever server ([`hedge`]).
    Hedged,
}

/// Which of a server's connections a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Usual,
    /// One that nothing else uses, where the usual one says nothing.
    Spare,
}

/// Takes what came back, or says why that is no answer: then its server is not asked first again,
/// and another one now, where the call allows that. A refusal is an answer.
pub(crate) type Read<'a> = &'a mut (dyn FnMut(Reply) -> Result<(), Error> + Send);

/// All servers of one installation.
pub(crate) struct Transport {
    servers: Vec<Server>,
    /// Index of the one that answered last.
    preferred: AtomicUsize,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

struct Server {
    /// As people write it.
    shown: Arc<str>,
    /// As requests name it.
    scheme: Scheme,
    authority: Authority,
    http: legacy::Client<Connector, Full<Bytes>>,
    spare: legacy::Client<Connector, Full<Bytes>>,
}

impl Transport {
    pub(crate) fn new(
        endpoints: &[Endpoint],
        tls: Option<&tokio_rustls::TlsConnector>,
        timeouts: &Timeouts,
    ) -> Result<Self, ConfigError> {
        let servers = endpoints
            .iter()
            .map(|endpoint| Server::new(endpoint, tls, timeouts))
            .collect::<Result<Vec<_>, _>>()?;
        match servers.is_empty() {
            true => Err(ConfigError::NoServer),
            false => Ok(Self { servers, preferred: AtomicUsize::new(0) }),
        }
    }

    /// Sends the call; `headers` makes those of one server, as a signature covers its name.
    pub(crate) async fn send(
        &self,
        call: &Call,
        headers: impl Fn(&Call, &str) -> HeaderMap + Send + Sync,
        read: Read<'_>,
    ) -> Result<(), Error> {
        if call.repeat == Repeat::Hedged {
            return hedge::send(self, (call, headers), read).await;
        }
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.servers.len();
        let mut turn = 0;
        loop {
            let index = (first + turn) % count;
            let server = &self.servers[index];
            let headers = headers(call, server.authority.as_str());
            let answer = server.ask((call, headers), Way::Usual);
            let outcome = match timeout(call.timeout, answer).await {
                Ok(answer) => answer.and_then(&mut *read),
                Err(_) => Err(server.silent(call.timeout)),
            };
            turn += 1;
            match outcome {
                Err(error) if call.may_go_on_after(&error) && turn < count => {
                    tracing::debug!(%error, "asking the next server");
                }
                Err(error @ (Error::Timeout { .. } | Error::Garbage { .. })) => {
                    // the call must not be repeated, but the next one may have more luck elsewhere
                    self.turn_from(index);
                    return Err(error);
                }
                outcome => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return outcome;
                }
            }
        }
    }
}

impl Transport {
    /// Asks the one after it first, next time.
    fn turn_from(&self, server: usize) {
        self.preferred.store((server + 1) % self.servers.len(), Ordering::Relaxed);
    }

    /// What each server says of itself, in their order; all are asked at the same time.
    pub(crate) async fn readiness(&self, within: Duration) -> Vec<Readiness> {
        let asked = self.servers.iter().map(|server| async move {
            let outcome = match timeout(within, server.is_ready(within)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(server.silent(within)),
            };
            Readiness { server: server.shown.clone(), outcome }
        });
        futures_util::future::join_all(asked).await
    }
}

/// Whether a server would answer calls.
#[derive(Debug)]
pub struct Readiness {
    /// Its address, as people write it.
    pub server: Arc<str>,
    /// Why not.
    pub outcome: Result<(), Error>,
}

impl Call {
    /// Whether another server may be asked after that failure.
    fn may_go_on_after(&self, error: &Error) -> bool {
        match self.repeat {
            Repeat::Once => false,
            Repeat::Never | Repeat::Hedged => error.is_before_the_call(),
            Repeat::WhenBroken => {
                let is_none = matches!(error, Error::Garbage { .. });
                error.is_before_the_call() || error.is_in_the_call() || is_none
            }
        }
    }
}

impl Server {
    fn new(
        endpoint: &Endpoint,
        tls: Option<&tokio_rustls::TlsConnector>,
        timeouts: &Timeouts,
    ) -> Result<Self, ConfigError> {
        let connector = Connector::new(endpoint, tls, timeouts)?;
        let pool = |connector: Connector| {
            legacy::Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
                .http2_keep_alive_timeout(KEEP_ALIVE_ANSWER)
                .http2_keep_alive_while_idle(true)
                .build(connector)
        };
        let (http, spare) = (pool(connector.clone()), pool(connector));
        let scheme = match endpoint {
            Endpoint::Tls { .. } => Scheme::HTTPS,
            Endpoint::Admin(_) => Scheme::HTTP,
        };
        let shown = endpoint.to_string();
        let authority = Authority::try_from(endpoint.authority())
            .map_err(|_| EndpointError::Malformed(shown.clone()))?;
        Ok(Self { shown: shown.into(), scheme, authority, http, spare })
    }

    /// Asks; how long the answer may take is the caller's business.
    ///
    /// Small until it is polled, for it is moved about; what is large lies on the heap.
    fn ask(
        &self,
        (call, headers): (&Call, HeaderMap),
        way: Way,
    ) -> impl Future<Output = Result<Reply, Error>> + use<'_> {
        let connections = match way {
            Way::Usual => &self.http,
            Way::Spare => &self.spare,
        };
        let answer = self.request(call, headers).map(|request| connections.request(request));
        let limit = call.limit;
        async move {
            let answer = answer?.await.map_err(|error| self.failure(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), limit).collect().await;
            let body = body.map_err(|error| self.failure(error.as_ref()))?.to_bytes();
            Reply { server: self.shown.clone(), status, body }.unless_unavailable()
        }
    }

    /// Asks for its own word for it, which costs it nothing and wants no identity.
    async fn is_ready(&self, within: Duration) -> Result<(), Error> {
        let call = Call {
            method: Method::GET,
            path: Cow::Borrowed("/readyz"),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: within,
            limit: MAX_READINESS,
            repeat: Repeat::Never,
        };
        let request = self.request(&call, HeaderMap::new())?;
        let answer = self.http.request(request).await.map_err(|error| self.failure(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), call.limit).collect().await;
        let body = body.map_err(|error| self.failure(error.as_ref()))?.to_bytes();
        match status {
            StatusCode::OK => Ok(()),
            // "not ready: sealed", in words
            StatusCode::SERVICE_UNAVAILABLE => {
                let said = String::from_utf8_lossy(&body);
                let message = said.lines().next().unwrap_or_default().escape_debug().to_string();
                let code = "ServiceUnavailableTemporary".to_owned();
                let (request_id, dependants) = (None, Vec::new());
                Err(ApiError { status, code, message, request_id, dependants }.into())
            }
            _ => Err(Error::Garbage {
                server: self.shown.to_string(),
                what: "it has no answer to /readyz",
            }),
        }
    }

    fn silent(&self, after: Duration) -> Error {
        Error::Timeout { server: self.shown.to_string(), after }
    }

    fn request(&self, call: &Call, headers: HeaderMap) -> Result<Request<Full<Bytes>>, Error> {
        let unusable = |what: &dyn std::fmt::Display| Error::Unreachable {
            server: self.shown.to_string(),
            reason: format!("the request cannot be written: {what}"),
        };
        let target = match &*call.query {
            [] => match call.path {
                Cow::Borrowed(path) => {
                    PathAndQuery::from_maybe_shared(Bytes::from_static(path.as_bytes()))
                }
                Cow::Owned(ref path) => PathAndQuery::try_from(path.as_str()),
            },
            query => {
                let query = crate::signature::acs3::encode_pairs(query);
                PathAndQuery::try_from(format!("{}?{query}", call.path))
            }
        };
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(target.map_err(|error| unusable(&error))?);
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| unusable(&error))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn failure(&self, error: &(dyn StdError + Send + Sync + 'static)) -> Error {
        let server = self.shown.to_string();
        let mut cause: &(dyn StdError + 'static) = error;
        loop {
            if let Some(error) = cause.downcast_ref::<ConnectError>() {
                return error.at(server);
            }
            if let Some(error) = tls_error(cause) {
                return Error::Tls { server, reason: tls::explain(error) };
            }
            if cause.is::<http_body_util::LengthLimitError>() {
                return Error::Garbage { server, what: "the answer is too large" };
            }
            if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
                return Error::Garbage { server, what: "it is not HTTP" };
            }
            match cause.source() {
                Some(source) => cause = source,
                None => return broken(server, cause.to_string()),
            }
        }
    }
}

/// A TLS 1.3 server refuses a client certificate after the handshake, so the alert arrives where
/// the answer was expected, inside an I/O error.
fn tls_error<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    cause.downcast_ref().or_else(|| cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}

/// h2 keeps only the text of an I/O error, so an alert has to be known by it.
fn broken(server: String, reason: String) -> Error {
    match reason.strip_prefix("received fatal alert: ") {
        Some(alert) => Error::Tls { server, reason: tls::explain_alert(alert) },
        None => Error::Broken { server, reason },
    }
}

impl Reply {
    /// Makes a refusal of service an error here already, so that another server is asked, if the
    /// call may be made again.
    fn unless_unavailable(self) -> Result<Self, Error> {
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => self.accepted(),
            _ => Ok(self),
        }
    }
}
