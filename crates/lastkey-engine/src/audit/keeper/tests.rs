use std::{fs, os::unix::fs::MetadataExt as _};

use lastkey_store::disk::FileSystem;

use super::*;
use crate::audit::index::Field;

const OPEN: u64 = 1_000_000;

struct Place {
    directory: tempfile::TempDir,
    shelf: Shelf,
}

impl Place {
    /// One closed segment of this many lines of 1000 bytes and more.
    fn new(lines: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf {
            disk: Arc::new(FileSystem),
            directory: directory.path().to_owned(),
            key: KeyMaterial::from_slice(&[5; 32]),
            names: Mutex::default(),
        };
        let mut bytes = Vec::new();
        for seq in 1..=lines {
            let body =
                format!(r#""action":"Encrypt","principal":"p","key":"k{seq}","pad":"{seq:01000}""#);
            segment::write_line(&mut bytes, seq, &[0; 32], body.as_bytes());
        }
        fs::write(directory.path().join(segment::name(1)), bytes).unwrap();
        Self { directory, shelf }
    }

    fn plain(&self) -> PathBuf {
        self.directory.path().join(segment::name(1))
    }

    fn packed(&self) -> PathBuf {
        self.directory.path().join(compressed_name(1))
    }

    fn index_path(&self) -> PathBuf {
        self.directory.path().join(index::name(1))
    }

    fn tend(&self) {
        self.shelf.tend(OPEN, &|| false).unwrap();
    }

    fn file(&self) -> SegmentFile {
        files::list(&FileSystem, self.directory.path()).unwrap()[0]
    }

    fn index(&self) -> Option<Index> {
        self.shelf.index(&self.file())
    }
}

#[test]
fn a_closed_segment_becomes_frames_of_whole_lines_with_an_index() {
    let place = Place::new(2500);
    let before = fs::read(place.plain()).unwrap();
    place.tend();
    assert!(!place.plain().exists());
    let packed = fs::read(place.packed()).unwrap();
    let index = place.index().unwrap();
    // About a mebibyte of lines each; the frames lie one behind the other, to the end.
    assert_eq!(index.blocks.len(), 3);
    let (mut offset, mut next, mut lines) = (0, 1, Vec::new());
    for block in &index.blocks {
        assert_eq!((block.offset, block.first), (offset, next));
        let start = usize::try_from(block.offset).unwrap();
        let frame = &packed[start..start + block.length as usize];
        lines.extend(unpack(frame, block.raw as usize).unwrap());
        assert!(unpack(frame, block.raw as usize - 1).is_none(), "no more than was said");
        assert!(block.may_hold(Field::Key, &format!("k{}", block.last)));
        (offset, next) = (offset + u64::from(block.length), block.last + 1);
    }
    assert_eq!((offset, next), (packed.len() as u64, 2501));
    assert!(lines == before);
    assert!(
        index.blocks[..2].iter().all(|block| (BLOCK..BLOCK + 2000).contains(&(block.raw as usize)))
    );
}

#[test]
fn what_is_tended_already_is_left_alone_and_the_open_segment_too() {
    let place = Place::new(10);
    place.shelf.tend(1, &|| false).unwrap();
    assert!(place.plain().exists() && !place.packed().exists(), "it is open");
    place.tend();
    let inodes = || {
        let of = |path: PathBuf| fs::metadata(path).unwrap().ino();
        (of(place.packed()), of(place.index_path()))
    };
    let before = inodes();
    place.tend();
    assert_eq!(inodes(), before, "nothing was written again");
}

#[test]
fn an_index_that_is_lost_or_about_another_file_is_made_anew() {
    let place = Place::new(2500);
    place.tend();
    let whole = place.index().unwrap();
    fs::remove_file(place.index_path()).unwrap();
    assert_eq!(place.index(), None);
    place.tend();
    assert_eq!(place.index().unwrap(), whole);
    // One frame less: the index is about a file that was longer.
    let packed = fs::read(place.packed()).unwrap();
    let two = usize::try_from(whole.blocks[2].offset).unwrap();
    fs::write(place.packed(), &packed[..two]).unwrap();
    assert_eq!(place.index(), None);
    place.tend();
    assert_eq!(place.index().unwrap().blocks, whole.blocks[..2]);
    // What nobody of ours has packed gets none.
    fs::write(place.packed(), b"no frame at all").unwrap();
    fs::remove_file(place.index_path()).unwrap();
    place.tend();
    assert!(!place.index_path().exists());
}

#[test]
fn both_forms_stay_unless_they_are_the_same_to_the_last_byte() {
    let place = Place::new(2500);
    let before = fs::read(place.plain()).unwrap();
    place.tend();
    for at in [0, BLOCK - 1, BLOCK, before.len() - 2] {
        let mut changed = before.clone();
        changed[at] ^= 1;
        fs::write(place.plain(), changed).unwrap();
        place.tend();
        assert!(place.plain().exists() && place.packed().exists(), "byte {at}");
    }
    for other in [&before[..before.len() - 1], &[&before[..], b"\n"].concat()] {
        fs::write(place.plain(), other).unwrap();
        place.tend();
        assert!(place.plain().exists(), "{} bytes", other.len());
    }
    let packed = fs::read(place.packed()).unwrap();
    fs::write(place.packed(), b"no frame at all").unwrap();
    place.tend();
    assert!(place.plain().exists() && place.packed().exists(), "it does not even open");
    fs::write(place.packed(), packed).unwrap();
    fs::write(place.plain(), &before).unwrap();
    fs::remove_file(place.index_path()).unwrap();
    place.tend();
    assert!(!place.plain().exists() && place.index().is_some());
}

#[test]
fn whoever_closes_the_log_waits_for_one_block_at_most() {
    let place = Place::new(2500);
    let stopped = |place: &Place, after: usize| {
        let asked = std::cell::Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > after
        };
        place.shelf.tend(OPEN, &stop).unwrap_err().kind()
    };
    for after in 0..3 {
        assert_eq!(stopped(&place, after), ErrorKind::Interrupted);
        assert!(place.plain().exists() && !place.packed().exists());
        // Nothing half is left.
        assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 1);
    }
    let before = fs::read(place.plain()).unwrap();
    place.tend();
    // The same while both forms are compared, and while an index is made.
    fs::write(place.plain(), before).unwrap();
    assert_eq!(stopped(&place, 1), ErrorKind::Interrupted);
    assert!(place.plain().exists());
    fs::remove_file(place.plain()).unwrap();
    fs::remove_file(place.index_path()).unwrap();
    assert_eq!(stopped(&place, 1), ErrorKind::Interrupted);
    assert!(!place.index_path().exists());
}

#[test]
fn a_keeper_that_is_dropped_has_ended() {
    let place = Place::new(1);
    let shelf = Arc::new(place.shelf);
    let keeper = Keeper::start(Arc::clone(&shelf), || 0).unwrap();
    drop(keeper);
    assert_eq!(Arc::strong_count(&shelf), 1, "nobody works on the segments any more");
}
