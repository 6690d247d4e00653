//! tonic on a unix socket with the apiserver's messages: answers from memory, or after asking the
//! HTTPS floor over one HTTP/2 connection.

use std::{collections::HashMap, future::Future, net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request as HttpRequest, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lastkey_kubernetes::proto::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest,
    StatusResponse,
    key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpStream, UnixListener},
    sync::OnceCell,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait, transport::Server};

use crate::{error::Error, load};

/// As long as one of lastkey's key ids.
const KEY_ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const ANNOTATION: &str = "key-version.kms.lastkey.dev";
const ANNOTATION_BYTES: usize = 36;
/// About as long as what lastkey's plugin sends for an Encrypt of 64 bytes.
const REQUEST_BODY: &[u8] = &[b'r'; 256];

/// The service's connection to the HTTPS floor, opened with the first call.
pub(super) struct Backend {
    target: load::Target,
    connection: OnceCell<http2::SendRequest<Full<Bytes>>>,
}

struct Floor {
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
    backend: Option<Backend>,
}

impl Backend {
    pub(super) fn new(
        address: SocketAddr,
        certificate: CertificateDer<'static>,
    ) -> Result<Self, Error> {
        let target = load::Target::new(address, "127.0.0.1", [certificate], &[b"h2"])?;
        Ok(Self { target, connection: OnceCell::new() })
    }

    async fn connect(&self) -> Result<http2::SendRequest<Full<Bytes>>, Error> {
        let tcp = TcpStream::connect(self.target.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.target.tls.connect(self.target.name.clone(), tcp).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn ask(&self) -> Result<(), Error> {
        let mut sender = self.connection.get_or_try_init(|| self.connect()).await?.clone();
        let request = HttpRequest::post(format!("https://{}/", self.target.address))
            .body(Full::new(Bytes::from_static(REQUEST_BODY)))
            .map_err(std::io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(std::io::Error::other)?;
        let status = answer.status();
        answer.into_body().collect().await.map_err(std::io::Error::other)?;
        match status {
            StatusCode::OK => Ok(()),
            other => Err(Error::Answer { side: "floor", what: other.to_string() }),
        }
    }
}

/// Serves on `path`.
pub(super) fn listen(
    path: &Path,
    (plaintext, ciphertext): (usize, usize),
    backend: Option<Backend>,
) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
    let listener = UnixListener::bind(path)?;
    let (plaintext, ciphertext) = (vec![b'p'; plaintext], vec![b'c'; ciphertext]);
    let floor = Arc::new(Floor { plaintext, ciphertext, backend });
    let service = KeyManagementServiceServer::from_arc(floor);
    Ok(async move {
        let incoming = UnixListenerStream::new(listener);
        Ok(Server::builder().serve_with_incoming(service, incoming).await?)
    })
}

impl Floor {
    async fn ask(&self) -> Result<(), Status> {
        match &self.backend {
            Some(backend) => backend.ask().await.map_err(|e| Status::internal(e.to_string())),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl KeyManagementService for Floor {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse {
            version: "v2beta1".to_owned(),
            healthz: "ok".to_owned(),
            key_id: KEY_ID.to_owned(),
        }))
    }

    async fn encrypt(
        &self,
        _: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        self.ask().await?;
        Ok(Response::new(EncryptResponse {
            ciphertext: self.ciphertext.clone(),
            key_id: KEY_ID.to_owned(),
            annotations: HashMap::from([(ANNOTATION.to_owned(), vec![b'v'; ANNOTATION_BYTES])]),
        }))
    }

    async fn decrypt(
        &self,
        _: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        self.ask().await?;
        Ok(Response::new(DecryptResponse { plaintext: self.plaintext.clone() }))
    }
}
