//! hyper over rustls with lastkey's settings: one seal, one durable record, a fixed answer.

use std::{convert::Infallible, net::Ipv4Addr, path::Path, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs as provider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{
    FloorReady,
    committer::{Committer, RECORD},
};
use crate::error::Error;

/// The HTTPS floor.
#[derive(Clone)]
pub(super) struct Floor {
    work: Arc<Work>,
    acceptor: TlsAcceptor,
    certificate: CertificateDer<'static>,
}

struct Work {
    key: LessSafeKey,
    plaintext: Vec<u8>,
    answer: Bytes,
    committer: Arc<Committer>,
}

impl Floor {
    pub(super) fn new(
        committer: Arc<Committer>,
        plaintext: usize,
        answer: usize,
    ) -> Result<Self, Error> {
        let pair = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(["127.0.0.1".to_owned()])?.self_signed(&pair)?;
        let certificate = certificate.der().clone();
        let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        // The same settings as lastkey-server's `tls::server_config`.
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], private)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = provider::Ticketer::new()?;
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(std::io::Error::other)?;
        let work = Work {
            key: LessSafeKey::new(key),
            plaintext: vec![b'p'; plaintext],
            answer: vec![b'a'; answer].into(),
            committer,
        };
        Ok(Self { work: Arc::new(work), acceptor: Arc::new(config).into(), certificate })
    }

    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Opens the port, and names the sockets beside it.
    pub(super) async fn listen(&self, dir: &Path) -> Result<(TcpListener, FloorReady), Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let ready = FloorReady {
            address: listener.local_addr()?,
            certificate: STANDARD.encode(&self.certificate),
            bare_socket: dir.join("bare.sock"),
            backed_socket: dir.join("backed.sock"),
        };
        Ok((listener, ready))
    }

    pub(super) async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(self.clone().connection(stream));
        }
    }

    async fn connection(self, stream: TcpStream) {
        let Ok(stream) = self.acceptor.accept(stream).await else { return };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        let work = self.work;
        let answer = service_fn(move |request| {
            let work = Arc::clone(&work);
            async move { Ok::<_, Infallible>(work.answer(request).await) }
        });
        // How a connection ends is its client's business.
        if is_http2 {
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, answer).await;
        } else {
            // As lastkey-server's: whatever is saved by a setting, the floor saves too.
            let mut builder = http1::Builder::new();
            builder.half_close(true).max_headers(64).max_buf_size(96 << 10);
            let _ = builder.header_read_timeout(None).serve_connection(io, answer).await;
        }
    }
}

impl Work {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let read = request.into_body().collect().await.is_ok();
        if !read || self.work().await.is_err() {
            let mut refusal = Response::new(Full::default());
            *refusal.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return refusal;
        }
        let mut response = Response::new(Full::new(self.answer.clone()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    async fn work(&self) -> Result<(), Error> {
        let mut nonce = [0; 12];
        rand::fill(&mut nonce).map_err(std::io::Error::other)?;
        let mut data = self.plaintext.clone();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut data)
            .map_err(std::io::Error::other)?;
        let mut record = [0; RECORD];
        record[..tag.as_ref().len()].copy_from_slice(tag.as_ref());
        self.committer.append(record).await
    }
}
