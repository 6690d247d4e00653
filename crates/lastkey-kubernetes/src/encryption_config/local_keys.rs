//! Keys that lie in the file: how long they are, and whether anybody could guess them.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use super::KeyShape;

/// Go's `base64.StdEncoding`: padded, with no opinion about the last bits.
pub(super) const GO_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// What Kubernetes' documentation and tutorials encrypt with.
const PUBLISHED: [&[u8]; 4] = [
    b"secret is secure",
    b"secret is secure, or is it?",
    b"secret is secure, I think",
    b"this is password",
];

/// Measures a key.
pub(super) fn shape(secret: &str) -> KeyShape {
    if secret.is_empty() {
        return KeyShape::Missing;
    }
    // Go skips line breaks, and nothing else
    let text: Zeroizing<String> =
        Zeroizing::new(secret.chars().filter(|c| !matches!(c, '\r' | '\n')).collect());
    let Ok(key) = GO_BASE64.decode(text.as_bytes()).map(Zeroizing::new) else {
        return KeyShape::NotBase64;
    };
    let known = PUBLISHED.iter().any(|text| key.starts_with(text)) || is_monotonous(&key);
    KeyShape::Bytes { length: key.len(), known, same_as: tag(&key) }
}

/// One byte over and over, or counting up by one.
fn is_monotonous(key: &[u8]) -> bool {
    let steps = |step: u8| key.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == step);
    key.len() > 1 && (steps(0) || steps(1))
}

/// Equal for equal keys in this process; says nothing about a key elsewhere.
fn tag(key: &[u8]) -> u64 {
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    HASHER.hash_one(key)
}
