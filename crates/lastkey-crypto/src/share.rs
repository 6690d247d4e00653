//! Shares of an unseal key (Shamir 1979), as people keep and type them.
//!
//! [`split`] makes `n` shares of a 32-byte key, of which any `k` give it back through [`combine`]
//! and fewer say nothing about it. The arithmetic is that of `vsss-rs`: GF(2⁸), byte by byte, in
//! constant time and without tables.
//!
//! A share is one line of text: `lks1-`, then 45 bytes in Crockford's base 32, in groups of four.
//! Case, spaces and hyphens do not matter, `o` is read as `0`, `i` and `l` as `1`.
//!
//! ```text
//! offset  bytes          meaning
//! 0000    01             format version
//! 0001    a1 b2 c3 d4    which set: 4 random bytes that all shares of one splitting have
//! 0005    00 01          generation of the set, big-endian
//! 0007    03             threshold: how many shares give the key
//! 0008    02             index of this share, from 1
//! 0009    …              value, 32 bytes
//! 0029    9a 8b 7c 6d    the first 4 bytes of SHA-256 over `lastkey share 1` and all before them
//! ```
//!
//! The checksum tells a typing error from a wrong share. It authenticates nothing: whether shares
//! are genuine shows only when what they give opens something.

use std::fmt;

use rand_core::{TryCryptoRng, TryRng};
use vsss_rs::Gf256;
use zeroize::{Zeroize, Zeroizing};

use crate::{Entropy, KeyMaterial, mac};

/// Length of a key that can be split, in bytes.
pub const KEY_LEN: usize = 32;
/// Fewest shares that may be asked for to unseal. One would be a password on paper.
pub const MIN_THRESHOLD: u8 = 2;

const PREFIX: &str = "lks1";
const VERSION: u8 = 1;
const HEAD_LEN: usize = 9;
const SUM_LEN: usize = 4;
const SHARE_LEN: usize = HEAD_LEN + KEY_LEN + SUM_LEN;
/// 45 bytes are exactly 72 digits of 5 bits.
const DIGITS: usize = SHARE_LEN * 8 / 5;
const GROUP: usize = 4;
const LABEL: &[u8] = b"lastkey share 1";
/// Crockford's digits: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A line is not a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Not of the form at all.
    #[error(
        "this is not a share: one begins with lks1- and has 18 groups of four letters or digits behind it"
    )]
    NotAShare,
    /// Not all of it, or too much.
    #[error("the share has {found} letters and digits behind lks1-, but should have 72")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// A letter that no share has.
    #[error("the share has a character that no share has, in group {group} of 18")]
    Character {
        /// Which group, from 1.
        group: usize,
    },
    /// The checksum is another.
    #[error("the share is mistyped: its checksum does not match; compare it with the original")]
    Mistyped,
    /// A format this release does not know.
    #[error("the share has format version {0}; this release knows version 1")]
    UnknownVersion(u8),
    /// Fields that no share has.
    #[error("the share makes no sense: its index or threshold is out of range")]
    Malformed,
}

/// How a key cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give a threshold from 2 to the number of shares, and at most 255 shares")]
pub struct SplitError;

/// What a set of shares is called: 4 random bytes, shown as 8 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SetId([u8; 4]);

impl SetId {
    /// Draws a new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 4];
        entropy.fill(&mut bytes);
        Self(bytes)
    }

    /// The set whose 8 hexadecimal digits these are.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 4];
        hex::decode_to_slice(text, &mut bytes).ok().map(|()| Self(bytes))
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which share of which set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareHead {
    /// The set it is of.
    pub set: SetId,
    /// The generation of that set.
    pub generation: u16,
    /// How many shares give the key.
    pub threshold: u8,
    /// Which share it is, from 1.
    pub index: u8,
}

/// One share; its value lies in locked memory.
pub struct Share {
    head: ShareHead,
    value: KeyMaterial,
}

impl Share {
    /// Which share it is.
    pub fn head(&self) -> ShareHead {
        self.head
    }

    /// Reads a share as somebody typed it.
    ///
    /// # Errors
    /// [`ShareError`], which never repeats what was typed.
    pub fn parse(text: &str) -> Result<Self, ShareError> {
        Self::decode(&from_digits(text)?)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ShareError> {
        let (body, sum) = bytes.split_last_chunk::<SUM_LEN>().ok_or(ShareError::NotAShare)?;
        if !mac::equal(&checksum(body), sum) {
            return Err(ShareError::Mistyped);
        }
        let (head, value) = body.split_first_chunk::<HEAD_LEN>().ok_or(ShareError::NotAShare)?;
        let [version, a, b, c, d, high, low, threshold, index] = *head;
        if version != VERSION {
            return Err(ShareError::UnknownVersion(version));
        }
        if index == 0 || threshold < MIN_THRESHOLD || value.len() != KEY_LEN {
            return Err(ShareError::Malformed);
        }
        let set = SetId([a, b, c, d]);
        let generation = u16::from_be_bytes([high, low]);
        let head = ShareHead { set, generation, threshold, index };
        Ok(Self { head, value: KeyMaterial::from_slice(value) })
    }

    /// The line that its keeper writes down.
    pub fn to_text(&self) -> Zeroizing<String> {
        let ShareHead { set, generation, threshold, index } = self.head;
        let mut bytes = Zeroizing::new(Vec::with_capacity(SHARE_LEN));
        bytes.push(VERSION);
        bytes.extend_from_slice(&set.0);
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.extend_from_slice(&[threshold, index]);
        bytes.extend_from_slice(self.value.expose());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        to_digits(&bytes)
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("head", &self.head).finish_non_exhaustive()
    }
}

/// What a set of shares is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Splitting {
    /// What the set is called.
    pub set: SetId,
    /// Its generation.
    pub generation: u16,
    /// How many shares there are.
    pub shares: u8,
    /// How many of them give the key.
    pub threshold: u8,
}

/// Splits `key` into shares with the indexes 1, 2, 3, ….
///
/// # Errors
/// [`SplitError`] unless `2 ≤ threshold ≤ shares` and the key has [`KEY_LEN`] bytes.
pub fn split(
    key: &KeyMaterial,
    splitting: Splitting,
    entropy: &dyn Entropy,
) -> Result<Vec<Share>, SplitError> {
    let Splitting { set, generation, shares, threshold } = splitting;
    if threshold < MIN_THRESHOLD || threshold > shares || key.len() != KEY_LEN {
        return Err(SplitError);
    }
    let (k, n) = (usize::from(threshold), usize::from(shares));
    let mut parts =
        Gf256::split_bytes(k, n, key.expose(), Drawn(entropy)).map_err(|_| SplitError)?;
    let made = parts
        .iter()
        .map(|part| {
            let (&index, value) = part.split_first().ok_or(SplitError)?;
            let head = ShareHead { set, generation, threshold, index };
            Ok(Share { head, value: KeyMaterial::from_slice(value) })
        })
        .collect();
    parts.zeroize();
    made
}

/// The key that these shares give, if they are genuine; something else if they are not. `None` if
/// an index occurs twice, or there are fewer than two.
pub fn combine(shares: &[Share]) -> Option<KeyMaterial> {
    let mut parts: Vec<Vec<u8>> = Vec::with_capacity(shares.len());
    for share in shares {
        let mut part = Vec::with_capacity(1 + KEY_LEN);
        part.push(share.head.index);
        part.extend_from_slice(share.value.expose());
        parts.push(part);
    }
    let combined = Gf256::combine_bytes(&parts);
    parts.zeroize();
    let mut bytes = combined.ok()?;
    let key = KeyMaterial::from_slice(&bytes);
    bytes.zeroize();
    (key.len() == KEY_LEN).then_some(key)
}

fn checksum(body: &[u8]) -> [u8; SUM_LEN] {
    let digest = mac::sha256(&[LABEL, body]);
    [digest[0], digest[1], digest[2], digest[3]]
}

/// Our entropy, as vsss-rs asks for it.
struct Drawn<'a>(&'a dyn Entropy);

impl TryRng for Drawn<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(out);
        Ok(())
    }
}

impl TryCryptoRng for Drawn<'_> {}

/// `lks1-xxxx-xxxx-…`
fn to_digits(bytes: &[u8]) -> Zeroizing<String> {
    let mut text =
        Zeroizing::new(String::with_capacity(PREFIX.len() + DIGITS + DIGITS.div_ceil(GROUP)));
    text.push_str(PREFIX);
    let (mut held, mut bits, mut count) = (0u32, 0u32, 0usize);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            if count % GROUP == 0 {
                text.push('-');
            }
            text.push(char::from(ALPHABET[(held >> bits) as usize & 31]));
            count += 1;
        }
    }
    text
}

fn from_digits(text: &str) -> Result<Zeroizing<Vec<u8>>, ShareError> {
    let text = text.trim();
    let digits = text
        .get(..PREFIX.len())
        .filter(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
        .and_then(|_| text.get(PREFIX.len()..))
        .ok_or(ShareError::NotAShare)?;
    let counts = |c: &char| !matches!(c, '-' | ' ');
    let found = digits.chars().filter(counts).count();
    if found != DIGITS {
        return Err(ShareError::Length { found });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(SHARE_LEN));
    let (mut held, mut bits) = (0u32, 0u32);
    for (at, digit) in digits.chars().filter(counts).enumerate() {
        let value = value_of(digit).ok_or(ShareError::Character { group: at / GROUP + 1 })?;
        held = (held << 5) | value;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((held >> bits) & 0xff).unwrap_or_default());
        }
    }
    Ok(bytes)
}

fn value_of(digit: char) -> Option<u32> {
    let digit = match digit.to_ascii_lowercase() {
        'o' => '0',
        'i' | 'l' => '1',
        other => other,
    };
    let digit = u8::try_from(digit).ok()?;
    ALPHABET.iter().position(|known| *known == digit).and_then(|at| u32::try_from(at).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SystemEntropy;

    const GOLDEN: &str = "lks1-040g-40r4-003g-60g0-0410-6105-0r3g-g28a-1c60-t3gf-208h-\
                          44rm-2mb1-e60s-38dh-r78y-3zvd-48ja";

    fn splitting(shares: u8, threshold: u8) -> Splitting {
        Splitting { set: SetId([1, 2, 3, 4]), generation: 7, shares, threshold }
    }

    #[test]
    fn any_threshold_of_shares_gives_the_key_and_fewer_do_not() {
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        let texts: Vec<_> = split(&key, splitting(5, 3), &SystemEntropy)
            .unwrap()
            .iter()
            .map(Share::to_text)
            .collect();
        let parse = |at: usize| Share::parse(&texts[at]).unwrap();
        for a in 0..5 {
            for b in 0..5 {
                for c in 0..5 {
                    let combined = combine(&[parse(a), parse(b), parse(c)]);
                    let distinct = a != b && b != c && a != c;
                    assert_eq!(combined.is_some(), distinct);
                    assert!(combined.is_none_or(|combined| combined.equals(&key)));
                }
                if a != b {
                    assert!(!combine(&[parse(a), parse(b)]).unwrap().equals(&key));
                }
            }
        }
        let heads: Vec<_> = (0..5).map(|at| parse(at).head()).collect();
        for (at, head) in heads.iter().enumerate() {
            assert_eq!((usize::from(head.index), head.threshold), (at + 1, 3));
            assert_eq!((head.set, head.generation), (SetId([1, 2, 3, 4]), 7));
        }
    }

    #[test]
    fn all_two_hundred_and_fifty_five_shares_work() {
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        let shares = split(&key, splitting(255, 255), &SystemEntropy).unwrap();
        assert_eq!(shares.len(), 255);
        assert!(combine(&shares).unwrap().equals(&key));
        assert!(!combine(&shares[1..]).unwrap().equals(&key));
    }

    #[test]
    fn senseless_splittings_are_refused() {
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        for (shares, threshold) in [(0, 0), (1, 1), (3, 1), (3, 0), (2, 3)] {
            assert!(split(&key, splitting(shares, threshold), &SystemEntropy).is_err());
        }
        let short = KeyMaterial::generate(16, &SystemEntropy);
        assert!(split(&short, splitting(3, 2), &SystemEntropy).is_err());
        assert!(combine(&[]).is_none());
    }

    /// Made by another implementation (Python, from the table above).
    #[test]
    fn the_text_is_frozen() {
        let head = ShareHead { set: SetId([1, 2, 3, 4]), generation: 7, threshold: 3, index: 2 };
        let value: Vec<u8> = (0..32).collect();
        let share = Share { head, value: KeyMaterial::from_slice(&value) };
        assert_eq!(*share.to_text(), GOLDEN.replace(' ', ""));
        let read = Share::parse(GOLDEN).unwrap();
        assert_eq!((read.head(), read.value.expose()), (head, &*value));
    }

    #[test]
    fn shares_are_read_as_people_type_them() {
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        let share = split(&key, splitting(3, 2), &SystemEntropy).unwrap().remove(0);
        let text = share.to_text();
        let spoken = [
            text.to_uppercase(),
            text.replace('-', " "),
            text.replace('-', ""),
            text.replace('0', "O").replace('1', "l").replacen("lksl", "lks1", 1),
            format!("  {}\r\n", *text),
        ];
        for typed in spoken {
            assert_eq!(Share::parse(&typed).unwrap().head(), share.head(), "{typed}");
        }
    }

    #[test]
    fn every_typing_error_is_noticed() {
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        let text = split(&key, splitting(3, 2), &SystemEntropy).unwrap()[0].to_text();
        for at in 5..text.len() {
            if &text[at..=at] == "-" {
                continue;
            }
            let mut wrong = text.to_string();
            let other = if &text[at..=at] == "7" { "8" } else { "7" };
            wrong.replace_range(at..=at, other);
            assert_eq!(Share::parse(&wrong).unwrap_err(), ShareError::Mistyped, "at {at}");
        }
        assert_eq!(Share::parse("").unwrap_err(), ShareError::NotAShare);
        assert_eq!(Share::parse("lastkey").unwrap_err(), ShareError::NotAShare);
        assert_eq!(Share::parse("lks1-é").unwrap_err(), ShareError::Length { found: 1 });
        let cut = &text[..text.len() - 1];
        assert_eq!(Share::parse(cut).unwrap_err(), ShareError::Length { found: 71 });
        let mut ninth = text.to_string();
        ninth.replace_range(45..46, "u");
        assert_eq!(Share::parse(&ninth).unwrap_err(), ShareError::Character { group: 9 });
        let strange = text.replacen(&text[10..11], "u", 1);
        assert!(matches!(Share::parse(&strange), Err(ShareError::Character { .. })), "{strange}");
    }

    #[test]
    fn a_share_whose_fields_make_no_sense_is_refused() {
        let told = |head: &[u8], length: usize| {
            let body = [head, &[9; KEY_LEN + 1][..length]].concat();
            Share::decode(&[&body[..], &checksum(&body)].concat()).map(|share| share.head().index)
        };
        let head = |version, threshold, index| [version, 1, 2, 3, 4, 0, 1, threshold, index];
        assert_eq!(told(&head(1, 2, 255), KEY_LEN), Ok(255));
        assert_eq!(told(&head(1, 2, 0), KEY_LEN), Err(ShareError::Malformed));
        assert_eq!(told(&head(1, 1, 1), KEY_LEN), Err(ShareError::Malformed));
        assert_eq!(told(&head(1, 2, 1), KEY_LEN + 1), Err(ShareError::Malformed));
        assert_eq!(told(&head(2, 2, 1), KEY_LEN), Err(ShareError::UnknownVersion(2)));
        let set = SetId([1, 2, 3, 0xab]);
        assert_eq!((set.to_string(), SetId::parse("010203ab")), ("010203ab".into(), Some(set)));
        assert_eq!(SetId::parse("010203a"), None);
    }

    /// Whichever of them the arithmetic draws by.
    #[test]
    fn what_is_drawn_is_the_entropy() {
        struct Sevens;
        impl Entropy for Sevens {
            fn fill(&self, out: &mut [u8]) {
                out.fill(7);
            }
        }
        let (mut drawn, mut bytes) = (Drawn(&Sevens), [0; 5]);
        assert_eq!(drawn.try_next_u32(), Ok(0x0707_0707));
        assert_eq!(drawn.try_next_u64(), Ok(0x0707_0707_0707_0707));
        assert_eq!((drawn.try_fill_bytes(&mut bytes), bytes), (Ok(()), [7; 5]));
    }

    #[test]
    fn a_share_prints_nothing_secret() {
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        let shown = format!("{:?}", split(&key, splitting(2, 2), &SystemEntropy).unwrap()[0]);
        assert!(shown.starts_with("Share { head:") && shown.ends_with(".. }"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,120}", tail in "[0-9a-z]{72}") {
            let _ = Share::parse(&text);
            let _ = Share::parse(&format!("lks1-{tail}"));
        }
    }
}
