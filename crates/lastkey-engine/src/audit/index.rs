//! What lies where in a compressed segment, so that a search opens only what can hold an answer.
//!
//! Derived data, in `segment-<first>.idx` beside the segment: it is made anew where it is missing
//! or damaged, and never looked at by a verification. A keyed code keeps somebody who can write to
//! the disk from hiding records from searches with it.
//!
//! ```text
//! 00  4c 4b 41 49  magic "LKAI"
//! 04  01           format version
//! 05  8            length of the segment's file
//! 0d  2            count of principals; ff ff: too many to list
//!     2 ‖ …        each principal: its length, its text
//!     4            count of blocks
//!     each block:
//!     8 offset ‖ 4 length ‖ 4 length of its lines      where its frame is
//!     8 first ‖ 8 last                                 sequence numbers
//!     8 earliest ‖ 8 latest                            times, in milliseconds since 1970
//!     2 ‖ …                                            filter: its length, its bits
//! -20 HMAC-SHA256("lastkey audit index" ‖ first record 8 ‖ all before)
//! ```
//! Integers are big-endian. A filter is a Bloom filter over actions, keys, principals, outcomes
//! and names in encryption contexts: it may say yes wrongly, never no.

use std::{borrow::Cow, collections::HashSet};

use lastkey_crypto::{KeyMaterial, mac};
use serde::Deserialize;

use super::segment;
use crate::Timestamp;

const MAGIC: &[u8; 4] = b"LKAI";
const VERSION: u8 = 1;
const LABEL: &[u8] = b"lastkey audit index";
const CODE_BYTES: usize = 32;
/// More different principals than this are not listed.
const MAX_PRINCIPALS: usize = 1024;
const TOO_MANY: u16 = u16::MAX;
/// Bits of a filter for each thing in it: one in a hundred is found wrongly.
const BITS_EACH: usize = 10;
const MAX_FILTER: usize = 8192;
/// Bits set for each thing.
const PROBES: u64 = 5;
/// The most lines, in bytes, that one block may have.
pub(super) const MAX_BLOCK: usize = 8 << 20;

/// The name of a segment's index.
pub(super) fn name(first: u64) -> String {
    format!("segment-{first:020}.idx")
}

/// What a record is searched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Action,
    Key,
    Principal,
    Outcome,
    Context,
}

/// One frame of a compressed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) offset: u64,
    pub(super) length: u32,
    /// How long its lines are.
    pub(super) raw: u32,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) earliest: i64,
    pub(super) latest: i64,
    filter: Vec<u8>,
}

/// A segment's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// The length of the file that it is about.
    pub(super) file: u64,
    /// All principals; `None` if they are too many.
    pub(super) principals: Option<Vec<String>>,
    pub(super) blocks: Vec<Block>,
}

/// The parts of a record that are searched by.
#[derive(Debug, Deserialize)]
pub(super) struct Fields<'a> {
    #[serde(borrow, default)]
    pub(super) time: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) action: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) principal: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) key: Cow<'a, str>,
    /// Where a command changed several.
    #[serde(borrow, default)]
    pub(super) changed_keys: Vec<Cow<'a, str>>,
    /// What a re-encryption opened with. No filter holds it: re-encryptions have an action.
    #[serde(borrow, default)]
    pub(super) source_key: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) outcome: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) context: Vec<Cow<'a, str>>,
}

impl Fields<'_> {
    pub(super) fn millis(&self) -> Option<i64> {
        Timestamp::parse(&self.time).ok().map(Timestamp::as_millis)
    }
}

/// What a thing is in a filter: FNV-1a, and a finish that spreads it over all bits.
fn print(field: Field, text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in [field as u8].into_iter().chain(text.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The bits of a thing in a filter of so many.
fn bits(print: u64, count: u64) -> impl Iterator<Item = usize> {
    let (start, step) = (print, (print >> 32) | 1);
    (0..PROBES).map(move |n| {
        usize::try_from(start.wrapping_add(n.wrapping_mul(step)) % count).unwrap_or(0)
    })
}

impl Block {
    /// Whether it may hold a record with this; actions in lower case.
    pub(super) fn may_hold(&self, field: Field, text: &str) -> bool {
        let count = self.filter.len() as u64 * 8;
        count == 0
            || bits(print(field, text), count)
                .all(|bit| self.filter[bit / 8] & (1 << (bit % 8)) != 0)
    }
}

/// Gathers an index while a segment is compressed.
pub(super) struct Builder {
    blocks: Vec<Block>,
    principals: HashSet<String>,
    offset: u64,
    current: Option<Current>,
}

struct Current {
    first: u64,
    last: u64,
    earliest: i64,
    latest: i64,
    things: HashSet<u64>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { blocks: Vec::new(), principals: HashSet::new(), offset: 0, current: None }
    }

    /// Takes a line into the current block. What is no record is no answer to any search.
    pub(super) fn line(&mut self, line: &[u8]) {
        let Some(link) = segment::link(line) else { return };
        let Ok(fields) = serde_json::from_slice::<Fields<'_>>(line) else { return };
        let current = self.current.get_or_insert_with(|| Current {
            first: link.seq,
            last: link.seq,
            earliest: i64::MAX,
            latest: i64::MIN,
            things: HashSet::new(),
        });
        current.first = current.first.min(link.seq);
        current.last = current.last.max(link.seq);
        if let Some(time) = fields.millis() {
            current.earliest = current.earliest.min(time);
            current.latest = current.latest.max(time);
        }
        let mut add = |field, text: &str| current.things.insert(print(field, text));
        add(Field::Action, &fields.action.to_lowercase());
        add(Field::Key, &fields.key);
        for key in &fields.changed_keys {
            add(Field::Key, key);
        }
        add(Field::Principal, &fields.principal);
        add(Field::Outcome, &fields.outcome);
        for name in &fields.context {
            add(Field::Context, name);
        }
        if self.principals.len() <= MAX_PRINCIPALS && !self.principals.contains(&*fields.principal)
        {
            self.principals.insert(fields.principal.into_owned());
        }
    }

    /// Ends the current block: its lines became a frame of this length.
    pub(super) fn block(&mut self, raw: usize, frame: usize) {
        let offset = self.offset;
        self.offset += frame as u64;
        let Some(current) = self.current.take() else { return };
        let wanted = (current.things.len() * BITS_EACH).div_ceil(8).clamp(8, MAX_FILTER);
        let mut filter = vec![0; wanted];
        for thing in current.things {
            for bit in bits(thing, wanted as u64 * 8) {
                filter[bit / 8] |= 1 << (bit % 8);
            }
        }
        self.blocks.push(Block {
            offset,
            length: u32::try_from(frame).unwrap_or(u32::MAX),
            raw: u32::try_from(raw).unwrap_or(u32::MAX),
            first: current.first,
            last: current.last,
            earliest: current.earliest,
            latest: current.latest,
            filter,
        });
    }

    /// The index of what was taken in.
    pub(super) fn finish(self) -> Index {
        let mut principals: Vec<String> = self.principals.into_iter().collect();
        principals.sort_unstable();
        let listed = principals.len() <= MAX_PRINCIPALS
            && principals.iter().all(|text| text.len() < usize::from(TOO_MANY));
        Index { file: self.offset, principals: listed.then_some(principals), blocks: self.blocks }
    }
}

impl Index {
    /// As bytes, with their code.
    pub(super) fn encode(&self, first: u64, key: &KeyMaterial) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.blocks.len() * 128);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.file.to_be_bytes());
        match &self.principals {
            None => out.extend_from_slice(&TOO_MANY.to_be_bytes()),
            Some(all) => {
                put_u16(&mut out, all.len());
                for text in all {
                    put_u16(&mut out, text.len());
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
        out.extend_from_slice(&u32::try_from(self.blocks.len()).unwrap_or(0).to_be_bytes());
        for block in &self.blocks {
            out.extend_from_slice(&block.offset.to_be_bytes());
            out.extend_from_slice(&block.length.to_be_bytes());
            out.extend_from_slice(&block.raw.to_be_bytes());
            out.extend_from_slice(&block.first.to_be_bytes());
            out.extend_from_slice(&block.last.to_be_bytes());
            out.extend_from_slice(&block.earliest.to_be_bytes());
            out.extend_from_slice(&block.latest.to_be_bytes());
            put_u16(&mut out, block.filter.len());
            out.extend_from_slice(&block.filter);
        }
        let code = code(first, key, &out);
        out.extend_from_slice(&code);
        out
    }

    /// Reads what [`encode`](Self::encode) wrote for this segment under this key.
    pub(super) fn decode(first: u64, key: &KeyMaterial, bytes: &[u8]) -> Option<Self> {
        let (bytes, found) = bytes.split_at_checked(bytes.len().checked_sub(CODE_BYTES)?)?;
        mac::equal(&code(first, key, bytes), found).then(|| Self::parse(bytes))?
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        if input.take(4)? != MAGIC || input.take(1)? != [VERSION] {
            return None;
        }
        let file = input.u64()?;
        let principals = match input.u16()? {
            TOO_MANY => None,
            count => {
                let text = |input: &mut Input<'_>| {
                    let length = input.u16()?.into();
                    String::from_utf8(input.take(length)?.to_vec()).ok()
                };
                Some((0..count).map(|_| text(&mut input)).collect::<Option<_>>()?)
            }
        };
        let count = input.u32()?;
        let blocks = (0..count).map(|_| input.block(file)).collect::<Option<_>>()?;
        input.0.is_empty().then_some(Self { file, principals, blocks })
    }
}

fn code(first: u64, key: &KeyMaterial, bytes: &[u8]) -> [u8; CODE_BYTES] {
    mac::hmac_sha256(key.expose(), &[LABEL, &first.to_be_bytes(), bytes])
}

fn put_u16(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes());
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// A block that lies in a file of this length.
    fn block(&mut self, file: u64) -> Option<Block> {
        let (offset, length, raw) = (self.u64()?, self.u32()?, self.u32()?);
        let (first, last) = (self.u64()?, self.u64()?);
        let (earliest, latest) = (self.i64()?, self.i64()?);
        let filter = self.u16()?.into();
        let filter = self.take(filter)?.to_vec();
        let ends = offset.checked_add(length.into())?;
        let fits = ends <= file && raw as usize <= MAX_BLOCK;
        fits.then_some(Block { offset, length, raw, first, last, earliest, latest, filter })
    }
}

/// For the fuzz target: reads an index whose code is right.
pub(crate) fn parse_signed(bytes: &[u8]) {
    if let Some(index) = Index::parse(bytes) {
        let key = KeyMaterial::from_slice(&[0; 32]);
        let written = index.encode(1, &key);
        assert_eq!(Index::decode(1, &key, &written).as_ref(), Some(&index));
        assert_eq!(Index::decode(2, &key, &written), None);
        for block in &index.blocks {
            let _ = block.may_hold(Field::Key, "a key");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, principal: &str, context: &str) -> Vec<u8> {
        let body = format!(
            r#""time":"2026-01-01T00:00:{:02}.000Z","action":"Encrypt","principal":"{principal}","key":"k{seq}","context":["{context}"],"outcome":"ok""#,
            seq % 60
        );
        let mut out = Vec::new();
        segment::write_line(&mut out, seq, &[0; 32], body.as_bytes());
        out.pop();
        out
    }

    fn index() -> Index {
        let mut builder = Builder::new();
        for seq in 1..=30 {
            builder.line(&line(seq, &format!("plugin/{}", seq % 3), "tenant"));
            if seq % 10 == 0 {
                builder.block(1000, 100);
            }
        }
        builder.finish()
    }

    #[test]
    fn a_block_that_holds_a_record_never_denies_it() {
        let index = index();
        assert_eq!(index.blocks.len(), 3);
        for seq in 1..=30_u64 {
            let block = &index.blocks[usize::try_from((seq - 1) / 10).unwrap()];
            assert!(block.first <= seq && seq <= block.last);
            assert!(block.may_hold(Field::Key, &format!("k{seq}")));
            assert!(block.may_hold(Field::Action, "encrypt"));
            assert!(block.may_hold(Field::Context, "tenant"));
        }
        let wrongly =
            (100..1100).filter(|n| index.blocks[0].may_hold(Field::Key, &format!("k{n}"))).count();
        assert!(wrongly < 50, "{wrongly} of 1000");
        assert_eq!(index.principals.as_deref().unwrap(), ["plugin/0", "plugin/1", "plugin/2"]);
        assert_eq!((index.blocks[1].offset, index.file), (100, 300));
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let (index, key) = (index(), KeyMaterial::from_slice(&[3; 32]));
        let bytes = index.encode(7, &key);
        assert_eq!(Index::decode(7, &key, &bytes).as_ref(), Some(&index));
        assert_eq!(Index::decode(8, &key, &bytes), None);
        assert_eq!(Index::decode(7, &KeyMaterial::from_slice(&[4; 32]), &bytes), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Index::decode(7, &key, &changed), None, "byte {at}");
        }
        assert_eq!(Index::decode(7, &key, &bytes[..bytes.len() - 1]), None);
        assert_eq!(Index::decode(7, &key, &[]), None);
    }

    /// Segments are kept for years: what was written with these bits is read with these bits.
    /// Computed by a script from the algorithm's description.
    #[test]
    fn the_bits_of_a_thing_stay_the_same() {
        let golden = [
            (Field::Action, "encrypt", 0xf057_c892_d18c_8943, [3, 22, 41, 60, 15]),
            (Field::Key, "0193-key", 0xac53_94b6_3759_56fd, [61, 52, 43, 34, 25]),
            (Field::Principal, "plugin/node", 0xa3c7_6f76_dfe9_bdcc, [12, 3, 58, 49, 40]),
            (Field::Outcome, "ok", 0xc5cd_8a3c_1ca7_36ee, [46, 43, 40, 37, 34]),
            (Field::Context, "tenant", 0x87e4_89a3_4527_6187, [7, 42, 13, 48, 19]),
        ];
        for (field, text, expected, of_64) in golden {
            assert_eq!(print(field, text), expected, "{field:?}");
            assert_eq!(bits(expected, 64).collect::<Vec<_>>(), of_64, "{field:?}");
        }
    }

    #[test]
    fn a_block_outside_of_its_file_or_too_large_is_refused() {
        let index = index();
        let key = KeyMaterial::from_slice(&[3; 32]);
        let read = |index: &Index| Index::decode(7, &key, &index.encode(7, &key));
        let mut short = index.clone();
        short.file -= 1;
        assert_eq!(read(&short), None);
        let mut large = index;
        large.blocks[1].raw = u32::try_from(MAX_BLOCK).unwrap();
        assert_eq!(read(&large), Some(large.clone()));
        large.blocks[1].raw += 1;
        assert_eq!(read(&large), None);
    }

    #[test]
    fn very_many_principals_are_not_listed() {
        let mut builder = Builder::new();
        for seq in 1..=2000 {
            builder.line(&line(seq, &format!("role/{seq}"), "c"));
        }
        builder.block(1, 1);
        let index = builder.finish();
        assert_eq!(index.principals, None);
        let key = KeyMaterial::from_slice(&[3; 32]);
        assert_eq!(Index::decode(1, &key, &index.encode(1, &key)), Some(index));
    }
}
