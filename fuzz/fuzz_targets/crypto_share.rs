//! Shares of an unseal key, as people type them.
#![no_main]

use lastkey_crypto::share::Share;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(share) = Share::parse(text) {
        let again = Share::parse(&share.to_text()).map(|share| share.head());
        assert_eq!(again.ok(), Some(share.head()));
    }
});
