#![no_main]
//! A static pod's manifest, as the doctor reads it.

use std::path::Path;

use lastkey_kubernetes::node::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(pod) = Manifest::parse(text) else { return };
    for path in pod.command.iter().chain(&pod.liveness) {
        if let Some(host) = pod.on_node(Path::new(path)) {
            assert!(pod.on_node(Path::new(path)) == Some(host));
        }
    }
});
