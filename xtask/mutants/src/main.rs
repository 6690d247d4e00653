//! Mutation tests with one build: `cargo xtask mutants`.
//!
//! cargo-mutants says what to change and how (`.cargo/mutants.toml` says where), but builds the
//! program anew for each change. Here all changes of a part are woven into one program, each
//! behind its number, and the environment says which of them is made. So:
//!
//! 1. [`list`]: the mutants, as cargo-mutants lists them.
//! 2. [`weave`]: the sources of a copy with all of them in; [`build`]: the copy built. What does
//!    not compile is taken out again and recorded.
//! 3. [`suite`]: each test runs once on its own, and says which mutants it reaches.
//! 4. [`judge`]: for each mutant the tests that reach it, the shortest first, until one fails.
//!
//! What cannot be woven in (constants, chains of `let`) is built on its own, as cargo-mutants does.
//! [`outcomes`] is written as it goes, so that a run can be ended and gone on with.

mod build;
mod judge;
mod list;
mod outcomes;
mod parts;
mod place;
mod suite;
mod weave;

use std::process::ExitCode;

use clap::Parser as _;

/// What can go wrong in a run.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: String, source: std::io::Error },
    #[error("cannot start `{program}`: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{0}")]
    Refused(String),
    #[error("what cargo says is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{file} is no Rust: {source}")]
    Syntax { file: String, source: syn::Error },
}

/// Wraps an I/O error with what was being done to which file.
fn file_error<'a>(
    action: &'static str,
    path: &'a std::path::Path,
) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::File { action, path: path.display().to_string(), source }
}

#[derive(clap::Parser)]
#[command(about = "Changes the code in one place at a time, and looks whether a test notices")]
struct Options {
    /// Only this part: crypto, store or audit
    #[arg(long, value_name = "PART")]
    part: Option<String>,
    /// Only a shard of the mutants, such as 0/4
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// How many mutants are tested at once
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
    /// Only mutants of files whose path has this in it
    #[arg(long, value_name = "TEXT")]
    file: Option<String>,
    /// Only mutants whose file and name match this regular expression
    #[arg(long, value_name = "REGEX")]
    re: Option<String>,
    /// Test again those that survived an earlier run
    #[arg(long)]
    survivors: bool,
    /// The same, with all tests of the package instead of those that are most likely to notice
    #[arg(long)]
    everything: bool,
    /// Forget what earlier runs found out
    #[arg(long)]
    fresh: bool,
    /// Only count them
    #[arg(long)]
    list: bool,
    /// Where the copy of the work tree is built and its tests run, 3 GB; in memory is fastest
    #[arg(long, value_name = "DIRECTORY", default_value = "/dev/shm/lastkey-mutants")]
    copy: std::path::PathBuf,
}

impl Options {
    /// The same without any choice of mutants.
    fn all_of(other: &Self) -> Self {
        let (part, copy) = (other.part.clone(), other.copy.clone());
        Self { part, copy, shard: None, file: None, re: None, ..*other }
    }
}

#[expect(clippy::print_stderr, reason = "a tool speaks on its terminal")]
fn main() -> ExitCode {
    match parts::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
