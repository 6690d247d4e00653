//! `cargo xtask bench`: ours beside the bare floor, alternating in one run on this machine.
//!
//! The floor is a process of this same binary: the same transport, TLS settings, message sizes
//! and file system, one AES-256-GCM and one group-committed `fdatasync` per request, and nothing
//! else. Absolute numbers are this machine's; the ratio is what a change has to keep.

mod allocations;
mod cpu;
mod error;
mod files;
mod floor;
mod heap;
mod load;
mod machine;
mod options;
mod plugins;
mod report;
mod rotate;
mod round;
mod run;
mod scenario;
mod sides;
mod start;
mod stats;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;

use crate::options::{Cli, Command};

#[global_allocator]
static HEAP: heap::Heap = heap::Heap;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Command::Floor(options)) => floor::run(options),
        Some(Command::Worker(options)) => worker::run(options),
        Some(Command::BareRotate(options)) => rotate::run_bare(options),
        Some(Command::CountedServer(options)) => worker::server::run(options),
        None => run::run(&cli.options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}
