//! Encryption contexts as JSON: any text, checked against what serde_json makes of it.

#![no_main]

use lastkey_crypto::{EncryptionContext, KeyVersionId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(context) = EncryptionContext::parse_json(text) else { return };
    // A second opinion: the same object, with as many names (so none came twice).
    let plain: std::collections::BTreeMap<String, String> = serde_json::from_str(text).unwrap();
    let ours: Vec<(&str, &str)> = context.iter().collect();
    assert_eq!(ours, plain.iter().map(|(n, v)| (&n[..], &v[..])).collect::<Vec<_>>());

    let again = EncryptionContext::from_pairs(plain).unwrap();
    let id = KeyVersionId::from_bytes([1; 16]);
    assert_eq!(again, context);
    assert_eq!(again.associated_data(b"label", &id), context.associated_data(b"label", &id));
});
