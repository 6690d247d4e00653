use std::fs;

use lastkey_store::disk::FileSystem;

use super::*;

/// A chain that is written to a journal.
struct Chain {
    head: Head,
    position: Position,
}

impl Chain {
    fn new() -> Self {
        Self { head: Head::EMPTY, position: Position { segment: 1, offset: 0 } }
    }

    /// A frame of this many records.
    fn append(&mut self, journal: &mut Journal, records: usize) {
        let mut frame = vec![0; FRAME_BYTES];
        let mut head = self.head;
        for _ in 0..records {
            let seq = head.seq + 1;
            let hash = segment::write_line(&mut frame, seq, &head.hash, br#""action":"A""#);
            head = Head { seq, hash };
        }
        let payload = frame.len() - FRAME_BYTES;
        journal.append(&mut frame, self.position, head).unwrap();
        (self.head, self.position) = (head, self.position.plus(payload));
    }

    fn turn(&mut self, journal: &mut Journal) {
        journal.turn(self.head, self.position).unwrap();
    }
}

fn open(directory: &Path) -> (Journal, Option<Recovered>) {
    Journal::open(&FileSystem, directory, KeyMaterial::from_slice(&[5; 32])).unwrap()
}

/// The last records of the frames that a start finds.
fn heads(directory: &Path) -> Vec<u64> {
    let found = open(directory).1.unwrap();
    found.frames.iter().map(|frame| frame.head.seq).collect()
}

#[test]
fn what_was_appended_is_found_with_where_it_belongs() {
    let place = tempfile::tempdir().unwrap();
    let (mut journal, found) = open(place.path());
    assert!(found.is_none() && !journal.has_room(0), "it was never used");
    let mut chain = Chain::new();
    chain.turn(&mut journal);
    assert_eq!(journal.generation(), 1);
    chain.append(&mut journal, 3);
    let between = chain.position;
    chain.append(&mut journal, 1);
    drop(journal);
    let (mut journal, found) = open(place.path());
    let found = found.unwrap();
    assert_eq!((found.head, found.position), (chain.head, chain.position));
    assert_eq!(found.frames.len(), 2);
    assert_eq!(found.frames[1].position, between);
    let lines: Vec<usize> =
        found.frames.iter().map(|f| f.payload.split_inclusive(|b| *b == b'\n').count()).collect();
    assert_eq!(lines, [3, 1]);
    // It goes on behind what it found.
    chain.append(&mut journal, 2);
    assert_eq!(heads(place.path()), [3, 4, 6]);
    // Behind a clean end nothing has to be put back.
    journal.append_clean(chain.position, chain.head).unwrap();
    let found = open(place.path()).1.unwrap();
    assert_eq!((found.frames.len(), found.head, found.position), (0, chain.head, chain.position));
    chain.append(&mut journal, 1);
    assert_eq!(heads(place.path()), [7]);
}

#[test]
fn the_two_files_take_turns_and_only_neighbours_belong_together() {
    let place = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(place.path());
    let mut chain = Chain::new();
    let mut before = Vec::new();
    for generation in 1..=4 {
        chain.turn(&mut journal);
        assert_eq!(journal.generation(), generation);
        chain.append(&mut journal, 1);
        if generation == 1 {
            before = fs::read(place.path().join("journal-1")).unwrap();
        }
    }
    assert_eq!(heads(place.path()), [3, 4], "of the third and of the fourth generation");
    drop(journal);
    // The file of the third is lost, and the first's comes back.
    fs::write(place.path().join("journal-1"), before).unwrap();
    assert_eq!(heads(place.path()), [4], "what was superseded long ago is left alone");
    let (mut journal, found) = open(place.path());
    assert_eq!(found.unwrap().head, chain.head);
    chain.append(&mut journal, 1);
    assert_eq!(heads(place.path()), [4, 5]);
}

#[test]
fn a_file_is_filled_to_its_last_byte() {
    let place = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(place.path());
    let mut chain = Chain::new();
    chain.turn(&mut journal);
    assert!(journal.has_room(MAX_PAYLOAD) && !journal.has_room(MAX_PAYLOAD + 1));
    chain.append(&mut journal, 100);
    let used = usize::try_from(chain.position.offset).unwrap() + FRAME_BYTES;
    assert!(journal.has_room(MAX_PAYLOAD - used) && !journal.has_room(MAX_PAYLOAD - used + 1));
    // One record that leaves room for nothing.
    let mut frame = vec![0; FRAME_BYTES];
    let overhead = {
        let mut line = Vec::new();
        segment::write_line(&mut line, 101, &chain.head.hash, b"");
        line.len()
    };
    let body = vec![b'x'; MAX_PAYLOAD - used - overhead];
    let hash = segment::write_line(&mut frame, 101, &chain.head.hash, &body);
    journal.append(&mut frame, chain.position, Head { seq: 101, hash }).unwrap();
    assert!(!journal.has_room(0));
    assert_eq!(fs::metadata(place.path().join("journal-1")).unwrap().len(), FILE_BYTES);
    assert_eq!(heads(place.path()), [100, 101]);
}

#[test]
fn a_frame_that_is_not_ours_or_not_whole_ends_what_is_found() {
    let place = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(place.path());
    let mut chain = Chain::new();
    chain.turn(&mut journal);
    chain.append(&mut journal, 2);
    let second = FIRST_FRAME as usize + FRAME_BYTES + chain.position.offset as usize;
    chain.append(&mut journal, 2);
    drop(journal);
    let path = place.path().join("journal-1");
    let whole = fs::read(&path).unwrap();
    let payload = second + FRAME_BYTES;
    let line = whole[payload..].iter().position(|byte| *byte == b'\n').unwrap();
    // Every field of the second frame, the code behind them, and bytes of its first record: of the
    // link, and of what it says, which the second record's link is about.
    for at in (second..payload).chain([payload + 10, payload + line - 3]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(heads(place.path()), [2], "byte {at}");
    }
    // Without the header there is nothing.
    for at in [0, 4, 0x10, 0x34, HEADER_AUTHENTICATED, HEADER_BYTES - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(open(place.path()).1.is_none(), "byte {at}");
    }
    // Nor under another key.
    fs::write(&path, &whole).unwrap();
    let other = KeyMaterial::from_slice(&[6; 32]);
    assert!(Journal::open(&FileSystem, place.path(), other).unwrap().1.is_none());
    assert_eq!(heads(place.path()), [2, 4]);
}
