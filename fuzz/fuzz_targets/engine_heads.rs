//! Heads, the mark, the anchor and the keyring are read from arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| lastkey_engine::fuzzing::heads(bytes));
