//! A small blocking HTTP/1.1 client, over TLS or not: one connection a request.

use crate::Error;
use crate::pki::Pair;
use crate::session::{Session, Stream};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any server here lets a request run.
const TIMEOUT: Duration = Duration::from_secs(70);

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Itself when the status is 2xx.
    ///
    /// # Errors
    /// [`Error::Answer`] otherwise.
    pub fn expect_ok(self, what: &str) -> Result<Self, Error> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let body = self.text().chars().take(2000).collect();
        Err(Error::Answer { what: what.to_owned(), status: self.status, body })
    }
}

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    address: String,
    tls: Option<Arc<ClientConfig>>,
}

impl Client {
    /// A client without TLS of `host:port`.
    #[must_use]
    pub fn plain(address: &str) -> Self {
        Self { address: address.to_owned(), tls: None }
    }

    /// A client of `host:port` that trusts `ca` (PEM) and shows `identity`, if any.
    ///
    /// # Errors
    /// When a certificate or key cannot be read.
    pub fn tls(address: &str, ca: &str, identity: Option<&Pair>) -> Result<Self, Error> {
        let broken =
            |cause: String| Error::Request { method: "TLS".into(), url: address.to_owned(), cause };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            let certificate = certificate.map_err(|e| broken(e.to_string()))?;
            roots.add(certificate).map_err(|e| broken(e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| broken(e.to_string()))?
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes());
                let chain: Result<Vec<_>, _> = chain.collect();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes());
                let chain = chain.map_err(|e| broken(e.to_string()))?;
                let key = key.map_err(|e| broken(e.to_string()))?;
                config.with_client_auth_cert(chain, key).map_err(|e| broken(e.to_string()))?
            }
        };
        Ok(Self { address: address.to_owned(), tls: Some(Arc::new(config)) })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub fn get(&self, path: &str) -> Result<Response, Error> {
        self.send("GET", path, None)
    }

    /// Sends JSON, or nothing, and gives the answer whatever its status.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response, Error> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: application/json, */*\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len(),
        );
        let raw = self.exchange(request.as_bytes());
        raw.and_then(|raw| parse(&raw)).map_err(|cause| Error::Request {
            method: method.to_owned(),
            url: format!("{}{path}", self.address),
            cause,
        })
    }

    /// A connection of its own that is kept.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn exchange(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        talk(self.connect()?, request)
    }

    pub(crate) fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let socket = TcpStream::connect(&self.address).map_err(|e| e.to_string())?;
        socket.set_read_timeout(Some(TIMEOUT)).map_err(|e| e.to_string())?;
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        let Some(config) = &self.tls else { return Ok(Box::new(socket)) };
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let connection = ClientConnection::new(Arc::clone(config), name);
        Ok(Box::new(StreamOwned::new(connection.map_err(|e| e.to_string())?, socket)))
    }
}

fn talk(mut stream: impl Read + Write, request: &[u8]) -> Result<Vec<u8>, String> {
    stream.write_all(request).and_then(|()| stream.flush()).map_err(|e| e.to_string())?;
    let mut raw = Vec::new();
    match stream.read_to_end(&mut raw) {
        // A server may close without TLS's goodbye; the framing below shows a cut answer.
        Err(error) if raw.is_empty() => Err(error.to_string()),
        _ => Ok(raw),
    }
}

fn parse(raw: &[u8]) -> Result<Response, String> {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").ok_or("no complete HTTP answer")?;
    let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status line")?;
    let body = &raw[end + 4..];
    let header = |name: &str| {
        head.lines().filter_map(|l| l.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    };
    if header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        return Ok(Response { status, body: dechunk(body)? });
    }
    let length = header("content-length").and_then(|v| v.trim().parse::<usize>().ok());
    match length {
        Some(length) if body.len() < length => Err("the answer was cut off".to_owned()),
        _ => Ok(Response { status, body: body.to_vec() }),
    }
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").ok_or("the answer was cut off")?;
        let size = String::from_utf8_lossy(&rest[..line]);
        let size = usize::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16);
        let size = size.map_err(|e| format!("chunk size: {e}"))?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..size).ok_or("the answer was cut off")?);
        rest = rest.get(size + 2..).ok_or("the answer was cut off")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_and_cuts_are_seen() {
        let raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(raw).unwrap().body, b"abcde");
        assert!(parse(&raw[..raw.len() - 8]).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc").is_err());
    }
}
