//! Rotations that the cluster itself carries out, by StorageVersionMigrations of a real
//! kube-controller-manager: Lastkey may not even read what is encrypted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lastkey_testbed::{
    Apiserver, ApiserverOptions, ControllerManager, Encrypted, Error, Outcome, Peers, Ready,
    eventually,
};
use serde_json::{Value, json};

use super::VERSION;
use super::support::rotate::{Rotate, SECRETS, cli, is_needed, key_ids, versions};
use super::support::{Cluster, KEY, Lab, SOON};

pub(super) const MIGRATIONS: &str = "/apis/storagemigration.k8s.io/v1/storageversionmigrations";
pub(super) const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const COUNT: usize = 60;
/// The apiserver hears of a key id within a minute, and so does the migrator of a list.
pub(super) const FOLLOWED: Duration = Duration::from_secs(300);

/// A cluster whose account may have migrations made, and nothing else.
pub(super) struct Lands {
    pub(super) lab: Lab,
    pub(super) ready: Ready,
    pub(super) cluster: Cluster,
}

impl Lands {
    pub(super) fn rotate(&self, more: &[&str]) -> Outcome {
        let args = [&["cluster", "rotate", "prod"], more].concat();
        cli(&self.lab, &self.ready, &args)
    }

    pub(super) fn needs(&self, version: &str) -> bool {
        is_needed(&self.lab, &self.ready, version)
    }

    pub(super) fn versions(&self) -> Vec<String> {
        versions(&self.lab, &self.ready)
    }

    pub(super) fn register(&self, migration: &str, more: &[&str]) -> Value {
        let kubeconfig = self.cluster.apiserver.kubeconfig().display().to_string();
        let out = self.lab.path("identity").display().to_string();
        let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--out", &out];
        let add = [&add[..], &["--migration", migration], more].concat();
        self.lab.cli(&self.ready, &add)
    }

    /// Whether Lastkey's account may do something in the cluster.
    fn may(&self, verb: &str, group: &str, resource: &str) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:kube-system:lastkey",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": { "verb": verb, "group": group, "resource": resource },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = self.cluster.apiserver.client().send("POST", path, Some(&review)).unwrap();
        answer.expect_ok("a review").unwrap().json()["status"]["allowed"] == true
    }

    /// The migrations in the cluster, by name.
    pub(super) fn migrations(&self) -> BTreeSet<String> {
        let answer = self.cluster.apiserver.client().get(MIGRATIONS).unwrap();
        let list = answer.expect_ok("migrations").unwrap().json();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }
}

pub(super) fn start(test: &str) -> Option<(Peers, Lands, lastkey_testbed::Running)> {
    start_with(test, &[])
}

/// With these flags of the apiserver.
pub(super) fn start_with(
    test: &str,
    flags: &[&str],
) -> Option<(Peers, Lands, lastkey_testbed::Running)> {
    let needed = ["etcd", "kube-apiserver-1.37.0", "kube-controller-manager-1.37.0"];
    let peers = Peers::or_skip(test, &needed)?;
    let lab = Lab::new();
    let up = lab.up();
    let ready = up.ready.clone();
    let encryption_config = &ready.encryption_config_file;
    let options = ApiserverOptions { version: VERSION, encryption_config, flags };
    let cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    Some((peers, Lands { lab, ready, cluster }, up))
}

/// Writes one Secret again and again, as something always does in a cluster: the garbage collector's
/// list of Secrets is only as new as the last change of one, or a minute old, and then it is asked
/// for again after longer and longer pauses. `LASTKEY_TEST_QUIET` has it be so.
pub(super) fn write_until(apiserver: &Apiserver, over: &AtomicBool) {
    let quiet = std::env::var_os("LASTKEY_TEST_QUIET").is_some();
    for turn in 0_u64.. {
        if quiet || over.load(Ordering::Relaxed) {
            return;
        }
        // The apiserver may refuse for a moment; what matters is that there are writes at all.
        let _ = apiserver.update_secret("busy", &format!("turn {turn}"));
        thread::sleep(Duration::from_millis(500));
    }
}

/// Ends the writer, however a test ends.
pub(super) struct Over<'a>(pub(super) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) fn names_in(events: &[Value]) -> BTreeSet<String> {
    let migrating = events.iter().filter(|event| event["event"] == "migrating");
    let each = migrating.flat_map(|event| event["migrations"].as_array().cloned().unwrap());
    each.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_cluster_migrates_what_lastkey_may_not_read() {
    let test = "the_cluster_migrates_what_lastkey_may_not_read";
    let Some((peers, lands, _up)) = start(test) else { return };
    let names = lands.cluster.create_secrets("s", COUNT);
    lands.cluster.apiserver.create_secret("busy", "turn").unwrap().expect_ok("busy").unwrap();
    let before = key_ids(&lands.cluster.etcd, SECRETS);
    what_is_refused(&lands);
    let old = lands.versions().pop().unwrap();

    // 0. An etcd that has nothing of this cluster is no proof of anything.
    let etcd = lands.cluster.etcd.url();
    lands.register("cluster", &["--etcd", etcd, "--etcd-prefix", "/elsewhere"]);
    let elsewhere = lands.rotate(&[]);
    assert_eq!(elsewhere.code, 1, "{}", elsewhere.stderr);
    assert!(elsewhere.stderr.contains("--etcd-prefix"), "{}", elsewhere.stderr);
    assert!(lands.needs(&old));
    // Nor for a look, although the account may list nothing to compare it with.
    let status = lands.lab.cli(&lands.ready, &["cluster", "status", "prod"]);
    assert_eq!(status["items"][0]["exact"], false, "{status}");
    assert!(lands.needs(&old), "{status}");
    lands.register("cluster", &["--etcd", etcd]);
    let status = lands.lab.cli(&lands.ready, &["cluster", "status", "prod"]);
    assert_eq!(status["items"][0]["exact"], true, "{status}");

    // 1. Nobody carries migrations out: that is said, nothing is free, nothing is lost.
    let nobody = lands.rotate(&["--migration-patience", "3s"]);
    assert_eq!(nobody.code, 1, "{}", nobody.stderr);
    assert!(nobody.stderr.contains("kube-controller-manager"), "{}", nobody.stderr);
    assert_eq!(lands.migrations().len(), 1);
    assert!(lands.needs(&old));
    let pause = lands.rotate(&["--pause"]);
    assert!(pause.code == 1 && pause.stderr.contains("cannot be paused"), "{}", pause.stderr);
    // What was asked for is about a version that is not the newest any more.
    let outdated = lands.migrations();
    lands.lab.cli(&lands.ready, &["key", "rotate", KEY]);

    // 2. Killed with a migration under way, which is another one now.
    let mut first = Rotate::start(&lands.lab, &lands.ready, &[]);
    first.wait_for("a migration", |event| event["event"] == "migrating");
    first.kill();
    let begun = lands.migrations();
    assert_eq!(names_in(&first.events), begun);
    assert!(begun.len() == 1 && begun.is_disjoint(&outdated), "{begun:?}, {outdated:?}");

    // 3. Somebody carries it out, and another command goes on with it.
    let dir = lands.lab.folder("controllers");
    let apiserver = &lands.cluster.apiserver;
    let mut controllers = ControllerManager::start(&peers, (apiserver, &dir), VERSION).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| write_until(apiserver, &over));
        let mut second = Rotate::start(&lands.lab, &lands.ready, &[]);
        let report = second.wait_for("a report", |event| event["event"] == "report");
        // It may be over by the time that the other one's claim has run out.
        let seen = names_in(&second.events);
        assert!(seen.is_subset(&begun), "no second migration: {seen:?}");
        controllers.check().unwrap();
        assert_eq!(report["migration"]["used"], true, "{report}");
        assert_eq!(report["refused"], 0, "{report}");
        assert_eq!(report["rewritten"].as_u64(), Some(COUNT as u64 + 1), "{report}");
        assert!(report["proof"].as_str().unwrap().contains("etcd"), "{report}");
    });
    let after = key_ids(&lands.cluster.etcd, SECRETS);
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(before.is_disjoint(&after));
    lands.cluster.assert_readable(&names);
    let all = lands.versions();
    let [first, second, newest] = &all[..] else { panic!("{all:?}") };
    assert_eq!(*first, old);
    assert!(!lands.needs(first) && !lands.needs(second) && lands.needs(newest));
    assert_eq!(lands.migrations(), BTreeSet::new(), "they are deleted");

    // 4. With nothing left to migrate, nothing is asked of the cluster.
    drop(controllers);
    let nothing = lands.rotate(&["--keep-version", "--migration-patience", "3s"]);
    assert_eq!(nothing.code, 0, "{}", nothing.stderr);
}

/// What the account may, and what the options say to that.
fn what_is_refused(lands: &Lands) {
    let out = lands.lab.path("identity").display().to_string();
    let kubeconfig = lands.cluster.apiserver.kubeconfig().display().to_string();
    let add = ["cluster", "add", "prod", "--kubeconfig", &kubeconfig, "--out", &out];
    let blind = cli(&lands.lab, &lands.ready, &[&add[..], &["--migration", "cluster"]].concat());
    assert!(blind.code == 2 && blind.stderr.contains("--etcd"), "{}", blind.stderr);
    let added = lands.register("cluster", &["--etcd", lands.cluster.etcd.url()]);
    let role = added["access"]["role"].as_str().unwrap();
    assert!(role.contains("storageversionmigrations") && !role.contains("secrets"), "{role}");
    for verb in ["get", "list", "watch", "update", "patch", "delete"] {
        assert!(!lands.may(verb, "", "secrets"), "{verb}");
    }
    assert!(lands.may("create", "storagemigration.k8s.io", "storageversionmigrations"));
    for (options, code, said) in [
        (&["--namespace", "default"][..], 2, "--namespace"),
        (&["--rate", "5"], 2, "--rate"),
        (&["--workers", "2"], 2, "--workers"),
        (&["--migration", "own"], 4, "may not update secrets"),
        (&["--migration", "auto", "--namespace", "default"], 2, "--namespace"),
    ] {
        let refused = lands.rotate(options);
        assert_eq!(refused.code, code, "{options:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(said), "{options:?}: {}", refused.stderr);
    }
    assert_eq!(lands.versions().len(), 1, "none of them gave the key a new version");
}

/// As a release before 1.37, which has no such migrations.
#[test]
fn without_migrations_the_missing_right_is_named() {
    let test = "without_migrations_the_missing_right_is_named";
    let flag = "--runtime-config=storagemigration.k8s.io/v1=false";
    let Some((_, lands, _up)) = start_with(test, &[flag]) else { return };
    lands.cluster.create_secrets("s", 3);
    lands.register("cluster", &["--etcd", lands.cluster.etcd.url()]);
    let refused = lands.rotate(&[]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("storagemigration.k8s.io/v1"), "{}", refused.stderr);
    let refused = lands.rotate(&["--migration", "auto"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    for said in ["may not update secrets", "storagemigration.k8s.io/v1", "lastkey cluster add"] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    assert_eq!(lands.versions().len(), 1, "the key has no new version");
    // Nothing that the account may list could be compared: that etcd may be anybody's.
    let status = lands.lab.cli(&lands.ready, &["cluster", "status", "prod"]);
    let item = &status["items"][0];
    assert_eq!(item["exact"], false, "{status}");
    assert!(item["remarks"][0].as_str().unwrap().contains("may list nothing"), "{status}");
}

#[test]
fn an_object_that_is_refused_keeps_the_old_version() {
    let test = "an_object_that_is_refused_keeps_the_old_version";
    let Some((peers, lands, _up)) = start(test) else { return };
    lands.cluster.create_secrets("frozen", 1);
    let apiserver = &lands.cluster.apiserver;
    apiserver.create_secret("busy", "turn").unwrap().expect_ok("busy").unwrap();
    lands.register("cluster", &["--etcd", lands.cluster.etcd.url()]);
    let set = ["cluster", "set", "prod", "--migration", "auto"];
    assert_eq!(lands.lab.cli(&lands.ready, &set)["migration"], "auto");
    forbid_updates(apiserver);
    let old = lands.versions().pop().unwrap();
    let dir = lands.lab.folder("controllers");
    let _controllers = ControllerManager::start(&peers, (apiserver, &dir), VERSION).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| write_until(apiserver, &over));

        // 1. It is said who refuses and how many are left; nothing is free; it is given up.
        let failed = lands.rotate(&[]);
        assert_eq!(failed.code, 1, "{}", failed.stderr);
        for said in ["no-frozen", "1 objects are left"] {
            assert!(failed.stderr.contains(said), "{said}: {}", failed.stderr);
        }
        assert!(!failed.stderr.contains("turn "), "{}", failed.stderr);
        assert!(lands.needs(&old));
        assert_eq!(lands.migrations().len(), 1);
        assert_eq!(lands.rotate(&["--cancel"]).code, 0);
        assert_eq!(lands.migrations(), BTreeSet::new());

        // 2. Allowed again, it is done; what the account may decides who does it.
        let binding = format!("{ADMISSION}/validatingadmissionpolicybindings/no-frozen");
        apiserver.client().send("DELETE", &binding, None).unwrap().expect_ok("binding").unwrap();
        eventually("updates are allowed again", SOON, || annotate(apiserver, "free")).unwrap();
        let report = Rotate::start(&lands.lab, &lands.ready, &["--keep-version"]).report();
        assert_eq!(report["migration"]["used"], true, "{report}");
        let why = report["migration"]["why"].as_str().unwrap();
        assert!(why.contains("may not update secrets"), "{report}");
        assert!(!lands.needs(&old));
        the_server_has_it_migrated(&lands);
    });

    // 4. An account that may update goes Lastkey's own way.
    lands.register("auto", &[]);
    let report = Rotate::start(&lands.lab, &lands.ready, &[]).report();
    assert_eq!(report["migration"]["used"], false, "{report}");
    assert!(!report["migration"]["why"].as_str().unwrap().is_empty());
    let stored = lands.cluster.stored("frozen-0");
    assert!(Encrypted::parse(&stored.bytes).is_ok());
}

/// 3. The server itself follows the key, the same way.
fn the_server_has_it_migrated(lands: &Lands) {
    let old = lands.versions().pop().unwrap();
    let set = ["cluster", "set", "prod", "--migration", "cluster", "--rotate-automatically", "on"];
    lands.lab.cli(&lands.ready, &set);
    lands.lab.cli(&lands.ready, &["key", "rotate", KEY]);
    eventually("the server's rotation ends", FOLLOWED, || {
        thread::sleep(Duration::from_secs(2));
        let status = cli(&lands.lab, &lands.ready, &["cluster", "status", "prod"]).json();
        let rotation = &status["items"][0]["rotation"];
        match rotation["automatic"] == true && rotation["phase"] == "finished" {
            true => Ok(()),
            false => Err(Error::ReadyLine { line: rotation.to_string(), cause: "still".into() }),
        }
    })
    .unwrap();
    let report = cli(&lands.lab, &lands.ready, &["cluster", "rotate", "prod", "--report"]).json();
    assert_eq!(report["content"]["migration"]["used"], true, "{report}");
    assert!(!lands.needs(&old));
    assert_eq!(lands.migrations(), BTreeSet::new());
    let off = ["cluster", "set", "prod", "--rotate-automatically", "off"];
    lands.lab.cli(&lands.ready, &off);
}

/// An update that changes something of `frozen-0`, and nothing that it is encrypted by.
fn annotate(apiserver: &Apiserver, label: &str) -> Result<(), Error> {
    let secret = apiserver.get_secret("frozen-0")?.expect_ok("reading frozen-0")?.json();
    let path = "/api/v1/namespaces/default/secrets/frozen-0?dryRun=All";
    let mut changed = secret;
    changed["metadata"]["labels"] = json!({ "state": label });
    apiserver.client().send("PUT", path, Some(&changed))?.expect_ok("an update").map(drop)
}

/// Has the apiserver refuse every update of `frozen-…`.
fn forbid_updates(apiserver: &Apiserver) {
    let group = "admissionregistration.k8s.io/v1";
    let policy = json!({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": "no-frozen" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"],
                "resources": ["secrets"],
            }] },
            "validations": [{ "expression": "!object.metadata.name.startsWith('frozen')" }],
        },
    });
    let binding = json!({
        "apiVersion": group, "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "no-frozen" },
        "spec": { "policyName": "no-frozen", "validationActions": ["Deny"] },
    });
    for (kind, body) in
        [("validatingadmissionpolicies", policy), ("validatingadmissionpolicybindings", binding)]
    {
        let path = format!("{ADMISSION}/{kind}");
        let made = apiserver.client().send("POST", &path, Some(&body)).unwrap();
        made.expect_ok("an admission policy").unwrap();
    }
    eventually("updates are refused", SOON, || match annotate(apiserver, "refused") {
        Err(_) => Ok(()),
        Ok(()) => Err("it was allowed"),
    })
    .unwrap();
}
