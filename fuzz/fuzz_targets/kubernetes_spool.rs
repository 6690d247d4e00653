#![no_main]
//! The plugin's spool of local answers, as a crash or somebody else may have left it.

use lastkey_kubernetes::plugin::read_spool;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = read_spool(data);
});
