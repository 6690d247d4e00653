//! The page in `docs/`: its words are written by hand, its tables and plots by the bench.
//!
//! A table stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`. Only what was measured
//! is replaced.

use std::{fs, path::Path};

use super::{
    Line, Results,
    grid::number,
    plot::{Bar, Chart, Group, Panel, Scale},
    sections::{self, Compared, compared, is_crypto, is_plugin_loop},
};
use crate::{
    error::Error,
    scenario::{Scenario, Side},
};

/// Rewrites tables and plots of the page at `page`; the plots lie beside it in `benchmarks/`.
pub(super) fn write(page: &Path, results: &Results) -> Result<(), Error> {
    let mut text = fs::read_to_string(page)?;
    let how = format!("{}\n\n{}.", results.machine.describe(), sections::about(results));
    let run = how.replace("; commit", ", at commit") + "\n";
    for section in sections::all(results) {
        text = replace(&text, section.name, &section.grid.markdown())?;
    }
    if let Some(creation) = &results.creation {
        text = replace(&text, "creation", &format!("One creation writes: {creation}.\n"))?;
    }
    text = replace(&text, "machine", &run)?;
    fs::write(page, text)?;
    let dir = page.with_file_name("benchmarks");
    fs::create_dir_all(&dir)?;
    for (name, chart) in charts(results) {
        fs::write(dir.join(name), chart.svg())?;
    }
    Ok(())
}

/// The text with what stands between the marks of that name exchanged.
fn replace(text: &str, name: &str, content: &str) -> Result<String, Error> {
    let (begin, end) = (format!("<!-- bench:{name} -->\n"), format!("<!-- /bench:{name} -->"));
    let missing = || Error::Marks { name: name.to_owned() };
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok([before, &begin, "\n", content, "\n", &end, after].concat())
}

/// All plots that have anything to show.
fn charts(results: &Results) -> Vec<(&'static str, Chart)> {
    let crypto = |scenario, _| is_crypto(scenario);
    let rate = "calls/s";
    let charts = [
        (
            "https-throughput.svg",
            pairs(results, ("Calls per second over HTTPS, by connections", rate), crypto, rates),
        ),
        ("https-latency.svg", {
            let title = "Latency over HTTPS, by connections: median, whisker to p99";
            let mut chart = pairs(results, (title, "µs"), crypto, latencies);
            chart.scale = Scale::Logarithmic;
            without_notes(chart)
        }),
        ("https-cpu.svg", {
            let title = "Processor time of a request: own code, and fainter the kernel";
            let mut chart = pairs(results, (title, "µs"), crypto, |row| {
                let parts = |line: &Line| Bar {
                    parts: vec![line.server_user_us, line.server_system_us],
                    whisker: None,
                };
                let client = row.null.map_or(0.0, |null| null.client_cpu_us);
                vec![parts(row.floor), parts(row.ours), Bar::plain(client)]
            });
            chart = without_notes(chart);
            chart.series.push("client, against the null answer");
            chart
        }),
        (
            "create-key.svg",
            pairs(
                results,
                ("Keys created per second, by callers", rate),
                |scenario, side| scenario.makes_keys() && side == scenario.yardstick(),
                rates,
            ),
        ),
        (
            "plugin.svg",
            pairs(
                results,
                ("Calls of the KMS plugin per second, by calls in flight", rate),
                |scenario, side| is_plugin_loop(scenario) && side == scenario.yardstick(),
                rates,
            ),
        ),
        ("files.svg", files(results)),
        ("start.svg", starts(results)),
    ];
    charts.into_iter().filter(|(_, chart)| !chart.panels.is_empty()).collect()
}

/// One panel a scenario, one group a number of callers; the note is the ratio.
fn pairs(
    results: &Results,
    (title, unit): (&str, &'static str),
    wanted: impl Fn(Scenario, Side) -> bool,
    bars: impl Fn(&Compared<'_>) -> Vec<Bar>,
) -> Chart {
    let mut panels: Vec<Panel> = Vec::new();
    for row in compared(results, wanted) {
        let title = row.floor.scenario.name();
        if panels.last().is_none_or(|panel| panel.title != title) {
            panels.push(Panel { title: title.to_owned(), groups: Vec::new() });
        }
        let group = Group {
            label: row.floor.connections.to_string(),
            note: number(row.floor.ratio),
            bars: bars(&row),
        };
        if let Some(panel) = panels.last_mut() {
            panel.groups.push(group);
        }
    }
    let series = vec!["floor", "ours (above: ours ÷ floor)"];
    Chart { title: title.to_owned(), unit, scale: Scale::Linear, series, panels }
}

/// The chart without the ratios, where they are not of what it shows.
fn without_notes(mut chart: Chart) -> Chart {
    for group in chart.panels.iter_mut().flat_map(|panel| &mut panel.groups) {
        group.note.clear();
    }
    chart.series = vec!["floor", "ours"];
    chart
}

fn rates(row: &Compared<'_>) -> Vec<Bar> {
    let bar = |line: &Line| Bar {
        parts: vec![line.per_second],
        whisker: Some((line.per_second_min, line.per_second_max)),
    };
    vec![bar(row.floor), bar(row.ours)]
}

fn latencies(row: &Compared<'_>) -> Vec<Bar> {
    let bar =
        |line: &Line| Bar { parts: vec![line.p50_us], whisker: Some((line.p50_us, line.p99_us)) };
    vec![bar(row.floor), bar(row.ours)]
}

fn files(results: &Results) -> Chart {
    let group = |line: &super::FileLine| {
        let bar = Bar {
            parts: vec![line.mib_per_second],
            whisker: Some((line.mib_per_second_min, line.mib_per_second_max)),
        };
        // Floors stand where floors stand, ours where ours do.
        let bars = if line.limit.is_some() { vec![Bar::default(), bar] } else { vec![bar] };
        let note = line.ratio.map(number).unwrap_or_default();
        Group { label: String::new(), note, bars }
    };
    let panels = results
        .files
        .iter()
        .map(|line| Panel { title: line.name.to_owned(), groups: vec![group(line)] })
        .collect();
    Chart {
        title: "Large files (above: ours ÷ the slower floor)".to_owned(),
        unit: "MiB/s",
        scale: Scale::Linear,
        series: vec!["floor", "ours"],
        panels,
    }
}

fn starts(results: &Results) -> Chart {
    let group = |line: &super::StartLine| Group {
        label: String::new(),
        note: format!("{} s", number(line.readyz_s)),
        bars: vec![Bar::plain(line.redb_s), Bar::plain(line.readyz_s)],
    };
    let panels = results
        .starts
        .iter()
        .map(|line| Panel { title: format!("{} keys", line.keys), groups: vec![group(line)] })
        .collect();
    Chart {
        title: "From exec to the first 200 of /readyz".to_owned(),
        unit: "s",
        scale: Scale::Linear,
        series: vec!["bare redb: open, check, read all", "ours"],
        panels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = "a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb\n";
        let once = replace(page, "x", "| new |\n").unwrap();
        assert_eq!(once, "a\n<!-- bench:x -->\n\n| new |\n\n<!-- /bench:x -->\nb\n");
        assert_eq!(replace(&once, "x", "| new |\n").unwrap(), once);
        assert!(replace(page, "y", "").is_err());
    }

    /// Every mark that the bench may write is in the page, so that no run ends with an error.
    #[test]
    fn the_page_has_all_marks() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
        let text = fs::read_to_string(page).unwrap();
        for name in [
            "machine",
            "https",
            "https-cpu",
            "allocations",
            "create-key",
            "creation",
            "plugin",
            "plugin-paced",
            "files",
            "start",
        ] {
            replace(&text, name, "").unwrap();
        }
    }
}
