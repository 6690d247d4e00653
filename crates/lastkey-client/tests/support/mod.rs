//! A server in the test's own process: real TCP, TLS and HTTP, answers made by a closure.
//!
//! `lastkey-kubernetes` tests its plugin against the same one.

// each test binary uses its part, and clippy sees no test in helpers
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::{fs, future::Future, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, http::request::Parts, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier, version};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// Status and body of an answer.
pub type Answer = (u16, String);
type AnswerFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;
/// Makes the answers.
pub type Handler = Arc<dyn Fn(Parts, Bytes) -> AnswerFuture + Send + Sync>;

/// Wraps an async closure as a [`Handler`].
pub fn handler<F>(make: impl Fn(Parts, Bytes) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Answer> + Send + 'static,
{
    Arc::new(move |parts, body| Box::pin(make(parts, body)))
}

/// A CA with one certificate for the server and one for a client, as files.
pub struct Pki {
    directory: TempDir,
    server: Arc<ServerConfig>,
}

impl Pki {
    /// Its server insists on a client certificate.
    pub fn new() -> Self {
        Self::make(true)
    }

    /// Its server takes clients without a certificate, too.
    pub fn for_access_keys() -> Self {
        Self::make(false)
    }

    fn make(require_certificate: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let issue = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
            let parameters = rcgen::CertificateParams::new(names).unwrap();
            (parameters.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = issue("localhost");
        let (client, client_key) = issue("plugin");
        let write =
            |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
        write("ca.pem", ca_certificate.pem());
        write("client.pem", client.pem());
        write("client.key", client_key.serialize_pem());

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca_certificate.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = match require_certificate {
            true => verifier,
            false => verifier.allow_unauthenticated(),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![server.der().clone()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { directory, server: Arc::new(config) }
    }

    /// The server's side of a handshake, for one that goes on in its own way.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server.clone())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A running server; stops when dropped.
pub struct FakeServer {
    pub address: SocketAddr,
    accept: JoinHandle<()>,
}

impl FakeServer {
    pub async fn start(pki: &Pki, handler: Handler) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), pki, handler).await
    }

    pub async fn start_on(address: SocketAddr, pki: &Pki, handler: Handler) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = pki.acceptor();
        let accept = tokio::spawn(async move {
            // dropped with this task, which aborts every connection
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, handler).await;
                    }
                });
            }
        });
        Self { address, accept }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Ends the server and all its connections.
    pub async fn stop(mut self) -> SocketAddr {
        self.accept.abort();
        let _ = (&mut self.accept).await;
        self.address
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Serves the handler on a unix socket, without TLS.
pub fn serve_unix(path: PathBuf, handler: Handler) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, handler.clone()));
        }
    })
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, handler: Handler) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let (status, text) = handler(parts, body).await;
            let response = Response::builder().status(status).body(Full::new(Bytes::from(text)));
            Ok::<_, hyper::Error>(response.unwrap())
        }
    });
    let connection = auto::Builder::new(TokioExecutor::new());
    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
}
