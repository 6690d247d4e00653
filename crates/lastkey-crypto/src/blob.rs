//! The ciphertext blob: what a caller gets from Encrypt and brings back to Decrypt.
//!
//! Existing Alibaba clients cut it apart (36 bytes of key-version id, 12 bytes of IV), so the
//! layout is theirs; suite 1 puts its salt at the front of what they call the ciphertext.
//!
//! ```text
//! offset  bytes                                            meaning
//! 0000    31 64 31 63 36 61 33 34 2d 35 66 30 65 2d 34 63  key-version id, 36 ASCII characters,
//! 0010    33 62 2d 39 61 35 38 2d 36 61 38 66 35 61 30 65  lower case: "1d1c6a34-5f0e-4c3b-
//! 0020    37 63 32 31                                      9a58-6a8f5a0e7c21"
//! 0024    00 01 02 03 04 05 06 07 08 09 0a 0b              IV, 12 random bytes
//! 0030    0c 0d 0e 0f 10 11 12 13 14 15 16 17 18 19 1a 1b  salt, 16 random bytes
//! 0040    …                                                AES-GCM ciphertext, as long as the
//!                                                          plaintext
//! -0010   …                                                tag, 16 bytes
//! ```
//!
//! - message key = HKDF-SHA256(secret = key version's material, salt, info =
//!   `lastkey blob 1 AES-256-GCM`, or 192 or 128, as long as the material is)
//! - associated data = [`EncryptionContext::associated_data`] with the label `lastkey blob 1`
//!
//! The format has no version byte of its own: the key version names its suite, and the suite
//! fixes the format. On the wire a blob is base64 with padding (RFC 4648 §4).

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    Algorithm, EncryptionContext, Entropy, KeyMaterial, KeyVersionId, SecretBytes, Unauthentic,
    cipher::{IV_LEN, MessageKey, SALT_LEN, Sealed, TAG_LEN},
    ids::ID_TEXT_LEN,
};

/// What a blob is longer than its plaintext, in bytes.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;

const HEAD_LEN: usize = ID_TEXT_LEN + IV_LEN + SALT_LEN;
const LABEL: &[u8] = b"lastkey blob 1";

/// Bytes that are no ciphertext blob, whatever the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Shorter than an empty plaintext's blob.
    #[error("the ciphertext blob is too short")]
    TooShort,
    /// Does not begin with a key-version id.
    #[error("the ciphertext blob does not begin with a key version id")]
    NoKeyVersion,
    /// Not base64 with padding.
    #[error("the ciphertext blob is not base64")]
    NotBase64,
}

/// Encrypts `plaintext` under one key version, bound to `context`.
#[expect(clippy::too_many_arguments, reason = "each is one part of the construction")]
pub fn seal(
    material: &KeyMaterial,
    key_version: &KeyVersionId,
    context: &EncryptionContext,
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(OVERHEAD + plaintext.len());
    out.extend_from_slice(&key_version.text());
    out.extend_from_slice(&[0; IV_LEN + SALT_LEN]);
    entropy.fill(&mut out[ID_TEXT_LEN..HEAD_LEN]);
    out.extend_from_slice(plaintext);

    let (head, data) = out.split_at_mut(HEAD_LEN);
    let (iv, salt) = iv_and_salt(head);
    let tag = message_key(material, salt).seal(iv, &associated_data(context, key_version), data);
    out.extend_from_slice(&tag);
    out
}

/// A blob, cut into its parts.
#[derive(Clone, Copy)]
pub struct Blob<'a> {
    key_version: KeyVersionId,
    salt: &'a [u8; SALT_LEN],
    sealed: Sealed<'a>,
}

impl<'a> Blob<'a> {
    /// Cuts a blob apart.
    ///
    /// # Errors
    ///
    /// [`BlobError::TooShort`] and [`BlobError::NoKeyVersion`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let (head, rest) = bytes.split_at_checked(HEAD_LEN).ok_or(BlobError::TooShort)?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(BlobError::TooShort)?;
        let key_version = KeyVersionId::from_canonical(&head[..ID_TEXT_LEN])
            .map_err(|_| BlobError::NoKeyVersion)?;
        let (iv, salt) = iv_and_salt(head);
        Ok(Self { key_version, salt, sealed: Sealed { iv, ciphertext, tag } })
    }

    /// The key version that sealed it, by its own account; [`Blob::open`] proves it.
    pub fn key_version_id(&self) -> KeyVersionId {
        self.key_version
    }

    /// Length of the plaintext inside, in bytes.
    pub fn plaintext_len(&self) -> usize {
        self.sealed.ciphertext.len()
    }

    /// Decrypts the blob.
    ///
    /// # Errors
    ///
    /// [`Unauthentic`] for a wrong key, a wrong context, or damage.
    pub fn open(
        &self,
        material: &KeyMaterial,
        context: &EncryptionContext,
    ) -> Result<SecretBytes, Unauthentic> {
        let aad = associated_data(context, &self.key_version);
        message_key(material, self.salt).open(&aad, self.sealed)
    }
}

impl std::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("key_version", &self.key_version).finish_non_exhaustive()
    }
}

/// The wire form of a blob.
pub fn to_base64(blob: &[u8]) -> String {
    STANDARD.encode(blob)
}

/// Reads the wire form of a blob.
///
/// # Errors
///
/// [`BlobError::NotBase64`]: another alphabet, missing padding, stray bits.
pub fn from_base64(text: &str) -> Result<Vec<u8>, BlobError> {
    STANDARD.decode(text).map_err(|_| BlobError::NotBase64)
}

fn message_key(material: &KeyMaterial, salt: &[u8; SALT_LEN]) -> MessageKey {
    let algorithm = Algorithm::for_key_len(material.len());
    let info: &[u8] = match algorithm {
        Algorithm::Aes128 => b"lastkey blob 1 AES-128-GCM",
        Algorithm::Aes192 => b"lastkey blob 1 AES-192-GCM",
        Algorithm::Aes256 => b"lastkey blob 1 AES-256-GCM",
    };
    MessageKey::derive(algorithm, material.expose(), salt, info)
}

fn associated_data(context: &EncryptionContext, key_version: &KeyVersionId) -> Vec<u8> {
    context.associated_data(LABEL, key_version)
}

/// IV and salt of a head of [`HEAD_LEN`] bytes.
fn iv_and_salt(head: &[u8]) -> (&[u8; IV_LEN], &[u8; SALT_LEN]) {
    head[ID_TEXT_LEN..]
        .split_first_chunk()
        .and_then(|(iv, salt)| Some((iv, salt.try_into().ok()?)))
        .expect("the head is 64 bytes long")
}
