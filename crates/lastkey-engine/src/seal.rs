//! What protects the root key at rest.
//!
//! The store keeps a small record in clear, [`SealRecord`] at `meta/seal`: which seals the root
//! key rests under, and what each needs to give it back. The keyring rests wrapped under the root
//! key beside it, so whoever changes the record wins nothing: another root key opens no keyring.
//!
//! | kind | what gives the root key back | where that is |
//! |---|---|---|
//! | `file` | whoever can read the file | `root.key`, mode 0600 |
//! | `shamir` | any k of n shares, which people enter | with their keepers |
//! | `pkcs11` | an AES key that never leaves its token | the token, behind a PIN |
//!
//! A seal that opens by itself implements [`Seal`]; shares are gathered by
//! [`Instance`](crate::Instance). A new seal that needs shares is only *added* to the record: the
//! old one goes on working until the new shares were entered once, and goes with the old root key
//! then.

mod choice;
mod file;
pub(crate) mod gathering;
mod record;
mod token;

use std::{io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use lastkey_crypto::{Entropy, KeyMaterial};
use lastkey_store::{Store, Transaction};

pub use choice::Seals;
pub use file::FileSeal;
pub(crate) use gathering::Gathering;
pub use gathering::{Refused as ShareRefused, Threshold};
pub(crate) use record::TokenMechanism;
pub(crate) use record::{Kept, SEAL_PATH, ShamirEntry, parse as parse_record};
pub use record::{RootPrint, SealEntry, SealKind, SealRecord, SealSummary, TokenEntry};
pub use token::{TokenConfig, TokenSeal};

use crate::{
    barrier::{Barrier, BarrierError, KEYRING_PATH},
    engine::StartError,
};

/// The length of a root key in bytes.
pub const ROOT_KEY_BYTES: usize = 32;

/// Why a seal did not open or close.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is a store but no root key for it.
    #[error(
        "{path} is missing: it holds the root key, and without it this store cannot be opened; \
         put it back from your backup"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The root key file can be read by others.
    #[error("{path} can be read by others (mode {mode:03o}); run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The root key file belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to the user this process runs as")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The file is not a root key.
    #[error("{path} is not a root key file; put the right one back from your backup")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// There is a root key file already, of another store.
    #[error("{path} holds the root key of another store; move it to a safe place first")]
    Occupied {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing but shares gives this root key back.
    #[error("the server is sealed: `lastkey operator unseal` takes a share")]
    NeedsShares,
    /// This process was not told how to reach the seal.
    #[error("the root key of this store is kept by a {kind} seal; {advice}")]
    NotConfigured {
        /// What is missing.
        kind: SealKind,
        /// What to do.
        advice: &'static str,
    },
    /// The token cannot be used.
    #[error("the PKCS#11 token cannot be used: {0}")]
    Token(String),
    /// The token refuses, and will go on to until somebody changes something.
    #[error("the PKCS#11 token refuses: {0}")]
    TokenRefused(String),
    /// The token does not take the PIN. It counts that, and locks itself after a few.
    #[error("the PKCS#11 token refuses: {0}")]
    PinRefused(String),
    /// The seal gave a root key, but not this store's.
    #[error("the {0} seal gave back a key that is not this store's root key")]
    WrongRoot(SealKind),
    /// `meta/seal` cannot be understood.
    #[error(
        "the store's record of its seal is damaged, or of a newer release; restore the store from \
         a backup"
    )]
    Record,
}

impl SealError {
    /// Whether the same attempt may succeed later, without anybody changing anything here.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Token(_))
    }
}

/// A seal that gives the root key back without anybody's help.
#[async_trait]
pub trait Seal: Send + Sync + 'static {
    /// What protects the root key of a new store.
    fn kind(&self) -> SealKind;

    /// Makes a root key for a new store, or takes up the one of a first start that was
    /// interrupted, and keeps it.
    ///
    /// # Errors
    /// [`SealError::NeedsShares`] if people have to take part; nothing was kept then.
    async fn begin(&self, entropy: &dyn Entropy) -> Result<(KeyMaterial, SealEntry), SealError>;

    /// Keeps `root` under the seal of that kind, beside whatever is kept already: the root key that
    /// `kept`, the store's record, names is there afterwards as it was before.
    ///
    /// # Errors
    /// [`SealError`]; nothing was kept then.
    async fn wrap(
        &self,
        kind: SealKind,
        (root, kept): (&KeyMaterial, &SealRecord),
        entropy: &dyn Entropy,
    ) -> Result<SealEntry, SealError>;

    /// The root key that is kept under this entry. `print` tells it from others, where it is
    /// known.
    ///
    /// # Errors
    /// [`SealError`].
    async fn unwrap(
        &self,
        entry: &SealEntry,
        print: Option<RootPrint>,
    ) -> Result<KeyMaterial, SealError>;

    /// Which token and key it is on, as people know them, and by which module; `None` where it is on
    /// none. Nothing in it is secret.
    fn place(&self) -> Option<String> {
        None
    }

    /// The token that is used where an order names none.
    fn token(&self) -> Option<Arc<dyn Seal>> {
        None
    }

    /// Names the token to use from now on.
    fn use_token(&self, _token: Arc<dyn Seal>) {}

    /// The store holds `record` now: what the seal kept for earlier root keys may go.
    async fn settle(&self, record: &SealRecord);
}

/// The root key of a store by a seal that opens by itself; a new store gets a new one.
pub(crate) async fn obtain(
    store: &dyn Store,
    seal: &dyn Seal,
    entropy: &dyn Entropy,
) -> Result<Arc<KeyMaterial>, StartError> {
    if !Barrier::is_initialised(store).await? {
        let (root, entry) = seal.begin(entropy).await?;
        create(store, &root, entry, entropy).await?;
        return Ok(Arc::new(root));
    }
    let kept = Kept::load(store).await?;
    let root = unwrap_any(seal, &kept.record).await?;
    if kept.revision.is_some() {
        seal.settle(&kept.record).await;
    }
    Ok(Arc::new(root))
}

/// Whether the store was never opened: it has what [`create`] makes, and nothing else.
pub(crate) async fn is_unused(store: &dyn Store) -> Result<bool, BarrierError> {
    let entries = store.list("", None, 3).await?;
    Ok(entries.iter().all(|entry| [KEYRING_PATH, SEAL_PATH].contains(&entry.path.as_str())))
}

/// Makes the first record and the keyring of a new store, in one transaction.
pub(crate) async fn create(
    store: &dyn Store,
    root: &KeyMaterial,
    entry: SealEntry,
    entropy: &dyn Entropy,
) -> Result<SealRecord, BarrierError> {
    let record = SealRecord::first(RootPrint::of(root), entry);
    let also = Transaction::new().expect_absent(SEAL_PATH).put(SEAL_PATH, record.encode());
    Barrier::create(store, root, entropy, also).await?;
    Ok(record)
}

/// The root key from the first entry that gives it. Where none does, why the first did not: that is
/// the seal that everybody knows of, and new shares behind it only ask for people.
async fn unwrap_any(seal: &dyn Seal, record: &SealRecord) -> Result<KeyMaterial, SealError> {
    let mut refused = None;
    for entry in &record.seals {
        let error = match seal.unwrap(entry, record.root).await {
            Ok(root) if record.root.is_some_and(|print| print != RootPrint::of(&root)) => {
                SealError::WrongRoot(entry.kind())
            }
            Ok(root) => return Ok(root),
            Err(error) => error,
        };
        refused.get_or_insert(error);
    }
    Err(refused.unwrap_or(SealError::Record))
}
