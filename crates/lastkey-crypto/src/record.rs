//! The sealed store record: what every value in the store looks like at rest.
//!
//! A record is bound to its path and to a counter of its own, so that one cannot be moved to
//! another path, and an older one put back shows by its counter (decision 7).
//!
//! ```text
//! offset  bytes                                            meaning
//! 0000    01                                               format version
//! 0001    00 00 00 07                                      keyring key 7, 32 bits big-endian
//! 0005    00 00 00 00 00 00 00 2a                          counter 42, 64 bits big-endian
//! 000d    00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  salt, 16 random bytes
//! 001d    10 11 12 13 14 15 16 17 18 19 1a 1b              IV, 12 random bytes
//! 0029    …                                                AES-256-GCM ciphertext
//! -0010   …                                                tag, 16 bytes
//! ```
//!
//! - message key = HKDF-SHA256(secret = keyring key, salt, info = `lastkey record 1 AES-256-GCM`)
//! - associated data = `lastkey record 1`, the 13 bytes of version, keyring key and counter, and
//!   the path, each behind its length in 32 bits

use crate::{
    Algorithm, Entropy, KeyMaterial, SecretBytes, Unauthentic,
    cipher::{IV_LEN, MessageKey, SALT_LEN, Sealed, TAG_LEN},
    mac::length_prefixed,
};

/// What a record is longer than its plaintext, in bytes.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;

const VERSION: u8 = 1;
const PREFIX_LEN: usize = 1 + 4 + 8;
const HEAD_LEN: usize = PREFIX_LEN + SALT_LEN + IV_LEN;
const LABEL: &[u8] = b"lastkey record 1";
const INFO: &[u8] = b"lastkey record 1 AES-256-GCM";

/// Bytes that are no sealed record, whatever the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than an empty record.
    #[error("the stored record is too short")]
    TooShort,
    /// A format this release does not know.
    #[error("the stored record has format version {0}; this release knows version 1")]
    UnknownVersion(u8),
}

/// Seals a record for `path` under keyring key number `keyring_key`.
#[expect(clippy::too_many_arguments, reason = "each is one field of the record")]
pub fn seal(
    keyring_key: u32,
    material: &KeyMaterial,
    path: &str,
    counter: u64,
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(OVERHEAD + plaintext.len());
    out.push(VERSION);
    out.extend_from_slice(&keyring_key.to_be_bytes());
    out.extend_from_slice(&counter.to_be_bytes());
    let aad = associated_data(&out, path);
    out.extend_from_slice(&[0; SALT_LEN + IV_LEN]);
    entropy.fill(&mut out[PREFIX_LEN..]);
    out.extend_from_slice(plaintext);

    let (head, data) = out.split_at_mut(HEAD_LEN);
    let (salt, iv) = salt_and_iv(head);
    let tag = message_key(material, salt).seal(iv, &aad, data);
    out.extend_from_slice(&tag);
    out
}

/// A record, cut into its parts.
#[derive(Clone, Copy)]
pub struct SealedRecord<'a> {
    prefix: &'a [u8; PREFIX_LEN],
    salt: &'a [u8; SALT_LEN],
    sealed: Sealed<'a>,
}

impl<'a> SealedRecord<'a> {
    /// Cuts a record apart.
    ///
    /// # Errors
    ///
    /// Every [`RecordError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(RecordError::UnknownVersion(other)),
            None => return Err(RecordError::TooShort),
        }
        let (head, rest) = bytes.split_at_checked(HEAD_LEN).ok_or(RecordError::TooShort)?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(RecordError::TooShort)?;
        let prefix = head.first_chunk().ok_or(RecordError::TooShort)?;
        let (salt, iv) = salt_and_iv(head);
        Ok(Self { prefix, salt, sealed: Sealed { iv, ciphertext, tag } })
    }

    /// The keyring key that sealed it, by its own account; [`SealedRecord::open`] proves it.
    pub fn keyring_key(&self) -> u32 {
        let [_, a, b, c, d, ..] = *self.prefix;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The record's counter, by its own account; [`SealedRecord::open`] proves it.
    pub fn counter(&self) -> u64 {
        let [_, _, _, _, _, counter @ ..] = *self.prefix;
        u64::from_be_bytes(counter)
    }

    /// Decrypts the record that was found at `path`.
    ///
    /// # Errors
    ///
    /// [`Unauthentic`] for a wrong key, another path, or damage.
    pub fn open(&self, material: &KeyMaterial, path: &str) -> Result<SecretBytes, Unauthentic> {
        let aad = associated_data(self.prefix, path);
        message_key(material, self.salt).open(&aad, self.sealed)
    }
}

impl std::fmt::Debug for SealedRecord<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedRecord")
            .field("keyring_key", &self.keyring_key())
            .field("counter", &self.counter())
            .finish_non_exhaustive()
    }
}

fn message_key(material: &KeyMaterial, salt: &[u8; SALT_LEN]) -> MessageKey {
    MessageKey::derive(Algorithm::Aes256, material.expose(), salt, INFO)
}

fn associated_data(prefix: &[u8], path: &str) -> Vec<u8> {
    length_prefixed(&[LABEL, prefix, path.as_bytes()])
}

/// Salt and IV of a head of [`HEAD_LEN`] bytes.
fn salt_and_iv(head: &[u8]) -> (&[u8; SALT_LEN], &[u8; IV_LEN]) {
    head[PREFIX_LEN..]
        .split_first_chunk()
        .and_then(|(salt, iv)| Some((salt, iv.try_into().ok()?)))
        .expect("the head is 41 bytes long")
}
