//! What the Kubernetes plugin hands to the apiserver, and the `key_id` that goes with it.
//!
//! The apiserver stores the bytes in etcd and brings them back; it compares `key_id` with the
//! one in Status to see whether an object must be rewritten. Both carry everything needed to find
//! the way back: which key in which life ([`Lineage`]), whose cluster, which version, and which
//! epoch of it.
//!
//! ```text
//! offset  bytes                                            meaning
//! 0000    01                                               format version
//! 0001    a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 aa ab ac ad ae af  lineage, 16 bytes
//! 0011    b0 b1 b2 b3 b4 b5 46 b7 88 b9 ba bb bc bd be bf  cluster, 16 bytes (UUID)
//! 0021    1d 1c 6a 34 5f 0e 4c 3b 9a 58 6a 8f 5a 0e 7c 21  key version, 16 bytes (UUID)
//! 0031    c0 c1 c2 c3 c4 c5 c6 c7 c8 c9 ca cb cc cd ce cf  epoch, 16 bytes
//! 0041    31 64 31 63 36 61 33 34 2d …                     ciphertext blob ([`crate::blob`]) of
//!                                                          the same key version
//! ```
//!
//! The four identifiers are hints until the blob has opened: it does so only in the encryption
//! context [`PluginKey::context`], which the server builds from them.
//!
//! `key_id` = SHA-256, as 64 hexadecimal digits, over `lastkey plugin key id 1`, lineage, cluster,
//! key version and epoch, each behind its length in 32 bits (decision 4).

use crate::{
    ClusterId, EncryptionContext, Epoch, KeyVersionId, Lineage,
    blob::{Blob, BlobError},
    mac::{length_prefixed, sha256},
};

/// The most bytes the apiserver takes as a ciphertext (KMS v2: 1 kB).
pub const MAX_LEN: usize = 1024;

/// What this format adds to the ciphertext blob, in bytes.
pub const OVERHEAD: usize = 1 + 4 * 16;

const VERSION: u8 = 1;
const KEY_ID_LABEL: &[u8] = b"lastkey plugin key id 1";

/// The identity behind one `key_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PluginKey {
    /// The key, over all its versions and restores.
    pub lineage: Lineage,
    /// The cluster it encrypts for.
    pub cluster: ClusterId,
    /// The key version.
    pub key_version: KeyVersionId,
    /// The epoch in which that version is (or was) primary.
    pub epoch: Epoch,
}

impl PluginKey {
    /// The `key_id` the apiserver sees: 64 hexadecimal digits.
    pub fn key_id(&self) -> String {
        key_id(&self.lineage, &self.cluster, &self.key_version, &self.epoch)
    }

    /// The encryption context that the server binds a plugin's ciphertext to.
    pub fn context(&self) -> EncryptionContext {
        let pairs = [
            ("lastkey:cluster", self.cluster.to_string()),
            ("lastkey:lineage", self.lineage.to_string()),
            ("lastkey:epoch", self.epoch.to_string()),
        ];
        EncryptionContext::from_pairs(pairs.map(|(name, value)| (name.to_owned(), value)))
            .expect("three different names, and short values")
    }
}

/// The `key_id` of a key version in one cluster and epoch.
pub fn key_id(
    lineage: &Lineage,
    cluster: &ClusterId,
    key_version: &KeyVersionId,
    epoch: &Epoch,
) -> String {
    let hash = sha256(&[&length_prefixed(&[
        KEY_ID_LABEL,
        lineage.as_bytes(),
        cluster.as_bytes(),
        key_version.as_bytes(),
        epoch.as_bytes(),
    ])]);
    // `hex::encode` goes by characters, and takes as long as the hash
    let mut digits = [0; 64];
    // 32 bytes are 64 ASCII digits
    let _ = hex::encode_to_slice(hash, &mut digits);
    String::from_utf8_lossy(&digits).into_owned()
}

/// Bytes that are no plugin blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PluginBlobError {
    /// Over [`MAX_LEN`].
    #[error("the ciphertext has {0} bytes, and the apiserver takes no more than 1024")]
    TooLong(usize),
    /// Ends before the ciphertext blob begins.
    #[error("the ciphertext is too short to be one of this plugin's")]
    TooShort,
    /// A format this release does not know, or another plugin's ciphertext.
    #[error("the ciphertext has format version {0}; this release knows version 1")]
    UnknownVersion(u8),
    /// The ciphertext blob inside is none.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Outside and inside name different key versions.
    #[error("the ciphertext names one key version outside and another inside")]
    KeyVersionMismatch,
}

/// A plugin's ciphertext: whose it is, and the blob.
#[derive(Debug, Clone, Copy)]
pub struct PluginBlob<'a> {
    key: PluginKey,
    bytes: &'a [u8],
    blob: Blob<'a>,
}

impl<'a> PluginBlob<'a> {
    /// Puts a ciphertext blob and its identity together.
    ///
    /// # Errors
    ///
    /// As [`PluginBlob::parse`], except for the version.
    pub fn new(key: PluginKey, blob: &'a [u8]) -> Result<Self, PluginBlobError> {
        if OVERHEAD + blob.len() > MAX_LEN {
            return Err(PluginBlobError::TooLong(OVERHEAD + blob.len()));
        }
        let parsed = Blob::parse(blob)?;
        if parsed.key_version_id() != key.key_version {
            return Err(PluginBlobError::KeyVersionMismatch);
        }
        Ok(Self { key, bytes: blob, blob: parsed })
    }

    /// Reads what the apiserver brought back.
    ///
    /// # Errors
    ///
    /// Every [`PluginBlobError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PluginBlobError> {
        if bytes.len() > MAX_LEN {
            return Err(PluginBlobError::TooLong(bytes.len()));
        }
        let (&version, rest) = bytes.split_first().ok_or(PluginBlobError::TooShort)?;
        if version != VERSION {
            return Err(PluginBlobError::UnknownVersion(version));
        }
        let (lineage, rest) = take_16(rest)?;
        let (cluster, rest) = take_16(rest)?;
        let (key_version, rest) = take_16(rest)?;
        let (epoch, blob) = take_16(rest)?;
        let key = PluginKey {
            lineage: Lineage::from_bytes(lineage),
            cluster: ClusterId::from_bytes(cluster),
            key_version: KeyVersionId::from_bytes(key_version),
            epoch: Epoch::from_bytes(epoch),
        };
        Self::new(key, blob)
    }

    /// The bytes for the apiserver.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OVERHEAD + self.bytes.len());
        out.push(VERSION);
        out.extend_from_slice(self.key.lineage.as_bytes());
        out.extend_from_slice(self.key.cluster.as_bytes());
        out.extend_from_slice(self.key.key_version.as_bytes());
        out.extend_from_slice(self.key.epoch.as_bytes());
        out.extend_from_slice(self.bytes);
        out
    }

    /// Whose ciphertext it is, by its own account.
    pub fn key(&self) -> &PluginKey {
        &self.key
    }

    /// The ciphertext blob as bytes, for the wire.
    pub fn blob_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The ciphertext blob, cut into its parts.
    pub fn blob(&self) -> &Blob<'a> {
        &self.blob
    }
}

fn take_16(bytes: &[u8]) -> Result<([u8; 16], &[u8]), PluginBlobError> {
    bytes.split_first_chunk().map(|(id, rest)| (*id, rest)).ok_or(PluginBlobError::TooShort)
}
