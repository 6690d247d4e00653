//! Access keys: the credentials whose holders sign requests.

use std::sync::Arc;

use lastkey_crypto::{Entropy, KeyMaterial, SecretBytes};
use zeroize::Zeroizing;

use crate::Timestamp;

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const ID_PREFIX: &str = "LK";
const ID_RANDOM: usize = 22;
/// 43 characters of 62: 256 bits.
const SECRET_CHARS: usize = 43;
const FORMAT: u8 = 1;

/// An access key of the account root.
///
/// Record (behind the barrier):
/// ```text
/// 00  1  format 1
/// 01  8  creation, milliseconds since 1970, big-endian
/// 09  1  length n of the id
/// 0a  n  id, ASCII
///     …  secret, ASCII
/// ```
pub struct AccessKey {
    /// The public half.
    pub id: Arc<str>,
    /// The secret half: ASCII text that signs requests.
    pub secret: KeyMaterial,
    /// When it was made.
    pub created: Timestamp,
}

impl AccessKey {
    /// Draws a new one. The secret is returned a second time, as text to hand out once.
    pub fn generate(entropy: &dyn Entropy, now: Timestamp) -> (Self, SecretBytes) {
        let id = format!("{ID_PREFIX}{}", String::from_utf8_lossy(&draw(entropy, ID_RANDOM)));
        let secret = draw(entropy, SECRET_CHARS);
        let key = Self { id: id.into(), secret: KeyMaterial::from_slice(&secret), created: now };
        (key, SecretBytes::new(secret.to_vec()))
    }

    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(128));
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.created.as_millis().to_be_bytes());
        bytes.push(u8::try_from(self.id.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(self.secret.expose());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[FORMAT])?;
        let (created, rest) = rest.split_first_chunk::<8>()?;
        let (&length, rest) = rest.split_first()?;
        let (id, secret) = rest.split_at_checked(usize::from(length))?;
        if secret.is_empty() || secret.len() > 64 {
            return None;
        }
        Some(Self {
            id: std::str::from_utf8(id).ok()?.into(),
            secret: KeyMaterial::from_slice(secret),
            created: Timestamp::from_millis(i64::from_be_bytes(*created)),
        })
    }
}

/// Draws characters without bias: bytes that do not fit evenly are thrown away.
fn draw(entropy: &dyn Entropy, length: usize) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(length));
    let fair = 256 - 256 % ALPHABET.len();
    while out.len() < length {
        let mut byte = [0];
        entropy.fill(&mut byte);
        if usize::from(byte[0]) < fair {
            out.push(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::SystemEntropy;

    use super::*;

    #[test]
    fn an_access_key_survives_its_record() {
        let (key, secret) = AccessKey::generate(&SystemEntropy, Timestamp::from_millis(5));
        assert_eq!(secret.expose().len(), SECRET_CHARS);
        let read = AccessKey::decode(&key.encode()).unwrap();
        assert_eq!(read.id, key.id);
        assert_eq!(read.secret.expose(), secret.expose());
        assert!(AccessKey::decode(&[]).is_none());
        assert!(AccessKey::decode(&[1, 0]).is_none());
    }
}
