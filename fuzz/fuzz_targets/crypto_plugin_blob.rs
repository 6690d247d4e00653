//! What the apiserver brings back: any bytes parse or do not, and are written as they were read.

#![no_main]

use lastkey_crypto::{KeyMaterial, plugin_blob::PluginBlob};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(parsed) = PluginBlob::parse(bytes) else { return };
    assert_eq!(parsed.encode(), bytes);
    assert_eq!(parsed.key().key_id().len(), 64);
    assert_eq!(parsed.blob().key_version_id(), parsed.key().key_version);
    let material = KeyMaterial::from_slice(&[1; 32]);
    assert!(parsed.blob().open(&material, &parsed.key().context()).is_err());
});
