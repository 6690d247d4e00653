//! `cargo xtask mutants`: mutation tests of the code that everything rests on, by cargo-mutants.
//!
//! Each mutant is the code with one thing changed (an operator, a condition, a function's result). A
//! test has to fail over it; where none does, either a test is missing, or the change makes no
//! difference that anybody could see. `.cargo/mutants.toml` says what is not changed;
//! `docs/mutants.md` explains what survives.

use std::path::PathBuf;

use crate::shell::{self, Error, Step};

/// The version that `.cargo/mutants.toml` is written for.
const CARGO_MUTANTS: &str = "27.1.0";
/// Cases of each property: a mutant that survives so many survives more.
const PROPTEST_CASES: &str = "32";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this part: crypto, store or audit
    #[arg(long, value_name = "PART")]
    part: Option<String>,
    /// Only a shard of the mutants, such as 0/4
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// How many mutants are built and tested at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    jobs: u32,
    /// Go on with an earlier run: what was caught then is not tested again
    #[arg(long)]
    iterate: bool,
    /// Only mutants whose file and name match this regular expression
    #[arg(long, value_name = "REGEX")]
    re: Option<String>,
    /// Only count them
    #[arg(long)]
    list: bool,
}

/// A piece of the code, and the tests that have to notice a change of it.
struct Part {
    name: &'static str,
    package: &'static str,
    /// Only these files; all of the package when there are none.
    files: &'static [&'static str],
    /// The package's test targets beside its own unit tests; all when there are none.
    tests: &'static [&'static str],
}

const PARTS: [Part; 3] = [
    Part { name: "crypto", package: "lastkey-crypto", files: &[], tests: &[] },
    Part { name: "store", package: "lastkey-store", files: &[], tests: &[] },
    Part {
        name: "audit",
        package: "lastkey-engine",
        files: &["crates/lastkey-engine/src/audit.rs", "crates/lastkey-engine/src/audit/**"],
        // Those that read or write a log; the others take longer and see no more of it.
        tests: &["alone", "audit", "checkpoints", "retention", "segments"],
    },
];

/// Runs the parts one after the other, all of them, and says at the end which had survivors.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let wanted: Vec<&Part> = PARTS
        .iter()
        .filter(|part| options.part.as_ref().is_none_or(|name| name == part.name))
        .collect();
    if wanted.is_empty() {
        return Err(Error::Refused("there are the parts crypto, store and audit".into()));
    }
    prepare()?;
    let mut survived = Vec::new();
    for part in wanted {
        println!("── {}", part.name);
        if !run_part(part, options)? {
            survived.push(part.name);
        }
    }
    if survived.is_empty() {
        return Ok(());
    }
    let parts = survived.join(", ");
    Err(Error::Refused(format!(
        "mutants survived in {parts}: see target/mutants/*/mutants.out/missed.txt; each needs a \
         test, or its reason in docs/mutants.md"
    )))
}

/// Runs one part; whether no mutant survived.
fn run_part(part: &Part, options: &Options) -> Result<bool, Error> {
    let out = out(part);
    let scratch = shell::root().join("target/mutants/scratch");
    for directory in [&out, &scratch] {
        std::fs::create_dir_all(directory).map_err(shell::file_error("create", directory))?;
    }
    // Neither documentation's examples nor benchmarks: they see nothing that tests do not.
    let tests: Vec<String> = match part.tests {
        [] => vec!["--cargo-arg=--tests".to_owned()],
        names => names.iter().map(|name| format!("--cargo-arg=--test={name}")).collect(),
    };
    let jobs = options.jobs.to_string();
    Step::cargo("mutants")
        .args(["--package", part.package, "--jobs", &jobs])
        .args(["--cargo-arg=--lib"])
        .args(tests)
        .args(part.files.iter().flat_map(|file| ["--file", file]))
        .args(["--output".into(), out])
        .args(options.shard.iter().flat_map(|shard| ["--shard", shard]))
        .args(options.re.iter().flat_map(|re| ["--re", re]))
        .args(options.iterate.then_some("--iterate"))
        .args(options.list.then_some("--list"))
        // The copy that is changed; never the work tree.
        .env("TMPDIR", &scratch)
        .env("PROPTEST_CASES", PROPTEST_CASES)
        .run_lines(|line| println!("{line}"))
}

/// Where a part's results are, next to each other.
fn out(part: &Part) -> PathBuf {
    shell::root().join("target/mutants").join(part.name)
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
