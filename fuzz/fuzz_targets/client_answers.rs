//! Answers of a server, good ones and refusals.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The status is three digits in front, the kind of question one behind them, so that seeds can be
// read.
fuzz_target!(|data: &[u8]| {
    let Some((&[a, b, c, kind], body)) = data.split_first_chunk() else { return };
    let status = std::str::from_utf8(&[a, b, c]).ok().and_then(|text| text.parse().ok());
    lastkey_client::fuzzing::answer(status.unwrap_or(200), kind, body);
});
