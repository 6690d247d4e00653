//! Encrypt, decrypt, data keys.
//!
//! On this wire a plaintext is a text, not base64 of something: its UTF-8 bytes are what the
//! engine encrypts. A data key is handed out as base64, and that base64 text is what lies inside
//! its ciphertext, so that `Decrypt` answers with the text that `GenerateDataKey` answered with.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_crypto::{KeyVersionId, SecretBytes, blob::Blob};
use lastkey_engine::{
    Error, KeyRef,
    command::{
        Decrypt, Encrypt, Encrypted, GenerateDataKey, GenerateDataKeyWithoutPlaintext, ReEncrypt,
        data_key_length,
    },
};

use super::{
    call::{Answer, Call},
    document::{self, Document, Format},
    refusal::Refusal,
};

pub(super) async fn encrypt(call: &Call<'_>) -> Answer {
    let encrypted = call
        .execute(Encrypt {
            key: call.key()?,
            plaintext: SecretBytes::new(call.required("Plaintext")?.as_bytes().to_vec()),
            context: call.context("EncryptionContext")?,
        })
        .await?;
    call.answer(|answer| write(answer, &encrypted))
}

pub(super) async fn decrypt(call: &Call<'_>) -> Answer {
    call.not_offered("Recipient", "encryption to an enclave (Recipient)")?;
    let command = Decrypt { blob: call.blob()?, context: call.context("EncryptionContext")? };
    let decrypted = call.execute(command).await?;
    let plaintext = std::str::from_utf8(decrypted.plaintext.expose())
        .ok()
        .filter(|text| call.format == Format::Json || document::fits_xml(text))
        .ok_or(Refusal::NotText)?;
    call.answer(|answer| {
        answer.text("Plaintext", plaintext);
        answer.plain("KeyId", decrypted.key_id);
        answer.plain("KeyVersionId", decrypted.key_version);
    })
}

pub(super) async fn re_encrypt(call: &Call<'_>) -> Answer {
    call.not_offered("SourceEncryptionAlgorithm", "an asymmetric source")?;
    let blob = call.blob()?;
    check_source_version(call, &blob)?;
    let encrypted = call
        .execute(ReEncrypt {
            blob,
            source_context: call.context("SourceEncryptionContext")?,
            source_key: call.params.non_empty("SourceKeyId").map(KeyRef::parse).transpose()?,
            destination: KeyRef::parse(call.required("DestinationKeyId")?)?,
            destination_context: call.context("DestinationEncryptionContext")?,
        })
        .await?;
    call.answer(|answer| write(answer, &encrypted))
}

/// The version that the caller names must be the one that the ciphertext names.
fn check_source_version(call: &Call<'_>, blob: &[u8]) -> Result<(), Refusal> {
    let Some(text) = call.params.non_empty("SourceKeyVersionId") else { return Ok(()) };
    let version: KeyVersionId = text.parse().map_err(|_| Error::KeyVersionNotFound)?;
    match Blob::parse(blob) {
        Ok(blob) if blob.key_version_id() == version => Ok(()),
        _ => Err(Error::InvalidCiphertext.into()),
    }
}

pub(super) async fn generate_data_key(call: &Call<'_>) -> Answer {
    call.not_offered("Recipient", "encryption to an enclave (Recipient)")?;
    let made = call.execute(data_key(call)?).await?;
    let plaintext = std::str::from_utf8(made.plaintext.expose()).map_err(|_| Error::Internal)?;
    call.answer(|answer| {
        write(answer, &made.encrypted);
        answer.plain("Plaintext", plaintext);
    })
}

pub(super) async fn generate_data_key_without_plaintext(call: &Call<'_>) -> Answer {
    let made = call.execute(GenerateDataKeyWithoutPlaintext(data_key(call)?)).await?;
    call.answer(|answer| write(answer, &made))
}

/// `NumberOfBytes` goes before `KeySpec`; with neither it is 32 bytes.
fn data_key(call: &Call<'_>) -> Result<GenerateDataKey, Refusal> {
    let length = match call.number("NumberOfBytes")? {
        Some(length) => length,
        None => data_key_length(call.params.non_empty("KeySpec").unwrap_or("AES_256"))?,
    };
    Ok(GenerateDataKey {
        key: call.key()?,
        length,
        context: call.context("EncryptionContext")?,
        encoding: |bytes| SecretBytes::new(STANDARD.encode(bytes).into_bytes()),
    })
}

fn write(answer: &mut Document, encrypted: &Encrypted) {
    answer.base64("CiphertextBlob", &encrypted.blob);
    answer.plain("KeyId", encrypted.key_id);
    answer.plain("KeyVersionId", encrypted.key_version);
}
