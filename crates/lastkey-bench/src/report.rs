//! Numbers for people, for scripts, and for the page in `docs/`.

mod docs;
mod grid;
mod plot;
mod sections;

use std::{io::Write as _, path::Path};

use serde::Serialize;

use crate::{
    error::Error,
    machine::{Machine, Noise},
    options::{Options, Output},
    round::Round,
    scenario::{Scenario, Side},
    stats::{least, median, most},
};

/// All rounds of one side under one load.
pub(crate) struct Cell {
    scenario: Scenario,
    callers: usize,
    side: Side,
    rounds: Vec<Round>,
}

/// A cell's medians.
#[derive(Clone, Debug, Serialize)]
struct Line {
    event: &'static str,
    #[serde(rename = "name", serialize_with = "by_name")]
    scenario: Scenario,
    connections: usize,
    #[serde(serialize_with = "side_by_name")]
    side: Side,
    rounds: usize,
    per_second: f64,
    per_second_min: f64,
    per_second_max: f64,
    p50_us: f64,
    p99_us: f64,
    server_cpu_us: f64,
    server_user_us: f64,
    server_system_us: f64,
    client_cpu_us: f64,
    client_busy: f64,
    /// Ours over this side, in calls per second; the median of the rounds' own ratios.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    /// This side's processor time over ours.
    cpu_ratio: f64,
}

/// What one request allocates.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Allocations {
    pub(crate) event: &'static str,
    #[serde(rename = "name", serialize_with = "by_name")]
    pub(crate) scenario: Scenario,
    #[serde(serialize_with = "side_by_name")]
    pub(crate) side: Side,
    pub(crate) per_request: f64,
    pub(crate) bytes_per_request: f64,
}

/// One way to bring a file from here to there.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FileLine {
    pub(crate) event: &'static str,
    pub(crate) name: &'static str,
    pub(crate) mib: u64,
    pub(crate) rounds: usize,
    pub(crate) mib_per_second: f64,
    pub(crate) mib_per_second_min: f64,
    pub(crate) mib_per_second_max: f64,
    /// Processor seconds per GiB.
    pub(crate) cpu_per_gib: f64,
    /// Over the slower of the floors that apply, the median of the rounds' own ratios.
    pub(crate) ratio: Option<f64>,
    /// The slower floor.
    pub(crate) limit: Option<&'static str>,
    /// Whether the aim is about it.
    pub(crate) aims: bool,
}

/// A start with many keys.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StartLine {
    pub(crate) event: &'static str,
    pub(crate) keys: u64,
    pub(crate) rounds: usize,
    /// From exec to the ready line.
    pub(crate) ready_s: f64,
    pub(crate) ready_s_max: f64,
    /// From exec to the first 200 of /readyz.
    pub(crate) readyz_s: f64,
    /// Processor time until the ready line.
    pub(crate) cpu_s: f64,
    /// Peak resident memory when ready, and after all keys were listed.
    pub(crate) ready_mib: f64,
    pub(crate) listed_mib: f64,
    /// How long it took to list all keys by pages of 100.
    pub(crate) list_s: f64,
    /// The store's file.
    pub(crate) store_mib: f64,
    /// Bare redb: opens the same file, checks it and reads every entry.
    pub(crate) redb_s: f64,
}

/// Rotations of a cluster, by three means.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RotateLine {
    pub(crate) event: &'static str,
    /// Secrets.
    pub(crate) objects: usize,
    pub(crate) rounds: usize,
    /// The loop over kubectl, in all.
    pub(crate) loop_s: f64,
    /// Secrets that bare workers write anew.
    pub(crate) bare_per_second: f64,
    /// Secrets that ours writes anew, in the pass that does so.
    pub(crate) pass_per_second: f64,
    /// Ours in all: start, convergence, the pass that writes, the one that verifies, the report.
    pub(crate) whole_s: f64,
    /// The rate of our pass over that of the bare workers.
    pub(crate) to_bare: f64,
    pub(crate) to_bare_min: f64,
    pub(crate) to_bare_max: f64,
    /// The loop's time over that of ours in all.
    pub(crate) to_loop: f64,
    pub(crate) to_loop_min: f64,
    pub(crate) to_loop_max: f64,
}

fn by_name<S: serde::Serializer>(scenario: &Scenario, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(scenario.name())
}

fn side_by_name<S: serde::Serializer>(side: &Side, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(side.name())
}

impl Cell {
    pub(crate) fn new(scenario: Scenario, callers: usize, side: Side) -> Self {
        Self { scenario, callers, side, rounds: Vec::new() }
    }

    pub(crate) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    fn all(&self, of: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }

    fn line(&self, ours: &Self) -> Line {
        let middle = |of: fn(&Round) -> f64| median(self.all(of));
        let pairs = || ours.rounds.iter().zip(&self.rounds);
        let ratios: Vec<f64> = pairs().map(|(o, f)| o.per_second / f.per_second).collect();
        let rate = self.all(|round| round.per_second);
        Line {
            event: "cell",
            scenario: self.scenario,
            connections: self.callers,
            side: self.side,
            rounds: self.rounds.len(),
            per_second: rounded(median(rate.iter().copied()), 1.0),
            per_second_min: rounded(least(&rate), 1.0),
            per_second_max: rounded(most(&rate), 1.0),
            p50_us: rounded(middle(|r| r.p50), 10.0),
            p99_us: rounded(middle(|r| r.p99), 10.0),
            server_cpu_us: rounded(middle(Round::cpu), 10.0),
            server_user_us: rounded(middle(|r| r.user), 10.0),
            server_system_us: rounded(middle(|r| r.system), 10.0),
            client_cpu_us: rounded(middle(|r| r.client), 10.0),
            client_busy: rounded(middle(|r| r.client_busy), 100.0),
            ratio: rounded(median(ratios.iter().copied()), 100.0),
            ratio_min: rounded(least(&ratios), 100.0),
            ratio_max: rounded(most(&ratios), 100.0),
            cpu_ratio: rounded(median(pairs().map(|(o, f)| f.cpu() / o.cpu())), 100.0),
        }
    }
}

fn rounded(value: f64, unit: f64) -> f64 {
    (value * unit).round() / unit
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    event: &'static str,
    machine: Machine,
    about: String,
    noise: Option<Noise>,
    cells: Vec<Line>,
    /// What one creation of a key writes.
    creation: Option<String>,
    allocations: Vec<Allocations>,
    files: Vec<FileLine>,
    starts: Vec<StartLine>,
    rotations: Vec<RotateLine>,
}

/// Collects lines; in JSON each is printed as soon as it is there.
pub(crate) struct Reporter {
    output: Output,
    results: Results,
}

impl Reporter {
    pub(crate) fn new(options: &Options, machine: Machine) -> Self {
        let about = format!(
            "{} s × {} rounds; {} byte plaintext; HTTPS signed by {}",
            options.seconds,
            options.rounds,
            options.plaintext,
            options.signature.name(),
        );
        let results = Results {
            event: "report",
            machine,
            about,
            noise: None,
            cells: Vec::new(),
            creation: None,
            allocations: Vec::new(),
            files: Vec::new(),
            starts: Vec::new(),
            rotations: Vec::new(),
        };
        Self { output: options.output, results }
    }

    /// Reports the sides of one load; the last one is ours.
    pub(crate) fn report(&mut self, cells: &[Cell]) -> Result<(), Error> {
        let Some(ours) = cells.last() else { return Ok(()) };
        for cell in cells {
            let line = cell.line(ours);
            self.event(&line, || {
                let (name, side) = (line.scenario.name(), line.side.name());
                format!("{name} × {} {side}: {:.0}/s", line.connections, line.per_second)
            })?;
            self.results.cells.push(line);
        }
        Ok(())
    }

    /// Reports what a creation of a key writes.
    pub(crate) fn creation(&mut self, shape: String) {
        say(&format!("a key's creation writes {shape}"));
        self.results.creation = Some(shape);
    }

    pub(crate) fn allocations(&mut self, line: Allocations) -> Result<(), Error> {
        self.event(&line, || {
            let (name, side) = (line.scenario.name(), line.side.name());
            format!("{name} {side}: {:.0} allocations a request", line.per_request)
        })?;
        self.results.allocations.push(line);
        Ok(())
    }

    pub(crate) fn file(&mut self, line: FileLine) -> Result<(), Error> {
        self.event(&line, || format!("{}: {:.0} MiB/s", line.name, line.mib_per_second))?;
        self.results.files.push(line);
        Ok(())
    }

    pub(crate) fn start(&mut self, line: StartLine) -> Result<(), Error> {
        self.event(&line, || format!("{} keys: ready after {:.2} s", line.keys, line.ready_s))?;
        self.results.starts.push(line);
        Ok(())
    }

    pub(crate) fn rotation(&mut self, line: RotateLine) -> Result<(), Error> {
        self.event(&line, || {
            let (bare, slow) = (line.to_bare, line.to_loop);
            format!("rotate: {bare:.2} of the bare workers, {slow:.1} times the loop")
        })?;
        self.results.rotations.push(line);
        Ok(())
    }

    fn event(&self, line: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Error> {
        match self.output {
            Output::Json => print(&json(line)?),
            Output::Text => {
                say(&text());
                Ok(())
            }
        }
    }

    /// Prints everything, and writes it into the page at `docs` if there is one.
    pub(crate) fn finish(mut self, noise: Noise, docs: Option<&Path>) -> Result<(), Error> {
        self.results.noise = Some(noise);
        if let Some(page) = docs {
            docs::write(page, &self.results)?;
        }
        match self.output {
            Output::Json => print(&json(&self.results)?),
            Output::Text => print(&sections::text(&self.results)),
        }
    }
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
