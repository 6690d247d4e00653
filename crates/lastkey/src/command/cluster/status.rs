//! `lastkey cluster status`: what rests under which key.
//!
//! Whoever looks has the server keep what was found, as what needs each version of its keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use lastkey_client::Client;
use lastkey_crypto::{KeyId, KeyVersionId};
use lastkey_kubernetes::{
    cluster::{Access, ApiServer, Etcd},
    coverage::{
        self, Coverage, Share,
        in_use::{self, KnownIds, ServerUse},
        not_theirs, resources_of,
    },
    encryption_config::examine,
};
use serde_json::{Value, json};

use super::{
    access::{Known, reach, resources, unreachable},
    rotation_state,
};
use crate::{
    cli::StatusOptions,
    output::{Exit, Failure, Output, chain},
};

/// How wide a bar is.
const BAR: u64 = 20;

pub(super) async fn run(
    client: &Client,
    options: &StatusOptions,
    output: &Output,
) -> Result<(), Failure> {
    let mut known = Known::all(client).await?;
    if let Some(name) = &options.name {
        known.retain(|one| one.name == *name || one.id.to_string() == *name);
        if known.is_empty() {
            let missing = format_args!("there is no cluster {name}").to_string();
            return Err(Failure::new(Exit::NotFound, missing));
        }
    }
    let mut items = Vec::with_capacity(known.len());
    let mut failed = None;
    for cluster in &known {
        let rotation = rotation_state::of(client, cluster).await?;
        match look(client, cluster, options).await {
            Ok(mut item) => {
                item["rotation"] = rotation;
                item["rotate_automatically"] = json!(cluster.automatic);
                items.push(item);
            }
            // of several, what can be seen is shown
            Err(failure) if options.name.is_none() => {
                items.push(json!({
                    "name": cluster.name, "id": cluster.id, "problem": failure.to_string(),
                    "rotation": rotation, "rotate_automatically": cluster.automatic,
                }));
                if failure.exit() != Exit::NotFound {
                    failed = Some(failure.about(cluster.shown()));
                }
            }
            Err(failure) => {
                // also what waits for the cluster to be reached
                let lines = rotation_state::lines(&rotation, false);
                lines.iter().for_each(|line| output.hint(line));
                return Err(failure);
            }
        }
    }
    let list = json!({ "items": items, "next": null });
    output.object(&list, || human(&items));
    failed.map_or(Ok(()), Err)
}

/// Looks at one cluster, and has the server keep what was seen.
async fn look(client: &Client, cluster: &Known, options: &StatusOptions) -> Result<Value, Failure> {
    let (access, api) = reach(client, cluster.id).await?;
    // the server's clock: it compares this with when its plugins encrypted
    let began = client.status().await?["now"].clone();
    // before counting: what is written later is under what they use now, or newer
    let asked = in_use::ask(&api).await;
    let coverage = cover(&access, &api).await?;
    let versions = Versions::of(client, cluster).await?;
    let known_ids = versions.known_ids(&coverage);
    // the server believes the apiservers alone
    let in_use = in_use::all(&known_ids.settle(&asked, None));
    let rotations = client.rotations(cluster.id).await?;
    // What was not counted may be under any version.
    let under = coverage.exact.then(|| !coverage.versions().is_empty());
    let ended = super::change::ended(&rotations, under.unwrap_or(true));
    let uses = known_ids.settle(&asked, ended.as_ref());
    let writes = uses.iter().any(|one| !one.key_version_ids.is_empty());
    let own = Own { client, cluster, coverage: &coverage, versions: &versions };
    let now = json!({
        "kind": "cluster", "id": cluster.id, "name": cluster.name, "seen_at": began,
        "in_use": in_use,
    });
    let backup = backup(cluster, options, &began)?;
    match (coverage.exact, backup) {
        (true, backup) => {
            own.keep(&now).await?;
            if let Some(backup) = backup {
                own.keep(&backup).await?;
            }
        }
        (false, None) => {}
        (false, Some(_)) => {
            let why =
                "what a snapshot needs is known by reading etcd only: register it with --etcd";
            return Err(Failure::failed(why).and(coverage.remarks.join("; ")));
        }
    }
    let writers = Writers::of(&access);
    let resources = coverage.resources.iter().map(|resource| {
        let under = resource.under.iter().map(|share| {
            let mut item = json!(share);
            let version = share.under.key_version.and_then(|id| versions.0.get(&id));
            if let Some(version) = version {
                item["key_id"] = json!(version.key);
                item["created_at"] = json!(version.created_at);
            }
            item["current"] = json!(writers.is_current(&resource.resource, share, version));
            item
        });
        let under: Vec<Value> = under.collect();
        json!({ "resource": resource.resource, "objects": resource.objects, "under": under })
    });
    Ok(json!({
        "name": cluster.name,
        "id": cluster.id,
        "seen_at": began,
        "exact": coverage.exact,
        "resources": resources.collect::<Vec<_>>(),
        "versions": coverage.versions().iter().map(|(id, objects)| json!({
            "key_version_id": id, "objects": objects,
            "key_id": versions.0.get(id).map(|version| version.key),
        })).collect::<Vec<_>>(),
        "apiservers": uses,
        "in_use": in_use::all(&uses),
        "unknown": coverage.unknown,
        "remarks": coverage.remarks,
        "encryption": super::change::state(&rotations, under, writes),
    }))
}

/// By etcd where it may be read, else by the apiservers' counters.
pub(super) async fn cover(access: &Access, api: &ApiServer) -> Result<Coverage, Failure> {
    let discovery = api.discover().await.map_err(|error| unreachable(&error))?;
    let names = resources(access);
    let (found, unknown) = resources_of(&names, &discovery);
    let mut coverage = match &access.etcd {
        Some(etcd) => {
            let mut reader = Etcd::new(etcd).map_err(|e| Failure::failed(chain(&e)))?;
            let away = |error| Failure::new(Exit::Unavailable, chain(&error));
            let other = not_theirs(api, &mut reader, (&etcd.prefix, &found)).await;
            match other.map_err(away)? {
                None => coverage::exact(&mut reader, &etcd.prefix, (&found, unknown))
                    .await
                    .map_err(away)?,
                Some(why) => {
                    let counted = coverage::counted(api, (&found, unknown)).await;
                    let mut counted = counted.map_err(|e| unreachable(&e))?;
                    counted.remarks = vec![format!(
                        "the registered etcd is not known to be the one under these apiservers, so it \
                         was not counted and nothing becomes free ({why}); register theirs with `lastkey \
                         cluster add NAME --kubeconfig FILE --etcd URL`"
                    )];
                    counted
                }
            }
        }
        None => coverage::counted(api, (&found, unknown)).await.map_err(|e| unreachable(&e))?,
    };
    let hidden = !coverage.unknown.is_empty() || discovery.unanswered(&names).next().is_some();
    if coverage.exact && coverage.partly && hidden {
        // What was not looked at may be under any version.
        coverage.exact = false;
        coverage.remarks.push("not all of it could be counted: nothing becomes free".to_owned());
    }
    for group in discovery.unavailable {
        coverage.remarks.push(format!("{group} is not served at present and was not looked at"));
    }
    Ok(coverage)
}

/// The server's own versions.
pub(super) struct Versions(HashMap<KeyVersionId, Version>);

struct Version {
    key: KeyId,
    primary: bool,
    created_at: String,
    plugin_key_id: Option<String>,
}

impl Versions {
    async fn of(client: &Client, cluster: &Known) -> Result<Self, Failure> {
        let mut all = HashMap::new();
        for key in &cluster.keys {
            let impact = client.key_impact_in(*key, cluster.id).await?;
            for version in impact["versions"].as_array().into_iter().flatten() {
                let id = version["key_version_id"].as_str().and_then(|id| id.parse().ok());
                let Some(id) = id else { continue };
                all.insert(
                    id,
                    Version {
                        key: *key,
                        primary: version["primary"] == true,
                        created_at: version["created_at"].as_str().unwrap_or_default().to_owned(),
                        plugin_key_id: version["plugin_key_id"].as_str().map(str::to_owned),
                    },
                );
            }
        }
        Ok(Self(all))
    }

    /// The key ids that apiservers may use: by what the server tells them, and by what rests.
    fn known_ids(&self, coverage: &Coverage) -> KnownIds {
        let mut known = KnownIds::of(coverage);
        for (id, version) in &self.0 {
            if let Some(key_id) = &version.plugin_key_id {
                known.learn(key_id, *id);
            }
        }
        known
    }
}

/// What was counted, by key.
struct Own<'a> {
    client: &'a Client,
    cluster: &'a Known,
    coverage: &'a Coverage,
    versions: &'a Versions,
}

impl Own<'_> {
    /// Tells the server what needs each version of the cluster's keys, also that nothing does.
    async fn keep(&self, dependant: &Value) -> Result<(), Failure> {
        let counted = self.coverage.versions();
        for key in &self.cluster.keys {
            let is_own = |id| self.versions.0.get(id).is_some_and(|version| version.key == *key);
            let own = counted.iter().filter(|(id, _)| is_own(*id));
            let own: BTreeMap<String, u64> =
                own.map(|(id, objects)| (id.to_string(), *objects)).collect();
            let mut dependant = dependant.clone();
            dependant["versions"] = json!(own);
            self.client.put_dependant(*key, &dependant).await?;
        }
        Ok(())
    }
}

/// A snapshot that is taken now, as something that needs the same versions until it is thrown away.
fn backup(
    cluster: &Known,
    options: &StatusOptions,
    began: &Value,
) -> Result<Option<Value>, Failure> {
    let (Some(id), Some(keep)) = (&options.backup, options.keep) else { return Ok(None) };
    let began_at: Timestamp = began
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Failure::failed("the server does not say what time it is"))?;
    let until = began_at.checked_add(keep).map_err(Failure::failed)?;
    Ok(Some(json!({
        "kind": "backup", "id": format!("{}.{id}", cluster.id), "seen_at": began,
        "name": format!("{}/{id}", cluster.shown()), "until": until,
    })))
}

/// What writes each resource now, if its configuration lies here.
struct Writers(Option<lastkey_kubernetes::encryption_config::EncryptionConfiguration>);

impl Writers {
    fn of(access: &Access) -> Self {
        let text = access.encryption_config.as_ref().and_then(|p| std::fs::read_to_string(p).ok());
        Self(text.map(|text| examine(&zeroize::Zeroizing::new(text)).config))
    }

    /// Whether a write now would come out the same; `None` where that is not known.
    fn is_current(&self, resource: &str, share: &Share, version: Option<&Version>) -> Option<bool> {
        if share.under.is_clear() {
            return Some(false);
        }
        if version.is_some_and(|version| !version.primary) {
            return Some(false);
        }
        let config = self.0.as_ref()?;
        let providers = config.providers_of(resource);
        let kind = providers.first()?.kind()?;
        use lastkey_kubernetes::encryption_config::ProviderKind as Kind;
        let (wanted, key) = match kind {
            Kind::Kms(kms) => (format!("kms {} {}", kms.version(), kms.name), None),
            Kind::Identity => return Some(false),
            Kind::AesCbc(keys) | Kind::AesGcm(keys) | Kind::Secretbox(keys) => {
                (kind.name().to_owned(), keys.first().map(|key| key.name.as_str()))
            }
        };
        let same_key = key.is_none() || share.under.key.as_deref() == key;
        Some(share.under.provider == wanted && same_key)
    }
}

fn human(items: &[Value]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(shown).collect::<Vec<_>>().join("\n\n")
}

fn shown(item: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = match text(&item["name"]) {
        name if name.is_empty() => text(&item["id"]),
        name => name,
    };
    let automatic = item["rotate_automatically"] == true;
    let rotation = rotation_state::lines(&item["rotation"], automatic);
    if let Some(problem) = item["problem"].as_str() {
        let mut lines = vec![format!("{name}: {problem}")];
        lines.extend(rotation);
        return lines.join("\n");
    }
    let how = if item["exact"] == true { "every object, in etcd" } else { "by counters" };
    let mut lines = vec![format!("{name}: {how}, at {}", text(&item["seen_at"]))];
    lines.extend(super::change::shown(&item["encryption"]));
    lines.extend(rows(item).iter().map(layout));
    lines.extend(users(item));
    lines.extend(rotation);
    for remark in item["remarks"].as_array().into_iter().flatten() {
        lines.push(format!("note: {}", text(remark)));
    }
    for unknown in item["unknown"].as_array().into_iter().flatten() {
        lines.push(format!("note: {} is configured, and served by nobody", text(unknown)));
    }
    lines.join("\n")
}

/// What each apiserver writes under.
fn users(item: &Value) -> Vec<String> {
    let uses: Vec<ServerUse> = item["apiservers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| serde_json::from_value(one.clone()).ok())
        .collect();
    let mut lines: Vec<String> = uses.iter().map(user).collect();
    if uses.iter().any(|one| one.problem.is_some()) {
        lines.push(
            "note: while this is not known of every apiserver, a version counts as used until 20 \
             minutes after another took its place"
                .to_owned(),
        );
    }
    lines
}

fn user(of: &ServerUse) -> String {
    let joined = |ids: &BTreeSet<KeyVersionId>| {
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let now = match (&of.problem, of.key_version_ids.is_empty()) {
        (Some(problem), _) => format!("note: {}: {problem}", of.server),
        (None, true) => format!("{} writes under no version of its keys", of.server),
        (None, false) => format!("{} writes under {}", of.server, joined(&of.key_version_ids)),
    };
    match &of.until {
        None => now,
        Some(until) => {
            let last = joined(&of.last_wrote_under);
            format!("{now}; last under {last}, until {until} at the latest")
        }
    }
}

/// Resource, what it is under, version, age, objects and the bar.
type Row = [String; 6];

fn rows(item: &Value) -> Vec<Row> {
    let heads = ["RESOURCE", "UNDER", "KEY VERSION", "AGE", "OBJECTS", ""];
    let mut rows = vec![heads.map(str::to_owned)];
    for resource in item["resources"].as_array().into_iter().flatten() {
        let total = resource["objects"].as_u64();
        let under = resource["under"].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = resource["resource"].as_str().unwrap_or_default();
        if under.is_empty() {
            let objects = total.map_or_else(|| "?".to_owned(), |n| n.to_string());
            rows.push([
                name.to_owned(),
                "-".into(),
                String::new(),
                String::new(),
                objects,
                String::new(),
            ]);
        }
        for (index, share) in under.iter().enumerate() {
            rows.push(row(if index == 0 { name } else { "" }, share, total));
        }
    }
    rows
}

fn row(name: &str, share: &Value, total: Option<u64>) -> Row {
    let text = |field: &str| share[field].as_str().unwrap_or_default().to_owned();
    let version = match text("key_version") {
        version if version.is_empty() => text("key").chars().take(16).collect(),
        version => version,
    };
    let stale =
        if share["current"] == false && text("provider") != "clear" { " (old)" } else { "" };
    let objects = share["objects"].as_u64();
    let bar = match (objects, total) {
        (Some(objects), Some(total)) if total > 0 => bar(objects, total),
        _ => String::new(),
    };
    [
        name.to_owned(),
        text("provider"),
        format!("{version}{stale}"),
        age(&text("created_at")),
        objects.map_or_else(|| "?".to_owned(), |objects| objects.to_string()),
        bar,
    ]
}

fn bar(objects: u64, total: u64) -> String {
    let full = (objects * BAR).div_ceil(total).min(BAR);
    let percent = objects as f64 * 100.0 / total as f64;
    let (full, empty) = (full as usize, (BAR - full) as usize);
    format!("{}{} {percent:.1} %", "█".repeat(full), "░".repeat(empty))
}

/// How long ago, in its largest unit.
fn age(created: &str) -> String {
    let Ok(created) = created.parse::<Timestamp>() else { return String::new() };
    let minutes = Timestamp::now().duration_since(created).as_mins().max(0);
    match minutes {
        0..120 => format!("{minutes}m"),
        120..2880 => format!("{}h", minutes / 60),
        _ => format!("{}d", minutes / 1440),
    }
}

fn layout(row: &Row) -> String {
    let [resource, under, version, age, objects, bar] = row;
    format!("{resource:<26} {under:<22} {version:<42} {age:>5} {objects:>9}  {bar}")
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_apiserver_wrote_under_last_is_not_what_it_writes_under() {
        let (one, two) = (KeyVersionId::from_bytes([1; 16]), KeyVersionId::from_bytes([2; 16]));
        let mut uses = ServerUse {
            server: "https://a".to_owned(),
            key_version_ids: BTreeSet::from([one]),
            last_wrote_under: BTreeSet::new(),
            until: None,
            problem: None,
        };
        assert_eq!(user(&uses), format!("https://a writes under {one}"));
        uses.last_wrote_under = BTreeSet::from([two]);
        uses.until = Some("2026-02-01T10:11:12Z".to_owned());
        uses.key_version_ids.clear();
        let last = format!("last under {two}, until 2026-02-01T10:11:12Z at the latest");
        assert_eq!(user(&uses), format!("https://a writes under no version of its keys; {last}"));
    }

    /// As the server tells of one.
    fn rotation(way: Option<&str>, phase: &str) -> lastkey_client::native::Rotation {
        let course = way.map(|way| json!({ "way": way, "goal": {} }));
        let of = json!({
            "id": "r", "cluster": "018f0000-0000-7000-8000-000000000001",
            "key": "018f0000-0000-7000-8000-000000000002",
            "target": "018f0000-0000-7000-8000-000000000003", "course": course,
            "phase": phase, "started": "2026-02-01T10:00:00Z",
            "updated": "1970-01-01T00:16:40Z",
        });
        serde_json::from_value(of).unwrap()
    }

    #[test]
    fn what_was_not_counted_is_not_off() {
        let state = |known: &[lastkey_client::native::Rotation], under, writes| {
            super::super::change::state(known, under, writes)["status"].as_str().unwrap().to_owned()
        };
        let [on, off] = ["enable", "disable"].map(|way| rotation(Some(way), "finished"));
        assert_eq!(state(&[], Some(true), false), "running");
        assert_eq!(state(&[], Some(false), true), "off", "counted, and nothing is there");
        assert_eq!(state(&[], None, true), "running");
        assert_eq!(state(&[], None, false), "unknown");
        let both = [off, on];
        assert_eq!(state(&both, None, false), "running");
        assert_eq!(
            state(&both[..1], None, false),
            "unknown",
            "it does not say that nothing is left"
        );
        for (whole, status) in [(true, "off"), (false, "unknown")] {
            let mut off = both[0].clone();
            off.report = Some(json!({ "content": { "whole": whole } }).to_string());
            assert_eq!(state(&[off], None, false), status);
        }
        assert_eq!(state(&both[..1], None, true), "running", "somebody placed a file by hand");
        let broken_off = rotation(Some("disable"), "cancelled");
        assert_eq!(state(&[broken_off], None, false), "unknown");
    }

    #[test]
    fn only_a_finished_way_out_has_ended_anything() {
        let out = || rotation(Some("disable"), "finished");
        let ended = super::super::change::ended;
        let found = ended(&[out(), rotation(None, "finished")], false).unwrap();
        assert_eq!((found.seconds, &*found.at), (1_000, "1970-01-01T00:16:40Z"));
        assert_eq!(ended(&[out()], true), None, "something is under them");
        for later in ["preparing", "cancelled", "finished"] {
            assert_eq!(ended(&[out(), rotation(Some("enable"), later)], false), None, "{later}");
        }
        for phase in ["removing", "cancelled"] {
            assert_eq!(ended(&[rotation(Some("disable"), phase)], false), None, "{phase}");
        }
        assert_eq!(ended(&[rotation(None, "finished")], false), None);
    }
}
