//! What is written: versions with their material, and the changes that commands ask for.

use lastkey_crypto::{Algorithm, KeyId, KeyMaterial, KeyVersionId, Suite};
use lastkey_store::Revision;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Timestamp,
    barrier::{Expect, NextKeyring, Stored},
    cluster::Cluster,
    dependants::Dependant,
    identity::AccessKey,
    key::{AliasName, Key, KeyVersion},
    last_use::Latest,
    uses::Uses,
};

/// One version with its material.
///
/// Record (behind the barrier, big-endian):
/// ```text
/// 00  1  format 1
/// 01  1  suite
/// 02  16 key id
/// 12  8  creation, milliseconds since 1970
/// 1a  …  material: 16, 24 or 32 bytes
/// ```
pub(crate) struct Version {
    pub(crate) id: KeyVersionId,
    pub(crate) key_id: KeyId,
    pub(crate) created: Timestamp,
    pub(crate) suite: Suite,
    pub(crate) material: KeyMaterial,
    /// What it has encrypted; kept in a record of its own.
    pub(crate) uses: Uses,
    /// Who used it last; kept in a record of its own.
    pub(crate) latest: Latest,
}

const VERSION_FORMAT: u8 = 1;

impl Version {
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        bytes.extend_from_slice(&[VERSION_FORMAT, self.suite.into()]);
        bytes.extend_from_slice(self.key_id.as_bytes());
        bytes.extend_from_slice(&self.created.as_millis().to_be_bytes());
        bytes.extend_from_slice(self.material.expose());
        bytes
    }

    /// What callers may know of it.
    pub(crate) fn describe(&self) -> KeyVersion {
        KeyVersion {
            key_id: self.key_id,
            id: self.id,
            created: self.created,
            uses: self.uses.used(),
            last_use: self.latest.get(),
            direct: self.uses.is_direct(),
            retirement: None,
        }
    }

    pub(crate) fn decode(id: KeyVersionId, bytes: &[u8]) -> Option<Self> {
        let (&[format, suite], rest) = bytes.split_first_chunk()?;
        let (key_id, rest) = rest.split_first_chunk::<16>()?;
        let (created, material) = rest.split_first_chunk::<8>()?;
        let known = format == VERSION_FORMAT
            && [Algorithm::Aes128, Algorithm::Aes192, Algorithm::Aes256]
                .iter()
                .any(|algorithm| algorithm.key_len() == material.len());
        if !known {
            return None;
        }
        Some(Self {
            id,
            key_id: KeyId::from_bytes(*key_id),
            created: Timestamp::from_millis(i64::from_be_bytes(*created)),
            suite: Suite::try_from(suite).ok()?,
            material: KeyMaterial::from_slice(material),
            uses: Uses::from_stored(0),
            latest: Latest::default(),
        })
    }
}

/// What an alias record says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AliasRecord {
    pub(crate) name: AliasName,
    pub(crate) key: KeyId,
}

/// One thing a change writes or deletes.
pub(super) enum Write {
    Key(Box<Key>, Expect),
    Version(Version),
    Alias(AliasRecord, Expect),
    Cluster(Box<Cluster>, Expect),
    DropCluster(Box<Cluster>, Expect),
    Dependant(KeyId, Box<Dependant>, Expect),
    DropDependant(KeyId, Box<Dependant>, Expect),
    AccessKey(AccessKey),
    DropKey(KeyId, Expect),
    DropVersion(KeyVersionId),
    DropAlias(AliasName, Expect),
    Raw {
        path: String,
        value: Zeroizing<Vec<u8>>,
        expect: Expect,
    },
    DropRaw(String, Expect),
    Keyring(Box<NextKeyring>),
    /// Not sealed by the barrier: what it takes to open the barrier.
    Clear {
        path: &'static str,
        value: Vec<u8>,
        expect: Option<Revision>,
    },
}

/// What a command wants to be true afterwards, all of it or none.
#[derive(Default)]
pub(crate) struct Change {
    pub(super) writes: Vec<Write>,
}

impl Change {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn with(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    pub(crate) fn create_key(self, key: Key) -> Self {
        self.with(Write::Key(Box::new(key), Expect::Absent))
    }

    pub(crate) fn update_key(self, old: &Stored<Key>, new: Key) -> Self {
        self.with(Write::Key(Box::new(new), old.expect()))
    }

    /// Without what was to be written of that key, for another write to take its place.
    pub(crate) fn without_key(mut self, id: KeyId) -> Self {
        self.writes.retain(|write| !matches!(write, Write::Key(key, _) if key.id == id));
        self
    }

    pub(crate) fn create_version(self, version: Version) -> Self {
        self.with(Write::Version(version))
    }

    pub(crate) fn create_alias(self, name: AliasName, key: KeyId) -> Self {
        self.with(Write::Alias(AliasRecord { name, key }, Expect::Absent))
    }

    pub(crate) fn update_alias(self, old: &Stored<AliasRecord>, key: KeyId) -> Self {
        let record = AliasRecord { name: old.value.name.clone(), key };
        self.with(Write::Alias(record, old.expect()))
    }

    pub(crate) fn delete_alias(self, old: &Stored<AliasRecord>) -> Self {
        self.with(Write::DropAlias(old.value.name.clone(), old.expect()))
    }

    pub(crate) fn create_cluster(self, cluster: Cluster) -> Self {
        self.with(Write::Cluster(Box::new(cluster), Expect::Absent))
    }

    pub(crate) fn update_cluster(self, old: &Stored<Cluster>, new: Cluster) -> Self {
        self.with(Write::Cluster(Box::new(new), old.expect()))
    }

    pub(crate) fn delete_cluster(self, old: &Stored<Cluster>) -> Self {
        self.with(Write::DropCluster(Box::new(old.value.clone()), old.expect()))
    }

    /// In place of `old`, if there is one.
    pub(crate) fn put_dependant(
        self,
        key: KeyId,
        old: Option<&Stored<Dependant>>,
        new: Dependant,
    ) -> Self {
        let expect = old.map_or(Expect::Absent, Stored::expect);
        self.with(Write::Dependant(key, Box::new(new), expect))
    }

    pub(crate) fn delete_dependant(self, key: KeyId, old: &Stored<Dependant>) -> Self {
        self.with(Write::DropDependant(key, Box::new(old.value.clone()), old.expect()))
    }

    pub(crate) fn create_access_key(self, key: AccessKey) -> Self {
        self.with(Write::AccessKey(key))
    }

    pub(crate) fn delete_key(self, old: &Stored<Key>) -> Self {
        self.with(Write::DropKey(old.value.id, old.expect()))
    }

    pub(crate) fn delete_version(self, id: KeyVersionId) -> Self {
        self.with(Write::DropVersion(id))
    }

    /// How many records it writes or deletes.
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    pub(crate) fn put(self, path: String, value: Zeroizing<Vec<u8>>, expect: Expect) -> Self {
        self.with(Write::Raw { path, value, expect })
    }

    pub(crate) fn delete_raw(self, path: String, expect: Expect) -> Self {
        self.with(Write::DropRaw(path, expect))
    }

    /// Puts a keyring in place of the present one.
    pub(crate) fn keyring(self, next: NextKeyring) -> Self {
        self.with(Write::Keyring(Box::new(next)))
    }

    /// Writes what rests outside of the barrier; `None` expects that there is nothing yet.
    pub(crate) fn put_clear(
        self,
        path: &'static str,
        value: Vec<u8>,
        expect: Option<Revision>,
    ) -> Self {
        self.with(Write::Clear { path, value, expect })
    }
}
