//! Thousands of Secrets rotated while fifty others write and delete: killed and gone on with, with
//! an apiserver that restarts, and with one of two that lags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use lastkey_testbed::{Apiserver, ApiserverOptions, Ready, Running, eventually};
use rustix::process::Signal;
use serde_json::Value;

use super::model::{self, Ending, Load, Model, Random, WRITERS, Writer};
use super::support::rotate::{
    Rotate, SECRETS, begins, config_at, has_written, is_needed, key_ids, register, versions,
};
use super::support::{Cluster, Lab, SOON, plugin_options};
use super::{VERSION, peers, size};

/// Of a hundred Secrets so many belong to nobody and have to stay as they are, in every field.
const UNTOUCHED: usize = 40;
/// How often the rotation is killed.
const KILLS: usize = 3;

/// A cluster with Secrets, some of whose names are the writers'.
struct Field {
    secrets: usize,
    /// Who changes what, by writer.
    parts: Vec<Vec<(String, Vec<Option<model::Known>>)>>,
    /// As they were before.
    untouched: BTreeMap<String, Value>,
    model: Model,
    old_id: String,
}

impl Field {
    fn new(cluster: &Cluster) -> Self {
        let secrets = size("LASTKEY_TEST_SECRETS", 10_000);
        let still: Vec<_> = (0..secrets * UNTOUCHED / 100).map(|n| format!("still-{n}")).collect();
        let names: Vec<_> = (still.len()..secrets).map(|n| format!("w-{n}")).collect();
        let model: Model = model::create_all(&cluster.apiserver, &still).into_iter().collect();
        let mut parts = vec![Vec::new(); WRITERS];
        let made = model::create_all(&cluster.apiserver, &names);
        // As many again as a quarter of them are not there yet.
        let free = (0..names.len() / 4).map(|n| (format!("new-{n}"), vec![None]));
        for (n, slot) in made.into_iter().chain(free).enumerate() {
            parts[n % WRITERS].push(slot);
        }
        let mut untouched = model::list(cluster.apiserver.client());
        untouched.retain(|name, _| model.contains_key(name));
        let ids = key_ids(&cluster.etcd, SECRETS);
        assert_eq!(ids.len(), 1, "{ids:?}");
        let old_id = ids.into_iter().next().unwrap();
        Self { secrets, parts, untouched, model, old_id }
    }

    /// Has `rotate` done while the writers work, each through the next of `apiservers`.
    fn under_load<T>(
        &mut self,
        (seed, apiservers): (u64, &[&lastkey_testbed::Client]),
        rotate: impl FnOnce(&Load) -> T,
    ) -> T {
        let load = Load::new();
        let parts = std::mem::take(&mut self.parts);
        let (over, working) = thread::scope(|scope| {
            let ending = Ending(&load);
            let working: Vec<_> = parts
                .into_iter()
                .enumerate()
                .map(|(n, part)| {
                    let random = Random::new(seed.wrapping_add(n as u64));
                    let client = apiservers[n % apiservers.len()];
                    let (writer, load) = (Writer::new(client, random, part), &load);
                    scope.spawn(move || writer.work(load))
                })
                .collect();
            let over = rotate(&load);
            drop(ending);
            let working: Vec<_> = working.into_iter().map(|one| one.join().unwrap()).collect();
            (over, working)
        });
        let mut wrong = Vec::new();
        for (slots, more) in working {
            self.model.extend(slots);
            wrong.extend(more);
        }
        assert_eq!(wrong, [""; 0], "seen while it ran");
        over
    }

    /// Nothing lost, nothing resurrected, nothing stale, nothing else changed.
    fn assert_all_is_well(&self, report: &Value, (cluster, others): (&Cluster, &[&Apiserver])) {
        assert_eq!(report["refused"], 0, "{report}");
        // 1. What etcd has: all of it under the new key id.
        let ids = key_ids(&cluster.etcd, SECRETS);
        let new_id = report["plugin_key_id"].as_str().unwrap();
        assert_eq!(ids.into_iter().collect::<Vec<_>>(), [new_id], "nothing is stale");
        assert_ne!(new_id, self.old_id);
        // 2. What each apiserver answers.
        let apiservers = std::iter::once(&cluster.apiserver).chain(others.iter().copied());
        for apiserver in apiservers {
            let now = model::list(apiserver.client());
            assert_eq!(model::differences(&self.model, &now), [""; 0], "{}", apiserver.url());
            for (name, before) in &self.untouched {
                assert_eq!(without_version(&now[name]), without_version(before), "{name}");
            }
        }
        let in_etcd = cluster.etcd.list(SECRETS).unwrap().len();
        let there = model::list(cluster.apiserver.client()).len();
        assert_eq!(in_etcd, there, "etcd has what is listed, and no more");
        assert!(there > self.secrets / 2, "{there} are left");
    }
}

/// An object without what a write has to change.
fn without_version(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    object
}

fn start(peers: &lastkey_testbed::Peers, lab: &Lab, config: &std::path::Path) -> Cluster {
    let cluster = Cluster::start(peers, &lab.folder("cluster"), VERSION, config);
    eventually("the apiserver is ready, its provider too", SOON, || {
        cluster.apiserver.client().get("/readyz")?.expect_ok("readyz")
    })
    .unwrap();
    cluster
}

/// So many a second that a pass takes about so long.
fn rate(secrets: usize, seconds: usize) -> String {
    (secrets / seconds).max(1).to_string()
}

#[test]
fn killed_at_random_and_gone_on_with() {
    let test = "killed_at_random_and_gone_on_with";
    let Some(peers) = peers(test) else { return };
    let (seed, mut random) = Random::from_environment(test);
    let lab = Lab::new();
    let up = lab.up();
    let mut cluster = start(&peers, &lab, &up.ready.encryption_config_file);
    let mut field = Field::new(&cluster);
    let urls = [cluster.apiserver.url()];
    register(
        &lab,
        &up.ready,
        (cluster.apiserver.kubeconfig(), &cluster.etcd),
        (&urls, &["secrets"]),
    );
    let secrets = field.secrets;
    let began = Instant::now();
    let client = cluster.apiserver.client().clone();
    let (report, changes) = field.under_load((seed, &[&client]), |load| {
        for kill in 0..KILLS {
            kill_one((&lab, &up.ready), (kill, secrets), &mut random);
        }
        let mut last = Rotate::start(&lab, &up.ready, &["--page", "100"]);
        last.wait_for("the work", |event| event["event"] == "progress");
        let before = load.changes();
        let report = last.report();
        assert!(load.changes() > before, "others went on writing meanwhile");
        (report, load.changes())
    });
    eprintln!(
        "{test}: {secrets} Secrets, {changes} changes by {WRITERS} writers, {KILLS} kills, {:.0} s: {report}",
        began.elapsed().as_secs_f64()
    );
    // Nobody answers from memory any more.
    cluster.apiserver.restart().unwrap();
    field.assert_all_is_well(&report, (&cluster, &[]));
    let [old, primary] = &versions(&lab, &up.ready)[..] else { panic!("two versions") };
    assert!(!is_needed(&lab, &up.ready, old), "the old version is free");
    assert!(is_needed(&lab, &up.ready, primary));
}

/// A rotation that is killed at a random moment of a random phase, the first while it rewrites.
fn kill_one((lab, ready): (&Lab, &Ready), (kill, secrets): (usize, usize), random: &mut Random) {
    let mut rotate = Rotate::start(lab, ready, &["--page", "50", "--rate", &rate(secrets, 20)]);
    match (kill, random.below(3)) {
        (0, _) | (_, 0) => drop(rotate.wait_for("rewriting", has_written)),
        (_, 1) => drop(rotate.wait_for("a phase", |event| event["event"] == "phase")),
        _ => drop(rotate.wait_for("work", |event| event["event"] == "progress")),
    }
    thread::sleep(Duration::from_millis(random.below(3000) as u64));
    rotate.kill();
    eprintln!("kill {kill} after {}", rotate.events.last().unwrap());
}

#[test]
fn an_apiserver_lags_and_another_restarts() {
    let test = "an_apiserver_lags_and_another_restarts";
    let Some(peers) = peers(test) else { return };
    let (seed, _) = Random::from_environment(test);
    let lab = Lab::new();
    let up = lab.up();
    let mut cluster = start(&peers, &lab, &up.ready.encryption_config_file);
    let (plugin, config) = second_plugin(&lab, &up.ready);
    let options = ApiserverOptions { version: VERSION, encryption_config: &config, flags: &[] };
    let place = (&cluster.etcd, &*lab.folder("second"));
    let second = cluster.apiserver.start_beside(&peers, place, &options).unwrap();
    let mut field = Field::new(&cluster);
    let urls = [cluster.apiserver.url(), second.url()];
    register(
        &lab,
        &up.ready,
        (cluster.apiserver.kubeconfig(), &cluster.etcd),
        (&urls, &["secrets"]),
    );
    let secrets = field.secrets;
    let clients = [cluster.apiserver.client().clone(), second.client().clone()];
    let (old_id, still) = (field.old_id.clone(), "/registry/secrets/default/still-");
    let Cluster { apiserver, etcd } = &mut cluster;
    let report = field.under_load((seed, &[&clients[0], &clients[1]]), |load| {
        // 1. The second apiserver's plugin is frozen: the rotation waits, and says for whom.
        plugin.process.signal(Signal::STOP);
        let more = ["--page", "50", "--rate", &rate(secrets, 30)];
        let mut rotate = Rotate::start(&lab, &up.ready, &more);
        rotate.wait_for("it waits for the second one alone", |event| {
            let behind: Vec<String> =
                serde_json::from_value(event["behind"].clone()).unwrap_or_default();
            matches!(&behind[..], [one] if one.starts_with(&urls[1]))
        });
        let (before, asked) = (load.changes(), Instant::now());
        eventually("others go on writing", SOON, || match load.changes() > before + 20 {
            true => Ok(()),
            false => Err("too few"),
        })
        .unwrap();
        assert_eq!(key_ids(etcd, still).into_iter().collect::<Vec<_>>(), [old_id.as_str()]);
        assert!(!rotate.events.iter().any(begins("rewriting")), "{:?}", rotate.events);
        eprintln!("{test}: frozen for {:?} after the first one had converged", asked.elapsed());
        // 2. It goes on once that one has taken the new key id.
        plugin.process.signal(Signal::CONT);
        rotate.wait_for("it rewrites", has_written);
        // 3. The first apiserver is killed in the middle, and comes back.
        apiserver.restart().unwrap();
        rotate.report()
    });
    eprintln!("{test}: {report}");
    field.assert_all_is_well(&report, (&cluster, &[&second]));
}

/// Another plugin of the same cluster, and a configuration that leads to it.
fn second_plugin(lab: &Lab, ready: &Ready) -> (Running, PathBuf) {
    let socket = lab.path("second.sock");
    let config = config_at(ready, &lab.path("second.yaml"), &socket);
    let files = Ready { plugin_socket: socket, ..ready.clone() };
    let state = lab.path("second-state");
    let state = ["--state-dir".as_ref(), state.as_os_str()];
    let options = [&plugin_options(&files)[..], &state].concat();
    (lab.lastkey.plugin(&options).unwrap(), config)
}

#[test]
fn the_only_apiserver_restarts_in_the_middle() {
    let test = "the_only_apiserver_restarts_in_the_middle";
    let Some(peers) = peers(test) else { return };
    let (seed, _) = Random::from_environment(test);
    let lab = Lab::new();
    let up = lab.up();
    let mut cluster = start(&peers, &lab, &up.ready.encryption_config_file);
    let mut field = Field::new(&cluster);
    let urls = [cluster.apiserver.url()];
    register(
        &lab,
        &up.ready,
        (cluster.apiserver.kubeconfig(), &cluster.etcd),
        (&urls, &["secrets"]),
    );
    let secrets = field.secrets;
    let client = cluster.apiserver.client().clone();
    let apiserver = &mut cluster.apiserver;
    let report = field.under_load((seed, &[&client]), |load| {
        let more = ["--page", "50", "--rate", &rate(secrets, 20)];
        let mut rotate = Rotate::start(&lab, &up.ready, &more);
        rotate.wait_for("it rewrites", has_written);
        apiserver.restart().unwrap();
        let before = load.changes();
        eventually("others write again", SOON, || match load.changes() > before {
            true => Ok(()),
            false => Err("nothing yet"),
        })
        .unwrap();
        // It waits for about a minute; an apiserver that was away for longer ends the command,
        // and the same command goes on.
        while let Some(event) = rotate.next() {
            if event["event"] == "report" {
                return event;
            }
        }
        assert_eq!(rotate.code(), Some(1));
        Rotate::start(&lab, &up.ready, &["--page", "50"]).report()
    });
    eprintln!("{test}: {report}");
    field.assert_all_is_well(&report, (&cluster, &[]));
}
