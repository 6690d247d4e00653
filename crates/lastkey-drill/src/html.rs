//! The reports as one web page: nothing in it comes from elsewhere, and everything is escaped.

use std::fmt::Write as _;

use crate::{
    outage::{Observed, OutageReport, Row},
    report::RestoreReport,
};

/// So many objects are named on the page.
const NAMED: usize = 1_000;

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lastkey drill</title>
<style>
:root { color-scheme: light dark; --ok: #1a7f37; --bad: #c62828; --line: #8884; --soft: #8882 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .25rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
h3 { font-size: 1rem; margin: 2rem 0 .25rem }
.verdict { border-left: .4rem solid var(--ok); background: var(--soft); padding: .7rem 1rem; font-size: 1.1rem }
.verdict.bad { border-color: var(--bad) }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .75rem 0; width: 100% }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-size: .8rem; font-weight: 600; opacity: .75 } td.n, th.n { text-align: right }
td.bad { color: var(--bad); font-weight: 600 } td.ok { color: var(--ok) }
code { font: .85rem ui-monospace, monospace; overflow-wrap: anywhere } .soft { opacity: .75 }
.bar { display: inline-block; width: 8rem; height: .7rem; background: var(--bad); border-radius: 2px; overflow: hidden }
.bar i { display: block; height: 100%; background: var(--ok) }
</style></head><body>
<h1>Lastkey drill</h1>
"#;

/// The page.
#[must_use]
pub fn page(restore: Option<&RestoreReport>, outages: Option<&OutageReport>) -> String {
    let mut page = Page(HEAD.to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let now = jiff::Timestamp::now();
    let held = format!("Held on scratch processes, over at {now:.0}, by lastkey {version}.");
    page.element("p class=\"soft\"", &held);
    if let Some(report) = restore {
        page.restore(report);
    }
    if let Some(report) = outages {
        page.outages(report);
    }
    page.raw("</body></html>\n");
    page.0
}

struct Page(String);

/// A cell of a table.
enum Cell<'a> {
    Text(&'a str),
    Code(&'a str),
    Number(u64),
    /// A number that is good if it is 0.
    Bad(u64),
    /// So many of so many.
    Bar(u64, u64),
    Mark(bool),
}

impl Page {
    fn raw(&mut self, html: &str) {
        self.0.push_str(html);
    }

    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.raw("&amp;"),
                '<' => self.raw("&lt;"),
                '>' => self.raw("&gt;"),
                '"' => self.raw("&quot;"),
                '\'' => self.raw("&#39;"),
                c => self.0.push(c),
            }
        }
    }

    fn element(&mut self, open: &str, text: &str) {
        let name = open.split(' ').next().unwrap_or(open);
        self.raw(&format!("<{open}>"));
        self.text(text);
        self.raw(&format!("</{name}>\n"));
    }

    fn verdict(&mut self, ok: bool, verdict: &str) {
        self.element(if ok { "p class=\"verdict\"" } else { "p class=\"verdict bad\"" }, verdict);
    }

    /// A table; heads that start with `#` are over numbers.
    fn table<'a>(&mut self, heads: &[&str], rows: impl Iterator<Item = Vec<Cell<'a>>>) {
        self.raw("<div class=\"wide\"><table><tr>");
        for head in heads {
            match head.strip_prefix('#') {
                Some(head) => self.element("th class=\"n\"", head),
                None => self.element("th", head),
            }
        }
        self.raw("</tr>\n");
        for row in rows {
            self.raw("<tr>");
            row.into_iter().for_each(|cell| self.cell(&cell));
            self.raw("</tr>\n");
        }
        self.raw("</table></div>\n");
    }

    fn cell(&mut self, cell: &Cell<'_>) {
        match cell {
            Cell::Text(text) => self.element("td", text),
            Cell::Code(text) => {
                self.raw("<td>");
                self.element("code", text);
                self.raw("</td>");
            }
            Cell::Number(number) => self.element("td class=\"n\"", &number.to_string()),
            Cell::Bad(0) => self.element("td class=\"n\"", "0"),
            Cell::Bad(number) => self.element("td class=\"n bad\"", &number.to_string()),
            Cell::Bar(part, of) => {
                let percent = (part * 100).checked_div(*of).unwrap_or(100);
                let bar = "<td><span class=\"bar\"><i style=\"width:";
                let _ = writeln!(self.0, "{bar}{percent}%\"></i></span></td>");
            }
            Cell::Mark(true) => self.element("td class=\"ok\"", "yes"),
            Cell::Mark(false) => self.element("td class=\"bad\"", "no"),
        }
    }

    fn restore(&mut self, report: &RestoreReport) {
        let (snapshot, state) = (&report.snapshot, &report.state);
        self.element("h2", "Restore");
        self.verdict(report.ok, &report.verdict);
        let status = &snapshot.status;
        let etcd = format!(
            "revision {}, {} keys, {} bytes, hash {}",
            status.revision, status.keys, status.size, status.hash
        );
        let newest = state.newest_key_version.as_deref().unwrap_or("-");
        let ours = format!(
            "seal {} (opened by {}), {} cluster(s), {} key version(s), the newest of {newest}",
            state.seal, state.unsealed_by, state.clusters, state.key_versions
        );
        let sources = [("Snapshot", &snapshot.file, &etcd), ("Backup", &state.directory, &ours)];
        let rows = sources
            .into_iter()
            .map(|(what, file, about)| vec![Cell::Text(what), Cell::Code(file), Cell::Text(about)]);
        self.table(&["", "Given", "What it is"], rows);
        let heads = ["Resource", "#Objects", "#Readable", "#Not readable", ""];
        self.table(
            &heads,
            report.resources.iter().map(|row| {
                let bar = Cell::Bar(row.readable, row.objects);
                let counts = [Cell::Number(row.objects), Cell::Number(row.readable)];
                let name = std::iter::once(Cell::Text(&row.resource));
                name.chain(counts).chain([Cell::Bad(row.unreadable), bar]).collect()
            }),
        );
        let heads = [
            "Under",
            "Key",
            "Key version",
            "Made",
            "Cluster",
            "#Objects",
            "#Readable",
            "#Not readable",
        ];
        self.table(
            &heads,
            report.under.iter().map(|row| {
                vec![
                    Cell::Text(&row.provider),
                    Cell::Text(or_dash(&row.key)),
                    Cell::Code(or_dash(&row.key_version)),
                    Cell::Text(or_dash(&row.created_at)),
                    Cell::Text(or_dash(&row.cluster)),
                    Cell::Number(row.objects),
                    Cell::Number(row.readable),
                    Cell::Bad(row.unreadable),
                ]
            }),
        );
        self.unreadable(report);
        self.remarks(&report.remarks);
    }

    fn unreadable(&mut self, report: &RestoreReport) {
        if !report.missing_key_versions.is_empty() {
            self.element("h3", "Key versions that the backup does not have");
            let rows = report.missing_key_versions.iter().map(|row| {
                vec![
                    Cell::Code(&row.key_version),
                    Cell::Text(or_dash(&row.key)),
                    Cell::Text(&row.cluster),
                    Cell::Bad(row.objects),
                ]
            });
            self.table(&["Key version", "Key", "Cluster", "#Objects"], rows);
        }
        if report.unreadable == 0 {
            return;
        }
        self.element("h3", "Why objects cannot be read");
        let rows = report.reasons.iter().map(|row| {
            let texts = [&*row.message, row.fix].map(Cell::Text);
            [Cell::Code(row.code), Cell::Bad(row.objects)].into_iter().chain(texts).collect()
        });
        self.table(&["Reason", "#Objects", "What it means", "What to do"], rows);
        self.element("h3", "Objects that cannot be read");
        let rows = report.unreadable_objects.iter().take(NAMED).map(|row| {
            vec![
                Cell::Text(&row.resource),
                Cell::Text(&row.namespace),
                Cell::Text(&row.name),
                Cell::Text(&row.provider),
                Cell::Text(or_dash(&row.key)),
                Cell::Code(or_dash(&row.key_version)),
                Cell::Code(row.reason),
            ]
        });
        let heads = ["Resource", "Namespace", "Name", "Under", "Key", "Key version", "Reason"];
        self.table(&heads, rows);
        let named = report.unreadable_objects.len().min(NAMED) as u64;
        if report.unreadable > named {
            self.element("p", &format!("and {} more", report.unreadable - named));
        }
    }

    fn remarks(&mut self, remarks: &[String]) {
        if !remarks.is_empty() {
            self.element("h3", "To be known");
            self.raw("<ul>\n");
            remarks.iter().for_each(|remark| self.element("li", remark));
            self.raw("</ul>\n");
        }
    }

    fn outages(&mut self, report: &OutageReport) {
        self.element("h2", "Outages");
        self.verdict(report.ok, &report.verdict);
        if let Some(why) = &report.cut_short {
            self.element("p", &format!("It ended early: {why}"));
        }
        let times: Vec<(String, String)> = report
            .outages
            .iter()
            .map(|one| (seconds(Some(one.seconds), "-"), healed(one)))
            .collect();
        let rows = report.outages.iter().zip(&times).map(|(one, (length, healed))| {
            vec![
                Cell::Text(one.outage.name()),
                Cell::Text(length),
                if one.complete { Cell::Mark(one.healed) } else { Cell::Text("not seen") },
                Cell::Text(healed),
                Cell::Number(one.written),
                one.lost.map_or(Cell::Text("not seen"), Cell::Bad),
                Cell::Mark(one.as_expected),
            ]
        });
        let heads =
            ["Outage", "Lasted", "Healed by itself", "After", "#Written", "#Lost", "As expected"];
        self.table(&heads, rows);
        if !report.not_played.is_empty() {
            let names: Vec<&str> = report.not_played.iter().map(|outage| outage.name()).collect();
            self.element("p", &format!("Not played: {}", names.join(", ")));
        }
        report.outages.iter().for_each(|one| self.outage(one));
    }

    fn outage(&mut self, one: &Observed) {
        self.element("h3", one.outage.name());
        let undone = if one.complete { one.undone } else { "it was not seen to its end" };
        self.element("p", &format!("{}; then {undone}.", sentence(one.done)));
        self.element("p class=\"soft\"", &format!("To be expected: {}.", one.expected));
        if let Some([first, second]) = one.under_old_version {
            let text = format!(
                "Written under the old key version meanwhile: {first} by apiserver one, {second} by \
                 apiserver two."
            );
            self.element("p", &text);
        }
        let name = |row: &Row| crate::outage::probe_name(row.probe);
        let times: Vec<[String; 3]> = one
            .probes
            .iter()
            .map(|row| {
                let slowest = format!("{:.3} s", row.slowest);
                [slowest, row.went_on_in_words(), row.healed_in_words()]
            })
            .collect();
        let rows = one.probes.iter().zip(&times).map(|(row, [slowest, went_on, healed])| {
            vec![
                Cell::Text(row.apiserver),
                Cell::Text(name(row)),
                Cell::Number(row.ok),
                Cell::Bad(row.failed),
                Cell::Text(slowest),
                Cell::Text(went_on),
                Cell::Text(healed),
                Cell::Text(&row.expected),
                Cell::Mark(row.as_expected),
            ]
        });
        let heads = [
            "Apiserver",
            "Probe",
            "#Went well",
            "#Failed",
            "Slowest",
            "Went on for",
            "Well again after",
            "Expected",
            "As expected",
        ];
        self.table(&heads, rows);
        let errors: Vec<_> = one
            .probes
            .iter()
            .flat_map(|row| row.errors.iter().map(move |error| (row, error)))
            .collect();
        if errors.is_empty() {
            return self.element("p", "Nobody was told of an error.");
        }
        let first: Vec<String> =
            errors.iter().map(|(_, error)| seconds(Some(error.first_after), "-")).collect();
        let rows = errors.iter().zip(&first).map(|((row, error), first)| {
            vec![
                Cell::Text(row.apiserver),
                Cell::Text(name(row)),
                Cell::Text(first),
                Cell::Number(error.count),
                Cell::Code(&error.text),
            ]
        });
        let heads = ["Apiserver", "Probe", "First after", "#Times", "What was said"];
        self.table(&heads, rows);
    }
}

fn healed(one: &Observed) -> String {
    let otherwise = if one.complete { "never" } else { "not seen" };
    seconds(one.healed_after, otherwise)
}

/// With a capital.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    first + chars.as_str()
}

fn or_dash(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("-")
}

fn seconds(time: Option<f64>, otherwise: &str) -> String {
    time.map_or_else(|| otherwise.to_owned(), |time| format!("{time:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        etcd::SnapshotStatus,
        outage::{ErrorText, Outage, Probe},
        report::{Snapshot, State, Unreadable},
    };

    /// One outage that was cut short, of whose error this is the text.
    fn outages(text: &str) -> OutageReport {
        let error = ErrorText { text: text.to_owned(), first_after: 9.0, count: 61 };
        let row = Row {
            apiserver: "one",
            probe: Probe::Write,
            ok: 9,
            failed: 61,
            slowest: 0.041,
            stopped_after: Some(9.0),
            healed_after: None,
            expected: "goes on".to_owned(),
            as_expected: false,
            errors: vec![error],
        };
        let one = Observed {
            outage: Outage::ServerDown,
            done: "the server was killed",
            undone: "it was started again",
            seconds: 70.0,
            expected: "nothing".to_owned(),
            as_expected: false,
            complete: false,
            healed: false,
            healed_after: None,
            written: 140,
            lost: None,
            under_old_version: None,
            probes: vec![row],
        };
        OutageReport {
            ok: false,
            verdict: "interrupted".to_owned(),
            cut_short: Some(text.to_owned()),
            outage_seconds: 240,
            outages: vec![one],
            not_played: vec![Outage::Sealed],
            seconds: 80,
        }
    }

    #[test]
    fn an_outage_that_was_cut_short_is_neither_healed_nor_sick() {
        let page = page(None, Some(&outages("interrupted")));
        for text in [
            "It ended early: interrupted",
            "Not played: sealed",
            "The server was killed; then it was not seen to its end.",
            "<td>not seen</td>",
            "<td class=\"n bad\">61</td>",
            "<td>0.041 s</td>",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("never") && !page.contains("<h2>Restore"), "{page}");
    }

    #[test]
    fn everything_is_escaped_and_nothing_comes_from_elsewhere() {
        let evil = "</td><script>alert('x')</script>\"&";
        let object = Unreadable {
            resource: "secrets".to_owned(),
            namespace: evil.to_owned(),
            name: evil.to_owned(),
            provider: evil.to_owned(),
            key: None,
            key_version: Some(evil.to_owned()),
            reason: "damaged",
        };
        let report = RestoreReport {
            ok: false,
            verdict: evil.to_owned(),
            snapshot: Snapshot { file: evil.to_owned(), status: SnapshotStatus::default() },
            state: State { directory: evil.to_owned(), ..State::default() },
            objects: 1,
            readable: 0,
            unreadable: 1,
            not_objects: 0,
            resources: Vec::new(),
            under: Vec::new(),
            missing_key_versions: Vec::new(),
            reasons: Vec::new(),
            unreadable_objects: vec![object],
            unreadable_not_named: 0,
            remarks: vec![evil.to_owned()],
            seconds: 1,
        };
        let page = page(Some(&report), Some(&outages(evil)));
        assert_eq!(page.matches("alert(&#39;x&#39;)").count(), 10, "{page}");
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;x&#39;)"));
        for elsewhere in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }
}
