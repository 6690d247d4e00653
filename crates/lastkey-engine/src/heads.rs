//! Sealed heads: what notices that a record was put back, swapped or deleted in the store's file.
//!
//! A sealed record opens only at its own path, but an older version of it opens there too. So each
//! of 256 shards of the paths has a head: a sealed record that holds a keyed set-hash of all
//! records of the shard, and changes in the same transaction as they do. A record put back in an
//! older version, deleted, or taken from elsewhere no longer fits its shard's head.
//!
//! The set-hash is the sum modulo 2^256 of one HMAC-SHA256 for each record, over its path and its
//! stored bytes (which carry the record's counter): adding and removing a record needs nothing but
//! that record. Sums are only ever stored encrypted: who could see them could search for records
//! whose codes cancel out (Wagner's generalised birthday), and keyed as they are, nobody else can
//! compute one.
//!
//! A whole shard put back fits its own head. Therefore:
//!
//! - a head counts the commits that touched its shard (`sequence`),
//! - each parcel in the outbox names the shards that its change touched, and
//! - the store's mark (`audit/head`) counts for each shard the commits whose parcel has left the
//!   outbox again, and those that had none.
//!
//! In every committed state, a shard's sequence is the mark's count plus the parcels that name it.
//!
//! # What has no head, and why that does no harm
//!
//! - **`head/*`** are the heads.
//! - **`outbox/*`**: a parcel that is put back or removed makes a count above wrong. One that took
//!   the place of another would carry another path than the one it was sealed for.
//! - **`audit/head`**, the mark: an older one has older counts, and remembers an earlier end of the
//!   log, behind which the log has changes whose parcels are not in the outbox.
//! - **`meta/seal`** is read before there is a key to check it with. An older one gives the root key
//!   of its time, and if the root key was rotated since, that one does not open the keyring, whose
//!   record is in a shard like any other.

use lastkey_crypto::{KeyMaterial, mac};

use crate::audit;

/// How many shards there are: one for each first byte of a path's SHA-256.
pub(crate) const SHARDS: usize = 256;
/// Where the heads are.
pub(crate) const PREFIX: &str = "head/";
/// Where the store remembers the log's end, and what has left the outbox.
pub(crate) const MARK_PATH: &str = "audit/head";
/// What the keys of set-hashes are long.
pub(crate) const KEY_BYTES: usize = 32;
const OUTBOX: &str = "outbox/";
const SEAL_PATH: &str = "meta/seal";
const HEAD_FORMAT: u8 = 1;
const HEAD_BYTES: usize = 1 + 16 + 8 + 8 + 32;
const MARK_FORMAT: u8 = 2;
const MARK_BYTES: usize = 1 + 8 + 32 + 8 * SHARDS;
/// The mark of releases without heads: seq ‖ hash.
const OLD_MARK_BYTES: usize = 8 + 32;

/// Tells one store, and one history of it, from another.
pub(crate) type StoreId = [u8; 16];

/// The shard of a path.
pub(crate) fn shard_of(path: &str) -> u8 {
    mac::sha256(&[path.as_bytes()])[0]
}

/// Whether the record at the path is in its shard's set.
pub(crate) fn is_covered(path: &str) -> bool {
    !(path.starts_with(PREFIX)
        || path.starts_with(OUTBOX)
        || path == MARK_PATH
        || path == SEAL_PATH)
}

/// Where the head of a shard is.
pub(crate) fn path_of(shard: u8) -> String {
    format!("{PREFIX}{shard:02x}")
}

/// The shard whose head is at the path.
pub(crate) fn shard_at(path: &str) -> Option<u8> {
    let digits = path.strip_prefix(PREFIX).filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok().filter(|shard| path_of(*shard) == path)
}

/// A sum modulo 2^256 of authentication codes; limbs from the lowest.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum([u64; 4]);

impl Sum {
    /// One record's code.
    pub(crate) fn of(key: &KeyMaterial, path: &str, stored: &[u8]) -> Self {
        // A path has at most 1024 bytes.
        let length = u32::try_from(path.len()).unwrap_or(u32::MAX).to_be_bytes();
        Self::from_bytes(mac::hmac_sha256(key.expose(), &[&length, path.as_bytes(), stored]))
    }

    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        let mut carry = false;
        Self(std::array::from_fn(|i| {
            let (sum, first) = self.0[i].overflowing_add(other.0[i]);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first || second;
            sum
        }))
    }

    #[must_use]
    pub(crate) fn minus(self, other: Self) -> Self {
        let mut borrow = false;
        Self(std::array::from_fn(|i| {
            let (rest, first) = self.0[i].overflowing_sub(other.0[i]);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            borrow = first || second;
            rest
        }))
    }

    /// From 32 bytes, the highest first.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        let (limbs, _) = bytes.as_chunks::<8>();
        Self(std::array::from_fn(|i| u64::from_be_bytes(limbs[3 - i])))
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let (limbs, _) = bytes.as_chunks_mut::<8>();
        for (limb, value) in limbs.iter_mut().rev().zip(self.0) {
            *limb = value.to_be_bytes();
        }
        bytes
    }
}

/// Shows nothing: sums must not be seen.
impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sum(..)")
    }
}

/// What is known of one shard.
///
/// Record (behind the barrier, big-endian; its counter is the sequence):
/// ```text
/// 00  1  format 1
/// 01  16 store id
/// 11  8  sequence
/// 19  8  records in the shard
/// 21  32 sum of their codes
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Counts the commits that touched the shard.
    pub(crate) sequence: u64,
    /// How many records there are.
    pub(crate) records: u64,
    /// The sum of their codes.
    pub(crate) sum: Sum,
}

impl Head {
    pub(crate) fn encode(&self, store: &StoreId) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0] = HEAD_FORMAT;
        bytes[0x01..0x11].copy_from_slice(store);
        bytes[0x11..0x19].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[0x19..0x21].copy_from_slice(&self.records.to_be_bytes());
        bytes[0x21..].copy_from_slice(&self.sum.to_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<(StoreId, Self)> {
        let rest = bytes.strip_prefix(&[HEAD_FORMAT])?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (records, sum) = rest.split_first_chunk()?;
        let head = Self {
            sequence: u64::from_be_bytes(*sequence),
            records: u64::from_be_bytes(*records),
            sum: Sum::from_bytes(sum.try_into().ok()?),
        };
        Some((*store, head))
    }
}

/// One number for each shard.
pub(crate) type Counts = Box<[u64; SHARDS]>;

/// An array of zeros.
pub(crate) fn zeros() -> Counts {
    Box::new([0; SHARDS])
}

/// What the store remembers of the log, and of what has left the outbox.
///
/// Record (behind the barrier, big-endian):
/// ```text
/// 000  1    format 2
/// 001  8    the log's last record
/// 009  32   its hash
/// 029  2048 for each shard, 8: commits that touched it and are not in the outbox
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Where the log ended. Every change in it up to here has left the outbox or was never in it.
    pub(crate) log: audit::Head,
    /// Commits that touched the shard, less those whose parcel is in the outbox.
    pub(crate) settled: Counts,
}

impl Mark {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MARK_BYTES);
        bytes.push(MARK_FORMAT);
        bytes.extend_from_slice(&self.log.seq.to_be_bytes());
        bytes.extend_from_slice(&self.log.hash);
        for count in &*self.settled {
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[MARK_FORMAT])?;
        let (log, counts) = rest.split_at_checked(OLD_MARK_BYTES)?;
        Some(Self { log: log_head(log)?, settled: decode_counts(counts)? })
    }

    /// Reads the log's end also from what releases without heads wrote.
    pub(crate) fn decode_log(bytes: &[u8]) -> Option<audit::Head> {
        Self::decode(bytes).map(|mark| mark.log).or_else(|| log_head(bytes))
    }
}

fn log_head(bytes: &[u8]) -> Option<audit::Head> {
    let (seq, hash) = bytes.split_first_chunk::<8>()?;
    Some(audit::Head { seq: u64::from_be_bytes(*seq), hash: hash.try_into().ok()? })
}

/// [`SHARDS`] numbers of 8 bytes and nothing else.
pub(crate) fn decode_counts(bytes: &[u8]) -> Option<Counts> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let counts: Box<[u64]> = numbers.iter().map(|number| u64::from_be_bytes(*number)).collect();
    if rest.is_empty() { counts.try_into().ok() } else { None }
}

/// For the fuzz target: reads a head and a mark.
pub(crate) fn parse(bytes: &[u8]) {
    if let Some((store, head)) = Head::decode(bytes) {
        assert_eq!(head.encode(&store), bytes, "a head is written as it was read");
    }
    if let Some(mark) = Mark::decode(bytes) {
        assert_eq!(mark.encode(), bytes, "a mark is written as it was read");
    }
    let _ = Mark::decode_log(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum() -> impl Strategy<Value = Sum> {
        // Limbs at the edges, where carries are.
        let limb = prop_oneof![Just(0), Just(u64::MAX), Just(1), any::<u64>()];
        proptest::array::uniform4(limb).prop_map(Sum)
    }

    proptest! {
        #[test]
        fn sums_form_a_commutative_group(a in sum(), b in sum(), c in sum()) {
            prop_assert_eq!(a.plus(b), b.plus(a));
            prop_assert_eq!(a.plus(b).plus(c), a.plus(b.plus(c)));
            prop_assert_eq!(a.plus(Sum::default()), a);
            prop_assert_eq!(a.plus(b).minus(b), a);
            prop_assert_eq!(a.minus(b), Sum::default().minus(b.minus(a)));
        }

        #[test]
        fn bytes_are_the_number(a in sum(), b in sum()) {
            prop_assert_eq!(Sum::from_bytes(a.to_bytes()), a);
            // The schoolbook sum, byte by byte from the last.
            let (x, y) = (a.to_bytes(), b.to_bytes());
            let (mut expected, mut carry) = ([0u8; 32], 0u16);
            for i in (0..32).rev() {
                let digit = u16::from(x[i]) + u16::from(y[i]) + carry;
                expected[i] = digit.to_le_bytes()[0];
                carry = digit >> 8;
            }
            prop_assert_eq!(a.plus(b).to_bytes(), expected);
        }

        #[test]
        fn heads_and_marks_come_back(
            store: [u8; 16], sequence: u64, records: u64, sum in sum(),
            seq: u64, hash: [u8; 32], counts in proptest::collection::vec(any::<u64>(), SHARDS),
        ) {
            let head = Head { sequence, records, sum };
            prop_assert_eq!(Head::decode(&head.encode(&store)), Some((store, head)));
            let settled: Counts = counts.into_boxed_slice().try_into().unwrap();
            let mark = Mark { log: audit::Head { seq, hash }, settled };
            let bytes = mark.encode();
            prop_assert_eq!(Mark::decode(&bytes), Some(mark));
            prop_assert_eq!(Mark::decode(&bytes[1..]), None);
        }

        /// In whatever order records come and go, the sum is that of the ones that are there.
        #[test]
        fn a_sum_is_that_of_the_present_records(
            steps in proptest::collection::vec((0..6u8, proptest::option::of(0..4u8)), 0..60),
        ) {
            let key = KeyMaterial::from_slice(&[7; KEY_BYTES]);
            let mut present = std::collections::BTreeMap::<u8, u8>::new();
            let mut running = Sum::default();
            let code = |path: u8, value: u8| Sum::of(&key, &format!("p/{path}"), &[value]);
            for (path, value) in steps {
                if let Some(old) = present.remove(&path) {
                    running = running.minus(code(path, old));
                }
                if let Some(value) = value {
                    present.insert(path, value);
                    running = running.plus(code(path, value));
                }
            }
            let whole = present.iter().fold(Sum::default(), |sum, (p, v)| sum.plus(code(*p, *v)));
            prop_assert_eq!(running, whole);
        }
    }

    #[test]
    fn a_code_binds_path_and_value_apart() {
        let key = KeyMaterial::from_slice(&[7; KEY_BYTES]);
        assert_ne!(Sum::of(&key, "ab", b"c"), Sum::of(&key, "a", b"bc"));
        let other = KeyMaterial::from_slice(&[8; KEY_BYTES]);
        assert_ne!(Sum::of(&key, "a", b"b"), Sum::of(&other, "a", b"b"));
    }

    #[test]
    fn heads_have_one_path_each() {
        for shard in 0..=u8::MAX {
            assert_eq!(shard_at(&path_of(shard)), Some(shard));
        }
        for other in ["head/", "head/0", "head/+1", "head/FF", "head/000", "heads/00"] {
            assert_eq!(shard_at(other), None, "{other}");
        }
    }
}
