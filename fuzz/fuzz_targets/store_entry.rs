//! The values of the store's table.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| lastkey_store::fuzzing::entry(raw));
