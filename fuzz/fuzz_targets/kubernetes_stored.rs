#![no_main]
//! A value out of etcd, and lines of an apiserver's metrics: whatever they are, they are counted
//! under something, and what is seen of an apiserver can be stored and read back.

use lastkey_kubernetes::{
    coverage::{parse, samples},
    transition::loaded::Seen,
};
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
    let seen = Seen::read("u", text);
    let stored = serde_json::to_string(&seen).expect("it can be stored");
    assert_eq!(serde_json::from_str::<Seen>(&stored).ok(), Some(seen));
});
