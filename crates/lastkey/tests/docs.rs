//! What docs/plugin-outages.md says is shown by tests, and those are there: each row of its tables
//! names one that exists, and each row of what is known to go wrong is there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All Rust sources below a folder, in one text.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|it| it == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The rows of the tables below a heading; the cells of each.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, rest) = page.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("{heading}"));
    let rest = rest.split("\n#").next().unwrap();
    let lines = rest.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &'a str| line.trim_matches('|').split(" | ").map(str::trim).collect();
    // the first one is the head
    lines.map(cells).skip(1).collect()
}

#[test]
fn every_outage_names_a_test_that_exists() {
    let page = fs::read_to_string(root().join("docs/plugin-outages.md")).unwrap();
    let mut code = String::new();
    for entry in fs::read_dir(root().join("crates")).unwrap().map(Result::unwrap) {
        let tests = entry.path().join("tests");
        if tests.is_dir() {
            sources(&tests, &mut code);
        }
    }
    let mut before = None;
    for heading in
        ["### What is known to go wrong with KMS plugins", "### What else may come", "## Many"]
    {
        for row in rows(&page, heading) {
            let (what, shown) = (row[0], *row.last().unwrap());
            let names: Vec<&str> =
                quoted(shown).filter(|it| it.contains('_') || it.ends_with(".rs")).collect();
            assert!(
                !names.is_empty() || (shown.starts_with("same") && before.is_some()),
                "{what}: {shown}"
            );
            before = Some(what);
            for name in names {
                let there = match name.strip_suffix(".rs") {
                    // `crate/tests/file.rs`; without a crate, the one that is named before
                    Some(_) => is_a_file(name),
                    // an ellipsis stands for the apiserver's version
                    None => code.contains(&format!("fn {}", name.trim_end_matches('…'))),
                };
                assert!(there, "{what}: there is no {name}");
            }
        }
    }
}

fn is_a_file(name: &str) -> bool {
    let crates = root().join("crates");
    let places = fs::read_dir(&crates).unwrap().map(|entry| entry.unwrap().path());
    let rest = name.split_once('/').map_or(name, |(_, rest)| rest);
    places.into_iter().any(|place| {
        let of = place.file_name().unwrap().to_str().unwrap().to_owned();
        place.join(name).is_file()
            || place.join("tests").join(name).is_file()
            || (name.starts_with(of.trim_start_matches("lastkey-")) && place.join(rest).is_file())
    })
}

/// The rows of the failure table of KMS plugins in general, by a word of each.
#[test]
fn no_known_failure_is_left_out() {
    let page = fs::read_to_string(root().join("docs/plugin-outages.md")).unwrap();
    let rows = rows(&page, "### What is known to go wrong with KMS plugins");
    for known in [
        "plugin killed",
        "back after an outage of 3 minutes",
        "restarted within a second",
        "Status answers with a bad health",
        "Status fails",
        "old key version or key disabled",
        "apiserver restarted",
        "provider removed",
        "key id that stays",
        "`/livez` fails",
        "KMS v1, 2,000 Secrets",
    ] {
        let row =
            rows.iter().find(|row| row[0].contains(known)).unwrap_or_else(|| panic!("{known}"));
        assert_eq!(row.len(), 6, "{row:?}");
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
}
