//! The newest checkpoint, as the store remembers it.
//!
//! A file of checkpoints vouches for records, and nothing in the log vouches for the file: without
//! it a log looks as if nobody had signed for it yet, and a signer that begins again with number 1
//! would sign for whatever has become of the records meanwhile. So the store keeps which checkpoint
//! was the newest, in a record behind the barrier (`meta/checkpoint`). It is written after the
//! checkpoint is durable, so it is never ahead of the file; it may be behind, by a minute after a
//! crash, and by more in a store that was restored from a backup.
//!
//! * A start looks for it in the file (`signer.rs`). If it is gone, numbers go on behind it, the next
//!   line names it as the one before, and the store remembers the loss beside what is signed from
//!   then on: until the line is back, or a stated deletion takes what it was about. If the file
//!   cannot be read so far back, the store remembers what it did. A log that begins anew has lost
//!   them all, and the store forgets them.
//! * A verification looks for it too, and at the number that the file begins with: 1, unless a
//!   deletion was stated since.
//!
//! The store says so, and it is believed: who can write records behind the barrier can make it say
//! something else. Then only a checkpoint that was kept elsewhere tells.

use super::{
    checkpoint::{self, Checkpoint, CheckpointKind, Statement},
    examine::Examined,
    verify::Problem,
    walk::MAX_PROBLEMS,
};

const FORMAT: u8 = 1;

/// A checkpoint that there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) number: u64,
    /// The record that it is about.
    pub(super) seq: u64,
    /// SHA-256 of its line.
    pub(super) link: [u8; 32],
}

/// What the store keeps of the checkpoints.
///
/// Record (behind the barrier, big-endian):
/// ```text
/// 00  1  format 1
/// 01  8  the newest checkpoint's number
/// 09  8  the record that it is about
/// 11  32 SHA-256 of its line
/// 31  48 the same of the newest one that was missing, if one was
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub(super) newest: Known,
    /// It was looked for and is missing, and so are those before it.
    pub(super) lost: Option<Known>,
}

/// What a start finds of the checkpoint that the store remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// What is missing or cannot be read, for the operator.
    pub warning: Option<String>,
    /// The log begins anew, without what the store remembers: the store had better forget it before
    /// the first record is written, for then the log does not look new any more.
    pub begins_anew: bool,
}

impl Known {
    const BYTES: usize = 8 + 8 + 32;

    /// What is to be known of a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let Statement { number, head, .. } = checkpoint.statement;
        Self { number, seq: head.seq, link: checkpoint::link(checkpoint.to_line().as_bytes()) }
    }

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_be_bytes());
        bytes[16..].copy_from_slice(&self.link);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (seq, link) = rest.split_first_chunk()?;
        let (number, seq) = (u64::from_be_bytes(*number), u64::from_be_bytes(*seq));
        Some(Self { number, seq, link: link.try_into().ok()? })
    }

    /// Whether a statement that can be believed says that it went on purpose: it is a later one,
    /// and what this one was about was deleted.
    pub(super) fn was_retired_by(&self, statement: &Statement) -> bool {
        statement.kind == CheckpointKind::Retention
            && statement.number > self.number
            && statement.head.seq >= self.seq
    }

    /// In words: another one stands in its place.
    pub(super) fn replaced(&self) -> String {
        format!("checkpoint {} is another one than the store remembers", self.number)
    }

    /// In words: it is not there, nor are those behind that number.
    pub(super) fn gone_after(&self, number: u64) -> String {
        gone(number.saturating_add(1), self.number)
    }
}

impl Remembered {
    /// As it is stored.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&self.newest.encode());
        bytes.extend(self.lost.into_iter().flat_map(Known::encode));
        bytes
    }

    /// Reads what is stored; `None` for another format.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (newest, lost) = bytes.strip_prefix(&[FORMAT])?.split_at_checked(Known::BYTES)?;
        let newest = Known::decode(newest)?;
        if lost.is_empty() {
            return Some(Self { newest, lost: None });
        }
        Some(Self { newest, lost: Some(Known::decode(lost)?) })
    }
}

fn gone(first: u64, last: u64) -> String {
    if first >= last {
        format!("checkpoint {last} is missing")
    } else {
        format!("checkpoints {first} to {last} are missing")
    }
}

/// Reports what is gone from a file of checkpoints: those before its first, and those that are
/// known.
pub(super) fn report_gone(examined: &mut Examined, known: &[Known]) {
    let mut report = |seq, kind, what| {
        if examined.problems.len() < MAX_PROBLEMS {
            let (segment, line) = (checkpoint::FILE.to_owned(), 0);
            examined.problems.push(Problem { segment, line, seq, kind, what });
        }
    };
    let statements = &examined.statements;
    let stated = statements.iter().any(|found| found.kind == CheckpointKind::Retention);
    let before_first =
        examined.first.filter(|_| !stated).map_or(0, |first| first.saturating_sub(1));
    if before_first > 0 {
        let after = statements.first().map_or(0, |found| found.head.seq);
        report(after, "missing", gone(1, before_first));
    }
    for known in known {
        let found = examined.known.iter().find(|(number, _)| *number == known.number);
        match found {
            Some((_, link)) if *link == known.link => {}
            Some(_) => report(known.seq, "changed", known.replaced()),
            None if known.number <= before_first => {}
            None if statements.iter().any(|found| known.was_retired_by(found)) => {}
            None => {
                let numbers = statements.iter().map(|found| found.number);
                let below = numbers.filter(|number| *number < known.number);
                report(known.seq, "missing", known.gone_after(below.max().unwrap_or(0)));
            }
        }
    }
}

/// For the golden vectors.
#[cfg(test)]
pub(crate) fn encoded(newest: (u64, u64, [u8; 32]), lost: Option<(u64, u64, [u8; 32])>) -> Vec<u8> {
    let known = |(number, seq, link)| Known { number, seq, link };
    Remembered { newest: known(newest), lost: lost.map(known) }.encode()
}

/// For the fuzz target: reads a stored record.
pub(crate) fn parse(bytes: &[u8]) {
    if let Some(remembered) = Remembered::decode(bytes) {
        assert_eq!(remembered.encode(), bytes, "it is written as it was read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVENTH: Known = Known { number: 7, seq: 104, link: [3; 32] };

    #[test]
    fn what_is_cut_or_longer_or_of_another_format_is_none() {
        for lost in [None, Some(Known { number: 4, ..SEVENTH })] {
            let remembered = Remembered { newest: SEVENTH, lost };
            let bytes = remembered.encode();
            assert_eq!(Remembered::decode(&bytes), Some(remembered));
            for length in 0..bytes.len() {
                let cut = Remembered::decode(&bytes[..length]);
                assert!(cut.is_none() || (lost.is_some() && length == 1 + Known::BYTES));
            }
            assert_eq!(Remembered::decode(&[bytes.as_slice(), &[0]].concat()), None);
            assert_eq!(Remembered::decode(&[&[2], &bytes[1..]].concat()), None);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(SEVENTH.gone_after(0), "checkpoints 1 to 7 are missing");
        assert_eq!(SEVENTH.gone_after(6), "checkpoint 7 is missing");
        assert_eq!(SEVENTH.gone_after(u64::MAX), "checkpoint 7 is missing");
    }
}
