#![no_main]
//! What an apiserver answers: lists, objects, groups, resources and refusals. Nothing of a refusal's
//! own words is kept, so an error is short.

use lastkey_kubernetes::cluster::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzzing::answer(data);
});
