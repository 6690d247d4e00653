//! Addresses of servers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| lastkey_client::fuzzing::endpoint(text));
