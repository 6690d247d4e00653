//! `cargo xtask check`: everything that can be judged without running the product.

use crate::shell::{self, Error, Step};

/// The version that deny.toml is written for.
const CARGO_DENY: &str = "0.20.2";

/// Test targets that `--all-targets` leaves out, because they are started by name only.
pub(crate) const LANES: [&str; 6] = ["sdk", "apiserver", "timers", "rotation", "enable", "old"];

type Check = (&'static str, fn() -> Result<(), Error>);

/// Runs all checks and reports every one that fails, not only the first.
pub(crate) fn run() -> Result<(), Error> {
    let checks: [Check; 6] = [
        ("formatting", formatting),
        ("lints", lints),
        ("lints of the lanes", lane_lints),
        ("fuzz targets", fuzz_targets),
        ("documentation", documentation),
        ("dependencies", dependencies),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        println!("── {name}");
        if let Err(error) = check() {
            eprintln!("{error}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("check: all clean");
        return Ok(());
    }
    Err(Error::Refused(format!("check: not clean: {}", failed.join(", "))))
}

fn formatting() -> Result<(), Error> {
    Step::cargo("fmt").args(["--all", "--check"]).run("cargo fmt")
}

fn lints() -> Result<(), Error> {
    let args = ["--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    Step::cargo("clippy").args(args).run("cargo clippy")
}

fn lane_lints() -> Result<(), Error> {
    let lanes = LANES.iter().flat_map(|lane| ["--test", lane]);
    Step::cargo("clippy")
        .args(["--quiet", "--package", "lastkey"])
        .args(lanes)
        .args(["--", "-D", "warnings"])
        .run("cargo clippy on the lanes")
}

/// They are a workspace of their own, so nothing else would notice that one compiles no more.
fn fuzz_targets() -> Result<(), Error> {
    Step::cargo("check")
        .args([
            "--quiet",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--target-dir",
            "target/fuzz-check",
        ])
        .run("cargo check of the fuzz targets")
}

fn documentation() -> Result<(), Error> {
    Step::cargo("doc")
        .args(["--quiet", "--workspace", "--no-deps", "--document-private-items"])
        // Private items are documented too, so links to them lead somewhere.
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links")
        .run("cargo doc")
}

fn dependencies() -> Result<(), Error> {
    install_cargo_deny()?;
    let deny = |what: &[&str]| Step::cargo("deny").args(["--all-features", "check"]).args(what);
    deny(&["bans", "licenses", "sources"]).run("cargo deny")?;
    // The advisories live in a git repository, which not every machine can reach.
    if Step::cargo("deny").args(["fetch", "db"]).succeeds() {
        return deny(&["advisories"]).run("cargo deny check advisories");
    }
    eprintln!("!! advisories NOT checked: the RustSec database cannot be reached from here");
    Ok(())
}

fn install_cargo_deny() -> Result<(), Error> {
    let wanted = format!("cargo-deny {CARGO_DENY}");
    if Step::cargo("deny").args(["--version"]).output().is_some_and(|v| v == wanted) {
        return Ok(());
    }
    println!("installing {wanted} (about three minutes)");
    std::fs::create_dir_all(shell::root().join("target")).ok();
    let log = shell::root().join("target/cargo-deny-install.log");
    Step::cargo("install")
        .args(["cargo-deny", "--locked", "--quiet", "--version", CARGO_DENY])
        .run_logged("installing cargo-deny", &log)
}
