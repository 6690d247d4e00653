//! A client of a cluster's apiservers.

mod discovery;

use std::{
    error::Error as StdError,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Buf as _, Bytes, buf::Chain};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use super::{
    Access, AccessError, ApiError, Credential, Object, Page, Resource, ServerUrl,
    connect::{Connector, Trust},
    error::{Answer, Told},
    object::{Form, zeroed_when_dropped},
    packed,
};

/// The largest answer that is read: a page of Secrets of a megabyte each has to be smaller.
const MAX_BODY: usize = 64 << 20;
/// The longest that one call may take; an apiserver itself gives up after a minute.
const TIMEOUT: Duration = Duration::from_secs(65);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const AGENT: &str = concat!("lastkey/", env!("CARGO_PKG_VERSION"));

/// What a list carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// Whole objects, in JSON.
    #[default]
    Whole,
    /// Whole objects, in protobuf where the apiserver has it, as for all of its own kinds; else in
    /// JSON. An apiserver has less work with that.
    Packed,
    /// Their metadata alone: no value leaves the apiserver.
    Metadata,
}

/// Which page of which list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery<'a> {
    /// Of this namespace; `None` for all.
    pub namespace: Option<&'a str>,
    /// At most so many objects.
    pub limit: u32,
    /// Where the page before ended.
    pub next: Option<&'a str>,
    /// Whole objects or not.
    pub shape: Shape,
}

/// An answer that is no refusal.
pub struct Reply {
    /// HTTP.
    pub status: StatusCode,
    /// Zeroed when it is dropped.
    pub body: Bytes,
}

/// The apiservers of one cluster, each reached by itself.
///
/// Calls go to the one that answered last; another is asked only if the call cannot have been
/// carried out. What must be known of each of them (`/metrics`, `/readyz`) names which.
pub struct ApiServer {
    servers: Vec<Server>,
    preferred: AtomicUsize,
    authorization: Option<HeaderValue>,
}

struct Server {
    url: ServerUrl,
    connector: Connector,
    http: legacy::Client<Connector, Full<Body>>,
}

/// What is sent: what stands before an object, and the object where it lies in its page.
type Body = Chain<Bytes, Bytes>;

/// One request.
#[derive(Clone)]
struct Call<'a> {
    method: Method,
    /// Starts with a slash, encoded, with its query.
    target: &'a str,
    accept: &'static str,
    content_type: &'static str,
    head: Bytes,
    body: Bytes,
}

impl<'a> Call<'a> {
    fn get(target: &'a str) -> Self {
        let (accept, content_type) = (JSON, JSON);
        let (head, body) = (Bytes::new(), Bytes::new());
        Self { method: Method::GET, target, accept, content_type, head, body }
    }

    fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or_default()
    }
}

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Custom resources, and what some aggregated apiservers have, are to be had in JSON only.
const PACKED: &str = "application/vnd.kubernetes.protobuf, application/json";
/// What a write is answered with: of the object, only what it is called and which version it has.
const WRITTEN: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, \
                       application/vnd.kubernetes.protobuf";
/// Falls back to whole objects where metadata alone is not to be had, which no release does.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

impl ApiServer {
    /// Makes a client; nothing is sent yet.
    ///
    /// # Errors
    /// When certificates, key or addresses cannot be used.
    pub fn new(access: &Access) -> Result<Self, AccessError> {
        let (identity, authorization) = match &access.credential {
            Credential::Certificate { certificate_pem, key_pem } => {
                (Some((certificate_pem.as_str(), key_pem.as_str())), None)
            }
            Credential::Token { token, .. } => {
                let header = Zeroizing::new(format!("Bearer {}", token.trim()));
                let mut value = HeaderValue::from_str(&header).map_err(|_| AccessError::Token)?;
                value.set_sensitive(true);
                (None, Some(value))
            }
        };
        let trust = Trust {
            what: "the cluster's certificates",
            ca_pem: &access.ca_pem,
            identity,
            alpn: &[b"h2", b"http/1.1"],
        };
        let tls = trust.connector()?;
        let name = access.tls_server_name.as_deref();
        let server = |url: &ServerUrl| {
            // a credential never goes out in clear
            let wrong = || AccessError::Url { url: url.to_string() };
            let url = Some(url).filter(|url| url.is_tls()).ok_or_else(wrong)?;
            let connector = Connector::new(url, Some(&tls), name)?;
            let http = legacy::Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
                .http2_adaptive_window(true)
                .build(connector.clone());
            Ok(Server { url: url.clone(), connector, http })
        };
        let servers: Vec<_> = access.servers.iter().map(server).collect::<Result<_, _>>()?;
        match servers.is_empty() {
            true => Err(AccessError::NoServer),
            false => Ok(Self { servers, preferred: AtomicUsize::new(0), authorization }),
        }
    }

    /// Their addresses, in the order that [`ApiServer::metrics`] and others count them by.
    pub fn urls(&self) -> impl ExactSizeIterator<Item = &ServerUrl> {
        self.servers.iter().map(|server| &server.url)
    }

    /// One page of a list. Pages go on with [`Page::next`].
    ///
    /// # Errors
    /// [`ApiError::Expired`] when `next` is too old; [`ApiError::TooLarge`] when the page does not
    /// fit into 64 MiB: ask for fewer.
    pub async fn list(&self, of: &Resource, query: &ListQuery<'_>) -> Result<Page, ApiError> {
        let mut target = format!("{}?limit={}", of.list_path(query.namespace), query.limit);
        if let Some(next) = query.next {
            target += &format!("&continue={}", utf8_percent_encode(next, NON_ALPHANUMERIC));
        }
        let accept = match query.shape {
            Shape::Whole => JSON,
            Shape::Packed => PACKED,
            Shape::Metadata => METADATA,
        };
        let reply = self.send(&Call { accept, ..Call::get(&target) }).await?;
        Page::parse(&reply.body).ok_or_else(|| self.garbage("something that is not a list"))
    }

    /// Whether there is a namespace of that name; `None` where the account may not know.
    ///
    /// # Errors
    /// When the apiserver cannot be asked.
    pub async fn has_namespace(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        match self.send(&Call::get(&format!("/api/v1/namespaces/{name}"))).await {
            Ok(_) => Ok(Some(true)),
            Err(ApiError::NotFound) => Ok(Some(false)),
            Err(ApiError::Forbidden { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One object as etcd has it now.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] among others.
    pub async fn get(&self, of: &Resource, ns: &str, name: &str) -> Result<Object, ApiError> {
        let reply = self.send(&Call::get(&of.object_path(ns, name))).await?;
        self.object(reply)
    }

    /// An object that was listed, as etcd has it now and in the form that it was listed in; it may be
    /// another one of that name. `None` once an apiserver has said of this very name that there is no
    /// such object.
    ///
    /// # Errors
    /// When it does not say either: [`ApiError::NotFound`] is that of a path that nobody serves (any
    /// more), of a kind that was deleted or of a proxy on the way, and tells nothing of the object.
    pub async fn get_again(
        &self,
        of: &Resource,
        listed: &Object,
    ) -> Result<Option<Object>, ApiError> {
        let path = of.object_path(&listed.meta().namespace, &listed.meta().name);
        let accept = match listed.form() {
            Form::Json => JSON,
            Form::Protobuf => PACKED,
        };
        let call = Call { accept, ..Call::get(&path) };
        let answered = self.reach(&call).await?;
        if answered.0 == StatusCode::NOT_FOUND {
            let told = Told::read(&answered.2).unwrap_or_default();
            if told.reason == "NotFound" && told.about == listed.meta().name {
                return Ok(None);
            }
        }
        self.object(accepted(&call, answered)?).map(Some)
    }

    /// Writes an object back exactly as it was read. The apiserver writes to etcd only if it would
    /// store it differently now, so an answer with the same resource version wrote nothing.
    ///
    /// The object's own uid and resource version are preconditions: what was changed, deleted or
    /// made anew since it was read is left alone. Of the answer only [`Object::meta`] means anything.
    ///
    /// # Errors
    /// [`ApiError::Conflict`], [`ApiError::NotFound`], [`ApiError::Refused`] among others;
    /// [`ApiError::Invalid`] for an object without both preconditions, which is not sent.
    pub async fn put_back(&self, of: &Resource, object: &Object) -> Result<Object, ApiError> {
        self.put(None, of, object).await
    }

    /// The same by one apiserver.
    ///
    /// # Errors
    /// As [`ApiServer::put_back`].
    pub async fn put_back_at(
        &self,
        server: usize,
        of: &Resource,
        object: &Object,
    ) -> Result<Object, ApiError> {
        self.put(Some(server), of, object).await
    }

    async fn put(
        &self,
        server: Option<usize>,
        of: &Resource,
        object: &Object,
    ) -> Result<Object, ApiError> {
        let meta = object.meta();
        for (field, value) in [("uid", &meta.uid), ("resourceVersion", &meta.resource_version)] {
            if value.is_empty() {
                return Err(ApiError::Invalid { fields: vec![format!("metadata.{field}")] });
            }
        }
        // It was stored so: whether its fields are known need not be told.
        let mut target = of.object_path(&meta.namespace, &meta.name);
        target += "?fieldValidation=Ignore";
        let body = object.raw();
        let call = match object.form() {
            Form::Json => Call { method: Method::PUT, body, ..Call::get(&target) },
            Form::Protobuf => {
                let (head, method) = (packed::head(of, body.len()), Method::PUT);
                let (accept, content_type) = (WRITTEN, PROTOBUF);
                Call { method, target: &target, accept, content_type, head, body }
            }
        };
        let reply = match server {
            Some(server) => {
                self.server(server)?.exchange(&call, self.authorization.as_ref()).await?
            }
            None => self.send(&call).await?,
        };
        self.object(reply)
    }

    /// Any other read; `target` is path and query, encoded.
    ///
    /// # Errors
    /// When it is not answered with a success.
    pub async fn read(&self, target: &str) -> Result<Reply, ApiError> {
        self.send(&Call::get(target)).await
    }

    /// Any other JSON that is sent: `POST`, `PUT`, `DELETE`, `PATCH` (server-side apply with force,
    /// for an owner named by `target`'s query).
    ///
    /// # Errors
    /// When it is not answered with a success.
    pub async fn write(
        &self,
        method: Method,
        target: &str,
        body: &serde_json::Value,
    ) -> Result<Reply, ApiError> {
        let content_type = match method {
            // JSON is YAML
            Method::PATCH => "application/apply-patch+yaml",
            _ => JSON,
        };
        let body = Bytes::from(body.to_string());
        self.send(&Call { method, body, content_type, ..Call::get(target) }).await
    }

    /// What one apiserver answers, whatever its status. Its words may quote what was sent or what is
    /// stored: only for objects that are no secrets, such as those that a drill has made.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn answer(
        &self,
        server: usize,
        method: Method,
        (target, body): (&str, Option<&serde_json::Value>),
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let call = Call { method, body, ..Call::get(target) };
        let server = self.server(server)?;
        let (status, _, body) = server.answer(&call, self.authorization.as_ref()).await?;
        Ok((status, body))
    }

    /// What one apiserver measures, as Prometheus' text.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn metrics(&self, server: usize) -> Result<String, ApiError> {
        let call = Call { accept: "text/plain", ..Call::get("/metrics") };
        let reply = self.server(server)?.exchange(&call, self.authorization.as_ref()).await?;
        String::from_utf8(reply.body.into()).map_err(|_| self.garbage("metrics that are not text"))
    }

    /// Whether one apiserver is ready; else the names of the checks that fail.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn readyz(&self, server: usize) -> Result<Result<(), Vec<String>>, ApiError> {
        let call = Call { accept: "text/plain", ..Call::get("/readyz?verbose") };
        let server = self.server(server)?;
        let (status, _, body) = server.answer(&call, self.authorization.as_ref()).await?;
        if status.is_success() {
            return Ok(Ok(()));
        }
        if matches!(status.as_u16(), 401 | 403) {
            let answer = Answer { method: &call.method, path: call.path(), body: &body };
            return Err(ApiError::from_answer(status, None, &answer));
        }
        let text = String::from_utf8_lossy(&body);
        let failed = text.lines().filter_map(|line| line.strip_prefix("[-]"));
        Ok(Err(failed.map(|l| l.split(' ').next().unwrap_or_default().to_owned()).collect()))
    }

    /// The serving certificate of one apiserver (DER), if it can be reached.
    pub async fn certificate(&self, server: usize) -> Option<Vec<u8>> {
        self.servers.get(server)?.connector.certificate().await
    }

    fn object(&self, reply: Reply) -> Result<Object, ApiError> {
        Object::parse(reply.body).ok_or_else(|| self.garbage("something that is not an object"))
    }

    fn garbage(&self, what: &'static str) -> ApiError {
        let index = self.preferred.load(Ordering::Relaxed);
        let server = self.servers.get(index).map(|server| server.url.to_string());
        ApiError::Garbage { server: server.unwrap_or_default(), what }
    }

    fn server(&self, index: usize) -> Result<&Server, ApiError> {
        self.servers.get(index).ok_or(ApiError::NotFound)
    }

    async fn send(&self, call: &Call<'_>) -> Result<Reply, ApiError> {
        accepted(call, self.reach(call).await?)
    }

    /// The answer of the first apiserver that may have carried the call out.
    async fn reach(&self, call: &Call<'_>) -> Result<Answered, ApiError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.servers.len();
        let mut turn = 0;
        loop {
            let index = (first + turn) % count;
            turn += 1;
            match self.servers[index].answer(call, self.authorization.as_ref()).await {
                Err(error) if error.is_before_the_call() && turn < count => {
                    tracing::debug!(%error, "asking the next apiserver");
                }
                outcome => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return outcome;
                }
            }
        }
    }
}

/// Status, headers and body.
type Answered = (StatusCode, HeaderMap, Bytes);

/// A success, or an error.
fn accepted(call: &Call<'_>, (status, headers, body): Answered) -> Result<Reply, ApiError> {
    if status.is_success() {
        return Ok(Reply { status, body });
    }
    let wait = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait = wait.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let answer = Answer { method: &call.method, path: call.path(), body: &body };
    Err(ApiError::from_answer(status, wait, &answer))
}

impl Server {
    /// A success, or an error.
    async fn exchange(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, ApiError> {
        accepted(call, self.answer(call, authorization).await?)
    }

    async fn answer(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answered, ApiError> {
        let request = self.request(call, authorization)?;
        let work = async {
            let answer = self.http.request(request).await.map_err(|error| self.failure(&error))?;
            let (head, body) = answer.into_parts();
            Ok((head.status, head.headers, self.collect(body).await?))
        };
        tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", TIMEOUT.as_secs());
            Err(ApiError::NoAnswer { server: self.url.to_string(), reason })
        })
    }

    fn request(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Full<Body>>, ApiError> {
        let wrong = |_| ApiError::Unreachable {
            server: self.url.to_string(),
            reason: "the request cannot be written".to_owned(),
        };
        let uri = Uri::builder()
            .scheme(self.url.scheme())
            .authority(self.url.authority())
            .path_and_query(format!("{}{}", self.url.prefix, call.target))
            .build()
            .map_err(wrong)?;
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(uri)
            .header(header::ACCEPT, call.accept)
            .header(header::USER_AGENT, AGENT);
        if !call.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, call.content_type);
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let body = call.head.clone().chain(call.body.clone());
        request.body(Full::new(body)).map_err(wrong)
    }

    /// Reads a body into memory that is zeroed afterwards.
    async fn collect(&self, mut body: Incoming) -> Result<Bytes, ApiError> {
        let mut read = Zeroizing::new(Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::NoAnswer {
                server: self.url.to_string(),
                reason: innermost(&error),
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > MAX_BODY {
                return Err(ApiError::TooLarge { limit: MAX_BODY });
            }
            grow(&mut read, data.len());
            read.extend_from_slice(&data);
        }
        Ok(zeroed_when_dropped(read))
    }

    fn failure(&self, error: &legacy::Error) -> ApiError {
        let (server, reason) = (self.url.to_string(), innermost(error));
        match error.is_connect() {
            true => ApiError::Unreachable { server, reason },
            false => ApiError::NoAnswer { server, reason },
        }
    }
}

/// Makes room without leaving a copy of what was read behind.
fn grow(read: &mut Zeroizing<Vec<u8>>, more: usize) {
    let wanted = read.len() + more;
    if wanted > read.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(wanted.next_power_of_two()));
        larger.extend_from_slice(read);
        *read = larger;
    }
}

/// The words of what was wrong in the first place.
fn innermost(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
