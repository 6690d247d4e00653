//! Other stanzas in place: whatever interrupts it, the file opens by the old ones or the new.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::key;
use lastkey_crypto::{
    KeyId, SystemEntropy,
    envelope::{
        Header, HeaderError, HeldKey, KeySalt, MAX_STANZAS, MAX_WRAPPED_LEN, Patch, Pipeline, Room,
        Stanza,
    },
};
use proptest::{collection::vec, prelude::*};

const BLOCK: usize = 4096;

fn stanza(seed: u8, len: usize) -> Stanza {
    Stanza::new(KeyId::from_bytes([seed; 16]), vec![seed; len]).unwrap()
}

fn seal(stanzas: Vec<Stanza>, room: Room) -> Vec<u8> {
    let held = HeldKey::new(KeySalt::random(&SystemEntropy), key(1), stanzas).unwrap();
    let mut sealed = Vec::new();
    let file = held.new_file(room, &SystemEntropy);
    Pipeline::new().workers(1).encrypt(file, &b"attack at dawn"[..], &mut sealed).unwrap();
    sealed
}

/// The stanzas, after the payload was seen to open.
fn stanzas_of(file: &[u8]) -> Vec<Stanza> {
    let mut source = file;
    let header = Header::read(&mut source).unwrap();
    let mut out = Vec::new();
    let key = header.open(&key(1)).unwrap();
    Pipeline::new().workers(1).decrypt(&key, source, &mut out).unwrap();
    assert_eq!(out, b"attack at dawn");
    header.stanzas().to_vec()
}

fn apply(file: &mut [u8], patch: &Patch, bytes: usize) {
    let from = usize::try_from(patch.offset).unwrap();
    file[from..from + bytes].copy_from_slice(&patch.bytes[..bytes]);
}

fn patches(file: &[u8], stanzas: &[Stanza]) -> Option<[Patch; 2]> {
    Header::read(&mut &file[..]).unwrap().replace(stanzas.to_vec()).unwrap()
}

#[test]
fn stopped_after_any_byte_the_old_or_the_new_stanzas_are_there() {
    let mut file = seal(vec![stanza(1, 124)], Room::Spare);
    let mut old = vec![stanza(1, 124)];
    // Several times, so that both slots take both parts.
    for round in 2..5 {
        let new = vec![stanza(round, 124), stanza(round + 100, 60)];
        let [first, second] = patches(&file, &new).unwrap();
        for bytes in 0..=first.bytes.len() {
            let mut torn = file.clone();
            apply(&mut torn, &first, bytes);
            let header = Header::read(&mut &torn[..]).unwrap();
            let whole = torn == {
                let mut all = file.clone();
                apply(&mut all, &first, BLOCK);
                all
            };
            assert_eq!(header.stanzas(), if whole { &new[..] } else { &old[..] }, "{bytes}");
        }
        apply(&mut file, &first, BLOCK);
        assert_eq!(stanzas_of(&file), new);
        for bytes in 0..=second.bytes.len() {
            let mut torn = file.clone();
            apply(&mut torn, &second, bytes);
            assert_eq!(Header::read(&mut &torn[..]).unwrap().stanzas(), &new[..], "{bytes}");
        }
        apply(&mut file, &second, BLOCK);
        assert_eq!(stanzas_of(&file), new);
        let gone = old[0].wrapped();
        assert!(!file.windows(gone.len()).any(|bytes| bytes == gone), "the old wrapping is gone");
        old = new;
    }
}

#[test]
fn sectors_in_any_order_leave_the_old_or_the_new_stanzas() {
    let old = vec![stanza(1, 900)];
    let new = vec![stanza(2, 900), stanza(3, 900)];
    let file = seal(old.clone(), Room::Spare);
    let [first, _] = patches(&file, &new).unwrap();
    let from = usize::try_from(first.offset).unwrap();
    for written in 0..256_u32 {
        let mut torn = file.clone();
        for sector in (0..8).filter(|sector| written & (1 << sector) != 0) {
            let at = sector * 512..(sector + 1) * 512;
            torn[from + at.start..from + at.end].copy_from_slice(&first.bytes[at]);
        }
        let found = Header::read(&mut &torn[..]).unwrap();
        assert!(found.stanzas() == old || found.stanzas() == new, "sectors {written:08b}");
    }
}

#[test]
fn an_interrupted_change_can_be_made_again() {
    let old = vec![stanza(1, 124)];
    let new = vec![stanza(2, 124)];
    let mut file = seal(old, Room::Spare);
    let [first, _] = patches(&file, &new).unwrap();
    // Stopped between the steps: both lists are whole.
    apply(&mut file, &first, BLOCK);
    let [first, second] = patches(&file, &[stanza(3, 124)]).unwrap();
    apply(&mut file, &first, BLOCK);
    apply(&mut file, &second, BLOCK);
    assert_eq!(stanzas_of(&file), [stanza(3, 124)]);
    for gone in [1, 2] {
        assert!(!file.windows(124).any(|bytes| bytes == [gone; 124]), "wrapping {gone} is gone");
    }
}

#[test]
fn only_the_header_changes() {
    let file = seal(vec![stanza(1, 124)], Room::Spare);
    for patch in patches(&file, &[stanza(2, 124)]).unwrap() {
        let from = usize::try_from(patch.offset).unwrap();
        assert!(from >= BLOCK && from + patch.bytes.len() <= 3 * BLOCK, "{from}");
        assert!(from.is_multiple_of(BLOCK));
    }
}

#[test]
fn what_does_not_fit_needs_a_copy() {
    let small = seal(vec![stanza(1, 124)], Room::Tight);
    assert!(patches(&small, &[stanza(2, 124)]).is_none());

    let file = seal(vec![stanza(1, 124)], Room::Spare);
    // 4096 bytes less the frame, the count and the stanza's own id and length.
    let most = BLOCK - 40 - 1 - 38;
    assert!(patches(&file, &[stanza(2, most)]).is_some());
    assert!(patches(&file, &[stanza(2, most + 1)]).is_none());

    for room in [Room::Spare, Room::Tight] {
        let stanzas = vec![stanza(2, MAX_WRAPPED_LEN); 3];
        let mut payload = &small[..];
        let header = Header::read(&mut payload).unwrap();
        let header = header.with_stanzas(stanzas.clone(), room).unwrap();
        let copy = [&header.encode()[..], payload].concat();
        assert_eq!(stanzas_of(&copy), stanzas);
        assert_eq!(patches(&copy, &stanzas).is_some(), room == Room::Spare);
    }
}

#[test]
fn no_list_and_too_long_ones_are_refused() {
    let file = seal(vec![stanza(1, 124)], Room::Spare);
    let mut header = Header::read(&mut &file[..]).unwrap();
    for count in [0, MAX_STANZAS + 1] {
        let stanzas = vec![stanza(1, 1); count];
        assert!(matches!(header.replace(stanzas.clone()), Err(HeaderError::StanzaCount)));
        let copied = header.clone().with_stanzas(stanzas, Room::Spare);
        assert!(matches!(copied, Err(HeaderError::StanzaCount)));
    }
}

#[test]
fn no_bit_of_a_slot_can_change_alone() {
    let file = seal(vec![stanza(1, 124)], Room::Spare);
    for byte in BLOCK..2 * BLOCK {
        let mut changed = file.clone();
        changed[byte] ^= 1 << (byte % 8);
        let found = Header::read(&mut &changed[..]);
        assert!(matches!(found, Err(HeaderError::NoList)), "byte {byte}");
    }
    // The other slot is not in use.
    for byte in (2 * BLOCK..3 * BLOCK).step_by(7) {
        let mut changed = file.clone();
        changed[byte] ^= 1 << (byte % 8);
        assert_eq!(stanzas_of(&changed), [stanza(1, 124)]);
    }
    for byte in 109..BLOCK {
        let mut changed = file.clone();
        changed[byte] ^= 1 << (byte % 8);
        assert!(matches!(Header::read(&mut &changed[..]), Err(HeaderError::Damaged)), "{byte}");
    }
}

#[test]
fn a_slot_of_another_file_does_not_count() {
    let mut file = seal(vec![stanza(1, 124)], Room::Spare);
    let other = seal(vec![stanza(2, 124)], Room::Spare);
    file[BLOCK..3 * BLOCK].copy_from_slice(&other[BLOCK..3 * BLOCK]);
    assert!(matches!(Header::read(&mut &file[..]), Err(HeaderError::NoList)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequence_of_lists_ends_with_the_last_that_fits(
        lists in vec(vec((any::<u8>(), 1_usize..1500), 1..6), 1..8),
    ) {
        let lists: Vec<Vec<Stanza>> = lists
            .into_iter()
            .map(|list| list.into_iter().map(|(seed, len)| stanza(seed, len)).collect())
            .collect();
        let mut file = seal(lists[0].clone(), Room::Spare);
        let mut expected = lists[0].clone();
        for list in lists {
            if let Some([first, second]) = patches(&file, &list) {
                apply(&mut file, &first, first.bytes.len());
                apply(&mut file, &second, second.bytes.len());
                expected = list;
            }
            prop_assert_eq!(stanzas_of(&file), expected.clone());
        }
    }
}
