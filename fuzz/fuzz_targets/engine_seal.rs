//! The record of the seal, which is read before anything is authentic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lastkey_engine::fuzzing::seal_record(data));
