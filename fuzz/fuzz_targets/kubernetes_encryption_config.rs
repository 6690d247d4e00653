#![no_main]
//! An EncryptionConfiguration: whatever it is, it is judged; each finding says what and what to do,
//! and what a configuration names can be asked for its providers.

use lastkey_kubernetes::encryption_config::examine_bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let examined = examine_bytes(bytes);
    for finding in &examined.findings {
        assert!(!finding.message.is_empty() && !finding.fix.is_empty(), "{finding:?}");
        assert!(finding.message.len() < 8_000, "{finding:?}");
    }
    for named in examined.config.names() {
        for provider in examined.config.providers_of(&named.name) {
            let _ = provider.prefix();
        }
    }
    for kms in examined.config.kms() {
        let _ = kms.socket();
    }
});
