//! The barrier: nothing reaches the store but through here, and nothing leaves it unopened.
//!
//! Every record is sealed by a keyring key, with its path and a counter of its own as associated
//! data, so that a record moved to another path, or given another counter, does not open. That
//! none is put back in an older version is what [`heads`](crate::heads) are for: they are written with
//! each commit ([`batch`]), and compared with all records when the store is opened ([`check`]). The
//! keyring itself is stored wrapped under the root key, which the seal keeps ([`keyring`]).

mod batch;
mod check;
mod keyring;
mod rotation;

use std::sync::{Arc, OnceLock, atomic::AtomicU64};

use lastkey_crypto::{
    Entropy, KeyMaterial, SecretBytes,
    record::{self, SealedRecord},
};
use lastkey_store::{CommitError, Entry, Revision, Store, Transaction};
use parking_lot::RwLock;
use serde::{Serialize, de::DeserializeOwned};

#[cfg(test)]
pub(crate) use self::keyring::again as keyring_again;
use self::{
    batch::Pipeline,
    keyring::{Identity, Keyring},
};
pub(crate) use self::{
    batch::{Batch, Written},
    check::Inspection,
    keyring::{KEYRING_PATH, Witness, parse as parse_keyring},
    rotation::{MAX_AGE, MAX_USES, NextKeyring, Round, Step},
};
use crate::{
    Error, audit,
    heads::{Counts, Sum},
    uses::{Counted, Uses},
};

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
    /// The store cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// A record as it was read: its value, and what a change of it must expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    /// Counts the writes of this path.
    pub(crate) counter: u64,
    /// The store's revision of the last write.
    pub(crate) revision: Revision,
    /// What the record adds to its shard's sum.
    pub(crate) code: Sum,
}

/// What a write expects of the path's present state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    Absent,
    Unchanged { revision: Revision, counter: u64, code: Sum },
}

impl<T> Stored<T> {
    pub(crate) fn expect(&self) -> Expect {
        Expect::Unchanged { revision: self.revision, counter: self.counter, code: self.code }
    }
}

/// Whether what is sealed has to be counted ahead, in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seals {
    /// As everything but the counting.
    #[default]
    Counted,
    /// The count itself: it is needed most when nothing is left of what was counted ahead. What
    /// fails is counted in memory, and in the store as soon as one is made. A crash before that
    /// forgets a few seals for each attempt, four attempts a second: in a year of a full disk,
    /// still less than the keyring's bound leaves to that of its nonces.
    Uncounted,
}

/// Seals what goes into the store, opens what comes out.
pub(crate) struct Barrier {
    store: Arc<dyn Store>,
    keyring: RwLock<Keyring>,
    /// The revision that stored it, once another than the first was.
    keyring_turned: AtomicU64,
    /// Counts what the newest keyring key seals.
    keyring_uses: RwLock<Arc<Uses>>,
    /// Under which the keyring rests.
    root: RwLock<Arc<KeyMaterial>>,
    entropy: Arc<dyn Entropy>,
    /// Set once the heads were checked, or made.
    pipeline: OnceLock<Pipeline>,
    /// Why the store cannot be trusted any more, once it cannot.
    distrust: OnceLock<String>,
}

/// The keyring under another root key, for a transaction that puts it in place.
pub(crate) struct Rewrapped {
    /// What the store has to hold still.
    pub(crate) revision: Revision,
    pub(crate) wrapped: Vec<u8>,
}

impl Barrier {
    /// Whether the store has ever been used.
    pub(crate) async fn is_initialised(store: &dyn Store) -> Result<bool, BarrierError> {
        Ok(store.get(KEYRING_PATH).await?.is_some())
    }

    /// Gives a new store its keyring, together with what else belongs to its first transaction.
    pub(crate) async fn create(
        store: &dyn Store,
        root: &KeyMaterial,
        entropy: &dyn Entropy,
        also: Transaction,
    ) -> Result<(), BarrierError> {
        let wrapped = Keyring::new(entropy).wrap(root, entropy);
        store.commit(also.expect_absent(KEYRING_PATH).put(KEYRING_PATH, wrapped)).await?;
        Ok(())
    }

    /// Opens the store's keyring with the root key. Records can be read then; before anything can
    /// be written, the heads have to be checked or made ([`check`]).
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        root: Arc<KeyMaterial>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, BarrierError> {
        let entry = store.get(KEYRING_PATH).await?.ok_or(BarrierError::Malformed)?;
        let keyring = Keyring::unwrap(&root, &entry.value)?;
        Ok(Self {
            store,
            keyring: RwLock::new(keyring),
            // Not counted until it is known what was before.
            keyring_turned: AtomicU64::new(0),
            keyring_uses: RwLock::new(Arc::new(Uses::in_large_blocks(0, u64::MAX / 2))),
            root: RwLock::new(root),
            entropy,
            pipeline: OnceLock::new(),
            distrust: OnceLock::new(),
        })
    }

    /// The root key under which the keyring rests.
    pub(crate) fn root(&self) -> Arc<KeyMaterial> {
        Arc::clone(&self.root.read())
    }

    /// The keyring as it rests now, wrapped under `root` instead.
    pub(crate) async fn rewrap(&self, root: &KeyMaterial) -> Result<Rewrapped, Error> {
        let corrupt = || Error::CorruptRecord { path: KEYRING_PATH.to_owned() };
        let entry = self.store.get(KEYRING_PATH).await?.ok_or_else(corrupt)?;
        let keyring = Keyring::unwrap(&self.root(), &entry.value).map_err(|_| corrupt())?;
        let wrapped = keyring.wrap(root, &*self.entropy);
        Ok(Rewrapped { revision: entry.revision, wrapped })
    }

    /// Goes on with `root`, under which the keyring rests from now on.
    pub(crate) fn adopt_root(&self, root: Arc<KeyMaterial>) {
        *self.root.write() = root;
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Why nothing may be served from this store any more, if so.
    pub(crate) fn trust(&self) -> Result<(), Error> {
        match self.distrust.get() {
            Some(what) => Err(Error::StoreRolledBack(what.clone())),
            None => Ok(()),
        }
    }

    /// Stops serving from this store.
    fn distrust(&self, what: String) -> CommitError {
        tracing::error!(what, "the store was changed by somebody else");
        CommitError::Corrupt(self.distrust.get_or_init(|| what).clone())
    }

    fn pipeline(&self) -> Result<&Pipeline, CommitError> {
        if let Some(what) = self.distrust.get() {
            return Err(CommitError::Corrupt(what.clone()));
        }
        self.pipeline.get().ok_or(CommitError::Closed)
    }

    /// For each shard, a sequence that is durable in the store.
    pub(crate) fn committed(&self) -> Option<Counts> {
        self.pipeline.get().map(Pipeline::committed)
    }

    /// Where the log ends, as the store remembers it.
    pub(crate) fn remembered(&self) -> Option<audit::Head> {
        self.pipeline.get().map(Pipeline::remembered)
    }

    fn identity(&self) -> Option<Identity> {
        self.keyring.read().identity.clone()
    }

    /// What proves to belong to this history of the store.
    pub(crate) fn witness(&self, purpose: &str) -> Option<Witness> {
        self.identity().map(|identity| identity.witness(purpose))
    }

    /// What a record adds to its shard's sum. Nothing has a code before the store has heads; what
    /// was read then must not be changed on the strength of it.
    fn code(&self, path: &str, stored: &[u8]) -> Result<Sum, Error> {
        let codes =
            self.keyring.read().identity.as_ref().map(|identity| Arc::clone(&identity.codes));
        Ok(codes.map_or_else(Sum::default, |codes| Sum::of(&codes, path, stored)))
    }

    /// Whether that keyring key seals now.
    fn seals_with(&self, keyring_key: u32) -> bool {
        self.keyring.read().newest().is_some_and(|(id, _)| id == keyring_key)
    }

    /// Reads what is stored in clear, and what a change of it has to expect.
    pub(crate) async fn read_clear(&self, path: &str) -> Result<Option<(Revision, Sum)>, Error> {
        let Some(entry) = self.store.get(path).await? else { return Ok(None) };
        Ok(Some((entry.revision, self.code(path, &entry.value)?)))
    }

    /// Reads and opens one record.
    pub(crate) async fn read(&self, path: &str) -> Result<Option<Stored<SecretBytes>>, Error> {
        self.trust()?;
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
        let (counter, value) = self.open_stored(&entry.path, &entry.value)?;
        let code = self.code(&entry.path, &entry.value)?;
        Ok(Stored { value, counter, revision: entry.revision, code })
    }

    /// Opens what is stored at the path: its counter and its value.
    fn open_stored(&self, path: &str, stored: &[u8]) -> Result<(u64, SecretBytes), Error> {
        let corrupt = || Error::CorruptRecord { path: path.to_owned() };
        let sealed = SealedRecord::parse(stored).map_err(|_| corrupt())?;
        let id = sealed.keyring_key();
        let key = self.keyring.read().keys.get(&id).map(|key| Arc::clone(&key.material));
        let value = sealed.open(&*key.ok_or_else(corrupt)?, path).map_err(|_| corrupt())?;
        Ok((sealed.counter(), value))
    }

    /// Opens and parses a JSON record that was read otherwise.
    pub(crate) fn open_json<T: DeserializeOwned>(&self, entry: &Entry) -> Result<Stored<T>, Error> {
        parse_json(&entry.path, &self.open_entry(entry)?)
    }

    /// Seals a value for a path under the newest keyring key, whose id comes with it.
    fn seal(
        &self,
        seals: Seals,
        (path, counter): (&str, u64),
        value: &[u8],
    ) -> Result<(u32, Vec<u8>), Error> {
        let newest = self.keyring.read().newest().map(|(id, key)| (id, Arc::clone(&key.material)));
        let (id, key) = newest.ok_or(Error::Internal)?;
        let counted = self.keyring_uses.read().count();
        if counted == Counted::Beyond && seals == Seals::Counted {
            // The store does not take the reservation, or it will shortly.
            return Err(Error::Busy);
        }
        Ok((id, record::seal(id, &key, path, counter, value, &*self.entropy)))
    }
}

fn parse_json<T: DeserializeOwned>(
    path: &str,
    stored: &Stored<SecretBytes>,
) -> Result<Stored<T>, Error> {
    let value = serde_json::from_slice(stored.value.expose())
        .map_err(|_| Error::CorruptRecord { path: path.to_owned() })?;
    let Stored { counter, revision, code, .. } = *stored;
    Ok(Stored { value, counter, revision, code })
}

/// The JSON of a record.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    // Enough for a key: growing means to copy, and to zero what was left.
    let mut json = zeroize::Zeroizing::new(Vec::with_capacity(1024));
    serde_json::to_writer(&mut *json, value).map_err(|_| Error::Internal)?;
    Ok(json)
}
