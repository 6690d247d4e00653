//! Outage drills: what is reported is what an apiserver does. Its own timers make the times: it writes
//! for three minutes after the last good Status, which it asks for once a minute.

use lastkey_testbed::Peers;
use serde_json::Value;

use super::drilling::Drill;
use super::support::Lab;

/// Writes stop three minutes after the last good Status, which is at most one minute old when the
/// write lease of ten seconds is over.
const EARLIEST: f64 = 100.0;
/// Long enough to see them stop, on a busy machine too.
const LONG: &str = "240s";

/// Plays one outage, or several; what was seen of each.
fn play(test: &str, outages: &str, length: &str) -> Option<Vec<Value>> {
    let peers = Peers::or_skip(test, &["etcd", "kube-apiserver-1.37.0"])?;
    let lab = Lab::new();
    let options = ["--outages", outages, "--outage-length", length, "--recovery", "10m"];
    let leases = ["--write-lease", "10s"];
    let ended = Drill::start(&peers, &lab, test, &[&options[..], &leases].concat()).end();
    let report = &ended.report["outages"];
    assert_eq!(ended.code, Some(0), "{}\n{report:#}", ended.stderr);
    assert_eq!((&report["ok"], &report["cut_short"]), (&true.into(), &Value::Null), "{report:#}");
    let seen = report["outages"].as_array().unwrap().clone();
    let names: Vec<&str> = seen.iter().map(|one| one["outage"].as_str().unwrap()).collect();
    assert_eq!(names.join(","), outages);
    for one in &seen {
        assert_eq!((&one["complete"], &one["healed"]), (&true.into(), &true.into()), "{one:#}");
        assert_eq!(one["lost"], 0, "{one:#}");
        assert!(one["written"].as_u64().unwrap() > 0, "{one:#}");
        // what was written before the outage is read from the apiservers' memory, always
        for side in ["one", "two"] {
            assert_goes_on(one, side, "read");
        }
    }
    Some(seen)
}

fn row<'a>(one: &'a Value, apiserver: &str, probe: &str) -> &'a Value {
    let rows = one["probes"].as_array().unwrap().iter();
    let mut found = rows.filter(|row| row["apiserver"] == apiserver && row["probe"] == probe);
    found.next().unwrap_or_else(|| panic!("no {probe} of {apiserver}: {one:#}"))
}

/// All that a probe was told.
fn said(one: &Value, apiserver: &str, probe: &str) -> String {
    let errors = row(one, apiserver, probe)["errors"].as_array().unwrap().iter();
    errors.map(|error| error["text"].as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Writes stopped at the apiserver's own limit, with its own words, and were well again.
fn assert_writes_stopped(one: &Value, apiserver: &str) {
    let row = row(one, apiserver, "write");
    let stopped = row["stopped_after"].as_f64().unwrap_or_else(|| panic!("{one:#}"));
    let length = one["seconds"].as_f64().unwrap();
    assert!(stopped >= EARLIEST && stopped < length, "{one:#}");
    assert!(row["ok"].as_u64().unwrap() > 0 && row["failed"].as_u64().unwrap() > 0, "{one:#}");
    assert!(row["healed_after"].as_f64().is_some(), "{one:#}");
    assert!(said(one, apiserver, "write").contains("expired at"), "{one:#}");
}

/// It went on throughout, but for what a busy machine may cost.
fn assert_goes_on(one: &Value, apiserver: &str, probe: &str) {
    let row = row(one, apiserver, probe);
    let (ok, failed) = (row["ok"].as_u64().unwrap(), row["failed"].as_u64().unwrap());
    assert!(ok > 0 && failed * 10 <= ok, "{probe} of {apiserver}: {one:#}");
    let said = said(one, apiserver, probe);
    assert!(!said.contains("expired at") && !said.contains("decrypt"), "{said}");
}

#[test]
fn a_drill_of_a_server_that_is_down() {
    let Some(seen) = play("drill-server-down", "server-down", LONG) else { return };
    for side in ["one", "two"] {
        assert_writes_stopped(&seen[0], side);
        assert!(
            said(&seen[0], side, "ready").contains("the server is away for longer"),
            "{seen:#?}"
        );
    }
}

#[test]
fn a_drill_of_a_disabled_key() {
    let Some(seen) = play("drill-key-disabled", "key-disabled", LONG) else { return };
    for side in ["one", "two"] {
        assert_writes_stopped(&seen[0], side);
        assert!(said(&seen[0], side, "ready").contains("Rejected.Disabled"), "{seen:#?}");
    }
}

#[test]
fn a_drill_of_a_plugin_that_was_killed() {
    let Some(seen) = play("drill-plugin-killed", "plugin-killed", LONG) else { return };
    assert_writes_stopped(&seen[0], "one");
    assert!(said(&seen[0], "one", "ready").contains("dial unix"), "{seen:#?}");
    // the other one has its own, and notices nothing
    assert_goes_on(&seen[0], "two", "write");
    assert_goes_on(&seen[0], "two", "ready");
}

#[test]
fn a_drill_of_what_goes_unnoticed_for_a_while() {
    let test = "drill-sealed-and-slow";
    let Some(seen) = play(test, "server-slow,sealed", "90s") else { return };
    for side in ["one", "two"] {
        for one in &seen {
            assert_goes_on(one, side, "write");
            assert!(row(one, side, "ready")["failed"].as_u64().unwrap() > 0, "{one:#}");
        }
        assert!(said(&seen[0], side, "ready").contains("the server is away"), "{seen:#?}");
        assert!(said(&seen[1], side, "ready").contains("the server is sealed"), "{seen:#?}");
    }
}

#[test]
fn a_drill_of_an_apiserver_that_is_stuck_on_the_old_key() {
    // apiserver one has followed after a minute at the latest
    let Some(seen) = play("drill-stuck", "stuck-apiserver", "120s") else { return };
    let one = &seen[0];
    // both write on: the stuck one under the old version to the end
    for side in ["one", "two"] {
        assert_goes_on(one, side, "write");
    }
    let old = one["under_old_version"].as_array().unwrap();
    let stuck = row(one, "two", "write")["ok"].as_u64().unwrap();
    // what was under way when it was connected again may be under either
    assert!(old[1].as_u64().unwrap() + 2 >= stuck && stuck > 2, "{one:#}");
    assert!(old[0].as_u64().unwrap() < row(one, "one", "write")["ok"].as_u64().unwrap(), "{one:#}");
    // it cannot read what is under the new one; the other one reads everything
    let other = row(one, "two", "read-other");
    assert!(other["failed"].as_u64().unwrap() > 0, "{one:#}");
    assert!(said(one, "two", "read-other").contains("failed to decrypt DEK"), "{one:#}");
    assert_goes_on(one, "one", "read-other");
}
