//! Names, key references and times as callers send them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| lastkey_engine::fuzzing::names(text));
