//! hyper over rustls with lastkey's settings: one AES-256-GCM, one durable record, a fixed answer.

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
    keeper::Keeper,
    null,
};
use crate::{
    error::Error,
    options::{FloorOptions, Job},
};

const DATA_KEY: usize = 32;
const FIXED_NONCE: [u8; 12] = [1; 12];

/// The HTTPS floor.
#[derive(Clone)]
pub(super) struct Floor {
    work: Arc<Work>,
    acceptor: TlsAcceptor,
    null_acceptor: TlsAcceptor,
    certificate: CertificateDer<'static>,
}

struct Work {
    job: Job,
    key: LessSafeKey,
    plaintext: Vec<u8>,
    /// The plaintext sealed, for the job that opens it.
    ciphertext: Vec<u8>,
    answer: Bytes,
    committer: Arc<Committer>,
    /// For the job that writes records.
    keeper: Option<Keeper>,
}

impl Floor {
    pub(super) fn new(
        options: &FloorOptions,
        committer: Arc<Committer>,
        keeper: Option<Keeper>,
    ) -> Result<Self, Error> {
        let pair = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(["127.0.0.1".to_owned()])?.self_signed(&pair)?;
        let certificate = certificate.der().clone();
        // The same settings as lastkey-server's `tls::server_config`.
        let config = || -> Result<_, Error> {
            let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
            let mut config =
                rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
                    .with_safe_default_protocol_versions()?
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.clone()], private)?;
            config.ticketer = provider::Ticketer::new()?;
            Ok(config)
        };
        let mut https = config()?;
        https.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (acceptor, null_acceptor) = (null::acceptor(https), null::acceptor(config()?));
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(std::io::Error::other)?;
        let key = LessSafeKey::new(key);
        let plaintext = vec![b'p'; options.plaintext];
        let mut ciphertext = plaintext.clone();
        let nonce = Nonce::assume_unique_for_key(FIXED_NONCE);
        key.seal_in_place_append_tag(nonce, Aad::empty(), &mut ciphertext)
            .map_err(std::io::Error::other)?;
        let answer = vec![b'a'; options.answer].into();
        let job = options.job;
        let work = Work { job, key, plaintext, ciphertext, answer, committer, keeper };
        Ok(Self { work: Arc::new(work), acceptor, null_acceptor, certificate })
    }

    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Opens the ports, and names the sockets beside them.
    pub(super) async fn listen(&self, dir: &Path) -> Result<(Listeners, FloorReady), Error> {
        let https = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let null = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let ready = FloorReady {
            address: https.local_addr()?,
            null: null.local_addr()?,
            certificate: STANDARD.encode(&self.certificate),
            bare_socket: dir.join("bare.sock"),
            backed_socket: dir.join("backed.sock"),
            counters: dir.join("counters.sock"),
        };
        Ok((Listeners { https, null }, ready))
    }

    pub(super) async fn serve(self, listeners: Listeners) -> Result<(), Error> {
        let (work, acceptor) = (Arc::clone(&self.work), self.null_acceptor.clone());
        let null = null::serve(listeners.null, acceptor, &work.answer);
        tokio::select! {
            ended = null => ended,
            ended = self.serve_https(listeners.https) => ended,
        }
    }

    async fn serve_https(self, listener: TcpListener) -> Result<(), Error> {
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
        let tag = match (self.job, &self.keeper) {
            (Job::Open, _) => self.open()?,
            (Job::DataKey, _) => {
                let mut data_key = [0; DATA_KEY];
                rand::fill(&mut data_key).map_err(std::io::Error::other)?;
                self.seal(data_key.to_vec())?
            }
            (Job::Keep, Some(keeper)) => return keeper.create().await,
            _ => self.seal(self.plaintext.clone())?,
        };
        let mut record = [0; RECORD];
        record[..tag.len()].copy_from_slice(&tag);
        self.committer.append(record).await
    }

    fn seal(&self, mut data: Vec<u8>) -> Result<[u8; 16], Error> {
        let mut nonce = [0; 12];
        rand::fill(&mut nonce).map_err(std::io::Error::other)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut data)
            .map_err(std::io::Error::other)?;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Opens the ciphertext; the end of the plaintext stands for it.
    fn open(&self) -> Result<[u8; 16], Error> {
        let mut data = self.ciphertext.clone();
        let nonce = Nonce::assume_unique_for_key(FIXED_NONCE);
        let plaintext = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut data)
            .map_err(std::io::Error::other)?;
        let mut bytes = [0; 16];
        let end = plaintext.len().min(bytes.len());
        bytes[..end].copy_from_slice(&plaintext[..end]);
        Ok(bytes)
    }
}

/// The doors of the HTTPS floor.
pub(super) struct Listeners {
    https: TcpListener,
    null: TcpListener,
}
