//! The keyring: the versioned keys that seal records, and what else only the root key opens.

use std::{collections::BTreeMap, sync::Arc};

use lastkey_crypto::{Entropy, KeyMaterial, mac, wrap};
use zeroize::Zeroizing;

use super::BarrierError;
use crate::{
    Timestamp,
    heads::{self, StoreId},
};

/// Where the keyring rests, wrapped under the root key.
pub(crate) const KEYRING_PATH: &str = "meta/keyring";
const PURPOSE: &str = "keyring";
const KEY_BYTES: usize = 32;
/// Releases without heads: `format 1 ‖ (id 4 ‖ key 32)*`.
const OLD_FORMAT: u8 = 1;
const OLD_ENTRY: usize = 4 + KEY_BYTES;
const FORMAT: u8 = 2;
const ENTRY: usize = 4 + 8 + KEY_BYTES;

/// One key of the keyring.
#[derive(Clone)]
pub(super) struct KeyringKey {
    pub(super) material: Arc<KeyMaterial>,
    pub(super) created: Timestamp,
}

impl KeyringKey {
    fn new(entropy: &dyn Entropy, created: Timestamp) -> Self {
        Self { material: Arc::new(KeyMaterial::generate(KEY_BYTES, entropy)), created }
    }
}

/// The id of one history of a store, and a key for one purpose that only its keyring gives.
pub(crate) struct Witness {
    pub(crate) store: StoreId,
    pub(crate) key: KeyMaterial,
}

/// What a store with heads has besides.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) store: StoreId,
    /// The key of the records' codes.
    pub(super) codes: Arc<KeyMaterial>,
}

impl Identity {
    pub(super) fn new(entropy: &dyn Entropy) -> Self {
        let mut store = [0; 16];
        entropy.fill(&mut store);
        Self { store, codes: Arc::new(KeyMaterial::generate(heads::KEY_BYTES, entropy)) }
    }

    pub(super) fn witness(&self, purpose: &str) -> Witness {
        let key = mac::derive(&self.codes, b"", &[purpose.as_bytes()], 32);
        Witness { store: self.store, key }
    }
}

/// The newest key seals, each of them opens.
///
/// Wrapped under the root key (big-endian):
/// ```text
/// 00  1  format 2
/// 01  16 store id
/// 11  32 key of the records' codes
/// 31  …  for each key: id 4 ‖ creation in milliseconds since 1970, 8 ‖ key 32
/// ```
#[derive(Clone)]
pub(super) struct Keyring {
    pub(super) keys: BTreeMap<u32, KeyringKey>,
    /// `None` for a store that never had heads.
    pub(super) identity: Option<Identity>,
}

impl Keyring {
    /// One key, and no heads yet.
    pub(super) fn new(entropy: &dyn Entropy) -> Self {
        let key = KeyringKey::new(entropy, Timestamp::default());
        Self { keys: BTreeMap::from([(1, key)]), identity: None }
    }

    /// Adds a key that seals from now on.
    pub(super) fn add(&mut self, entropy: &dyn Entropy, now: Timestamp) -> Option<u32> {
        let id = self.keys.last_key_value().map_or(0, |(id, _)| *id).checked_add(1)?;
        self.keys.insert(id, KeyringKey::new(entropy, now));
        Some(id)
    }

    pub(super) fn newest(&self) -> Option<(u32, &KeyringKey)> {
        self.keys.last_key_value().map(|(id, key)| (*id, key))
    }

    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let capacity = 1 + 16 + heads::KEY_BYTES + ENTRY * self.keys.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        match &self.identity {
            Some(identity) => {
                bytes.push(FORMAT);
                bytes.extend_from_slice(&identity.store);
                bytes.extend_from_slice(identity.codes.expose());
            }
            None => bytes.push(OLD_FORMAT),
        }
        for (id, key) in &self.keys {
            bytes.extend_from_slice(&id.to_be_bytes());
            if self.identity.is_some() {
                bytes.extend_from_slice(&key.created.as_millis().to_be_bytes());
            }
            bytes.extend_from_slice(key.material.expose());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        let (identity, keys) = match *format {
            OLD_FORMAT => (None, keys::<OLD_ENTRY>(rest)?),
            FORMAT => {
                let (store, rest) = rest.split_first_chunk::<16>()?;
                let (codes, rest) = rest.split_at_checked(heads::KEY_BYTES)?;
                let codes = Arc::new(KeyMaterial::from_slice(codes));
                (Some(Identity { store: *store, codes }), keys::<ENTRY>(rest)?)
            }
            _ => return None,
        };
        Some(Self { keys, identity })
    }

    pub(super) fn wrap(&self, root: &KeyMaterial, entropy: &dyn Entropy) -> Vec<u8> {
        wrap::wrap(root, PURPOSE, &self.encode(), entropy)
    }

    pub(super) fn unwrap(root: &KeyMaterial, stored: &[u8]) -> Result<Self, BarrierError> {
        let opened = wrap::unwrap(root, PURPOSE, stored).map_err(|_| BarrierError::WrongRootKey)?;
        Self::decode(opened.expose()).ok_or(BarrierError::Malformed)
    }
}

/// Entries of `SIZE` bytes, at least one: id, creation if there is room for it, key.
fn keys<const SIZE: usize>(bytes: &[u8]) -> Option<BTreeMap<u32, KeyringKey>> {
    let (entries, rest) = bytes.as_chunks::<SIZE>();
    let keys: BTreeMap<u32, KeyringKey> = entries
        .iter()
        .filter_map(|entry| {
            let (id, rest) = entry.split_first_chunk()?;
            let (created, key) = rest.split_at_checked(SIZE - 4 - KEY_BYTES)?;
            let created = created.try_into().map_or(0, i64::from_be_bytes);
            let material = Arc::new(KeyMaterial::from_slice(key));
            let created = Timestamp::from_millis(created);
            Some((u32::from_be_bytes(*id), KeyringKey { material, created }))
        })
        .collect();
    (rest.is_empty() && !keys.is_empty() && keys.len() == entries.len()).then_some(keys)
}

/// For the golden vectors: reads an unwrapped keyring and writes it again.
#[cfg(test)]
pub(crate) fn again(bytes: &[u8]) -> Option<Vec<u8>> {
    Keyring::decode(bytes).map(|keyring| keyring.encode().to_vec())
}

/// For the fuzz target: reads an unwrapped keyring.
pub(crate) fn parse(bytes: &[u8]) {
    if let Some(keyring) = Keyring::decode(bytes) {
        let again = keyring.encode();
        assert_eq!(again.len(), bytes.len(), "a keyring is as long as it was");
        assert!(Keyring::decode(&again).is_some(), "a keyring that was read can be read again");
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::SystemEntropy;

    use super::*;

    #[test]
    fn keyrings_of_both_formats_come_back() {
        let root = KeyMaterial::from_slice(&[1; 32]);
        let mut keyring = Keyring::new(&SystemEntropy);
        for identity in [None, Some(Identity::new(&SystemEntropy))] {
            keyring.identity = identity;
            keyring.add(&SystemEntropy, Timestamp::from_millis(1_767_225_600_000));
            let stored = keyring.wrap(&root, &SystemEntropy);
            let opened = Keyring::unwrap(&root, &stored).unwrap();
            assert_eq!(*opened.encode(), *keyring.encode());
            let other = KeyMaterial::from_slice(&[2; 32]);
            assert!(matches!(Keyring::unwrap(&other, &stored), Err(BarrierError::WrongRootKey)));
        }
        let bytes = keyring.encode();
        for length in 0..bytes.len() {
            // A whole number of entries fewer is a keyring, too.
            let whole = length > 49 && (length - 49) % ENTRY == 0;
            assert_eq!(Keyring::decode(&bytes[..length]).is_some(), whole, "{length}");
        }
    }
}
