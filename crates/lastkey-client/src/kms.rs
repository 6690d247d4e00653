//! The small trait behind which every key-management service looks alike, and its first backend.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use lastkey_crypto::{EncryptionContext, SecretBytes};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{Client, Error, api::Reply};

/// What every backend can do with a symmetric key.
#[async_trait::async_trait]
pub trait Kms: Send + Sync {
    /// Encrypts a short plaintext (at most 6 KiB with most services).
    async fn encrypt(
        &self,
        key: &str,
        plaintext: &[u8],
        context: &EncryptionContext,
    ) -> Result<Ciphertext, Error>;

    /// Opens what [`Kms::encrypt`] or [`Kms::generate_data_key`] made under the same context.
    async fn decrypt(&self, blob: &[u8], context: &EncryptionContext)
    -> Result<SecretBytes, Error>;

    /// Makes a data key of so many bytes, in plain and wrapped.
    async fn generate_data_key(
        &self,
        key: &str,
        bytes: u16,
        context: &EncryptionContext,
    ) -> Result<DataKey, Error>;
}

/// What a service made of a plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ciphertext {
    /// Opaque to everybody but the service.
    pub blob: Vec<u8>,
    /// The key that encrypted.
    pub key_id: String,
    /// Its version.
    pub key_version: String,
}

/// A key for one caller.
#[derive(Debug)]
pub struct DataKey {
    /// To be used, then dropped.
    pub plaintext: SecretBytes,
    /// To be stored.
    pub wrapped: Ciphertext,
}

/// The wire's answer to all three; a plaintext there is base64 text, whatever it stands for.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    plaintext: Option<Zeroizing<String>>,
    #[serde(default)]
    ciphertext_blob: Option<String>,
    key_id: String,
    key_version_id: String,
}

#[async_trait::async_trait]
impl Kms for Client {
    async fn encrypt(
        &self,
        key: &str,
        plaintext: &[u8],
        context: &EncryptionContext,
    ) -> Result<Ciphertext, Error> {
        let plaintext = Zeroizing::new(BASE64.encode(plaintext));
        let parameters = [("KeyId", key), ("Plaintext", &plaintext)];
        self.call(("Encrypt", &parameters), context, |it| Parsed::of(it)?.ciphertext()).await
    }

    async fn decrypt(
        &self,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, Error> {
        let blob = BASE64.encode(blob);
        let parameters = [("CiphertextBlob", &*blob)];
        self.call(("Decrypt", &parameters), context, |it| Parsed::of(it)?.plaintext()).await
    }

    async fn generate_data_key(
        &self,
        key: &str,
        bytes: u16,
        context: &EncryptionContext,
    ) -> Result<DataKey, Error> {
        let bytes = bytes.to_string();
        let parameters = [("KeyId", key), ("NumberOfBytes", &bytes)];
        let data_key = |reply| {
            let mut parsed = Parsed::of(reply)?;
            Ok(DataKey { plaintext: parsed.plaintext()?, wrapped: parsed.ciphertext()? })
        };
        self.call(("GenerateDataKey", &parameters), context, data_key).await
    }
}

impl Client {
    async fn call<T: Send>(
        &self,
        (action, parameters): (&str, &[(&str, &str)]),
        context: &EncryptionContext,
        read: fn(Reply) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let json = context_json(context);
        let mut parameters = parameters.to_vec();
        if !context.is_empty() {
            parameters.push(("EncryptionContext", &json));
        }
        self.alibaba_as(action, &parameters, read).await
    }
}

fn context_json(context: &EncryptionContext) -> String {
    let pairs = context.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::Value::Object(pairs).to_string()
}

/// For the fuzz target: whether an answer has both parts.
pub(crate) fn parse_answer(reply: Reply) -> bool {
    let Ok(mut parsed) = Parsed::of(reply) else { return false };
    crate::fuzzing::outcome(parsed.plaintext()) && crate::fuzzing::outcome(parsed.ciphertext())
}

struct Parsed {
    server: Arc<str>,
    answer: Answer,
}

impl Parsed {
    fn of(reply: Reply) -> Result<Self, Error> {
        Ok(Self { server: reply.server.clone(), answer: reply.json()? })
    }

    fn plaintext(&mut self) -> Result<SecretBytes, Error> {
        let text = self.answer.plaintext.take();
        let bytes = text.and_then(|text| BASE64.decode(text.as_bytes()).ok());
        bytes.map(SecretBytes::new).ok_or_else(|| self.garbage("there is no plaintext in base64"))
    }

    fn ciphertext(self) -> Result<Ciphertext, Error> {
        let text = self.answer.ciphertext_blob.as_deref();
        let Some(blob) = text.and_then(|text| BASE64.decode(text).ok()) else {
            return Err(self.garbage("there is no ciphertext in base64"));
        };
        let Answer { key_id, key_version_id: key_version, .. } = self.answer;
        Ok(Ciphertext { blob, key_id, key_version })
    }

    fn garbage(&self, what: &'static str) -> Error {
        Error::Garbage { server: self.server.to_string(), what }
    }
}
