//! File envelopes: a header from any bytes, whatever follows it as the payload, and its stanzas
//! replaced.
//!
//! No fuzzer finds a hash by trying, so what guards a header is put right before it is read, as
//! the first byte of the input asks: its fixed beginning, its commitment to the data key, the
//! checksums of its slots. Where it does not ask, they are as the input says. In a build for
//! fuzzing chunks are of 64 bytes and blocks of 256.

#![no_main]

use std::sync::LazyLock;

use lastkey_crypto::{
    KeyId, KeyMaterial,
    envelope::{CHUNK_LEN, Decryptor, Header, Pipeline, Room, Stanza},
    mac,
};
use libfuzzer_sys::fuzz_target;

/// Where the salts begin.
const START: usize = 12;
const BLOCK: usize = 256;

static DATA_KEY: LazyLock<KeyMaterial> =
    LazyLock::new(|| KeyMaterial::from_slice(&(0x40..0x60).collect::<Vec<u8>>()));

fuzz_target!(|input: &[u8]| {
    let Some((asked, bytes)) = input.split_first() else { return };
    let bytes = &mended(*asked, bytes.to_vec())[..];
    let mut rest = bytes;
    let Ok(header) = Header::read(&mut rest) else { return };
    let (head, payload) = bytes.split_at(bytes.len() - rest.len());
    same_header(&header, head);
    other_stanzas(&header, head);

    let mut one_by_one = Vec::new();
    let Ok(mut decryptor) = Decryptor::new(payload, &header, &DATA_KEY) else { return };
    let end = decryptor.copy_to(&mut one_by_one);
    assert!(end.is_err() || one_by_one.len() < payload.len());
    // Threads take a hundred times as long as the rest: a few of all inputs are enough.
    if bytes.len() % 64 != 0 {
        return;
    }
    let mut parallel = Vec::new();
    let key = header.open(&DATA_KEY).unwrap();
    let other_end = Pipeline::new().workers(2).decrypt(&key, payload, &mut parallel);
    assert_eq!(one_by_one, parallel);
    assert_eq!(end.is_ok(), other_end.is_ok());
});

/// Puts right what is asked for: the beginning (bits 0 and 1: the version), the commitment (bit
/// 2), the checksum of either slot (bits 3 and 4).
fn mended(asked: u8, mut file: Vec<u8>) -> Vec<u8> {
    let version = asked & 3;
    let fixed = if file.get(8).is_some_and(|held| *held == 1) && version == 0 || version == 1 {
        START + 32
    } else {
        START + 64
    };
    if matches!(version, 1 | 2) && file.len() >= START {
        file[..START].copy_from_slice(b"LASTKEY\0\x02\x01\x06\0");
        file[8] = version;
    }
    if asked & 4 != 0 && file.len() >= fixed + 32 {
        let hash = mac::sha256(&[&file[..fixed]]);
        let info = [format!("lastkey file {} commitment", file[8]).as_bytes(), &hash].concat();
        let (fixed, rest) = file.split_at_mut(fixed);
        // HKDF (RFC 5869) for one block of output.
        let secret = mac::hmac_sha256(&fixed[START..START + 32], &[DATA_KEY.expose()]);
        rest[..32].copy_from_slice(&mac::hmac_sha256(&secret, &[&info, &[1]]));
    }
    let blocks = file.get(fixed + 32).map_or(0, |blocks| usize::from(*blocks));
    let hash = file.get(..fixed).map(|fixed| mac::sha256(&[fixed]));
    for (slot, bit) in [(0, 8), (1, 16)] {
        let from = BLOCK * (1 + slot * blocks);
        let wanted = (asked & bit != 0 && blocks > 0).then_some(());
        let slot = wanted.and_then(|()| file.get_mut(from..from + BLOCK * blocks));
        if let (Some(slot), Some(hash)) = (slot, hash) {
            let (body, checksum) = slot.split_at_mut(BLOCK * blocks - 32);
            checksum.copy_from_slice(&mac::sha256(&[b"lastkey file 2 stanzas", &hash, body]));
        }
    }
    file
}

/// Written again it is the same header, and the same bytes unless a slot that does not count held
/// something.
fn same_header(header: &Header, head: &[u8]) {
    assert_eq!(CHUNK_LEN, 64, "a build for fuzzing");
    let again = header.encode();
    assert_eq!(again.len(), head.len());
    assert_eq!(&Header::read(&mut &again[..]).unwrap(), header);
    let blank = |at: usize| {
        let len = (head.len() - BLOCK) / 2;
        head[BLOCK + at * len..][..len].iter().all(|byte| *byte == 0)
    };
    let has_slots = header.version() == 2 && head[START + 64 + 32] > 0;
    if !has_slots || blank(0) || blank(1) {
        assert_eq!(again, head);
    }
}

/// Replaced in place or in front of a copy, the new stanzas are what is read, after each step.
fn other_stanzas(header: &Header, head: &[u8]) {
    let stanza = Stanza::new(KeyId::from_bytes([9; 16]), vec![9; 124]).unwrap();
    let mut replaced = header.clone();
    let mut file = head.to_vec();
    if let Some(patches) = replaced.replace(vec![stanza.clone()]).unwrap() {
        for patch in patches {
            let from = usize::try_from(patch.offset).unwrap();
            let (until, torn) = (from + patch.bytes.len(), patch.bytes.len() / 2);
            // Cut short, the old list or the new one is there.
            file[from..from + torn].copy_from_slice(&patch.bytes[..torn]);
            let read = Header::read(&mut &file[..]).unwrap();
            assert!(read.stanzas() == header.stanzas() || read.stanzas() == [stanza.clone()]);
            file[from..until].copy_from_slice(&patch.bytes);
            let read = Header::read(&mut &file[..]).unwrap();
            assert_eq!(read.stanzas(), [stanza.clone()]);
        }
    }
    let copied = header.clone().with_stanzas(vec![stanza.clone()], Room::Spare).unwrap();
    assert_eq!(Header::read(&mut &copied.encode()[..]).unwrap().stanzas(), [stanza]);
}
