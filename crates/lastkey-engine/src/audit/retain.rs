//! Deleting old segments so that what remains can still be verified.
//!
//! 1. The oldest closed segments that are too old, or too much, are chosen; never the open one.
//! 2. The head that they end with is computed from the last line itself, and must be what the next
//!    segment begins behind: a log that is not as it was written is not deleted.
//! 3. The engine records the deletion in the log, and until when nonces of requests went with it
//!    that would still be admitted: the next start cannot know them any more, and refuses them.
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

use super::{
    Head,
    files::{self, Line, SegmentFile, compressed_name},
    index,
    keeper::{self, Shelf},
    query, segment,
};
use crate::{Timestamp, nonce::SKEW};

/// A segment's last line is looked for in this much.
const TAIL: u64 = 4 << 20;

/// What is kept. The default keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// At most so many bytes of files; the open segment stays in any case.
    pub bytes: Option<u64>,
    /// Segments whose newest record is at most so old.
    pub age: Option<Duration>,
}

/// Segments to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The last record that goes.
    pub through: Head,
    /// How many segments.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// The latest second that a request was signed for whose nonce goes with them, if it may still
    /// be admitted.
    pub signed: Option<i64>,
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
    let mut kept: u64 = sizes.iter().sum();
    let (mut count, mut bytes) = (0, 0);
    for (file, size) in segments.iter().zip(&sizes) {
        let too_much = retention.bytes.is_some_and(|most| kept > most);
        if file.first >= open || !(too_much || is_old(shelf, file, retention, now)?) {
            break;
        }
        kept -= size;
        bytes += size;
        count += 1;
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
    let signed = signed(shelf, &segments[..count], now)?;
    Ok(Some(Deletion { through, segments: count as u64, bytes, signed }))
}

/// The latest second in the newest segments that are to go that a request was signed for, or that
/// an earlier deletion was told of. What is older than any request that is admitted is not read.
fn signed(
    shelf: &Shelf,
    segments: &[SegmentFile],
    now: Option<Timestamp>,
) -> io::Result<Option<i64>> {
    let mut latest = None;
    for file in segments.iter().rev() {
        if let (Some(now), Some(newest)) = (now, newest(shelf, file)?)
            && now.since(newest) > 2 * SKEW
        {
            break;
        }
        let opened = file.open(&*shelf.disk, &shelf.directory)?;
        let mut lines = opened.lines(u64::MAX, |_| {})?;
        while let Some(line) = lines.next()? {
            if let Line::Whole(line) = line {
                let of_request = query::nonce(line).map(|(_, signed)| signed);
                latest = latest.max(of_request).max(query::signed_until(line));
            }
        }
    }
    Ok(latest)
}

fn changed(file: &SegmentFile) -> io::Error {
    let what = "is not as it was written, so it is not deleted; run `lastkey audit verify`";
    io::Error::new(ErrorKind::InvalidData, format!("{} {what}", file.name()))
}

/// Bytes of the form that counts.
fn size(shelf: &Shelf, file: &SegmentFile) -> io::Result<u64> {
    file.open(&*shelf.disk, &shelf.directory)?.file.length()
}

fn is_old(
    shelf: &Shelf,
    file: &SegmentFile,
    retention: Retention,
    now: Option<Timestamp>,
) -> io::Result<bool> {
    let (Some(age), Some(now)) = (retention.age, now) else { return Ok(false) };
    Ok(newest(shelf, file)?.is_some_and(|newest| now.since(newest) > age))
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
