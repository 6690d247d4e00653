//! Checkpoints on their way to a follower: read on from where the last look ended.
//!
//! The file only grows, but for a deletion of old records, which writes it anew. Then another line
//! stands where the last one was read, and the place is looked for again. (As long as the new file
//! is exactly as long as the old one was, that waits for the next checkpoint.)

use std::{io, path::Path};

use lastkey_store::disk::{Disk, DiskFile, read_full};

use super::{Lot, checkpoint, signer};

/// So many wait at most; what comes behind them is read later.
const MOST: usize = 4096;
/// So much is read at once.
const PIECE: u64 = 64 << 10;

#[derive(Default)]
pub(super) struct Checkpoints {
    /// Whether `offset` means anything.
    begun: bool,
    /// How long the file was when all that was new in it was read.
    length: u64,
    /// Behind the last whole line that was read.
    offset: u64,
    /// That line, with its newline.
    last: Vec<u8>,
    /// Number, record and line of those that have not arrived.
    waiting: Vec<(u64, u64, Vec<u8>)>,
}

impl Checkpoints {
    /// Adds to a lot what is due. They come by number: one that is not due keeps those behind it.
    pub(super) fn take(&self, lot: &mut Lot) {
        for (number, seq, line) in &self.waiting {
            if *number <= lot.place.checkpoint {
                continue;
            }
            if *seq > lot.place.seq {
                break;
            }
            lot.place.checkpoint = *number;
            lot.lines.push(line.clone());
        }
    }

    /// Those up to this number have arrived.
    pub(super) fn arrived(&mut self, number: u64) {
        self.waiting.retain(|(waits, ..)| *waits > number);
    }

    /// Reads what is new, of those behind the number `arrived`.
    pub(super) fn look(
        &mut self,
        disk: &dyn Disk,
        directory: &Path,
        arrived: u64,
    ) -> io::Result<()> {
        let Some(file) = signer::open_file(disk, directory)? else { return Ok(()) };
        let length = file.length()?;
        if self.begun && length == self.length {
            return Ok(());
        }
        if !self.begun || !self.goes_on(&*file, length)? {
            self.begin(&*file, self.newest(arrived))?;
        }
        while self.offset < length {
            if self.waiting.len() >= MOST {
                return Ok(());
            }
            let more = (length - self.offset).min(PIECE);
            let mut bytes = vec![0; usize::try_from(more).unwrap_or_default()];
            let filled = read_full(&*file, &mut bytes, self.offset)?;
            if !self.read(&bytes[..filled], arrived) {
                break;
            }
        }
        self.length = length;
        Ok(())
    }

    fn newest(&self, arrived: u64) -> u64 {
        self.waiting.last().map_or(arrived, |(number, ..)| *number)
    }

    /// Takes whole lines; false if there is none yet.
    fn read(&mut self, bytes: &[u8], arrived: u64) -> bool {
        let Some(newline) = memchr::memrchr(b'\n', bytes) else {
            // Too long for a checkpoint, or torn.
            let is_long = bytes.len() as u64 == PIECE;
            if is_long {
                self.offset += PIECE;
                self.last.clear();
            }
            return is_long;
        };
        let whole = &bytes[..=newline];
        for line in checkpoint::lines(whole) {
            let Some(found) = checkpoint::read(line) else { continue };
            let statement = found.statement;
            if statement.number > self.newest(arrived) {
                self.waiting.push((statement.number, statement.head.seq, line.to_vec()));
            }
        }
        self.offset += whole.len() as u64;
        self.last = whole.split_inclusive(|byte| *byte == b'\n').next_back().unwrap_or(b"").into();
        true
    }

    /// Whether the last line that was read still stands where it did.
    fn goes_on(&self, file: &dyn DiskFile, length: u64) -> io::Result<bool> {
        if length < self.offset {
            return Ok(false);
        }
        let mut there = vec![0; self.last.len()];
        let filled = read_full(file, &mut there, self.offset - self.last.len() as u64)?;
        Ok(there[..filled] == self.last)
    }

    /// Begins behind the newest line that is known, looking from the end.
    fn begin(&mut self, file: &dyn DiskFile, known: u64) -> io::Result<()> {
        (self.offset, self.last) = (0, Vec::new());
        if known > 0 {
            let end = signer::end_of_lines(file)?;
            signer::backwards(file, end, |from, bytes| self.find(from, bytes, known))?;
        }
        self.begun = true;
        Ok(())
    }

    /// Whether a line that is known is among these.
    fn find(&mut self, from: u64, bytes: &[u8], known: u64) -> bool {
        let mut end = from + bytes.len() as u64;
        for line in bytes.split_inclusive(|byte| *byte == b'\n').rev() {
            let found = line.strip_suffix(b"\n").and_then(checkpoint::read);
            if found.is_some_and(|found| found.statement.number <= known) {
                (self.offset, self.last) = (end, line.to_vec());
                return true;
            }
            end -= line.len() as u64;
        }
        false
    }
}
