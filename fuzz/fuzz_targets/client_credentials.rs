//! Credentials files.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lastkey_client::fuzzing::credentials(data));
