//! Typed records over the barrier, with the caches and indexes that keep hot paths off the store.
//!
//! Key and version records are cached within bounds. Names are indexed whole: which keys exist,
//! which alias names which key, which clusters and access keys there are. All of it follows the
//! store's watch, so that another server on the same store is noticed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId, SecretBytes};
use lastkey_store::{CommitError, Entry, Event, Revision};
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use tokio::sync::watch;

use crate::{
    Error,
    barrier::{Barrier, Batch, Expect, MAX_USES, Stored, Written, to_json},
    cluster::Cluster,
    dependants::{self, DEPENDANTS, Dependant, DependantIndex},
    due::DueKeys,
    identity::AccessKey,
    jobs::ROTATIONS,
    key::{AliasName, Key},
    key_index::KeyIndex,
    last_use,
    outbox::Parcel,
    policy::Policy,
    rotation_index::RotationIndex,
    uses::{self, Counted, Uses},
};

mod alias_index;
mod change;
mod counting;
mod trust;

use alias_index::AliasIndex;
use change::Write;
pub(crate) use change::{AliasRecord, Change, Version};

const KEYS: &str = "key/";
const VERSIONS: &str = "version/";
const ALIASES: &str = "alias/";
const CLUSTERS: &str = "cluster/";
const ACCESS_KEYS: &str = "access-key/";
const CACHED_KEYS: usize = 100_000;
const CACHED_VERSIONS: usize = 100_000;
const LIST_PAGE: usize = 1_000;

/// How much a key may be used before another takes its place.
pub(crate) struct Limits {
    /// Records that a keyring key seals.
    pub(crate) keyring: AtomicU64,
    /// Messages that a key version encrypts (suite 1).
    pub(crate) version: AtomicU64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { keyring: AtomicU64::new(MAX_USES), version: AtomicU64::new(1 << 40) }
    }
}

pub(crate) struct Records {
    pub(crate) barrier: Barrier,
    policy: Arc<dyn Policy>,
    keys: Cache<KeyId, Arc<Stored<Key>>>,
    versions: Cache<KeyVersionId, Arc<Version>>,
    key_ids: RwLock<KeyIndex>,
    aliases: RwLock<AliasIndex>,
    clusters: RwLock<BTreeMap<ClusterId, Arc<Stored<Cluster>>>>,
    /// Counts changes of the clusters' roots.
    trust: AtomicU64,
    /// What needs which key.
    pub(crate) dependants: DependantIndex,
    /// What is known of the clusters' rotations.
    pub(crate) rotations: RotationIndex,
    access_keys: RwLock<HashMap<Arc<str>, Arc<AccessKey>>>,
    /// Versions whose uses were counted ahead, and to which number.
    counted: Mutex<BTreeMap<KeyVersionId, u64>>,
    /// Versions that soon need more to be counted ahead.
    low: Mutex<Vec<Arc<Version>>>,
    /// Versions whose last use waits to be written down.
    used: Mutex<Vec<Arc<Version>>>,
    /// Keys that are due because their primary versions have encrypted so much.
    worn: Mutex<BTreeSet<KeyId>>,
    pub(crate) limits: Limits,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
    /// Which keys can fall due soon.
    pub(crate) due: DueKeys,
}

impl Records {
    /// Reads the indexes.
    pub(crate) async fn load(barrier: Barrier, policy: Arc<dyn Policy>) -> Result<Self, Error> {
        let records = Self {
            barrier,
            policy,
            keys: Cache::new(CACHED_KEYS),
            versions: Cache::new(CACHED_VERSIONS),
            key_ids: RwLock::default(),
            aliases: RwLock::default(),
            clusters: RwLock::default(),
            trust: AtomicU64::default(),
            dependants: DependantIndex::default(),
            rotations: RotationIndex::default(),
            access_keys: RwLock::default(),
            counted: Mutex::default(),
            low: Mutex::default(),
            used: Mutex::default(),
            worn: Mutex::default(),
            limits: Limits::default(),
            changes: watch::channel(0).0,
            due: DueKeys::default(),
        };
        records.reload().await?;
        Ok(records)
    }

    /// Reads the indexes anew, in place of what was known.
    ///
    /// Requests go on meanwhile, so nothing is forgotten before all was read: what is not there any
    /// more, and was known before, goes at the end.
    async fn reload(&self) -> Result<(), Error> {
        self.keys.clear();
        let mut keys: BTreeSet<KeyId> = self.key_ids.read().iter().copied().collect();
        let mut aliases = self.aliases.read().by_name.clone();
        let dependants = self.dependants.places();
        for prefix in [KEYS, ALIASES, CLUSTERS, DEPENDANTS, ACCESS_KEYS, ROTATIONS] {
            let mut after = None;
            loop {
                let page = self.barrier.store().list(prefix, after.as_deref(), LIST_PAGE).await?;
                for entry in &page {
                    self.index(entry)?;
                    if let Some(id) = key_of(&entry.path) {
                        keys.remove(&id);
                    } else if let Ok(name) = AliasName::parse(&entry.path) {
                        aliases.remove(&name);
                    }
                }
                match page.last() {
                    Some(last) if page.len() == LIST_PAGE => after = Some(last.path.clone()),
                    _ => break,
                }
            }
        }
        keys.iter().for_each(|id| self.key_ids.write().remove(id));
        self.aliases.write().forget_unless_changed(&aliases);
        self.dependants.forget_unless_seen(dependants);
        Ok(())
    }

    /// Takes one stored record into the indexes.
    fn index(&self, entry: &Entry) -> Result<(), Error> {
        let path = entry.path.as_str();
        if let Some(id) = key_of(path) {
            self.key_ids.write().insert(id);
        } else if path.starts_with(ALIASES) {
            let stored = self.barrier.open_json::<AliasRecord>(entry)?;
            let AliasRecord { name, key } = stored.value;
            self.aliases.write().insert(name, key, entry.revision);
        } else if path.starts_with(CLUSTERS) {
            self.know_cluster(self.barrier.open_json(entry)?);
        } else if let Some((key, _, _)) = dependants::parse_path(path) {
            self.dependants.learn(key, self.barrier.open_json::<Dependant>(entry)?);
        } else if path.starts_with(ROTATIONS) {
            self.rotations.learn(&self.barrier.open_json(entry)?.value);
        } else if path.starts_with(ACCESS_KEYS) {
            let stored = self.barrier.open_entry(entry)?;
            let key = AccessKey::decode(stored.value.expose())
                .ok_or_else(|| Error::CorruptRecord { path: path.to_owned() })?;
            self.access_keys.write().insert(Arc::clone(&key.id), Arc::new(key));
        }
        Ok(())
    }

    /// Follows the store's watch: what another server changed is forgotten here.
    pub(crate) async fn follow(&self) {
        let mut watch = self.barrier.store().watch("");
        while let Some(event) = watch.next().await {
            let seen = match event {
                Event::Put(entry) => self.notice(&entry),
                Event::Delete { path, .. } => {
                    self.notice_deletion(&path);
                    Ok(())
                }
                Event::Lost => self.reload().await,
            };
            if let Err(error) = seen {
                tracing::error!(%error, "a change in the store could not be followed");
            }
        }
    }

    fn notice(&self, entry: &Entry) -> Result<(), Error> {
        let path = entry.path.as_str();
        if let Some(id) = key_of(path) {
            let stale = self.keys.peek(&id).is_none_or(|known| known.revision < entry.revision);
            if stale {
                self.keys.remove(&id);
                self.due.suspect(id);
                self.key_ids.write().insert(id);
                self.changed();
            }
            return Ok(());
        }
        let known = match path.split_once('/') {
            Some(("alias", _)) => AliasName::parse(path)
                .ok()
                .and_then(|name| self.aliases.read().by_name.get(&name).map(|known| known.1)),
            Some(("cluster", id)) => {
                id.parse().ok().and_then(|id| self.cluster(id)).map(|known| known.revision)
            }
            Some(("dependant", _)) => dependants::parse_path(path)
                .and_then(|(key, kind, id)| self.dependants.revision(key, kind, id)),
            Some(("rotation", _)) => None,
            Some(("access-key", id)) => {
                self.access_keys.read().contains_key(id).then_some(entry.revision)
            }
            _ => return Ok(()),
        };
        if known.is_none_or(|known| known < entry.revision) {
            self.index(entry)?;
            self.changed();
        }
        Ok(())
    }

    fn notice_deletion(&self, path: &str) {
        if let Some(id) = key_of(path) {
            self.keys.remove(&id);
            self.key_ids.write().remove(&id);
        } else if let Some(id) =
            path.strip_prefix(VERSIONS).and_then(|id| id.parse::<KeyVersionId>().ok())
        {
            self.drop_version(id);
        } else if path.starts_with(ROTATIONS) {
            self.rotations.forget(path);
        } else if let Some((key, kind, id)) = dependants::parse_path(path) {
            self.dependants.forget(key, kind, id);
        } else if let Some(id) = path.strip_prefix(CLUSTERS).and_then(|id| id.parse().ok()) {
            self.forget_cluster(id);
        } else if let Ok(name) = AliasName::parse(path) {
            self.aliases.write().remove(&name);
        } else {
            return;
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Resolves whenever something changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The key of that id.
    pub(crate) async fn key(&self, id: KeyId) -> Result<Arc<Stored<Key>>, Error> {
        if let Some(known) = self.keys.get(&id) {
            return Ok(known);
        }
        let load = async {
            let stored = self.barrier.read_json::<Key>(&key_path(id)).await?;
            stored.map(Arc::new).ok_or(Error::KeyNotFound)
        };
        // The guard keeps a change that commits while we read from being overwritten by what we
        // read before it.
        self.keys.get_or_insert_async(&id, load).await
    }

    /// The version of that id.
    pub(crate) async fn version(&self, id: KeyVersionId) -> Result<Arc<Version>, Error> {
        if let Some(known) = self.versions.get(&id) {
            return Ok(known);
        }
        let load = async {
            let path = version_path(id);
            let stored = self.barrier.read(&path).await?.ok_or(Error::KeyVersionNotFound)?;
            let version = Version::decode(id, stored.value.expose());
            let mut version = version.ok_or(Error::CorruptRecord { path })?;
            let stored = self.stored_uses(id).await?;
            version.uses = Uses::from_stored_of(stored.count, stored.direct);
            Ok::<_, Error>(Arc::new(version))
        };
        self.versions.get_or_insert_async(&id, load).await
    }

    /// Keys as they are stored, in the order of their ids, past the cache; and the path to go on
    /// after, unless that was the end.
    pub(crate) async fn stored_keys(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Key>, Option<String>), Error> {
        let page = self.barrier.store().list(KEYS, after, limit).await?;
        let keys: Result<Vec<Key>, Error> =
            page.iter().map(|entry| Ok(self.barrier.open_json(entry)?.value)).collect();
        let last = page.last().filter(|_| page.len() == limit).map(|entry| entry.path.clone());
        Ok((keys?, last))
    }

    /// Whether there is a key of that id.
    pub(crate) fn key_exists(&self, id: KeyId) -> bool {
        self.key_ids.read().contains(&id)
    }

    /// The ids of all keys, in order.
    pub(crate) fn with_key_ids<T>(&self, read: impl FnOnce(&KeyIndex) -> T) -> T {
        read(&self.key_ids.read())
    }

    /// The key that an alias names.
    pub(crate) fn alias_target(&self, name: &AliasName) -> Option<KeyId> {
        self.aliases.read().by_name.get(name).map(|(key, _)| *key)
    }

    /// The aliases and the keys they name, in the order of the names.
    pub(crate) fn with_aliases<T>(
        &self,
        read: impl FnOnce(&BTreeMap<AliasName, (KeyId, Revision)>) -> T,
    ) -> T {
        read(&self.aliases.read().by_name)
    }

    /// The aliases of one key, in order.
    pub(crate) fn aliases_of(&self, key: KeyId) -> Vec<AliasName> {
        self.aliases.read().of(key).cloned().collect()
    }

    /// The alias's record.
    pub(crate) async fn alias(&self, name: &AliasName) -> Result<Stored<AliasRecord>, Error> {
        self.barrier.read_json(alias_path(name)).await?.ok_or(Error::AliasNotFound)
    }

    /// The cluster of that id.
    pub(crate) fn cluster(&self, id: ClusterId) -> Option<Arc<Stored<Cluster>>> {
        self.clusters.read().get(&id).cloned()
    }

    /// All clusters, by id.
    pub(crate) fn clusters(&self) -> Vec<Arc<Stored<Cluster>>> {
        self.clusters.read().values().cloned().collect()
    }

    /// The access key of that id.
    pub(crate) fn access_key(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.access_keys.read().get(id).cloned()
    }

    /// What needs a key, as it is stored: a change is in the store a moment before it is in the
    /// index. What is read after the key's record is all that a change of this very record can know.
    pub(crate) async fn stored_dependants(
        &self,
        key: KeyId,
    ) -> Result<Vec<Arc<Stored<Dependant>>>, Error> {
        let prefix = dependants::prefix_of(key);
        let (mut found, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self.barrier.store().list(&prefix, after.as_deref(), LIST_PAGE).await?;
            for entry in &page {
                found.push(Arc::new(self.barrier.open_json(entry)?));
            }
            match page.last() {
                Some(last) if page.len() == LIST_PAGE => after = Some(last.path.clone()),
                _ => return Ok(found),
            }
        }
    }

    /// A key whose primary version has encrypted enough could not be rotated yet.
    pub(crate) fn stays_worn(&self, key: KeyId) {
        self.worn.lock().insert(key);
    }

    /// Whether there is any access key.
    pub(crate) fn has_access_keys(&self) -> bool {
        !self.access_keys.read().is_empty()
    }

    /// Reads a record that only its owner understands.
    pub(crate) async fn raw(&self, path: &str) -> Result<Option<Stored<SecretBytes>>, Error> {
        self.barrier.read(path).await
    }

    /// Makes a change durable, together with its parcel, and lets everybody see it.
    ///
    /// # Errors
    /// `Ok(Err(Conflict))` if something it was based on has changed meanwhile: read anew, and try
    /// again.
    pub(crate) async fn commit(
        &self,
        change: Change,
        parcel: Option<&Parcel>,
    ) -> Result<Result<(), Conflict>, Error> {
        let mut batch = Batch::default();
        let mut written = Vec::with_capacity(change.writes.len());
        for write in &change.writes {
            match self.stage(&mut batch, write).await? {
                Ok(one) => written.push(one),
                Err(conflict) => return Ok(Err(conflict)),
            }
        }
        if let Some(parcel) = parcel {
            let plain = parcel.pack(batch.shards());
            batch.put_parcel(&self.barrier, &parcel.path, &plain)?;
        }
        let revision = match self.barrier.commit(&batch).await {
            Ok(revision) => revision,
            Err(CommitError::Conflict { path }) => {
                if let Some(id) = key_of(&path) {
                    self.keys.remove(&id);
                }
                return Ok(Err(Conflict));
            }
            Err(CommitError::Uncertain(cause)) => self.was_made(&change, parcel, &cause).await?,
            Err(other) => {
                self.barrier.trust()?;
                return Err(other.into());
            }
        };
        for (write, written) in change.writes.into_iter().zip(written) {
            self.apply(write, written, revision);
        }
        self.changed();
        Ok(Ok(()))
    }

    /// Finds out whether a commit of which the store does not know was made: its parcel is there
    /// or it is not. Whatever it may have changed is read anew.
    async fn was_made(
        &self,
        change: &Change,
        parcel: Option<&Parcel>,
        cause: &std::io::Error,
    ) -> Result<Revision, Error> {
        for write in &change.writes {
            match write {
                Write::Key(key, _) => drop(self.keys.remove(&key.id)),
                Write::DropKey(id, _) => drop(self.keys.remove(id)),
                _ => {}
            }
        }
        let path = parcel.map_or("", |parcel| parcel.path.as_str());
        let found = self.barrier.store().get(path).await;
        match found.map_err(|error| Error::Uncertain(error.to_string()))? {
            Some(entry) => Ok(entry.revision),
            None => Err(Error::Unavailable(format!("the change was not made: {cause}"))),
        }
    }

    /// Adds one write to a batch. Tells what became of the path, where something is there then.
    async fn stage(
        &self,
        batch: &mut Batch,
        write: &Write,
    ) -> Result<Result<Option<Written>, Conflict>, Error> {
        let barrier = &self.barrier;
        let mut put = |path: &str, value: &[u8], expect| batch.put(barrier, path, value, expect);
        let written = match write {
            Write::Key(key, expect) => put(&key_path(key.id), &to_json(key)?, *expect)?,
            Write::Version(version) => {
                put(&version_path(version.id), &version.encode(), Expect::Absent)?
            }
            Write::Alias(alias, expect) => put(alias_path(&alias.name), &to_json(alias)?, *expect)?,
            Write::Cluster(cluster, expect) => {
                put(&format!("{CLUSTERS}{}", cluster.id), &to_json(cluster)?, *expect)?
            }
            Write::DropCluster(cluster, expect) => {
                batch.delete(&format!("{CLUSTERS}{}", cluster.id), *expect);
                return Ok(Ok(None));
            }
            Write::Dependant(key, dependant, expect) => {
                put(&path_of_dependant(*key, dependant), &to_json(dependant)?, *expect)?
            }
            Write::DropDependant(key, dependant, expect) => {
                batch.delete(&path_of_dependant(*key, dependant), *expect);
                return Ok(Ok(None));
            }
            Write::AccessKey(key) => {
                put(&format!("{ACCESS_KEYS}{}", key.id), &key.encode(), Expect::Absent)?
            }
            Write::Raw { path, value, expect } => put(path, value, *expect)?,
            Write::Keyring(next) => {
                barrier.stage_keyring(batch, next).await?;
                return Ok(Ok(None));
            }
            Write::Clear { path, value, expect } => {
                let found = barrier.read_clear(path).await?;
                if found.map(|(revision, _)| revision) != *expect {
                    return Ok(Err(Conflict));
                }
                batch.put_clear(barrier, path, value.clone(), found)?;
                return Ok(Ok(None));
            }
            Write::DropRaw(path, expect) => {
                batch.delete(path, *expect);
                return Ok(Ok(None));
            }
            Write::DropKey(id, expect) => {
                batch.delete(&key_path(*id), *expect);
                return Ok(Ok(None));
            }
            Write::DropVersion(id) => {
                let path = version_path(*id);
                if let Some(stored) = barrier.read(&path).await? {
                    batch.delete(&path, stored.expect());
                }
                batch.delete(&uses::path_of(*id), self.stored_uses(*id).await?.expect);
                let path = last_use::path_of(*id);
                if let Some(stored) = barrier.read(&path).await? {
                    batch.delete(&path, stored.expect());
                }
                return Ok(Ok(None));
            }
            Write::DropAlias(name, expect) => {
                batch.delete(alias_path(name), *expect);
                return Ok(Ok(None));
            }
        };
        Ok(Ok(Some(written)))
    }

    fn apply(&self, write: Write, written: Option<Written>, revision: Revision) {
        let Written { counter, code } = written.unwrap_or_default();
        match write {
            Write::Key(value, expect) => {
                let id = value.id;
                self.due.learn(&value);
                let stored = Stored { value: *value, counter, revision, code };
                if matches!(expect, Expect::Absent) {
                    self.key_ids.write().insert(id);
                }
                self.keys.insert(id, Arc::new(stored));
            }
            Write::Version(version) => self.versions.insert(version.id, Arc::new(version)),
            Write::Alias(alias, _) => {
                self.aliases.write().insert(alias.name, alias.key, revision);
            }
            Write::Cluster(value, _) => {
                self.know_cluster(Stored { value: *value, counter, revision, code });
            }
            Write::DropCluster(gone, _) => self.forget_cluster(gone.id),
            Write::Dependant(key, value, _) => {
                self.dependants.learn(key, Stored { value: *value, counter, revision, code });
            }
            Write::DropDependant(key, gone, _) => {
                self.dependants.forget(key, gone.kind.as_str(), gone.id.as_str());
            }
            Write::AccessKey(key) => {
                self.access_keys.write().insert(Arc::clone(&key.id), Arc::new(key));
            }
            Write::DropKey(id, _) => {
                self.keys.remove(&id);
                self.key_ids.write().remove(&id);
            }
            Write::DropVersion(id) => self.drop_version(id),
            Write::DropAlias(name, _) => {
                self.aliases.write().remove(&name);
            }
            Write::Keyring(next) => self.barrier.turn_keyring(*next, revision),
            Write::Raw { path, value, .. } => self.rotations.learn_json(&path, &value),
            Write::DropRaw(path, _) => self.rotations.forget(&path),
            Write::Clear { .. } => {}
        }
    }
}

/// A change lost a race.
#[derive(Debug)]
pub(crate) struct Conflict;

fn key_path(id: KeyId) -> String {
    format!("{KEYS}{id}")
}

fn path_of_dependant(key: KeyId, dependant: &Dependant) -> String {
    dependants::path_of(key, dependant.kind.as_str(), dependant.id.as_str())
}

fn key_of(path: &str) -> Option<KeyId> {
    path.strip_prefix(KEYS)?.parse().ok()
}

fn version_path(id: KeyVersionId) -> String {
    format!("{VERSIONS}{id}")
}

/// An alias's name is its path: it begins with `alias/` and is bounded in length and characters.
fn alias_path(name: &AliasName) -> &str {
    name.as_str()
}
