#![no_main]
//! Lists, objects and refusals in Kubernetes' own protobuf. What is read of an object is sent back as
//! the very bytes it came as.

use lastkey_kubernetes::cluster::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzzing::packed(data);
    fuzzing::answer(data);
});
