//! Paths and bodies of the native API, as every route reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The path is the first line, so that seeds can be read.
fuzz_target!(|data: &[u8]| {
    let newline = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (path, body) = data.split_at(newline);
    let path = std::str::from_utf8(path).unwrap_or_default();
    lastkey_server::fuzzing::native_request(path, body);
});
