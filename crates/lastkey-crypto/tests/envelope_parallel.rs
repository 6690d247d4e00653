//! The envelope on several threads: the same bytes, the same refusals, bounded memory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use common::{Given, key};
use lastkey_crypto::{
    KeyId, KeyMaterial, SystemEntropy,
    envelope::{
        CHUNK_LEN, EncryptError, Encryptor, Header, HeldKey, KeySalt, NewFile, PayloadError,
        Pipeline, Room, Stanza,
    },
};

const SEALED_LEN: usize = CHUNK_LEN + 16;

fn held() -> HeldKey {
    let stanza = Stanza::new(KeyId::from_bytes([7; 16]), vec![7; 124]).unwrap();
    HeldKey::new(KeySalt::random(&SystemEntropy), key(1), vec![stanza]).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn seal(held: &HeldKey, plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    let file = held.new_file(Room::Tight, &SystemEntropy);
    let done = Pipeline::new().workers(3).encrypt(file, plaintext, &mut sealed).unwrap();
    assert_eq!(done, plaintext.len() as u64);
    sealed
}

/// What came out, and how it ended.
fn open(sealed: &[u8], workers: usize) -> (Vec<u8>, Result<u64, PayloadError>) {
    let mut source = sealed;
    let header = Header::read(&mut source).unwrap();
    let mut out = Vec::new();
    let end = header
        .open(&key(1))
        .and_then(|key| Pipeline::new().workers(workers).decrypt(&key, source, &mut out));
    (out, end)
}

fn cut(sealed: &[u8]) -> (Vec<u8>, Vec<&[u8]>) {
    let mut rest = sealed;
    let header = Header::read(&mut rest).unwrap().encode();
    (header, rest.chunks(SEALED_LEN).collect())
}

fn join(header: &[u8], chunks: &[&[u8]]) -> Vec<u8> {
    [header, &chunks.concat()].concat()
}

/// In which chunk the damage was found; everything before it came out, and nothing else.
fn damage(file: &[u8], plaintext: &[u8]) -> u64 {
    let (out, end) = open(file, 3);
    let Err(PayloadError::Damaged { chunk }) = end else { panic!("expected damage, got {end:?}") };
    let intact = usize::try_from(chunk).unwrap() * CHUNK_LEN;
    assert!(out == plaintext[..intact], "exactly the {chunk} chunks before the damage");
    chunk
}

#[test]
fn any_number_of_threads_makes_the_same_bytes() {
    let held = held();
    let file = || -> NewFile { held.new_file(Room::Spare, &Given::bytes(vec![9; 32])) };
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 9 * CHUNK_LEN, 9 * CHUNK_LEN + 1] {
        let plaintext = pattern(len);
        let mut one = Encryptor::new(Vec::new(), file()).unwrap();
        one.write_all(&plaintext).unwrap();
        let expected = one.finish().unwrap();
        for workers in [1, 2, 5] {
            let mut made = Vec::new();
            Pipeline::new().workers(workers).encrypt(file(), &plaintext[..], &mut made).unwrap();
            assert!(made == expected, "{len} bytes, {workers} workers");
            let (out, end) = open(&made, workers);
            assert_eq!(end.unwrap(), len as u64);
            assert!(out == plaintext, "{len} bytes, {workers} workers");
        }
    }
}

#[test]
fn chunks_have_their_place() {
    let plaintext = pattern(3 * CHUNK_LEN + 5);
    let sealed = seal(&held(), &plaintext);
    let (header, chunks) = cut(&sealed);
    let [a, b, c, d] = chunks[..] else { panic!("four chunks") };
    let damage = |chunks: &[&[u8]]| damage(&join(&header, chunks), &plaintext);
    assert_eq!(damage(&[b, a, c, d]), 0, "swapped");
    assert_eq!(damage(&[a, c, b, d]), 1, "swapped");
    assert_eq!(damage(&[a, a, b, c, d]), 1, "repeated");
    assert_eq!(damage(&[a, b, c, c, d]), 3, "repeated");
    assert_eq!(damage(&[a, c, d]), 1, "left out");
    assert_eq!(damage(&[a, b, d]), 2, "left out");
    assert_eq!(damage(&[d]), 0, "the last alone");
    assert_eq!(damage(&[a, b, c, d, b"x"]), 3, "followed by something");
    assert_eq!(damage(&[a, b, c, d, d]), 3, "followed by something");
}

#[test]
fn a_file_cut_at_or_beside_any_boundary_does_not_open() {
    let plaintext = pattern(3 * CHUNK_LEN + 5);
    let sealed = seal(&held(), &plaintext);
    let (header, chunks) = cut(&sealed);
    for whole in 0..=chunks.len() {
        let boundary = join(&header, &chunks[..whole]).len();
        for len in [boundary.saturating_sub(1), boundary, boundary + 1] {
            if (header.len()..sealed.len()).contains(&len) {
                let inside = (len - header.len()) as u64;
                let expected = inside.saturating_sub(1) / SEALED_LEN as u64;
                assert_eq!(damage(&sealed[..len], &plaintext), expected, "cut to {len}");
            }
        }
    }
    for len in 0..header.len() {
        assert!(Header::read(&mut &sealed[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn files_of_one_held_key_do_not_mix() {
    let held = held();
    let plaintext = pattern(2 * CHUNK_LEN + 1);
    let (one, other) = (seal(&held, &plaintext), seal(&held, &plaintext));
    let (header, ours) = cut(&one);
    let (other_header, theirs) = cut(&other);
    assert_ne!(ours[0], theirs[0], "the same plaintext under the same data key");
    for at in 0..3_usize {
        let mut mixed = ours.clone();
        mixed[at] = theirs[at];
        assert_eq!(damage(&join(&header, &mixed), &plaintext), at as u64);
    }
    assert_eq!(damage(&join(&other_header, &ours), &plaintext), 0);

    // Fixed header of one, commitment of the other.
    let mixed = [&header[..76], &other_header[76..], &theirs.concat()].concat();
    let (out, end) = open(&mixed, 2);
    assert!(matches!(end, Err(PayloadError::WrongDataKey)) && out.is_empty());
}

#[test]
fn every_bit_of_the_fixed_header_and_the_commitment_counts() {
    let sealed = seal(&held(), b"attack at dawn");
    for bit in 0..108 * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut source = &changed[..];
        if let Ok(header) = Header::read(&mut source) {
            let end = header.open(&key(1));
            assert!(matches!(end, Err(PayloadError::WrongDataKey)), "bit {bit}: {end:?}");
        }
    }
}

#[test]
fn another_data_key_does_not_open_a_file() {
    let sealed = seal(&held(), b"attack at dawn");
    let mut source = &sealed[..];
    let header = Header::read(&mut source).unwrap();
    let other = KeyMaterial::from_slice(&[2; 32]);
    assert!(matches!(header.open(&other), Err(PayloadError::WrongDataKey)));
    assert!(header.check(&other).is_err() && header.check(&key(1)).is_ok());
}

/// Yields `good` bytes, then fails.
struct Breaks {
    good: usize,
}

impl Read for Breaks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out.len().min(self.good);
        self.good -= most;
        match most {
            0 => Err(io::Error::other("the disk went away")),
            most => Ok(most),
        }
    }
}

#[test]
fn a_source_that_breaks_leaves_a_file_that_does_not_open() {
    for good in [0, 5, CHUNK_LEN, 4 * CHUNK_LEN + 5] {
        let mut sealed = Vec::new();
        let file = held().new_file(Room::Tight, &SystemEntropy);
        let end = Pipeline::new().workers(2).encrypt(file, Breaks { good }, &mut sealed);
        let Err(EncryptError::Read(error)) = end else { panic!("{end:?}") };
        assert_eq!(error.to_string(), "the disk went away");
        assert!(open(&sealed, 2).1.is_err());
    }
}

/// Takes `room` bytes, then is full.
struct Full {
    room: usize,
}

impl Write for Full {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(self.room);
        self.room -= taken;
        match taken {
            0 => Err(io::ErrorKind::StorageFull.into()),
            taken => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what was read from it; never ends.
struct Endless(Arc<AtomicU64>);

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(out.len())
    }
}

#[test]
fn a_full_sink_ends_a_source_without_end() {
    let read = Arc::new(AtomicU64::new(0));
    let file = held().new_file(Room::Tight, &SystemEntropy);
    let sink = Full { room: 3 * CHUNK_LEN };
    let end = Pipeline::new().workers(2).encrypt(file, Endless(Arc::clone(&read)), sink);
    let Err(EncryptError::Write(error)) = end else { panic!("{end:?}") };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    // Two chunks written, six buffers, and what was freed meanwhile.
    assert!(read.load(Ordering::Relaxed) <= 12 * CHUNK_LEN as u64, "{read:?}");
}

/// Looks at how far the source is ahead of it with each write.
struct Lagging<'a> {
    read: &'a AtomicU64,
    written: u64,
    most_ahead: &'a AtomicU64,
}

impl Write for Lagging<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        std::thread::sleep(std::time::Duration::from_millis(2));
        let ahead = self.read.load(Ordering::Relaxed).saturating_sub(self.written);
        self.most_ahead.fetch_max(ahead, Ordering::Relaxed);
        self.written += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_sink_holds_the_source_back() {
    let read = Arc::new(AtomicU64::new(0));
    let most_ahead = AtomicU64::new(0);
    let file = held().new_file(Room::Tight, &SystemEntropy);
    let source = Endless(Arc::clone(&read)).take(60 * CHUNK_LEN as u64);
    let sink = Lagging { read: &read, written: 0, most_ahead: &most_ahead };
    Pipeline::new().workers(2).encrypt(file, source, sink).unwrap();
    let most_ahead = most_ahead.into_inner();
    // One buffer a worker and four more; never the whole file.
    assert!(most_ahead <= 7 * CHUNK_LEN as u64, "{most_ahead} bytes ahead");
}

#[test]
fn progress_counts_plaintext_up_to_its_length() {
    let held = held();
    let plaintext = pattern(5 * CHUNK_LEN + 9);
    let mut steps = Vec::new();
    let file = held.new_file(Room::Tight, &SystemEntropy);
    let mut sealed = Vec::new();
    let pipeline = Pipeline::new().workers(3).on_progress(|done| steps.push(done));
    pipeline.encrypt(file, &plaintext[..], &mut sealed).unwrap();
    let expected: Vec<u64> =
        (1..=5).map(|n| n * CHUNK_LEN as u64).chain([plaintext.len() as u64]).collect();
    assert_eq!(steps, expected);
}
