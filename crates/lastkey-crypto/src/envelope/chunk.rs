//! One chunk of a payload, and the counter that gives each its number.

use std::{
    io::{self, Read},
    ops::{Deref, DerefMut},
};

use zeroize::Zeroizing;

use super::{PayloadError, header::CHUNK_BITS};
use crate::cipher::{IV_LEN, MessageKey, TAG_LEN};

/// Plaintext bytes in every chunk but the last.
pub const CHUNK_LEN: usize = 1 << CHUNK_BITS;
/// The size of a page of memory, or a multiple of it.
const PAGE_LEN: usize = 4096;
/// A whole chunk with its tag.
pub(super) const SEALED_LEN: usize = CHUNK_LEN + TAG_LEN;

/// Room for a chunk, at the beginning of a page; zeroed when it is given up.
///
/// The kernel copies between us and its pages four times slower where the two are apart by a few
/// bytes, which is how an allocator places large blocks.
pub(super) struct Buffer {
    bytes: Zeroizing<Box<[u8]>>,
    from: usize,
    len: usize,
}

impl Buffer {
    pub(super) fn new(len: usize) -> Self {
        let bytes = Zeroizing::new(vec![0; len + PAGE_LEN].into_boxed_slice());
        // Should the address be out of reach, any place is as right, if not as fast.
        let from = bytes.as_ptr().align_offset(PAGE_LEN).min(PAGE_LEN);
        Self { bytes, from, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.len]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    Inner,
    Last,
}

/// Which chunk of the file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) number: u64,
    pub(super) position: Position,
}

impl Chunk {
    /// Encrypts the first `len` bytes of `buffer` in place, puts the tag behind them, and returns
    /// the length of both.
    pub(super) fn seal(self, key: &MessageKey, buffer: &mut [u8], len: usize) -> usize {
        let (data, rest) = buffer.split_at_mut(len);
        let tag = key.seal(&self.nonce(), &[], data);
        rest[..TAG_LEN].copy_from_slice(&tag);
        len + TAG_LEN
    }

    /// Decrypts `sealed` in place and returns the length of the plaintext.
    pub(super) fn open(self, key: &MessageKey, sealed: &mut [u8]) -> Result<usize, PayloadError> {
        let damaged = PayloadError::Damaged { chunk: self.number };
        let Ok(plaintext) = key.open_in_place(&self.nonce(), &[], sealed) else {
            return Err(damaged);
        };
        // Nobody but the owner of the data key can make such a chunk, yet one file has one form.
        match plaintext.len() {
            0 if self.number > 0 => Err(damaged),
            len => Ok(len),
        }
    }

    /// The number in 11 bytes, then 1 if it is the last.
    fn nonce(self) -> [u8; IV_LEN] {
        let mut nonce = [0; IV_LEN];
        nonce[3..11].copy_from_slice(&self.number.to_be_bytes());
        nonce[11] = u8::from(self.position == Position::Last);
        nonce
    }
}

/// Gives out each chunk once.
pub(super) struct Counter {
    number: u64,
    /// After the last chunk, or after an error: there is no next chunk.
    stopped: bool,
}

impl Counter {
    pub(super) fn new() -> Self {
        Self { number: 0, stopped: false }
    }

    pub(super) fn next(&mut self, position: Position) -> io::Result<Chunk> {
        self.check()?;
        let chunk = Chunk { number: self.number, position };
        match self.number.checked_add(1) {
            Some(number) => self.number = number,
            None => self.stopped = true,
        }
        self.stopped |= position == Position::Last;
        Ok(chunk)
    }

    /// The number of the next chunk.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match self.stopped {
            false => Ok(()),
            true => Err(io::Error::other("the envelope ended with an earlier error")),
        }
    }
}

/// Reads until `into` is full or the source ends.
pub(super) fn read_full(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match read_some(source, &mut into[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// One successful read, however often a signal comes in between.
pub(super) fn read_some(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Algorithm;

    fn key() -> MessageKey {
        MessageKey::derive(Algorithm::Aes256, &[1; 32], &[2; 32], b"test")
    }

    #[test]
    fn nonces_go_on_beyond_32_bits() {
        let four_gi = 1 << 32;
        for (number, expected) in [
            (0, "000000000000000000000000"),
            (1, "000000000000000000000100"),
            (four_gi - 1, "00000000000000ffffffff00"),
            (four_gi, "000000000000010000000000"),
            (u64::MAX, "000000ffffffffffffffff00"),
        ] {
            let inner = Chunk { number, position: Position::Inner };
            assert_eq!(hex::encode(inner.nonce()), expected);
            let last = Chunk { number, position: Position::Last };
            assert_eq!(hex::encode(last.nonce()), format!("{}01", &expected[..22]));
        }
    }

    #[test]
    fn a_chunk_beyond_32_bits_opens_in_its_own_place_alone() {
        let key = key();
        let here = Chunk { number: (1 << 32) + 5, position: Position::Inner };
        let mut sealed = vec![7; 100 + TAG_LEN];
        assert_eq!(here.seal(&key, &mut sealed, 100), 116);
        for (number, position) in [
            (5, Position::Inner),
            (here.number + 1, Position::Inner),
            (here.number, Position::Last),
        ] {
            let elsewhere = Chunk { number, position };
            assert!(elsewhere.open(&key, &mut sealed.clone()).is_err());
        }
        assert_eq!(here.open(&key, &mut sealed).unwrap(), 100);
        assert!(sealed[..100].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn the_counter_crosses_32_bits_and_stops_before_it_repeats() {
        let mut counter = Counter { number: u64::from(u32::MAX), stopped: false };
        assert_eq!(counter.next(Position::Inner).unwrap().number, u64::from(u32::MAX));
        assert_eq!(counter.next(Position::Inner).unwrap().number, 1 << 32);

        let mut counter = Counter { number: u64::MAX, stopped: false };
        assert_eq!(counter.next(Position::Inner).unwrap().number, u64::MAX);
        assert!(counter.next(Position::Inner).is_err());
    }

    #[test]
    fn an_empty_chunk_stands_first_or_nowhere() {
        let key = key();
        for (number, fine) in [(0, true), (1, false)] {
            let chunk = Chunk { number, position: Position::Last };
            let mut sealed = vec![0; TAG_LEN];
            chunk.seal(&key, &mut sealed, 0);
            assert_eq!(chunk.open(&key, &mut sealed).is_ok(), fine, "chunk {number}");
        }
    }
}
