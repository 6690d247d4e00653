//! Dependants: written down, taken away, listed; and what the loss of a key would mean.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId};

use super::{Command, Done, Scope, Unnoted, guard::MAX_REASON, retire, rotations, second_person};
use crate::{
    Error, Timestamp,
    action::Action,
    audit::Record,
    barrier::Stored,
    cluster::Cluster,
    dependants::{CLUSTER_KIND, Dependant, Label},
    engine::Core,
    key::{Key, KeyRef, KeyVersion},
    policy::Resource,
    records::Change,
    second_person::Proposed,
};

/// At most this many dependants of one key that have not ended.
const MAX_DEPENDANTS: usize = 10_000;
/// What ended longer ago than this is forgotten with the next that is written down,
const KEPT_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// so many in one transaction, each with a head.
const FORGOTTEN: usize = 20;

/// Writes down what needs a key, in place of what was known of the same kind and id.
#[derive(Clone, Debug)]
pub struct PutDependant {
    /// Which key.
    pub key: KeyRef,
    /// What needs it. Uses are the engine's own: what is given of them is ignored.
    pub dependant: Dependant,
    /// The versions that are encrypted under at present, if that is known of everybody who could:
    /// of a cluster, those whose key ids its apiservers use.
    pub in_use: Option<BTreeSet<KeyVersionId>>,
}

impl Command for PutDependant {
    const ACTION: Action = Action::PutDependant;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        note(record, &self.dependant.kind, &self.dependant.id);
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        self.dependant.check()
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let key = core.records.key(core.require(&self.key)?).await?;
        let id = key.value.id;
        scope.used(id, None);
        let mut new = self.dependant.clone();
        if new.versions.keys().any(|version| !key.value.versions.contains(version)) {
            return Err(Error::KeyVersionNotFound);
        }
        let now = core.clock.now();
        let old = core.records.dependants.find(id, new.kind.as_str(), new.id.as_str());
        if old.is_none() && core.records.dependants.count(id, now) >= MAX_DEPENDANTS {
            return Err(Error::LimitExceeded { what: "dependants", limit: MAX_DEPENDANTS });
        }
        new.used = match (old.as_deref(), new.seen_at) {
            (Some(old), Some(began)) => {
                Dependant::unsettled(&old.value, &key.value, began, self.in_use.as_ref())
            }
            (Some(old), None) => old.value.used.clone(),
            (None, _) => BTreeMap::new(),
        };
        if let Some(cluster) = new.cluster()
            && rotations::is_enabling(core, cluster, id).await?
        {
            // Whatever was seen: it is about to be written under.
            new.used.insert(key.value.primary.version, now);
        }
        if let Some(cluster) = new.backup_of() {
            new.used = used_until_the_snapshot(core, &key, cluster);
        }
        if let Some(objects) = new.objects() {
            scope.record.number("objects", objects);
        }
        let forgotten = ended(core, id, old.as_deref()).await;
        let change = write_down(core, &key, old.as_deref(), new);
        let forget = |change: Change, gone: &Arc<_>| change.delete_dependant(id, gone);
        Ok(Done::write((), forgotten.iter().fold(change, forget)))
    }
}

/// Some of those that ended long ago, but the one that is written anew: nobody takes a backup's
/// record away. A clock that jumped has ended nothing.
async fn ended(
    core: &Core,
    key: KeyId,
    written: Option<&Stored<Dependant>>,
) -> Vec<Arc<Stored<Dependant>>> {
    let long_ago = (core.clock.now(), KEPT_AFTER);
    let mut ended = core.records.dependants.ended(key, long_ago, FORGOTTEN);
    ended.retain(|one| written.is_none_or(|old| old.value != one.value));
    if ended.is_empty() || !core.may_destroy().await {
        return Vec::new();
    }
    ended
}

/// The versions that something may be written under between the count for a backup and its snapshot,
/// which comes after it: the one that encrypts now, and those that the cluster's plugins have used.
fn used_until_the_snapshot(
    core: &Core,
    key: &Stored<Key>,
    cluster: ClusterId,
) -> BTreeMap<KeyVersionId, Timestamp> {
    let id = cluster.to_string();
    let now = core.clock.now();
    let of_cluster = core.records.dependants.find(key.value.id, CLUSTER_KIND, &id);
    // A key that the cluster has nothing under needs no more for its snapshot.
    let Some(found) = of_cluster.filter(|found| found.value.is_live(now)) else {
        return BTreeMap::new();
    };
    let mut used = found.value.used.clone();
    used.insert(key.value.primary.version, now);
    used
}

/// Notes which dependant a command is about.
fn note(record: &mut Record, kind: &Label, id: &Label) {
    record.field("dependant", format_args!("{kind}/{id}"));
}

/// Puts `new` in place of `old`. One that begins to need the key, or a version of it, touches the
/// key's record too, so that a change which makes that unusable meanwhile loses the race, and sees
/// it.
pub(super) fn write_down(
    core: &Core,
    key: &Stored<Key>,
    old: Option<&Stored<Dependant>>,
    new: Dependant,
) -> Change {
    let now = core.clock.now();
    let needed = |version: &KeyVersionId| old.is_some_and(|old| old.value.needs(*version, now));
    let mut versions = key.value.versions.iter();
    let begins = versions.any(|version| new.needs(*version, now) && !needed(version))
        || new.is_live(now) && !old.is_some_and(|old| old.value.is_live(now));
    let change = Change::new().put_dependant(key.value.id, old, new);
    if begins { change.update_key(key, key.value.clone()) } else { change }
}

/// What has to be written because a plugin of `cluster` encrypts under `version`; nothing if that
/// is written down already. With the first use the cluster begins to be a dependant, whether
/// anybody can look at it or not.
pub(super) fn mark_use(
    core: &Core,
    key: &Stored<Key>,
    cluster: ClusterId,
    version: KeyVersionId,
) -> Option<Change> {
    let now = core.clock.now();
    let old = core.records.dependants.find(key.value.id, CLUSTER_KIND, &cluster.to_string());
    if old.as_ref().is_some_and(|old| old.value.is_marked(version, now)) {
        return None;
    }
    let known = core.records.cluster(cluster)?;
    let mut new = match &old {
        Some(old) => old.value.clone(),
        None => Dependant::unseen(&known.value)?,
    };
    let is_live = old.as_ref().is_some_and(|old| old.value.is_live(now));
    new.used.insert(version, now);
    let mut change = write_down(core, key, old.as_deref(), new);
    if !is_live {
        // Who forgets the cluster meanwhile loses the race, and sees it; or we do.
        change = change.update_cluster(&known, known.value.clone());
    }
    let all = core.records.dependants.of(key.value.id);
    let taken_now = all.iter().filter(|one| {
        let is_new = one.value.seen_at.is_some_and(|at| now.since(at) < SNAPSHOT_WITHIN);
        one.value.backup_of() == Some(cluster) && is_new && !one.value.needs(version, now)
    });
    Some(taken_now.fold(change, |change, backup| {
        let mut known = backup.value.clone();
        known.used.insert(version, now);
        change.put_dependant(key.value.id, Some(backup), known)
    }))
}

/// What has to be written because a plugin of `cluster` has decrypted, at `at` by its own clock,
/// what was encrypted under `version`; nothing while the cluster is known to need that. Where a look
/// has found nothing under it there is something now: etcd was brought back from a snapshot, say.
/// The next look tells.
pub(super) fn mark_found(
    core: &Core,
    key: &Stored<Key>,
    cluster: ClusterId,
    (version, at): (KeyVersionId, Timestamp),
) -> Option<Change> {
    let now = core.clock.now();
    let known = core.records.dependants.find(key.value.id, CLUSTER_KIND, &cluster.to_string());
    if let Some(known) = &known {
        let looked_since = known.value.seen_at.is_some_and(|began| at.after(CLOCKS_DIFFER) < began);
        if looked_since || known.value.needs(version, now) {
            return None;
        }
    }
    mark_use(core, key, cluster, version)
}

/// So many uses wait to be noted; there are as many as clusters have versions.
const TO_NOTE: usize = 4096;

impl Core {
    /// What could not be noted is, once something can be written: a store that takes no note takes no
    /// retirement either, and this comes before the due ones.
    pub(super) fn note_later(&self, found: Unnoted, why: &Error) {
        let (key, cluster, version) = found;
        let mut unnoted = self.unnoted.lock();
        if unnoted.len() < TO_NOTE && unnoted.insert(found) {
            tracing::warn!(
                %key, %cluster, %version, %why,
                "what was decrypted is answered, and cannot be written down as needed yet; after a \
                 restart of the server run `lastkey cluster status`"
            );
        }
    }

    /// Notes what could not be when it was found.
    pub(crate) async fn note_found(&self) {
        let waiting: Vec<Unnoted> = self.unnoted.lock().iter().copied().collect();
        for found @ (key, cluster, version) in waiting {
            let noted = match self.records.key(key).await {
                Err(Error::KeyNotFound) => true,
                Err(_) => false,
                Ok(key) => {
                    let now = (version, self.clock.now());
                    match mark_found(self, &key, cluster, now) {
                        Some(change) => {
                            matches!(self.records.commit(change, None).await, Ok(Ok(())))
                        }
                        None => true,
                    }
                }
            };
            if noted {
                self.unnoted.lock().remove(&found);
            }
        }
    }
}

/// A plugin's clock and the server's differ by less than this.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// A snapshot is taken within this after what is in it was counted: what is used until then may be in it.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(3600);

/// So many keys of a cluster wait for a look in one transaction; each writes two records.
const LOOKED_FOR: usize = 24;

/// What has to be written so that a cluster counts as a dependant of its keys until somebody has
/// looked: nothing where it is known already.
pub(super) async fn expect_a_look(core: &Core, cluster: &Cluster) -> Result<Change, Error> {
    let id = cluster.id.to_string();
    let unseen = Dependant::unseen(cluster).ok_or(Error::Internal)?;
    let mut change = Change::new();
    for key in cluster.keys.iter().take(LOOKED_FOR) {
        let known = core.records.dependants.find(*key, CLUSTER_KIND, &id);
        let key = match core.records.key(*key).await {
            Ok(key) if known.is_none() => key,
            Ok(_) | Err(Error::KeyNotFound) => continue,
            Err(error) => return Err(error),
        };
        change = change.put_dependant(key.value.id, None, unseen.clone());
        change = change.update_key(&key, key.value.clone());
    }
    Ok(change)
}

/// That a cluster got a name after its plugin's first use was written down.
pub(super) fn named(core: &Core, cluster: &Cluster, change: Change) -> Change {
    let (id, name) = (cluster.id.to_string(), cluster.name.clone().map(String::from));
    let Some(name) = name else { return change };
    let find = |key| core.records.dependants.find(key, CLUSTER_KIND, &id);
    let known = cluster.keys.iter().filter_map(|key| Some((*key, find(*key)?)));
    known.take(LOOKED_FOR).fold(change, |change, (key, known)| {
        let new = Dependant { name: name.clone(), ..known.value.clone() };
        change.put_dependant(key, Some(&known), new)
    })
}

/// Forgets a dependant: it is gone, and nobody will look any more.
#[derive(Clone, Debug)]
pub struct RemoveDependant {
    /// Which key it needed.
    pub key: KeyRef,
    /// What it was.
    pub kind: Label,
    /// Which.
    pub id: Label,
    /// Why, for the audit log.
    pub reason: String,
}

impl Command for RemoveDependant {
    const ACTION: Action = Action::RemoveDependant;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        note(record, &self.kind, &self.id);
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        if self.reason.trim().is_empty() || self.reason.len() > MAX_REASON {
            return Err(Error::invalid("reason", "say why, in at most 1024 bytes"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let key = core.require(&self.key)?;
        scope.used(key, None);
        scope.record.field("reason", &self.reason);
        let old = core.records.dependants.find(key, self.kind.as_str(), self.id.as_str());
        let live = old.is_some_and(|old| old.value.is_live(core.clock.now()));
        // Otherwise one person could take away what stands in the way, and then the key.
        if live && second_person::is_needed(core).await? {
            let (kind, id) = (self.kind.clone(), self.id.clone());
            let proposed = Proposed::RemoveDependant { key, kind, id };
            return second_person::ask(core, scope, (proposed, &self.reason)).await;
        }
        Ok(Done::write((), remove(core, scope, (key, &self.kind, &self.id))?))
    }
}

/// What has to be written for a dependant to be forgotten.
pub(super) fn remove(
    core: &Core,
    scope: &mut Scope<'_>,
    (key, kind, id): (KeyId, &Label, &Label),
) -> Result<Change, Error> {
    let old = core.records.dependants.find(key, kind.as_str(), id.as_str());
    let old = old.ok_or(Error::NotFound("dependant"))?;
    if let Some(objects) = old.value.objects() {
        scope.record.number("objects", objects);
    }
    Ok(Change::new().delete_dependant(key, &old))
}

/// Lists what needs a key, and what has needed it.
#[derive(Clone, Debug)]
pub struct ListDependants {
    /// Which key.
    pub key: KeyRef,
}

impl Command for ListDependants {
    const ACTION: Action = Action::ListDependants;
    type Output = Vec<Dependant>;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Vec<Dependant>>, Error> {
        let key = core.require(&self.key)?;
        scope.used(key, None);
        Ok(Done::read(all_of(core, key)))
    }
}

fn all_of(core: &Core, key: KeyId) -> Vec<Dependant> {
    core.records.dependants.of(key).iter().map(|stored| stored.value.clone()).collect()
}

/// What the loss of a key, or of one version, would mean.
#[derive(Clone, Debug)]
pub struct Impact {
    /// The key.
    pub key: Arc<Key>,
    /// Its versions, or the one that was asked for.
    pub versions: Vec<KeyVersion>,
    /// What needs any of these now, as it is written down.
    pub dependants: Vec<Dependant>,
    /// What else needs them, of which nothing is written down: clusters of which nobody knows what
    /// they have used, and callers who encrypted by themselves.
    pub unwritten: Vec<Dependant>,
    /// What each version needs to stay for, of both.
    pub needing: BTreeMap<KeyVersionId, Vec<Dependant>>,
    /// When this is true.
    pub now: Timestamp,
}

/// Answers with what the loss of a key, or of one version, would mean.
#[derive(Clone, Debug)]
pub struct DescribeImpact {
    /// Which key.
    pub key: KeyRef,
    /// Only this version.
    pub version: Option<KeyVersionId>,
}

/// What tells dependants apart.
fn name_of(dependant: &Dependant) -> (String, String) {
    (dependant.kind.to_string(), dependant.id.to_string())
}

impl Command for DescribeImpact {
    const ACTION: Action = Action::DescribeImpact;
    type Output = Impact;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Impact>, Error> {
        let key = core.records.key(core.require(&self.key)?).await?;
        let key = Arc::new(key.value.clone());
        scope.used(key.id, self.version);
        let wanted = match self.version {
            Some(version) if !key.versions.contains(&version) => {
                return Err(Error::KeyVersionNotFound);
            }
            Some(version) => vec![version],
            None => key.versions.clone(),
        };
        let now = core.clock.now();
        let known = core.records.dependants.of(key.id);
        let mut versions = Vec::with_capacity(wanted.len());
        let mut told: HashSet<(String, String)> =
            known.iter().map(|one| name_of(&one.value)).collect();
        let (mut unwritten, mut by_version) = (Vec::new(), BTreeMap::new());
        for version in wanted {
            let version = core.records.version(version).await?;
            let needing = retire::needing(core, key.id, &version, &known);
            for one in &needing {
                if told.insert(name_of(one)) {
                    unwritten.push(one.clone());
                }
            }
            by_version.insert(version.id, needing);
            let retirement = key.retirements.get(&version.id).cloned();
            let described = core.records.describe(&version).await?;
            versions.push(KeyVersion { retirement, ..described });
        }
        let mut dependants: Vec<_> = known.iter().map(|stored| stored.value.clone()).collect();
        dependants.retain(|dependant| match self.version {
            Some(version) => dependant.needs(version, now),
            None => dependant.is_live(now),
        });
        Ok(Done::read(Impact { key, versions, dependants, unwritten, needing: by_version, now }))
    }
}
