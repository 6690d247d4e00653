//! Keys that are taken out of an EncryptionConfiguration for a scratch apiserver.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| lastkey_drill::fuzzing::local_keys(text));
