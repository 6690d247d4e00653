//! The two gRPC services on top of the core: sizes, versions, counting and logging.

use std::{
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use lastkey_crypto::{
    SecretBytes,
    plugin_blob::{PluginBlob, PluginKey},
};
use tonic::{Code, Request, Response, Status, async_trait, body::Body, codegen::BoxFuture};
use tower::Service;

use super::{
    StatusVersion,
    core::{Announced, Core, Stored},
    metrics::{Method, Metrics},
    problem::Problem,
};
use crate::{
    proto::{
        v1beta1::{self, key_management_service_server as v1_server},
        v2::{self, key_management_service_server as v2_server},
    },
    socket::PeerInfo,
};

/// The largest message: a ciphertext, and the 32 KiB that annotations may have, with room.
const MAX_MESSAGE: usize = 64 << 10;
/// The longest part of a uid that is logged; the apiserver's has 36 characters.
const MAX_UID: usize = 64;
const V1: &str = "v1beta1";

/// Both services behind one door.
#[derive(Clone)]
pub(super) struct Services {
    v2: v2_server::KeyManagementServiceServer<Handler>,
    v1: v1_server::KeyManagementServiceServer<Handler>,
}

struct Handler {
    core: Arc<Core>,
    metrics: Arc<Metrics>,
    version: StatusVersion,
}

impl Services {
    pub(super) fn new(core: Arc<Core>, metrics: Arc<Metrics>, version: StatusVersion) -> Self {
        let handler = Arc::new(Handler { core, metrics, version });
        Self {
            v2: v2_server::KeyManagementServiceServer::from_arc(handler.clone())
                .max_decoding_message_size(MAX_MESSAGE),
            v1: v1_server::KeyManagementServiceServer::from_arc(handler)
                .max_decoding_message_size(MAX_MESSAGE),
        }
    }
}

/// The path names the service; each answers `Unimplemented` to a method it does not have.
impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().starts_with("/v1beta1.") {
            true => self.v1.call(request),
            false => self.v2.call(request),
        }
    }
}

impl Handler {
    /// Counts and logs one call, and the key version it was about; never a byte of its data.
    async fn observed<T>(
        &self,
        (method, uid): (Method, &str),
        work: impl Future<Output = (Result<T, Problem>, Option<PluginKey>)>,
    ) -> Result<Response<T>, Status> {
        let (outcome, key) = work.await;
        let code = outcome.as_ref().err().map_or(Code::Ok, Problem::code);
        self.metrics.count((method, code), key.as_ref());
        let (api, name) = method.names();
        let uid = uid.char_indices().nth(MAX_UID).map_or(uid, |(end, _)| &uid[..end]);
        match &outcome {
            Ok(_) => tracing::debug!(api, method = name, uid, "done"),
            Err(problem) => {
                tracing::warn!(api, method = name, uid, ?code, %problem, "refused");
            }
        }
        Ok(outcome.map(Response::new)?)
    }
}

/// What this request's connection was told last.
fn announced<T>(request: &Request<T>) -> Announced {
    let info = request.extensions().get::<PeerInfo<Announced>>();
    info.map(|info| info.0.clone()).unwrap_or_default()
}

#[async_trait]
impl v2_server::KeyManagementService for Handler {
    async fn status(
        &self,
        request: Request<v2::StatusRequest>,
    ) -> Result<Response<v2::StatusResponse>, Status> {
        let announced = announced(&request);
        self.observed((Method::Status, ""), async {
            let said = self.core.status(&announced).map(|said| v2::StatusResponse {
                version: self.version.text().to_owned(),
                healthz: said.healthz,
                key_id: said.key_id,
            });
            (said, None)
        })
        .await
    }

    async fn encrypt(
        &self,
        request: Request<v2::EncryptRequest>,
    ) -> Result<Response<v2::EncryptResponse>, Status> {
        let announced = announced(&request);
        let v2::EncryptRequest { plaintext, uid } = request.into_inner();
        let plaintext = SecretBytes::new(plaintext);
        self.observed((Method::Encrypt, &uid), async {
            let sealed = self.core.encrypt(&announced, &plaintext).await;
            let key = sealed.as_ref().ok().map(|sealed| sealed.key);
            let answer = sealed.map(|sealed| v2::EncryptResponse {
                ciphertext: sealed.ciphertext,
                key_id: sealed.key_id,
                annotations: sealed.annotations,
            });
            (answer, key)
        })
        .await
    }

    async fn decrypt(
        &self,
        request: Request<v2::DecryptRequest>,
    ) -> Result<Response<v2::DecryptResponse>, Status> {
        let v2::DecryptRequest { ciphertext, uid, key_id, annotations } = request.into_inner();
        self.observed((Method::Decrypt, &uid), async {
            let identity = Some((key_id.as_str(), &annotations));
            let stored = Stored { uid: &uid, ciphertext: &ciphertext, identity };
            let (opened, key) = self.core.decrypt(stored).await;
            let plaintext = opened.map(|opened| opened.expose().to_vec());
            (plaintext.map(|plaintext| v2::DecryptResponse { plaintext }), key)
        })
        .await
    }
}

#[async_trait]
impl v1_server::KeyManagementService for Handler {
    async fn version(
        &self,
        request: Request<v1beta1::VersionRequest>,
    ) -> Result<Response<v1beta1::VersionResponse>, Status> {
        self.observed((Method::VersionV1, ""), async {
            let checked = check_version(&request.get_ref().version);
            let answer = checked.map(|()| v1beta1::VersionResponse {
                version: V1.to_owned(),
                runtime_name: "lastkey".to_owned(),
                runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            });
            (answer, None)
        })
        .await
    }

    async fn encrypt(
        &self,
        request: Request<v1beta1::EncryptRequest>,
    ) -> Result<Response<v1beta1::EncryptResponse>, Status> {
        let v1beta1::EncryptRequest { version, plain } = request.into_inner();
        let plaintext = SecretBytes::new(plain);
        self.observed((Method::EncryptV1, ""), async {
            let sealed = match check_version(&version) {
                // v1 stores no key id, so nothing ties it to what Status told a v2 neighbour
                Ok(()) => self.core.encrypt_current(&plaintext).await,
                Err(problem) => Err(problem),
            };
            let key = sealed.as_ref().ok().map(|sealed| sealed.key);
            (sealed.map(|sealed| v1beta1::EncryptResponse { cipher: sealed.ciphertext }), key)
        })
        .await
    }

    async fn decrypt(
        &self,
        request: Request<v1beta1::DecryptRequest>,
    ) -> Result<Response<v1beta1::DecryptResponse>, Status> {
        let v1beta1::DecryptRequest { version, cipher } = request.into_inner();
        self.observed((Method::DecryptV1, ""), async {
            let stored = Stored { uid: "", ciphertext: &cipher, identity: None };
            let (opened, key) = match check_version(&version) {
                Ok(()) => self.core.decrypt(stored).await,
                Err(problem) => (Err(problem), key_of(&cipher)),
            };
            let plain = opened.map(|opened| opened.expose().to_vec());
            (plain.map(|plain| v1beta1::DecryptResponse { plain }), key)
        })
        .await
    }
}

/// What a ciphertext says that it was made under.
fn key_of(ciphertext: &[u8]) -> Option<PluginKey> {
    PluginBlob::parse(ciphertext).ok().map(|envelope| *envelope.key())
}

fn check_version(version: &str) -> Result<(), Problem> {
    match version {
        "" | V1 => Ok(()),
        other => Err(Problem::ApiVersion(other.chars().take(MAX_UID).collect())),
    }
}
