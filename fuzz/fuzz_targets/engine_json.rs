//! The engine's JSON records.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lastkey_engine::fuzzing::json_records(data));
