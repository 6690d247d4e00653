//! The apiserver's calls over a unix socket, all in flight on one connection as it makes them.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper_util::rt::TokioIo;
use lastkey_kubernetes::proto::v2::{
    DecryptRequest, EncryptRequest, StatusRequest,
    key_management_service_client::KeyManagementServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use super::Caller as AnyCaller;
use crate::error::Error;

/// As long as the uid that an apiserver sends.
const UID: &str = "b3a4ee71-6a3e-4b62-8f9b-2d9f6a1c7e55";

/// What is called.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// Which has to be ok.
    Status,
    /// Whatever it says.
    AnyStatus,
    /// With this plaintext.
    Encrypt(Vec<u8>),
    /// Of these in turn, whoever calls.
    Decrypt(Arc<Turns>),
}

/// Requests that take turns.
pub(crate) struct Turns {
    requests: Vec<DecryptRequest>,
    next: AtomicUsize,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests", self.requests.len())
    }
}

impl Call {
    /// Decrypts these in turn.
    pub(crate) fn decrypt(requests: Vec<DecryptRequest>) -> Self {
        Self::Decrypt(Arc::new(Turns { requests, next: AtomicUsize::new(0) }))
    }
}

impl Turns {
    fn next(&self) -> DecryptRequest {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.requests[turn % self.requests.len()].clone()
    }
}

/// One of those who share a connection.
#[derive(Clone)]
pub(crate) struct Caller {
    client: KeyManagementServiceClient<Channel>,
    call: Call,
    side: &'static str,
}

impl Caller {
    /// Connects to the socket at `path`, and learns the key as an apiserver does before it
    /// encrypts.
    pub(crate) async fn open(path: &Path, call: Call, side: &'static str) -> Result<Self, Error> {
        let path: PathBuf = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        let mut caller = Self { client: KeyManagementServiceClient::new(channel), call, side };
        match caller.call {
            Call::AnyStatus => drop(caller.healthz().await?),
            _ => caller.status().await?,
        }
        Ok(caller)
    }

    /// Encrypts once: what an apiserver would ask to have decrypted.
    pub(crate) async fn seal(&mut self, plaintext: Vec<u8>) -> Result<DecryptRequest, Error> {
        let request = EncryptRequest { plaintext, uid: UID.to_owned() };
        let answer = self.client.encrypt(request).await.map_err(|s| self.refusal(&s))?;
        let answer = answer.into_inner();
        Ok(DecryptRequest {
            ciphertext: answer.ciphertext,
            uid: UID.to_owned(),
            key_id: answer.key_id,
            annotations: answer.annotations,
        })
    }

    /// What Status says.
    pub(crate) async fn healthz(&mut self) -> Result<String, Error> {
        let answer = self.client.status(StatusRequest {}).await.map_err(|s| self.refusal(&s))?;
        Ok(answer.into_inner().healthz)
    }

    async fn decrypt(&mut self, request: DecryptRequest) -> Result<(), Error> {
        let answer = self.client.decrypt(request).await.map_err(|s| self.refusal(&s))?;
        match answer.into_inner().plaintext.is_empty() {
            false => Ok(()),
            true => Err(Error::Answer { side: self.side, what: "an empty plaintext".into() }),
        }
    }

    /// Makes the call once; the ciphertext's length.
    pub(crate) async fn encrypt(&mut self, plaintext: Vec<u8>) -> Result<usize, Error> {
        let request = EncryptRequest { plaintext, uid: UID.to_owned() };
        let answer = self.client.encrypt(request).await.map_err(|s| self.refusal(&s))?;
        Ok(answer.into_inner().ciphertext.len())
    }

    async fn status(&mut self) -> Result<(), Error> {
        match self.healthz().await? {
            healthz if healthz == "ok" => Ok(()),
            other => Err(Error::Answer { side: self.side, what: other }),
        }
    }

    fn refusal(&self, status: &Status) -> Error {
        Error::Answer { side: self.side, what: status.to_string() }
    }
}

impl AnyCaller for Caller {
    async fn call(&mut self) -> Result<(), Error> {
        match &self.call {
            Call::Status => self.status().await,
            Call::AnyStatus => self.healthz().await.map(drop),
            Call::Encrypt(plaintext) => self.encrypt(plaintext.clone()).await.map(|_| ()),
            Call::Decrypt(turns) => self.decrypt(turns.next()).await,
        }
    }
}
