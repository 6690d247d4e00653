//! Wrapping under the root key: how the keyring rests.
//!
//! ```text
//! offset  bytes                                            meaning
//! 0000    01                                               format version
//! 0001    00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  salt, 16 random bytes
//! 0011    10 11 12 13 14 15 16 17 18 19 1a 1b              IV, 12 random bytes
//! 001d    …                                                AES-256-GCM ciphertext
//! -0010   …                                                tag, 16 bytes
//! ```
//!
//! - message key = HKDF-SHA256(secret = root key, salt, info = `lastkey wrap 1 AES-256-GCM`)
//! - associated data = `lastkey wrap 1` and the purpose, each behind its length in 32 bits
//!
//! The purpose says what was wrapped ("keyring", an id, a path), so that two wrapped secrets
//! cannot change places.

use crate::{
    Algorithm, Entropy, KeyMaterial, SecretBytes, Unauthentic,
    cipher::{IV_LEN, MessageKey, SALT_LEN, Sealed, TAG_LEN},
    mac::length_prefixed,
};

/// What a wrapped secret is longer than the secret, in bytes.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 1 + SALT_LEN + IV_LEN;
const LABEL: &[u8] = b"lastkey wrap 1";
const INFO: &[u8] = b"lastkey wrap 1 AES-256-GCM";

/// A wrapped secret could not be unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// Shorter than a wrapped empty secret.
    #[error("the wrapped secret is too short")]
    TooShort,
    /// A format this release does not know.
    #[error("the wrapped secret has format version {0}; this release knows version 1")]
    UnknownVersion(u8),
    /// Another root key, another purpose, or damage.
    #[error("the wrapped secret does not open with this root key")]
    Unauthentic(#[from] Unauthentic),
}

/// Wraps `secret` under the root key for one `purpose`.
pub fn wrap(root: &KeyMaterial, purpose: &str, secret: &[u8], entropy: &dyn Entropy) -> Vec<u8> {
    let mut out = Vec::with_capacity(OVERHEAD + secret.len());
    out.push(VERSION);
    out.extend_from_slice(&[0; SALT_LEN + IV_LEN]);
    entropy.fill(&mut out[1..]);
    out.extend_from_slice(secret);

    let (head, data) = out.split_at_mut(HEAD_LEN);
    let (salt, iv) = salt_and_iv(head);
    let tag = message_key(root, salt).seal(iv, &associated_data(purpose), data);
    out.extend_from_slice(&tag);
    out
}

/// Unwraps what [`wrap`] made under the same root key and purpose.
///
/// # Errors
///
/// Every [`UnwrapError`].
pub fn unwrap(
    root: &KeyMaterial,
    purpose: &str,
    wrapped: &[u8],
) -> Result<SecretBytes, UnwrapError> {
    match wrapped.first() {
        Some(&VERSION) => {}
        Some(&other) => return Err(UnwrapError::UnknownVersion(other)),
        None => return Err(UnwrapError::TooShort),
    }
    let (head, rest) = wrapped.split_at_checked(HEAD_LEN).ok_or(UnwrapError::TooShort)?;
    let (ciphertext, tag) = rest.split_last_chunk().ok_or(UnwrapError::TooShort)?;
    let (salt, iv) = salt_and_iv(head);
    let sealed = Sealed { iv, ciphertext, tag };
    Ok(message_key(root, salt).open(&associated_data(purpose), sealed)?)
}

fn message_key(root: &KeyMaterial, salt: &[u8; SALT_LEN]) -> MessageKey {
    MessageKey::derive(Algorithm::Aes256, root.expose(), salt, INFO)
}

fn associated_data(purpose: &str) -> Vec<u8> {
    length_prefixed(&[LABEL, purpose.as_bytes()])
}

/// Salt and IV of a head of [`HEAD_LEN`] bytes.
fn salt_and_iv(head: &[u8]) -> (&[u8; SALT_LEN], &[u8; IV_LEN]) {
    head[1..]
        .split_first_chunk()
        .and_then(|(salt, iv)| Some((salt, iv.try_into().ok()?)))
        .expect("the head is 29 bytes long")
}
