//! The tables.

use super::{
    Line, Results,
    grid::{Grid, number},
};
use crate::scenario::{Kind, Scenario, Side};

/// One table, and the name of the marks around it in the page.
pub(super) struct Section {
    pub(super) name: &'static str,
    title: &'static str,
    pub(super) grid: Grid,
}

/// All that have anything to show.
pub(super) fn all(results: &Results) -> Vec<Section> {
    let sections = [
        Section { name: "https", title: "HTTPS", grid: https(results) },
        Section {
            name: "https-cpu", title: "Processor time of a request, µs", grid: cpu(results)
        },
        Section { name: "allocations", title: "Allocations", grid: allocations(results) },
        Section { name: "create-key", title: "Creation of keys", grid: create_key(results) },
        Section { name: "plugin", title: "KMS plugin", grid: plugin(results) },
        Section { name: "plugin-paced", title: "KMS plugin, paced", grid: paced(results) },
        Section { name: "files", title: "Files", grid: files(results) },
        Section { name: "start", title: "Start", grid: starts(results) },
        Section { name: "rotate", title: "Rotation", grid: rotations(results) },
    ];
    sections.into_iter().filter(|section| !section.grid.is_empty()).collect()
}

/// For a terminal.
pub(super) fn text(results: &Results) -> String {
    let mut text = format!("{}\n{}\n", results.machine.describe(), about(results));
    for section in all(results) {
        text.push_str(&format!("\n{}\n{}\n", section.title, section.grid.text()));
    }
    text
}

/// How it was measured, and how quietly.
pub(super) fn about(results: &Results) -> String {
    let mut text = results.about.clone();
    if let Some(noise) = results.noise {
        text.push_str(&format!(
            "; beside it, other processes kept {} processors busy, the hypervisor took {}; load \
             average before: {}",
            number(noise.others),
            number(noise.stolen),
            number(noise.load_before)
        ));
    }
    text
}

/// The lines of one load, ours with what it is compared with.
pub(super) struct Compared<'a> {
    pub(super) floor: &'a Line,
    pub(super) ours: &'a Line,
    pub(super) null: Option<&'a Line>,
}

/// Pairs of ours and `side` in the scenarios that `wanted` picks.
pub(super) fn compared(
    results: &Results,
    wanted: impl Fn(Scenario, Side) -> bool,
) -> Vec<Compared<'_>> {
    let cells = &results.cells;
    let at = |line: &Line, side: Side| {
        cells.iter().find(|other| {
            let same = other.scenario == line.scenario && other.connections == line.connections;
            same && other.side == side
        })
    };
    let floors = cells.iter().filter(|line| {
        !matches!(line.side, Side::Ours | Side::Null) && wanted(line.scenario, line.side)
    });
    floors
        .filter_map(|floor| {
            let ours = at(floor, Side::Ours)?;
            Some(Compared { floor, ours, null: at(floor, Side::Null) })
        })
        .collect()
}

pub(super) fn is_crypto(scenario: Scenario) -> bool {
    scenario.kind() == Kind::Https && !scenario.makes_keys()
}

/// The plugin under as much load as it takes.
pub(super) fn is_plugin_loop(scenario: Scenario) -> bool {
    scenario.kind() == Kind::Plugin && scenario.pace().is_none()
}

fn ratio(line: &Line) -> String {
    format!("{:.2} ({:.2}–{:.2})", line.ratio, line.ratio_min, line.ratio_max)
}

fn aim(line: &Line) -> String {
    match line.scenario.aim() {
        Some(aim) if line.side == line.scenario.yardstick() => {
            let verdict = if line.ratio >= aim { "met" } else { "missed" };
            format!("{aim} {verdict}")
        }
        _ => String::new(),
    }
}

fn per_second(value: f64) -> String {
    format!("{value:.0}")
}

fn latency(line: &Line) -> String {
    format!("{:.0} / {:.0}", line.p50_us, line.p99_us)
}

fn https(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "",
        "connections",
        "floor /s",
        "ours /s",
        "ours ÷ floor",
        "aim",
        "floor p50 / p99 µs",
        "ours p50 / p99 µs",
        "null /s",
    ]);
    for row in compared(results, |scenario, _| is_crypto(scenario)) {
        grid.row(vec![
            row.floor.scenario.name().to_owned(),
            row.floor.connections.to_string(),
            per_second(row.floor.per_second),
            per_second(row.ours.per_second),
            ratio(row.floor),
            aim(row.floor),
            latency(row.floor),
            latency(row.ours),
            row.null.map(|null| per_second(null.per_second)).unwrap_or_default(),
        ]);
    }
    grid
}

fn cpu(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "",
        "connections",
        "floor user + sys",
        "ours user + sys",
        "floor ÷ ours",
        "client with ours",
        "client with null",
        "client busy",
    ]);
    let parts = |line: &Line| {
        format!("{} + {}", number(line.server_user_us), number(line.server_system_us))
    };
    for row in compared(results, |scenario, _| is_crypto(scenario)) {
        grid.row(vec![
            row.floor.scenario.name().to_owned(),
            row.floor.connections.to_string(),
            parts(row.floor),
            parts(row.ours),
            number(row.floor.cpu_ratio),
            number(row.ours.client_cpu_us),
            row.null.map(|null| number(null.client_cpu_us)).unwrap_or_default(),
            number(row.ours.client_busy),
        ]);
    }
    grid
}

fn create_key(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "",
        "callers",
        "beside",
        "that /s",
        "ours /s",
        "ours ÷ that",
        "aim",
        "that p50 / p99 µs",
        "ours p50 / p99 µs",
        "cpu µs that → ours",
    ]);
    for row in compared(results, |scenario, _| scenario.makes_keys()) {
        grid.row(vec![
            row.floor.scenario.name().to_owned(),
            row.floor.connections.to_string(),
            row.floor.side.name().to_owned(),
            per_second(row.floor.per_second),
            per_second(row.ours.per_second),
            ratio(row.floor),
            aim(row.floor),
            latency(row.floor),
            latency(row.ours),
            cpu_change(&row),
        ]);
    }
    grid
}

fn cpu_change(row: &Compared<'_>) -> String {
    format!("{} → {}", number(row.floor.server_cpu_us), number(row.ours.server_cpu_us))
}

fn plugin(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "",
        "calls in flight",
        "beside",
        "that /s",
        "ours /s",
        "ours ÷ that",
        "aim",
        "that p50 / p99 µs",
        "ours p50 / p99 µs",
        "cpu µs that → ours",
    ]);
    for row in compared(results, |scenario, _| is_plugin_loop(scenario)) {
        grid.row(vec![
            row.floor.scenario.name().to_owned(),
            row.floor.connections.to_string(),
            row.floor.side.name().to_owned(),
            per_second(row.floor.per_second),
            per_second(row.ours.per_second),
            ratio(row.floor),
            aim(row.floor),
            latency(row.floor),
            latency(row.ours),
            cpu_change(&row),
        ]);
    }
    grid
}

fn paced(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "",
        "streams",
        "calls /s",
        "bare grpc p50 / p99 µs",
        "ours p50 / p99 µs",
        "aim for p99",
        "cpu µs bare → ours",
    ]);
    for row in compared(results, |scenario, _| scenario.pace().is_some()) {
        let verdict = |aim: f64| match row.ours.p99_us < aim {
            true => format!("{aim} met"),
            false => format!("{aim} missed"),
        };
        grid.row(vec![
            row.floor.scenario.name().to_owned(),
            row.floor.connections.to_string(),
            per_second(row.ours.per_second),
            latency(row.floor),
            latency(row.ours),
            row.floor.scenario.p99_aim().map(verdict).unwrap_or_default(),
            cpu_change(&row),
        ]);
    }
    grid
}

fn allocations(results: &Results) -> Grid {
    let mut grid = Grid::new(&["", "side", "allocations per request", "bytes per request"]);
    for line in &results.allocations {
        grid.row(vec![
            line.scenario.name().to_owned(),
            line.side.name().to_owned(),
            number(line.per_request),
            format!("{:.0}", line.bytes_per_request),
        ]);
    }
    grid
}

fn files(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "",
        "MiB",
        "MiB/s",
        "min–max",
        "cpu s/GiB",
        "÷ the slower floor",
        "which",
        "aim",
    ]);
    for line in &results.files {
        let aim = line.ratio.filter(|_| line.aims).map(|ratio| match ratio >= 0.7 {
            true => "0.7 met",
            false => "0.7 missed",
        });
        grid.row(vec![
            line.name.to_owned(),
            line.mib.to_string(),
            number(line.mib_per_second),
            format!("{}–{}", number(line.mib_per_second_min), number(line.mib_per_second_max)),
            number(line.cpu_per_gib),
            line.ratio.map(number).unwrap_or_default(),
            line.limit.unwrap_or_default().to_owned(),
            aim.unwrap_or_default().to_owned(),
        ]);
    }
    grid
}

fn starts(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "keys",
        "ready s (worst)",
        "/readyz 200 s",
        "aim",
        "cpu s",
        "bare redb s",
        "store MiB",
        "peak memory MiB ready / listed",
        "list all, s",
    ]);
    for line in &results.starts {
        let aim = match line.keys {
            ..=100_000 if line.readyz_s <= 2.0 => "2 s met",
            ..=100_000 => "2 s missed",
            _ => "",
        };
        grid.row(vec![
            line.keys.to_string(),
            format!("{} ({})", number(line.ready_s), number(line.ready_s_max)),
            number(line.readyz_s),
            aim.to_owned(),
            number(line.cpu_s),
            number(line.redb_s),
            number(line.store_mib),
            format!("{} / {}", number(line.ready_mib), number(line.listed_mib)),
            number(line.list_s),
        ]);
    }
    grid
}

fn rotations(results: &Results) -> Grid {
    let mut grid = Grid::new(&[
        "Secrets",
        "loop s",
        "ours in all s",
        "loop ÷ ours",
        "aim",
        "bare workers /s",
        "our pass /s",
        "ours ÷ bare",
        "aim",
    ]);
    let aim = |value: f64, aim: f64| match value >= aim {
        true => format!("{aim} met"),
        false => format!("{aim} missed"),
    };
    for line in &results.rotations {
        let spread = |[middle, least, most]: [f64; 3]| {
            format!("{} ({}–{})", number(middle), number(least), number(most))
        };
        grid.row(vec![
            line.objects.to_string(),
            number(line.loop_s),
            number(line.whole_s),
            spread([line.to_loop, line.to_loop_min, line.to_loop_max]),
            aim(line.to_loop, 8.0),
            number(line.bare_per_second),
            number(line.pass_per_second),
            spread([line.to_bare, line.to_bare_min, line.to_bare_max]),
            aim(line.to_bare, 0.9),
        ]);
    }
    grid
}
