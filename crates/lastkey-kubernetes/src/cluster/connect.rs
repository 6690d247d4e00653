//! Opens connections: TCP, and TLS with the cluster's own authority and nothing else.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use lastkey_client::MaybeTls;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{AccessError, ServerUrl};

/// For one address of a server's, and for the handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// Whom we trust and what we show.
pub(super) struct Trust<'a> {
    /// What the certificates are for, in errors.
    pub(super) what: &'static str,
    pub(super) ca_pem: &'a str,
    /// Certificate chain and key, in PEM.
    pub(super) identity: Option<(&'a str, &'a str)>,
    /// What may be spoken, most wanted first.
    pub(super) alpn: &'a [&'a [u8]],
}

impl Trust<'_> {
    pub(super) fn connector(&self) -> Result<TlsConnector, AccessError> {
        let tls = |source| AccessError::Tls { what: self.what, source };
        let mut roots = RootCertStore::empty();
        for root in certificates(self.ca_pem, "the certificate authority")? {
            roots.add(root).map_err(tls)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(roots);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = certificates(chain, "the client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .map_err(|_| AccessError::Pem { what: "the client certificate's key" })?;
                builder.with_client_auth_cert(chain, key).map_err(tls)?
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// The certificates in a PEM text (DER each), as far as there are any.
pub fn certificates_in(pem: &str) -> Vec<Vec<u8>> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    found.map(|certificate| certificate.to_vec()).collect()
}

/// The certificates in a PEM text; at least one.
pub(super) fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or(AccessError::Pem { what })
}

/// Makes connections to one server, whatever URI is passed.
#[derive(Clone)]
pub(super) struct Connector(Arc<Target>);

struct Target {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    /// `name` is what the certificate must name, where it is not the host.
    pub(super) fn new(
        url: &ServerUrl,
        tls: Option<&TlsConnector>,
        name: Option<&str>,
    ) -> Result<Self, AccessError> {
        let wrong = || AccessError::Url { url: url.to_string() };
        let tls = match (url.tls, tls) {
            (false, _) => None,
            (true, None) => return Err(AccessError::Pem { what: "the certificate authority" }),
            (true, Some(tls)) => {
                let name = name.unwrap_or(&url.host).to_owned();
                Some((tls.clone(), ServerName::try_from(name).map_err(|_| wrong())?))
            }
        };
        Ok(Self(Arc::new(Target { host: url.host.clone(), port: url.port, tls })))
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeTls<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<MaybeTls<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = Arc::clone(&self.0);
        Box::pin(async move { target.connect().await })
    }
}

impl Target {
    async fn connect(&self) -> io::Result<MaybeTls<TcpStream>> {
        let tcp = connect_tcp(&self.host, self.port).await?;
        // small requests and answers: waiting to fill a segment only adds delay
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => Ok(MaybeTls::Plain(TokioIo::new(tcp))),
            Some((tls, name)) => {
                let stream = in_time(tls.connect(name.clone(), tcp)).await?;
                Ok(MaybeTls::Tls(Box::new(TokioIo::new(stream))))
            }
        }
    }
}

impl Connector {
    /// The certificate that the server shows (DER), if it shows one that we trust.
    pub(super) async fn certificate(&self) -> Option<Vec<u8>> {
        match self.0.connect().await.ok()? {
            MaybeTls::Plain(_) => None,
            MaybeTls::Tls(stream) => {
                let (_, session) = stream.inner().get_ref();
                session.peer_certificates()?.first().map(|first| first.to_vec())
            }
        }
    }
}

async fn in_time<T>(what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(CONNECT, what).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Tries each address of the host in turn.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> =
        in_time(tokio::net::lookup_host((host, port))).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match in_time(TcpStream::connect(address)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
