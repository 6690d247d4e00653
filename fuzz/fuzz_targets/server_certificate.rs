//! Certificates of callers, certificate requests, and the record of our authority.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| lastkey_server::fuzzing::certificate(der));
