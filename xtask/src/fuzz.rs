//! `cargo xtask fuzz`: the fuzz targets, by cargo-fuzz and the nightly toolchain.

use crate::shell::{self, Error, Step};

/// The version that fuzz/ is laid out for.
const CARGO_FUZZ: &str = "0.13.2";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these targets; all when none is named
    targets: Vec<String>,
    /// How long each target runs at most [default: 30, or without end where --runs is given]
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// How many executions of each target are enough
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// What watches memory: `address`, or `none`, which is many times faster and enough for
    /// parsers without unsafe code
    #[arg(long, default_value = "address", value_parser = ["address", "none"])]
    sanitizer: String,
}

/// How long a target runs that was told nothing else.
const SECONDS: u32 = 30;

/// The longest input that a target is given: what does not fit into so much is nothing new to its
/// parser, and takes time from what is.
fn longest(target: &str) -> u32 {
    match target {
        "engine_names" | "kubernetes_socket" | "client_endpoint" | "sinks_address"
        | "server_parameter" => 256,
        "server_document" => 128,
        // A mark has a number for each of 256 shards.
        "engine_heads" => 2600,
        // A refusal with two fields that are not valid.
        "kubernetes_packed" => 1200,
        // Two slots of two blocks, and a payload.
        "crypto_envelope" => 1400,
        "engine_audit" | "engine_checkpoints" | "engine_index" | "engine_json" | "engine_seal"
        | "engine_segment" | "client_answers" | "server_certificate" | "server_native"
        | "server_signature" => 1024,
        _ => 512,
    }
}

/// Runs the named targets one after the other and stops at the first crash.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    prepare()?;
    let known = targets()?;
    if let Some(unknown) = options.targets.iter().find(|t| !known.contains(t)) {
        let known = known.join(", ");
        return Err(Error::Refused(format!("no fuzz target {unknown}; there are: {known}")));
    }
    let wanted = if options.targets.is_empty() { &known } else { &options.targets };
    for (number, target) in wanted.iter().enumerate() {
        let seconds = options.seconds.or(options.runs.is_none().then_some(SECONDS));
        println!("── {target} ({}/{})", number + 1, wanted.len());
        cargo_fuzz("run")
            .args(["--sanitizer", &options.sanitizer, target.as_str()])
            .args(corpora(target)?)
            .args(["--", "-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"])
            .args([format!("-max_len={}", longest(target))])
            .args(seconds.map(|seconds| format!("-max_total_time={seconds}")))
            .args(options.runs.map(|runs| format!("-runs={runs}")))
            .run(&format!("fuzz target {target}"))?;
    }
    println!("fuzz: {} targets, no crash", wanted.len());
    Ok(())
}

/// Where a target's inputs are: those it found by itself, and those we give it to begin with.
fn corpora(target: &str) -> Result<Vec<String>, Error> {
    let corpus = shell::root().join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus)
        .map_err(|error| Error::Refused(format!("{}: {error}", corpus.display())))?;
    let seeds = shell::root().join("fuzz/seeds").join(target);
    let both = [corpus, seeds].into_iter().filter(|directory| directory.is_dir());
    Ok(both.map(|directory| directory.display().to_string()).collect())
}

/// `cargo +nightly fuzz …`; through rustup, because only its cargo knows `+nightly`.
fn cargo_fuzz(subcommand: &str) -> Step {
    let args = ["run", "nightly", "cargo", "fuzz", subcommand];
    // The variables of the stable cargo that runs us would pin the toolchain of the inner one.
    Step::new("rustup").args(args).without_env("RUSTUP_TOOLCHAIN").without_env("CARGO")
}

fn targets() -> Result<Vec<String>, Error> {
    let list = cargo_fuzz("list").output();
    let list = list.ok_or_else(|| Error::Refused("`cargo fuzz list` failed in fuzz/".into()))?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn prepare() -> Result<(), Error> {
    if !Step::new("rustup").args(["run", "nightly", "rustc", "--version"]).succeeds() {
        println!("installing the nightly toolchain, which fuzzing needs");
        let args = ["toolchain", "install", "nightly", "--profile", "minimal"];
        Step::new("rustup").args(args).run("installing the nightly toolchain")?;
    }
    if Step::cargo("fuzz").args(["--version"]).succeeds() {
        return Ok(());
    }
    println!("installing cargo-fuzz {CARGO_FUZZ} (about a minute)");
    std::fs::create_dir_all(shell::root().join("target")).ok();
    let log = shell::root().join("target/cargo-fuzz-install.log");
    Step::cargo("install")
        .args(["cargo-fuzz", "--locked", "--quiet", "--version", CARGO_FUZZ])
        .run_logged("installing cargo-fuzz", &log)
}
