//! `cargo xtask …`: the one entry point to checks, tests, peers, fuzzing, benchmarks and the demo.
//! CI calls the same commands as people do.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool that talks to a terminal")]

mod check;
mod demo;
mod fuzz;
mod mutants;
mod peers;
mod shell;
mod tests;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's own tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formatting, lints, documentation, licences and banned crates
    Check,
    /// All tests of the workspace, then the lanes with real peers
    Test(tests::Options),
    /// Build and install the real peers: kube-apiserver, etcd, kubectl, the official SDKs
    Peers(peers::Options),
    /// Run the fuzz targets, each for some seconds
    Fuzz(fuzz::Options),
    /// Change the code in thousands of ways, one at a time, and see whether a test notices
    Mutants(mutants::Options),
    /// Measure ours and the bare floor in one run
    Bench {
        /// Handed to lastkey-bench as they are; `cargo xtask bench -- --help` shows them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Crash store and audit log over and over, on a simulated disk, until something is lost
    Torture {
        /// Handed to lastkey-torture as they are: --seed N --crashes M --minutes T;
        /// `cargo xtask torture -- --help` explains them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A real etcd and kube-apiserver beside `lastkey up`, shown step by step
    Demo(demo::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => check::run(),
        Command::Test(options) => tests::run(&options),
        Command::Peers(options) => peers::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Bench { args } => bench(&args),
        Command::Torture { args } => torture(&args),
        Command::Demo(options) => demo::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn torture(args: &[String]) -> Result<(), shell::Error> {
    shell::Step::cargo("run")
        .args(["--quiet", "--package", "lastkey-torture", "--"])
        .args(args)
        .run("the crash tester")
}

fn bench(args: &[String]) -> Result<(), shell::Error> {
    // What is measured lies beside what measures.
    shell::Step::cargo("build")
        .args(["--release", "--package", "lastkey"])
        .run("the binary to measure")?;
    shell::Step::cargo("run")
        .args(["--release", "--package", "lastkey-bench", "--"])
        .args(args)
        .run("the benchmark")
}
