//! The apiserver's calls over a unix socket, all in flight on one connection as it makes them.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use lastkey_kubernetes::proto::v2::{
    EncryptRequest, StatusRequest, key_management_service_client::KeyManagementServiceClient,
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
    Status,
    /// With this plaintext.
    Encrypt(Vec<u8>),
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
        caller.status().await?;
        Ok(caller)
    }

    /// Makes the call once; the ciphertext's length.
    pub(crate) async fn encrypt(&mut self, plaintext: Vec<u8>) -> Result<usize, Error> {
        let request = EncryptRequest { plaintext, uid: UID.to_owned() };
        let answer = self.client.encrypt(request).await.map_err(|s| self.refusal(&s))?;
        Ok(answer.into_inner().ciphertext.len())
    }

    async fn status(&mut self) -> Result<(), Error> {
        let answer = self.client.status(StatusRequest {}).await.map_err(|s| self.refusal(&s))?;
        match answer.into_inner().healthz {
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
            Call::Encrypt(plaintext) => self.encrypt(plaintext.clone()).await.map(|_| ()),
        }
    }
}
