//! What needs a key: written down, listed, taken away; and what its loss would mean.

use std::collections::BTreeSet;

use http::Method;
use lastkey_crypto::{ClusterId, KeyId, KeyVersionId, plugin_blob::PluginKey};
use lastkey_engine::{
    Dependant, Error, KeyRef, Label, LastUse, Retirement, Timestamp, VersionState,
    command::{DescribeImpact, Impact, ListDependants, PutDependant, RemoveDependant},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, Refusal, Route, json};

/// Refusals name at most this many dependants; the list has them all.
pub(super) const NAMED: usize = 100;

/// The route in `/v1/keys/<id>/…`, if it is one of these.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    let (_, rest) = parts(path)?;
    let route = match (rest, method) {
        ("dependants", &Method::GET) => Ok(Route::ListDependants),
        ("dependants", &Method::PUT) => Ok(Route::PutDependant),
        ("impact", &Method::GET) => Ok(Route::DescribeImpact),
        ("dependants" | "impact", _) => Err(Refusal::WrongMethod),
        _ if which(rest).is_none() => return None,
        (_, &Method::DELETE) => Ok(Route::RemoveDependant),
        _ => Err(Refusal::WrongMethod),
    };
    Some(route)
}

/// The key and the rest in `/v1/keys/<id>/<rest>`.
fn parts(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/v1/keys/")?.split_once('/')
}

/// Kind and id in `dependants/<kind>/<id>`.
fn which(rest: &str) -> Option<(&str, &str)> {
    rest.strip_prefix("dependants/")?.split_once('/').filter(|(_, id)| !id.contains('/'))
}

fn key(path: &str) -> Result<KeyRef, Refusal> {
    let (key, _) = parts(path).ok_or(Error::KeyNotFound)?;
    Ok(KeyRef::parse(key)?)
}

/// A dependant as it is written down.
#[derive(Deserialize)]
struct Put {
    #[serde(flatten)]
    dependant: Dependant,
    #[serde(default)]
    in_use: Option<BTreeSet<KeyVersionId>>,
}

#[derive(Serialize)]
struct Done {}

pub(super) async fn put(call: &Call<'_>, path: &str) -> Answer {
    let Put { dependant, in_use } = call.read()?;
    call.execute(PutDependant { key: key(path)?, dependant, in_use }).await?;
    json(&Done {})
}

/// A dependant as it is shown.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    #[serde(flatten)]
    dependant: &'a Dependant,
    /// Of all versions together, where somebody has looked.
    objects: Option<u64>,
    /// Whether it needs the key now.
    live: bool,
}

impl<'a> Shown<'a> {
    pub(super) fn new(dependant: &'a Dependant, now: Timestamp) -> Self {
        Self { dependant, objects: dependant.objects(), live: dependant.is_live(now) }
    }
}

#[derive(Serialize)]
struct Items<T> {
    items: Vec<T>,
    next: Option<u64>,
}

pub(super) async fn list(call: &Call<'_>, path: &str) -> Answer {
    let found = call.execute(ListDependants { key: key(path)? }).await?;
    let now = call.context.engine.clock().now();
    let items = found.iter().map(|dependant| Shown::new(dependant, now)).collect();
    json(&Items { items, next: None })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    reason: String,
}

pub(super) async fn remove(call: &Call<'_>, path: &str) -> Answer {
    let (kind, id) = parts(path).and_then(|(_, rest)| which(rest)).ok_or(Refusal::NoSuchPath)?;
    let Removal { reason } = call.read()?;
    let (kind, id) = (Label::parse(kind)?, Label::parse(id)?);
    call.execute(RemoveDependant { key: key(path)?, kind, id, reason }).await?;
    json(&Done {})
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Put>(bytes);
    let _ = serde_json::from_slice::<Removal>(bytes);
}

#[derive(Serialize)]
struct ImpactJson<'a> {
    key_id: KeyId,
    state: &'static str,
    /// When the key will be destroyed, if that is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    deletion_at: Option<Timestamp>,
    versions: Vec<VersionJson>,
    dependants: Vec<Shown<'a>>,
    /// What else needs these versions, of which nothing is written down: clusters of which nobody
    /// knows what they have used, and callers who encrypted by themselves.
    unwritten: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct VersionJson {
    key_version_id: KeyVersionId,
    primary: bool,
    created_at: Timestamp,
    /// How often it has encrypted, at least.
    encryptions: u64,
    /// When it was used last, by whom, for what, as far as that is known.
    last_use: Option<LastUse>,
    /// Whether nobody has ever used it.
    never_used: bool,
    /// Whether callers have encrypted under it by themselves, or may have: files, SDKs.
    used_by_callers: bool,
    /// `active`, `scheduled` or `retired`.
    state: VersionState,
    /// What is recorded of its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    retirement: Option<Retirement>,
    /// Objects that would become unreadable without it, as far as somebody has looked.
    objects: u64,
    /// Of these, objects in what ends by itself, such as backups.
    objects_until: u64,
    /// Whether anything needs it now: then it is not retired without an override.
    needed: bool,
    /// When the last of what ends by itself has ended, if nothing else needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    needed_until: Option<Timestamp>,
    /// The key id that the apiservers of the cluster that was asked about are told of it, where
    /// that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_key_id: Option<String>,
}

pub(super) async fn impact(call: &Call<'_>, path: &str) -> Answer {
    let version = call.params.non_empty("version");
    let version =
        version.map(|text| text.parse().map_err(|_| Error::KeyVersionNotFound)).transpose()?;
    let cluster = call.params.non_empty("cluster");
    let cluster = cluster.map(|text| text.parse().map_err(|_| Error::NotFound("cluster")));
    let cluster: Option<ClusterId> = cluster.transpose()?;
    let found = call.execute(DescribeImpact { key: key(path)?, version }).await?;
    let versions = found.versions.iter().map(|version| {
        let plugin_key_id = cluster.and_then(|cluster| plugin_key_id(&found, cluster, version.id));
        VersionJson { plugin_key_id, ..version_json(&found, version) }
    });
    let versions = versions.collect();
    let now = found.now;
    json(&ImpactJson {
        key_id: found.key.id,
        state: found.key.state.name(),
        deletion_at: found.key.deletion_at,
        versions,
        dependants: found.dependants.iter().map(|one| Shown::new(one, now)).collect(),
        unwritten: found.unwritten.iter().map(|one| Shown::new(one, now)).collect(),
    })
}

/// The key id that apiservers of `cluster` are told of a version, while it is primary and after;
/// what comes before those two is not kept.
fn plugin_key_id(found: &Impact, cluster: ClusterId, version: KeyVersionId) -> Option<String> {
    let key = &found.key;
    let before = key.superseded.as_ref().map(|(primary, _)| primary);
    let mut known = [Some(&key.primary), before].into_iter().flatten();
    let primary = known.find(|primary| primary.version == version)?;
    let (key_version, epoch) = (primary.version, primary.epoch);
    Some(PluginKey { lineage: key.lineage, cluster, key_version, epoch }.key_id())
}

fn version_json(found: &Impact, version: &lastkey_engine::KeyVersion) -> VersionJson {
    let needing = || found.needing.get(&version.id).into_iter().flatten();
    let count = |ending: bool| {
        let counted = needing().filter(|one| !ending || one.until.is_some());
        let objects = counted.filter_map(|one| one.versions.get(&version.id));
        objects.fold(0, |sum: u64, n| sum.saturating_add(*n))
    };
    let all_end = needing().all(|one| one.until.is_some());
    VersionJson {
        key_version_id: version.id,
        primary: version.id == found.key.primary.version,
        created_at: version.created,
        encryptions: version.uses,
        last_use: version.last_use.clone(),
        never_used: version.never_used(),
        used_by_callers: version.direct,
        state: version.state(),
        retirement: version.retirement.clone(),
        objects: count(false),
        objects_until: count(true),
        needed: needing().next().is_some(),
        needed_until: needing().filter_map(|one| one.until).max().filter(|_| all_end),
        plugin_key_id: None,
    }
}
