//! Dependants: what still needs a key to be readable, and for how long.
//!
//! A dependant is known by its key, its kind and its id. Whoever looks after it (a cluster's
//! coverage, a backup's catalogue) writes down how many objects it has under which version. Of a
//! cluster the engine itself adds which versions a plugin has encrypted under since, because what
//! an apiserver writes with such a seed cannot be known before somebody looks again; and which it
//! has decrypted although nothing was found under them, because then there is something: etcd was
//! brought back from a snapshot, say.
//!
//! All of them are indexed in memory: the guard asks with every change that would make a key
//! unusable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId};
use lastkey_store::Revision;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::{Error, Timestamp, barrier::Stored, cluster::Cluster, key::Key};

/// Where dependants are kept: `dependant/<key id>/<kind>/<id>`.
pub(crate) const DEPENDANTS: &str = "dependant/";
/// The kind that a cluster's resources are.
pub const CLUSTER_KIND: &str = "cluster";
/// The kind of a snapshot of a cluster's etcd.
const BACKUP_KIND: &str = "backup";
/// The most bytes of a kind or an id.
const MAX_LABEL: usize = 128;
/// The most bytes of a name.
const MAX_NAME: usize = 255;
/// An apiserver writes for three minutes with a seed after the last Status that named its key id,
/// and a plugin may repeat a Status for fifteen minutes while its server is away: what was
/// superseded longer ago than this encrypts nothing any more.
const WRITES_END_AFTER: Duration = Duration::from_secs(20 * 60);
/// A use is written down anew after this.
const MARKED_FOR: Duration = Duration::from_secs(2);

/// Something that needs a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependant {
    /// What it is: `cluster`, `backup`, `volume`, …
    pub kind: Label,
    /// Which, among those of its kind; of a cluster its id.
    pub id: Label,
    /// What people call it.
    pub name: String,
    /// How many objects it has under each version, where somebody has looked.
    #[serde(default)]
    pub versions: BTreeMap<KeyVersionId, u64>,
    /// When it stops to matter, such as the end of a backup's retention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When somebody began to look; `None` if nobody has yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Timestamp>,
    /// Versions that were encrypted under since then, and when last: what they encrypted is not
    /// among the objects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used: BTreeMap<KeyVersionId, Timestamp>,
}

impl Dependant {
    /// Whether it has ended by itself at `now`.
    pub(crate) fn has_ended(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Whether it needs the key at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        !self.has_ended(now)
            && (self.seen_at.is_none()
                || !self.used.is_empty()
                || self.versions.values().any(|objects| *objects > 0))
    }

    /// Whether it needs that version at `now`.
    pub fn needs(&self, version: KeyVersionId, now: Timestamp) -> bool {
        !self.has_ended(now)
            && (self.seen_at.is_none()
                || self.used.contains_key(&version)
                || self.versions.get(&version).is_some_and(|objects| *objects > 0))
    }

    /// A cluster at which nobody has looked yet.
    pub(crate) fn unseen(cluster: &Cluster) -> Option<Self> {
        Some(Self {
            kind: Label::parse(CLUSTER_KIND).ok()?,
            id: Label::parse(&cluster.id.to_string()).ok()?,
            name: cluster.name.clone().map(String::from).unwrap_or_default(),
            versions: BTreeMap::new(),
            until: None,
            seen_at: None,
            used: BTreeMap::new(),
        })
    }

    /// Whether a use of that version is written down already: what was a moment ago holds for this
    /// one too, but a look that began since would take it for over.
    pub(crate) fn is_marked(&self, version: KeyVersionId, now: Timestamp) -> bool {
        self.used.get(&version).is_some_and(|at| now.since(*at) < MARKED_FOR)
    }

    /// How many objects it has under all versions together, where somebody has looked.
    pub fn objects(&self) -> Option<u64> {
        self.seen_at.map(|_| self.versions.values().fold(0, |sum: u64, n| sum.saturating_add(*n)))
    }

    /// The uses of `before` that a look which began at `began` says nothing about.
    ///
    /// An apiserver may go on to write with a seed that was encrypted long before the look. So a
    /// use is settled only if no apiserver uses its version any more: by what they say themselves
    /// (`in_use`), or because it was superseded too long ago.
    pub(crate) fn unsettled(
        before: &Self,
        key: &Key,
        began: Timestamp,
        in_use: Option<&BTreeSet<KeyVersionId>>,
    ) -> BTreeMap<KeyVersionId, Timestamp> {
        let idle = |version: KeyVersionId| match in_use {
            Some(in_use) => !in_use.contains(&version),
            None => {
                let superseded = superseded_at(key, version);
                superseded.is_some_and(|at| began.since(at) > WRITES_END_AFTER)
            }
        };
        // A mark stands for every use within a moment after it.
        let keep = |(version, at): &(&KeyVersionId, &Timestamp)| {
            at.after(MARKED_FOR) > began || !idle(**version)
        };
        before.used.iter().filter(keep).map(|(version, at)| (*version, *at)).collect()
    }

    /// The cluster that it is, if it is one.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        (self.kind.0 == CLUSTER_KIND).then(|| self.id.0.parse().ok()).flatten()
    }

    /// The cluster whose snapshot it is, if it is one: its id begins with the cluster's.
    pub(crate) fn backup_of(&self) -> Option<ClusterId> {
        let (cluster, _) = self.id.0.split_once('.')?;
        (self.kind.0 == BACKUP_KIND).then(|| cluster.parse().ok()).flatten()
    }

    /// Checks what is not a type of its own.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.name.len() > MAX_NAME || self.name.chars().any(char::is_control) {
            return Err(Error::invalid(
                "name",
                "give at most 255 bytes without control characters",
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Dependant {
    /// `cluster prod (12 objects)`, as refusals list it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { &self.id.0 } else { &self.name };
        write!(f, "{} {name}", self.kind)?;
        match self.objects() {
            None => f.write_str(" (nobody has looked yet)")?,
            Some(0) if !self.used.is_empty() => f.write_str(match self.kind.as_str() {
                BACKUP_KIND => " (what was written until the snapshot)",
                _ => " (its plugin uses the key)",
            })?,
            Some(1) => f.write_str(" (1 object)")?,
            Some(objects) => write!(f, " ({objects} objects)")?,
        }
        match self.until {
            Some(until) => write!(f, " until {}", until.to_seconds_text()),
            None => Ok(()),
        }
    }
}

/// When `version` stopped to be the primary one, at the latest; `None` while it is.
fn superseded_at(key: &Key, version: KeyVersionId) -> Option<Timestamp> {
    if key.primary.version == version {
        return None;
    }
    match &key.superseded {
        Some((before, until)) if before.version == version => Some(*until),
        Some((before, _)) => Some(before.since),
        None => Some(key.primary.since),
    }
}

/// A kind or an id: 1–128 lower-case letters, digits, `-`, `_` and `.`, as a part of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// Reads one.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with what is allowed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        if text.is_empty() || text.len() > MAX_LABEL || !text.bytes().all(allowed) {
            return Err(Error::invalid(
                "dependant",
                "kind and id have 1 to 128 lower-case letters, digits, '-', '_' or '.'",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Label {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the paths of a key's dependants begin with.
pub(crate) fn prefix_of(key: KeyId) -> String {
    format!("{DEPENDANTS}{key}/")
}

/// Where a dependant is kept.
pub(crate) fn path_of(key: KeyId, kind: &str, id: &str) -> String {
    format!("{DEPENDANTS}{key}/{kind}/{id}")
}

/// The key, kind and id that a path names.
pub(crate) fn parse_path(path: &str) -> Option<(KeyId, &str, &str)> {
    let (key, rest) = path.strip_prefix(DEPENDANTS)?.split_once('/')?;
    let (kind, id) = rest.split_once('/')?;
    Some((key.parse().ok()?, kind, id))
}

pub(crate) type Place = (KeyId, Label, Label);

/// All dependants, by key, kind and id.
#[derive(Default)]
pub(crate) struct DependantIndex {
    known: RwLock<BTreeMap<Place, Arc<Stored<Dependant>>>>,
}

impl DependantIndex {
    /// What is known now, to be compared with what a new reading of all finds.
    pub(crate) fn places(&self) -> Vec<(Place, Arc<Stored<Dependant>>)> {
        let known = self.known.read();
        known.iter().map(|(place, stored)| (place.clone(), Arc::clone(stored))).collect()
    }

    /// Forgets what was known before a new reading and was neither found by it nor changed since.
    pub(crate) fn forget_unless_seen(&self, before: Vec<(Place, Arc<Stored<Dependant>>)>) {
        let mut known = self.known.write();
        for (place, old) in before {
            if known.get(&place).is_some_and(|now| Arc::ptr_eq(now, &old)) {
                known.remove(&place);
            }
        }
    }

    pub(crate) fn learn(&self, key: KeyId, stored: Stored<Dependant>) {
        let place = (key, stored.value.kind.clone(), stored.value.id.clone());
        let mut known = self.known.write();
        // What was read before a change must not replace what the change has told.
        if known.get(&place).is_none_or(|known| known.revision <= stored.revision) {
            known.insert(place, Arc::new(stored));
        }
    }

    pub(crate) fn forget(&self, key: KeyId, kind: &str, id: &str) {
        let place = (key, Label(kind.to_owned()), Label(id.to_owned()));
        self.known.write().remove(&place);
    }

    /// The revision of one, to see whether it is known already.
    pub(crate) fn revision(&self, key: KeyId, kind: &str, id: &str) -> Option<Revision> {
        self.find(key, kind, id).map(|stored| stored.revision)
    }

    pub(crate) fn find(&self, key: KeyId, kind: &str, id: &str) -> Option<Arc<Stored<Dependant>>> {
        let place = (key, Label(kind.to_owned()), Label(id.to_owned()));
        self.known.read().get(&place).cloned()
    }

    /// Those of one key, by kind and id.
    pub(crate) fn of(&self, key: KeyId) -> Vec<Arc<Stored<Dependant>>> {
        Self::range(&self.known.read(), key).cloned().collect()
    }

    /// How many a key has that have not ended.
    pub(crate) fn count(&self, key: KeyId, now: Timestamp) -> usize {
        Self::range(&self.known.read(), key).filter(|one| !one.value.has_ended(now)).count()
    }

    /// At most `limit` of those that ended at least `ago` before `now`.
    pub(crate) fn ended(
        &self,
        key: KeyId,
        (now, ago): (Timestamp, Duration),
        limit: usize,
    ) -> Vec<Arc<Stored<Dependant>>> {
        let known = self.known.read();
        let ended = |one: &&Arc<Stored<Dependant>>| {
            one.value.until.is_some_and(|until| until.after(ago) <= now)
        };
        Self::range(&known, key).filter(ended).take(limit).cloned().collect()
    }

    fn range(
        known: &BTreeMap<Place, Arc<Stored<Dependant>>>,
        key: KeyId,
    ) -> impl Iterator<Item = &Arc<Stored<Dependant>>> {
        let first = (key, Label(String::new()), Label(String::new()));
        let rest = known.range((Bound::Included(first), Bound::Unbounded));
        rest.take_while(move |((of, _, _), _)| *of == key).map(|(_, stored)| stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn version(n: u8) -> KeyVersionId {
        KeyVersionId::from_bytes([n; 16])
    }

    fn example() -> Dependant {
        Dependant {
            kind: Label::parse("cluster").unwrap(),
            id: Label::parse("c-1").unwrap(),
            name: "prod".to_owned(),
            versions: BTreeMap::from([(version(1), 0), (version(2), 3)]),
            until: None,
            seen_at: Some(at(100)),
            used: BTreeMap::new(),
        }
    }

    #[test]
    fn what_needs_a_key() {
        let three = example();
        assert!(three.is_live(at(0)));
        assert!(three.needs(version(2), at(0)) && !three.needs(version(1), at(0)));
        assert_eq!(three.to_string(), "cluster prod (3 objects)");
        let none = Dependant { versions: BTreeMap::from([(version(1), 0)]), ..example() };
        assert!(!none.is_live(at(0)));
        let unseen = Dependant { seen_at: None, ..none.clone() };
        assert!(unseen.is_live(at(0)) && unseen.needs(version(9), at(0)));
        let used = Dependant { used: BTreeMap::from([(version(2), at(1))]), ..none };
        assert!(used.is_live(at(0)) && used.needs(version(2), at(0)));
        assert!(!used.needs(version(1), at(0)));
        let backup = Dependant { until: Some(at(50)), ..example() };
        assert!(backup.is_live(at(49)) && !backup.is_live(at(50)));
        assert!(!backup.needs(version(2), at(50)));
    }

    /// A look settles a use only if nobody can have written with its seed since.
    #[test]
    fn what_a_look_settles() {
        let mut key = crate::key::tests::example();
        let (old, primary) = (version(7), key.primary.version);
        let since = at(10_000);
        key.primary.since = since;
        key.superseded = Some((crate::key::Primary { version: old, ..key.primary }, since));
        let uses = BTreeMap::from([(old, at(9_000)), (primary, at(10_001))]);
        let before = Dependant { used: uses, ..example() };
        let after = |began, in_use: Option<&[KeyVersionId]>| {
            let in_use = in_use.map(|list| list.iter().copied().collect::<BTreeSet<_>>());
            let left = Dependant::unsettled(&before, &key, at(began), in_use.as_ref());
            left.into_keys().collect::<Vec<_>>()
        };
        // Nobody could ask the apiservers: the old version may be written with for a while.
        assert_eq!(after(10_002, None).len(), 2);
        assert_eq!(after(10_000 + 20 * 60, None).len(), 2);
        assert_eq!(after(10_001 + 20 * 60, None), [primary]);
        // They say what they use.
        assert_eq!(after(10_004, Some(&[primary])), [primary]);
        assert_eq!(after(10_004, Some(&[old, primary])).len(), 2);
        assert!(after(10_004, Some(&[])).is_empty());
        // What was used after the look began is not covered by it.
        assert_eq!(after(9_000, Some(&[])).len(), 2);
    }

    #[test]
    fn paths_and_labels() {
        let key = KeyId::from_bytes([1; 16]);
        let path = path_of(key, "cluster", "c-1");
        assert_eq!(parse_path(&path), Some((key, "cluster", "c-1")));
        assert_eq!(parse_path("dependant/x/cluster/c"), None);
        for bad in ["", "A", "a/b", "a b", &"x".repeat(129)] {
            assert!(Label::parse(bad).is_err(), "{bad}");
        }
        assert!(Label::parse("0193f1a2-0000-7000-8000-000000000001").is_ok());
    }

    #[test]
    fn the_index_keeps_keys_apart() {
        let index = DependantIndex::default();
        let stored = |value| Stored {
            value,
            counter: 1,
            revision: Revision::default(),
            code: crate::heads::Sum::default(),
        };
        let (one, two) = (KeyId::from_bytes([1; 16]), KeyId::from_bytes([2; 16]));
        index.learn(one, stored(example()));
        index.learn(two, stored(Dependant { seen_at: None, ..example() }));
        let count = |key| index.count(key, at(0));
        assert_eq!(count(one), 1);
        assert!(index.of(two)[0].value.is_live(at(0)));
        index.forget(one, "cluster", "c-1");
        assert_eq!((count(one), count(two)), (0, 1));
        assert!(index.find(two, "cluster", "c-1").is_some());
        // A new reading keeps what it finds and what came meanwhile, and forgets the rest.
        let three = KeyId::from_bytes([3; 16]);
        index.learn(one, stored(example()));
        let before = index.places();
        index.learn(one, stored(example()));
        index.learn(three, stored(example()));
        index.forget_unless_seen(before);
        assert_eq!((count(one), count(two), count(three)), (1, 0, 1));
        // What has ended is not counted.
        let id = Label::parse("b").unwrap();
        index.learn(three, stored(Dependant { id, until: Some(at(50)), ..example() }));
        assert_eq!((index.count(three, at(49)), index.count(three, at(50))), (2, 1));
        let ended = |seconds, limit| {
            index.ended(three, (at(seconds), Duration::from_secs(10)), limit).len()
        };
        assert_eq!((ended(59, 9), ended(60, 9), ended(60, 0)), (0, 1, 0));
    }
}
