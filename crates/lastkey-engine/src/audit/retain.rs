//! Deleting old segments so that what remains can still be verified.
//!
//! 1. The oldest closed segments that are too old, or too much, are chosen; never the open one.
//! 2. The head that they end with is computed from the last line itself, and must be what the next
//!    segment begins behind: a log that is not as it was written is not deleted.
//! 3. The engine records the deletion in the log, and for which seconds requests were signed whose
//!    nonces went with it, or with the deletions before it: the next start cannot know them any
//!    more, and refuses what is signed for these seconds. The newest of these records is never
//!    deleted, for each deletion first appends one to the open segment.
//! 4. A checkpoint of the kind `retention` states it, signed and durable.
//! 5. The files go, the oldest first.
//!
//! After a crash between 4 and 5 the rest goes at the next attempt; until then the chain leads
//! from what remains to what the checkpoint names.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use lastkey_crypto::mac;
use lastkey_store::disk::{DiskFile, read_full};
use serde_json::Value;

use super::{
    Head, Query, ballast,
    files::{self, Line, SegmentFile, compressed_name},
    index,
    keeper::{self, Shelf},
    query,
    seconds::Seconds,
    segment,
};
use crate::{Timestamp, action::Action, nonce::SKEW};

/// A segment's last line is looked for in this much.
const TAIL: u64 = 4 << 20;
/// Of a block whose newest record is older than this, all seconds that it can be about count as
/// lost, and it is not read. A clock that age is counted by was not seen to jump for so long: if it
/// is wrong, it is right again later than what it showed before.
const LONG_AGO: Duration = Duration::from_secs(24 * 60 * 60);
/// Unless it is about more than this: then the clock may have jumped while it was written, and what
/// lies between is nobody's.
const MAX_SPAN: Duration = Duration::from_secs(12 * 60 * 60);
/// From its admission to its record, a request takes less than this.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// What is kept. The default keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// At most so many bytes of files; the open segment stays in any case.
    pub bytes: Option<u64>,
    /// Segments whose newest record is at most so old.
    pub age: Option<Duration>,
}

/// Segments to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The last record that goes.
    pub through: Head,
    /// How many segments.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// The seconds that requests were signed for whose nonces go with them, or went before.
    pub lost: Seconds,
}

/// What a deletion's record calls the seconds that lost nonces were signed for.
pub(crate) const SIGNED_FOR: &str = "signed_for";
/// What it calls the latest of them, for releases that know no more.
pub(crate) const SIGNED_UNTIL: &str = "signed_until";

/// What a deletion's record tells of the requests whose nonces are lost.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    time: Timestamp,
    by: By,
}

#[derive(Debug, PartialEq, Eq)]
enum By {
    Seconds(Seconds),
    /// All that an older release told: the latest second.
    Latest(i64),
    Nothing,
}

impl Told {
    /// What finds the newest deletion's record.
    pub(crate) fn query() -> Query {
        let action = Some(Action::DeleteAudit.name().to_owned());
        Query { action, newest: true, limit: 1, ..Query::default() }
    }

    /// Reads a deletion's record.
    pub(crate) fn read(record: &Value) -> Option<Self> {
        let time = Timestamp::parse(record["time"].as_str()?).ok()?;
        let seconds = record[SIGNED_FOR].as_str().and_then(Seconds::parse);
        let latest = record[SIGNED_UNTIL].as_i64();
        let by = seconds.map(By::Seconds).or(latest.map(By::Latest)).unwrap_or(By::Nothing);
        Some(Self { time, by })
    }

    /// The seconds, for the next deletion's record. Where an older release told the latest alone,
    /// those of the requests that were admitted shortly before the deletion, by either clock.
    fn written_on(&self) -> Seconds {
        let mut seconds = Seconds::default();
        match &self.by {
            By::Seconds(told) => seconds = told.clone(),
            By::Latest(latest) => {
                let first = seconds_before(self.time, 2 * SKEW);
                seconds.add(first.min(*latest), self.until().min(*latest));
                if *latest > self.until() {
                    seconds.add(latest.saturating_sub(2 * SKEW.as_secs() as i64), *latest);
                }
            }
            By::Nothing => {}
        }
        seconds
    }

    /// The seconds whose requests a start must refuse, which has read all records since `from`.
    pub(crate) fn at_start(&self, from: Timestamp, now: Timestamp) -> Seconds {
        let mut seconds = self.written_on();
        if let By::Latest(latest) = self.by {
            // How long before it the others were signed, nobody knows.
            let until = if self.time > now {
                // The clock was ahead; what was deleted may be from shortly before that.
                Some(now.as_seconds())
            } else if latest > self.until() {
                Some(self.until())
            } else {
                (self.time >= from).then_some(latest)
            };
            if let Some(until) = until {
                seconds.add(i64::MIN, until);
            }
        }
        seconds
    }

    /// What was signed later was signed by another clock than the record's.
    fn until(&self) -> i64 {
        self.time.after(SKEW).as_seconds()
    }
}

/// Steps 1 and 2. Without a time, age does not count.
pub(super) fn choose(
    shelf: &Shelf,
    retention: Retention,
    open: u64,
    now: Option<Timestamp>,
) -> io::Result<Option<Deletion>> {
    if retention == Retention::default() {
        return Ok(None);
    }
    let segments = files::list(&*shelf.disk, &shelf.directory)?;
    let sizes = segments.iter().map(|file| size(shelf, file)).collect::<io::Result<Vec<_>>>()?;
    let mut kept: u64 = sizes.iter().sum::<u64>() + ballast::size(shelf)?;
    let (mut count, mut bytes) = (0, 0);
    // Made while the clock was ahead: they go with the next one that is old, for that is younger.
    let mut ahead = 0;
    for (at, (file, size)) in segments.iter().zip(&sizes).enumerate() {
        if file.first >= open {
            break;
        }
        let too_much = retention.bytes.is_some_and(|most| kept > most);
        match if too_much { Age::Old } else { age(shelf, file, retention, now)? } {
            Age::Old => {
                kept -= size;
                bytes += ahead + size;
                count = at + 1;
                ahead = 0;
            }
            Age::Ahead => ahead += size,
            Age::Young => break,
        }
    }
    let Some(last) = segments[..count].last() else { return Ok(None) };
    let line = last_line(shelf, last)?;
    let link = segment::link(&line).ok_or_else(|| changed(last))?;
    let through = Head { seq: link.seq, hash: mac::sha256(&[&line]) };
    let next = segments.get(count).ok_or_else(|| changed(last))?;
    let opened = next.open(&*shelf.disk, &shelf.directory)?;
    let mut lines = opened.lines(u64::MAX, |_| {})?;
    let behind = match lines.next()? {
        Some(Line::Whole(line)) => segment::link(line),
        // Nothing was written to the open one yet.
        None if next.first == open => None,
        _ => return Err(changed(next)),
    };
    let follows =
        behind.is_none_or(|link| link.seq == through.seq + 1 && link.prev == through.hash);
    if !follows {
        return Err(changed(last));
    }
    let lost = lost(shelf, &segments[..count], now)?;
    Ok(Some(Deletion { through, segments: count as u64, bytes, lost }))
}

/// The seconds that requests in these segments were signed for, and in those deleted before them.
fn lost(shelf: &Shelf, segments: &[SegmentFile], now: Option<Timestamp>) -> io::Result<Seconds> {
    let mut lost = Seconds::default();
    for file in segments {
        let opened = file.open(&*shelf.disk, &shelf.directory)?;
        let index = if opened.compressed { shelf.index(file) } else { None };
        let Some(index) = index else {
            let mut lines = opened.lines(u64::MAX, |_| {})?;
            while let Some(line) = lines.next()? {
                if let Line::Whole(line) = line {
                    add_line(&mut lost, line);
                }
            }
            continue;
        };
        for block in &index.blocks {
            if let Some((first, last)) = unread(block, now) {
                lost.add(first, last);
            } else {
                let lines = block_lines(&*opened.file, block)?.ok_or_else(|| changed(file))?;
                lines.split(|byte| *byte == b'\n').for_each(|line| add_line(&mut lost, line));
            }
        }
    }
    // Nothing was deleted before the first record.
    if segments.first().is_some_and(|file| file.first > 1) {
        let newest = query::run(shelf, &Told::query(), u64::MAX)?.records;
        if let Some(told) = newest.first().and_then(Told::read) {
            lost.join(&told.written_on());
        }
    }
    Ok(lost)
}

fn add_line(lost: &mut Seconds, line: &[u8]) {
    if let Some((_, signed)) = query::nonce(line) {
        lost.add(signed, signed);
    }
}

/// The seconds that requests in a block can be signed for, if it need not be read.
fn unread(block: &index::Block, now: Option<Timestamp>) -> Option<(i64, i64)> {
    let (earliest, latest) =
        (Timestamp::from_millis(block.earliest), Timestamp::from_millis(block.latest));
    let is_one_time = earliest <= latest && latest.since(earliest) <= MAX_SPAN;
    (is_one_time && now?.since(latest) > LONG_AGO)
        .then(|| (seconds_before(earliest, SKEW + UNDER_WAY), latest.after(SKEW).as_seconds()))
}

fn seconds_before(time: Timestamp, by: Duration) -> i64 {
    time.as_seconds().saturating_sub(by.as_secs() as i64)
}

fn changed(file: &SegmentFile) -> io::Error {
    let what = "is not as it was written, so it is not deleted; run `lastkey audit verify`";
    io::Error::new(ErrorKind::InvalidData, format!("{} {what}", file.name()))
}

/// Bytes of the form that counts.
fn size(shelf: &Shelf, file: &SegmentFile) -> io::Result<u64> {
    file.open(&*shelf.disk, &shelf.directory)?.file.length()
}

/// What a segment's age says about it.
enum Age {
    /// It may go.
    Old,
    /// It stays, and those behind it.
    Young,
    /// It was made under a clock that was ahead.
    Ahead,
}

fn age(
    shelf: &Shelf,
    file: &SegmentFile,
    retention: Retention,
    now: Option<Timestamp>,
) -> io::Result<Age> {
    let (Some(age), Some(now)) = (retention.age, now) else { return Ok(Age::Young) };
    Ok(match newest(shelf, file)? {
        Some(newest) if newest > now => Age::Ahead,
        Some(newest) if now.since(newest) > age => Age::Old,
        _ => Age::Young,
    })
}

/// When the last record of a closed segment was made, as it says.
fn newest(shelf: &Shelf, file: &SegmentFile) -> io::Result<Option<Timestamp>> {
    let line = last_line(shelf, file)?;
    let fields: Option<index::Fields<'_>> = serde_json::from_slice(&line).ok();
    Ok(fields.and_then(|fields| fields.millis()).map(Timestamp::from_millis))
}

/// The last line of a closed segment, without its newline.
fn last_line(shelf: &Shelf, file: &SegmentFile) -> io::Result<Vec<u8>> {
    let opened = file.open(&*shelf.disk, &shelf.directory)?;
    if !opened.compressed {
        let length = opened.file.length()?;
        let from = length.saturating_sub(TAIL);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
        let filled = read_full(&*opened.file, &mut bytes, from)?;
        return Ok(last_of(&bytes[..filled]));
    }
    if let Some(block) = shelf.index(file).and_then(|mut index| index.blocks.pop()) {
        let lines = block_lines(&*opened.file, &block)?.ok_or_else(|| changed(file))?;
        return Ok(last_of(&lines));
    }
    let mut lines = opened.lines(u64::MAX, |_| {})?;
    let mut last = Vec::new();
    while let Some(line) = lines.next()? {
        if let Line::Whole(line) = line {
            last.clear();
            last.extend_from_slice(line);
        }
    }
    Ok(last)
}

fn block_lines(file: &dyn DiskFile, block: &index::Block) -> io::Result<Option<Vec<u8>>> {
    let mut frame = vec![0; block.length as usize];
    let filled = read_full(file, &mut frame, block.offset)?;
    Ok(keeper::unpack(&frame[..filled], block.raw as usize))
}

fn last_of(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let start = memchr::memrchr(b'\n', bytes).map_or(0, |newline| newline + 1);
    bytes[start..].to_vec()
}

/// Step 5: removes every segment that ends at or before record `through`.
pub(super) fn remove(shelf: &Shelf, through: u64) -> io::Result<()> {
    let segments = files::list(&*shelf.disk, &shelf.directory)?;
    let mut removed = false;
    for pair in segments.windows(2) {
        let [file, next] = pair else { break };
        if next.first > through + 1 {
            break;
        }
        let names =
            [index::name(file.first), compressed_name(file.first), segment::name(file.first)];
        for name in names {
            match shelf.disk.remove(&shelf.directory.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => removed = true,
            }
        }
    }
    if removed { shelf.disk.sync_directory(&shelf.directory) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    fn told(fields: &str) -> Told {
        let time = at(1_000_000);
        let line =
            format!(r#"{{"seq":9,"time":"{time}","action":"DeleteAudit"{fields},"outcome":"ok"}}"#);
        Told::read(&serde_json::from_str(&line).unwrap()).unwrap()
    }

    /// What a start at this second refuses, which has read half an hour.
    fn refused(told: &Told, now: i64) -> Vec<(i64, i64)> {
        told.at_start(at(now - 1800), at(now)).iter().collect()
    }

    #[test]
    fn the_seconds_are_told_exactly() {
        let both = told(r#","signed_for":"5..9 2000000000..2000000007","signed_until":9"#);
        let seconds = vec![(5, 9), (2_000_000_000, 2_000_000_007)];
        assert_eq!(both.written_on().iter().collect::<Vec<_>>(), seconds);
        for now in [1_000_000, 1_100_000, 2_000_000_003, 0] {
            assert_eq!(refused(&both, now), seconds);
        }
        assert_eq!(refused(&told(""), 1_000_000), []);
        // A text that a caller named is none of its fields.
        let named = told(r#","target":",\"signed_for\":\"1..2\",\"signed_until\":12,""#);
        assert_eq!((named.by, Told::read(&Value::Null)), (By::Nothing, None));
        // What is not understood does not hide the rest.
        let unknown = told(r#","signed_for":"all","signed_until":1000100"#);
        assert_eq!(unknown, told(r#","signed_until":1000100"#));
    }

    #[test]
    fn the_latest_alone_of_an_older_release_is_refused_as_it_was_meant() {
        let near = told(r#","signed_until":1000100"#);
        assert_eq!(near.written_on().iter().collect::<Vec<_>>(), [(998_200, 1_000_100)]);
        assert_eq!(refused(&near, 1_000_200), [(i64::MIN, 1_000_100)]);
        assert_eq!(refused(&near, 1_001_800), [(i64::MIN, 1_000_100)]);
        // Whoever reads half an hour refuses what is older in any case.
        assert_eq!(refused(&near, 1_001_801), [(998_200, 1_000_100)]);
        // Much earlier than its record.
        assert_eq!(told(r#","signed_until":7"#).written_on().iter().collect::<Vec<_>>(), [(7, 7)]);
    }

    #[test]
    fn a_latest_second_far_ahead_locks_nobody_out() {
        let far = told(r#","signed_until":2000000000"#);
        let ahead = (1_999_998_200, 2_000_000_000);
        assert_eq!(far.written_on().iter().collect::<Vec<_>>(), [(998_200, 1_000_900), ahead]);
        for now in [1_000_901, 1_500_000] {
            assert_eq!(refused(&far, now), [(i64::MIN, 1_000_900), ahead], "at {now}");
        }
        // The record itself was made under the clock that was ahead, and now that is right.
        let now = 400_000;
        let latest = told(r#","signed_until":1000100"#);
        assert_eq!(refused(&latest, now), [(i64::MIN, now), (998_200, 1_000_100)]);
        assert_eq!(refused(&far, now), [(i64::MIN, now), (998_200, 1_000_900), ahead]);
    }

    fn block(earliest: Timestamp, latest: Timestamp) -> index::Block {
        let mut builder = index::Builder::new();
        for (seq, time) in [(1, earliest), (2, latest)] {
            let mut line = Vec::new();
            let body = format!(r#""time":"{time}","outcome":"ok""#);
            segment::write_line(&mut line, seq, &[0; 32], body.as_bytes());
            line.pop();
            builder.line(&line);
        }
        builder.block(1, 1);
        builder.finish().blocks.pop().unwrap()
    }

    #[test]
    fn only_a_block_of_one_time_long_ago_is_not_read() {
        let (first, last) = (at(1_000_000), at(1_000_000).after(12 * HOUR));
        let bound = last.after(24 * HOUR);
        let later = bound.after(Duration::from_millis(1));
        let seconds = Some((1_000_000 - 960, last.as_seconds() + 900));
        assert_eq!(unread(&block(first, last), Some(later)), seconds);
        assert_eq!(unread(&block(last, first), Some(later)), seconds, "the clock went back");
        assert_eq!(unread(&block(first, last), Some(bound)), None);
        assert_eq!(unread(&block(first, last), None), None);
        // Between these two the clock may have jumped.
        let longer = block(first, last.after(Duration::from_millis(1)));
        assert_eq!(unread(&longer, Some(later.after(HOUR))), None);
        assert_eq!(unread(&block(at(2_000_000_000), at(2_000_000_001)), Some(later)), None);
        // No record of it has a time.
        let mut untimed = block(first, last);
        (untimed.earliest, untimed.latest) = (i64::MAX, i64::MIN);
        assert_eq!(unread(&untimed, Some(later)), None);
    }
}
