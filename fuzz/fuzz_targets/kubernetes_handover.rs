#![no_main]
//! What a process that takes over is told: whatever comes instead of it is refused, without waiting.

use std::{io::Write, os::unix::net::UnixStream};

use lastkey_kubernetes::socket::receive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((mut here, there)) = UnixStream::pair() else { return };
    if here.write_all(&data[..data.len().min(4096)]).is_err() {
        return;
    }
    drop(here);
    // no descriptor came with it, so whatever names one is refused
    if let Ok(inheritance) = receive(&there) {
        assert!(inheritance.sockets.is_empty() && inheritance.other.is_empty());
        assert_eq!(data.split(|byte| *byte == b'\n').next(), Some(&b"lastkey-handover 1"[..]));
    }
});
