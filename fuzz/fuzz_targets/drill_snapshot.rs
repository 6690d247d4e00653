//! What a snapshot of etcd holds, and what the programs say that read it.
#![no_main]

use libfuzzer_sys::fuzz_target;

// Key and value, with a line between them, so that seeds can be read.
fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (key, value) = data.split_at(end);
    lastkey_drill::fuzzing::snapshot(key, value.get(1..).unwrap_or_default());
});
