#![no_main]
//! The HTTP/2 filter in front of the plugin: no bytes, in no pieces, panic it, change its length,
//! or make it hold more than it may.

use lastkey_kubernetes::authority::{FrameFilter, MAX_HELD};
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What comes out, and whether it is a flood.
fn filtered(bytes: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let (mut filter, mut out) = (FrameFilter::new(), Vec::new());
    for part in bytes.chunks(piece.max(1)) {
        filter.push(part, &mut out);
        assert!(filter.held() <= MAX_HELD);
        assert!(out.len() + filter.held() <= bytes.len());
    }
    filter.finish(&mut out);
    (out, filter.is_flood())
}

// The first byte is the size of the pieces; the preface is given, so that frames come next.
fuzz_target!(|input: (u8, &[u8])| {
    let (piece, frames) = input;
    let bytes = [PREFACE, frames].concat();
    let whole = filtered(&bytes, bytes.len());
    assert_eq!(whole.0.len(), bytes.len());
    assert_eq!(filtered(&bytes, piece.into()), whole);
    // what came out holds nothing more to replace, and is a flood as much or as little
    assert_eq!(filtered(&whole.0, bytes.len()), whole);
    // without a preface, it is not HTTP/2, and passes as it is
    if !frames.starts_with(b"P") {
        assert_eq!(filtered(frames, piece.into()).0, frames);
    }
});
