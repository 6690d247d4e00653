//! The file of the audit log's checkpoints.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| lastkey_engine::fuzzing::audit_checkpoints(data));
