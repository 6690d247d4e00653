//! Parameters of the Alibaba wire that have a form of their own: durations, tags, filters.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| lastkey_server::fuzzing::parameter(text));
