//! Sealed records and wrapped keys: parsing and opening take any bytes.

#![no_main]

use lastkey_crypto::{KeyMaterial, record, wrap};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let material = KeyMaterial::from_slice(&[1; 32]);
    if let Ok(parsed) = record::SealedRecord::parse(bytes) {
        assert_eq!(bytes[1..5], parsed.keyring_key().to_be_bytes());
        assert_eq!(bytes[5..13], parsed.counter().to_be_bytes());
        assert!(parsed.open(&material, "path").is_err());
    }
    assert!(wrap::unwrap(&material, "purpose", bytes).is_err());
});
