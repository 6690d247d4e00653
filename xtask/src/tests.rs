//! `cargo xtask test`: the workspace's tests, then the lanes with real peers.
//!
//! A lane is a test target of the `lastkey` package that needs real peers. Lanes run side by side,
//! because they mostly wait for timers inside the apiserver. The slow ones run with `--all`.

use crate::check::LANES;
use crate::peers;
use crate::shell::{self, Error, Step};
use std::collections::BTreeMap;
use std::thread;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these: `workspace`, lanes (sdk, apiserver, timers, rotation, enable, old) or packages (lastkey-store …)
    names: Vec<String>,
    /// The slow lanes too
    #[arg(long)]
    all: bool,
}

/// Lanes that take minutes, because they sit out the apiserver's own timers, or rotate thousands of
/// objects.
const SLOW: [&str; 3] = ["timers", "rotation", "enable"];

/// The lane of a kube-apiserver that nobody builds by the way: run by its name only.
const ON_REQUEST: &str = "old";

/// How many tests of a lane run at once. Most have an etcd and an apiserver of their own, which need
/// a core for some seconds at their start; those that sit out timers then need next to nothing.
fn tests_at_once(lane: &str) -> &'static str {
    if ["timers", "enable"].contains(&lane) { "5" } else { "2" }
}

/// GiB that the tests want on a disk where nothing is built yet, and where it is.
const UNBUILT: u64 = 16;
const BUILT: u64 = 4;

/// One `cargo test` and what it said last.
struct Part {
    name: String,
    ok: bool,
    closing: Vec<String>,
}

/// Installs the peers, runs everything that is wanted, and repeats the runner's closing lines.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let lanes = lanes(options)?;
    have_room()?;
    if !lanes.is_empty() {
        have_peers(&lanes)?;
    }
    let mut parts = Vec::new();
    for package in packages(options) {
        parts.push(run_tests(&package.label, &package.args)?);
    }
    if !lanes.is_empty() {
        parts.extend(run_lanes(&lanes)?);
    }
    close(&parts, options, &lanes)
}

struct Packages {
    label: String,
    args: Vec<String>,
}

fn packages(options: &Options) -> Vec<Packages> {
    let workspace = || Packages { label: "workspace".into(), args: vec!["--workspace".to_owned()] };
    if options.names.is_empty() {
        return vec![workspace()];
    }
    let others = options.names.iter().filter(|name| !LANES.contains(&name.as_str()));
    others
        .map(|name| match name.as_str() {
            "workspace" => workspace(),
            _ => Packages { label: name.clone(), args: vec!["--package".into(), name.clone()] },
        })
        .collect()
}

fn lanes(options: &Options) -> Result<Vec<&'static str>, Error> {
    let known = |name: &String| {
        LANES.contains(&name.as_str())
            || name == "workspace"
            || shell::root().join("crates").join(name).is_dir()
    };
    if let Some(unknown) = options.names.iter().find(|name| !known(name)) {
        let lanes = LANES.join(", ");
        let text = format!(
            "nothing to test is called {unknown}; lanes are {lanes}; or `workspace`, or a package in crates/"
        );
        return Err(Error::Refused(text));
    }
    let wanted = |lane: &&str| match options.names.is_empty() {
        true => *lane != ON_REQUEST && (options.all || !SLOW.contains(lane)),
        false => options.names.iter().any(|name| name == lane),
    };
    Ok(LANES.into_iter().filter(wanted).collect())
}

/// Whether the disks have room for what tests build and write; a full one makes them fail in ways that
/// do not tell. CI stops here; a person is told.
fn have_room() -> Result<(), Error> {
    let (target, temp) = (shell::target_dir(), std::env::temp_dir());
    let built = target.join("debug/deps").is_dir();
    for (dir, wanted) in [(&target, if built { BUILT } else { UNBUILT }), (&temp, BUILT)] {
        let Some(free) = shell::free_gib(dir).filter(|free| *free < wanted) else { continue };
        let text = format!(
            "{} has {free} GiB free, and the tests want {wanted}: make room, or set CARGO_TARGET_DIR and TMPDIR",
            dir.display()
        );
        if shell::in_ci() {
            return Err(Error::Refused(text));
        }
        eprintln!("!!!!  {text}");
    }
    Ok(())
}

/// Installs the peers. Where that fails, CI stops; a person is told loudly and goes on.
fn have_peers(lanes: &[&str]) -> Result<(), Error> {
    let asked = match lanes.contains(&ON_REQUEST) {
        true => peers::install(&peers::OLD),
        false => Ok(()),
    };
    let Err(error) = peers::install(&[]).and(asked) else { return Ok(()) };
    if shell::in_ci() {
        return Err(error);
    }
    let missing = peers::missing()?.join(", ");
    eprintln!("\n!!!!  {error}");
    eprintln!("!!!!  MISSING PEERS: {missing}");
    eprintln!(
        "!!!!  Tests that need them say SKIPPED; they prove nothing. CI requires them all.\n"
    );
    Ok(())
}

fn run_tests(label: &str, args: &[String]) -> Result<Part, Error> {
    println!("── {label}");
    let mut closing = Vec::new();
    let step = Step::cargo("test").args(["--no-fail-fast"]).args(args);
    let ok = step.run_lines(|line| {
        println!("{line}");
        keep_closing(line, &mut closing);
    })?;
    Ok(Part { name: label.to_owned(), ok, closing })
}

/// Builds all lanes, then runs them side by side.
fn run_lanes(lanes: &[&str]) -> Result<Vec<Part>, Error> {
    println!("── lanes with real peers: {}", lanes.join(", "));
    let targets = lanes.iter().flat_map(|lane| ["--test", lane]);
    let build = Step::cargo("test").args(["--package", "lastkey", "--no-run"]).args(targets);
    build.run("building the lanes")?;
    thread::scope(|scope| {
        let running: Vec<_> = lanes.iter().map(|lane| scope.spawn(|| run_lane(lane))).collect();
        running
            .into_iter()
            .map(|lane| {
                lane.join().unwrap_or_else(|_| Err(Error::Refused("a lane panicked".into())))
            })
            .collect()
    })
}

fn run_lane(lane: &str) -> Result<Part, Error> {
    let mut closing = Vec::new();
    let step = Step::cargo("test")
        .args(["--quiet", "--package", "lastkey", "--test", lane])
        .args(["--", "--test-threads", tests_at_once(lane), "--format", "pretty"]);
    let ok = step.run_lines(|line| {
        // A line at a time shows progress; the lane's name tells lines of several lanes apart.
        println!("{lane}: {line}");
        keep_closing(line, &mut closing);
    })?;
    Ok(Part { name: format!("lane {lane}"), ok, closing })
}

fn keep_closing(line: &str, closing: &mut Vec<String>) {
    if line.starts_with("test result:") || line.ends_with("... FAILED") {
        closing.push(line.to_owned());
    }
}

/// Prints cargo test's own closing lines once more, all in one place, and the verdict.
fn close(parts: &[Part], options: &Options, lanes: &[&str]) -> Result<(), Error> {
    println!("\n──────── closing lines");
    for part in parts {
        println!("{}", part.name);
        part.closing.iter().filter(|l| !is_empty_result(l)).for_each(|l| println!("  {l}"));
        if !part.ok && part.closing.is_empty() {
            println!("  did not get as far as a result");
        }
    }
    let totals = totals(parts);
    println!(
        "total: {}",
        totals.iter().map(|(k, n)| format!("{n} {k}")).collect::<Vec<_>>().join(", ")
    );
    if options.names.is_empty() && !options.all {
        println!("not run without --all: {}", SLOW.join(", "));
        println!("run by its name only: {ON_REQUEST}");
    }
    let missing = if lanes.is_empty() { Vec::new() } else { peers::missing()? };
    if !missing.is_empty() {
        println!(
            "!!!! MISSING PEERS: {}: the lanes that need them were skipped",
            missing.join(", ")
        );
    }
    let failed: Vec<&str> = parts.iter().filter(|p| !p.ok).map(|p| p.name.as_str()).collect();
    if failed.is_empty() {
        println!("test result: ok");
        return Ok(());
    }
    Err(Error::Refused(format!("test result: FAILED in {}", failed.join(", "))))
}

fn is_empty_result(line: &str) -> bool {
    line.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
}

/// `test result: ok. 3 passed; 0 failed; …` of all parts, added up.
fn totals(parts: &[Part]) -> BTreeMap<&str, u64> {
    let mut totals = BTreeMap::new();
    let results = parts.iter().flat_map(|p| &p.closing).filter_map(|l| l.split_once(". "));
    for (_, counts) in results {
        for count in counts.split("; ") {
            if let Some((number, what @ ("passed" | "failed" | "ignored"))) = count.split_once(' ')
            {
                *totals.entry(what).or_default() += number.parse::<u64>().unwrap_or_default();
            }
        }
    }
    totals
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let part = |closing: &[&str]| Part {
            name: "a part".into(),
            ok: true,
            closing: closing.iter().map(|line| (*line).to_owned()).collect(),
        };
        let result = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 5 filtered out";
        let failed = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered";
        let parts = [part(&[result, failed]), part(&["test a ... FAILED", result])];
        assert_eq!(totals(&parts), BTreeMap::from([("passed", 7), ("failed", 2), ("ignored", 2)]));
    }
}
