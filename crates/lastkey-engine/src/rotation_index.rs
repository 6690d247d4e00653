//! What is known of the clusters' rotations without reading them: for metrics, and for the server's
//! own worker, which asks every few seconds what there is to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lastkey_crypto::{ClusterId, KeyVersionId};
use parking_lot::RwLock;
use serde_json::Value;

use crate::{
    Label, Timestamp,
    cluster::Automatic,
    dependants::{CLUSTER_KIND, Dependant},
    engine::{Core, Engine},
    jobs::{Phase, Problem, Progress, ROTATIONS, Rotation},
    key::{Key, KeyState},
};

/// The pause after the first failure of an automatic rotation; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// What was refused is tried again this long afterwards.
const REFUSED_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// One rotation, as far as it has to be known all the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    target: KeyVersionId,
    phase: Phase,
    /// Whether it is about the whole cluster and about nothing but a new version.
    plain: bool,
    whole: bool,
    paused: bool,
    leased_until: Option<Timestamp>,
    updated: Timestamp,
    progress: Option<Progress>,
    problem: Option<Problem>,
    /// Whether something was left that may do another day: refused, or not gone through.
    left: bool,
}

impl Summary {
    fn of(rotation: &Rotation) -> Self {
        let report = rotation.report.as_deref().and_then(|line| serde_json::from_str(line).ok());
        let content = report.map(|report: Value| report["content"].clone()).unwrap_or_default();
        let is = |field: &str, what: bool| content[field].as_bool() == Some(what);
        let refused = content["refused"].as_u64().unwrap_or(0);
        Self {
            target: rotation.target,
            phase: rotation.phase,
            plain: rotation.course.is_none(),
            // Somebody chose a part of it. The server's own go over all that it knows of.
            whole: rotation.namespace.is_none() && (rotation.automatic || !is("chosen", true)),
            paused: rotation.paused,
            leased_until: rotation.lease.as_ref().map(|lease| lease.until),
            updated: rotation.updated,
            progress: rotation.progress,
            problem: rotation.problem.clone(),
            left: refused > 0 || is("whole", false),
        }
    }

    /// Whether a worker may go on with it now.
    fn is_free(&self, now: Timestamp) -> bool {
        let rests = self.problem.as_ref().is_some_and(|problem| now < again_at(problem));
        self.plain && !self.paused && !rests && self.leased_until.is_none_or(|until| until <= now)
    }
}

/// When a rotation that failed is tried again.
fn again_at(problem: &Problem) -> Timestamp {
    let doubled = problem.attempts.saturating_sub(1).min(16);
    problem.at.after((FIRST_PAUSE * 2_u32.pow(doubled)).min(LONGEST_PAUSE))
}

/// All rotations that are kept, by cluster and id; ids begin with the time.
#[derive(Default)]
pub(crate) struct RotationIndex {
    known: RwLock<BTreeMap<ClusterId, BTreeMap<String, Summary>>>,
}

/// Cluster and id in a rotation's path.
fn parse_path(path: &str) -> Option<(ClusterId, &str)> {
    let (cluster, id) = path.strip_prefix(ROTATIONS)?.split_once('/')?;
    Some((cluster.parse().ok()?, id))
}

impl RotationIndex {
    /// Learns of one as it is stored.
    pub(crate) fn learn(&self, rotation: &Rotation) {
        let mut known = self.known.write();
        let of = known.entry(rotation.cluster).or_default();
        of.insert(rotation.id.as_str().to_owned(), Summary::of(rotation));
    }

    /// Learns of one that is about to be, or was, written at `path`; anything else is ignored.
    pub(crate) fn learn_json(&self, path: &str, json: &[u8]) {
        if parse_path(path).is_some()
            && let Ok(rotation) = serde_json::from_slice(json)
        {
            self.learn(&rotation);
        }
    }

    /// Forgets the one at `path`.
    pub(crate) fn forget(&self, path: &str) {
        let Some((cluster, id)) = parse_path(path) else { return };
        let mut known = self.known.write();
        if let Some(of) = known.get_mut(&cluster) {
            of.remove(id);
            if of.is_empty() {
                known.remove(&cluster);
            }
        }
    }
}

/// How a cluster's newest rotation is, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationGauge {
    /// The cluster's name, or its id.
    pub cluster: String,
    /// Where its newest rotation is.
    pub phase: Phase,
    /// Whether it rests because somebody wants it to.
    pub paused: bool,
    /// How far it has come.
    pub progress: Progress,
    /// How often in a row it has failed.
    pub failures: u32,
    /// When one was finished last.
    pub last_success: Option<Timestamp>,
}

/// What a worker of the server has to do for a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationWork {
    /// Nothing is under way, and something is under an older version: begin.
    Begin {
        /// The cluster.
        cluster: ClusterId,
        /// Its key.
        key: lastkey_crypto::KeyId,
        /// Whether the older versions are to be retired.
        retire: bool,
    },
    /// One is under way, and nobody works on it.
    GoOn {
        /// The cluster.
        cluster: ClusterId,
        /// The rotation.
        id: Label,
    },
}

impl RotationWork {
    /// The cluster that it is about.
    pub fn cluster(&self) -> ClusterId {
        match self {
            Self::Begin { cluster, .. } | Self::GoOn { cluster, .. } => *cluster,
        }
    }
}

/// What is known of a cluster's rotations, against its key as it is.
struct Look<'a> {
    known: Option<&'a BTreeMap<String, Summary>>,
    key: &'a Key,
    dependant: Option<&'a Dependant>,
}

impl Look<'_> {
    fn active(&self) -> Option<(&String, &Summary)> {
        self.known?.iter().find(|(_, one)| !one.phase.is_over())
    }

    /// Whether something is, or may be, under an older version, as far as anybody knows.
    fn is_behind(&self) -> bool {
        let primary = self.key.primary.version;
        let older: BTreeSet<_> = self.key.versions.iter().filter(|id| **id != primary).collect();
        let Some(dependant) = self.dependant else { return false };
        let counted = |id| dependant.versions.get(id).is_some_and(|objects| *objects > 0);
        let found = older.iter().any(|id| counted(*id) || dependant.used.contains_key(*id));
        // Nobody has looked; but a plugin of it encrypts, so there is something.
        found || (dependant.seen_at.is_none() && !dependant.used.is_empty() && !older.is_empty())
    }

    /// Whether this version has had its rotation already.
    fn is_settled(&self, now: Timestamp) -> bool {
        let over = self.known.into_iter().flat_map(BTreeMap::values);
        let newest = over.rev().find(|one| one.whole && one.phase.is_over());
        newest.is_some_and(|one| {
            let again =
                one.phase == Phase::Finished && one.left && one.updated.after(REFUSED_PAUSE) <= now;
            one.target == self.key.primary.version && !again
        })
    }

    /// Whether a rotation is to be begun.
    fn is_due(&self, now: Timestamp) -> bool {
        self.active().is_none()
            && self.key.state == KeyState::Enabled
            && self.is_behind()
            && !self.is_settled(now)
    }
}

impl Engine {
    /// How the clusters' newest rotations are, by the clusters' names.
    pub fn rotation_gauges(&self) -> Vec<RotationGauge> {
        self.core().rotation_gauges()
    }

    /// What a worker of this server has to do now, for the clusters that want that.
    ///
    /// # Errors
    /// A key cannot be read.
    pub async fn rotation_work(&self) -> Result<Vec<RotationWork>, crate::Error> {
        self.core().rotation_work().await
    }
}

impl Core {
    fn rotation_gauges(&self) -> Vec<RotationGauge> {
        let known = self.records.rotations.known.read();
        let mut gauges: Vec<RotationGauge> = known
            .iter()
            .filter_map(|(cluster, all)| {
                let stored = self.records.cluster(*cluster)?;
                let (_, newest) = all.last_key_value()?;
                let finished = all.values().filter(|one| one.phase == Phase::Finished);
                let name = stored.value.name.as_ref().map(|name| name.as_str().to_owned());
                Some(RotationGauge {
                    cluster: name.unwrap_or_else(|| cluster.to_string()),
                    phase: newest.phase,
                    paused: newest.paused,
                    progress: newest.progress.unwrap_or_default(),
                    failures: newest.problem.as_ref().map_or(0, |problem| problem.attempts),
                    last_success: finished.map(|one| one.updated).max(),
                })
            })
            .collect();
        gauges.sort_by(|one, other| one.cluster.cmp(&other.cluster));
        gauges
    }

    async fn rotation_work(&self) -> Result<Vec<RotationWork>, crate::Error> {
        let now = self.clock.now();
        let mut work = Vec::new();
        for stored in self.records.clusters() {
            let cluster = &stored.value;
            let Some(Automatic { retire }) = cluster.automatic else { continue };
            for key in &cluster.keys {
                let key = match self.records.key(*key).await {
                    Err(crate::Error::KeyNotFound) => continue,
                    other => other?,
                };
                let id = cluster.id.to_string();
                let dependant = self.records.dependants.find(key.value.id, CLUSTER_KIND, &id);
                let dependant = dependant.as_deref().map(|stored| &stored.value);
                let known = self.records.rotations.known.read();
                let look = Look { known: known.get(&cluster.id), key: &key.value, dependant };
                if let Some((id, active)) = look.active() {
                    if let (true, Ok(id)) = (active.is_free(now), Label::parse(id)) {
                        work.push(RotationWork::GoOn { cluster: cluster.id, id });
                    }
                    // one at a time of a cluster
                    break;
                }
                if look.is_due(now) {
                    let (cluster, key) = (cluster.id, key.value.id);
                    work.push(RotationWork::Begin { cluster, key, retire });
                    break;
                }
            }
        }
        Ok(work)
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

    fn summary(target: KeyVersionId, phase: Phase) -> Summary {
        Summary {
            target,
            phase,
            plain: true,
            whole: true,
            paused: false,
            leased_until: None,
            updated: at(1_000),
            progress: None,
            problem: None,
            left: false,
        }
    }

    /// A key whose version 7 was followed by version 8.
    fn key() -> Key {
        let mut key = crate::key::tests::example();
        key.versions = vec![version(7), version(8)];
        key.primary.version = version(8);
        key
    }

    fn dependant(versions: &[(u8, u64)], used: &[u8], seen: bool) -> Dependant {
        Dependant {
            kind: Label::parse(CLUSTER_KIND).unwrap(),
            id: Label::parse("c").unwrap(),
            name: String::new(),
            versions: versions.iter().map(|(id, objects)| (version(*id), *objects)).collect(),
            until: None,
            seen_at: seen.then(|| at(0)),
            used: used.iter().map(|id| (version(*id), at(0))).collect(),
        }
    }

    fn due(known: &[Summary], dependant: &Dependant) -> bool {
        let known: BTreeMap<String, Summary> =
            known.iter().enumerate().map(|(n, one)| (n.to_string(), one.clone())).collect();
        let key = key();
        let look = Look { known: Some(&known), key: &key, dependant: Some(dependant) };
        look.is_due(at(2_000))
    }

    #[test]
    fn when_the_server_begins_by_itself() {
        use Phase::{Cancelled, Finished, Rewriting};
        let behind = dependant(&[(7, 3)], &[], true);
        assert!(due(&[], &behind));
        assert!(due(&[], &dependant(&[], &[7], true)), "a plugin has used the older version");
        assert!(due(&[], &dependant(&[], &[8], false)), "nobody has looked, and it is encrypted");
        for fine in [&[(8, 3)][..], &[(7, 0), (8, 1)]] {
            assert!(!due(&[], &dependant(fine, &[8], true)), "{fine:?}");
        }
        assert!(!due(&[], &dependant(&[], &[], false)), "nothing says that it is encrypted at all");
        // One that is under way, and those that were about this version.
        assert!(!due(&[summary(version(7), Rewriting)], &behind));
        assert!(due(&[summary(version(7), Finished)], &behind));
        assert!(!due(&[summary(version(8), Finished)], &behind));
        assert!(!due(&[summary(version(8), Cancelled)], &behind), "somebody did not want it");
        let namespace = Summary { whole: false, ..summary(version(8), Finished) };
        assert!(due(&[namespace], &behind), "that was not all of it");
        // What was refused, or left out, is tried again after a day.
        let left = Summary { left: true, ..summary(version(8), Finished) };
        assert!(!due(std::slice::from_ref(&left), &behind));
        let long_ago = Summary { updated: at(2_000 - 86_400), ..left };
        assert!(due(&[long_ago], &behind));
    }

    /// Whether a finished one with that report was about all, and whether something was left.
    fn of_one(automatic: bool, content: &Value) -> (bool, bool) {
        let mut rotation = crate::jobs::tests::example();
        (rotation.phase, rotation.automatic) = (Phase::Finished, automatic);
        rotation.report = Some(serde_json::json!({ "content": content }).to_string());
        let found = Summary::of(&rotation);
        (found.whole, found.left)
    }

    #[test]
    fn a_report_says_what_was_left() {
        let of = |content: Value| of_one(false, &content);
        assert_eq!(
            of_one(true, &serde_json::json!({ "whole": false, "chosen": true, "refused": 0 })),
            (true, true),
            "or it would begin another one at once"
        );
        assert_eq!(
            of(serde_json::json!({ "whole": true, "chosen": false, "refused": 0 })),
            (true, false)
        );
        assert_eq!(
            of(serde_json::json!({ "whole": true, "chosen": false, "refused": 2 })),
            (true, true)
        );
        // An etcd that was away, or kinds that nobody served.
        assert_eq!(
            of(serde_json::json!({ "whole": false, "chosen": false, "refused": 0 })),
            (true, true)
        );
        // `--resource configmaps`
        assert_eq!(
            of(serde_json::json!({ "whole": false, "chosen": true, "refused": 0 })),
            (false, true)
        );
        // Of an older release.
        assert_eq!(of(serde_json::json!({})), (true, false));
    }

    #[test]
    fn when_the_server_goes_on_with_one() {
        let one = summary(version(8), Phase::Rewriting);
        assert!(one.is_free(at(0)));
        assert!(!Summary { paused: true, ..one.clone() }.is_free(at(0)));
        assert!(!Summary { plain: false, ..one.clone() }.is_free(at(0)), "it needs its files");
        let leased = Summary { leased_until: Some(at(30)), ..one.clone() };
        assert!(!leased.is_free(at(29)) && leased.is_free(at(30)));
        let failed = |attempts| Summary {
            problem: Some(Problem { at: at(0), why: String::new(), attempts }),
            ..one.clone()
        };
        assert!(!failed(1).is_free(at(29)) && failed(1).is_free(at(30)));
        assert!(!failed(3).is_free(at(119)) && failed(3).is_free(at(120)));
        assert!(!failed(99).is_free(at(3_599)) && failed(99).is_free(at(3_600)));
    }

    #[test]
    fn paths() {
        let cluster = ClusterId::from_bytes([1; 16]);
        let path = format!("rotation/{cluster}/r-1");
        assert_eq!(parse_path(&path), Some((cluster, "r-1")));
        assert_eq!(parse_path("rotation/x/r-1"), None);
        assert_eq!(parse_path("cluster/x"), None);
    }
}
