//! Payloads of file envelopes, honestly made and then changed: chunks moved, repeated, taken away,
//! cut and flipped. What is left of the plaintext is its beginning, up to the first chunk that is
//! not as it was; only an unchanged payload comes to its end.
//!
//! In a build for fuzzing chunks are of 64 bytes.

#![no_main]

use std::{io::Write, sync::LazyLock};

use lastkey_crypto::{
    Entropy, KeyId, KeyMaterial,
    envelope::{
        CHUNK_LEN, Decryptor, Encryptor, Header, HeldKey, KeySalt, NewFile, Pipeline, Room, Stanza,
    },
};
use libfuzzer_sys::fuzz_target;

/// A chunk and its tag.
const SEALED: usize = CHUNK_LEN + 16;
/// At most so many changes of one payload.
const CHANGES: usize = 6;

struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

/// One data key, and so one payload key, for all inputs.
static HELD: LazyLock<HeldKey> = LazyLock::new(|| {
    let stanza = Stanza::new(KeyId::from_bytes([9; 16]), vec![9; 124]).unwrap();
    let data_key = KeyMaterial::from_slice(&[7; 32]);
    HeldKey::new(KeySalt::random(&Zeros), data_key, vec![stanza]).unwrap()
});

fn new_file() -> NewFile {
    HELD.new_file(Room::Tight, &Zeros)
}

fuzz_target!(|input: &[u8]| {
    assert_eq!(CHUNK_LEN, 64, "a build for fuzzing");
    let Some((count, input)) = input.split_first() else { return };
    let changes = 3 * (usize::from(*count) % (CHANGES + 1));
    let Some((changes, plaintext)) = input.split_at_checked(changes) else { return };

    let sealed = seal(plaintext, usize::from(*count) + 1);
    let mut rest = &sealed[..];
    let header = Header::read(&mut rest).unwrap();
    let mut payload = rest.to_vec();
    for change in changes.chunks_exact(3) {
        apply(&mut payload, change[0], usize::from(change[1]), change[2]);
    }
    let same = payload.iter().zip(rest).take_while(|(now, then)| now == then).count();

    let mut opened = Vec::new();
    let end = Decryptor::new(&payload[..], &header, HELD.data_key()).unwrap().copy_to(&mut opened);
    assert_eq!(end.is_ok(), payload == rest);
    if end.is_ok() {
        assert_eq!(opened, plaintext);
    } else {
        assert!(plaintext.starts_with(&opened) && opened.len() % CHUNK_LEN == 0);
        // A chunk may be whole and yet fail, if it is not the last any more, or is now.
        let whole = same / SEALED;
        assert!((whole.saturating_sub(1)..=whole).contains(&(opened.len() / CHUNK_LEN)));
    }
    // Threads take a hundred times as long as the rest: a few of all inputs are enough.
    if input.len() % 64 == 0 {
        let mut parallel = Vec::new();
        let key = header.open(HELD.data_key()).unwrap();
        let other_end = Pipeline::new().workers(2).decrypt(&key, &payload[..], &mut parallel);
        assert_eq!((end.is_ok(), opened), (other_end.is_ok(), parallel));
        let mut again = Vec::new();
        Pipeline::new().workers(2).encrypt(new_file(), plaintext, &mut again).unwrap();
        assert_eq!(again, sealed);
    }
});

/// The envelope, the plaintext given in portions of this size.
fn seal(plaintext: &[u8], portion: usize) -> Vec<u8> {
    let mut encryptor = Encryptor::new(Vec::new(), new_file()).unwrap();
    for portion in plaintext.chunks(portion) {
        encryptor.write_all(portion).unwrap();
    }
    encryptor.finish().unwrap()
}

/// One change of a payload.
fn apply(payload: &mut Vec<u8>, what: u8, at: usize, with: u8) {
    let chunks = payload.len().div_ceil(SEALED).max(1);
    let begin = (at % chunks * SEALED).min(payload.len());
    let end = (begin + SEALED).min(payload.len());
    let chunk = payload[begin..end].to_vec();
    let other = (usize::from(with) % chunks * SEALED).min(payload.len());
    match what % 7 {
        0 => drop(payload.splice(other..other, chunk)),
        1 => drop(payload.drain(begin..end)),
        2 => payload.truncate(begin + usize::from(with) % (SEALED + 1)),
        3 => payload.push(with),
        4 if begin < end => payload[begin + usize::from(with) % (end - begin)] ^= 1,
        5 => payload.rotate_left(begin),
        6 => payload.splice(begin..begin, [with]).for_each(drop),
        _ => {}
    }
}
