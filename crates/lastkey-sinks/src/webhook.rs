//! An HTTP receiver: a POST with a record a line, and 2xx means that all of them arrived.
//!
//! ```text
//! POST /in HTTP/1.1
//! content-type: application/x-ndjson
//! lastkey-first-seq: 104
//! lastkey-last-seq: 203
//! authorization: Bearer …          where there is a token file
//! ```

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::target::{DeliveryError, Trust};

const CONNECT: Duration = Duration::from_secs(10);
/// What an answer may say beside its status.
const MAX_ANSWER: usize = 64 << 10;
/// Nobody is waited for longer than this, whatever they ask for.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A webhook, with at most one connection.
pub(crate) struct Webhook {
    uri: Uri,
    trust: Trust,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Webhook {
    pub(crate) fn new(uri: Uri, trust: Trust) -> Self {
        Self { uri, trust, open: None }
    }

    pub(crate) async fn deliver(&mut self, lines: &[Vec<u8>]) -> Result<(), DeliveryError> {
        let mut connection = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => tokio::time::timeout(CONNECT, self.connect())
                .await
                .map_err(|_| DeliveryError::NoConnection)??,
        };
        connection.ready().await?;
        let answer = connection.send_request(self.request(lines)?).await?;
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        // Read to its end, the connection can be used again.
        if Limited::new(answer.into_body(), MAX_ANSWER).collect().await.is_ok() {
            self.open = Some(connection);
        }
        if status.is_success() {
            return Ok(());
        }
        Err(DeliveryError::Refused { status, retry_after })
    }

    fn request(&self, lines: &[Vec<u8>]) -> Result<Request<Full<Bytes>>, DeliveryError> {
        let mut body = lines.join(&b'\n');
        body.push(b'\n');
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let host = self.uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header(header::USER_AGENT, concat!("lastkey/", env!("CARGO_PKG_VERSION")));
        let mut numbers = lines.iter().filter_map(|line| seq(line));
        if let Some(first) = numbers.next() {
            let last = numbers.next_back().unwrap_or(first);
            request = request.header("lastkey-first-seq", first).header("lastkey-last-seq", last);
        }
        if let Some(token) = &self.trust.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.as_str()))
                .map_err(io::Error::other)?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        Ok(request.body(Full::new(body.into())).map_err(io::Error::other)?)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, DeliveryError> {
        let secure = self.uri.scheme_str() == Some("https");
        let host = self.uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((bare, port)).await?;
        stream.set_nodelay(true)?;
        if !secure {
            return start(TokioIo::new(stream)).await;
        }
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.trust.tls));
        start(TokioIo::new(connector.connect(name, stream).await?)).await
    }
}

async fn start<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, DeliveryError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

fn seq(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_slice::<Numbered>(line).ok().map(|line| line.seq)
}

/// Seconds only: whoever sends a date is asked again as after any failure.
pub(crate) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}
