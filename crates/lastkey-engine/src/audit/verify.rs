//! Recomputing the chain, and saying where it breaks.
//!
//! 1. Checkpoints are read, and those whose signature holds become marks that the chain must pass.
//! 2. Segments are walked at the same time, each from its own first link.
//! 3. They are joined: each must begin where the one before ends, the oldest at record 1 or behind
//!    a signed statement that what was before it was deleted.
//! 4. The end is compared with what is known of it: the journal's authenticated head while the
//!    server runs, the newest checkpoint where there is nothing but files.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lastkey_crypto::signing::PublicKey;
use lastkey_store::disk::Disk;
use parking_lot::Mutex;
use serde::Serialize;

use super::{
    Head,
    checkpoint::{self, LogId, Statement},
    examine::{Examined, Trust, examine},
    files::{self, SegmentFile},
    journal::Position,
    progress::Progress,
    remembered::{self, Known},
    signer,
    walk::{MAX_PROBLEMS, Walk, changed, missing},
};
use crate::Timestamp;

/// How much nicer than the rest of the process a server's own verification is.
const NICER: i32 = 10;

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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
    /// Bytes of lines that were hashed.
    pub bytes: u64,
    /// Everything up to this record was deleted on purpose, as a checkpoint says; 0 for nothing.
    pub deleted_through: u64,
    /// The newest record that a checkpoint vouches for; 0 for none.
    pub checkpoint_seq: u64,
    /// When that checkpoint was signed.
    pub checkpoint_time: Option<Timestamp>,
    /// Records behind it: nothing vouches for those but the chain, and the server's own key.
    pub uncovered: u64,
    /// Checkpoints whose signature holds.
    pub checkpoints: u64,
    /// What is no problem yet, but worth knowing.
    pub warnings: Vec<String>,
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

impl Problem {
    fn at((segment, line): (String, u64), seq: u64, kind: &'static str, what: String) -> Self {
        Self { segment, line, seq, kind, what }
    }
}

/// A head that must lie on the chain, and who says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) head: Head,
    /// The number of the checkpoint; `None` for the store.
    pub(super) checkpoint: Option<u64>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.checkpoint {
            Some(number) => write!(f, "checkpoint {number} signed"),
            None => f.write_str("the store remembers"),
        }
    }
}

/// What the server knows of its own log.
pub(super) struct Live<'a> {
    /// The last record that the segments hold.
    pub(super) head: Head,
    /// The last one that is durable: what the journal alone has is on its way to the segments.
    pub(super) durable: u64,
    pub(super) end: Position,
    /// Heads that the store remembers.
    pub(super) known: &'a [Head],
    /// The checkpoint key and the log's id, where checkpoints are made.
    pub(super) signed: Option<(PublicKey, LogId)>,
    /// Checkpoints that there were.
    pub(super) checkpoints: &'a [Known],
}

/// What somebody knows who has the files and a public key.
pub struct Offline<'a> {
    /// Whose signatures count: today's key, and those before it.
    pub keys: &'a [PublicKey],
    /// A checkpoint that was kept elsewhere, as its line: the log must pass it.
    pub witnesses: &'a [String],
}

/// Files to verify.
pub(super) struct Files<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) directory: &'a Path,
    pub(super) progress: &'a Arc<Progress>,
}

/// Verifies the server's own log.
pub(super) fn live(files: &Files<'_>, live: &Live<'_>) -> io::Result<Verification> {
    let keys: Vec<PublicKey> = live.signed.iter().map(|(key, _)| *key).collect();
    let bytes = signer::read_file(files.disk, files.directory)?;
    let trust = Trust {
        keys: &keys,
        log: live.signed.map(|(_, log)| log),
        tolerates_other_keys: true,
        known: live.checkpoints,
        threads: threads(),
    };
    let mut examined = examine(checkpoint::FILE, &bytes, trust);
    remembered::report_gone(&mut examined, live.checkpoints);
    let known = live.known.iter().map(|head| Mark { head: *head, checkpoint: None });
    examined.marks.extend(known);
    let walks = walk_all(files, &mut examined, Some(live))?;
    let mut joined = Joined::of(walks, &mut examined, Some(live.head));
    joined.finish_live(live);
    if live.signed.is_some() && bytes.is_empty() {
        joined.warn_of_closed(&mut examined);
    }
    Ok(joined.into_verification(live.head, &examined))
}

/// Verifies a copy of a log with nothing but a public key: no server, no store, no journal.
///
/// # Errors
/// A file cannot be read.
pub fn offline(
    disk: &dyn Disk,
    directory: &Path,
    trust: &Offline<'_>,
    progress: &Arc<Progress>,
) -> io::Result<Verification> {
    let files = Files { disk, directory, progress };
    let bytes = signer::read_file(disk, directory)?;
    let strict = Trust {
        keys: trust.keys,
        log: None,
        tolerates_other_keys: false,
        known: &[],
        threads: threads(),
    };
    let mut examined = examine(checkpoint::FILE, &bytes, strict);
    remembered::report_gone(&mut examined, &[]);
    let log = examined.statements.first().map(|statement| statement.log);
    for witness in trust.witnesses {
        let line = format!("{}\n", witness.trim_end());
        let seen = examine("the witness", line.as_bytes(), Trust { log, ..strict });
        if seen.statements.is_empty() && seen.problems.is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidData, "the witness is no checkpoint"));
        }
        examined.problems.extend(seen.problems);
        examined.marks.extend(seen.marks);
        examined.statements.extend(seen.statements);
    }
    let walks = walk_all(&files, &mut examined, None)?;
    let mut joined = Joined::of(walks, &mut examined, None);
    joined.finish_offline(&examined);
    joined.warn_of_closed(&mut examined);
    let head = joined.at;
    Ok(joined.into_verification(head, &examined))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// Walks all segments, as many at once as there are processors.
fn walk_all(
    files: &Files<'_>,
    examined: &mut Examined,
    live: Option<&Live<'_>>,
) -> io::Result<Vec<Walk>> {
    examined.marks.sort_by_key(|mark| mark.head.seq);
    let segments = files::list(files.disk, files.directory)?;
    for segment in &segments {
        // One that was deleted since is noticed when it is walked.
        if let Ok(opened) = segment.open(files.disk, files.directory) {
            files.progress.expect(opened.file.length()?);
        }
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<io::Result<Walk>>>> =
        Mutex::new(segments.iter().map(|_| None).collect());
    let work = || {
        while let Some((index, segment)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            segments.get(index).map(|segment| (index, segment))
        } {
            let walked = walk(files, segment, &examined.marks, live);
            let failed = walked.is_err();
            done.lock()[index] = Some(walked);
            if failed || files.progress.is_stopped() {
                next.store(segments.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads().min(segments.len()) {
            scope.spawn(|| {
                if live.is_some() {
                    // Requests go first. On Linux this is about the calling thread alone.
                    let _ = rustix::process::nice(NICER);
                }
                work();
            });
        }
    });
    if files.progress.is_stopped() {
        return Err(ErrorKind::Interrupted.into());
    }
    done.into_inner().into_iter().flatten().collect()
}

fn walk(
    files: &Files<'_>,
    segment: &SegmentFile,
    marks: &[Mark],
    live: Option<&Live<'_>>,
) -> io::Result<Walk> {
    let opened = segment.open(files.disk, files.directory)?;
    // What the writer appended since we took its head is none of ours.
    let end = live.map(|live| live.end).filter(|end| end.segment == segment.first);
    let limit = end.map_or(u64::MAX, |end| end.offset);
    let progress = Arc::clone(files.progress);
    let lines = opened.lines(limit, move |n| progress.add(n as u64))?;
    let mut walk = Walk::through(segment.name(), lines, marks)?;
    if end.is_some() && walk.bytes < limit {
        let (next, line) = (walk.at.seq + 1, std::mem::take(&mut walk.line));
        walk.report(next, "truncated", "the file is shorter than what was written");
        walk.line = line;
    }
    Ok(walk)
}

/// All segments as one chain.
struct Joined {
    at: Head,
    records: u64,
    bytes: u64,
    problems: Vec<Problem>,
    deleted_through: u64,
    covered: u64,
    /// The file and line of the last record.
    place: (String, u64),
    /// Up to here, records are in closed segments.
    closed: u64,
}

impl Joined {
    fn of(walks: Vec<Walk>, examined: &mut Examined, head: Option<Head>) -> Self {
        let (origin, deleted_through) = origin(&walks, examined);
        let mut joined = Self {
            at: origin,
            records: 0,
            bytes: 0,
            problems: std::mem::take(&mut examined.problems),
            deleted_through,
            covered: 0,
            place: (String::new(), 0),
            closed: 0,
        };
        let mut forged = false;
        for walk in walks {
            joined.bytes += walk.bytes;
            if let (Some(head), Some(start)) = (head, walk.start)
                && start.seq > head.seq
            {
                let what = "holds records after the end of the log".to_owned();
                joined.push(Problem::at((walk.segment, 0), start.seq, "unauthenticated", what));
                continue;
            }
            joined.take(walk, &mut forged);
        }
        joined
    }

    fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Joins a segment to those before it.
    fn take(&mut self, walk: Walk, forged: &mut bool) {
        self.records += walk.records;
        self.covered = self.covered.max(walk.reached.unwrap_or(0));
        if let Some(start) = walk.start {
            self.closed = self.closed.max(start.seq.saturating_sub(1));
            let next = self.at.seq.saturating_add(1);
            let here = (walk.segment.clone(), start.line);
            if start.seq < next {
                let what = format!("record {} stands after record {}", start.seq, self.at.seq);
                self.push(Problem::at(here, start.seq, "reordered", what));
            } else if start.seq > next {
                if !*forged && !walk.forged_before {
                    let what = missing(next, start.seq - 1);
                    self.push(Problem::at(here, next, "missing", what));
                }
            } else if start.prev != self.at.hash {
                let place = if self.place.1 == 0 { here } else { self.place.clone() };
                let what = changed(self.at.seq);
                self.push(Problem::at(place, self.at.seq.max(1), "changed", what));
            }
        }
        walk.problems.into_iter().for_each(|problem| self.push(problem));
        *forged = walk.forged || (walk.start.is_none() && *forged);
        if walk.at.seq > self.at.seq {
            self.at = walk.at;
            self.place = (walk.segment, walk.line);
        }
    }

    /// Compares the end with the journal's authenticated head, and with what the store remembers.
    fn finish_live(&mut self, live: &Live<'_>) {
        let head = live.head;
        let newest = live.known.iter().map(|known| known.seq).max().unwrap_or(0);
        if newest > live.durable {
            let end = live.durable;
            let what = format!("the store remembers record {newest}, the log ends at {end}");
            self.push(Problem::at(self.place.clone(), end.saturating_add(1), "truncated", what));
        }
        if self.at.seq < head.seq {
            let what =
                format!("records {} to {} are missing at the end", self.at.seq + 1, head.seq);
            self.push(Problem::at(self.place.clone(), self.at.seq + 1, "truncated", what));
        } else if self.at.hash != head.hash {
            let what = format!("record {} was changed", self.at.seq);
            self.push(Problem::at(self.place.clone(), self.at.seq, "changed", what));
        }
    }

    /// Compares the end with the newest checkpoint.
    fn finish_offline(&mut self, examined: &Examined) {
        // A copy of a running server's files may end in the middle of what it was writing.
        if let [.., last] = self.problems.as_slice()
            && last.kind == "truncated"
            && last.seq == self.at.seq + 1
            && last.segment == self.place.0
        {
            self.problems.pop();
        }
        let Some(newest) = examined.marks.last() else {
            let what = "no checkpoint by the given key: nothing says that this is the log that \
                        was written"
                .to_owned();
            let place = (checkpoint::FILE.to_owned(), 0);
            return self.push(Problem::at(place, self.at.seq, "unauthenticated", what));
        };
        if newest.head.seq > self.at.seq {
            let what =
                format!("{newest} record {}, but the log ends at {}", newest.head.seq, self.at.seq);
            self.push(Problem::at(self.place.clone(), self.at.seq + 1, "truncated", what));
        }
    }

    /// Warns of segments that were closed and not signed for: a checkpoint is made when one is.
    fn warn_of_closed(&self, examined: &mut Examined) {
        let covered = self.covered.max(self.deleted_through);
        if covered < self.closed {
            examined.warnings.push(format!(
                "records {} to {} are in closed segments, and no checkpoint covers them",
                covered + 1,
                self.closed
            ));
        }
    }

    fn into_verification(self, head: Head, examined: &Examined) -> Verification {
        let covering: Option<&Statement> = examined
            .statements
            .iter()
            .filter(|s| s.head.seq == self.covered)
            .max_by_key(|s| s.number);
        let uncovered = self.at.seq.saturating_sub(self.covered.max(self.deleted_through));
        Verification {
            ok: self.problems.is_empty(),
            records: self.records,
            head_seq: head.seq,
            head: hex::encode(head.hash),
            problem: self.problems.first().cloned(),
            problems: self.problems,
            bytes: self.bytes,
            deleted_through: self.deleted_through,
            checkpoint_seq: self.covered,
            checkpoint_time: covering.map(|statement| statement.time),
            uncovered,
            checkpoints: examined.statements.len() as u64,
            warnings: examined.warnings.clone(),
        }
    }
}

/// What the oldest segment begins behind: nothing, or what was deleted on purpose.
fn origin(walks: &[Walk], examined: &Examined) -> (Head, u64) {
    let newest = examined.deleted.iter().max_by_key(|head| head.seq);
    let (Some(newest), Some(start)) = (newest, walks.iter().find_map(|walk| walk.start)) else {
        return (Head::EMPTY, 0);
    };
    if start.seq <= 1 {
        return (Head::EMPTY, 0);
    }
    let before = start.seq - 1;
    if let Some(exact) = examined.deleted.iter().find(|head| head.seq == before) {
        return (*exact, before);
    }
    if newest.seq > before {
        // On its way out: the chain leads from here to what the statement names.
        return (Head { seq: before, hash: start.prev }, before);
    }
    (*newest, newest.seq)
}
