//! One Status call on a plugin's socket, as an apiserver makes it.

use std::{
    io,
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::{net::UnixStream, time::timeout};

use crate::{proto::v2::StatusResponse, socket::SocketAddress};

/// An apiserver's own timeout.
const PATIENCE: Duration = Duration::from_secs(3);
/// A flag and a length come before each message.
const PREFIX: usize = 5;

/// What a plugin says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The version of the protocol.
    pub version: String,
    /// `ok`, or what is wrong.
    pub healthz: String,
    /// What the apiserver stores beside each object.
    pub key_id: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Nobody can be dialled.
    #[error("cannot dial: {0}")]
    Dial(#[from] io::Error),
    /// The other side does not speak HTTP/2 as a plugin does.
    #[error("it does not answer as a KMS plugin: {0}")]
    Http(#[from] hyper::Error),
    /// The plugin's own refusal.
    #[error("Status fails with code {code}: {message}")]
    Refused {
        /// The gRPC code's number.
        code: String,
        /// For people.
        message: String,
    },
    /// Not in an apiserver's time.
    #[error("no answer within {} s, which is all that an apiserver waits", PATIENCE.as_secs())]
    Late,
    /// No StatusResponse.
    #[error("its answer is none of the KMS v2 protocol")]
    Garbage,
}

/// Asks for Status.
///
/// # Errors
/// When there is no answer, or a failure.
pub async fn ask_status(socket: &SocketAddress) -> Result<Answer, ProbeError> {
    timeout(PATIENCE, ask(socket)).await.unwrap_or(Err(ProbeError::Late))
}

async fn ask(socket: &SocketAddress) -> Result<Answer, ProbeError> {
    let stream = match socket {
        SocketAddress::Path(path) => UnixStream::connect(path).await?,
        SocketAddress::Abstract(name) => {
            let address = SocketAddr::from_abstract_name(name)?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)?
        }
    };
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::post("http://localhost/v2.KeyManagementService/Status")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(&[0; PREFIX])))
        .map_err(|_| ProbeError::Garbage)?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?;
    driver.abort();
    let text = |name: &str| {
        let trailers = body.trailers().and_then(|it| it.get(name));
        let value = trailers.or_else(|| head.headers.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status") {
        Some(code) if code == "0" => {}
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default();
            let message = percent_encoding::percent_decode_str(&message);
            let message = message.decode_utf8_lossy().into_owned();
            return Err(ProbeError::Refused { code, message });
        }
        None => return Err(ProbeError::Garbage),
    }
    let bytes = body.to_bytes();
    let message = bytes.get(PREFIX..).ok_or(ProbeError::Garbage)?;
    let said = StatusResponse::decode(message).map_err(|_| ProbeError::Garbage)?;
    Ok(Answer { version: said.version, healthz: said.healthz, key_id: said.key_id })
}
