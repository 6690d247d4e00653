//! The `lastkey` binary: command line, configuration, wiring.

mod cli;
mod command;
mod connect;
mod daemon;
mod output;
mod streams;
mod usage;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    output::{Failure, Output},
};

/// Freed memory is zeroed, so that what passed through it does not linger.
#[global_allocator]
static ALLOCATOR: lastkey_crypto::memory::GuardedHeap = lastkey_crypto::memory::GUARDED_HEAP;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::tell(&error),
    };
    let serves = matches!(cli.command, Command::Up(_) | Command::Server(_) | Command::KmsPlugin(_));
    start_logging(serves);
    let output = Output::new(cli.output);
    match run(cli, &output) {
        // What serves said that it was ready, and then did what it is for.
        Ok(()) if serves => ExitCode::SUCCESS,
        Ok(()) => output::unwritten().map_or(ExitCode::SUCCESS, |failure| output.fail(&failure)),
        Err(failure) => output.fail(&failure),
    }
}

/// Logs go to standard error; `LASTKEY_LOG` selects them as `RUST_LOG` does elsewhere, and
/// `LASTKEY_LOG_FORMAT=json` makes each a line of JSON. The libraries below us stay at `info`
/// whatever it says: what they print of a connection beyond that can hold what passed through it.
fn start_logging(serves: bool) {
    use tracing_subscriber::{EnvFilter, fmt};
    let default = if serves { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("LASTKEY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let capped = ["hyper", "hyper_util", "h2", "rustls", "tokio_rustls", "tonic", "tower"];
    let filter = capped
        .iter()
        .filter_map(|library| format!("{library}=info").parse().ok())
        .fold(filter, EnvFilter::add_directive);
    // It calls each mechanism of a token that it has no name for an error; what fails it answers.
    let filter = match "cryptoki=off".parse() {
        Ok(silent) => filter.add_directive(silent),
        Err(_) => filter,
    };
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Where standard error cannot be written, such as a file on a full disk, a complaint about it
    // there would end whatever was logging.
    let log = log.log_internal_errors(false);
    match std::env::var_os("LASTKEY_LOG_FORMAT").is_some_and(|format| format == "json") {
        true => log.json().flatten_event(true).init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), Failure> {
    use Command::{DrillChild, DrillSweep, KmsPlugin, Server, Up};
    // All others are asked for what they print.
    if !matches!(cli.command, Up(_) | Server(_) | KmsPlugin(_) | DrillChild(_) | DrillSweep { .. })
    {
        streams::require_output()?;
    }
    match cli.command {
        Command::Up(options) => daemon::up(options, output),
        Command::Server(options) => daemon::server(options, output),
        Command::KmsPlugin(options) => daemon::kms_plugin(&cli.connect, options, output),
        Command::Completions { shell } => {
            command::generate::completions(shell);
            Ok(())
        }
        Command::Man { out } => command::generate::man_pages(out.as_deref()),
        Command::Key(action) => command::key::run(&cli.connect, action, output),
        Command::Encrypt(options) => command::file::encrypt(&cli.connect, &options, output),
        Command::Decrypt(options) => command::file::decrypt(&cli.connect, &options, output),
        Command::Rewrap(options) => command::file::rewrap(&cli.connect, &options, output),
        Command::Audit(action) => command::audit::run(&cli.connect, action, output),
        Command::Cluster(action) => command::cluster::run(&cli.connect, action, output),
        Command::Ca(action) => command::ca::run(&cli.connect, action, output),
        Command::Operator(action) => command::operator::run(&cli.connect, action, output),
        Command::Doctor(options) => command::doctor::run(&options, output),
        Command::DrillChild(options) => Err(command::cluster::become_program(&options)),
        Command::DrillSweep { directory } => {
            lastkey_drill::sweep(&directory);
            Ok(())
        }
        Command::Status => command::status::run(&cli.connect, output),
    }
}
