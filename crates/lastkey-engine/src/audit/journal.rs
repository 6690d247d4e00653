//! The journal: what makes a batch of records durable with one `fdatasync`, and its head authentic.
//!
//! Two preallocated files take turns. A file begins with a header and is filled with frames; when
//! it is full, the other one begins with the next generation. A file is only reused once the
//! segments hold durably what it held.
//!
//! Header (at 0, big-endian):
//! ```text
//! 00  4c 4b 4a 31                magic "LKJ1"
//! 04  8  generation              rises by one with every change of file
//! 0c  40 head                    seq 8 ‖ hash 32: where the chain ended when the file began
//! 34  16 position                first record of the segment 8 ‖ offset in it 8
//! 44  32 HMAC-SHA256("lastkey audit journal header" ‖ bytes 00..44)
//! ```
//! Frame (the first at 4096):
//! ```text
//! 00  4c 4b 46 31                magic "LKF1"
//! 04  4  flags                   1: the log was closed cleanly, the segments are durable
//! 08  8  generation
//! 10  8  payload length
//! 18  16 position                where the payload belongs: first record of the segment ‖ offset
//! 28  40 head                    after the payload
//! 50  32 HMAC-SHA256("lastkey audit journal frame" ‖ frame offset 8 ‖ bytes 00..50)
//! 70  payload                    JSON lines; the head's hash chains them all
//! ```

use std::{
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};

use lastkey_crypto::{KeyMaterial, mac};
use lastkey_store::disk::{Access, Disk, DiskFile, read_full};

use super::{Head, segment};

/// The size of one journal file.
pub(super) const FILE_BYTES: u64 = 4 << 20;
const FIRST_FRAME: u64 = 4096;
const HEADER_BYTES: usize = 0x64;
const HEADER_AUTHENTICATED: usize = 0x44;
/// The size of a frame's own fields.
pub(super) const FRAME_BYTES: usize = 0x70;
const FRAME_AUTHENTICATED: usize = 0x50;
const HEADER_MAGIC: &[u8; 4] = b"LKJ1";
const FRAME_MAGIC: &[u8; 4] = b"LKF1";
const HEADER_LABEL: &[u8] = b"lastkey audit journal header";
const FRAME_LABEL: &[u8] = b"lastkey audit journal frame";
const CLEAN: u32 = 1;

/// The largest payload one frame can carry.
pub(super) const MAX_PAYLOAD: usize = (FILE_BYTES - FIRST_FRAME) as usize - FRAME_BYTES;

/// Where bytes belong in the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The first record of the segment.
    pub(super) segment: u64,
    /// The offset in it.
    pub(super) offset: u64,
}

impl Position {
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes as u64, ..self }
    }
}

/// A frame as it was found.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) clean: bool,
    pub(super) position: Position,
    pub(super) head: Head,
    pub(super) payload: Vec<u8>,
}

/// What a journal held when it was opened.
#[derive(Debug)]
pub(super) struct Recovered {
    /// Where the chain ends.
    pub(super) head: Head,
    /// Where the next record belongs.
    pub(super) position: Position,
    /// Frames since the last clean closing, oldest first.
    pub(super) frames: Vec<Frame>,
}

/// The pair of files.
pub(super) struct Journal {
    files: [Arc<dyn DiskFile>; 2],
    key: KeyMaterial,
    generation: u64,
    offset: u64,
}

impl Journal {
    /// Opens or creates the journal in `directory`; `None` if it was never used.
    pub(super) fn open(
        disk: &dyn Disk,
        directory: &Path,
        key: KeyMaterial,
    ) -> io::Result<(Self, Option<Recovered>)> {
        let open = |name| open_file(disk, &directory.join(name));
        let files = [open("journal-0")?, open("journal-1")?];
        disk.sync_directory(directory)?;
        let mut journal = Self { files, key, generation: 0, offset: FIRST_FRAME };
        let mut found: Vec<Half> = (0..2)
            .filter_map(|index| journal.read_half(index).transpose())
            .collect::<Result<_, _>>()?;
        found.sort_by_key(|half| half.generation);
        // Only neighbours belong together; anything older was superseded long ago.
        if let [older, newer] = found.as_slice()
            && older.generation + 1 != newer.generation
        {
            found.remove(0);
        }
        let Some(newest) = found.last() else { return Ok((journal, None)) };
        journal.generation = newest.generation;
        journal.offset = newest.end;
        let (head, position) = newest.last();
        let mut frames: Vec<Frame> = found.into_iter().flat_map(|half| half.frames).collect();
        if let Some(clean) = frames.iter().rposition(|frame| frame.clean) {
            frames.drain(..=clean);
        }
        Ok((journal, Some(Recovered { head, position, frames })))
    }

    /// Whether a payload of this size fits behind what the current file holds.
    pub(super) fn has_room(&self, payload: usize) -> bool {
        self.generation > 0 && self.offset + (FRAME_BYTES + payload) as u64 <= FILE_BYTES
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Begins the other file, durably with its first frame.
    ///
    /// The caller has made sure that what this file held is durable in the segments.
    pub(super) fn turn(&mut self, head: Head, position: Position) -> io::Result<()> {
        let generation = self.generation + 1;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(HEADER_MAGIC);
        header[4..0x0c].copy_from_slice(&generation.to_be_bytes());
        write_head(&mut header[0x0c..0x34], head);
        write_position(&mut header[0x34..0x44], position);
        let code = header_code(&self.key, &header[..HEADER_AUTHENTICATED]);
        header[HEADER_AUTHENTICATED..].copy_from_slice(&code);
        file_of(&self.files, generation).write_at(&header, 0)?;
        self.generation = generation;
        self.offset = FIRST_FRAME;
        Ok(())
    }

    /// Makes a frame durable. `frame` holds [`FRAME_BYTES`] zeros and then the payload.
    pub(super) fn append(
        &mut self,
        frame: &mut [u8],
        position: Position,
        head: Head,
    ) -> io::Result<()> {
        let payload = (frame.len() - FRAME_BYTES) as u64;
        frame[..4].copy_from_slice(FRAME_MAGIC);
        frame[8..0x10].copy_from_slice(&self.generation.to_be_bytes());
        frame[0x10..0x18].copy_from_slice(&payload.to_be_bytes());
        write_position(&mut frame[0x18..0x28], position);
        write_head(&mut frame[0x28..0x50], head);
        let code = self.frame_code(self.offset, &frame[..FRAME_AUTHENTICATED]);
        frame[FRAME_AUTHENTICATED..FRAME_BYTES].copy_from_slice(&code);
        let file = file_of(&self.files, self.generation);
        file.write_at(frame, self.offset)?;
        // It may be durable all the same, and then its records are in the log: whatever the cause,
        // this is not the full disk of which callers are told that nothing was done.
        file.sync().map_err(|error| io::Error::other(format!("the journal: {error}")))?;
        self.offset += frame.len() as u64;
        Ok(())
    }

    /// Notes that the segments are durable up to here.
    pub(super) fn append_clean(&mut self, position: Position, head: Head) -> io::Result<()> {
        let mut frame = [0; FRAME_BYTES];
        frame[4..8].copy_from_slice(&CLEAN.to_be_bytes());
        self.append(&mut frame, position, head)
    }

    fn frame_code(&self, offset: u64, fields: &[u8]) -> [u8; 32] {
        frame_code(&self.key, offset, fields)
    }

    /// Reads one file; `None` if it holds no authentic header.
    fn read_half(&self, index: usize) -> io::Result<Option<Half>> {
        let file = &*self.files[index];
        let mut bytes = vec![0; FILE_BYTES as usize];
        // What a failed sync left in memory is not on the disk, and what the process before this
        // one had not synced is not there for certain. Neither may be built upon.
        file.forget_cache();
        if read_full(file, &mut bytes, 0)? < bytes.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        file.sync()?;
        Ok(Half::parse(&self.key, &bytes))
    }
}

fn header_code(key: &KeyMaterial, fields: &[u8]) -> [u8; 32] {
    mac::hmac_sha256(key.expose(), &[HEADER_LABEL, fields])
}

fn frame_code(key: &KeyMaterial, offset: u64, fields: &[u8]) -> [u8; 32] {
    mac::hmac_sha256(key.expose(), &[FRAME_LABEL, &offset.to_be_bytes(), fields])
}

/// One file as it was found.
struct Half {
    generation: u64,
    start: (Head, Position),
    frames: Vec<Frame>,
    end: u64,
}

impl Half {
    /// Reads a file's content up to the first frame that is not authentic.
    fn parse(key: &KeyMaterial, bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        let code = header_code(key, &header[..HEADER_AUTHENTICATED]);
        if !header.starts_with(HEADER_MAGIC) || !mac::equal(&code, &header[HEADER_AUTHENTICATED..])
        {
            return None;
        }
        let mut half = Self {
            generation: read_u64(&header[4..0x0c]),
            start: (read_head(&header[0x0c..0x34]), read_position(&header[0x34..0x44])),
            frames: Vec::new(),
            end: FIRST_FRAME,
        };
        while let Some(frame) = half.next_frame(key, bytes) {
            half.end += (FRAME_BYTES + frame.payload.len()) as u64;
            half.frames.push(frame);
        }
        Some(half)
    }

    /// The authentic frame at the end of what was read so far, if there is one.
    fn next_frame(&self, key: &KeyMaterial, bytes: &[u8]) -> Option<Frame> {
        let rest = bytes.get(usize::try_from(self.end).ok()?..)?;
        let (fields, rest) = rest.split_at_checked(FRAME_BYTES)?;
        let length = usize::try_from(read_u64(&fields[0x10..0x18])).ok()?;
        let payload = rest.get(..length)?;
        let code = frame_code(key, self.end, &fields[..FRAME_AUTHENTICATED]);
        let authentic = fields.starts_with(FRAME_MAGIC)
            && read_u64(&fields[8..0x10]) == self.generation
            && mac::equal(&code, &fields[FRAME_AUTHENTICATED..]);
        let head = read_head(&fields[0x28..0x50]);
        let (before, _) = self.last();
        (authentic && chains(payload, before, head)).then(|| Frame {
            clean: fields[4..8] == CLEAN.to_be_bytes(),
            position: read_position(&fields[0x18..0x28]),
            head,
            payload: payload.to_vec(),
        })
    }

    /// Where the chain and the segments end after the frames read so far.
    fn last(&self) -> (Head, Position) {
        self.frames
            .last()
            .map_or(self.start, |frame| (frame.head, frame.position.plus(frame.payload.len())))
    }
}

/// Whether the payload's lines lead from one head to the other: a torn frame's do not.
fn chains(payload: &[u8], mut head: Head, end: Head) -> bool {
    for line in payload.split_inclusive(|b| *b == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { return false };
        match segment::link(line) {
            Some(link) if head.seq.checked_add(1) == Some(link.seq) && link.prev == head.hash => {
                head = Head { seq: link.seq, hash: mac::sha256(&[line]) };
            }
            _ => return false,
        }
    }
    head == end
}

fn file_of(files: &[Arc<dyn DiskFile>; 2], generation: u64) -> &dyn DiskFile {
    &*files[usize::from(generation % 2 == 1)]
}

/// Opens a journal file; a new one is filled with zeros, so that writing to it later allocates
/// nothing and an `fdatasync` has only data to write.
fn open_file(disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.open(path, Access::Create)?;
    if file.length()? != FILE_BYTES {
        file.set_length(0)?;
        let zeros = vec![0; 1 << 20];
        for offset in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_at(&zeros, offset)?;
        }
        file.sync()?;
    }
    Ok(file)
}

fn write_head(out: &mut [u8], head: Head) {
    out[..8].copy_from_slice(&head.seq.to_be_bytes());
    out[8..].copy_from_slice(&head.hash);
}

fn read_head(bytes: &[u8]) -> Head {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[8..40]);
    Head { seq: read_u64(&bytes[..8]), hash }
}

fn write_position(out: &mut [u8], position: Position) {
    out[..8].copy_from_slice(&position.segment.to_be_bytes());
    out[8..].copy_from_slice(&position.offset.to_be_bytes());
}

fn read_position(bytes: &[u8]) -> Position {
    Position { segment: read_u64(&bytes[..8]), offset: read_u64(&bytes[8..16]) }
}

fn read_u64(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[..8]);
    u64::from_be_bytes(number)
}

/// For the fuzz target: reads arbitrary bytes as a journal file whose header and first frame are
/// given the right authentication codes, so that the parser behind them is reached.
pub(crate) fn parse_signed(bytes: &mut [u8]) -> usize {
    let key = KeyMaterial::from_slice(&[0; 32]);
    if let Some(header) = bytes.get_mut(..HEADER_BYTES) {
        header[..4].copy_from_slice(HEADER_MAGIC);
        let code = header_code(&key, &header[..HEADER_AUTHENTICATED]);
        header[HEADER_AUTHENTICATED..].copy_from_slice(&code);
    }
    let first = FIRST_FRAME as usize;
    if let Some(frame) = bytes.get_mut(first..first + FRAME_BYTES) {
        frame[..4].copy_from_slice(FRAME_MAGIC);
        let code = frame_code(&key, FIRST_FRAME, &frame[..FRAME_AUTHENTICATED]);
        frame[FRAME_AUTHENTICATED..].copy_from_slice(&code);
    }
    Half::parse(&key, bytes).map_or(0, |half| half.frames.len())
}

#[cfg(test)]
mod tests;
