//! The spool's text: one JSON value a line, each behind a checksum of its own.
//!
//! ```text
//! 5c1f0d6e0b7a9c42 {"version":1,"spool":"000102030405060708090a0b0c0d0e0f","next":7}
//! 9a31c5e0d1f2b384 {"sequence":7,"api":"v2","key_version":"1d1c…","count":3,"first_ms":…,"last_ms":…,"uids":[…]}
//! ```
//!
//! The first line names the numbering, and the number it goes on with; every other one is a batch.
//! A line whose checksum does not fit was torn by a crash, or damaged, and is passed over.

use lastkey_client::native::CachedAnswers;
use lastkey_crypto::{SpoolId, mac::sha256};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const VERSION: u8 = 1;
/// So many numbers are passed over after damage: a batch that cannot be read any more may have been
/// delivered, and its number must not come twice.
const SKIP: u64 = 1 << 20;
/// Hexadecimal digits of the checksum.
const SUM: usize = 16;

/// The first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    version: u8,
    pub(super) spool: SpoolId,
    /// The number of the next batch, if none follows in the file.
    pub(super) next: u64,
}

impl Header {
    pub(super) fn new(spool: SpoolId, next: u64) -> Self {
        Self { version: VERSION, spool, next }
    }
}

/// Bytes that are no spool of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::plugin::memory) enum FormatError {
    #[error("it does not begin as a spool does")]
    Header,
    #[error("it is of version {0}; this release knows version 1")]
    Version(u8),
}

/// One line of the file.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("our own types have string keys only");
    let mut line = Vec::with_capacity(SUM + 2 + json.len());
    line.extend_from_slice(&sum(&json));
    line.push(b' ');
    line.extend_from_slice(&json);
    line.push(b'\n');
    line
}

/// A file's content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) header: Header,
    /// Where the batches begin.
    pub(super) start: usize,
    /// Where the last whole line ends.
    pub(super) end: usize,
    /// The number of the next batch.
    pub(super) next: u64,
    /// Whole lines that are not what was written.
    pub(super) damaged: usize,
    /// Whole batches.
    pub(super) batches: usize,
}

/// Looks through a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, FormatError> {
    let (first, _) = split_line(bytes).ok_or(FormatError::Header)?;
    let header: Header = read(first).ok_or(FormatError::Header)?;
    if header.version != VERSION {
        return Err(FormatError::Version(header.version));
    }
    let start = first.len() + 1;
    let found = batches(&bytes[start..], usize::MAX);
    let last = found.batches.iter().map(|batch| batch.sequence).max().unwrap_or(0);
    let (end, damaged) = (start + found.length, found.damaged);
    let mut next = header.next.max(last.saturating_add(1));
    if damaged > 0 || end < bytes.len() {
        next = next.saturating_add(SKIP);
    }
    Ok(Parsed { header, start, end, next, damaged, batches: found.batches.len() })
}

/// Batches of a part of a file that begins with a line.
#[derive(Debug, Default)]
pub(super) struct Batches {
    pub(super) batches: Vec<CachedAnswers>,
    /// Bytes of the whole lines that were looked at.
    pub(super) length: usize,
    pub(super) damaged: usize,
}

/// Reads whole lines as batches, at most `limit`.
pub(super) fn batches(mut bytes: &[u8], limit: usize) -> Batches {
    let mut found = Batches::default();
    while found.batches.len() < limit
        && let Some((text, rest)) = split_line(bytes)
    {
        let batch = read::<CachedAnswers>(text);
        found.length += text.len() + 1;
        found.damaged += usize::from(batch.is_none());
        found.batches.extend(batch);
        bytes = rest;
    }
    found
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn read<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (start, json) = line.split_at_checked(SUM + 1)?;
    let fits = start[..SUM] == sum(json) && start[SUM] == b' ';
    fits.then(|| serde_json::from_slice(json).ok()).flatten()
}

fn sum(json: &[u8]) -> [u8; SUM] {
    let mut digits = [0; SUM];
    // 8 bytes are 16 digits
    let _ = hex::encode_to_slice(&sha256(&[json])[..SUM / 2], &mut digits);
    digits
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::KeyVersionId;
    use proptest::prelude::*;

    use super::*;

    fn batch(sequence: u64) -> CachedAnswers {
        CachedAnswers {
            sequence,
            api: "v2".into(),
            key_version: KeyVersionId::from_bytes([3; 16]),
            count: 2,
            first_ms: 5,
            last_ms: 6,
            uids: vec!["u".into()],
        }
    }

    fn file(batches: &[CachedAnswers]) -> Vec<u8> {
        let header = Header::new(SpoolId::from_bytes([1; 16]), 7);
        let mut bytes = line(&header);
        batches.iter().for_each(|batch| bytes.extend(line(batch)));
        bytes
    }

    /// What an older release wrote must stay readable.
    #[test]
    fn golden() {
        let expected = "fb460391cd73a94c {\"version\":1,\"spool\":\"01010101010101010101010101010101\",\"next\":7}\n\
             c954ef945dc868a9 {\"sequence\":7,\"api\":\"v2\",\"key_version\":\"03030303-0303-0303-0303-030303030303\",\"count\":2,\"first_ms\":5,\"last_ms\":6,\"uids\":[\"u\"]}\n";
        assert_eq!(String::from_utf8(file(&[batch(7)])).unwrap(), expected);
        let parsed = parse(expected.as_bytes()).unwrap();
        assert_eq!((parsed.next, parsed.batches, parsed.end), (8, 1, expected.len()));
    }

    #[test]
    fn the_number_goes_on_also_when_all_was_delivered() {
        assert_eq!(parse(&file(&[])).unwrap().next, 7);
        assert_eq!(parse(&file(&[batch(7), batch(8)])).unwrap().next, 9);
    }

    #[test]
    fn other_files_are_no_spools() {
        let newer = line(&Header { version: 2, spool: SpoolId::from_bytes([1; 16]), next: 1 });
        assert_eq!(parse(&newer), Err(FormatError::Version(2)));
        for bytes in [&b""[..], b"\n", b"x\n", b"0000000000000000 {}\n"] {
            assert_eq!(parse(bytes), Err(FormatError::Header));
        }
    }

    proptest! {
        /// A crash leaves any beginning of what was written: whole batches are there, the torn one
        /// is not.
        #[test]
        fn a_torn_end_is_passed_over(cut in 0_usize..400) {
            let whole = file(&[batch(7), batch(8)]);
            let header = file(&[]).len();
            let cut = (header + cut).min(whole.len());
            let parsed = parse(&whole[..cut]).unwrap();
            let ends = [header, file(&[batch(7)]).len(), whole.len()];
            let batches = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!((parsed.batches, parsed.end), (batches, ends[batches]));
            prop_assert_eq!(parsed.damaged, 0);
        }

        #[test]
        fn a_changed_byte_costs_its_line_only(at in 0_usize..1000, bit in 0_u8..8) {
            let mut bytes = file(&[batch(7), batch(8), batch(9)]);
            let header = file(&[]).len();
            let at = header + at % (bytes.len() - header);
            bytes[at] ^= 1 << bit;
            let parsed = parse(&bytes).unwrap();
            prop_assert!((1..=2).contains(&parsed.batches) && parsed.next > SKIP);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = batches(&bytes, 3);
        }
    }
}
