//! Recomputing the chain, and saying where it breaks.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

use lastkey_crypto::mac;
use lastkey_store::disk::{Access, Disk, DiskFile, Reader};
use serde::Serialize;

use super::{Head, journal::Position, segment};

/// At most this many problems are listed.
const MAX_PROBLEMS: usize = 16;

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Whether every record is what was written, in its place, up to the authenticated head.
    pub ok: bool,
    /// How many records were read.
    pub records: u64,
    /// The head's sequence number.
    pub head_seq: u64,
    /// The head's hash, hex.
    pub head: String,
    /// The first problem.
    pub problem: Option<Problem>,
    /// All problems, up to sixteen.
    pub problems: Vec<Problem>,
}

/// One place where the log is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's name.
    pub segment: String,
    /// The line in it, from 1; 0 for the file as a whole.
    pub line: u64,
    /// The record concerned.
    pub seq: u64,
    /// What is wrong: `changed`, `missing`, `reordered`, `truncated`, `unauthenticated`.
    pub kind: &'static str,
    /// The same in a sentence.
    pub what: String,
}

/// Walks the log up to `head`, which ends at `end`; each of `known` must lie on the chain.
pub(super) fn run(
    (disk, directory): (&dyn Disk, &Path),
    head: Head,
    end: Position,
    known: &[Head],
) -> io::Result<Verification> {
    let mut walk = Walk {
        at: Head::EMPTY,
        records: 0,
        problems: Vec::new(),
        segment: String::new(),
        line: 0,
        known,
        forged: false,
    };
    for (first, path) in segment::list(disk, directory)? {
        walk.segment = segment::name(first);
        walk.line = 0;
        let file = disk.open(&path, Access::Read)?;
        // What the writer appended since we took its head is none of ours.
        let limit = if first == end.segment { walk.bound(&*file, end)? } else { u64::MAX };
        if first > head.seq + 1 || (first == head.seq + 1 && first != end.segment) {
            if file.length()? > 0 {
                walk.report(first, "unauthenticated", "holds records after the end of the log");
            }
            continue;
        }
        let file = Reader::new(Arc::clone(&file)).take(limit);
        walk.read(&mut BufReader::with_capacity(1 << 18, file))?;
    }
    walk.finish(head);
    let problem = walk.problems.first().cloned();
    Ok(Verification {
        ok: problem.is_none(),
        records: walk.records,
        head_seq: head.seq,
        head: hex::encode(head.hash),
        problem,
        problems: walk.problems,
    })
}

struct Walk<'a> {
    at: Head,
    records: u64,
    problems: Vec<Problem>,
    segment: String,
    line: u64,
    known: &'a [Head],
    /// A line that is no record was seen since the last good one.
    forged: bool,
}

impl Walk<'_> {
    fn report(&mut self, seq: u64, kind: &'static str, what: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            let (segment, line, what) = (self.segment.clone(), self.line, what.into());
            self.problems.push(Problem { segment, line, seq, kind, what });
        }
    }

    /// How far the newest segment is authenticated. A live writer may be ahead of what we know of
    /// it, but only by whole records that chain; those are looked at when it is asked next.
    fn bound(&mut self, file: &dyn DiskFile, end: Position) -> io::Result<u64> {
        if file.length()? < end.offset {
            self.report(self.at.seq + 1, "truncated", "the file is shorter than what was written");
        }
        Ok(end.offset)
    }

    fn read(&mut self, lines: &mut impl BufRead) -> io::Result<()> {
        let mut line = Vec::with_capacity(1024);
        loop {
            line.clear();
            if lines.take(1 << 21).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.line += 1;
            match line.strip_suffix(b"\n") {
                Some(whole) => self.step(whole),
                None => self.report(
                    self.at.seq + 1,
                    "truncated",
                    format!("record {} ends in the middle", self.at.seq + 1),
                ),
            }
        }
    }

    /// Takes one line into the chain.
    fn step(&mut self, line: &[u8]) {
        let next = self.at.seq.saturating_add(1);
        let Some(link) = segment::link(line) else {
            self.report(next, "changed", format!("line {} is not a record", self.line));
            self.forged = true;
            return;
        };
        self.records += 1;
        if link.seq < next {
            let what = format!("record {} stands after record {}", link.seq, self.at.seq);
            self.report(link.seq, "reordered", what);
            return;
        }
        if link.seq > next {
            let last = link.seq - 1;
            let what = if last == next {
                format!("record {next} is missing")
            } else {
                format!("records {next} to {last} are missing")
            };
            if !std::mem::take(&mut self.forged) {
                self.report(next, "missing", what);
            }
        } else if link.prev != self.at.hash {
            let what = if next == 1 {
                "record 1 does not begin the chain".to_owned()
            } else {
                format!("record {} was changed, or the link to it in record {next}", self.at.seq)
            };
            // The line before this one, where it is in the same file.
            let line = self.line;
            self.line = line.saturating_sub(1).max(1);
            self.report(self.at.seq.max(1), "changed", what);
            self.line = line;
        }
        self.forged = false;
        self.at = Head { seq: link.seq, hash: mac::sha256(&[line]) };
        if self.known.iter().any(|known| known.seq == link.seq && known.hash != self.at.hash) {
            let what = format!("record {} is not the one the store remembers", link.seq);
            self.report(link.seq, "changed", what);
        }
    }

    /// Compares the end with the authenticated head.
    fn finish(&mut self, head: Head) {
        let newest = self.known.iter().map(|known| known.seq).max().unwrap_or(0);
        if newest > head.seq {
            let what = format!("the store remembers record {newest}, the log ends at {}", head.seq);
            self.report(head.seq + 1, "truncated", what);
        }
        if self.at.seq < head.seq {
            let what =
                format!("records {} to {} are missing at the end", self.at.seq + 1, head.seq);
            self.report(self.at.seq + 1, "truncated", what);
        } else if self.at.hash != head.hash {
            let what = format!("record {} was changed", self.at.seq);
            self.report(self.at.seq, "changed", what);
        }
    }
}
