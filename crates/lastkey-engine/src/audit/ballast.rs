//! Room on the disk that nothing but a deletion may use.
//!
//! Whatever deletes old records needs some room first: for their deletion's record, with which the
//! open segment may want to grow, and for its statement among the checkpoints. On a full disk there
//! is none, and the disk would stay full. So a file holds some, is removed when a deletion finds the
//! disk full, and is made again afterwards.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use lastkey_store::disk::{Access, DiskFile};

use super::{Retention, keeper::Shelf};

const FILE: &str = "ballast";
/// A segment's next step, and as much again.
const BYTES: u64 = 8 << 20;
/// It is made where so much is free, and again, once a deletion has used it, where so much is.
const AMPLE: u64 = 64 * BYTES;
const ENOUGH: u64 = 2 * BYTES;
/// Where retention keeps less than this, there is none.
const RETAINED: u64 = 16 * BYTES;

fn path(shelf: &Shelf) -> PathBuf {
    shelf.directory.join(FILE)
}

/// How large the file is: it counts with the segments.
pub(super) fn size(shelf: &Shelf) -> io::Result<u64> {
    match shelf.disk.open(&path(shelf), Access::Read) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        opened => opened?.length(),
    }
}

/// Removes it; false where there is none.
pub(super) fn give(shelf: &Shelf) -> io::Result<bool> {
    match shelf.disk.remove(&path(shelf)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Makes it where it is missing and there is room; removes it where nothing is deleted. Says whether
/// it is there.
pub(super) fn keep(shelf: &Shelf, retention: Retention, again: bool) -> io::Result<bool> {
    let wanted =
        retention != Retention::default() && retention.bytes.is_none_or(|most| most >= RETAINED);
    if !wanted {
        give(shelf)?;
        return Ok(false);
    }
    if size(shelf)? == BYTES {
        return Ok(true);
    }
    let file = shelf.disk.open(&path(shelf), Access::Create)?;
    let filled = fill(&*file, if again { ENOUGH } else { AMPLE });
    if !matches!(filled, Ok(true)) {
        give(shelf)?;
    }
    filled
}

/// Whether it has its place on the disk now.
fn fill(file: &dyn DiskFile, needed: u64) -> io::Result<bool> {
    if file.free_space().is_none_or(|free| free < needed) || !file.allocate(BYTES)? {
        return Ok(false);
    }
    file.set_length(BYTES)?;
    file.sync()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Arc};

    use lastkey_crypto::KeyMaterial;
    use lastkey_store::disk::{Disk as _, FileSystem};
    use parking_lot::Mutex;

    use super::*;

    fn shelf(directory: &Path) -> Shelf {
        Shelf {
            disk: Arc::new(FileSystem),
            directory: directory.to_owned(),
            key: KeyMaterial::from_slice(&[5; 32]),
            names: Mutex::default(),
        }
    }

    #[test]
    fn it_is_made_once_counted_and_given() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = shelf(directory.path());
        assert_eq!((size(&shelf).unwrap(), give(&shelf).unwrap()), (0, false));
        let retention = Retention { bytes: Some(RETAINED), age: None };
        assert!(keep(&shelf, retention, true).unwrap());
        assert_eq!(size(&shelf).unwrap(), BYTES);
        // What has its place already is left as it is.
        let path = path(&shelf);
        fs::write(&path, vec![1; usize::try_from(BYTES).unwrap()]).unwrap();
        assert!(keep(&shelf, retention, true).unwrap());
        assert_eq!(fs::read(&path).unwrap()[0], 1);
        assert_eq!((give(&shelf).unwrap(), size(&shelf).unwrap()), (true, 0));
        // A log of less than 128 MiB has no room for it.
        let little = Retention { bytes: Some((128 << 20) - 1), age: None };
        assert!(!keep(&shelf, little, true).unwrap());
    }

    #[test]
    fn a_directory_that_cannot_be_read_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shelf = shelf(file.path());
        assert_eq!(size(&shelf).unwrap_err().kind(), ErrorKind::NotADirectory);
        assert_eq!(give(&shelf).unwrap_err().kind(), ErrorKind::NotADirectory);
    }

    #[test]
    fn it_takes_no_room_that_others_need() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let file = FileSystem.open(&path, Access::Create).unwrap();
        assert!(!fill(&*file, u64::MAX).unwrap());
        assert_eq!(file.length().unwrap(), 0);
        assert!(fill(&*file, 0).unwrap());
        assert_eq!(file.length().unwrap(), BYTES);
    }
}
