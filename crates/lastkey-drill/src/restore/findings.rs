//! From what became of each object to reasons, counts and a verdict.

use std::collections::{BTreeMap, BTreeSet};

use lastkey_crypto::ClusterId;
use lastkey_kubernetes::cluster::ApiError;

use super::{
    Outcomes,
    reading::{Outcome, Reading},
};
use crate::{
    LocalProviders, NAMED,
    objects::{Contents, Origin, kind_of, names_in},
    report::{
        MissingVersion, ReasonRow, ResourceRow, RestoreReport, Snapshot, State, UnderRow,
        Unreadable,
    },
    state::{Key, Known},
};

/// Why an object cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    VersionMissing,
    VersionRetired,
    ClusterUnknown,
    KeyUnusable,
    KeyNotGranted,
    LocalKeyMissing,
    LocalKeyWrong,
    OtherPlugin,
    UnknownFormat,
    NotServed,
    Damaged,
    NotReadable,
}

impl Reason {
    /// Code, what is said, and what to do.
    fn texts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::VersionMissing => (
                "key-version-missing",
                "the backup does not have the key version",
                "use a backup of Lastkey that was made after that version was; from now on, back \
                 Lastkey up after each rotation, and after each snapshot of etcd",
            ),
            Self::VersionRetired => (
                "key-version-retired",
                "the key version is retired in the backup: it decrypts no more",
                "its material is still there, and is destroyed in the end: lastkey key versions \
                 reinstate KEY --version ID, on the server that is in use as well, or drop the snapshot",
            ),
            Self::ClusterUnknown => (
                "cluster-unknown",
                "it was encrypted for a cluster that the backup does not know",
                "snapshot and backup belong to different clusters, or the backup is older than \
                 the cluster's registration: give the ones that belong together",
            ),
            Self::KeyUnusable => (
                "key-unusable",
                "the key is disabled or pending deletion in the backup",
                "after a restore: lastkey key enable KEY, or key cancel-deletion KEY",
            ),
            Self::KeyNotGranted => (
                "key-not-granted",
                "the cluster was not given the key, or not any more",
                "re-encrypt these objects under a key that the cluster has while the old one is \
                 still granted",
            ),
            Self::LocalKeyMissing => (
                "local-key-missing",
                "a local key of that name is in no EncryptionConfiguration that was given",
                "give the configuration of that time: --encryption-config FILE",
            ),
            Self::LocalKeyWrong => (
                "local-key-wrong",
                "the local key of that name does not open it",
                "give the configuration of the time when it was written; or the value is damaged",
            ),
            Self::OtherPlugin => (
                "other-plugin",
                "it was encrypted by a KMS plugin that is not Lastkey's",
                "a drill cannot ask another plugin; bring these objects under Lastkey, or drill \
                 with the other service",
            ),
            Self::UnknownFormat => (
                "unknown-format",
                "it starts like an encrypted value and goes on in no way that is known",
                "the value is damaged, or a newer apiserver's",
            ),
            Self::NotServed => (
                "not-served",
                "no resource that the scratch apiserver serves has it",
                "use the kube-apiserver of the cluster's release, with its flags; for custom \
                 resources, see whether their definition can be read; what an older release left \
                 behind and nobody misses: --leftover KIND",
            ),
            Self::Damaged => (
                "damaged",
                "the key version is there, and the apiserver cannot read it",
                "the value is damaged, or was put where it does not belong; if it is a custom \
                 resource, its definition may convert it by a webhook, and a drill asks none",
            ),
            Self::NotReadable => (
                "not-readable",
                "the apiserver cannot read it, and no key is the reason",
                "use the kube-apiserver of the cluster's release; a custom resource may need a \
                 conversion webhook, and a drill asks none",
            ),
        }
    }
}

/// What apiservers keep in etcd beside objects: which of them there are, and which addresses and
/// ports of Services are taken.
const BOOKKEEPING: [&str; 3] = ["masterleases", "peerserverleases", "ranges"];

/// What was found so far.
pub(super) struct Findings<'a> {
    contents: &'a Contents,
    known: &'a Known,
    local: &'a LocalProviders,
    /// Kinds that nobody misses.
    leftovers: &'a [String],
    outcomes: Vec<Option<(String, Outcome)>>,
    /// Namespace and name where the API has the object.
    addresses: BTreeMap<usize, (String, String)>,
    remarks: BTreeSet<String>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(
        contents: &'a Contents,
        known: &'a Known,
        (local, leftovers): (&'a LocalProviders, &'a [String]),
    ) -> Self {
        let outcomes = vec![None; contents.items.len()];
        let (addresses, remarks) = (BTreeMap::new(), BTreeSet::new());
        Self { contents, known, local, leftovers, outcomes, addresses, remarks }
    }

    pub(super) fn contents(&self) -> &'a Contents {
        self.contents
    }

    pub(super) fn needs_acceptance(&mut self, held: Option<&str>) {
        if let Some(held) = held {
            self.remarks.insert(format!(
                "a server does not serve from this backup before somebody accepts it (`lastkey \
                 operator accept-restore`); on the copy it was accepted: {held}"
            ));
        }
    }

    pub(super) fn note_unready(&mut self, checks: &[String]) {
        if !checks.is_empty() {
            self.remarks.insert(format!(
                "the scratch apiserver did not become ready ({}): what cannot be read keeps a \
                 real one from it as well",
                checks.join(", ")
            ));
        }
    }

    /// The items that a pass reads: what its providers wrote, and in the first one all that no
    /// other will.
    pub(super) fn items_of(
        &self,
        pass: usize,
        has: impl Fn(&str, &'static str, ClusterId) -> bool,
    ) -> Vec<usize> {
        let origins: Vec<bool> = self
            .contents
            .origins
            .iter()
            .map(|origin| match origin {
                Origin::Ours { api, provider, cluster, .. }
                    if self.known.key_for(*cluster).is_some() =>
                {
                    has(provider, api, *cluster)
                }
                _ => pass == 0,
            })
            .collect();
        let items = self.contents.items.iter().enumerate();
        items.filter(|(_, item)| origins[item.origin]).map(|(index, _)| index).collect()
    }

    /// Whether anything could not be read.
    pub(super) fn take(
        &mut self,
        reading: &Reading<'_>,
        items: &[usize],
        outcomes: Outcomes,
    ) -> bool {
        let failed = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_)));
        for (item, outcome) in items.iter().zip(outcomes) {
            let key = &self.contents.items[*item].key;
            let resource = match reading.map.find(key) {
                Some(address) => {
                    if matches!(outcome, Outcome::Failed(_)) {
                        self.addresses.insert(*item, (address.namespace, address.name));
                    }
                    reading.map.resources[address.resource].full_name()
                }
                None => kind_of(key).to_owned(),
            };
            self.outcomes[*item] = Some((resource, outcome));
        }
        for group in &reading.unavailable {
            let remark = format!("{group} is served by an aggregated apiserver, which is not here");
            self.remarks.insert(remark);
        }
        failed
    }

    pub(super) fn report(self, snapshot: Snapshot, state: State) -> RestoreReport {
        let mut sums = Sums::default();
        for (index, item) in self.contents.items.iter().enumerate() {
            let Some((resource, outcome)) = &self.outcomes[index] else { continue };
            let origin = &self.contents.origins[item.origin];
            let reason = match outcome {
                Outcome::Read => None,
                Outcome::Gone => {
                    sums.gone += 1;
                    continue;
                }
                Outcome::NotServed if *origin == Origin::Clear && self.is_nothing(resource) => {
                    *sums.not_objects.entry(resource.clone()).or_default() += 1;
                    continue;
                }
                Outcome::NotServed => Some(self.reason_of(origin).unwrap_or(Reason::NotServed)),
                Outcome::Failed(error) => Some(self.reason(origin, error)),
            };
            sums.count(resource, (item.origin, reason));
            if let Some(reason) = reason {
                let named = self.addresses.get(&index).cloned().unwrap_or_else(|| {
                    let (namespace, name) = names_in(&item.key);
                    (namespace.to_owned(), name.to_owned())
                });
                sums.unreadable(self.unreadable(resource, named, (origin, reason)));
            }
        }
        self.assemble(sums, snapshot, state)
    }

    /// Whether a kind that is not served is no object at all: the apiserver's own bookkeeping, or
    /// what rests for nobody, as was said.
    fn is_nothing(&self, kind: &str) -> bool {
        BOOKKEEPING.contains(&kind) || self.leftovers.iter().any(|leftover| leftover == kind)
    }

    fn assemble(mut self, sums: Sums, snapshot: Snapshot, state: State) -> RestoreReport {
        let under = self.under(&sums);
        let missing_key_versions = self.missing(&sums);
        let total: Counts = sums.resources.values().copied().sum();
        if sums.gone > 0 {
            self.remarks.insert(format!(
                "{} objects went away meanwhile, from etcd too: they had expired, or the \
                 apiserver keeps house",
                sums.gone
            ));
        }
        let not_objects: u64 = sums.not_objects.values().sum();
        if not_objects > 0 {
            let kinds: Vec<String> =
                sums.not_objects.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            self.remarks.insert(format!(
                "{not_objects} keys in clear are no objects of a resource that is served: {}",
                kinds.join(", ")
            ));
        }
        let reasons: Vec<ReasonRow> = sums
            .reasons
            .iter()
            .map(|(reason, objects)| {
                let (code, message, fix) = reason.texts();
                ReasonRow { code, message: message.to_owned(), fix, objects: *objects }
            })
            .collect();
        let ok = total.unreadable == 0;
        let verdict = self.verdict(total, &reasons, &missing_key_versions);
        RestoreReport {
            ok,
            verdict,
            snapshot,
            state,
            objects: total.all(),
            readable: total.readable,
            unreadable: total.unreadable,
            not_objects,
            resources: sums
                .resources
                .iter()
                .map(|(resource, counts)| ResourceRow {
                    resource: resource.clone(),
                    objects: counts.all(),
                    readable: counts.readable,
                    unreadable: counts.unreadable,
                })
                .collect(),
            under,
            missing_key_versions,
            reasons,
            unreadable_objects: sums.named,
            unreadable_not_named: sums.not_named,
            remarks: self.remarks.into_iter().collect(),
            seconds: 0,
        }
    }

    fn verdict(&self, total: Counts, reasons: &[ReasonRow], missing: &[MissingVersion]) -> String {
        let all = total.all();
        let has_ours =
            self.contents.origins.iter().any(|origin| matches!(origin, Origin::Ours { .. }));
        if total.unreadable == 0 && !has_ours {
            return format!(
                "all {all} objects can be read, and none of them is encrypted by Lastkey: is this \
                 the etcd that was meant?"
            );
        }
        if total.unreadable == 0 {
            return format!("all {all} objects can be read");
        }
        let mut text = format!("{} of {all} objects cannot be read", total.unreadable);
        let ours = self.contents.origins.iter().filter_map(|origin| match origin {
            Origin::Ours { cluster, .. } => Some(*cluster),
            _ => None,
        });
        let ours: BTreeSet<ClusterId> = ours.collect();
        if !ours.is_empty() && ours.iter().all(|id| !self.known.clusters.contains_key(id)) {
            let list = |ids: &mut dyn Iterator<Item = String>| ids.collect::<Vec<_>>().join(", ");
            let theirs = list(&mut ours.iter().map(ToString::to_string));
            let known = list(&mut self.known.clusters.iter().map(|(id, cluster)| {
                cluster
                    .name
                    .as_ref()
                    .map_or_else(|| id.to_string(), |name| format!("{name} ({id})"))
            }));
            return text
                + &format!(
                    ": the snapshot is of another cluster. What Lastkey encrypted in it is for \
                     {theirs}; the backup knows {known}"
                );
        }
        match missing {
            [] => {}
            [one] => text += &format!(": the key version {} is missing", one.key_version),
            many => text += &format!(": {} key versions are missing", many.len()),
        }
        let others = reasons.iter().filter(|row| row.code != "key-version-missing");
        let others: Vec<&str> = others.map(|row| row.code).collect();
        if !others.is_empty() {
            text += &format!(" ({})", others.join(", "));
        }
        text
    }

    /// What can be said without having read anything.
    fn reason_of(&self, origin: &Origin) -> Option<Reason> {
        match origin {
            Origin::Clear => None,
            Origin::Unknown => Some(Reason::UnknownFormat),
            Origin::Foreign { .. } => Some(Reason::OtherPlugin),
            Origin::Local { provider, key } => {
                (!self.local.has(provider, key)).then_some(Reason::LocalKeyMissing)
            }
            Origin::Ours { cluster, version, .. } => {
                let Some(of) = self.known.clusters.get(cluster) else {
                    return Some(Reason::ClusterUnknown);
                };
                let Some(version) = self.known.versions.get(version) else {
                    return Some(Reason::VersionMissing);
                };
                if !self.known.keys.get(&version.key).is_some_and(Key::is_usable) {
                    return Some(Reason::KeyUnusable);
                }
                if !of.keys.contains(&version.key) {
                    return Some(Reason::KeyNotGranted);
                }
                version.is_retired.then_some(Reason::VersionRetired)
            }
        }
    }

    /// Why a read failed.
    fn reason(&self, origin: &Origin, error: &ApiError) -> Reason {
        tracing::debug!(%error, "an object could not be read");
        // What cannot be decrypted is answered with a failure of the apiserver's own.
        let own = matches!(error, ApiError::Failed { status: 500, .. });
        self.reason_of(origin).unwrap_or(match origin {
            Origin::Local { .. } if own => Reason::LocalKeyWrong,
            Origin::Ours { .. } if own => Reason::Damaged,
            _ => Reason::NotReadable,
        })
    }

    /// The key, the version and the cluster that are shown of an origin.
    fn shown(&self, origin: &Origin) -> (Option<String>, Option<String>, Option<String>) {
        match origin {
            Origin::Local { key, .. } => (Some(key.clone()), None, None),
            Origin::Ours { cluster, version, lineage, .. } => {
                let key = self.known.versions.get(version).map(|version| version.key);
                let key = key.or_else(|| self.known.lineages.get(lineage).copied());
                let key = key.and_then(|id| self.known.keys.get(&id)).map(Key::shown);
                let name = self.known.clusters.get(cluster).and_then(|known| known.name.clone());
                (key, Some(version.to_string()), Some(name.unwrap_or_else(|| cluster.to_string())))
            }
            _ => (None, None, None),
        }
    }

    fn unreadable(
        &self,
        resource: &str,
        (namespace, name): (String, String),
        (origin, reason): (&Origin, Reason),
    ) -> Unreadable {
        let (key, key_version, _) = self.shown(origin);
        Unreadable {
            resource: resource.to_owned(),
            namespace,
            name,
            provider: origin.provider(),
            key,
            key_version,
            reason: reason.texts().0,
        }
    }

    fn under(&self, sums: &Sums) -> Vec<UnderRow> {
        let rows = sums.origins.iter().map(|(index, counts)| {
            let origin = &self.contents.origins[*index];
            let (key, key_version, cluster) = self.shown(origin);
            let created_at = match origin {
                Origin::Ours { version, .. } => {
                    self.known.versions.get(version).map(|known| known.created_at.clone())
                }
                _ => None,
            };
            UnderRow {
                provider: origin.provider(),
                key,
                key_version,
                created_at,
                cluster,
                objects: counts.all(),
                readable: counts.readable,
                unreadable: counts.unreadable,
            }
        });
        let mut rows: Vec<UnderRow> = rows.collect();
        rows.sort_by_key(|row| (row.provider.clone(), std::cmp::Reverse(row.objects)));
        rows
    }

    fn missing(&self, sums: &Sums) -> Vec<MissingVersion> {
        let rows = sums.origins.iter().filter_map(|(index, counts)| {
            let origin = &self.contents.origins[*index];
            let Origin::Ours { version, .. } = origin else { return None };
            let missing = counts.unreadable > 0 && !self.known.versions.contains_key(version);
            let (key, key_version, cluster) = self.shown(origin);
            missing.then(|| MissingVersion {
                key_version: key_version.unwrap_or_default(),
                key,
                cluster: cluster.unwrap_or_default(),
                objects: counts.unreadable,
            })
        });
        // the same version may have been used by providers of two names
        let mut missing: BTreeMap<String, MissingVersion> = BTreeMap::new();
        for row in rows {
            let known = missing.get(&row.key_version).map_or(0, |known| known.objects);
            let objects = known + row.objects;
            missing.insert(row.key_version.clone(), MissingVersion { objects, ..row });
        }
        missing.into_values().collect()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    readable: u64,
    unreadable: u64,
}

impl Counts {
    fn all(self) -> u64 {
        self.readable + self.unreadable
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            readable: sum.readable + one.readable,
            unreadable: sum.unreadable + one.unreadable,
        })
    }
}

#[derive(Default)]
struct Sums {
    resources: BTreeMap<String, Counts>,
    origins: BTreeMap<usize, Counts>,
    reasons: BTreeMap<Reason, u64>,
    not_objects: BTreeMap<String, u64>,
    gone: u64,
    named: Vec<Unreadable>,
    not_named: u64,
}

impl Sums {
    fn count(&mut self, resource: &str, (origin, reason): (usize, Option<Reason>)) {
        let of_resource = self.resources.entry(resource.to_owned()).or_default();
        let of_origin = self.origins.entry(origin).or_default();
        for counts in [of_resource, of_origin] {
            match reason {
                None => counts.readable += 1,
                Some(_) => counts.unreadable += 1,
            }
        }
        if let Some(reason) = reason {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }

    fn unreadable(&mut self, one: Unreadable) {
        match self.named.len() < NAMED {
            true => self.named.push(one),
            false => self.not_named += 1,
        }
    }
}

#[cfg(test)]
mod tests;
