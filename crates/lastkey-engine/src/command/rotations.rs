//! The rotation of a cluster's key as long work: begun, claimed, saved step by step, finished.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lastkey_crypto::{ClusterId, Epoch, KeyId, KeyVersionId, plugin_blob::PluginKey};
use serde_json::Value;

use super::{Command, Done, Scope, dependants::write_down, keys::new_version, retire};
use crate::{
    CLUSTER_KIND, Error, Timestamp,
    action::Action,
    audit::Record,
    barrier::{Expect, Stored, to_json},
    dependants::{Dependant, Label},
    engine::Core,
    jobs::{self, Course, KEPT, MAX_REPORT, MAX_STATE, Phase, Problem, Progress, Rotation, Way},
    key::{Key, KeyRef},
    policy::Resource,
    records::Change,
};

/// The most characters of why a worker stops.
const MAX_PROBLEM: usize = 1024;
/// So many rotations go in one transaction with their cluster.
const DELETED: usize = 20;
/// The longest name of a namespace, or of a worker.
const MAX_NAME: usize = 253;

/// A rotation, and what its key is at present.
#[derive(Clone, Debug)]
pub struct RotationNow {
    /// As it is stored.
    pub rotation: Rotation,
    /// The version that is primary now: another than the target if the key was rotated again.
    pub primary: KeyVersionId,
    /// The key id that apiservers of this cluster are told of it.
    pub key_id: String,
}

/// Begins the rotation of a cluster's key: the new version, and the work that follows from it, are
/// durable together.
#[derive(Clone, Debug)]
pub struct StartRotation {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its key, where it has several.
    pub key: Option<KeyRef>,
    /// Bring everything under the version that is primary already.
    pub keep_version: bool,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// What it changes besides. No new version is made then, and all namespaces are meant.
    pub course: Option<Course>,
    /// Have the older versions retired after it, once nothing needs them.
    pub retire: bool,
    /// Nobody has asked for it: the server begins it by itself.
    pub automatic: bool,
}

/// For so many days a retirement that follows a rotation can be taken back.
const RETIRE_DAYS: u16 = 30;
/// The most bytes of what a worker is told to do.
const MAX_GOAL: usize = 16 * 1024;

impl Command for StartRotation {
    const ACTION: Action = Action::StartRotation;
    type Output = RotationNow;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        if let Some(course) = &self.course {
            let size = serde_json::to_vec(&course.goal).map_or(usize::MAX, |bytes| bytes.len());
            if size > MAX_GOAL {
                return Err(Error::LimitExceeded { what: "bytes of a goal", limit: MAX_GOAL });
            }
            if self.namespace.is_some() {
                return Err(Error::invalid("namespace", "a provider is for all of them"));
            }
        }
        check_name("namespace", self.namespace.as_deref().unwrap_or("x"))
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<RotationNow>, Error> {
        let key = core.records.key(self.key_id(core)?).await?;
        scope.used(key.value.id, None);
        let known = stored(core, self.cluster).await?;
        check_none_under_way(&known)?;
        key.value.state.usable()?;
        let now = core.clock.now();
        let (mut change, mut new) = (Change::new(), key.value.clone());
        if !self.keep_version && self.course.is_none() {
            let version = new_version(core, new.id, new.spec, now);
            scope.record.field("new_key_version", version.id);
            new.promote(version.id, Epoch::random(&*core.entropy), now);
            change = change.create_version(version);
        }
        let id = Label::parse(&core.new_uuid(now).to_string())?;
        scope.record.field("rotation", &id);
        if let Some(course) = &self.course {
            scope.record.field("way", course.way.name());
        }
        let enables = self.course.as_ref().is_some_and(|course| course.way == Way::Enable);
        if let Some(old) = self.dependant(core, new.id).filter(|_| enables) {
            // From now on the key is needed, before the first object is under it.
            let mut needing = old.value.clone();
            needing.used.insert(new.primary.version, now);
            change = change.put_dependant(new.id, Some(&old), needing);
        }
        let rotation = Rotation {
            id,
            cluster: self.cluster,
            key: new.id,
            target: new.primary.version,
            namespace: self.namespace.clone(),
            phase: match self.course {
                None => Phase::Converging,
                Some(_) => Phase::Preparing,
            },
            course: self.course.clone(),
            paused: false,
            fence: 0,
            lease: None,
            state: Value::Null,
            started: now,
            updated: now,
            by: scope.caller.principal.to_string(),
            automatic: self.automatic,
            retire: self.retire,
            progress: None,
            problem: None,
            report: None,
        };
        let answer = now_of(&new, rotation.clone());
        // The key's record is written in any case: of two that begin at once, one loses the race.
        change = put(change.update_key(&key, new), &rotation, Expect::Absent)?;
        for old in known.iter().rev().skip(KEPT) {
            change = change.delete_raw(path(&old.value), old.expect());
        }
        Ok(Done::write(answer, change))
    }
}

impl StartRotation {
    fn key_id(&self, core: &Core) -> Result<KeyId, Error> {
        let cluster = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let keys = &cluster.value.keys;
        let id = match &self.key {
            Some(named) => core.require(named)?,
            None => match keys[..] {
                [only] => only,
                _ => return Err(Error::MissingParameter("key")),
            },
        };
        keys.contains(&id).then_some(id).ok_or(Error::KeyNotFound)
    }

    /// That the cluster needs the key, where somebody can look at it.
    fn dependant(&self, core: &Core, key: KeyId) -> Option<Arc<Stored<Dependant>>> {
        core.records.dependants.find(key, CLUSTER_KIND, &self.cluster.to_string())
    }
}

/// Lists the rotations of a cluster, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct ListRotations {
    /// The cluster.
    pub cluster: ClusterId,
}

impl Command for ListRotations {
    const ACTION: Action = Action::ListRotations;
    type Output = Vec<Rotation>;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Vec<Rotation>>, Error> {
        let known = stored(core, self.cluster).await?;
        Ok(Done::read(known.into_iter().map(|stored| stored.value).collect()))
    }
}

/// Which rotation a command is about.
#[derive(Clone, Debug)]
pub struct Which {
    /// The cluster.
    pub cluster: ClusterId,
    /// The rotation's id.
    pub id: Label,
}

impl Which {
    fn resource(&self, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        record.field("rotation", &self.id);
        Resource::Service
    }

    async fn read(&self, core: &Core) -> Result<Stored<Rotation>, Error> {
        let path = jobs::path_of(self.cluster, self.id.as_str());
        let found = core.records.barrier.read_json(&path).await?;
        found.ok_or(Error::NotFound("rotation"))
    }
}

macro_rules! rotation_command {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }
     $(validate($check:ident) $validate:block)?
     act($self:ident, $core:ident, $rotation:ident) $act:block) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            /// Which rotation.
            pub which: Which,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Command for $name {
            const ACTION: Action = Action::$name;
            type Output = RotationNow;

            fn resource(&self, _: &Core, record: &mut Record) -> Resource {
                self.which.resource(record)
            }

            $(fn validate(&$check) -> Result<(), Error> $validate)?

            async fn act(
                &$self,
                $core: &Core,
                scope: &mut Scope<'_>,
            ) -> Result<Done<RotationNow>, Error> {
                let old = $self.which.read($core).await?;
                let key = $core.records.key(old.value.key).await?;
                scope.used(key.value.id, None);
                let mut changed = old.value.clone();
                {
                    let $rotation = &mut changed;
                    $act
                }
                scope.record.field("phase", changed.phase.name());
                let change = put(Change::new(), &changed, old.expect())?;
                Ok(Done::write(now_of(&key.value, changed), change))
            }
        }
    };
}

rotation_command! {
    /// Claims a rotation for a worker, for as long as a lease lasts.
    ClaimRotation {
        /// What the worker calls itself.
        holder: String,
    }
    validate(self) { check_name("holder", &self.holder) }
    act(self, core, rotation) { rotation.claim(&self.holder, core.clock.now())?; }
}

rotation_command! {
    /// Saves how far a worker has come, and renews its lease. The answer says whether to rest, and
    /// what the key is now.
    SaveRotation {
        /// Which claim it works under.
        fence: u64,
        /// Where it is.
        phase: Phase,
        /// What it keeps for itself.
        state: Value,
        /// Whether it stops here, and the lease with it.
        release: bool,
        /// How far that is, for whoever looks.
        progress: Option<Progress>,
        /// Why it stops.
        problem: Option<String>,
    }
    validate(self) {
        let size = serde_json::to_vec(&self.state).map_or(usize::MAX, |bytes| bytes.len());
        match (size <= MAX_STATE, self.phase) {
            (false, _) => Err(Error::LimitExceeded { what: "bytes of state", limit: MAX_STATE }),
            (true, Phase::Finished) => Err(Error::invalid("phase", "a report finishes it")),
            (true, _) => Ok(()),
        }
    }
    act(self, core, rotation) {
        let before = (rotation.phase, rotation.progress);
        rotation.step(self.fence, self.phase, core.clock.now())?;
        // A new target is what the key is now, never something that a worker names.
        if self.phase == Phase::Converging {
            rotation.target = core.records.key(rotation.key).await?.value.primary.version;
        }
        rotation.state = self.state.clone();
        let moved = before != (self.phase, self.progress.or(before.1));
        rotation.progress = self.progress.or(rotation.progress);
        rotation.problem = match &self.problem {
            Some(why) => Some(again(rotation.problem.as_ref(), why, core.clock.now())),
            // Who has claimed it has not got any further yet.
            None => rotation.problem.take().filter(|_| !moved),
        };
        if self.release {
            rotation.lease = None;
        }
    }
}

/// A worker stops, once more perhaps.
fn again(before: Option<&Problem>, why: &str, now: Timestamp) -> Problem {
    let attempts = before.map_or(0, |before| before.attempts);
    let why = why.chars().filter(|c| !c.is_control()).take(MAX_PROBLEM).collect();
    Problem { at: now, why, attempts: attempts.saturating_add(1) }
}

rotation_command! {
    /// Has a rotation rest, or go on.
    PauseRotation {
        /// Rest, or not.
        paused: bool,
    }
    act(self, core, rotation) {
        if rotation.phase.is_over() {
            return Err(Error::StateConflict { state: rotation.phase.name() });
        }
        rotation.paused = self.paused;
        rotation.updated = core.clock.now();
    }
}

rotation_command! {
    /// Gives a rotation up. What was rewritten stays so, and no version becomes free.
    CancelRotation {}
    act(self, core, rotation) {
        if !rotation.phase.may_become(Phase::Cancelled) {
            return Err(Error::StateConflict { state: rotation.phase.name() });
        }
        rotation.phase = Phase::Cancelled;
        rotation.lease = None;
        rotation.updated = core.clock.now();
    }
}

/// What a rotation found at its end: with it the old versions become free of this cluster.
#[derive(Clone, Debug)]
pub struct Found {
    /// When the look began.
    pub began: Timestamp,
    /// How many objects are under each version.
    pub versions: BTreeMap<KeyVersionId, u64>,
}

/// Ends a rotation with a report, which is signed and kept, and with what was found.
#[derive(Clone, Debug)]
pub struct FinishRotation {
    /// Which rotation.
    pub which: Which,
    /// Which claim it was finished under.
    pub fence: u64,
    /// The report: JSON of the worker's.
    pub content: Value,
    /// What the cluster needs now; `None` where not all of it was looked at.
    pub found: Option<Found>,
}

impl Command for FinishRotation {
    const ACTION: Action = Action::FinishRotation;
    type Output = RotationNow;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        self.which.resource(record)
    }

    fn validate(&self) -> Result<(), Error> {
        let size = serde_json::to_vec(&self.content).map_or(usize::MAX, |bytes| bytes.len());
        if !self.content.is_object() || size > MAX_REPORT {
            return Err(Error::invalid("content", "give an object of at most 256 KiB"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<RotationNow>, Error> {
        let old = self.which.read(core).await?;
        let key = core.records.key(old.value.key).await?;
        scope.used(key.value.id, Some(old.value.target));
        let now = core.clock.now();
        let mut rotation = old.value.clone();
        rotation.step(self.fence, Phase::Finished, now)?;
        // The key was rotated once more: what was proven is about a version that is old already.
        if key.value.primary.version != rotation.target && !rotation.leaves() {
            return Err(Error::StaleKeyVersion);
        }
        rotation.lease = None;
        rotation.state = Value::Null;
        rotation.problem = None;
        let (mut change, mut content) = (Change::new(), self.content.clone());
        if let Some(found) = self.found.as_ref().filter(|_| rotation.namespace.is_none()) {
            change = release(core, &key, &rotation, found)?;
            if rotation.retire {
                change = self.retire(core, scope, (&key, &rotation, change, &mut content)).await?;
            }
        }
        rotation.report = Some(sign(core, &rotation, &content, now)?);
        let change = put(change, &rotation, old.expect())?;
        Ok(Done::write(now_of(&key.value, rotation), change))
    }
}

impl FinishRotation {
    /// Has the older versions retired once nothing needs them, and says so in the report.
    async fn retire(
        &self,
        core: &Core,
        scope: &Scope<'_>,
        (key, rotation, change, content): (&Stored<Key>, &Rotation, Change, &mut Value),
    ) -> Result<Change, Error> {
        let by = scope.caller.principal.to_string();
        let mut new = key.value.clone();
        let schedule = (rotation.target, &*by, RETIRE_DAYS);
        let (retiring, kept) = retire::schedule_others(core, &mut new, schedule).await?;
        content["retiring"] = serde_json::json!(retiring);
        content["kept_for_callers"] = serde_json::json!(kept);
        // Whoever came to need a version has written the key's record already.
        Ok(match new == key.value {
            true => change,
            false => change.without_key(key.value.id).update_key(key, new),
        })
    }
}

fn sign(
    core: &Core,
    rotation: &Rotation,
    content: &Value,
    now: Timestamp,
) -> Result<String, Error> {
    let unsigned = || Error::Unavailable("this server signs no reports".to_owned());
    let key = core.audit.checkpoint_key().ok_or_else(unsigned)?;
    let text = jobs::report_text(rotation.id.as_str(), now, content, &key.id());
    let signature = core.audit.sign(text.as_bytes()).ok_or_else(unsigned)?;
    Ok(jobs::signed(&text, &signature))
}

/// Writes down what was found of the cluster. All apiservers use the target, which is what a
/// rotation waits for and looks at again; so older uses are settled by the look. Once everything
/// has left the key, none of them uses any version.
fn release(
    core: &Core,
    key: &Stored<Key>,
    rotation: &Rotation,
    found: &Found,
) -> Result<Change, Error> {
    if found.versions.keys().any(|version| !key.value.versions.contains(version)) {
        return Err(Error::KeyVersionNotFound);
    }
    let id = rotation.cluster.to_string();
    let old = core.records.dependants.find(key.value.id, CLUSTER_KIND, &id);
    let in_use: BTreeSet<_> =
        Some(rotation.target).filter(|_| !rotation.leaves()).into_iter().collect();
    let used = old
        .as_deref()
        .map(|old| Dependant::unsettled(&old.value, &key.value, found.began, Some(&in_use)));
    let name = core.records.cluster(rotation.cluster).and_then(|known| known.value.name.clone());
    let new = Dependant {
        kind: Label::parse(CLUSTER_KIND)?,
        id: Label::parse(&id)?,
        name: name.map(String::from).unwrap_or_default(),
        versions: found.versions.clone(),
        until: None,
        seen_at: Some(found.began),
        used: used.unwrap_or_default(),
    };
    Ok(write_down(core, key, old.as_deref(), new))
}

fn check_name(name: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err(Error::invalid(name, "give 1 to 253 bytes without control characters"));
    }
    Ok(())
}

fn path(rotation: &Rotation) -> String {
    jobs::path_of(rotation.cluster, rotation.id.as_str())
}

fn put(change: Change, rotation: &Rotation, expect: Expect) -> Result<Change, Error> {
    Ok(change.put(path(rotation), to_json(rotation)?, expect))
}

fn now_of(key: &Key, rotation: Rotation) -> RotationNow {
    let (key_version, epoch) = (key.primary.version, key.primary.epoch);
    let of = PluginKey { lineage: key.lineage, cluster: rotation.cluster, key_version, epoch };
    RotationNow { rotation, primary: key_version, key_id: of.key_id() }
}

/// Refuses while one is not over.
pub(super) async fn refuse_under_way(core: &Core, cluster: ClusterId) -> Result<(), Error> {
    check_none_under_way(&stored(core, cluster).await?)
}

fn check_none_under_way(known: &[Stored<Rotation>]) -> Result<(), Error> {
    match known.iter().find(|known| !known.value.phase.is_over()) {
        None => Ok(()),
        Some(known) => Err(Error::UnderWay(known.value.verb())),
    }
}

/// Whether a cluster is just brought under a key: its objects are, or will be within moments.
pub(super) async fn is_enabling(
    core: &Core,
    cluster: ClusterId,
    key: KeyId,
) -> Result<bool, Error> {
    let known = stored(core, cluster).await?;
    let enables = |one: &Rotation| {
        let way = one.course.as_ref().map(|course| course.way);
        !one.phase.is_over() && one.key == key && way == Some(Way::Enable)
    };
    Ok(known.iter().any(|known| enables(&known.value)))
}

/// Adds that all of a cluster are deleted, as many as fit: what is left is nobody's.
pub(super) async fn delete_all(
    core: &Core,
    cluster: ClusterId,
    change: Change,
) -> Result<Change, Error> {
    let known = stored(core, cluster).await?;
    let delete =
        |change: Change, one: &Stored<Rotation>| change.delete_raw(path(&one.value), one.expect());
    Ok(known.iter().take(DELETED).fold(change, delete))
}

/// All of a cluster, oldest first: their ids begin with the time.
async fn stored(core: &Core, cluster: ClusterId) -> Result<Vec<Stored<Rotation>>, Error> {
    let prefix = jobs::path_of(cluster, "");
    let page = core.records.barrier.store().list(&prefix, None, 2 * KEPT).await?;
    page.iter().map(|entry| core.records.barrier.open_json(entry)).collect()
}
