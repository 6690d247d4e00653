//! Checkpoints: signed statements about where the chain was.
//!
//! One JSON object a line in `audit/checkpoints.log`, with exactly these fields in this order and
//! no white space:
//!
//! ```text
//! {"checkpoint":1,"log":"<32 hex>","number":7,"prev":"<64 hex>","kind":"time","seq":104,
//!  "hash":"<64 hex>","time":"2026-01-31T12:00:00.000Z","key":"<16 hex>","signature":"<88 base64>"}
//! ```
//! (one line in the file). `seq` and `hash` are the chain's head at `time`; `number` counts the
//! checkpoints of this log, and `prev` is the SHA-256 of the line before, so that one taken out of
//! the middle shows. The signature (Ed25519, RFC 8032) is over the line's bytes before
//! `,"signature":`. The key signs nothing else but reports (`jobs.rs`), which begin differently.
//!
//! A checkpoint of the kind `retention` says more: that everything up to `seq` was deleted on
//! purpose. It is what the oldest remaining segment begins behind.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use lastkey_crypto::{
    mac,
    signing::{PublicKey, SIGNATURE_LEN, SigningKey},
};

use super::Head;
use crate::Timestamp;

/// The file's name.
pub(super) const FILE: &str = "checkpoints.log";
const SIGNATURE: &str = r#","signature":""#;

/// Which log a checkpoint is about: 16 bytes that its authentication key yields.
pub type LogId = [u8; 16];

/// Why a checkpoint was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// There were new records, and it was time.
    Time,
    /// A segment was closed.
    Rotation,
    /// The log was closed.
    Close,
    /// Everything up to here was deleted.
    Retention,
}

impl CheckpointKind {
    const ALL: [Self; 4] = [Self::Time, Self::Rotation, Self::Close, Self::Retention];

    /// The word in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Rotation => "rotation",
            Self::Close => "close",
            Self::Retention => "retention",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }
}

impl fmt::Display for CheckpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The log.
    pub log: LogId,
    /// Which of its checkpoints, from 1.
    pub number: u64,
    /// SHA-256 of the line before; zeros in the first.
    pub prev: [u8; 32],
    /// Why it was made.
    pub kind: CheckpointKind,
    /// Where the chain was.
    pub head: Head,
    /// When.
    pub time: Timestamp,
}

/// A statement and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What it says.
    pub statement: Statement,
    /// Whose signature it bears: [`PublicKey::id`].
    pub key: String,
    signature: [u8; SIGNATURE_LEN],
}

impl Statement {
    fn signed_text(&self, key: PublicKey) -> String {
        self.text_by(&key.id())
    }

    fn text_by(&self, key: &str) -> String {
        format!(
            r#"{{"checkpoint":1,"log":"{}","number":{},"prev":"{}","kind":"{}","seq":{},"hash":"{}","time":"{}","key":"{key}""#,
            hex::encode(self.log),
            self.number,
            hex::encode(self.prev),
            self.kind,
            self.head.seq,
            hex::encode(self.head.hash),
            self.time,
        )
    }

    /// Signs it.
    pub fn sign(self, key: &SigningKey) -> Checkpoint {
        let signature = key.sign(self.signed_text(key.public()).as_bytes());
        Checkpoint { statement: self, key: key.public().id(), signature }
    }
}

impl Checkpoint {
    /// Reads a line without its newline; `None` unless it is written exactly as we write it.
    pub fn parse(line: &str) -> Option<Self> {
        let mut rest = line;
        let mut field = |before: &str, length: Option<usize>| {
            let tail = rest.strip_prefix(before)?;
            let end = match length {
                Some(length) => length,
                None => tail.find(['"', ','])?,
            };
            let (value, tail) = tail.split_at_checked(end)?;
            rest = tail;
            Some(value)
        };
        let statement = Statement {
            log: hex_array(field(r#"{"checkpoint":1,"log":""#, Some(32))?)?,
            number: number(field(r#"","number":"#, None)?)?,
            prev: hex_array(field(r#","prev":""#, Some(64))?)?,
            kind: CheckpointKind::parse(field(r#"","kind":""#, None)?)?,
            head: Head {
                seq: number(field(r#"","seq":"#, None)?)?,
                hash: hex_array(field(r#","hash":""#, Some(64))?)?,
            },
            time: Timestamp::parse(field(r#"","time":""#, None)?).ok()?,
        };
        let key = field(r#"","key":""#, Some(16))?.to_owned();
        let signature = BASE64_STANDARD.decode(field(r#"","signature":""#, Some(88))?).ok()?;
        let signature = signature.try_into().ok()?;
        let checkpoint = Self { statement, key, signature };
        // Numbers, digits and times can be written in more than one way; ours is one.
        (rest == r#""}"# && checkpoint.to_line() == line).then_some(checkpoint)
    }

    /// The line, without a newline.
    pub fn to_line(&self) -> String {
        let signature = BASE64_STANDARD.encode(self.signature);
        format!(r#"{}{SIGNATURE}{signature}"}}"#, self.statement.text_by(&self.key))
    }

    /// Whether the signature is this key's.
    pub fn is_signed_by(&self, key: PublicKey) -> bool {
        self.key == key.id()
            && key.verify(self.statement.text_by(&self.key).as_bytes(), &self.signature)
    }
}

fn hex_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// The file's whole lines, without their newlines; what follows the last newline is a line that a
/// power cut kept from being written whole.
pub(super) fn lines(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    bytes[..whole].split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 1])
}

/// A line as a checkpoint.
pub(super) fn read(line: &[u8]) -> Option<Checkpoint> {
    std::str::from_utf8(line).ok().and_then(Checkpoint::parse)
}

/// What a line is linked to by the next one's `prev`.
pub(super) fn link(line: &[u8]) -> [u8; 32] {
    mac::sha256(&[line])
}

/// For the fuzz target: reads a checkpoint file.
pub(crate) fn parse_file(bytes: &[u8]) {
    for line in lines(bytes) {
        if let Some(checkpoint) = read(line) {
            assert_eq!(checkpoint.to_line().as_bytes(), line, "written as it was read");
            assert!(!checkpoint.is_signed_by(PublicKey::from_bytes([7; 32])));
        }
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::KeyMaterial;
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(KeyMaterial::from_slice(&[9; 32])).unwrap()
    }

    fn statement() -> Statement {
        Statement {
            log: [0x11; 16],
            number: 7,
            prev: [0x22; 32],
            kind: CheckpointKind::Time,
            head: Head { seq: 104, hash: [0x33; 32] },
            time: Timestamp::from_millis(1_767_225_600_000),
        }
    }

    /// Signed by `openssl pkeyutl -sign -rawin`.
    #[test]
    fn the_golden_line() {
        let golden = include_str!("../../tests/vectors/checkpoint.txt");
        let line = statement().sign(&key()).to_line();
        assert_eq!(line, golden.trim_end());
        let read = Checkpoint::parse(&line).unwrap();
        assert_eq!(read.statement, statement());
        assert!(read.is_signed_by(key().public()));
        assert!(!read.is_signed_by(PublicKey::from_bytes([1; 32])));
    }

    #[test]
    fn nothing_in_it_can_be_changed() {
        let line = statement().sign(&key()).to_line();
        for at in 0..line.len() {
            for replacement in [b'0', b'1', b'a', b'"', b','] {
                let mut bytes = line.clone().into_bytes();
                if bytes[at] == replacement {
                    continue;
                }
                bytes[at] = replacement;
                let text = String::from_utf8(bytes).unwrap();
                let accepted =
                    Checkpoint::parse(&text).is_some_and(|c| c.is_signed_by(key().public()));
                assert!(!accepted, "{text}");
            }
        }
        let other_forms = [
            format!("{line} "),
            format!(" {line}"),
            line.replace("04,", "04 ,"),
            // The same number, the same time: a signature would hold.
            line.replace(r#""number":7"#, r#""number":07"#),
            line.replace(r#""seq":104"#, r#""seq":+104"#),
            line.replace("00.000Z", "00Z"),
        ];
        for other in other_forms {
            assert_ne!(other, line);
            assert!(Checkpoint::parse(&other).is_none(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            log: [u8; 16], number: u64, prev: [u8; 32], kind in 0usize..4, seq: u64,
            hash: [u8; 32], millis in 0i64..200_000_000_000_000,
        ) {
            let statement = Statement {
                log, number, prev,
                kind: CheckpointKind::ALL[kind],
                head: Head { seq, hash },
                time: Timestamp::from_millis(millis),
            };
            let line = statement.clone().sign(&key()).to_line();
            let read = Checkpoint::parse(&line).unwrap();
            prop_assert_eq!(read.to_line(), line);
            prop_assert_eq!(read.statement, statement);
        }
    }

    #[test]
    fn a_torn_last_line_is_none() {
        let all: Vec<&[u8]> = lines(b"a\nb\nc").collect();
        assert_eq!(all, [b"a", b"b"]);
        assert_eq!(lines(b"torn").count(), 0);
        assert_eq!(lines(b"").count(), 0);
    }
}
