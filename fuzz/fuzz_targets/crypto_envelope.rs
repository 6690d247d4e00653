//! File envelopes: a header from any bytes, whatever follows it as the payload, and its stanzas
//! replaced.

#![no_main]

use lastkey_crypto::{
    KeyId, KeyMaterial,
    envelope::{Decryptor, Header, Pipeline, Room, Stanza},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The key that the corpus' own files were made with, so that the payload is reached.
    let data_key = KeyMaterial::from_slice(&(0x40..0x60).collect::<Vec<u8>>());
    let mut rest = bytes;
    let Ok(header) = Header::read(&mut rest) else { return };
    let (head, payload) = bytes.split_at(bytes.len() - rest.len());
    same_header(&header, head);
    other_stanzas(&header, head);

    let mut one_by_one = Vec::new();
    let Ok(mut decryptor) = Decryptor::new(payload, &header, &data_key) else { return };
    let end = decryptor.copy_to(&mut one_by_one);
    if end.is_ok() {
        assert!(one_by_one.len() < payload.len());
    }
    // Threads take a hundred times as long as the rest: a few of all inputs are enough.
    if bytes.len() % 16 != 0 {
        return;
    }
    let mut parallel = Vec::new();
    let key = header.open(&data_key).unwrap();
    let other_end = Pipeline::new().workers(2).decrypt(&key, payload, &mut parallel);
    assert_eq!(one_by_one, parallel);
    assert_eq!(end.is_ok(), other_end.is_ok());
});

/// Written again it is the same header, and the same bytes unless a slot that does not count held
/// something.
fn same_header(header: &Header, head: &[u8]) {
    let again = header.encode();
    assert_eq!(again.len(), head.len());
    assert_eq!(&Header::read(&mut &again[..]).unwrap(), header);
    if head.len() < 8192 {
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
            file[from..from + patch.bytes.len()].copy_from_slice(&patch.bytes);
            let read = Header::read(&mut &file[..]).unwrap();
            assert_eq!(read.stanzas(), [stanza.clone()]);
        }
    }
    let copied = header.clone().with_stanzas(vec![stanza.clone()], Room::Spare).unwrap();
    assert_eq!(Header::read(&mut &copied.encode()[..]).unwrap().stanzas(), [stanza]);
}
