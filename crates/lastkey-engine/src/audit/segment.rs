//! Segments: the files that hold the records, one JSON object a line.

use std::{
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};

use lastkey_crypto::mac;
use lastkey_store::disk::{Access, Disk, DiskFile, is_full, read_full};

/// Disk space is reserved ahead in steps of this many bytes.
const RESERVE: u64 = 4 << 20;

/// The name of the segment that begins with record `first`.
pub(super) fn name(first: u64) -> String {
    format!("segment-{first:020}.jsonl")
}

/// The segment that is being written.
pub(super) struct Segment {
    file: Arc<dyn DiskFile>,
    reserved: u64,
}

/// Whether there is a segment that begins with record `first`.
pub(super) fn exists(disk: &dyn Disk, directory: &Path, first: u64) -> io::Result<bool> {
    match disk.open(&directory.join(name(first)), Access::Read) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Segment {
    /// Opens or creates the segment that begins with record `first`.
    pub(super) fn open(disk: &dyn Disk, directory: &Path, first: u64) -> io::Result<Self> {
        let file = disk.open(&directory.join(name(first)), Access::Create)?;
        disk.sync_directory(directory)?;
        Ok(Self { file, reserved: 0 })
    }

    /// Whether the file was removed, or another was put in its place: what is written to it now
    /// would be lost with us.
    pub(super) fn is_gone(&self) -> io::Result<bool> {
        self.file.is_removed()
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    pub(super) fn handle(&self) -> Arc<dyn DiskFile> {
        Arc::clone(&self.file)
    }

    /// Makes sure that the bytes up to `end` have their place on the disk, so that writing them
    /// cannot find it full. Where there is no room for a whole step, these alone.
    pub(super) fn reserve(&mut self, end: u64) -> io::Result<()> {
        if end <= self.reserved {
            return Ok(());
        }
        let target = end.next_multiple_of(RESERVE);
        // On a file system without reservations, the write itself will tell.
        self.reserved = match self.file.allocate(target) {
            Ok(true) => target,
            Ok(false) => end,
            Err(error) if is_full(&error) => {
                self.file.allocate(end)?;
                end
            }
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Gives back what is reserved and was not used, for nothing is written any more.
    pub(super) fn give_back(&mut self) -> io::Result<()> {
        self.reserved = 0;
        self.file.give_back()
    }

    /// See [`DiskFile::forget_cache`].
    pub(super) fn forget_cache(&self) {
        self.file.forget_cache();
    }

    /// See [`DiskFile::gather`].
    pub(super) fn gather(&self) {
        self.file.gather();
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    pub(super) fn read_at(&self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let filled = read_full(&*self.file, &mut bytes, offset)?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// The parts of a line that the chain needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) prev: [u8; 32],
}

/// Reads `{"seq":<n>,"prev":"<64 hex>",` at the beginning of a line. The highest number of all is
/// no record's: whoever has read one can count on.
pub(super) fn link(line: &[u8]) -> Option<Link> {
    let rest = line.strip_prefix(br#"{"seq":"#)?;
    let digits = rest.iter().position(|b| !b.is_ascii_digit()).filter(|n| (1..=20).contains(n))?;
    let seq = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    if seq == u64::MAX {
        return None;
    }
    let rest = rest[digits..].strip_prefix(br#","prev":""#)?;
    let (hash, rest) = rest.split_at_checked(64)?;
    rest.strip_prefix(br#"","#)?;
    let mut prev = [0; 32];
    hex::decode_to_slice(hash, &mut prev).ok()?;
    Some(Link { seq, prev })
}

/// Appends the line of a record to `out` and returns the line's hash.
pub(super) fn write_line(out: &mut Vec<u8>, seq: u64, prev: &[u8; 32], body: &[u8]) -> [u8; 32] {
    let start = out.len();
    let mut digits = [0; 64];
    let _ = hex::encode_to_slice(prev, &mut digits);
    out.extend_from_slice(br#"{"seq":"#);
    out.extend_from_slice(seq.to_string().as_bytes());
    out.extend_from_slice(br#","prev":""#);
    out.extend_from_slice(&digits);
    out.extend_from_slice(br#"","#);
    out.extend_from_slice(body);
    out.push(b'}');
    let hash = mac::sha256(&[&out[start..]]);
    out.push(b'\n');
    hash
}

#[cfg(test)]
mod tests {
    use lastkey_store::disk::FileSystem;

    use super::*;

    #[test]
    fn a_line_is_read_back() {
        let mut out = Vec::new();
        let hash = write_line(&mut out, 42, &[0xab; 32], br#""action":"Encrypt""#);
        assert_eq!(link(&out), Some(Link { seq: 42, prev: [0xab; 32] }));
        assert_eq!(hash, mac::sha256(&[out.strip_suffix(b"\n").unwrap()]));
        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
        for bad in [&b""[..], b"{}", br#"{"seq":,"prev":""#, br#"{"seq":1,"prev":"zz"#] {
            assert_eq!(link(bad), None);
        }
        // Fuzzing (engine_segment): the number behind it is not one.
        let mut last = Vec::new();
        write_line(&mut last, u64::MAX, &[0; 32], b"");
        assert_eq!(link(&last), None);
    }

    #[test]
    fn a_segment_that_cannot_be_opened_is_no_missing_one() {
        let place = tempfile::tempdir().unwrap();
        assert!(!exists(&FileSystem, place.path(), 1).unwrap());
        Segment::open(&FileSystem, place.path(), 1).unwrap();
        assert!(exists(&FileSystem, place.path(), 1).unwrap());
        // Where a directory should be, there is none.
        let refused = exists(&FileSystem, &place.path().join(name(1)), 1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotADirectory);
    }
}
