//! Opens a connection to one server.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::{stream::MaybeTls, tls};
use crate::{ConfigError, Endpoint, EndpointError, Error, Timeouts};

/// How long an address has before the next one is tried as well.
const STAGGER: Duration = Duration::from_millis(100);

/// Makes connections to one server, whatever URI hyper passes.
#[derive(Clone)]
pub(super) struct Connector(Arc<Target>);

enum Target {
    Tls {
        host: String,
        port: u16,
        name: ServerName<'static>,
        tls: TlsConnector,
        connect: Duration,
        handshake: Duration,
    },
    Unix {
        path: PathBuf,
        connect: Duration,
    },
}

/// Why there is no connection; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Unreachable(#[source] io::Error),
    #[error("{0}")]
    Handshake(#[source] io::Error),
}

impl ConnectError {
    pub(super) fn at(&self, server: String) -> Error {
        match self {
            Self::Unreachable(error) => Error::Unreachable { server, reason: error.to_string() },
            Self::Handshake(error) => {
                match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(told) => Error::Tls { server, reason: tls::explain(told) },
                    // silence, or a connection that broke: nobody has said who they are
                    None => {
                        let reason = format!("no answer to the TLS handshake: {error}");
                        Error::Unreachable { server, reason }
                    }
                }
            }
        }
    }
}

impl Connector {
    pub(super) fn new(
        endpoint: &Endpoint,
        tls: Option<&TlsConnector>,
        timeouts: &Timeouts,
    ) -> Result<Self, ConfigError> {
        let connect = timeouts.connect;
        let target = match endpoint {
            Endpoint::Admin(path) => Target::Unix { path: path.clone(), connect },
            Endpoint::Tls { host, port } => Target::Tls {
                name: ServerName::try_from(host.clone())
                    .map_err(|_| EndpointError::Malformed(endpoint.to_string()))?,
                host: host.clone(),
                port: *port,
                tls: tls.ok_or(ConfigError::NoCa { suggestion: "DATA_DIR/ca.pem" })?.clone(),
                connect,
                handshake: timeouts.handshake,
            },
        };
        Ok(Self(Arc::new(target)))
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeTls<UnixStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<MaybeTls<UnixStream>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move { target.connect().await })
    }
}

impl Target {
    async fn connect(&self) -> Result<MaybeTls<UnixStream>, ConnectError> {
        match self {
            Self::Unix { path, connect } => {
                let stream = in_time(*connect, UnixStream::connect(path)).await;
                Ok(MaybeTls::Plain(TokioIo::new(stream.map_err(ConnectError::Unreachable)?)))
            }
            Self::Tls { host, port, name, tls, connect, handshake } => {
                let tcp = connect_tcp(host, *port, *connect).await;
                let tcp = tcp.map_err(ConnectError::Unreachable)?;
                // small requests and answers: waiting to fill a segment only adds delay
                tcp.set_nodelay(true).map_err(ConnectError::Unreachable)?;
                let stream = in_time(*handshake, tls.connect(name.clone(), tcp)).await;
                let stream = stream.map_err(ConnectError::Handshake)?;
                Ok(MaybeTls::Tls(Box::new(TokioIo::new(stream))))
            }
        }
    }
}

async fn in_time<T>(limit: Duration, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, what).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Tries the addresses of the host one after the other, the next as soon as one fails or has said
/// nothing for [`STAGGER`] (RFC 8305, §5), so that a dead one costs next to nothing.
async fn connect_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let addresses = in_time(limit, tokio::net::lookup_host((host, port))).await?;
    let mut addresses = addresses.collect::<Vec<SocketAddr>>().into_iter();
    let mut under_way = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match addresses.next() {
            Some(address) => under_way.push(in_time(limit, TcpStream::connect(address))),
            None if under_way.is_empty() => return Err(last),
            None => {}
        }
        let more = addresses.len() > 0;
        tokio::select! {
            Some(outcome) = under_way.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = sleep(STAGGER), if more => {}
        }
    }
}
