//! Reading the file of checkpoints from its end: it grows for as long as nothing is deleted, and what
//! a start needs of it stands in its last lines.

use std::io;

use lastkey_store::disk::{DiskFile, read_full};

/// So much is read at once: some 150 checkpoints.
const WINDOW: u64 = 64 << 10;

/// Where the last whole line ends.
pub(in crate::audit) fn end_of_lines(file: &dyn DiskFile) -> io::Result<u64> {
    let mut end = file.length()?;
    while end > 0 {
        let from = end.saturating_sub(WINDOW);
        let bytes = read(file, from, end)?;
        if let Some(newline) = memchr::memrchr(b'\n', &bytes) {
            return Ok(from + newline as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

/// Shows whole lines, and where they begin, from what stands before `end` to the file's beginning,
/// until `look` has seen enough. A line that is longer than what is read at once is shown in pieces.
pub(in crate::audit) fn backwards(
    file: &dyn DiskFile,
    end: u64,
    mut look: impl FnMut(u64, &[u8]) -> bool,
) -> io::Result<()> {
    let mut end = end;
    while end > 0 {
        let (from, lines) = lines_before(file, end)?;
        if look(from, &lines) {
            break;
        }
        end = from;
    }
    Ok(())
}

fn lines_before(file: &dyn DiskFile, end: u64) -> io::Result<(u64, Vec<u8>)> {
    let from = end.saturating_sub(WINDOW);
    let mut bytes = read(file, from, end)?;
    let first = if from == 0 { None } else { memchr::memchr(b'\n', &bytes) };
    match first {
        // The first may be the end of a line.
        Some(newline) if newline + 1 < bytes.len() => {
            bytes.drain(..=newline);
            Ok((from + newline as u64 + 1, bytes))
        }
        _ => Ok((from, bytes)),
    }
}

fn read(file: &dyn DiskFile, from: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end - from).unwrap_or_default()];
    let filled = read_full(file, &mut bytes, from)?;
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use lastkey_store::disk::{Access, Disk as _, FileSystem};

    use super::*;

    /// All lines as they come, the last first, and where the last one ends.
    fn seen(content: &[u8]) -> (Vec<Vec<u8>>, u64) {
        let place = tempfile::tempdir().unwrap();
        let file = FileSystem.open(&place.path().join("file"), Access::Create).unwrap();
        file.write_at(content, 0).unwrap();
        let end = end_of_lines(&*file).unwrap();
        let mut all = Vec::new();
        backwards(&*file, end, |from, lines| {
            let at = usize::try_from(from).unwrap();
            assert_eq!(&content[at..at + lines.len()], lines);
            all.extend(lines.split_inclusive(|byte| *byte == b'\n').rev().map(<[u8]>::to_vec));
            false
        })
        .unwrap();
        (all, end)
    }

    #[test]
    fn every_line_is_seen_once_from_the_last_to_the_first() {
        for (length, torn) in [(1, 0), (400, 0), (400, 7), (65_535, 1), (400, 200_000)] {
            let lines: Vec<Vec<u8>> = (0..1000_usize)
                .map(|n| [&vec![b'a' + u8::try_from(n % 26).unwrap(); length][..], b"\n"].concat())
                .take(if length > 400 { 5 } else { 1000 })
                .collect();
            let whole = lines.concat();
            let (mut found, end) = seen(&[&whole[..], &vec![b'x'; torn]].concat());
            found.reverse();
            assert!(found == lines, "lines of {length} bytes, {torn} torn");
            assert_eq!(end, whole.len() as u64);
        }
        assert_eq!(seen(b""), (vec![], 0));
        assert_eq!(seen(b"torn"), (vec![], 0));
    }

    #[test]
    fn a_line_that_is_too_long_hides_none() {
        let long = vec![b'x'; 150_000];
        let (found, end) = seen(&[b"first\n", &long[..], b"\nlast\n"].concat());
        assert_eq!(end, 150_012);
        assert_eq!(found.first().unwrap(), b"last\n");
        assert_eq!(found.last().unwrap(), b"first\n");
        assert_eq!(found.concat().len(), 150_012);
    }
}
