//! The client itself: configuration, one request, and the Alibaba actions.

use std::{
    borrow::Cow,
    fmt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    AccessKey, ClientCertificate, ConfigError, Credentials, Endpoint, Error, Identity,
    api::Reply,
    signature::acs3,
    transport::{Call, MAX_ANSWER, Readiness, Repeat, Transport, tls},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
/// A body of JSON begins with room for so much, which a plugin's calls fit in.
const USUAL_BODY: usize = 512;

/// The headers of most calls.
const USUAL_HEADERS: usize = 2;
/// What the HTTP library adds for a body.
const BODY_HEADERS: usize = 1;
/// What a signature adds.
const SIGNATURE_HEADERS: usize = 5;

/// The version of the KMS OpenAPI that [`Client::alibaba`] speaks.
const KMS_VERSION: &str = "2016-01-20";
/// The version of the STS OpenAPI.
const STS_VERSION: &str = "2015-04-01";

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the TCP connection to one address: what a dead server costs.
    pub connect: Duration,
    /// For the TLS handshake after it.
    pub handshake: Duration,
    /// For a whole call, unless it says otherwise.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(500),
            handshake: Duration::from_secs(1),
            call: Duration::from_secs(10),
        }
    }
}

/// Everything a client is made from.
#[derive(Debug)]
pub struct Config {
    /// Where the servers listen, in the order to try them.
    pub servers: Vec<Endpoint>,
    /// The installation's CA (PEM); needed for every TLS server.
    pub ca_file: Option<PathBuf>,
    /// Who we are.
    pub identity: Identity,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

impl Config {
    /// One server, as a credentials file names it.
    pub fn from_credentials(credentials: Credentials) -> Self {
        let Credentials { endpoint, ca_file, access_key } = credentials;
        let identity = Identity::AccessKey(access_key);
        Self::new(vec![endpoint], Some(ca_file), identity)
    }

    /// Servers that know us by our certificate.
    pub fn mutual_tls(
        servers: Vec<Endpoint>,
        ca_file: PathBuf,
        certificate: ClientCertificate,
    ) -> Self {
        Self::new(servers, Some(ca_file), Identity::Certificate(certificate))
    }

    /// The admin socket of a server on this machine.
    pub fn admin(socket: PathBuf) -> Self {
        Self::new(vec![Endpoint::Admin(socket)], None, Identity::Peer)
    }

    /// Servers that we cannot prove anything to yet: an identity comes by [`Client::reload`].
    pub fn nobody(servers: Vec<Endpoint>, ca_file: PathBuf) -> Self {
        Self::new(servers, Some(ca_file), Identity::Peer)
    }

    fn new(servers: Vec<Endpoint>, ca_file: Option<PathBuf>, identity: Identity) -> Self {
        Self { servers, ca_file, identity, timeouts: Timeouts::default() }
    }
}

/// A connection to the servers of one installation; share it, it pools.
pub struct Client {
    /// Calls under way keep the one that they began with.
    transport: RwLock<Arc<Transport>>,
    /// What another transport is made from.
    parts: Parts,
    access_key: Option<AccessKey>,
    timeout: Duration,
}

struct Parts {
    servers: Vec<Endpoint>,
    ca_file: Option<PathBuf>,
    timeouts: Timeouts,
}

/// The connections that a client had before it got another identity.
#[derive(Debug)]
pub struct Retired(Weak<Transport>);

impl Retired {
    /// Resolves when the last call over them has ended.
    pub async fn gone(&self) {
        while self.0.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Client {
    /// Reads the files the configuration names; connects only with the first call.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let (certificate, access_key) = match config.identity {
            Identity::Certificate(files) => (Some(files), None),
            Identity::AccessKey(key) => (None, Some(key)),
            Identity::Peer => (None, None),
        };
        let Config { servers, ca_file, timeouts, .. } = config;
        let parts = Parts { servers, ca_file, timeouts };
        let transport = RwLock::new(Arc::new(parts.transport(certificate.as_ref())?));
        Ok(Self { transport, parts, access_key, timeout: timeouts.call })
    }

    /// Shows another certificate from here on, over new connections. Calls under way end over the
    /// old ones, which close after them.
    ///
    /// # Errors
    /// [`ConfigError`] if the files cannot be used; everything stays as it was then.
    pub fn reload(&self, certificate: &ClientCertificate) -> Result<Retired, ConfigError> {
        let next = Arc::new(self.parts.transport(Some(certificate))?);
        let mut current = self.transport.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Retired(Arc::downgrade(&std::mem::replace(&mut *current, next))))
    }

    /// Whether each of the servers would answer calls, in their order; none is waited for longer than
    /// `within`. Calls ask the one that answered last, so they tell nothing of the others.
    pub async fn readiness(&self, within: Duration) -> Vec<Readiness> {
        self.transport().readiness(within).await
    }

    fn transport(&self) -> Arc<Transport> {
        Arc::clone(&self.transport.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The addresses that are asked.
    pub fn servers(&self) -> &[Endpoint] {
        &self.parts.servers
    }

    /// Calls an action of the Alibaba KMS API, or `AssumeRole…` of its STS; parameters travel in
    /// the form body, so that none ends in an access log.
    pub async fn alibaba(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Value, Error> {
        self.alibaba_as(action, parameters, Reply::json).await
    }

    pub(crate) async fn alibaba_as<T: Send>(
        &self,
        action: &str,
        parameters: &[(&str, &str)],
        read: fn(Reply) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let sts = action.starts_with("AssumeRole") || action == "GetCallerIdentity";
        let version = if sts { STS_VERSION } else { KMS_VERSION };
        let request = self
            .request(Method::POST, "/")
            .header("x-acs-action", action)
            .header("x-acs-version", version)
            .form(parameters);
        request.read(read).await
    }

    /// `GET` on a native route, for answers that have no type of their own.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Error> {
        self.request(Method::GET, path.to_owned()).query(owned(query)).answer().await
    }

    /// `POST` of a JSON body to a native route.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.request(Method::POST, path.to_owned()).json(body).answer().await
    }

    /// `DELETE` on a native route.
    pub async fn delete(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Error> {
        self.request(Method::DELETE, path.to_owned()).query(owned(query)).answer().await
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: impl Into<Cow<'static, str>>,
    ) -> RequestBuilder<'_> {
        let mut headers = HeaderMap::with_capacity(USUAL_HEADERS);
        headers.insert(header::ACCEPT, JSON);
        let call = Call {
            method,
            path: path.into(),
            query: Vec::new(),
            headers,
            body: Bytes::new(),
            timeout: self.timeout,
            limit: MAX_ANSWER,
            repeat: Repeat::Never,
        };
        RequestBuilder { client: self, call }
    }

    /// The headers of one call to one server. Where they are signed, all are, so the date is fresh
    /// and the host is named; without a signature the library names it, as the protocol wants it.
    fn headers(&self, call: &Call, host: &str) -> HeaderMap {
        // A clone has no room left, and would be moved for the first header that is added.
        let signed = if self.access_key.is_some() { SIGNATURE_HEADERS } else { 0 };
        let mut headers = HeaderMap::with_capacity(call.headers.len() + BODY_HEADERS + signed);
        for (name, value) in &call.headers {
            headers.append(name, value.clone());
        }
        if let Some(key) = &self.access_key {
            sign(call, (&mut headers, host), key);
        }
        headers
    }
}

impl Parts {
    fn transport(&self, certificate: Option<&ClientCertificate>) -> Result<Transport, ConfigError> {
        let tls = match &self.ca_file {
            Some(ca) => Some(tls::connector(ca, certificate)?),
            None => None,
        };
        Transport::new(&self.servers, tls.as_ref(), &self.timeouts)
    }
}

/// Adds what the signature needs, and the signature.
fn sign(call: &Call, (headers, host): (&mut HeaderMap, &str), key: &AccessKey) {
    let content_hash = acs3::content_hash(&call.body);
    // the wire's form has whole seconds
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    add(headers, header::HOST, host);
    add(headers, HeaderName::from_static(acs3::DATE), &now);
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    add(headers, HeaderName::from_static(acs3::NONCE), &nonce);
    add(headers, HeaderName::from_static(acs3::CONTENT_HASH), &content_hash);
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).ok();
    let signed: Vec<_> =
        headers.iter().filter_map(|(name, value)| Some((name.as_str(), text(value)?))).collect();
    let request = acs3::Request {
        method: call.method.as_str(),
        path: &call.path,
        query: &call.query,
        headers: &signed,
        content_hash: &content_hash,
    };
    let authorization = acs3::authorization(request, key);
    add(headers, header::AUTHORIZATION, &authorization);
}

/// Leaves out only a value with control characters, which then fails the signature, not us.
fn add(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// One request on its way out.
pub(crate) struct RequestBuilder<'a> {
    client: &'a Client,
    call: Call,
}

impl RequestBuilder<'_> {
    pub(crate) fn query(mut self, query: Vec<(String, String)>) -> Self {
        self.call.query = query;
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        add(&mut self.call.headers, HeaderName::from_static(name), value);
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.call.timeout = timeout;
        self
    }

    /// The longest answer, in bytes; more is garbage.
    pub(crate) fn limit(mut self, limit: usize) -> Self {
        self.call.limit = limit;
        self
    }

    /// It may be carried out more than once.
    pub(crate) fn repeat(mut self, repeat: Repeat) -> Self {
        self.call.repeat = repeat;
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        let mut json = Vec::with_capacity(USUAL_BODY);
        serde_json::to_writer(&mut json, body).expect("our own types have string keys only");
        self.call.body = json.into();
        self.call.headers.insert(header::CONTENT_TYPE, JSON);
        self
    }

    pub(crate) fn form(mut self, parameters: &[(&str, &str)]) -> Self {
        self.call.body = acs3::encode_pairs(&owned(parameters)).into();
        self.call.headers.insert(header::CONTENT_TYPE, FORM);
        self
    }

    /// Sends it. What came back is an answer if it can be read so, or refuses in our words.
    pub(crate) async fn read<T: Send>(
        self,
        read: fn(Reply) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Self { client, call } = self;
        let mut value = None;
        let mut take = |reply| {
            value = Some(read(reply)?);
            Ok(())
        };
        client.transport().send(&call, |call, host| client.headers(call, host), &mut take).await?;
        Ok(value.expect("a call that succeeded has been read"))
    }

    /// Sends it; the answer is JSON.
    pub(crate) async fn answer<T: DeserializeOwned + Send>(self) -> Result<T, Error> {
        self.read(Reply::json).await
    }
}
