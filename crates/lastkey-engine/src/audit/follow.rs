//! Reading the log as it grows, for whoever carries it elsewhere.
//!
//! A follower reads files and nothing else: it holds no lock, the committer does not know of it,
//! and it goes on wherever it stopped. What is in a segment is durable already.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use lastkey_store::disk::{Disk, FileSystem, read_full};

use super::{
    checkpoint,
    files::{self, Line, Lines, Opened},
    segment, signer,
};

/// A last line is looked for in this much.
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
}

/// Reads the log of a directory from a place on.
pub struct Follower {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    place: Place,
    open: Option<Open>,
    /// The file of checkpoints when it was last read, by its length.
    checkpoints: u64,
    waiting: Vec<(u64, u64, Vec<u8>)>,
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
        Self { disk, directory, place, open: None, checkpoints: 0, waiting: Vec::new() }
    }

    /// Where the log ends at present.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn end(directory: &Path) -> io::Result<Place> {
        let bytes = signer::read_file(&FileSystem, directory)?;
        let checkpoint = checkpoint::lines(&bytes)
            .filter_map(checkpoint::read)
            .map(|found| found.statement.number)
            .max()
            .unwrap_or(0);
        Ok(Place { seq: newest(&FileSystem, directory)?, checkpoint })
    }

    /// Behind what it goes on.
    pub fn place(&self) -> Place {
        self.place
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
        self.look_for_checkpoints()?;
        let mut lot = Lot { place: self.place, ..Lot::default() };
        let mut size = 0;
        while lot.lines.len() < lines && size < bytes {
            self.take_checkpoints(&mut lot);
            let Some(line) = self.line(&mut lot)? else { break };
            size += line.len();
            lot.lines.push(line);
        }
        self.take_checkpoints(&mut lot);
        Ok(lot)
    }

    /// What `next` gave has arrived.
    pub fn arrived(&mut self, lot: &Lot) {
        self.place = lot.place;
        self.waiting.retain(|(number, ..)| *number > lot.place.checkpoint);
    }

    /// What `next` gave has not arrived: it comes again.
    pub fn again(&mut self) {
        self.open = None;
    }

    /// Checkpoints about what was read.
    fn take_checkpoints(&self, lot: &mut Lot) {
        for (number, seq, line) in &self.waiting {
            if *number > lot.place.checkpoint && *seq <= lot.place.seq {
                lot.place.checkpoint = *number;
                lot.lines.push(line.clone());
            }
        }
    }

    fn look_for_checkpoints(&mut self) -> io::Result<()> {
        let path = self.directory.join(checkpoint::FILE);
        let length = match self.disk.open(&path, lastkey_store::disk::Access::Read) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            file => file?.length()?,
        };
        if length == self.checkpoints {
            return Ok(());
        }
        let bytes = signer::read_file(&*self.disk, &self.directory)?;
        let after = self.waiting.last().map_or(self.place.checkpoint, |(number, ..)| *number);
        for line in checkpoint::lines(&bytes) {
            let Some(found) = checkpoint::read(line) else { continue };
            let statement = found.statement;
            if statement.number > after {
                self.waiting.push((statement.number, statement.head.seq, line.to_vec()));
            }
        }
        self.checkpoints = length;
        Ok(())
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

    fn open_one(&mut self, file: Option<&files::SegmentFile>) -> io::Result<bool> {
        let Some(file) = file else { return Ok(false) };
        match file.open(&*self.disk, &self.directory) {
            // Deleted since it was listed: the next attempt finds what is left.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            opened => {
                let (first, opened) = (file.first, opened?);
                self.open = Some(Open { first, opened, lines: None, offset: 0, closed: false });
                Ok(true)
            }
        }
    }
}

impl Open {
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
        let length = opened.file.length()?;
        let from = length.saturating_sub(TAIL);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
        let filled = read_full(&*opened.file, &mut bytes, from)?;
        let whole = memchr::memrchr(b'\n', &bytes[..filled]).map_or(0, |newline| newline + 1);
        let mut lines = bytes[..whole].rsplit(|byte| *byte == b'\n');
        let newest = lines.find_map(segment::link);
        match newest {
            Some(link) => return Ok(link.seq),
            // It was begun just now.
            None => return Ok(file.first.saturating_sub(1)),
        }
    }
    Ok(0)
}
