//! The crash tester itself: a short run that must find nothing, and disks that lie, which it must
//! find out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "seeds are to be seen")]

use std::process::{Command, Output};

fn torture(args: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lastkey-torture")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    (output, text)
}

/// The same thousand each time, so that what fails here was broken since; `cargo xtask torture` looks
/// for new ones. `LASTKEY_TORTURE_SEED` takes others.
#[test]
fn a_thousand_crashes_lose_nothing() {
    let seed = std::env::var("LASTKEY_TORTURE_SEED").unwrap_or_else(|_| "20260101".to_owned());
    let args = ["--crashes", "1000", "--workers", "2", "--seed", &seed];
    let (output, text) = torture(&args);
    assert!(output.status.success(), "{text}");
    // What this is about does happen.
    let count = |what: &str| {
        let words = text.split(what).next().and_then(|before| before.split_whitespace().last());
        words.and_then(|number| number.parse::<u64>().ok())
    };
    assert!(count(" old segments deleted") > Some(20), "{text}");
}

/// The one write that everything hangs on: the journal's `fdatasync`.
#[test]
fn a_disk_that_lies_about_the_journal_is_found_out() {
    let (output, text) = torture(&["--crashes", "600", "--lie", "journal"]);
    assert!(!output.status.success(), "nobody noticed: {text}");
    assert!(text.contains("again: cargo xtask torture --seed"), "{text}");
}

/// The other one: the store's.
#[test]
fn a_disk_that_lies_about_the_store_is_found_out() {
    let (output, text) = torture(&["--crashes", "600", "--lie", "store"]);
    assert!(!output.status.success(), "nobody noticed: {text}");
}

/// What is printed repeats the run: the same seed takes the same way. Who sleeps is read from
/// `/proc`, and a machine with much else to do can be read wrongly; so two of a few runs must agree.
#[test]
fn a_seed_repeats_its_history() {
    let trace = || {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_lastkey-torture"));
        worker.args(["--seed", "7", "--worker", "1"]).stdout(std::process::Stdio::piped());
        let mut worker = worker.spawn().unwrap();
        let mut lines = std::io::BufReader::new(worker.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
        line
    };
    let mut ways = Vec::new();
    for _ in 0..6 {
        let way = trace();
        assert!(way.contains(r#""trace""#), "{way}");
        if ways.contains(&way) {
            return;
        }
        ways.push(way);
    }
    panic!("no two runs took the same way: {ways:?}");
}
