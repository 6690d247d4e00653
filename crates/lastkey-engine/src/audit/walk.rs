//! Recomputing the chain inside one segment.
//!
//! A segment is walked from its own first link, so that segments can be walked at the same time;
//! [`verify`](super::verify) then joins them.

use std::io;

use lastkey_crypto::mac;

use super::{
    Head,
    files::{Line, Lines},
    segment,
    verify::{Mark, Problem},
};

/// At most this many problems are listed.
pub(super) const MAX_PROBLEMS: usize = 16;

/// A segment's first record as it says itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) seq: u64,
    pub(super) prev: [u8; 32],
    pub(super) line: u64,
}

/// What a walk through one segment found.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) segment: String,
    pub(super) start: Option<Start>,
    /// The last record on the chain.
    pub(super) at: Head,
    pub(super) records: u64,
    /// Bytes of lines.
    pub(super) bytes: u64,
    pub(super) problems: Vec<Problem>,
    /// The newest mark that lies on the chain here.
    pub(super) reached: Option<u64>,
    /// A line that is no record was seen before the first one, or since the last one.
    pub(super) forged_before: bool,
    pub(super) forged: bool,
    /// The last line has no end.
    pub(super) torn: bool,
    pub(super) line: u64,
}

impl Walk {
    /// Walks `lines`; `marks` are in order.
    pub(super) fn through(segment: String, mut lines: Lines, marks: &[Mark]) -> io::Result<Self> {
        let mut walk = Self {
            segment,
            start: None,
            at: Head::EMPTY,
            records: 0,
            bytes: 0,
            problems: Vec::new(),
            reached: None,
            forged_before: false,
            forged: false,
            torn: false,
            line: 0,
        };
        let mut marks = Marks { all: marks, next: 0 };
        loop {
            match lines.next() {
                Ok(None) => return Ok(walk),
                Ok(Some(Line::Whole(line))) => {
                    walk.line += 1;
                    walk.bytes += line.len() as u64 + 1;
                    walk.step(line, &mut marks);
                }
                Ok(Some(Line::Torn(piece))) => {
                    walk.line += 1;
                    walk.bytes += piece.len() as u64;
                    walk.torn = true;
                    let next = walk.at.seq + 1;
                    walk.report(next, "truncated", format!("record {next} ends in the middle"));
                }
                Err(error) if is_of_the_disk(&error) => return Err(error),
                Err(error) => {
                    let next = walk.at.seq + 1;
                    let what = format!("what is behind record {} opens no more: {error}", next - 1);
                    walk.line += 1;
                    walk.report(next, "changed", what);
                    walk.forged = true;
                    return Ok(walk);
                }
            }
        }
    }

    pub(super) fn report(&mut self, seq: u64, kind: &'static str, what: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            let (segment, line, what) = (self.segment.clone(), self.line, what.into());
            self.problems.push(Problem { segment, line, seq, kind, what });
        }
    }

    /// Takes one line into the chain.
    fn step(&mut self, line: &[u8], marks: &mut Marks<'_>) {
        let next = self.at.seq.saturating_add(1);
        let Some(link) = segment::link(line) else {
            self.report(next, "changed", format!("line {} is not a record", self.line));
            self.forged = true;
            return;
        };
        self.records += 1;
        if self.start.is_none() {
            self.start = Some(Start { seq: link.seq, prev: link.prev, line: self.line });
            self.forged_before = self.forged;
            marks.seek(link.seq);
        } else if link.seq < next {
            let what = format!("record {} stands after record {}", link.seq, self.at.seq);
            self.report(link.seq, "reordered", what);
            return;
        } else if link.seq > next {
            if !self.forged {
                self.report(next, "missing", missing(next, link.seq - 1));
            }
            marks.seek(link.seq);
        } else if link.prev != self.at.hash {
            // The line before this one.
            self.line -= 1;
            self.report(self.at.seq.max(1), "changed", changed(self.at.seq));
            self.line += 1;
        }
        self.forged = false;
        self.at = Head { seq: link.seq, hash: mac::sha256(&[line]) };
        while let Some(mark) = marks.at(link.seq) {
            if mark.head.hash == self.at.hash {
                self.reached = self.reached.max(mark.checkpoint.map(|_| link.seq));
            } else {
                let what = format!("record {} is not the one that {mark}", link.seq);
                self.report(link.seq, "changed", what);
            }
        }
    }
}

/// A file system that refuses, and not a file that was changed.
fn is_of_the_disk(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted
}

/// A sentence for records that are not there.
pub(super) fn missing(first: u64, last: u64) -> String {
    if first == last {
        format!("record {first} is missing")
    } else {
        format!("records {first} to {last} are missing")
    }
}

/// A sentence for a link that does not hold.
pub(super) fn changed(before: u64) -> String {
    if before == 0 {
        "record 1 does not begin the chain".to_owned()
    } else {
        format!("record {before} was changed, or the link to it in record {}", before + 1)
    }
}

/// Heads that must lie on the chain, as far as they were not passed.
struct Marks<'a> {
    all: &'a [Mark],
    next: usize,
}

impl<'a> Marks<'a> {
    fn seek(&mut self, seq: u64) {
        self.next = self.all.partition_point(|mark| mark.head.seq < seq);
    }

    /// The next mark, if it is about this record.
    fn at(&mut self, seq: u64) -> Option<&'a Mark> {
        let mark = self.all.get(self.next).filter(|mark| mark.head.seq == seq)?;
        self.next += 1;
        Some(mark)
    }
}
