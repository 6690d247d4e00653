//! Properties of the file envelope: streams in any portions, and every kind of damage.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{self, Read, Write};

use common::key;
use lastkey_crypto::{
    KeyId, KeyMaterial, SystemEntropy,
    envelope::{
        CHUNK_LEN, Decryptor, EncryptError, Encryptor, Header, HeaderError, HeldKey, KeySalt,
        MAX_STANZAS, MAX_WRAPPED_LEN, NewFile, PayloadError, Room, Stanza,
    },
};
use proptest::{collection::vec, prelude::*};

const TAG_LEN: usize = 16;
const SEALED_LEN: usize = CHUNK_LEN + TAG_LEN;

fn stanza(seed: u8, len: usize) -> Stanza {
    Stanza::new(KeyId::from_bytes([seed; 16]), vec![seed; len]).unwrap()
}

fn seal(plaintext: &[u8]) -> Vec<u8> {
    seal_with(&key(1), plaintext)
}

fn seal_with(data_key: &KeyMaterial, plaintext: &[u8]) -> Vec<u8> {
    seal_file(new_file(data_key, vec![stanza(7, 112)]).unwrap(), plaintext)
}

fn seal_file(file: NewFile, plaintext: &[u8]) -> Vec<u8> {
    let mut file = Encryptor::new(Vec::new(), file).unwrap();
    file.write_all(plaintext).unwrap();
    file.finish().unwrap()
}

/// A file under a salt of its own, with no room in its header.
fn new_file(data_key: &KeyMaterial, stanzas: Vec<Stanza>) -> Result<NewFile, HeaderError> {
    let data_key = KeyMaterial::from_slice(data_key.expose());
    let held = HeldKey::new(KeySalt::random(&SystemEntropy), data_key, stanzas)?;
    Ok(held.new_file(Room::Tight, &SystemEntropy))
}

#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
enum Failure {
    Header(HeaderError),
    Payload(PayloadError),
}

fn open(sealed: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut source = sealed;
    let header = Header::read(&mut source).map_err(Failure::Header)?;
    let mut decryptor = Decryptor::new(source, &header, &key(1)).map_err(Failure::Payload)?;
    let mut plaintext = Vec::new();
    decryptor.copy_to(&mut plaintext).map_err(Failure::Payload)?;
    Ok(plaintext)
}

fn damaged_chunk(sealed: &[u8]) -> u64 {
    match open(sealed) {
        Err(Failure::Payload(PayloadError::Damaged { chunk })) => chunk,
        other => panic!("expected damage, got {:?}", other.map(|plaintext| plaintext.len())),
    }
}

/// Bytes of which no two chunks are alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Header and sealed chunks of an envelope.
fn cut(sealed: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut rest = sealed;
    let header = Header::read(&mut rest).unwrap().encode();
    (header, rest.chunks(SEALED_LEN).map(<[u8]>::to_vec).collect())
}

fn join(header: &[u8], chunks: &[&Vec<u8>]) -> Vec<u8> {
    chunks.iter().fold(header.to_vec(), |mut file, chunk| {
        file.extend_from_slice(chunk);
        file
    })
}

/// Reads and writes a few bytes at a time, with interruptions.
struct Trickle<T>(T, usize);

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1.wrapping_mul(31).wrapping_add(7);
        if self.1.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = out.len().min(1 + self.1 % 100_000);
        self.0.read(&mut out[..most])
    }
}

impl<W: Write> Write for Trickle<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.1 = self.1.wrapping_mul(31).wrapping_add(7);
        self.0.write(&data[..data.len().min(1 + self.1 % 100_000)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn lengths_around_the_chunk_open() {
    for len in [
        0,
        1,
        CHUNK_LEN - 1,
        CHUNK_LEN,
        CHUNK_LEN + 1,
        2 * CHUNK_LEN - 1,
        2 * CHUNK_LEN,
        2 * CHUNK_LEN + 1,
    ] {
        let plaintext = pattern(len);
        let sealed = seal(&plaintext);
        let (header, chunks) = cut(&sealed);
        assert_eq!(chunks.len(), len.div_ceil(CHUNK_LEN).max(1), "{len}");
        assert_eq!(sealed.len(), header.len() + len + TAG_LEN * chunks.len(), "{len}");
        assert!(open(&sealed).unwrap() == plaintext, "{len}");
    }
}

#[test]
fn portions_do_not_matter() {
    let plaintext = pattern(2 * CHUNK_LEN + 12_345);
    let sink = Trickle(Vec::new(), 1);
    let mut file = Encryptor::new(sink, new_file(&key(1), vec![stanza(7, 112)]).unwrap()).unwrap();
    let (first, second) = plaintext.split_at(CHUNK_LEN);
    file.copy_from(&mut Trickle(first, 2)).unwrap();
    file.flush().unwrap();
    file.copy_from(&mut Trickle(second, 3)).unwrap();
    let sealed = file.finish().unwrap().0;
    assert_eq!(open(&sealed).unwrap(), plaintext);

    let mut source = Trickle(&sealed[..], 4);
    let header = Header::read(&mut source).unwrap();
    let mut opened = Vec::new();
    let mut decryptor = Decryptor::new(source, &header, &key(1)).unwrap();
    Trickle(&mut decryptor, 5).read_to_end(&mut opened).unwrap();
    assert!(opened == plaintext);
    assert_eq!(decryptor.read(&mut [0; 10]).unwrap(), 0, "the end stays the end");
}

#[test]
fn no_byte_of_a_small_file_can_change_outside_the_stanzas() {
    let sealed = seal(b"attack at dawn");
    let (header, _) = cut(&sealed);
    let stanzas = 76 + 32 + 2..header.len();
    for (at, copy) in common::tampered(&sealed) {
        if stanzas.contains(&at) {
            // A stanza is authenticated when the KMS opens it; it must at least never confuse us.
            let _ = open(&copy);
        } else {
            assert!(open(&copy).is_err(), "byte {at} changed");
        }
    }
}

#[test]
fn a_file_cut_anywhere_does_not_open() {
    let sealed = seal(b"attack at dawn");
    for len in 0..sealed.len() {
        assert!(open(&sealed[..len]).is_err(), "cut to {len}");
    }
    let sealed = seal(&pattern(2 * CHUNK_LEN + 5));
    let (header, chunks) = cut(&sealed);
    assert_eq!(damaged_chunk(&header), 0);
    assert_eq!(damaged_chunk(&join(&header, &[&chunks[0]])), 0);
    assert_eq!(damaged_chunk(&join(&header, &[&chunks[0], &chunks[1]])), 1);
    assert_eq!(damaged_chunk(&sealed[..sealed.len() - 1]), 2);
    assert_eq!(damaged_chunk(&sealed[..header.len() + SEALED_LEN + 1]), 1);
}

#[test]
fn what_follows_the_end_is_damage() {
    let sealed = seal(b"attack at dawn");
    assert_eq!(damaged_chunk(&[&sealed[..], b"\0"].concat()), 0);
    let sealed = seal(&pattern(CHUNK_LEN));
    assert_eq!(damaged_chunk(&[&sealed[..], b"\0"].concat()), 0);
    assert_eq!(damaged_chunk(&[&sealed[..], &[0; TAG_LEN]].concat()), 0);
}

#[test]
fn chunks_have_their_place() {
    let (header, chunks) = cut(&seal(&pattern(3 * CHUNK_LEN + 5)));
    let [a, b, c, d] = &chunks[..] else { panic!("four chunks") };
    assert!(open(&join(&header, &[a, b, c, d])).is_ok());
    assert_eq!(damaged_chunk(&join(&header, &[b, a, c, d])), 0);
    assert_eq!(damaged_chunk(&join(&header, &[a, c, b, d])), 1);
    assert_eq!(damaged_chunk(&join(&header, &[a, a, b, c, d])), 1);
    assert_eq!(damaged_chunk(&join(&header, &[a, c, d])), 1);
    assert_eq!(damaged_chunk(&join(&header, &[a, b, d])), 2);
    assert_eq!(damaged_chunk(&join(&header, &[d])), 0);
}

#[test]
fn chunks_of_another_file_do_not_fit() {
    let plaintext = pattern(2 * CHUNK_LEN);
    // The same data key, which is the best case for whoever mixes them.
    let (header, one) = cut(&seal(&plaintext));
    let (_, other) = cut(&seal(&plaintext));
    assert_eq!(damaged_chunk(&join(&header, &[&one[0], &other[1]])), 1);
    assert_eq!(damaged_chunk(&join(&header, &[&other[0], &one[1]])), 0);
}

#[test]
fn a_file_opens_with_its_own_data_key_alone() {
    let sealed = seal_with(&key(2), b"attack at dawn");
    assert!(matches!(open(&sealed), Err(Failure::Payload(PayloadError::WrongDataKey))));
}

#[test]
fn after_an_error_a_stream_stays_broken() {
    let mut sealed = seal(&pattern(2 * CHUNK_LEN));
    let last = sealed.len() - 1;
    sealed[last] ^= 1;
    let mut source = &sealed[..];
    let header = Header::read(&mut source).unwrap();
    let mut decryptor = Decryptor::new(source, &header, &key(1)).unwrap();
    let mut opened = Vec::new();
    let error = decryptor.read_to_end(&mut opened).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(opened.len(), CHUNK_LEN, "what was intact came out");
    assert!(decryptor.read(&mut [0; 10]).is_err(), "and must not look like the end");
    assert!(decryptor.copy_to(&mut Vec::new()).is_err());
}

#[test]
fn a_sink_that_fails_stops_the_envelope() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            match self.0 {
                0 => Err(io::ErrorKind::StorageFull.into()),
                left => {
                    let taken = left.min(data.len());
                    self.0 -= taken;
                    Ok(taken)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let begin =
        |space| Encryptor::new(Full(space), new_file(&key(1), vec![stanza(7, 112)]).unwrap());
    assert!(matches!(begin(10), Err(EncryptError::Write(_))));

    let mut file = begin(1000).unwrap();
    let error = file.write_all(&pattern(CHUNK_LEN + 1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(file.write(b"more").is_err());
    assert!(file.copy_from(&mut &b"more"[..]).is_err());
    assert!(file.finish().is_err());
}

#[test]
fn a_dropped_envelope_is_recognised() {
    let mut sealed = Vec::new();
    let file = new_file(&key(1), vec![stanza(7, 112)]).unwrap();
    let mut file = Encryptor::new(&mut sealed, file).unwrap();
    file.write_all(&pattern(CHUNK_LEN + 1)).unwrap();
    drop(file);
    assert_eq!(damaged_chunk(&sealed), 0);
}

#[test]
fn other_readers_leave_the_payload_alone() {
    let sealed = seal(b"attack at dawn");
    let mut payload = &sealed[..];
    let header = Header::read(&mut payload).unwrap();
    let context = header.context();
    let rewrapped = header.with_stanzas(vec![stanza(8, 300), stanza(9, 1)], Room::Tight).unwrap();
    let file = [&rewrapped.encode(), payload].concat();
    assert_eq!(open(&file).unwrap(), b"attack at dawn");

    let read = Header::read(&mut &file[..]).unwrap();
    assert_eq!(read, rewrapped);
    assert_eq!(read.context(), context);
    assert_eq!(read.stanzas(), [stanza(8, 300), stanza(9, 1)]);
}

#[test]
fn stanzas_have_bounds() {
    let id = KeyId::from_bytes([1; 16]);
    assert!(matches!(Stanza::new(id, vec![]), Err(HeaderError::StanzaLength)));
    let long = vec![0; MAX_WRAPPED_LEN + 1];
    assert!(matches!(Stanza::new(id, long), Err(HeaderError::StanzaLength)));
    for (count, fine) in [(0, false), (1, true), (MAX_STANZAS, true), (MAX_STANZAS + 1, false)] {
        let made = new_file(&key(1), vec![stanza(1, MAX_WRAPPED_LEN); count]);
        assert_eq!(made.is_ok(), fine, "{count} stanzas");
        if let Ok(file) = made {
            assert_eq!(open(&seal_file(file, b"")).unwrap(), b"");
        }
    }
}

#[test]
fn malformed_headers_say_what_is_wrong() {
    let sealed = seal(b"x");
    let with = |at: usize, byte: u8| {
        let mut copy = sealed.clone();
        copy[at] = byte;
        Header::read(&mut &copy[..]).unwrap_err()
    };
    assert!(matches!(with(0, b'l'), HeaderError::NotAnEnvelope));
    assert!(matches!(with(8, 0), HeaderError::UnknownVersion(0)));
    assert!(matches!(with(8, 3), HeaderError::UnknownVersion(3)));
    assert!(matches!(with(9, 2), HeaderError::UnknownSuite));
    assert!(matches!(with(10, 21), HeaderError::UnknownSuite));
    assert!(matches!(with(11, 1), HeaderError::UnknownSuite));
    assert!(matches!(with(108, 1), HeaderError::Truncated));
    assert!(matches!(with(108, 17), HeaderError::Damaged));
    assert!(matches!(with(109, 0), HeaderError::StanzaCount));
    assert!(matches!(with(109, 65), HeaderError::StanzaCount));
    assert!(matches!(with(110, b'x'), HeaderError::NoKeyId));
    assert!(matches!(with(146, 0xff), HeaderError::StanzaLength));
    assert!(matches!(Header::read(&mut &b""[..]), Err(HeaderError::NotAnEnvelope)));
    assert!(matches!(Header::read(&mut &b"hello"[..]), Err(HeaderError::NotAnEnvelope)));
    assert!(matches!(Header::read(&mut &sealed[..20]), Err(HeaderError::Truncated)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn headers_read_as_written(
        stanzas in vec((any::<[u8; 16]>(), vec(any::<u8>(), 1..200)), 1..8),
        plaintext in vec(any::<u8>(), 0..500),
        spare in any::<bool>(),
    ) {
        let stanzas: Vec<Stanza> = stanzas
            .into_iter()
            .map(|(id, wrapped)| Stanza::new(KeyId::from_bytes(id), wrapped).unwrap())
            .collect();
        let salt = KeySalt::random(&SystemEntropy);
        let context = salt.context();
        let held = HeldKey::new(salt, key(1), stanzas.clone()).unwrap();
        let room = if spare { Room::Spare } else { Room::Tight };
        let sealed = seal_file(held.new_file(room, &SystemEntropy), &plaintext);

        let mut rest = &sealed[..];
        let header = Header::read(&mut rest).unwrap();
        prop_assert_eq!(header.stanzas(), &stanzas[..]);
        prop_assert_eq!(header.context(), context);
        prop_assert_eq!(&sealed[..sealed.len() - rest.len()], &header.encode()[..]);
        prop_assert_eq!(rest.len(), plaintext.len() + TAG_LEN);
        prop_assert_eq!(open(&sealed).unwrap(), plaintext);
    }

    #[test]
    fn header_takes_anything(tail in vec(any::<u8>(), 0..400)) {
        let _ = Header::read(&mut &tail[..]);
        for version in [1, 2] {
            let start = [b"LASTKEY\0", &[version, 1, 0x14, 0][..]].concat();
            let bytes = [&start, &tail[..]].concat();
            let mut rest = &bytes[..];
            if let Ok(header) = Header::read(&mut rest) {
                prop_assert_eq!(&header.encode()[..], &bytes[..bytes.len() - rest.len()]);
            }
        }
    }
}

/// A sink that counts how often it is flushed.
#[derive(Default)]
struct Flushed(Vec<u8>, usize);

impl Write for Flushed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1 += 1;
        Ok(())
    }
}

#[test]
fn pieces_need_not_end_where_chunks_do() {
    let plaintext = pattern(2 * CHUNK_LEN + 1000);
    let file = new_file(&key(1), vec![stanza(7, 112)]).unwrap();
    let mut file = Encryptor::new(Flushed::default(), file).unwrap();
    let (first, rest) = plaintext.split_at(700_000);
    let (second, third) = rest.split_at(CHUNK_LEN + 1);
    assert_eq!(file.write(first).unwrap(), first.len());
    file.write_all(second).unwrap();
    file.flush().unwrap();
    // How much it was is told, of what was read and of what comes out.
    assert_eq!(file.copy_from(&mut &third[..]).unwrap(), third.len() as u64);
    let Flushed(sealed, flushed) = file.finish().unwrap();
    assert_eq!(flushed, 2, "when it was asked for, and at the end");
    assert_eq!(open(&sealed).unwrap(), plaintext);
    let mut source = &sealed[..];
    let header = Header::read(&mut source).unwrap();
    let mut opened = Vec::new();
    let mut decryptor = Decryptor::new(source, &header, &key(1)).unwrap();
    assert_eq!(decryptor.copy_to(&mut opened).unwrap(), plaintext.len() as u64);
}
