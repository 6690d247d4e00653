//! The seals that this process can use, and which one a new store gets.

use std::sync::Arc;

use async_trait::async_trait;
use lastkey_crypto::{Entropy, KeyMaterial};
use parking_lot::RwLock;

use super::{FileSeal, RootPrint, Seal, SealEntry, SealError, SealKind, SealRecord};

/// All seals of one installation: each record's entries go to the one that they belong to.
pub struct Seals {
    file: FileSeal,
    /// May be named later, by a migration.
    token: RwLock<Option<Arc<dyn Seal>>>,
    first: SealKind,
}

impl Seals {
    /// The seals of an installation with its file; `first` is what a new store gets.
    pub fn new(file: FileSeal, token: Option<Arc<dyn Seal>>, first: SealKind) -> Self {
        Self { file, token: RwLock::new(token), first }
    }

    fn named(&self) -> Result<Arc<dyn Seal>, SealError> {
        self.token().ok_or_else(no_token)
    }
}

/// What to do when there is no token.
pub(super) fn no_token() -> SealError {
    SealError::NotConfigured {
        kind: SealKind::Pkcs11,
        advice: "give --pkcs11-module, --pkcs11-token and --pkcs11-pin-file",
    }
}

#[async_trait]
impl Seal for Seals {
    fn kind(&self) -> SealKind {
        self.first
    }

    async fn begin(&self, entropy: &dyn Entropy) -> Result<(KeyMaterial, SealEntry), SealError> {
        match self.first {
            SealKind::File => self.file.begin(entropy).await,
            SealKind::Shamir => Err(SealError::NeedsShares),
            SealKind::Pkcs11 => self.named()?.begin(entropy).await,
        }
    }

    async fn wrap(
        &self,
        kind: SealKind,
        (root, kept): (&KeyMaterial, &SealRecord),
        entropy: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        match kind {
            SealKind::File => self.file.wrap(kind, (root, kept), entropy).await,
            SealKind::Shamir => Err(SealError::NeedsShares),
            SealKind::Pkcs11 => self.named()?.wrap(kind, (root, kept), entropy).await,
        }
    }

    async fn unwrap(
        &self,
        entry: &SealEntry,
        print: Option<RootPrint>,
    ) -> Result<KeyMaterial, SealError> {
        match entry {
            SealEntry::File {} => self.file.unwrap(entry, print).await,
            SealEntry::Shamir(_) => Err(SealError::NeedsShares),
            SealEntry::Pkcs11(_) => self.named()?.unwrap(entry, print).await,
        }
    }

    fn token(&self) -> Option<Arc<dyn Seal>> {
        self.token.read().clone()
    }

    fn use_token(&self, token: Arc<dyn Seal>) {
        *self.token.write() = Some(token);
    }

    async fn settle(&self, record: &SealRecord) {
        self.file.settle(record).await;
        let token = self.token();
        if let Some(token) = token {
            token.settle(record).await;
        }
    }
}
