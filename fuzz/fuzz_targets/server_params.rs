//! Query strings and forms: never a panic, and whatever is read comes back the same when it is
//! written again.
#![no_main]

use lastkey_server::{alibaba::signature::canonical::escape, params::Params};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&str, &[u8])| {
    let (query, form) = data;
    let Ok(params) = Params::parse(query, form) else { return };
    let mut text = Vec::new();
    for param in params.iter() {
        text.extend_from_slice(param.name.as_bytes());
        text.push(b'=');
        escape(param.value.as_bytes(), &mut text);
        text.push(b'&');
    }
    let again = Params::parse("", &text).expect("what was read can be written");
    assert!(params.iter().zip(again.iter()).all(|(a, b)| a.name == b.name && a.value == b.value));
    assert_eq!(params.iter().count(), again.iter().count());
});
