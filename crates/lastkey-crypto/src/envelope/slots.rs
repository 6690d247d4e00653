//! Room in the header: two slots for the list of stanzas, so that it can be replaced in place.
//!
//! One slot holds the list, the other is blank. A new list is written into the blank one, synced,
//! and only then is the old one blanked. Whatever interrupts that, one whole list is there: a slot
//! that was only half written fails its checksum, and of two whole ones the newer counts.
//!
//! The checksum is against torn writes, not against people: whoever can write the file can destroy
//! it anyway, and a stanza itself is authenticated by the KMS that opens it.

use super::{
    header::{HeaderError, Patch},
    stanza::Stanzas,
};
use crate::mac::sha256;

/// What a slot's size, and the offset of everything in a header with slots, is a multiple of.
/// Fuzzing, it is small, so that slots fit into a small input.
#[expect(unexpected_cfgs, reason = "set by cargo-fuzz")]
pub(super) const BLOCK_LEN: usize = if cfg!(fuzzing) { 256 } else { 4096 };
/// The largest slot, in blocks: a header stays below 150 KiB.
pub(super) const MAX_BLOCKS: u8 = 16;
const GENERATION_LEN: usize = 8;
const CHECKSUM_LEN: usize = 32;
/// Bytes of a slot beside its list.
const FRAME_LEN: usize = GENERATION_LEN + CHECKSUM_LEN;

/// Which of the two slots holds the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// Where the list of stanzas lies among two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slots {
    /// The size of each.
    blocks: u8,
    side: Side,
    /// Counts up with each replacement; of two whole slots the higher one counts.
    generation: u64,
}

impl Slots {
    /// Slots for a new file with so long a list, with as much room again; nothing if no slot is
    /// large enough.
    pub(super) fn for_list(encoded_len: usize) -> Option<Self> {
        let fits = |len: usize| u8::try_from((FRAME_LEN + len).div_ceil(BLOCK_LEN)).ok();
        let enough = fits(encoded_len).filter(|blocks| *blocks <= MAX_BLOCKS)?;
        let blocks = fits(2 * encoded_len).unwrap_or(MAX_BLOCKS).clamp(enough, MAX_BLOCKS);
        Some(Self { blocks, side: Side::First, generation: 1 })
    }

    /// Finds the list in both slots, of `blocks` blocks each.
    pub(super) fn parse(
        blocks: u8,
        both: &[u8],
        binding: &[u8],
    ) -> Result<(Self, Stanzas), HeaderError> {
        let (first, second) = both.split_at(both.len() / 2);
        let first = read_slot(first, binding).map(|found| (Side::First, found));
        let second = read_slot(second, binding).map(|found| (Side::Second, found));
        let newest = first.into_iter().chain(second).max_by_key(|(_, (generation, _))| *generation);
        let (side, (generation, stanzas)) = newest.ok_or(HeaderError::NoList)?;
        Ok((Self { blocks, side, generation }, stanzas))
    }

    /// Both slots, one of them blank.
    pub(super) fn encode(self, stanzas: &Stanzas, binding: &[u8]) -> Vec<u8> {
        let filled = self.fill(stanzas, binding);
        let blank = vec![0; self.slot_len()];
        match self.side {
            Side::First => [filled, blank].concat(),
            Side::Second => [blank, filled].concat(),
        }
    }

    /// What to write, in this order and each synced before the next, to replace the list; nothing
    /// if it does not fit.
    pub(super) fn replace(&mut self, stanzas: &Stanzas, binding: &[u8]) -> Option<[Patch; 2]> {
        let generation = self.generation.checked_add(1)?;
        if FRAME_LEN + stanzas.encoded_len() > self.slot_len() {
            return None;
        }
        let old = Patch { offset: self.offset(), bytes: vec![0; self.slot_len()] };
        *self = Self { side: self.side.other(), generation, ..*self };
        Some([Patch { offset: self.offset(), bytes: self.fill(stanzas, binding) }, old])
    }

    pub(super) fn blocks(self) -> u8 {
        self.blocks
    }

    fn slot_len(self) -> usize {
        BLOCK_LEN * usize::from(self.blocks)
    }

    fn offset(self) -> u64 {
        let before = if self.side == Side::First { 0 } else { self.slot_len() };
        (BLOCK_LEN + before) as u64
    }

    fn fill(self, stanzas: &Stanzas, binding: &[u8]) -> Vec<u8> {
        let mut slot = Vec::with_capacity(self.slot_len());
        slot.extend_from_slice(&self.generation.to_be_bytes());
        stanzas.encode(&mut slot);
        slot.resize(self.slot_len() - CHECKSUM_LEN, 0);
        let checksum = checksum(&slot, binding);
        slot.extend_from_slice(&checksum);
        slot
    }
}

/// The list in a slot, if there is a whole one.
fn read_slot(slot: &[u8], binding: &[u8]) -> Option<(u64, Stanzas)> {
    let (body, stored) = slot.split_last_chunk::<CHECKSUM_LEN>()?;
    if checksum(body, binding) != *stored {
        return None;
    }
    let (generation, mut list) = body.split_first_chunk::<GENERATION_LEN>()?;
    let generation = u64::from_be_bytes(*generation);
    let stanzas = Stanzas::read(&mut list).ok()?;
    // One list has one form.
    (generation > 0 && list.iter().all(|byte| *byte == 0)).then_some((generation, stanzas))
}

/// Of a slot's content; `binding` is the hash of the fixed header.
fn checksum(body: &[u8], binding: &[u8]) -> [u8; CHECKSUM_LEN] {
    sha256(&[b"lastkey file 2 stanzas", binding, body])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyId, envelope::Stanza};

    #[test]
    fn a_list_may_fill_a_slot_but_for_the_generation_and_the_checksum() {
        let blocks_for = |len| Slots::for_list(len).map(Slots::blocks);
        let most = usize::from(MAX_BLOCKS) * BLOCK_LEN - 8 - 32;
        assert_eq!((blocks_for(most), blocks_for(most + 1)), (Some(MAX_BLOCKS), None));
        // With as much room again.
        let half = (BLOCK_LEN - 8 - 32) / 2;
        assert_eq!((blocks_for(half), blocks_for(half + 1)), (Some(1), Some(2)));
    }

    #[test]
    fn a_slot_has_one_form_and_is_counted_from_one() {
        let stanza = Stanza::new(KeyId::from_bytes([7; 16]), vec![7; 100]).unwrap();
        let stanzas = Stanzas::new(vec![stanza]).unwrap();
        let slots = Slots::for_list(stanzas.encoded_len()).unwrap();
        let binding = [3; 32];
        // With the right checksum behind whatever was changed.
        let read = |generation: u64, at: usize, byte: u8| {
            let mut slot = Slots { generation, ..slots }.fill(&stanzas, &binding);
            let end = slot.len() - CHECKSUM_LEN;
            slot[end - at] = byte;
            let code = checksum(&slot[..end], &binding);
            slot[end..].copy_from_slice(&code);
            read_slot(&slot, &binding).map(|(generation, _)| generation)
        };
        assert_eq!(read(1, 1, 0), Some(1));
        assert_eq!(read(1, 1, 1), None, "something behind the list");
        assert_eq!(read(0, 1, 0), None, "a blank one's generation");
        let whole = slots.fill(&stanzas, &binding);
        assert!(read_slot(&whole, &[4; 32]).is_none(), "of another file");
    }
}
