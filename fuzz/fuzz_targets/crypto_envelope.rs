//! File envelopes: a header from any bytes, and whatever follows it as the payload.

#![no_main]

use lastkey_crypto::{
    KeyMaterial,
    envelope::{Decryptor, Header},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The key that the corpus' own files were made with, so that the payload is reached.
    let data_key = KeyMaterial::from_slice(&(0x40..0x60).collect::<Vec<u8>>());
    let mut rest = bytes;
    let Ok(header) = Header::read(&mut rest) else { return };
    assert_eq!(header.encode(), &bytes[..bytes.len() - rest.len()]);
    if let Ok(mut payload) = Decryptor::new(rest, &header, &data_key) {
        let mut plaintext = Vec::new();
        if payload.copy_to(&mut plaintext).is_ok() {
            assert!(plaintext.len() < rest.len());
        }
    }
});
