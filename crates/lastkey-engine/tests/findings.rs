//! Where a finding says that the log is not what was written: which file, line and record.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs,
    path::{Path, PathBuf},
};

use lastkey_engine::audit::{AuditSink, Problem, Verification};
use log::{World, segments, write};

/// A closed log, its segments, and the numbers of the first and the last record of each.
fn written() -> (World, Vec<PathBuf>, Vec<(u64, u64)>) {
    let world = World::written(100);
    let files = segments(&world.audit());
    assert!(files.len() > 3);
    let seq = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["seq"].as_u64().unwrap()
    };
    let ends = files.iter().map(|path| {
        let lines = lines(path);
        (seq(&lines[0]), seq(lines.last().unwrap()))
    });
    let ends = ends.collect();
    (world, files, ends)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn put(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// File, line, record and kind of each finding.
fn places(found: &Verification) -> Vec<(String, u64, u64, &'static str)> {
    let place = |p: &Problem| (p.segment.clone(), p.line, p.seq, p.kind);
    found.problems.iter().map(place).collect()
}

#[test]
fn a_line_that_is_torn_is_counted_and_named() {
    let (world, files, ends) = written();
    let whole = lines(&files[0]).len() as u64;
    let torn = [&fs::read(&files[0]).unwrap()[..], b"{\"seq\""].concat();
    fs::write(&files[0], torn).unwrap();
    let found = world.verify();
    let next = ends[0].1 + 1;
    assert_eq!(places(&found), [(name(&files[0]), whole + 1, next, "truncated")]);
    assert!(found.problems[0].what.contains(&format!("record {next} ")), "{found:?}");
    let bytes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert_eq!(found.bytes, bytes);
}

#[test]
fn an_open_segment_that_became_shorter_says_behind_which_record() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 10);
    let file = segments(&world.audit()).pop().unwrap();
    let kept = lines(&file)[..7].to_vec();
    put(&file, &kept);
    let found = log.verify(&[]).unwrap();
    let at_end = (name(&file), 7, 8, "truncated");
    assert_eq!(places(&found)[1..], [at_end], "{found:?}");
    assert_eq!(places(&found)[0], (name(&file), 0, 8, "truncated"));
    assert!(found.problems[0].what.contains("shorter"), "{found:?}");
    assert!(found.problems[1].what.contains("8 to 10"), "{found:?}");
}

#[test]
fn a_missing_segment_is_named_by_its_records() {
    let (world, files, ends) = written();
    fs::remove_file(&files[1]).unwrap();
    let found = world.verify();
    let (first, last) = ends[1];
    assert_eq!(places(&found), [(name(&files[2]), 1, first, "missing")]);
    let said = format!("records {first} to {last} are missing");
    assert_eq!(found.problems[0].what, said);
}

#[test]
fn the_newest_segment_is_missed_behind_the_last_record_there_is() {
    let (world, files, ends) = written();
    let last = files.len() - 1;
    fs::remove_file(&files[last]).unwrap();
    let found = world.verify();
    let before = &files[last - 1];
    let line = lines(before).len() as u64;
    assert_eq!(places(&found), [(name(before), line, ends[last].0, "truncated")]);
}

#[test]
fn garbage_in_a_records_place_is_one_finding_and_not_two() {
    // At the end of a segment, and at the beginning of one.
    for (segment, at_the_end) in [(1, true), (2, false)] {
        let (world, files, ends) = written();
        let mut all = lines(&files[segment]);
        let index = if at_the_end { all.len() - 1 } else { 0 };
        all[index] = "no record".to_owned();
        put(&files[segment], &all);
        let found = world.verify();
        let places = places(&found);
        assert_eq!(places.len(), 1, "{found:?}");
        let (file, line, _, kind) = &places[0];
        assert_eq!((file, *line, *kind), (&name(&files[segment]), index as u64 + 1, "changed"));
        if at_the_end {
            assert_eq!(places[0].2, ends[segment].1);
        }
    }
}

#[test]
fn a_changed_record_is_found_where_it_stands_also_at_a_segments_end() {
    let (world, files, ends) = written();
    let mut all = lines(&files[1]);
    let last = all.len() - 1;
    all[last] = all[last].replace("Encrypt", "Decrypt");
    put(&files[1], &all);
    let found = places(&world.verify());
    // The link to it does not hold, and neither does what the checkpoint says of it.
    let place = (name(&files[1]), last as u64 + 1, ends[1].1, "changed");
    assert!(!found.is_empty() && found.iter().all(|finding| *finding == place), "{found:?}");
}

#[test]
fn a_log_that_does_not_begin_is_told_at_its_first_line() {
    let (world, files, _) = written();
    let mut all = lines(&files[0]);
    all[0] = all[0].replace(&"0".repeat(64), &"1".repeat(64));
    put(&files[0], &all);
    let found = world.verify();
    assert_eq!(places(&found)[..1], [(name(&files[0]), 1, 1, "changed")], "{found:?}");
    assert!(found.problems[0].what.contains("begin"), "{found:?}");
}
