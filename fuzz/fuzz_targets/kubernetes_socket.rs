#![no_main]
//! The address of the plugin's socket: what is accepted names the same socket when it is written
//! as the apiserver's endpoint and read again, and its configuration can be printed or is refused.

use lastkey_kubernetes::{cluster_config::EncryptionConfig, socket::SocketAddress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(address) = text.parse::<SocketAddress>() else { return };
    let again: SocketAddress = address.endpoint().parse().expect("it was accepted before");
    assert_eq!(again, address);
    if let Ok(yaml) = EncryptionConfig::new(address).yaml() {
        assert_eq!(yaml.lines().count(), 13, "{yaml}");
    }
});
