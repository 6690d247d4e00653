//! What a key version is sealed with: chosen once, when the version is made, and never guessed.

use aws_lc_rs::aead;
use serde::{Deserialize, Serialize};

/// The construction a key version uses for its whole life (decision 1).
///
/// Stored as its number, so that a version read back from the store selects its algorithm without
/// trial decryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum Suite {
    /// HKDF-SHA256 over a random salt, then AES-GCM, in this process.
    SoftwareAes = 1,
    /// The token's own AES-GCM, inside a PKCS#11 device.
    TokenGcm = 2,
}

impl Suite {
    /// How many messages one key version may seal before it must rotate.
    pub const fn message_limit(self) -> u64 {
        match self {
            // 28 random bytes a message: a collision among 2⁴⁰ is less likely than 2⁻¹⁴⁰.
            Self::SoftwareAes => 1 << 40,
            // A random 96-bit nonce under one key: NIST SP 800-38D §8.3.
            Self::TokenGcm => 1 << 32,
        }
    }
}

/// A suite number this release does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown cipher suite {0}; a newer release of Lastkey may know it")]
pub struct UnknownSuite(pub u8);

impl From<Suite> for u8 {
    fn from(suite: Suite) -> u8 {
        suite as u8
    }
}

impl TryFrom<u8> for Suite {
    type Error = UnknownSuite;

    fn try_from(number: u8) -> Result<Self, UnknownSuite> {
        match number {
            1 => Ok(Self::SoftwareAes),
            2 => Ok(Self::TokenGcm),
            other => Err(UnknownSuite(other)),
        }
    }
}

/// The AES key size of a symmetric key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// AES-128-GCM.
    Aes128,
    /// AES-192-GCM.
    Aes192,
    /// AES-256-GCM.
    Aes256,
}

impl Algorithm {
    /// Length of the key material, in bytes.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Aes192 => 24,
            Self::Aes256 => 32,
        }
    }

    /// The algorithm for material of `len` bytes.
    ///
    /// Total, because HKDF stands between the material and AES: 16 and 24 bytes select AES-128
    /// and AES-192, every other length AES-256.
    pub const fn for_key_len(len: usize) -> Self {
        match len {
            16 => Self::Aes128,
            24 => Self::Aes192,
            _ => Self::Aes256,
        }
    }

    pub(crate) fn gcm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128 => &aead::AES_128_GCM,
            Self::Aes192 => &aead::AES_192_GCM,
            Self::Aes256 => &aead::AES_256_GCM,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_stored_as_their_number() {
        for suite in [Suite::SoftwareAes, Suite::TokenGcm] {
            let json = serde_json::to_string(&suite).unwrap();
            assert_eq!(json, u8::from(suite).to_string());
            assert_eq!(serde_json::from_str::<Suite>(&json).unwrap(), suite);
        }
        assert_eq!(Suite::try_from(3), Err(UnknownSuite(3)));
        assert!(serde_json::from_str::<Suite>("0").is_err());
    }

    #[test]
    fn suites_have_the_limits_of_their_nonces() {
        assert_eq!(Suite::SoftwareAes.message_limit(), 1_099_511_627_776);
        assert_eq!(Suite::TokenGcm.message_limit(), 4_294_967_296);
    }

    #[test]
    fn key_lengths_name_their_algorithm() {
        for algorithm in [Algorithm::Aes128, Algorithm::Aes192, Algorithm::Aes256] {
            assert_eq!(Algorithm::for_key_len(algorithm.key_len()), algorithm);
            assert_eq!(algorithm.gcm().key_len(), algorithm.key_len());
        }
    }
}
