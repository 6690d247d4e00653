//! A drill's report as a person reads it.

use lastkey_drill::{
    outage::{Observed, OutageReport, probe_name},
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
         backup    {}: seal {}, {} cluster(s), {} key version(s), the newest of {newest}\n",
        snapshot.file,
        snapshot.status.revision,
        snapshot.status.keys,
        snapshot.status.hash,
        state.directory,
        state.seal,
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
    let taken = format!(" ({} s)", report.seconds);
    text + &report.verdict + &taken
}

fn outage(text: &mut String, one: &Observed) {
    *text += &format!("{}: {}; then {}\n", one.outage, one.done, one.undone);
    *text += &format!("to be expected: {}\n", one.expected);
    let time = |time: Option<f64>, otherwise: &str| {
        time.map_or_else(|| otherwise.to_owned(), |time| format!("{time:.1} s"))
    };
    let rows: Vec<Value> = one
        .probes
        .iter()
        .map(|row| {
            json!({
                "apiserver": row.apiserver, "probe": probe_name(row.probe),
                "ok": row.ok, "failed": row.failed,
                "went_on": time(row.stopped_after, "throughout"),
                "healed": time(row.healed_after, "never"),
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
        Column("WENT ON FOR", "went_on"),
        Column("WELL AGAIN AFTER", "healed"),
        Column("EXPECTED", "expected"),
        Column("", "mark"),
    ];
    section(text, "", &table(&rows, &columns));
    for row in &one.probes {
        for error in &row.errors {
            *text += &format!(
                "{} {}, first after {} s, {} times: {}\n",
                row.apiserver,
                probe_name(row.probe),
                error.first_after,
                error.count,
                error.text
            );
        }
    }
    if let Some([first, second]) = one.under_old_version {
        *text += &format!(
            "written under the old key version meanwhile: {first} by apiserver one, {second} by \
             apiserver two\n"
        );
    }
    *text += &match one.healed_after {
        Some(after) => format!("all was well again {after:.1} s after that, by itself; "),
        None => "it was not well again in time; ".to_owned(),
    };
    *text += &format!("{} Secrets were written, {} of them lost\n\n", one.written, one.lost);
}

fn section(text: &mut String, head: &str, body: &str) {
    text.push('\n');
    text.push_str(head);
    text.push_str(body);
    text.push('\n');
}
