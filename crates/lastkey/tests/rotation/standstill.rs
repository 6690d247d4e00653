//! Where the cluster's own migrations do not come to an end, or are not to be had: what the operator
//! is told, that nothing becomes free meanwhile, and how it goes on.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::thread;

use lastkey_testbed::{ControllerManager, Error, Peers, eventually, free_port};
use serde_json::{Value, json};

use super::migration::{
    ADMISSION, FOLLOWED, Lands, MIGRATIONS, Over, names_in, start, write_until,
};
use super::support::rotate::{Rotate, SECRETS, cli, key_ids, kubeconfig_of};
use super::support::{KEY, SOON};
use super::{VERSION, support};

const COUNT: usize = 20;
/// What somebody else has made.
const THEIRS: &str = "theirs";
/// What stands still is given up after ten times as long.
const PATIENCE: [&str; 2] = ["--migration-patience", "3s"];

fn controllers(peers: &Peers, lands: &Lands) -> ControllerManager {
    let dir = lands.lab.folder("controllers");
    ControllerManager::start(peers, (&lands.cluster.apiserver, &dir), VERSION).unwrap()
}

/// A webhook that nobody answers keeps updates of `held-0` from being made: kube-controller-manager
/// tries again and again, so a migration of Secrets is under way for as long as that is there.
fn hold(lands: &Lands) {
    let apiserver = &lands.cluster.apiserver;
    let held = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "held-0", "labels": { "hook": "down" } },
        "stringData": { "value": support::value_of("held-0") },
    });
    let path = "/api/v1/namespaces/default/secrets";
    apiserver.client().send("POST", path, Some(&held)).unwrap().expect_ok("held-0").unwrap();
    let hook = json!({
        "name": "down.example.org",
        "clientConfig": { "url": format!("https://127.0.0.1:{}/", free_port().unwrap()) },
        "rules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"],
            "resources": ["secrets"],
        }],
        "objectSelector": { "matchLabels": { "hook": "down" } },
        "failurePolicy": "Fail", "timeoutSeconds": 1, "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    });
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "down" }, "webhooks": [hook],
    });
    let path = format!("{ADMISSION}/validatingwebhookconfigurations");
    let made = apiserver.client().send("POST", &path, Some(&configuration)).unwrap();
    made.expect_ok("a webhook").unwrap();
    eventually("updates are refused", SOON, || match apiserver.touch_secret("held-0") {
        Err(_) => Ok(()),
        Ok(()) => Err("it was allowed"),
    })
    .unwrap();
}

fn let_go(lands: &Lands) {
    let apiserver = &lands.cluster.apiserver;
    let path = format!("{ADMISSION}/validatingwebhookconfigurations/down");
    apiserver.client().send("DELETE", &path, None).unwrap().expect_ok("the webhook").unwrap();
    eventually("updates are allowed", SOON, || apiserver.touch_secret("held-0")).unwrap();
}

/// Whether a migration has this condition.
fn is(lands: &Lands, name: &str, condition: &str) -> Result<(), Error> {
    let answer = lands.cluster.apiserver.client().get(&format!("{MIGRATIONS}/{name}"))?;
    let found = answer.expect_ok("a migration")?.json()["status"]["conditions"].clone();
    let holds = |one: &Value| one["type"] == condition && one["status"] == "True";
    match found.as_array().is_some_and(|all| all.iter().any(holds)) {
        true => Ok(()),
        false => Err(Error::ReadyLine { line: found.to_string(), cause: condition.to_owned() }),
    }
}

fn migrate_theirs(lands: &Lands, name: &str) {
    let migration = json!({
        "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration",
        "metadata": { "name": name },
        "spec": { "resource": { "group": "", "resource": "secrets" } },
    });
    let made = lands.cluster.apiserver.client().send("POST", MIGRATIONS, Some(&migration));
    made.unwrap().expect_ok("their migration").unwrap();
}

fn prepared(test: &str) -> Option<(Peers, Lands, lastkey_testbed::Running)> {
    let (peers, lands, up) = start(test)?;
    lands.cluster.create_secrets("s", COUNT);
    let busy = lands.cluster.apiserver.create_secret("busy", "turn").unwrap();
    busy.expect_ok("busy").unwrap();
    lands.register("cluster", &["--etcd", lands.cluster.etcd.url()]);
    hold(&lands);
    Some((peers, lands, up))
}

/// A rotation that ends with 1 says this.
fn ends_with(lands: &Lands, options: &[&str], said: &[&str]) {
    let ended = lands.rotate(options);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    for said in said {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
    // The same is to be seen by whoever looks later.
    let status = cli(&lands.lab, &lands.ready, &["cluster", "status", "prod"]).json();
    let problem = &status["items"][0]["rotation"]["problem"]["why"];
    assert!(problem.as_str().is_some_and(|why| why.contains(said[0])), "{status}");
}

#[test]
fn a_migration_that_stands_still_is_named_and_gone_on_with() {
    let test = "a_migration_that_stands_still_is_named_and_gone_on_with";
    let Some((peers, lands, _up)) = prepared(test) else { return };
    let old = lands.versions().pop().unwrap();
    let apiserver = &lands.cluster.apiserver;
    let running = controllers(&peers, &lands);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| write_until(apiserver, &over));

        // 1. What it has to ask does not answer: which one is said.
        ends_with(&lands, &PATIENCE, &["has stood still", "down.example.org", "goes on"]);
        let begun = lands.migrations();
        assert_eq!(begun.len(), 1, "it stays");
        let name = begun.first().unwrap();
        is(&lands, name, "Running").unwrap();
        assert!(lands.needs(&old));

        // 2. Nobody goes on with what was begun: kube-controller-manager is dead.
        drop(running);
        ends_with(
            &lands,
            &PATIENCE,
            &["has stood still", "does kube-controller-manager run", name],
        );
        assert_eq!(lands.migrations(), begun);
        assert!(lands.needs(&old));

        // 3. Both are mended: the same command goes on with the same migration.
        let_go(&lands);
        let _running = controllers(&peers, &lands);
        let mut last = Rotate::start(&lands.lab, &lands.ready, &[]);
        let report = last.wait_for("a report", |event| event["event"] == "report");
        let seen = names_in(&last.events);
        assert!(seen.is_subset(&begun), "{seen:?}, {begun:?}");
        assert_eq!(report["verified"], json!({ "by": "etcd" }), "{report}");
        assert_eq!(report["migration"]["used"], true, "{report}");
    });
    assert_eq!(key_ids(&lands.cluster.etcd, SECRETS).len(), 1);
    assert!(!lands.needs(&old));
    assert!(lands.migrations().is_empty());
}

#[test]
fn somebody_elses_migration_comes_first() {
    let test = "somebody_elses_migration_comes_first";
    let Some((peers, lands, _up)) = prepared(test) else { return };
    let old = lands.versions().pop().unwrap();
    let apiserver = &lands.cluster.apiserver;
    let running = controllers(&peers, &lands);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| write_until(apiserver, &over));

        // 1. One of the same resource is under way: ours waits behind it, for longer than one that
        //    nobody takes up; whoever watches sees which one it is, and why that does not go on.
        migrate_theirs(&lands, THEIRS);
        eventually("theirs is under way", FOLLOWED, || is(&lands, THEIRS, "Running")).unwrap();
        let mut first = Rotate::start(&lands.lab, &lands.ready, &PATIENCE);
        let event = first.wait_for("ours waits", |event| event["event"] == "migrating");
        let ours = event["migrations"][0]["name"].as_str().unwrap().to_owned();
        let waits = |event: &Value| {
            let one = &event["migrations"][0];
            let said = one["said"].as_str().unwrap_or_default();
            one["state"] == "waiting" && said.starts_with("behind theirs: ")
        };
        if !waits(&event) {
            first.wait_for("it says behind which one", waits);
        }
        assert_eq!(first.code(), Some(1));
        let said = std::fs::read_to_string(lands.lab.path("rotate.log")).unwrap();
        for part in ["has stood still", &ours, "behind theirs", "down.example.org", "goes on"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(lands.needs(&old));
        assert_eq!(lands.migrations().len(), 2, "both stay");

        // 2. Theirs goes on, and so does the same command. Another one comes meanwhile. (By itself
        //    kube-controller-manager would try again after a pause of up to 17 minutes.)
        let_go(&lands);
        drop(running);
        let mut running = controllers(&peers, &lands);
        migrate_theirs(&lands, "theirs-too");
        let mut second = Rotate::start(&lands.lab, &lands.ready, &[]);
        let report = second.wait_for("a report", |event| event["event"] == "report");
        let seen = names_in(&second.events);
        assert!(seen.is_empty() || seen == BTreeSet::from([ours]), "{seen:?}");
        assert_eq!(report["verified"], json!({ "by": "etcd" }), "{report}");
        assert_eq!(report["refused"], 0, "{report}");

        // 3. What others have made is theirs to delete.
        for theirs in [THEIRS, "theirs-too"] {
            eventually("theirs ends", FOLLOWED, || is(&lands, theirs, "Succeeded")).unwrap();
        }
        running.check().unwrap();
    });
    assert_eq!(lands.migrations(), [THEIRS, "theirs-too"].map(str::to_owned).into());
    assert_eq!(key_ids(&lands.cluster.etcd, SECRETS).len(), 1);
    assert!(!lands.needs(&old));
}

/// Without etcd nothing would show that no object is left, so `auto` has nobody to write them.
#[test]
fn auto_without_etcd_names_what_is_missing() {
    let test = "auto_without_etcd_names_what_is_missing";
    let Some((_, lands, _up)) = start(test) else { return };
    lands.cluster.create_secrets("s", COUNT);
    // An account that may have migrations made, and nothing else, registered as it is.
    lands.register("cluster", &["--etcd", lands.cluster.etcd.url()]);
    let account = kubeconfig_of(&lands.lab, &lands.cluster, ("kube-system", "lastkey"));
    let (account, out) = (account.display().to_string(), lands.lab.path("identity"));
    let out = out.display().to_string();
    let add = ["cluster", "add", "prod", "--kubeconfig", &account, "--own-credential", "--out"];
    let added = lands.lab.cli(&lands.ready, &[&add[..], &[&out]].concat());
    assert_eq!(added["access"]["migration"], "auto", "{added}");

    // 1. Whoever rotates is told, before the key has a new version.
    let needs = ["etcd is not registered", "--etcd URL"];
    for (way, said) in [("auto", "may not update secrets"), ("cluster", "cannot be used")] {
        let refused = lands.rotate(&["--migration", way]);
        assert_eq!(refused.code, 4, "{}", refused.stderr);
        for said in needs.iter().chain([&said]) {
            assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
        }
    }
    let set = ["cluster", "set", "prod", "--migration", "cluster"];
    let refused = cli(&lands.lab, &lands.ready, &set);
    assert!(refused.code == 2 && refused.stderr.contains("--etcd"), "{}", refused.stderr);
    assert_eq!(lands.versions().len(), 1);

    // 2. Where the server does it, whoever looks at the cluster is told.
    let set = |how| {
        let set = ["cluster", "set", "prod", "--rotate-automatically", how];
        lands.lab.cli(&lands.ready, &set)
    };
    set("on");
    lands.lab.cli(&lands.ready, &["key", "rotate", KEY]);
    let old = lands.versions().remove(0);
    eventually("the server says why it waits", SOON * 2, || {
        let status = cli(&lands.lab, &lands.ready, &["cluster", "status", "prod"]).json();
        let rotation = &status["items"][0]["rotation"];
        match rotation["problem"]["why"].as_str() {
            Some(why) if why.contains(needs[0]) => Ok(()),
            _ => Err(Error::ReadyLine { line: rotation.to_string(), cause: "why".to_owned() }),
        }
    })
    .unwrap();
    assert!(lands.needs(&old) && lands.migrations().is_empty());
    set("off");

    // 3. With one of the commands that were named, the same rotation comes to its end.
    lands.register("auto", &[]);
    let report = Rotate::start(&lands.lab, &lands.ready, &[]).report();
    assert_eq!(report["migration"]["used"], false, "{report}");
    let by_pass = json!({ "by": "pass", "why": "etcd is not registered" });
    assert_eq!(report["verified"], by_pass, "{report}");
    assert_eq!(key_ids(&lands.cluster.etcd, SECRETS).len(), 1);
    assert!(!lands.needs(&old));
    assert_eq!(lands.versions().len(), 2);
}
