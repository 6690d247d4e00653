//! A change that is given up while its file is waited for, and begun again: the apiserver still works
//! by the file before, and names none (up to 1.35).

use std::collections::BTreeSet;

use lastkey_testbed::{ApiserverOptions, Peers, eventually};
use serde_json::{Value, json};

use crate::{
    OURS,
    support::{KEY, SOON},
    worlds::{CLEAR, RELOADS, SECRETS, World},
};

/// Gives it up as soon as the file is there by which every apiserver is to write.
fn given_up(world: &World, verb: &str) {
    let mut work = world.start(verb, &[]);
    work.wait_for(|event| event["event"] == "config" && event["stage"] == "writing");
    work.wait_for(|event| event["behind"].to_string().contains("has not loaded it yet"));
    assert_eq!(world.cli(&["cluster", verb, "prod", "--cancel"]).code, 0);
    eventually("the worker hears of it", SOON, || match work.child.try_wait() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

fn under(world: &World) -> BTreeSet<String> {
    world.stored().into_keys().collect()
}

#[test]
fn what_was_given_up_goes_on_only_once_its_file_is_loaded() {
    let test = "what_was_given_up_goes_on_only_once_its_file_is_loaded";
    let Some(world) = World::new(test, "1.31.0", &[CLEAR], &[RELOADS]) else { return };
    world.register_without_etcd();
    for (verb, before, after) in [("enable", "clear", OURS), ("disable", OURS, "clear")] {
        given_up(&world, verb);
        assert_eq!(under(&world), BTreeSet::from([before.to_owned()]));
        let report = world.run(verb, &[]);
        assert_eq!(report["rewritten"], SECRETS, "{verb}: {report}");
        assert_eq!((&report["whole"], &report["left"]), (&json!(true), &json!([])), "{report}");
        world.assert_all_under(after);
        assert_eq!(world.providers().len(), 1);
        if verb == "enable" {
            // Begun once more there is nothing to do, and nothing to wait for.
            let report = world.run(verb, &[]);
            let done = (&report["rewritten"], &report["whole"]);
            assert_eq!(done, (&json!(0), &json!(true)), "{report}");
        }
    }
    assert_eq!(world.cli(&["key", "disable", KEY]).code, 0, "nothing is under it");
}

/// 1.28.0 loads files by itself, and does not tell; without etcd, too.
#[test]
fn on_1_28_it_is_said_to_be_restarted() {
    let test = "on_1_28_it_is_said_to_be_restarted";
    let Some(mut world) = World::new(test, "1.28.0", &[CLEAR], &[RELOADS]) else { return };
    world.register_without_etcd();
    let mut work = world.start("enable", &[]);
    for stage in ["readable", "writing", "clean"] {
        work.wait_for(|event| event["event"] == "config" && event["stage"] == stage);
        let said =
            |event: &Value| event["behind"].to_string().contains("does not tell whether it has");
        work.wait_for(|event| event["event"] == "waiting" && said(event));
        world.cluster.apiserver.restart().unwrap();
    }
    let report = work.wait_for(|event| event["event"] == "report");
    assert_eq!(report["removed"], json!(["clear"]), "{report}");
    world.assert_all_under(OURS);
}

/// No step is taken past an apiserver that is away: nothing is begun.
#[test]
fn nothing_is_begun_while_an_apiserver_is_away() {
    let test = "nothing_is_begun_while_an_apiserver_is_away";
    let Some(world) = World::new(test, "1.31.0", &[CLEAR], &[RELOADS]) else { return };
    let Some(peers) = Peers::or_skip(test, &["etcd"]) else { return };
    let flags = [RELOADS];
    let options =
        ApiserverOptions { version: "1.31.0", encryption_config: &world.config, flags: &flags };
    let (first, dir) = (&world.cluster.apiserver, world.lab.folder("second"));
    let mut second = first.start_beside(&peers, (&world.cluster.etcd, &dir), &options).unwrap();
    world.register_at(&[first.url(), second.url()]);
    second.kill();
    let before = std::fs::read_to_string(&world.config).unwrap();
    let refused = world.cli(&["cluster", "enable", "prod"]);
    assert_eq!(refused.code, 6, "{}{}", refused.stdout, refused.stderr);
    assert!(
        refused.stderr.contains(&format!("start the one at {}", second.url())),
        "{}",
        refused.stderr
    );
    assert_eq!(world.cli(&["cluster", "enable", "prod", "--cancel"]).code, 3, "nothing is begun");
    assert_eq!(std::fs::read_to_string(&world.config).unwrap(), before);
}
