//! Numbers for people and for scripts.

use std::io::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{
    error::Error,
    load::Sample,
    options::{Options, Output},
    scenario::{Scenario, Side},
    stats::{median, percentile},
};

/// All rounds of one side under one load.
pub(crate) struct Cell {
    scenario: Scenario,
    callers: usize,
    side: Side,
    rounds: Vec<Round>,
}

/// One measurement, in microseconds per call where it is a time.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p50: f64,
    p99: f64,
    user: f64,
    system: f64,
    client: f64,
    /// Processors that the client kept busy.
    client_busy: f64,
}

/// A cell's medians.
#[derive(Clone, Debug, Serialize)]
struct Line {
    event: &'static str,
    name: &'static str,
    connections: usize,
    side: &'static str,
    rounds: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    server_cpu_us: f64,
    server_user_us: f64,
    server_system_us: f64,
    client_cpu_us: f64,
    client_busy: f64,
    /// Ours over this side, in calls per second; the median of the rounds' own ratios.
    ratio: f64,
    /// This side's processor time over ours.
    cpu_ratio: f64,
}

impl Cell {
    pub(crate) fn new(scenario: Scenario, callers: usize, side: Side) -> Self {
        Self { scenario, callers, side, rounds: Vec::new() }
    }

    pub(crate) fn add(&mut self, sample: &Sample) {
        let calls = (sample.latencies.len().max(1)) as f64;
        let seconds = sample.elapsed.as_secs_f64();
        let micros = |nanos: u32| f64::from(nanos) / 1e3;
        self.rounds.push(Round {
            per_second: sample.latencies.len() as f64 / seconds,
            p50: micros(percentile(&sample.latencies, 50)),
            p99: micros(percentile(&sample.latencies, 99)),
            user: sample.server.user.as_secs_f64() * 1e6 / calls,
            system: sample.server.system.as_secs_f64() * 1e6 / calls,
            client: sample.client.as_secs_f64() * 1e6 / calls,
            client_busy: sample.client.as_secs_f64() / seconds,
        });
    }

    fn middle(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn line(&self, ours: &Self) -> Line {
        let pairs = || ours.rounds.iter().zip(&self.rounds);
        let cpu = |round: &Round| round.user + round.system;
        Line {
            event: "cell",
            name: self.scenario.name(),
            connections: self.callers,
            side: self.side.name(),
            rounds: self.rounds.len(),
            per_second: rounded(self.middle(|r| r.per_second), 1.0),
            p50_us: rounded(self.middle(|r| r.p50), 10.0),
            p99_us: rounded(self.middle(|r| r.p99), 10.0),
            server_cpu_us: rounded(self.middle(cpu), 10.0),
            server_user_us: rounded(self.middle(|r| r.user), 10.0),
            server_system_us: rounded(self.middle(|r| r.system), 10.0),
            client_cpu_us: rounded(self.middle(|r| r.client), 10.0),
            client_busy: rounded(self.middle(|r| r.client_busy), 100.0),
            ratio: rounded(median(pairs().map(|(o, f)| o.per_second / f.per_second)), 100.0),
            cpu_ratio: rounded(median(pairs().map(|(o, f)| cpu(f) / cpu(o))), 100.0),
        }
    }
}

fn rounded(value: f64, unit: f64) -> f64 {
    (value * unit).round() / unit
}

/// Collects lines; in JSON each is printed as soon as it is there.
pub(crate) struct Reporter {
    output: Output,
    header: String,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    about: &'a str,
    cells: &'a [Line],
}

impl Reporter {
    pub(crate) fn new(options: &Options) -> Self {
        let header = format!(
            "{} processors; {} s × {} rounds; {} byte plaintext; HTTPS signed by {:?}",
            std::thread::available_parallelism().map_or(0, usize::from),
            options.seconds,
            options.rounds,
            options.plaintext,
            options.signature,
        );
        Self { output: options.output, header, lines: Vec::new() }
    }

    /// Reports the sides of one load; the last one is ours.
    pub(crate) fn report(&mut self, cells: &[Cell]) -> Result<(), Error> {
        let Some(ours) = cells.last() else { return Ok(()) };
        for cell in cells {
            let line = cell.line(ours);
            match self.output {
                Output::Json => print(&json(&line)?)?,
                Output::Text => say(&format!(
                    "{} × {} {}: {:.0}/s",
                    line.name, line.connections, line.side, line.per_second
                )),
            }
            self.lines.push(line);
        }
        Ok(())
    }

    pub(crate) fn finish(&self) -> Result<(), Error> {
        let report = Report { event: "report", about: &self.header, cells: &self.lines };
        match self.output {
            Output::Json => print(&json(&report)?),
            Output::Text => print(&format!("{}\n{}\n{LEGEND}", self.header, table(&self.lines))),
        }
    }
}

const LEGEND: &str = "\
ratio: ours ÷ this side in calls per second (in parentheses: this side's processor time ÷ ours)
times in µs; cpu: the server process, user + system, per call; client: the load's own\n\
floor: hyper + rustls with the same settings and sizes, one AES-256-GCM, one group-committed\n\
fdatasync; behind gRPC: tonic that asks that floor. bare grpc: tonic that answers from memory";

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "", "callers", "side", "calls/s", "p50", "p99", "cpu", "user", "sys", "client", "busy",
        "ratio",
    ]);
    for line in lines {
        table.add_row([
            line.name.to_owned(),
            line.connections.to_string(),
            line.side.to_owned(),
            format!("{:.0}", line.per_second),
            format!("{:.0}", line.p50_us),
            format!("{:.0}", line.p99_us),
            format!("{:.1}", line.server_cpu_us),
            format!("{:.1}", line.server_user_us),
            format!("{:.1}", line.server_system_us),
            format!("{:.1}", line.client_cpu_us),
            format!("{:.2}", line.client_busy),
            match line.side {
                "ours" => String::new(),
                _ => format!("{:.2} ({:.2})", line.ratio, line.cpu_ratio),
            },
        ]);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        if at != 0 && at != 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string(value).map_err(std::io::Error::from)?)
}

fn print(text: &str) -> Result<(), Error> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Progress, for whoever watches.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A failure with all its causes.
pub(crate) fn complain(error: &Error) {
    let mut text = format!("bench: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    say(&text);
}
