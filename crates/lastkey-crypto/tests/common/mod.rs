//! What the integration tests share.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Mutex;

use lastkey_crypto::{EncryptionContext, Entropy, KeyMaterial, KeyVersionId};

/// Yields given bytes, once.
pub(crate) struct Given(Mutex<Vec<u8>>);

impl Given {
    pub(crate) fn bytes(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    pub(crate) fn hex(text: &str) -> Self {
        Self::bytes(hex::decode(text).unwrap())
    }
}

impl Entropy for Given {
    fn fill(&self, out: &mut [u8]) {
        let mut left = self.0.lock().unwrap();
        out.copy_from_slice(&left[..out.len()]);
        left.drain(..out.len());
    }
}

pub(crate) fn key(seed: u8) -> KeyMaterial {
    KeyMaterial::from_slice(&[seed; 32])
}

pub(crate) fn version(seed: u8) -> KeyVersionId {
    KeyVersionId::from_bytes([seed; 16])
}

pub(crate) fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::from_pairs(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
        .unwrap()
}

/// Every copy of `bytes` with one byte changed: all its bits, its lowest, and its letter case.
pub(crate) fn tampered(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len()).flat_map(move |at| {
        [0xff, 0x01, 0x20].map(|mask| {
            let mut copy = bytes.to_vec();
            copy[at] ^= mask;
            (at, copy)
        })
    })
}
