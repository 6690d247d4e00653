#![no_main]
//! A value out of etcd, and lines of an apiserver's metrics: whatever they are, they are counted
//! under something.

use lastkey_kubernetes::coverage::{parse, samples};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let under = parse(data).under();
    assert_eq!(under.is_clear(), !data.starts_with(b"k8s:enc:"));
    assert!(under.provider.len() < 1_100);
    let Ok(text) = std::str::from_utf8(data) else { return };
    for sample in samples(text, &["a", "b"]) {
        assert!(sample.name == "a" || sample.name == "b");
        let _ = (sample.label("x"), sample.label(""));
    }
});
