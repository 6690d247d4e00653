//! Whole rotations, of an apiserver and with a server that do what each test says.

mod absent;
mod changed;
mod changing;
mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use lastkey_client::Config;
use lastkey_crypto::{ClusterId, KeyId};
use parking_lot::Mutex;
use tokio::net::UnixListener;

use super::*;
use crate::{
    cluster::{Access, fake},
    transition::{Goal, Place, Target, hash},
};

const KEY_ID: &str = "the-new-key-id";
const NOW: &str = "2026-02-01T10:11:12Z";

fn version(n: u8) -> KeyVersionId {
    KeyVersionId::from_bytes([n; 16])
}

/// What an apiserver says of a kind.
#[derive(Debug, Default, Clone)]
struct Kind {
    objects: usize,
    /// What a list of it is answered with, other than with its objects.
    list: Option<u16>,
    /// What a write is answered with.
    write: Option<u16>,
    /// What somebody who asks for one of its objects is told.
    get: Told,
    /// Whether the account may update it.
    may: bool,
    /// How often it was listed to be written anew.
    listed: usize,
    /// Which of its objects were written.
    written: BTreeSet<String>,
}

/// What an apiserver says of one object.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Told {
    /// It is as it was.
    #[default]
    Here,
    /// Somebody has written it since.
    Changed,
    /// There is another one of its name.
    Another,
    /// There is none of its name.
    Gone,
    /// Nobody is known who knows.
    Unserved,
    /// It does not say.
    Failed,
}

/// What a webhook does to an object that is written.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Webhook {
    #[default]
    Nothing,
    /// It changes it, and the apiserver counts one more write.
    Changes,
    /// It changes it, and each time the apiserver has written another object under another key id.
    ChangesAndOthers,
}

/// Something that comes in between.
type Happens = fn(&mut World);

/// A cluster, and what the server keeps of it.
#[derive(Default)]
struct World {
    /// By group and name.
    kinds: BTreeMap<(&'static str, &'static str), Kind>,
    /// What comes once all apiservers have been asked for their metrics so often, or a list of
    /// something was: by what is asked for.
    then: BTreeMap<&'static str, (usize, Happens)>,
    /// How often what was asked for.
    asked: BTreeMap<String, usize>,
    /// Whether the apiserver is ready.
    unwell: bool,
    /// Which kinds its metrics say are under a KMS.
    under_kms: &'static [&'static str],
    /// Whether it works by no KMS provider, so that no plugin tells it anything.
    deaf: bool,
    /// Whether its plugin does not answer.
    unanswered: bool,
    /// Whether it works by another KMS provider, whose plugin tells it other key ids.
    told_others: bool,
    /// What a webhook does to whatever is written.
    webhook: Webhook,
    /// How often something was written since.
    writes: usize,
    /// The configuration that it works by.
    file: Option<std::path::PathBuf>,
    /// Of one that does not name it: when it was started, how often it has loaded one anew, and more.
    older: Option<(f64, u32, &'static str)>,
    /// So often its metrics are not to be had.
    away: usize,
    /// Whether it works by the file that was there before, and so writes nothing anew.
    lags: bool,
    /// Whether somebody reads other objects all the time, by the provider that is left.
    blurs: bool,
    /// How often objects of each kind were read to be written back: under what is left, and under what
    /// is changed to.
    reads: BTreeMap<String, [usize; 2]>,
    rotation: Value,
    finished: Option<Value>,
}

impl World {
    fn with(kinds: &[(&'static str, &'static str, usize)]) -> Self {
        let kinds = kinds.iter().map(|(group, name, objects)| {
            ((*group, *name), Kind { objects: *objects, may: true, ..Kind::default() })
        });
        Self { kinds: kinds.collect(), rotation: rotation(), ..Self::default() }
    }

    fn kind(&mut self, name: &'static str) -> &mut Kind {
        let found = self.kinds.iter_mut().find(|((_, known), _)| *known == name);
        found.map(|(_, kind)| kind).unwrap()
    }

    fn install(&mut self, name: &'static str) {
        self.kinds.insert(("apps", name), Kind { objects: 1, may: true, ..Kind::default() });
    }

    fn report(&self) -> &Value {
        &self.finished.as_ref().unwrap()["content"]
    }

    fn is_free(&self) -> bool {
        !self.finished.as_ref().unwrap()["found"].is_null()
    }

    fn count(&mut self, what: &str) {
        let times = self.asked.entry(what.to_owned()).or_default();
        *times += 1;
        if let Some((_, event)) = self.then.get(what).copied().filter(|(at, _)| at == times) {
            event(self);
        }
    }

    fn apiserver(&mut self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let json = |status: u16, value: Value| (status, value.to_string());
        let path = path.split('?').next().unwrap_or_default();
        match path {
            "/metrics" => {
                self.count("metrics");
                if self.away > 0 {
                    self.away -= 1;
                    return (503, String::new());
                }
                return (200, self.metrics());
            }
            "/readyz" if self.unwell => return (500, "[-]etcd failed".to_owned()),
            "/readyz" if self.unanswered => return (500, "[-]kms-providers failed".to_owned()),
            "/readyz" => return (200, "ok".to_owned()),
            "/apis" => {
                self.count("discovery");
                let groups: BTreeSet<&str> = self.kinds.keys().map(|(group, _)| *group).collect();
                let groups = groups.into_iter().filter(|group| !group.is_empty());
                let groups =
                    groups.map(|name| json!({ "name": name, "versions": [{ "version": "v1" }] }));
                return json(200, json!({ "groups": groups.collect::<Vec<_>>() }));
            }
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
                let of = &body["spec"]["resourceAttributes"];
                self.count("review");
                let kind = self.kinds.iter().find(|((_, name), _)| of["resource"] == *name);
                let allowed = kind.is_none_or(|(_, kind)| kind.may);
                return json(201, json!({ "status": { "allowed": allowed } }));
            }
            _ => {}
        }
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let (group, rest) = match parts[..] {
            ["api", "v1", ref rest @ ..] => ("", rest),
            ["apis", group, "v1", ref rest @ ..] => (group, rest),
            _ => return json(404, json!({ "reason": "NotFound" })),
        };
        let rest = rest.strip_prefix(&["namespaces", "default"]).unwrap_or(rest);
        if rest.is_empty() {
            let of_group = self.kinds.keys().filter(|(of, _)| *of == group);
            let names = of_group.map(|(_, name)| json!({
                "name": name, "kind": "Kind", "namespaced": true, "verbs": ["get", "list", "update"],
            }));
            return json(200, json!({ "resources": names.collect::<Vec<_>>() }));
        }
        if method == "GET" && rest.len() == 1 {
            self.count(rest[0]);
        }
        let kind = self.kinds.iter_mut().find(|((of, name), _)| *of == group && *name == rest[0]);
        let Some((_, kind)) = kind else { return json(404, json!({ "reason": "NotFound" })) };
        let object = |name: &str, kind: &Kind| {
            let version = if kind.written.contains(name) { "2" } else { "1" };
            json!({ "metadata": {
                "namespace": "default", "name": name, "uid": name, "resourceVersion": version,
            }})
        };
        match (method, rest) {
            ("GET", [_]) => {
                kind.listed += 1;
                if let Some(status) = kind.list {
                    return json(status, json!({ "reason": "InternalError" }));
                }
                let names = (0..kind.objects).map(|n| n.to_string());
                let items: Vec<Value> = names.map(|name| object(&name, kind)).collect();
                json(200, json!({ "metadata": {}, "items": items }))
            }
            ("PUT", [_, name]) => {
                match kind.write {
                    // As in a namespace that is not there.
                    Some(404) => {
                        let details = json!({ "name": "default", "kind": "namespaces" });
                        return json(404, json!({ "reason": "NotFound", "details": details }));
                    }
                    Some(409) => return json(409, json!({ "reason": "Conflict" })),
                    Some(status) => return json(status, json!({ "reason": "Forbidden" })),
                    None => {}
                }
                let is_new = !self.lags && kind.written.insert((*name).to_owned());
                let full = if group.is_empty() {
                    rest[0].to_owned()
                } else {
                    format!("{}.{group}", rest[0])
                };
                let reads = self.reads.entry(full).or_default();
                reads[usize::from(!is_new && !self.lags)] += 1;
                let mut now = object(name, kind);
                if self.webhook != Webhook::Nothing {
                    self.writes += 1;
                    now["metadata"]["resourceVersion"] = json!(format!("{}", 10 + self.writes));
                }
                json(200, now)
            }
            ("GET", [_, name]) => {
                let mut here = object(name, kind);
                match kind.get {
                    Told::Here => {}
                    Told::Changed => here["metadata"]["resourceVersion"] = json!("3"),
                    Told::Another => here["metadata"]["uid"] = json!("another"),
                    Told::Gone => {
                        let details = json!({ "name": name, "kind": rest[0] });
                        return json(404, json!({ "reason": "NotFound", "details": details }));
                    }
                    Told::Unserved => return (404, "404 page not found\n".to_owned()),
                    Told::Failed => return json(501, json!({ "reason": "InternalError" })),
                }
                json(200, here)
            }
            _ => json(405, json!({})),
        }
    }

    fn metrics(&self) -> String {
        let hash_of_id = hash_of(if self.told_others { "another" } else { KEY_ID });
        if self.deaf {
            return "process_start_time_seconds 5\n".to_owned();
        }
        let mut text = format!(
            "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{{key_id_hash=\"{hash_of_id}\",provider_name=\"lastkey\"}} 5\n\
             apiserver_envelope_encryption_key_id_hash_total{{key_id_hash=\"{hash_of_id}\",provider_name=\"lastkey\",transformation_type=\"to_storage\"}} 9\n"
        );
        if self.webhook != Webhook::Nothing {
            let hash = hash_of(if self.webhook == Webhook::Changes { KEY_ID } else { "another" });
            text += &format!(
                "process_start_time_seconds 5\n\
                 apiserver_envelope_encryption_key_id_hash_total{{key_id_hash=\"{hash}\",provider_name=\"lastkey\",transformation_type=\"to_storage\"}} {}\n",
                self.writes
            );
        }
        for kind in self.under_kms {
            text += &format!(
                "apiserver_storage_transformation_operations_total{{resource=\"{kind}\",transformer_prefix=\"k8s:enc:kms:v2:lastkey:\"}} 3\n"
            );
        }
        let [left, target] = self.providers();
        let changes = self.rotation["course"].is_object();
        for (kind, [under_left, under_target]) in self.reads.iter().filter(|_| changes) {
            let more = if self.blurs { self.asked["metrics"] } else { 0 };
            for (prefix, count) in [(&left, under_left + more), (&target, *under_target)] {
                text += &format!(
                    "apiserver_storage_transformation_operations_total{{resource=\"{kind}\",status=\"OK\",transformation_type=\"from_storage\",transformer_prefix=\"{prefix}\"}} {count}\n"
                );
            }
        }
        if let Some((started, reloads, more)) = self.older {
            text += &format!("process_start_time_seconds {started}\n{more}");
            if reloads > 0 {
                text += &format!(
                    "apiserver_encryption_config_controller_automatic_reloads_total{{status=\"success\"}} {reloads}\n"
                );
            }
        } else if let Some(file) = &self.file {
            let hash = hash(&std::fs::read_to_string(file).unwrap());
            text += &format!(
                "apiserver_encryption_config_controller_last_config_info{{hash=\"{hash}\"}} 1\n"
            );
        }
        text
    }

    /// What is left, and what is changed to, as it counts them.
    fn providers(&self) -> [String; 2] {
        let kms = "k8s:enc:kms:v2:lastkey:".to_owned();
        let target = &self.rotation["course"]["goal"]["target"];
        match serde_json::from_value(target.clone()) {
            Ok(Target::Kms { .. }) => ["identity".to_owned(), kms],
            Ok(Target::Local { kind }) => [kms, format!("k8s:enc:{kind}:v1:")],
            _ => [kms, "identity".to_owned()],
        }
    }

    fn lastkey(&mut self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let step = path.rsplit('/').next().unwrap_or_default();
        let answer = match (method, step) {
            ("GET", "rotations") => json!({ "items": [self.rotation] }),
            ("GET", "status") => json!({ "now": NOW }),
            ("GET", "clusters") => json!({ "items": [] }),
            ("GET", "impact") => json!({ "versions": [
                { "key_version_id": version(1) }, { "key_version_id": version(2) },
            ]}),
            ("POST", "claim") => self.rotation.clone(),
            ("POST", "save") => {
                self.rotation["phase"] = body["phase"].clone();
                self.rotation["state"] = body["state"].clone();
                self.rotation.clone()
            }
            ("POST", "finish") => {
                self.rotation["phase"] = json!("finished");
                self.finished = Some(body.clone());
                self.rotation.clone()
            }
            _ => return (404, json!({ "code": "NotFound" }).to_string()),
        };
        (200, answer.to_string())
    }
}

fn rotation() -> Value {
    json!({
        "id": "R", "cluster": ClusterId::from_bytes([1; 16]), "key": KeyId::from_bytes([2; 16]),
        "target": version(2), "primary": version(2), "phase": "converging", "state": null,
        "started": NOW, "updated": NOW, "now": NOW, "plugin_key_id": KEY_ID, "fence": 1,
    })
}

/// Both servers, and where they are reached.
struct Lab {
    world: Arc<Mutex<World>>,
    folder: tempfile::TempDir,
    access: Access,
}

impl Lab {
    async fn new(world: World) -> Self {
        let world = Arc::new(Mutex::new(world));
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(folder.path().join("admin.sock")).unwrap();
        let shared = Arc::clone(&world);
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let world = Arc::clone(&shared);
                tokio::spawn(fake::serve(stream, move |method: &str, path: &str, body: &Value| {
                    world.lock().lastkey(method, path, body)
                }));
            }
        });
        let shared = Arc::clone(&world);
        let access = fake::apiserver(move |method: &str, path: &str, body: &Value| {
            shared.lock().apiserver(method, path, body)
        });
        let access = access.await;
        Self { world, folder, access }
    }

    /// One that goes through all that a configuration has by these names.
    fn worker(&self, names: &[&str]) -> Worker {
        let socket = self.folder.path().join("admin.sock");
        Worker {
            client: Client::new(Config::admin(socket)).unwrap(),
            api: ApiServer::new(&self.access).unwrap(),
            etcd: None,
            options: Options {
                resources: names.iter().map(ToString::to_string).collect(),
                whole: true,
                configured: true,
                workers: 4,
                rate: None,
                page: 500,
                holder: "test".to_owned(),
                migrate: Migrate::Own,
                only_own: None,
                patience: Duration::ZERO,
            },
            change: None,
            watch: Box::new(|_| {}),
            stop: Arc::default(),
        }
    }

    async fn run(&self, worker: &Worker) -> Result<(), RotateError> {
        let rotation = serde_json::from_value(self.world.lock().rotation.clone()).unwrap();
        worker.run(&rotation).await.map(drop)
    }

    /// Is interrupted as soon as it rewrites.
    async fn interrupted(&self, names: &[&str]) {
        let mut worker = self.worker(names);
        let stop = Arc::clone(&worker.stop);
        worker.watch = Box::new(move |event| {
            if *event == Event::Phase(RotationPhase::Rewriting) {
                stop.store(true, Ordering::Relaxed);
            }
        });
        assert!(matches!(self.run(&worker).await, Err(RotateError::Interrupted)));
    }

    /// Runs to the end.
    async fn rotate(&self, names: &[&str]) {
        self.run(&self.worker(names)).await.unwrap();
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn all_that_is_encrypted_is_written_and_becomes_free() {
    let lab = Lab::new(World::with(&[("", "secrets", 3), ("apps", "a", 2)])).await;
    lab.rotate(&["secrets", "*.apps"]).await;
    let mut world = lab.world.lock();
    assert_eq!((world.kind("secrets").written.len(), world.kind("a").written.len()), (3, 2));
    assert!(world.is_free(), "{}", world.report());
    assert_eq!((&world.report()["whole"], &world.report()["objects"]), (&json!(true), &json!(5)));
}

/// A definition that is installed while an apiserver still writes under the old key id.
#[tokio::test]
async fn a_kind_that_comes_while_it_converges_is_gone_through() {
    for (when, at) in [("metrics", 1), ("secrets", 1), ("secrets", 4)] {
        let mut world = World::with(&[("", "secrets", 1), ("apps", "a", 1)]);
        // While it converges, in the first pass, and in the last.
        world.then.insert(when, (at, |world| world.install("b")));
        let lab = Lab::new(world).await;
        lab.rotate(&["secrets", "*.apps"]).await;
        let mut world = lab.world.lock();
        assert_eq!(world.kind("b").written.len(), 1, "{when} {at}: {}", world.report());
        assert!(world.is_free(), "{when} {at}: {}", world.report());
        assert_eq!(texts(&world.report()["resources"]), ["secrets", "a.apps", "b.apps"]);
    }
}

fn configuration(providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- \
         resources:\n  - '*.apps'\n  providers:\n{providers}"
    )
}

const KMS: &str =
    "  - kms:\n      apiVersion: v2\n      name: lastkey\n      endpoint: unix:///a\n";
const CLEAR: &str = "  - identity: {}\n";

/// Replaces the file by itself.
fn unattended(path: &Path) -> Hands {
    Hands {
        place: Place { path: path.to_owned() },
        by_hand: false,
        accept: false,
        copy: None,
        etcd: None,
        registered: Vec::new(),
        printed: Default::default(),
    }
}

/// A change out of the KMS, as `disable` begins it.
async fn disable(mut world: World) -> (Lab, Worker, std::path::PathBuf) {
    let goal = Goal { resources: vec!["*.apps".to_owned()], target: Target::Identity };
    world.rotation["course"] = json!({ "way": "disable", "goal": goal });
    world.rotation["phase"] = json!("preparing");
    let lab = Lab::new(world).await;
    let path = lab.folder.path().join("config.yaml");
    std::fs::write(&path, configuration(&format!("{KMS}{CLEAR}"))).unwrap();
    lab.world.lock().file = Some(path.clone());
    let registered = vec!["*.apps".to_owned()];
    let hands = Hands { registered, ..unattended(&path) };
    let mut worker = lab.worker(&["*.apps"]);
    worker.change = Some(hands);
    (lab, worker, path)
}

fn has_kms(path: &Path) -> bool {
    std::fs::read_to_string(path).unwrap().contains("kms")
}

#[tokio::test]
async fn a_kind_that_comes_while_the_provider_changes_is_gone_through() {
    // Before the file is switched, and after the last pass.
    for (when, at) in [("metrics", 2), ("a", 4)] {
        let mut world = World::with(&[("apps", "a", 1)]);
        world.then.insert(when, (at, |world| world.install("b")));
        let (lab, worker, path) = disable(world).await;
        lab.run(&worker).await.unwrap();
        let mut world = lab.world.lock();
        assert_eq!(world.kind("b").written.len(), 1, "{when} {at}: {}", world.report());
        assert!(world.is_free() && !has_kms(&path), "{when} {at}: {}", world.report());
    }
}

/// What can not be listed keeps the provider that it may be under.
#[tokio::test]
async fn the_provider_of_what_cannot_be_listed_stays() {
    let mut world = World::with(&[("apps", "a", 1), ("apps", "b", 1)]);
    world.kind("a").list = Some(501);
    let (lab, worker, path) = disable(world).await;
    lab.run(&worker).await.unwrap();
    let mut world = lab.world.lock();
    assert_eq!(world.kind("b").written.len(), 1);
    assert!(!world.is_free() && has_kms(&path), "{}", world.report());
}

/// Who goes on with a whole may know less of it: by an option, or without the file.
#[tokio::test]
async fn what_it_was_begun_for_is_not_forgotten() {
    // What nobody serves just now, and what cannot be written back.
    for name in ["widgets.gone", "*.example.org"] {
        let lab = Lab::new(World::with(&[("", "secrets", 1), ("example.org", "a", 1)])).await;
        lab.interrupted(&["secrets", name]).await;
        let mut narrow = lab.worker(&["secrets"]);
        (narrow.options.whole, narrow.options.configured) = (false, false);
        lab.run(&narrow).await.unwrap();
        let world = lab.world.lock();
        assert!(!world.is_free(), "{name}: {}", world.report());
        let said = format!("{}{}", world.report()["left_out"], world.report()["unserved"]);
        assert!(said.contains(if name.contains('*') { "a.example.org" } else { name }), "{said}");
    }
}

/// What was registered may be less than what is encrypted by now.
#[tokio::test]
async fn without_the_file_and_without_etcd_only_what_apiservers_count_frees() {
    for (counted, why) in [
        (&[][..], Some("does not count by kind")),
        (&["secrets"], None),
        (&["secrets", "configmaps"], Some("under a KMS of configmaps")),
    ] {
        let mut world = World::with(&[("", "secrets", 1), ("", "configmaps", 1)]);
        world.under_kms = counted;
        let lab = Lab::new(world).await;
        let mut worker = lab.worker(&["secrets"]);
        worker.options.configured = false;
        lab.run(&worker).await.unwrap();
        let world = lab.world.lock();
        assert_eq!(world.is_free(), why.is_none(), "{}", world.report());
        let Some(why) = why else { continue };
        let said = world.report()["not_known"].as_str().unwrap();
        assert!(said.contains(why) && said.contains("--keep-version"), "{said}");
    }
}

/// A state of an earlier release has no names: whether it was all of them only who goes on knows.
#[tokio::test]
async fn a_whole_of_an_earlier_release_is_one_for_who_goes_on_with_all() {
    for whole in [true, false] {
        let mut world = World::with(&[("", "secrets", 1), ("", "configmaps", 1)]);
        world.rotation["state"] = json!({ "whole": true, "resources": [{
            "group": "", "version": "v1", "name": "secrets", "kind": "Kind", "namespaced": true,
            "updatable": true,
        }]});
        let lab = Lab::new(world).await;
        let mut worker = lab.worker(&["secrets", "configmaps"]);
        worker.options.whole = whole;
        lab.run(&worker).await.unwrap();
        assert_eq!(lab.world.lock().is_free(), whole);
    }
}

#[tokio::test]
async fn a_kind_behind_a_wildcard_that_cannot_be_listed_is_left_out() {
    // The second is what nothing is concluded from as long as the kind is served.
    for (status, said) in [(501, "the status 501"), (404, "not found")] {
        is_left_out(status, said).await;
    }
}

async fn is_left_out(status: u16, said: &str) {
    let mut world = World::with(&[("", "secrets", 1), ("apps", "a", 1), ("apps", "b", 1)]);
    world.kind("a").list = Some(status);
    let lab = Lab::new(world).await;
    lab.rotate(&["secrets", "*.apps"]).await;
    {
        let mut world = lab.world.lock();
        assert_eq!(world.kind("b").written.len(), 1, "those behind it are reached");
        assert!(!world.is_free(), "{}", world.report());
        let left = texts(&world.report()["left_out"]).join(" ");
        assert!(left.contains("a.apps cannot be listed") && left.contains(said), "{left}");
        // Once it can be, another rotation goes through it.
        world.kind("a").list = None;
        world.rotation = rotation();
    }
    lab.rotate(&["secrets", "*.apps"]).await;
    assert!(lab.world.lock().is_free());
}

#[tokio::test]
async fn a_named_kind_that_cannot_be_listed_ends_it_after_all_others() {
    let mut world = World::with(&[("", "secrets", 1), ("apps", "a", 1), ("apps", "b", 1)]);
    world.kind("a").list = Some(501);
    let lab = Lab::new(world).await;
    let names = ["secrets", "a.apps", "b.apps"];
    for _ in 0..2 {
        let error = lab.run(&lab.worker(&names)).await.unwrap_err().to_string();
        assert!(error.contains("a.apps cannot be listed") && error.contains("501"), "{error}");
        assert_eq!(lab.world.lock().kind("b").written.len(), 1, "those behind it are reached");
        assert!(lab.world.lock().finished.is_none());
    }
    lab.world.lock().kind("a").list = None;
    lab.rotate(&names).await;
    let mut world = lab.world.lock();
    assert!(world.is_free() && world.kind("a").written.len() == 1, "{}", world.report());
}

/// What an apiserver says that is not well is said of no kind.
#[tokio::test]
async fn an_apiserver_that_is_not_well_ends_it() {
    let mut world = World::with(&[("", "secrets", 1), ("apps", "a", 1)]);
    world.kind("a").list = Some(501);
    world.then.insert("a", (1, |world| world.unwell = true));
    let lab = Lab::new(world).await;
    let error = lab.run(&lab.worker(&["secrets", "*.apps"])).await.unwrap_err();
    assert!(matches!(error, RotateError::List { .. }), "{error}");
    assert!(error.to_string().starts_with("a.apps cannot be listed"), "{error}");
}

/// A definition that is deleted: before it is gone on with, and in the middle of it.
#[tokio::test]
async fn a_kind_that_is_not_served_any_more_is_dropped() {
    let remove: Happens = |world| drop(world.kinds.remove(&("apps", "a")));
    let (wide, named) = (&["secrets", "*.apps"][..], &["secrets", "a.apps", "b.apps"][..]);
    // Between two commands, before it is counted, and between that and its list.
    for (names, lists) in [(wide, 0), (wide, 1), (wide, 2), (named, 0), (named, 1), (named, 2)] {
        let mut world = World::with(&[("", "secrets", 1), ("apps", "a", 1), ("apps", "b", 1)]);
        world.then.insert("secrets", (lists, remove));
        let lab = Lab::new(world).await;
        if lists == 0 {
            lab.interrupted(names).await;
            remove(&mut lab.world.lock());
        }
        lab.rotate(names).await;
        {
            let mut world = lab.world.lock();
            assert_eq!(world.kind("b").written.len(), 1, "{names:?} {}", world.report());
            // Nobody knows what became of its objects.
            assert!(!world.is_free(), "{names:?} {}", world.report());
            let said = texts(&world.report()["left_out"]).join(" ");
            assert!(said.contains("a.apps is not served any more"), "{names:?} {said}");
            // Another rotation begins without it.
            world.rotation = rotation();
        }
        lab.rotate(&["secrets", "*.apps"]).await;
        assert!(lab.world.lock().is_free());
    }
}

#[tokio::test]
async fn what_admission_refuses_is_reported_and_the_rest_goes_on() {
    let mut world = World::with(&[("", "claims", 3), ("", "secrets", 2)]);
    world.kind("claims").write = Some(403);
    let lab = Lab::new(world).await;
    lab.rotate(&["claims", "secrets"]).await;
    let mut world = lab.world.lock();
    assert_eq!(world.kind("secrets").written.len(), 2);
    assert_eq!(world.report()["refused"], 3, "{}", world.report());
    let reason = world.report()["refusals"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("admission plugin"), "{reason}");
    // The older version is needed by what was refused.
    let found = &world.finished.as_ref().unwrap()["found"]["versions"];
    assert_eq!(found[version(1).to_string()], 3, "{found}");
}

#[tokio::test]
async fn what_the_account_may_not_update_ends_it() {
    let mut world = World::with(&[("", "claims", 1), ("", "secrets", 2)]);
    world.kind("claims").write = Some(403);
    // The role is taken away under way.
    world.then.insert("claims", (1, |world| world.kind("claims").may = false));
    let lab = Lab::new(world).await;
    let error = lab.run(&lab.worker(&["claims", "secrets"])).await.unwrap_err();
    assert!(matches!(error, RotateError::Api(ApiError::Forbidden { .. })), "{error}");
}

/// Nobody listens here, or can.
const ELSEWHERE: &str = "unix:///nowhere/here/kms.sock";

/// A file that cannot be replaced goes over to whoever puts it in place, but not with keys that nobody
/// has asked to see.
#[tokio::test]
async fn keys_are_not_printed_unasked() {
    let secret = "qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=";
    let local = format!("  - aescbc: {{keys: [{{name: k1, secret: {secret}}}]}}\n");
    let commented = format!("  #{local}");
    for (full, local) in [(true, &local), (false, &local), (true, &commented), (false, &commented)]
    {
        let (lab, mut worker, path) = disable(World::with(&[("apps", "a", 1)])).await;
        let text = configuration(&format!("{KMS}{local}{CLEAR}"));
        std::fs::write(&path, &text).unwrap();
        match full {
            // Nothing can be written beside it.
            true => {
                std::fs::create_dir(path.with_file_name(".config.yaml.lastkey-new")).unwrap();
            }
            false => {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = std::fs::Permissions::from_mode(0o444);
                std::fs::set_permissions(&path, mode).unwrap();
            }
        }
        let events = Arc::new(Mutex::new(Vec::new()));
        let (told, stop) = (Arc::clone(&events), Arc::clone(&worker.stop));
        worker.watch = Box::new(move |event| {
            if let Event::Config(config) = event {
                told.lock().push(config.clone());
                stop.store(true, Ordering::Relaxed);
            }
        });
        let refused = lab.run(&worker).await.unwrap_err();
        assert!(matches!(refused, RotateError::ShowsKeys { .. }), "{refused}");
        assert!(refused.to_string().contains("--by-hand"), "{refused}");
        assert!(events.lock().is_empty() && !refused.to_string().contains(secret), "{refused}");
        assert!(!lab.world.lock().rotation.to_string().contains(secret));
        // Who asks for it gets it, and goes on where that was.
        worker.change.as_mut().unwrap().by_hand = true;
        assert!(matches!(lab.run(&worker).await, Err(RotateError::Interrupted)));
        let event = events.lock().remove(0);
        let (_, content) = event.by_hand.unwrap();
        assert!(event.holds_keys && content.contains(secret));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

/// Into the KMS without a name: what has a rule of its own stays in clear, and the report says so.
#[tokio::test]
async fn what_stays_in_clear_is_reported() {
    let target = Target::Kms { name: "lastkey".to_owned(), endpoint: ELSEWHERE.to_owned() };
    let goal = Goal { resources: vec!["*.apps".to_owned()], target };
    for way in ["enable", "disable"] {
        let (lab, mut worker, path) = disable(World::with(&[("apps", "a", 1)])).await;
        let kms = KMS.replace("unix:///a", ELSEWHERE);
        let other = "- resources: [configmaps]\n  providers:\n";
        let text = configuration(&format!("{kms}{CLEAR}")) + other + CLEAR;
        std::fs::write(&path, text).unwrap();
        worker.change.as_mut().unwrap().registered.clear();
        if way == "enable" {
            lab.world.lock().rotation["course"] = json!({ "way": way, "goal": goal });
        }
        lab.run(&worker).await.unwrap();
        let world = lab.world.lock();
        match way {
            "enable" => assert_eq!(texts(&world.report()["in_clear"]), ["configmaps"]),
            _ => assert!(world.report()["in_clear"].is_null(), "{}", world.report()),
        }
    }
}

/// A namespace is there, or is not, or the account may not know.
#[tokio::test]
async fn whether_a_namespace_is_there() {
    let access = fake::apiserver(|_: &str, path: &str, _: &Value| match path {
        "/api/v1/namespaces/here" => (200, "{}".to_owned()),
        "/api/v1/namespaces/hidden" => (403, json!({ "reason": "Forbidden" }).to_string()),
        "/api/v1/namespaces/broken" => (500, json!({ "reason": "InternalError" }).to_string()),
        _ => (404, json!({ "reason": "NotFound" }).to_string()),
    });
    let api = ApiServer::new(&access.await).unwrap();
    for (name, there) in [("here", Some(true)), ("gone", Some(false)), ("hidden", None)] {
        assert_eq!(api.has_namespace(name).await, Ok(there), "{name}");
    }
    assert_eq!(api.has_namespace("here/../gone").await, Ok(Some(false)));
    assert!(api.has_namespace("broken").await.is_err());
}
