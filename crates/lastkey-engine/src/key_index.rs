//! The ids of all keys, in order: 16 bytes a key, and any page of them at once.
//!
//! Ids begin with the time, so a new one belongs near the end, where room is made for it without
//! moving much.

use lastkey_crypto::KeyId;

/// A sorted list without duplicates.
#[derive(Default)]
pub(crate) struct KeyIndex(Vec<KeyId>);

impl KeyIndex {
    pub(crate) fn insert(&mut self, id: KeyId) {
        // What a start reads comes in order.
        if self.0.last().is_none_or(|last| *last < id) {
            self.0.push(id);
        } else if let Err(at) = self.0.binary_search(&id) {
            self.0.insert(at, id);
        }
    }

    pub(crate) fn remove(&mut self, id: &KeyId) {
        if let Ok(at) = self.0.binary_search(id) {
            self.0.remove(at);
        }
    }

    pub(crate) fn contains(&self, id: &KeyId) -> bool {
        self.0.binary_search(id).is_ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// In order; skipping any number of them costs nothing.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, KeyId> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_set(changes in prop::collection::vec((any::<bool>(), 0_u8..24), 0..200)) {
            let (mut index, mut model) = (KeyIndex::default(), BTreeSet::new());
            for (add, id) in changes {
                let id = KeyId::from_bytes([id; 16]);
                if add {
                    index.insert(id);
                    model.insert(id);
                } else {
                    index.remove(&id);
                    model.remove(&id);
                }
                prop_assert_eq!(index.contains(&id), add);
            }
            prop_assert_eq!(index.len(), model.len());
            prop_assert!(index.iter().eq(model.iter()));
        }
    }
}
