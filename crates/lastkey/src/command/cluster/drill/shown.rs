//! A drill's report as a person reads it.

use lastkey_drill::{
    outage::{Observed, OutageReport, Probe, probe_name},
    report::RestoreReport,
};
use serde_json::{Value, json};

use super::rows;
use crate::output::{Column, table};

/// So many objects are named; the JSON and the web page have more.
const NAMED: usize = 20;

pub(super) fn restore(report: &RestoreReport) -> String {
    let RestoreReport { snapshot, state, .. } = report;
    let newest = state.newest_key_version.as_deref().unwrap_or("-");
    let mut text = format!(
        "snapshot  {}: revision {}, {} keys, hash {}\n\
         backup    {}: seal {} (opened by {}), {} cluster(s), {} key version(s), the newest of {newest}\n",
        snapshot.file,
        snapshot.status.revision,
        snapshot.status.keys,
        snapshot.status.hash,
        state.directory,
        state.seal,
        state.unsealed_by,
        state.clusters,
        state.key_versions,
    );
    let resources = [
        Column("RESOURCE", "resource"),
        Column("OBJECTS", "objects"),
        Column("READABLE", "readable"),
        Column("NOT READABLE", "unreadable"),
    ];
    section(&mut text, "", &table(&rows(&report.resources), &resources));
    let under = [
        Column("UNDER", "provider"),
        Column("KEY", "key"),
        Column("KEY VERSION", "key_version"),
        Column("MADE", "created_at"),
        Column("CLUSTER", "cluster"),
        Column("OBJECTS", "objects"),
        Column("READABLE", "readable"),
        Column("NOT READABLE", "unreadable"),
    ];
    section(&mut text, "", &table(&rows(&report.under), &under));
    if !report.missing_key_versions.is_empty() {
        let missing = [
            Column("MISSING KEY VERSION", "key_version"),
            Column("KEY", "key"),
            Column("CLUSTER", "cluster"),
            Column("OBJECTS", "objects"),
        ];
        section(&mut text, "", &table(&rows(&report.missing_key_versions), &missing));
    }
    if !report.unreadable_objects.is_empty() {
        let named = &report.unreadable_objects[..report.unreadable_objects.len().min(NAMED)];
        let objects = [
            Column("NOT READABLE", "resource"),
            Column("NAMESPACE", "namespace"),
            Column("NAME", "name"),
            Column("KEY", "key"),
            Column("KEY VERSION", "key_version"),
            Column("WHY", "reason"),
        ];
        section(&mut text, "", &table(&rows(named), &objects));
        let more = report.unreadable.saturating_sub(named.len() as u64);
        if more > 0 {
            text += &format!("… and {more} more: --output json and --html name them\n");
        }
    }
    for reason in &report.reasons {
        let head = format!("{}: {} ({})\n", reason.code, reason.message, reason.objects);
        section(&mut text, &head, &format!("  {}", reason.fix));
    }
    if !report.remarks.is_empty() {
        text.push('\n');
    }
    for remark in &report.remarks {
        text += &format!("note: {remark}\n");
    }
    let taken = format!(" ({} s)", report.seconds);
    text + "\n" + &report.verdict + &taken
}

pub(super) fn outages(report: &OutageReport) -> String {
    let mut text = String::new();
    for one in &report.outages {
        outage(&mut text, one);
    }
    let summary = [
        Column("OUTAGE", "outage"),
        Column("LASTED", "lasted"),
        Column("WRITES WENT ON", "writes"),
        Column("READS WENT ON", "reads"),
        Column("WELL AGAIN AFTER", "healed"),
        Column("WRITTEN", "written"),
        Column("LOST", "lost"),
        Column("AS EXPECTED", "as_expected"),
    ];
    let rows: Vec<Value> = report.outages.iter().map(summary_of).collect();
    if !rows.is_empty() {
        text += &table(&rows, &summary);
        text.push_str("\n\n");
    }
    if !report.not_played.is_empty() {
        let names: Vec<&str> = report.not_played.iter().map(|outage| outage.name()).collect();
        text += &format!("not played: {}\n", names.join(", "));
    }
    if let Some(why) = &report.cut_short {
        text += &format!("ended early: {why}\n");
    }
    let taken = format!(" ({} s)", report.seconds);
    text + &report.verdict + &taken
}

/// One outage in a line; of its two apiservers, the one that was worse off.
fn summary_of(one: &Observed) -> Value {
    let went_on = |probes: &[Probe]| {
        let stopped = one.probes.iter().filter(|row| probes.contains(&row.probe));
        let first = stopped.filter_map(|row| row.stopped_after).min_by(f64::total_cmp);
        first.map_or_else(|| "throughout".to_owned(), |first| format!("{first:.1} s"))
    };
    let healed = one.healed_after.map(|after| format!("{after:.1} s"));
    let otherwise = if one.complete { "never" } else { "not seen" };
    json!({
        "outage": one.outage.name(),
        "lasted": format!("{:.1} s", one.seconds),
        "writes": went_on(&[Probe::Write]),
        "reads": went_on(&[Probe::Read, Probe::ReadOther, Probe::List]),
        "healed": healed.unwrap_or_else(|| otherwise.to_owned()),
        "written": one.written,
        "lost": one.lost.map_or_else(|| json!("not seen"), |lost| json!(lost)),
        "as_expected": if one.as_expected { "yes" } else { "no" },
    })
}

fn outage(text: &mut String, one: &Observed) {
    let undone = if one.complete { one.undone } else { "it was not seen to its end" };
    *text += &format!("{}: {}; then {undone}\n", one.outage, one.done);
    *text += &format!("to be expected: {}\n", one.expected);
    let rows: Vec<Value> = one
        .probes
        .iter()
        .map(|row| {
            json!({
                "apiserver": row.apiserver, "probe": probe_name(row.probe),
                "ok": row.ok, "failed": row.failed,
                "slowest": format!("{:.3} s", row.slowest),
                "went_on": row.went_on_in_words(),
                "healed": row.healed_in_words(),
                "expected": row.expected,
                "mark": if row.as_expected { "" } else { "(other than expected)" },
            })
        })
        .collect();
    let columns = [
        Column("APISERVER", "apiserver"),
        Column("PROBE", "probe"),
        Column("WENT WELL", "ok"),
        Column("FAILED", "failed"),
        Column("SLOWEST", "slowest"),
        Column("WENT ON FOR", "went_on"),
        Column("WELL AGAIN AFTER", "healed"),
        Column("EXPECTED", "expected"),
        Column("", "mark"),
    ];
    section(text, "", &table(&rows, &columns));
    for row in &one.probes {
        let Some(first) = row.errors.first() else { continue };
        let (side, probe) = (row.apiserver, probe_name(row.probe));
        let (after, said) = (first.first_after, &first.text);
        *text += &format!("{side}, {probe}: after {after:.1} s: {said}");
        *text += &match row.errors.len() {
            1 => "\n".to_owned(),
            errors => format!(" (and {} more: --output json, --html)\n", errors - 1),
        };
    }
    if let Some([first, second]) = one.under_old_version {
        *text += &format!(
            "written under the old key version meanwhile: {first} by apiserver one, {second} by \
             apiserver two\n"
        );
    }
    text.push('\n');
}

fn section(text: &mut String, head: &str, body: &str) {
    text.push('\n');
    text.push_str(head);
    text.push_str(body);
    text.push('\n');
}
