//! `cargo xtask mutants`: mutation tests of the code that everything rests on.
//!
//! Each mutant is the code with one thing changed (an operator, a condition, a function's result). A
//! test has to fail over it; where none does, either a test is missing, or the change makes no
//! difference that anybody could see. `.cargo/mutants.toml` says what is not changed;
//! `docs/mutants.md` explains what survives. cargo-mutants lists them; `xtask/mutants`, a package
//! of its own so that this one stays light, builds all of them at once and runs the tests.

use crate::shell::{self, Error, Step};

/// The version that `.cargo/mutants.toml` is written for.
const CARGO_MUTANTS: &str = "27.1.0";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What `lastkey-mutants` takes, such as `--part audit`; `cargo xtask mutants -- --help` shows
    /// all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    rest: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<(), Error> {
    prepare()?;
    Step::cargo("run")
        .args(["--quiet", "--package", "lastkey-mutants", "--"])
        .args(&options.rest)
        .run("testing mutants")
}

fn prepare() -> Result<(), Error> {
    let installed = Step::cargo("mutants").args(["--version"]).output();
    if installed.is_some_and(|version| version.ends_with(CARGO_MUTANTS)) {
        return Ok(());
    }
    println!("installing cargo-mutants {CARGO_MUTANTS} (some minutes)");
    std::fs::create_dir_all(shell::root().join("target")).ok();
    let log = shell::root().join("target/cargo-mutants-install.log");
    Step::cargo("install")
        .args(["cargo-mutants", "--locked", "--quiet", "--version", CARGO_MUTANTS])
        .run_logged("installing cargo-mutants", &log)
}
