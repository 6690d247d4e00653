//! Reading the log as it grows, for whoever carries it elsewhere.
//!
//! A follower reads files and nothing else: it holds no lock, the committer does not know of it,
//! and it goes on wherever it stopped. What is in a segment is durable already.

mod checkpoints;

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use lastkey_crypto::mac;
use lastkey_store::disk::{Disk, DiskFile, FileSystem, read_full};

use self::checkpoints::Checkpoints;
use super::{
    checkpoint,
    files::{self, Line, Lines, Opened, SegmentFile},
    segment, signer,
};

/// A last line is looked for in this much, and then in more.
const TAIL: u64 = 64 << 10;

/// How far somebody has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The last record.
    pub seq: u64,
    /// The number of the last checkpoint.
    pub checkpoint: u64,
}

/// Lines that were read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lot {
    /// Records in order, and each checkpoint behind the record it is about; without newlines.
    pub lines: Vec<Vec<u8>>,
    /// Where to go on.
    pub place: Place,
    /// Records that were deleted before they were read.
    pub missed: u64,
    /// SHA-256 of the last record's line; `None` if there is no record among the lines.
    pub hash: Option<[u8; 32]>,
}

/// Reads the log of a directory from a place on.
pub struct Follower {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    place: Place,
    open: Option<Open>,
    checkpoints: Checkpoints,
}

/// The segment that is being read.
struct Open {
    first: u64,
    opened: Opened,
    lines: Option<Lines>,
    /// Bytes of whole lines that were read.
    offset: u64,
    /// A later segment was seen; nothing more comes here, once this was read to its end again.
    closed: bool,
}

impl Follower {
    /// Goes on behind `place`.
    pub fn new(directory: impl Into<PathBuf>, place: Place) -> Self {
        Self::on(Arc::new(FileSystem), directory, place)
    }

    /// The same on another disk.
    pub fn on(disk: Arc<dyn Disk>, directory: impl Into<PathBuf>, place: Place) -> Self {
        let directory = directory.into();
        Self { disk, directory, place, open: None, checkpoints: Checkpoints::default() }
    }

    /// Where the log ends at present.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn end(directory: &Path) -> io::Result<Place> {
        let checkpoint = signer::newest_number(&FileSystem, directory)?;
        Ok(Place { seq: newest(&FileSystem, directory)?, checkpoint })
    }

    /// Where the log begins at present: before its oldest record, and its oldest checkpoint.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn beginning(directory: &Path) -> io::Result<Place> {
        let segments = files::list(&FileSystem, directory)?;
        let seq = segments.first().map_or(0, |oldest| oldest.first.saturating_sub(1));
        Ok(Place { seq, checkpoint: 0 })
    }

    /// Behind what it goes on.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Goes on somewhere else.
    pub fn turn_to(&mut self, place: Place) {
        (self.place, self.open, self.checkpoints) = (place, None, Checkpoints::default());
    }

    /// Whether the log ends before the place: it lost its end, or is another one.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn is_ahead(&self) -> io::Result<bool> {
        Ok(newest(&*self.disk, &self.directory)? < self.place.seq)
    }

    /// SHA-256 of the line of the record that it goes on behind; `None` where the log does not hold
    /// that.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> io::Result<Option<[u8; 32]>> {
        let seq = self.place.seq;
        let segments = files::list(&*self.disk, &self.directory)?;
        let at = segments.partition_point(|file| file.first <= seq);
        match (at.checked_sub(1).and_then(|at| segments.get(at)), segments.first()) {
            (Some(file), _) => self.hash_in(file, seq),
            (None, Some(oldest)) if oldest.first == seq.saturating_add(1) => {
                self.hash_before(oldest)
            }
            _ => Ok(None),
        }
    }

    fn hash_in(&self, file: &SegmentFile, seq: u64) -> io::Result<Option<[u8; 32]>> {
        let mut open = Open::new(&*self.disk, &self.directory, file)?;
        while let Some(line) = open.next()? {
            if segment::link(&line).is_some_and(|link| link.seq == seq) {
                return Ok(Some(mac::sha256(&[&line])));
            }
        }
        Ok(None)
    }

    /// What the first record of a segment says of the one before.
    fn hash_before(&self, file: &SegmentFile) -> io::Result<Option<[u8; 32]>> {
        let first = Open::new(&*self.disk, &self.directory, file)?.next()?;
        let link = first.and_then(|line| segment::link(&line));
        Ok(link.filter(|link| link.seq == file.first).map(|link| link.prev))
    }

    /// How many records lie behind the place.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn lag(&self) -> io::Result<u64> {
        Ok(newest(&*self.disk, &self.directory)?.saturating_sub(self.place.seq))
    }

    /// What comes next, at most so many lines and about so many bytes. Empty if there is nothing.
    ///
    /// # Errors
    /// A file cannot be read; the place stays.
    pub fn next(&mut self, lines: usize, bytes: usize) -> io::Result<Lot> {
        self.checkpoints.look(&*self.disk, &self.directory, self.place.checkpoint)?;
        let mut lot = Lot { place: self.place, ..Lot::default() };
        let (mut size, mut last) = (0, None);
        while lot.lines.len() < lines && size < bytes {
            self.checkpoints.take(&mut lot);
            let Some(line) = self.line(&mut lot)? else { break };
            size += line.len();
            last = Some(lot.lines.len());
            lot.lines.push(line);
        }
        self.checkpoints.take(&mut lot);
        lot.hash = last.and_then(|at| lot.lines.get(at)).map(|line| mac::sha256(&[line]));
        Ok(lot)
    }

    /// What `next` gave has arrived.
    pub fn arrived(&mut self, lot: &Lot) {
        self.place = lot.place;
        self.checkpoints.arrived(lot.place.checkpoint);
    }

    /// What `next` gave has not arrived: it comes again.
    pub fn again(&mut self) {
        self.open = None;
    }

    /// The next record.
    fn line(&mut self, lot: &mut Lot) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.open.is_none() && !self.enter(lot.place.seq)? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            let record = match open.next()? {
                Some(line) => line,
                None if open.opened.compressed || open.closed => {
                    let first = open.first;
                    if !self.pass(first)? {
                        return Ok(None);
                    }
                    continue;
                }
                None => {
                    let first = open.first;
                    let segments = files::list(&*self.disk, &self.directory)?;
                    let later = segments.iter().any(|file| file.first > first);
                    if let Some(open) = &mut self.open {
                        open.lines = None;
                        open.closed = later;
                    }
                    if later {
                        continue;
                    }
                    return Ok(None);
                }
            };
            // What is no record, and what was read before, is passed over.
            let Some(link) = segment::link(&record) else { continue };
            if link.seq <= lot.place.seq {
                continue;
            }
            lot.missed += link.seq - lot.place.seq - 1;
            lot.place.seq = link.seq;
            return Ok(Some(record));
        }
    }

    /// Opens the segment in which the record behind `seq` must be, or the oldest one left.
    fn enter(&mut self, seq: u64) -> io::Result<bool> {
        let segments = files::list(&*self.disk, &self.directory)?;
        let at = segments.partition_point(|file| file.first <= seq.saturating_add(1));
        self.open_one(segments.get(at.saturating_sub(1)))
    }

    /// Leaves a segment that was read to its end.
    fn pass(&mut self, first: u64) -> io::Result<bool> {
        let segments = files::list(&*self.disk, &self.directory)?;
        let next = segments.iter().find(|file| file.first > first);
        if next.is_none() {
            self.open = None;
        }
        self.open_one(next)
    }

    fn open_one(&mut self, file: Option<&SegmentFile>) -> io::Result<bool> {
        let Some(file) = file else { return Ok(false) };
        match Open::new(&*self.disk, &self.directory, file) {
            // Deleted since it was listed: the next attempt finds what is left.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            opened => {
                self.open = Some(opened?);
                Ok(true)
            }
        }
    }
}

impl Open {
    fn new(disk: &dyn Disk, directory: &Path, file: &SegmentFile) -> io::Result<Self> {
        let opened = file.open(disk, directory)?;
        Ok(Self { first: file.first, opened, lines: None, offset: 0, closed: false })
    }

    /// The next whole line.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let lines = match &mut self.lines {
            Some(lines) => lines,
            None if self.opened.compressed => {
                self.lines.insert(self.opened.lines(u64::MAX, |_| {})?)
            }
            None => {
                let from = files::At::new(Arc::clone(&self.opened.file), self.offset);
                self.lines.insert(Lines::new(Box::new(from)))
            }
        };
        match lines.next() {
            Ok(Some(Line::Whole(line))) => {
                self.offset += line.len() as u64 + 1;
                Ok(Some(line.to_vec()))
            }
            Ok(Some(Line::Torn(_)) | None) => Ok(None),
            Err(error) if error.raw_os_error().is_some() => Err(error),
            // What does not decompress is for a verification to tell.
            Err(_) => Ok(None),
        }
    }
}

/// The newest record's number.
fn newest(disk: &dyn Disk, directory: &Path) -> io::Result<u64> {
    for file in files::list(disk, directory)?.iter().rev() {
        let opened = match file.open(disk, directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if opened.compressed {
            // Only where the open segment is missing: all that is known is where this one begins.
            return Ok(file.first);
        }
        // Without a record in it, it was begun just now.
        let last = last_record(&*opened.file)?;
        return Ok(last.unwrap_or(file.first.saturating_sub(1)));
    }
    Ok(0)
}

/// The number of the last whole record in a plain segment.
fn last_record(file: &dyn DiskFile) -> io::Result<Option<u64>> {
    let length = file.length()?;
    let mut tail = TAIL;
    loop {
        let from = length.saturating_sub(tail);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
        let filled = read_full(file, &mut bytes, from)?;
        let whole = memchr::memrchr(b'\n', &bytes[..filled]).map_or(0, |newline| newline + 1);
        let mut lines = bytes[..whole].rsplit(|byte| *byte == b'\n');
        let newest = lines.find_map(segment::link);
        if newest.is_some() || from == 0 {
            return Ok(newest.map(|link| link.seq));
        }
        tail *= 8;
    }
}
