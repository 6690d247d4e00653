//! Searching the log.
//!
//! Segments that are over before the search begins are not opened; of compressed ones, their index
//! says which blocks can hold an answer; a plain one is entered near where the search begins. What
//! is left is cut into pieces, and as many are looked through at once as there are processors,
//! a few at first, so that a page of the newest records costs little.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lastkey_store::disk::{DiskFile, read_full};
use memchr::memrchr;
use parking_lot::Mutex;
use serde_json::Value;

use super::{
    files::{self, Line, Opened, SegmentFile},
    index::Block,
    keeper::{self, Shelf},
    scan::Matcher,
    seconds::Seconds,
    segment,
};
use crate::Timestamp;

/// Plain segments are looked through in pieces of this size.
const PIECE: u64 = 2 << 20;
/// Where a search begins in a plain segment is found to within this.
const NEAR: u64 = 64 << 10;
/// A line is found in this much.
const PEEK: usize = 8 << 10;
/// A page ends after so many bytes of lines: a record may be some ten kilobytes long, and a page
/// is held in memory more than once.
const PAGE_BYTES: usize = 8 << 20;
/// At most so many pieces at once for each processor.
const MAX_WAVE: usize = 32;

/// What to look for. Everything that is set must match.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only records after this sequence number.
    pub after: u64,
    /// Only the newest so many records that match, instead of the oldest.
    pub newest: bool,
    /// At most so many records, and no more than fit into a page of 8 MiB; 0 means 1.
    pub limit: usize,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// The principal's text, or a part of it.
    pub principal: Option<String>,
    /// The id of the key that was used, or that a re-encryption opened with.
    pub key: Option<String>,
    /// The action, in any case.
    pub action: Option<String>,
    /// The outcome: `ok` or a code.
    pub outcome: Option<String>,
    /// A name in the encryption context.
    pub context_key: Option<String>,
}

/// Records that matched.
#[derive(Clone, Debug, Default)]
pub struct QueryPage {
    /// The records as JSON objects, in the order of the log.
    pub records: Vec<Value>,
    /// Where to go on, as the next query's `after`; `None` at the end.
    pub next: Option<u64>,
}

/// What was made of lines that matched.
struct Found<T> {
    hits: Hits<T>,
    /// Whether more was found than asked for; of the newest, whether not all was looked through.
    more: bool,
}

/// What was made of a line.
struct Hit<T> {
    seq: u64,
    /// The line's.
    bytes: usize,
    kept: T,
}

/// In the order of the log.
struct Hits<T> {
    list: VecDeque<Hit<T>>,
    /// Of all their lines.
    bytes: usize,
}

impl<T> Hits<T> {
    fn new() -> Self {
        Self { list: VecDeque::new(), bytes: 0 }
    }

    fn push_back(&mut self, hit: Hit<T>) {
        self.bytes += hit.bytes;
        self.list.push_back(hit);
    }

    fn drop_front(&mut self) {
        self.bytes -= self.list.pop_front().map_or(0, |hit| hit.bytes);
    }

    fn drop_back(&mut self) {
        self.bytes -= self.list.pop_back().map_or(0, |hit| hit.bytes);
    }

    /// Puts others before these.
    fn prepend(&mut self, before: Self) {
        self.bytes += before.bytes;
        before.list.into_iter().rev().for_each(|hit| self.list.push_front(hit));
    }

    fn append(&mut self, mut behind: Self) {
        self.bytes += behind.bytes;
        self.list.append(&mut behind.list);
    }
}

/// How much is asked for.
#[derive(Clone, Copy)]
struct Most {
    records: usize,
    /// Of lines; one record is found however long it is.
    bytes: usize,
}

impl Most {
    /// Whether something has to go.
    fn is_exceeded<T>(self, hits: &Hits<T>) -> bool {
        hits.list.len() > self.records || (hits.bytes > self.bytes && hits.list.len() > 1)
    }

    /// Whether there is nothing more to look for.
    fn is_reached<T>(self, hits: &Hits<T>) -> bool {
        hits.list.len() >= self.records || hits.bytes >= self.bytes
    }
}

/// What is to be kept of a line.
type Extract<'a, T> = dyn Fn(&[u8]) -> Option<T> + Sync + 'a;

/// Searches up to record `last`.
pub(super) fn run(shelf: &Shelf, query: &Query, last: u64) -> io::Result<QueryPage> {
    let most = Most { records: query.limit.max(1), bytes: PAGE_BYTES };
    let found = find(shelf, (query, most), last, &|line| Some(line.to_vec()))?;
    let more = found.more && !query.newest;
    let next = more.then(|| found.hits.list.back().map(|hit| hit.seq)).flatten();
    // What is left out takes no more memory than its line did.
    let record = |hit: Hit<Vec<u8>>| serde_json::from_slice(&hit.kept).ok();
    Ok(QueryPage { records: found.hits.list.into_iter().filter_map(record).collect(), next })
}

/// What a start has to know of requests that were admitted before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nonces {
    /// Their prints, and the seconds that they were signed for.
    pub seen: Vec<(u64, i64)>,
    /// The seconds that others were signed for, which were too many or went with old segments.
    pub lost: Seconds,
}

/// The newest nonces of records that are not older than `from`, and the seconds of those that are
/// more than `limit`.
pub(super) fn nonces(
    shelf: &Shelf,
    from: Timestamp,
    limit: usize,
    last: u64,
) -> io::Result<Nonces> {
    let query = Query { from: Some(from), newest: true, ..Query::default() };
    let most = Most { records: limit.max(1), bytes: usize::MAX };
    let found = find(shelf, (&query, most), last, &nonce)?;
    let lost = match found.hits.list.front() {
        Some(oldest) if found.more => seconds(shelf, from, oldest.seq - 1)?,
        _ => Seconds::default(),
    };
    Ok(Nonces { seen: found.hits.list.into_iter().map(|hit| hit.kept).collect(), lost })
}

/// The seconds that requests were signed for, of records up to `through` that are not older than
/// `from`. None of them is held, however many there are.
fn seconds(shelf: &Shelf, from: Timestamp, through: u64) -> io::Result<Seconds> {
    let found = Mutex::new(Seconds::default());
    let query = Query { from: Some(from), ..Query::default() };
    let most = Most { records: 1, bytes: usize::MAX };
    find::<()>(shelf, (&query, most), through, &|line| {
        let (_, signed) = nonce(line)?;
        found.lock().add(signed, signed);
        None
    })?;
    Ok(found.into_inner())
}

/// `"nonce":"<16 hex>","signed":<seconds>`, as a record has it. Neither can stand in a value:
/// quotes are escaped there.
pub(super) fn nonce(line: &[u8]) -> Option<(u64, i64)> {
    const PRINT: &[u8] = br#","nonce":""#;
    const SIGNED: &[u8] = br#"","signed":"#;
    let print = line.get(memchr::memmem::find(line, PRINT)? + PRINT.len()..)?;
    let (print, rest) = print.split_at_checked(16)?;
    let rest = rest.strip_prefix(SIGNED)?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'-')?;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some((u64::from_str_radix(text(print)?, 16).ok()?, text(&rest[..end])?.parse().ok()?))
}

fn find<T: Send>(
    shelf: &Shelf,
    (query, most): (&Query, Most),
    last: u64,
    extract: &Extract<'_, T>,
) -> io::Result<Found<T>> {
    let matcher = Matcher::new(query, last);
    let search = Search { shelf, matcher, query, most, extract };
    let segments = files::list(&*shelf.disk, &shelf.directory)?;
    let mut order: Vec<usize> = (0..segments.len())
        // The next segment's first record tells where this one ends.
        .filter(|index| {
            segments.get(index + 1).is_none_or(|next| next.first > query.after.saturating_add(1))
        })
        .collect();
    if query.newest {
        order.reverse();
    }
    let mut pieces = Pieces { search: &search, segments: &segments, order, ready: VecDeque::new() };
    let mut found = Found { hits: Hits::new(), more: false };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let mut wave = 1;
    while !search.is_full(&found) {
        let batch = pieces.take(wave * threads)?;
        if batch.is_empty() {
            return Ok(found);
        }
        wave = (wave * 2).min(MAX_WAVE);
        for piece in search.look_through(&batch, threads)? {
            search.add(&mut found, piece);
        }
    }
    found.more = true;
    while most.is_exceeded(&found.hits) {
        if query.newest {
            found.hits.drop_front();
        } else {
            found.hits.drop_back();
        }
    }
    Ok(found)
}

/// A part of a segment.
enum Piece {
    /// A frame of a compressed one.
    Block(SegmentFile, Block),
    /// Lines of a plain one that begin in this range. It stays open, for it may be compressed and
    /// removed meanwhile.
    Range(Arc<dyn DiskFile>, Range<u64>),
    /// A compressed one without index.
    Whole(SegmentFile),
}

struct Search<'a, T> {
    shelf: &'a Shelf,
    matcher: Matcher<'a>,
    query: &'a Query,
    most: Most,
    extract: &'a Extract<'a, T>,
}

impl<T: Send> Search<'_, T> {
    /// Whether there is one record more than asked for; of the newest, as many are enough.
    fn is_full(&self, found: &Found<T>) -> bool {
        if self.query.newest {
            self.most.is_reached(&found.hits)
        } else {
            self.most.is_exceeded(&found.hits)
        }
    }

    /// Adds what a piece holds, which lies before all that was found if the newest are wanted.
    fn add(&self, found: &mut Found<T>, hits: Hits<T>) {
        if self.query.newest {
            found.hits.prepend(hits);
        } else {
            found.hits.append(hits);
        }
    }

    /// Looks through pieces at once; their hits come in the pieces' order.
    fn look_through(&self, pieces: &[Piece], threads: usize) -> io::Result<Vec<Hits<T>>> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<io::Result<Hits<T>>>>> =
            Mutex::new(pieces.iter().map(|_| None).collect());
        let work = || {
            while let Some((index, piece)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                pieces.get(index).map(|piece| (index, piece))
            } {
                let hits = self.look_into(piece);
                done.lock()[index] = Some(hits);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(pieces.len()) {
                scope.spawn(work);
            }
            work();
        });
        done.into_inner().into_iter().flatten().collect()
    }

    fn look_into(&self, piece: &Piece) -> io::Result<Hits<T>> {
        let mut hits = Hits::new();
        let looked = match piece {
            Piece::Block(segment, block) => self.look_into_block(segment, block, &mut hits),
            Piece::Range(file, range) => {
                lines_of_range(&**file, range).map(|lines| self.scan(&lines, &mut hits))
            }
            Piece::Whole(segment) => self.look_into_whole(segment, &mut hits),
        };
        match looked {
            // Deleted since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(hits),
            other => other.map(|()| hits),
        }
    }

    /// Keeps a hit; false once there are enough.
    fn keep(&self, hits: &mut Hits<T>, (seq, line): (u64, &[u8])) -> bool {
        let Some(kept) = (self.extract)(line) else { return true };
        hits.push_back(Hit { seq, bytes: line.len(), kept });
        let is_exceeded = self.most.is_exceeded(hits);
        if self.query.newest {
            while self.most.is_exceeded(hits) {
                hits.drop_front();
            }
            return true;
        }
        !is_exceeded
    }

    fn scan(&self, lines: &[u8], hits: &mut Hits<T>) {
        self.matcher.scan(lines, &mut |seq, line| self.keep(hits, (seq, line)));
    }

    fn look_into_block(
        &self,
        segment: &SegmentFile,
        block: &Block,
        hits: &mut Hits<T>,
    ) -> io::Result<()> {
        let opened = segment.open(&*self.shelf.disk, &self.shelf.directory)?;
        let mut frame = vec![0; block.length as usize];
        let filled = read_full(&*opened.file, &mut frame, block.offset)?;
        match keeper::unpack(&frame[..filled], block.raw as usize) {
            Some(lines) => self.scan(&lines, hits),
            None => tracing::warn!(
                segment = segment.name(),
                "a block of a compressed audit segment does not open; run `lastkey audit verify`"
            ),
        }
        Ok(())
    }

    fn look_into_whole(&self, segment: &SegmentFile, hits: &mut Hits<T>) -> io::Result<()> {
        let opened = segment.open(&*self.shelf.disk, &self.shelf.directory)?;
        self.look_through_lines(&opened, hits)
    }

    fn look_through_lines(&self, opened: &Opened, hits: &mut Hits<T>) -> io::Result<()> {
        let mut lines = opened.lines(u64::MAX, |_| {})?;
        loop {
            match lines.next() {
                Ok(Some(Line::Whole(line) | Line::Torn(line))) => self.scan(line, hits),
                Ok(None) => return Ok(()),
                Err(error) if error.raw_os_error().is_some() => return Err(error),
                // What does not decompress is for a verification to tell.
                Err(_) => return Ok(()),
            }
            if !self.query.newest && self.most.is_exceeded(hits) {
                return Ok(());
            }
        }
    }

    /// The pieces of a segment that can hold an answer, in the order of the log.
    fn pieces_of(&self, segment: &SegmentFile) -> io::Result<Vec<Piece>> {
        if !segment.plain {
            let Some(index) = self.shelf.index(segment) else {
                return Ok(vec![Piece::Whole(*segment)]);
            };
            if let (Some(part), Some(all)) = (&self.query.principal, &index.principals) {
                let named: Vec<&String> = all.iter().filter(|one| one.contains(part)).collect();
                let may = |block: &Block| {
                    named.iter().any(|name| block.may_hold(super::index::Field::Principal, name))
                };
                return Ok(self.blocks(segment, index.blocks.into_iter().filter(may)));
            }
            return Ok(self.blocks(segment, index.blocks.into_iter()));
        }
        let opened = match segment.open(&*self.shelf.disk, &self.shelf.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        if opened.compressed {
            return Ok(vec![Piece::Whole(*segment)]);
        }
        let length = opened.file.length()?;
        let start = enter(&*opened.file, length, self.query.after)?;
        let step = usize::try_from(PIECE).unwrap_or(usize::MAX);
        let range =
            |from: u64| Piece::Range(Arc::clone(&opened.file), from..(from + PIECE).min(length));
        Ok((start..length).step_by(step).map(range).collect())
    }

    fn blocks(&self, segment: &SegmentFile, blocks: impl Iterator<Item = Block>) -> Vec<Piece> {
        blocks
            .filter(|block| self.matcher.may_match(block))
            .map(|block| Piece::Block(*segment, block))
            .collect()
    }
}

/// Pieces, cut as they are needed.
struct Pieces<'a, T> {
    search: &'a Search<'a, T>,
    segments: &'a [SegmentFile],
    /// Segments still to be cut, the first one first.
    order: Vec<usize>,
    ready: VecDeque<Piece>,
}

impl<T: Send> Pieces<'_, T> {
    fn take(&mut self, count: usize) -> io::Result<Vec<Piece>> {
        while self.ready.len() < count && !self.order.is_empty() {
            let mut pieces = self.search.pieces_of(&self.segments[self.order.remove(0)])?;
            if self.search.query.newest {
                pieces.reverse();
            }
            self.ready.extend(pieces);
        }
        let count = count.min(self.ready.len());
        Ok(self.ready.drain(..count).collect())
    }
}

/// An offset in a plain segment before which all records are at most `after`.
fn enter(file: &dyn DiskFile, length: u64, after: u64) -> io::Result<u64> {
    let (mut low, mut high) = (0, length);
    let mut peek = vec![0; PEEK];
    while high - low > NEAR {
        let middle = low + (high - low) / 2;
        let filled = read_full(file, &mut peek, middle)?;
        let line = memchr::memchr(b'\n', &peek[..filled]).map(|newline| newline + 1);
        let Some((at, link)) = line.and_then(|at| Some((at, segment::link(&peek[at..filled])?)))
        else {
            return Ok(low);
        };
        if link.seq <= after {
            low = middle + at as u64;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The lines that begin in a range, whole.
fn lines_of_range(file: &dyn DiskFile, range: &Range<u64>) -> io::Result<Vec<u8>> {
    // One byte before tells whether a line begins at `from`.
    let start = range.start.saturating_sub(1);
    let mut bytes = vec![0; usize::try_from(range.end - start).unwrap_or(0)];
    let filled = read_full(file, &mut bytes, start)?;
    bytes.truncate(filled);
    if range.start > 0 {
        let Some(newline) = memchr::memchr(b'\n', &bytes) else { return Ok(Vec::new()) };
        bytes.drain(..=newline);
    }
    // The end of the last line lies behind the range.
    let mut at = start + filled as u64;
    let mut more = vec![0; PEEK];
    while bytes.last().is_some_and(|byte| *byte != b'\n') {
        let filled = read_full(file, &mut more, at)?;
        let end = memchr::memchr(b'\n', &more[..filled]);
        bytes.extend_from_slice(&more[..end.map_or(filled, |newline| newline + 1)]);
        at += filled as u64;
        if end.is_some() {
            break;
        }
        if filled == 0 {
            // The writer is in the middle of it.
            bytes.truncate(memrchr(b'\n', &bytes).map_or(0, |newline| newline + 1));
            break;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use lastkey_store::disk::{Access, Disk as _, FileSystem};

    use super::*;

    #[test]
    fn nonces_are_read_where_records_have_them() {
        let line =
            br#"{"seq":1,"source":"x","nonce":"00000000000000ff","signed":-12,"outcome":"ok"}"#;
        assert_eq!(nonce(line), Some((255, -12)));
        assert_eq!(nonce(br#"{"target":"\",\"nonce\":\"00","outcome":"ok"}"#), None);
        assert_eq!(nonce(br#"{"a":1,"nonce":"00"#), None);
        assert_eq!(nonce(b""), None);
    }

    #[test]
    fn a_long_line_across_the_end_of_a_range_is_read_to_its_end() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("segment");
        let range_of = |bytes: &[u8], range: Range<u64>| {
            std::fs::write(&path, bytes).unwrap();
            let file = FileSystem.open(&path, Access::Read).unwrap();
            String::from_utf8(lines_of_range(&*file, &range).unwrap()).unwrap()
        };
        // No two pieces of it are the same.
        let long: String = (0..3 * PEEK / 8).map(|n| format!("{n:08}")).collect();
        let lines = format!("first\n{long}\nlast\n");
        let two = format!("first\n{long}\n");
        assert_eq!(range_of(lines.as_bytes(), 0..100), two);
        assert_eq!(range_of(lines.as_bytes(), 6..PEEK as u64), two[6..]);
        assert_eq!(range_of(lines.as_bytes(), 7..PEEK as u64), "", "none begins there");
        // Whoever writes it has not come to its end.
        assert_eq!(range_of(&two.as_bytes()[..two.len() - 1], 0..100), "first\n");
        assert_eq!(range_of(long.as_bytes(), 0..100), "");
    }
}
