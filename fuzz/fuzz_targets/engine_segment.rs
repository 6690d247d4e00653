//! Segments of the audit log, plain or compressed: walked, indexed and searched.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lastkey_engine::fuzzing::audit_segment(data));
