//! Which key each alias names, and which aliases each key has.

use std::collections::{BTreeMap, BTreeSet};

use lastkey_crypto::KeyId;
use lastkey_store::Revision;

use crate::key::AliasName;

/// Which key each alias names, and which aliases each key has.
#[derive(Default)]
pub(super) struct AliasIndex {
    /// With the revision that said so.
    pub(super) by_name: BTreeMap<AliasName, (KeyId, Revision)>,
    pub(super) by_key: BTreeSet<(KeyId, AliasName)>,
}

impl AliasIndex {
    /// Takes in what was read, unless something newer is known.
    pub(super) fn insert(&mut self, name: AliasName, key: KeyId, revision: Revision) {
        if self.by_name.get(&name).is_some_and(|(_, known)| *known > revision) {
            return;
        }
        self.remove(&name);
        self.by_key.insert((key, name.clone()));
        self.by_name.insert(name, (key, revision));
    }

    pub(super) fn remove(&mut self, name: &AliasName) {
        if let Some((key, _)) = self.by_name.remove(name) {
            self.by_key.remove(&(key, name.clone()));
        }
    }

    /// Forgets what was known before a new reading, which did not find it.
    pub(super) fn forget_unless_changed(
        &mut self,
        before: &BTreeMap<AliasName, (KeyId, Revision)>,
    ) {
        for (name, known) in before {
            if self.by_name.get(name) == Some(known) {
                self.remove(name);
            }
        }
    }

    pub(super) fn of(&self, key: KeyId) -> impl Iterator<Item = &AliasName> {
        let first = (key, AliasName::least());
        let rest = self.by_key.range(first..);
        rest.take_while(move |(of, _)| *of == key).map(|(_, name)| name)
    }
}
