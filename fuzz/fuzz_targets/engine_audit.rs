//! Lines and journal files of the audit log.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    lastkey_engine::fuzzing::audit_line(data);
    // A journal's first frame lies at 4096: the input's first bytes are the header, the rest it.
    let mut file = vec![0; 8192];
    let (header, frames) = data.split_at(data.len().min(100));
    file[..header.len()].copy_from_slice(header);
    let room = frames.len().min(4096);
    file[4096..4096 + room].copy_from_slice(&frames[..room]);
    lastkey_engine::fuzzing::audit_journal(&mut file);
});
