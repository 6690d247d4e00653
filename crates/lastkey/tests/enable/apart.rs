//! Two apiservers on one etcd, each with a configuration file of its own. The second one gets each new
//! file only once the command has said that it waits for that one alone.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use lastkey_testbed::{Apiserver, ApiserverOptions, Peers, Response};

use crate::{
    OURS,
    support::value_of,
    worlds::{CLEAR, RELOADS, SECRETS, Work, World, beginning},
};

const VERSION: &str = "1.37.0";
const PATH: &str = "/api/v1/namespaces/default/secrets";
/// Between two reads: the machine has other things to do.
const PACE: Duration = Duration::from_millis(40);

#[test]
fn one_of_two_apiservers_lags_at_every_step() {
    let test = "one_of_two_apiservers_lags_at_every_step";
    let Some(world) = World::new(test, VERSION, &[CLEAR], &[RELOADS]) else { return };
    let own = world.lab.folder("second-etc").join("encryption.yaml");
    std::fs::copy(&world.config, &own).unwrap();
    let Some(peers) = Peers::or_skip(test, &["etcd"]) else { return };
    let options = ApiserverOptions { version: VERSION, encryption_config: &own, flags: &[RELOADS] };
    let (first, dir) = (&world.cluster.apiserver, world.lab.folder("second"));
    let second = first.start_beside(&peers, (&world.cluster.etcd, &dir), &options).unwrap();
    world.register_at(&[first.url(), second.url()]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        let reading = [first, &second]
            .map(|apiserver| scope.spawn(|| read_on(apiserver, &world.names, &over)));
        enabled((&world, &second), &own);
        over.store(true, Ordering::SeqCst);
        for (reading, url) in reading.into_iter().zip([first.url(), second.url()]) {
            let reads = reading.join().unwrap().unwrap_or_else(|why| panic!("{url}: {why}"));
            assert!(reads > SECRETS, "{url}: {reads} reads");
        }
    });
}

/// The command from its start to its end.
fn enabled((world, second): (&World, &Apiserver), own: &Path) {
    let first = &world.cluster.apiserver;
    let mut work = world.start("enable", &[]);
    // 1. The first reads what the plugin writes, the second does not: nobody writes it.
    lags(&mut work, "readable", second);
    create((first, second), "before-1", "clear", world);
    create((second, first), "before-2", "clear", world);
    assert_eq!(under(world, "clear"), SECRETS + 2, "nothing is encrypted before both can read it");
    hand_over(&world.config, own);
    // 2. Both read it; the first one writes it, the second one does not.
    lags(&mut work, "writing", second);
    create((first, second), "between-1", OURS, world);
    create((second, first), "between-2", "clear", world);
    assert_eq!(under(world, "clear"), SECRETS + 3, "no object is written back before both write");
    hand_over(&world.config, own);
    // 3. Everything is written anew, and the first one cannot read clear text any more.
    lags(&mut work, "clean", second);
    assert_eq!(under(world, OURS), SECRETS + 4, "all of it before anything is taken out");
    create((second, first), "after-2", OURS, world);
    hand_over(&world.config, own);
    let report = work.wait_for(|event| event["event"] == "report");
    assert_eq!(report["removed"], serde_json::json!(["clear"]), "{report}");
    assert_eq!(report["apiservers"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(under(world, OURS), SECRETS + 5);
    assert_eq!(world.providers(), ["kms"]);
    assert_eq!(world.encryption()["status"], "running");
}

/// What the operator of several control-plane machines does: the whole file, at once.
fn hand_over(config: &Path, own: &Path) {
    let beside = own.with_extension("new");
    std::fs::copy(config, &beside).unwrap();
    std::fs::rename(beside, own).unwrap();
}

/// The command has replaced its file for this step, and waits for the second one alone.
fn lags(work: &mut Work, stage: &str, second: &Apiserver) {
    work.wait_for(|event| event["event"] == "config" && event["stage"] == stage);
    work.wait_for(|event| {
        let behind: Vec<String> =
            serde_json::from_value(event["behind"].clone()).unwrap_or_default();
        matches!(&behind[..], [one] if one.starts_with(&second.url()) && one.contains("not loaded"))
    });
}

/// What one of them writes rests as it should, and the other one reads it.
fn create((by, other): (&Apiserver, &Apiserver), name: &str, expected: &str, world: &World) {
    by.create_secret(name, &value_of(name)).unwrap().expect_ok(name).unwrap();
    assert_eq!(beginning(&world.cluster.stored(name).bytes), expected, "{name}");
    for apiserver in [other, by] {
        assert_eq!(apiserver.secret_value(name).unwrap(), value_of(name), "{name}");
    }
}

/// How many Secrets rest under it.
fn under(world: &World, prefix: &str) -> usize {
    world.stored().get(prefix).copied().unwrap_or_default()
}

/// Reads one Secret after the other, and all of them now and then; how often, or what failed.
fn read_on(apiserver: &Apiserver, names: &[String], over: &AtomicBool) -> Result<usize, String> {
    let mut reads = 0;
    while !over.load(Ordering::SeqCst) {
        let listed = apiserver.client().get(PATH).map(|answer| is_read(&answer, "the list"));
        listed.unwrap_or(Ok(false))?;
        for name in names {
            thread::sleep(PACE);
            if over.load(Ordering::SeqCst) {
                break;
            }
            // A busy machine may give no answer at all; one that is given has to be right.
            let Ok(answer) = apiserver.get_secret(name) else { continue };
            if is_read(&answer, name)? {
                if answer.json()["data"]["value"] != BASE64.encode(value_of(name)) {
                    return Err(format!("{name} has another value"));
                }
                reads += 1;
            }
        }
    }
    Ok(reads)
}

/// Whether it was read; an error where it cannot be, rather than not now.
fn is_read(answer: &Response, what: &str) -> Result<bool, String> {
    let text = answer.text();
    match answer.status {
        200 => Ok(true),
        429 | 503 | 504 => Ok(false),
        _ if text.contains("request timed out") => Ok(false),
        status => Err(format!("{status} to {what}: {text}")),
    }
}

/// The readers end with the test, however it ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
