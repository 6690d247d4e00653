//! The index of a compressed audit segment.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lastkey_engine::fuzzing::audit_index(data));
