//! Segments as readers find them: plain while they are written, compressed once they are closed.
//!
//! A closed segment is `segment-<first>.jsonl.zst`: zstd frames (RFC 8878) of whole lines, which
//! `zstdcat` gives back exactly. While one is compressed both are there, and the plain one counts.

use std::{
    io::{self, BufReader, ErrorKind, Read},
    path::Path,
    sync::Arc,
};

use lastkey_store::disk::{Access, Disk, DiskFile};

use super::segment;

/// What follows a plain segment's name in a compressed one's.
const COMPRESSED: &str = ".zst";
/// How much is read at once; fuzzing, so little that a short input is read in pieces.
#[expect(unexpected_cfgs, reason = "set by cargo-fuzz")]
const READ: usize = if cfg!(fuzzing) { 1 << 8 } else { 1 << 18 };
/// Longer lines are none of ours.
const MAX_LINE: usize = 1 << 21;
/// The largest window a frame may ask for (2²³ bytes): ours need less.
const WINDOW_LOG: u32 = 23;

/// A segment in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentFile {
    /// The record that it begins with, by its name.
    pub(super) first: u64,
    /// Whether the plain form is there.
    pub(super) plain: bool,
    /// Whether the compressed form is there.
    pub(super) compressed: bool,
}

/// The name of the compressed form.
pub(super) fn compressed_name(first: u64) -> String {
    segment::name(first) + COMPRESSED
}

/// The segments of a directory by their first record, in order.
pub(super) fn list(disk: &dyn Disk, directory: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut found: Vec<SegmentFile> = disk
        .list(directory)?
        .iter()
        .filter_map(|name| {
            let name = name.to_str()?;
            let (plain, name) =
                name.strip_suffix(COMPRESSED).map_or((true, name), |name| (false, name));
            let digits = name.strip_prefix("segment-")?.strip_suffix(".jsonl")?;
            let first = digits.parse().ok().filter(|_| digits.len() == 20)?;
            Some(SegmentFile { first, plain, compressed: !plain })
        })
        .collect();
    found.sort_unstable_by_key(|file| file.first);
    found.dedup_by(|next, kept| {
        let same = next.first == kept.first;
        if same {
            kept.plain |= next.plain;
            kept.compressed |= next.compressed;
        }
        same
    });
    Ok(found)
}

/// Whether none of the segments holds anything: a first start may have been cut short between the
/// making of a segment and its first record.
pub(super) fn are_empty(
    disk: &dyn Disk,
    directory: &Path,
    segments: &[SegmentFile],
) -> io::Result<bool> {
    for segment in segments {
        if segment.compressed || segment.open(disk, directory)?.file.length()? > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An open segment.
pub(super) struct Opened {
    pub(super) file: Arc<dyn DiskFile>,
    /// Whether it is the compressed form.
    pub(super) compressed: bool,
}

impl SegmentFile {
    /// The name of the form that counts.
    pub(super) fn name(&self) -> String {
        if self.plain { segment::name(self.first) } else { compressed_name(self.first) }
    }

    /// Opens the form that counts; the other, if it was compressed since it was listed.
    pub(super) fn open(&self, disk: &dyn Disk, directory: &Path) -> io::Result<Opened> {
        let open = |compressed: bool| -> io::Result<Opened> {
            let name =
                if compressed { compressed_name(self.first) } else { segment::name(self.first) };
            let file = disk.open(&directory.join(name), Access::Read)?;
            Ok(Opened { file, compressed })
        };
        match open(!self.plain) {
            Err(error) if error.kind() == ErrorKind::NotFound => open(self.plain),
            opened => opened,
        }
    }
}

impl Opened {
    /// Its lines, from the beginning, as far as `limit` bytes go.
    pub(super) fn lines(
        &self,
        limit: u64,
        read: impl FnMut(usize) + Send + 'static,
    ) -> io::Result<Lines> {
        let source = Counted { source: At::new(Arc::clone(&self.file), 0), read };
        lines_of(source, self.compressed, limit)
    }
}

/// The lines of a segment in this form, as far as `limit` bytes of them go.
pub(super) fn lines_of(
    source: impl Read + Send + 'static,
    compressed: bool,
    limit: u64,
) -> io::Result<Lines> {
    if !compressed {
        return Ok(Lines::new(Box::new(source.take(limit))));
    }
    let source = BufReader::with_capacity(READ, source);
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(Lines::new(Box::new(decoder.take(limit))))
}

/// Reads a file from an offset on.
pub(super) struct At {
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl At {
    pub(super) fn new(file: Arc<dyn DiskFile>, offset: u64) -> Self {
        Self { file, offset }
    }
}

impl Read for At {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(out, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

/// Tells how much was read.
struct Counted<F> {
    source: At,
    read: F,
}

impl<F: FnMut(usize)> Read for Counted<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(out)?;
        (self.read)(n);
        Ok(n)
    }
}

/// Cuts what it reads into lines, without copying those that are whole in its buffer.
pub(super) struct Lines {
    source: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    /// What of the buffer was read and not yet handed out.
    start: usize,
    end: usize,
    /// Where to go on looking for a newline.
    seen: usize,
    ended: bool,
}

/// A piece of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A whole line, without its newline.
    Whole(&'a [u8]),
    /// The end of the file without a newline, or a piece of a line that is too long.
    Torn(&'a [u8]),
}

impl Lines {
    pub(super) fn new(source: Box<dyn Read + Send>) -> Self {
        Self { source, buffer: vec![0; READ], start: 0, end: 0, seen: 0, ended: false }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.seen..self.end]) {
                let (from, to) = (self.start, self.seen + at);
                self.start = to + 1;
                self.seen = self.start;
                return Ok(Some(Line::Whole(&self.buffer[from..to])));
            }
            self.seen = self.end;
            let rest = self.end - self.start;
            if self.ended || rest >= MAX_LINE {
                let from = self.start;
                self.start = self.end;
                let torn = (rest > 0).then(|| Line::Torn(&self.buffer[from..self.end]));
                return Ok(torn);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.seen -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let n = loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.ended = n == 0;
        self.end += n;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_as_they_lie(
            lines in proptest::collection::vec("[a-z]{0,40}", 0..60),
            torn in "[a-z]{0,5}",
            step in 1usize..50,
        ) {
            struct Slowly(Vec<u8>, usize, bool);
            impl Read for Slowly {
                fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                    // A signal may come at any time.
                    self.2 = !self.2;
                    if self.2 {
                        return Err(ErrorKind::Interrupted.into());
                    }
                    let n = self.1.min(self.0.len()).min(out.len());
                    out[..n].copy_from_slice(&self.0[..n]);
                    self.0.drain(..n);
                    Ok(n)
                }
            }
            let mut bytes: Vec<u8> =
                lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            bytes.extend_from_slice(torn.as_bytes());
            let mut reader = Lines::new(Box::new(Slowly(bytes, step, false)));
            reader.buffer = vec![0; 8];
            for line in &lines {
                prop_assert_eq!(reader.next().unwrap(), Some(Line::Whole(line.as_bytes())));
            }
            if !torn.is_empty() {
                prop_assert_eq!(reader.next().unwrap(), Some(Line::Torn(torn.as_bytes())));
            }
            prop_assert_eq!(reader.next().unwrap(), None);
            // What was handed out makes room: a file of any size is read in little memory.
            prop_assert!(reader.buffer.len() <= 128, "{}", reader.buffer.len());
        }
    }
}
