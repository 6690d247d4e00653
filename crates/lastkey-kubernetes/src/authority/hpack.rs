//! Walks header blocks (RFC 7541) and replaces the value of an illegal `:authority`.
//!
//! Of the dynamic table only the names' lengths, the sizes, and which names are `:authority` are
//! kept: enough to resolve a name by index, and to evict when the server's own table does.

use std::{collections::VecDeque, ops::Range};

use super::huffman;

const AUTHORITY: &[u8] = b":authority";
/// What a server has that does not ask for another size (RFC 9113 §6.5.2).
const TABLE_SIZE: usize = 4096;
/// What each entry counts beside its name and value (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Where the dynamic table begins in the index space.
const STATIC_ENTRIES: usize = 61;
/// The lengths of the static table's names (RFC 7541 appendix A); the first one is `:authority`.
const STATIC_NAMES: [u8; STATIC_ENTRIES] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// A header block that no decoder would take, or that asks for more than we allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Follows all header blocks of one connection, in order.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Newest first, as they are indexed.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Name,
    size: usize,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    length: usize,
    is_authority: bool,
}

/// A string literal within a block: its bytes as they stand there.
struct Literal {
    huffman: bool,
    range: Range<usize>,
}

impl Tracker {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: TABLE_SIZE }
    }

    /// Follows one complete block, and overwrites what has to be.
    pub(super) fn rewrite(&mut self, block: &mut [u8]) -> Result<(), Malformed> {
        let mut at = 0;
        while let Some(&first) = block.get(at) {
            match first {
                0x80.. => {
                    let index = integer(block, &mut at, 7)?;
                    self.name(index)?;
                }
                0x40..0x80 => self.literal(block, &mut at, 6)?,
                0x20..0x40 => {
                    let limit = integer(block, &mut at, 5)?;
                    self.resize(limit)?;
                }
                // without indexing, and never to be indexed
                0x00..0x20 => self.literal(block, &mut at, 4)?,
            }
        }
        Ok(())
    }

    fn literal(&mut self, block: &mut [u8], at: &mut usize, prefix: u8) -> Result<(), Malformed> {
        let name = match integer(block, at, prefix)? {
            0 => literal_name(block, &string(block, at)?)?,
            index => self.name(index)?,
        };
        let value = string(block, at)?;
        if name.is_authority {
            replace_if_illegal(block, &value)?;
        }
        if prefix == 6 {
            let length = value.decoded_length(block)?;
            self.insert(name, length);
        }
        Ok(())
    }

    fn name(&self, index: usize) -> Result<Name, Malformed> {
        let entry = index.checked_sub(1).ok_or(Malformed)?;
        match STATIC_NAMES.get(entry) {
            Some(&length) => Ok(Name { length: length.into(), is_authority: index == 1 }),
            None => {
                let entry = self.entries.get(entry - STATIC_ENTRIES).ok_or(Malformed)?;
                Ok(entry.name)
            }
        }
    }

    fn insert(&mut self, name: Name, value_length: usize) {
        let size = name.length + value_length + ENTRY_OVERHEAD;
        self.evict(self.limit.saturating_sub(size));
        if size <= self.limit {
            self.size += size;
            self.entries.push_front(Entry { name, size });
        }
    }

    fn resize(&mut self, limit: usize) -> Result<(), Malformed> {
        if limit > TABLE_SIZE {
            return Err(Malformed);
        }
        self.limit = limit;
        self.evict(limit);
        Ok(())
    }

    /// Drops the oldest entries until the rest is at most so large.
    fn evict(&mut self, target: usize) {
        while self.size > target {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size;
        }
    }
}

impl Literal {
    fn bytes<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[self.range.clone()]
    }

    fn decoded_length(&self, block: &[u8]) -> Result<usize, Malformed> {
        match self.huffman {
            true => Ok(self.decode(block)?.len()),
            false => Ok(self.range.len()),
        }
    }

    fn decode(&self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        match self.huffman {
            true => huffman::decode(self.bytes(block)).ok_or(Malformed),
            false => Ok(self.bytes(block).to_vec()),
        }
    }
}

fn literal_name(block: &[u8], literal: &Literal) -> Result<Name, Malformed> {
    let name = literal.decode(block)?;
    Ok(Name { length: name.len(), is_authority: name == AUTHORITY })
}

fn replace_if_illegal(block: &mut [u8], value: &Literal) -> Result<(), Malformed> {
    let decoded = value.decode(block)?;
    if http::uri::Authority::try_from(decoded.as_slice()).is_ok() {
        return Ok(());
    }
    let bytes = &mut block[value.range.clone()];
    match value.huffman {
        true => huffman::overwrite(bytes, &decoded),
        false => bytes.fill(b'a'),
    }
    Ok(())
}

/// An integer with a prefix of so many bits (RFC 7541 §5.1).
fn integer(block: &[u8], at: &mut usize, prefix: u8) -> Result<usize, Malformed> {
    let mut next = || {
        let byte = *block.get(*at).ok_or(Malformed)?;
        *at += 1;
        Ok(usize::from(byte))
    };
    let mask = (1 << prefix) - 1;
    let mut value = next()? & mask;
    if value < mask {
        return Ok(value);
    }
    // 28 bits are more than any block has; h2 stops there, too
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// A string literal (RFC 7541 §5.2).
fn string(block: &[u8], at: &mut usize) -> Result<Literal, Malformed> {
    let huffman = block.get(*at).ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let end = at.checked_add(length).filter(|&end| end <= block.len()).ok_or(Malformed)?;
    let range = *at..end;
    *at = end;
    Ok(Literal { huffman, range })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(block: &[u8]) -> Vec<u8> {
        let mut block = block.to_vec();
        Tracker::new().rewrite(&mut block).unwrap();
        block
    }

    #[test]
    fn a_socket_path_becomes_a_name_of_the_same_length() {
        // literal with incremental indexing, name 1, plain value
        assert_eq!(rewritten(b"\x41\x09/tmp/kms "), b"\x41\x09aaaaaaaaa");
        // the same without indexing, and never indexed
        assert_eq!(rewritten(b"\x01\x04/k.s"), b"\x01\x04aaaa");
        assert_eq!(rewritten(b"\x11\x04/k.s"), b"\x11\x04aaaa");
        // name as a literal
        assert_eq!(rewritten(b"\x00\x0a:authority\x04/k.s"), b"\x00\x0a:authority\x04aaaa");
    }

    #[test]
    fn legal_authorities_and_other_fields_stay() {
        for block in [
            &b"\x41\x09localhost"[..],
            b"\x41\x0b10.0.0.1:80",
            b"\x44\x04/k.s",
            b"\x00\x01a\x04/k.s",
            b"\x41\x00",
            b"\x82\x86\x84",
        ] {
            assert_eq!(rewritten(block), block);
        }
    }

    #[test]
    fn a_name_from_the_dynamic_table_counts() {
        let mut tracker = Tracker::new();
        let mut first = b"\x41\x04/k.s\x40\x01x\x01y".to_vec();
        tracker.rewrite(&mut first).unwrap();
        // 62 is the newest (x), 63 is :authority
        let mut second = b"\x7f\x00\x04/k.s".to_vec();
        tracker.rewrite(&mut second).unwrap();
        assert_eq!(second, b"\x7f\x00\x04aaaa");
    }

    #[test]
    fn entries_leave_when_the_table_is_full() {
        let mut tracker = Tracker::new();
        tracker.rewrite(&mut b"\x40\x01x\x01y".to_vec()).unwrap();
        assert_eq!((tracker.size, tracker.entries.len()), (34, 1));
        // to 34, then the next one evicts, then one too large empties
        tracker.rewrite(&mut b"\x3f\x03\x40\x01x\x01z".to_vec()).unwrap();
        assert_eq!((tracker.size, tracker.entries.len()), (34, 1));
        tracker.rewrite(&mut b"\x40\x02xx\x01z".to_vec()).unwrap();
        assert_eq!((tracker.size, tracker.entries.len()), (0, 0));
        assert!(tracker.rewrite(&mut b"\xbe".to_vec()).is_err());
    }

    #[test]
    fn what_no_decoder_takes_is_malformed() {
        for block in [
            &b"\x80"[..],                    // index 0
            b"\xbe",                         // an empty dynamic table
            b"\x41",                         // no value
            b"\x41\x05abc",                  // cut off
            b"\x3f\xe2\x1f",                 // 4097 > 4096
            b"\xff\xff\xff\xff\xff\xff\xff", // an endless integer
            b"\x41\x81\x00",                 // padding that is not all ones
            b"\x41\x84\xff\xff\xff\xff",     // EOS
        ] {
            let mut block = block.to_vec();
            assert_eq!(Tracker::new().rewrite(&mut block), Err(Malformed), "{block:02x?}");
        }
    }
}
