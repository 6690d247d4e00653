//! Header blocks of one connection, each in a frame of its own: no block panics the filter or
//! changes its length, and what it let through it leaves alone the second time.
#![no_main]

use lastkey_kubernetes::authority::FrameFilter;
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of headers; streams of clients have odd numbers.
fn frame(number: usize, block: &[u8]) -> Vec<u8> {
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let stream = u32::try_from(2 * number + 1).unwrap().to_be_bytes();
    [&length[1..], &[HEADERS, END_HEADERS], &stream, block].concat()
}

fn filtered(bytes: &[u8]) -> Vec<u8> {
    let (mut filter, mut out) = (FrameFilter::new(), Vec::new());
    filter.push(bytes, &mut out);
    filter.finish(&mut out);
    out
}

/// The pieces of the input, each with its length in front.
fn pieces(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while let Some((&length, more)) = rest.split_first() {
        let (piece, behind) = more.split_at(more.len().min(length.into()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

fuzz_target!(|data: &[u8]| {
    let frames = pieces(data).into_iter().enumerate().map(|(n, block)| frame(n, block));
    let bytes: Vec<u8> = PREFACE.iter().copied().chain(frames.flatten()).collect();
    let out = filtered(&bytes);
    assert_eq!(out.len(), bytes.len());
    assert_eq!(filtered(&out), out);
});
