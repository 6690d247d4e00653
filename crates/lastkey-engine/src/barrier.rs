//! The barrier: nothing reaches the store but through here, and nothing leaves it unopened.
//!
//! Every record is sealed by a keyring key, with its path and a counter of its own as associated
//! data, so that a record moved to another path, or given another counter, does not open. The
//! keyring itself is stored wrapped under the root key, which the seal keeps.

use std::{collections::BTreeMap, sync::Arc};

use lastkey_crypto::{
    Entropy, KeyMaterial, SecretBytes,
    record::{self, SealedRecord},
    wrap,
};
use lastkey_store::{Entry, Revision, Store, Transaction};
use parking_lot::RwLock;
use serde::{Serialize, de::DeserializeOwned};

use crate::Error;

const KEYRING_PATH: &str = "meta/keyring";
const KEYRING_PURPOSE: &str = "keyring";
const KEYRING_FORMAT: u8 = 1;
const KEYRING_KEY_BYTES: usize = 32;

/// Why the barrier did not open.
#[derive(Debug, thiserror::Error)]
pub enum BarrierError {
    /// The root key is not the one this store was made with.
    #[error("the root key does not open this store: it belongs to another one, or was replaced")]
    WrongRootKey,
    /// The keyring record is damaged.
    #[error("the store's keyring is damaged; restore the store from a backup")]
    Malformed,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] lastkey_store::StoreError),
    /// The store refused the first write.
    #[error(transparent)]
    Commit(#[from] lastkey_store::CommitError),
}

/// The versioned keys that seal records. The newest seals, each of them opens.
struct Keyring {
    keys: BTreeMap<u32, Arc<KeyMaterial>>,
}

impl Keyring {
    fn new(entropy: &dyn Entropy) -> Self {
        let key = Arc::new(KeyMaterial::generate(KEYRING_KEY_BYTES, entropy));
        Self { keys: BTreeMap::from([(1, key)]) }
    }

    /// `format 1 ‖ (id 4 bytes ‖ key 32 bytes)*`, big-endian.
    fn encode(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(1 + 36 * self.keys.len()));
        bytes.push(KEYRING_FORMAT);
        for (id, key) in &self.keys {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(key.expose());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let entries = bytes.strip_prefix(&[KEYRING_FORMAT])?;
        let (chunks, rest) = entries.as_chunks::<{ 4 + KEYRING_KEY_BYTES }>();
        if chunks.is_empty() || !rest.is_empty() {
            return None;
        }
        let keys = chunks
            .iter()
            .map(|chunk| {
                let (id, key) = chunk.split_at(4);
                let id = u32::from_be_bytes(id.try_into().unwrap_or_default());
                (id, Arc::new(KeyMaterial::from_slice(key)))
            })
            .collect();
        Some(Self { keys })
    }

    fn newest(&self) -> Option<(u32, Arc<KeyMaterial>)> {
        self.keys.last_key_value().map(|(id, key)| (*id, Arc::clone(key)))
    }
}

/// A record as it was read: its value, and what a change of it must expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    /// Counts the writes of this path.
    pub(crate) counter: u64,
    /// The store's revision of the last write.
    pub(crate) revision: Revision,
}

/// What a write expects of the path's present state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    Absent,
    Unchanged { revision: Revision, counter: u64 },
}

impl<T> Stored<T> {
    pub(crate) fn expect(&self) -> Expect {
        Expect::Unchanged { revision: self.revision, counter: self.counter }
    }
}

/// Seals what goes into the store, opens what comes out.
pub(crate) struct Barrier {
    store: Arc<dyn Store>,
    keyring: RwLock<Keyring>,
    entropy: Arc<dyn Entropy>,
}

impl Barrier {
    /// Whether the store has ever been used.
    pub(crate) async fn is_initialised(store: &dyn Store) -> Result<bool, BarrierError> {
        Ok(store.get(KEYRING_PATH).await?.is_some())
    }

    /// Opens the store's keyring with the root key; a new store gets a new keyring.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        root: &KeyMaterial,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, BarrierError> {
        let keyring = match store.get(KEYRING_PATH).await? {
            Some(entry) => {
                let opened = wrap::unwrap(root, KEYRING_PURPOSE, &entry.value)
                    .map_err(|_| BarrierError::WrongRootKey)?;
                Keyring::decode(opened.expose()).ok_or(BarrierError::Malformed)?
            }
            None => {
                let keyring = Keyring::new(&*entropy);
                let wrapped = wrap::wrap(root, KEYRING_PURPOSE, &keyring.encode(), &*entropy);
                let first =
                    Transaction::new().expect_absent(KEYRING_PATH).put(KEYRING_PATH, wrapped);
                store.commit(first).await?;
                keyring
            }
        };
        Ok(Self { store, keyring: RwLock::new(keyring), entropy })
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Reads and opens one record.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<Stored<SecretBytes>>, Error> {
        match self.store.get(path).await? {
            Some(entry) => self.open_entry(&entry).map(Some),
            None => Ok(None),
        }
    }

    /// Reads, opens and parses one JSON record.
    pub(crate) async fn read_json<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<Stored<T>>, Error> {
        self.read(path).await?.map(|stored| parse_json(path, &stored)).transpose()
    }

    /// Opens a record that was read otherwise.
    pub(crate) fn open_entry(&self, entry: &Entry) -> Result<Stored<SecretBytes>, Error> {
        let corrupt = || Error::CorruptRecord { path: entry.path.clone() };
        let sealed = SealedRecord::parse(&entry.value).map_err(|_| corrupt())?;
        let key = self.keyring.read().keys.get(&sealed.keyring_key()).cloned();
        let key = key.ok_or_else(corrupt)?;
        let value = sealed.open(&key, &entry.path).map_err(|_| corrupt())?;
        Ok(Stored { value, counter: sealed.counter(), revision: entry.revision })
    }

    /// Opens and parses a JSON record that was read otherwise.
    pub(crate) fn open_json<T: DeserializeOwned>(&self, entry: &Entry) -> Result<Stored<T>, Error> {
        parse_json(&entry.path, &self.open_entry(entry)?)
    }

    /// Adds a sealed write to a transaction, and what it expects.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub(crate) fn put(
        &self,
        transaction: Transaction,
        path: &str,
        value: &[u8],
        expect: Expect,
    ) -> Result<Transaction, Error> {
        let (transaction, counter) = match expect {
            Expect::Absent => (transaction.expect_absent(path), 1),
            Expect::Unchanged { revision, counter } => {
                (transaction.expect_revision(path, revision), counter + 1)
            }
        };
        let sealed = self.seal(path, counter, value)?;
        Ok(transaction.put(path, sealed))
    }

    /// Seals a value for a path that only one writer ever writes, with a counter it keeps.
    pub(crate) fn seal(&self, path: &str, counter: u64, value: &[u8]) -> Result<Vec<u8>, Error> {
        let (id, key) = self.keyring.read().newest().ok_or(Error::Internal)?;
        Ok(record::seal(id, &key, path, counter, value, &*self.entropy))
    }
}

fn parse_json<T: DeserializeOwned>(
    path: &str,
    stored: &Stored<SecretBytes>,
) -> Result<Stored<T>, Error> {
    let value = serde_json::from_slice(stored.value.expose())
        .map_err(|_| Error::CorruptRecord { path: path.to_owned() })?;
    Ok(Stored { value, counter: stored.counter, revision: stored.revision })
}

/// The JSON of a record.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    serde_json::to_vec(value).map(zeroize::Zeroizing::new).map_err(|_| Error::Internal)
}
