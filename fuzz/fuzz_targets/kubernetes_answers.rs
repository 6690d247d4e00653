#![no_main]
//! What an apiserver answers: lists, objects, groups, resources refusals and metrics. Nothing of a refusal's
//! own words is kept, so an error is short.

use lastkey_kubernetes::cluster::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzzing::answer(data);
    if let Ok(text) = std::str::from_utf8(data) {
        lastkey_kubernetes::rotation::parse_metrics(text);
    }
});
