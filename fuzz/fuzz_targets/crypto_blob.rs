//! Ciphertext blobs: parsing and opening take any bytes, and what was sealed opens.

#![no_main]

use lastkey_crypto::{EncryptionContext, KeyMaterial, SystemEntropy, blob};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let material = KeyMaterial::from_slice(&[1; 32]);
    let context = EncryptionContext::empty();
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(decoded) = blob::from_base64(text)
    {
        assert_eq!(blob::to_base64(&decoded), text);
    }
    if let Ok(parsed) = blob::Blob::parse(bytes) {
        assert_eq!(parsed.plaintext_len() + blob::OVERHEAD, bytes.len());
        assert!(bytes.starts_with(parsed.key_version_id().to_string().as_bytes()));
        assert!(parsed.open(&material, &context).is_err());

        let id = parsed.key_version_id();
        let sealed = blob::seal(&material, &id, &context, bytes, &SystemEntropy);
        let opened = blob::Blob::parse(&sealed).unwrap().open(&material, &context).unwrap();
        assert_eq!(opened.expose(), bytes);
    }
});
