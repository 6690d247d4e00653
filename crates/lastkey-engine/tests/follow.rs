//! Following the log as it grows: every record once and in order, each checkpoint behind the
//! record it is about, from wherever somebody stopped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lastkey_engine::audit::{AuditSink, Checkpoint, Follower, Lot, Place};
use log::{Deed, Meddler, World, segments, write};

/// A line, as a record's number or as a checkpoint.
#[derive(Debug, PartialEq)]
enum Came {
    Record(u64),
    Checkpoint { number: u64, about: u64 },
}

fn came(line: &[u8]) -> Came {
    let text = std::str::from_utf8(line).unwrap();
    match Checkpoint::parse(text) {
        Some(found) => {
            let statement = found.statement;
            Came::Checkpoint { number: statement.number, about: statement.head.seq }
        }
        None => {
            let record: serde_json::Value = serde_json::from_str(text).unwrap();
            Came::Record(record["seq"].as_u64().unwrap())
        }
    }
}

fn records(lot: &Lot) -> Vec<u64> {
    let numbers = lot.lines.iter().filter_map(|line| match came(line) {
        Came::Record(seq) => Some(seq),
        Came::Checkpoint { .. } => None,
    });
    numbers.collect()
}

/// Everything from where the follower is to the end, and how many records it missed.
fn rest(follower: &mut Follower) -> (Vec<Vec<u8>>, u64) {
    let (mut lines, mut missed) = (Vec::new(), 0);
    loop {
        let lot = follower.next(7, usize::MAX).unwrap();
        if lot.lines.is_empty() {
            assert_eq!(lot.place, follower.place(), "nothing came, nothing changed");
            return (lines, missed);
        }
        follower.arrived(&lot);
        assert_eq!(follower.place(), lot.place);
        lines.extend(lot.lines);
        missed += lot.missed;
    }
}

fn follower(world: &World, seq: u64) -> Follower {
    Follower::new(world.audit(), Place { seq, checkpoint: 0 })
}

/// The records' lines as the plain segments have them.
fn written(directory: &Path) -> Vec<Vec<u8>> {
    let files: Vec<PathBuf> = segments(directory);
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| line.as_bytes().to_vec()).collect()
}

#[test]
fn every_record_comes_once_and_each_checkpoint_behind_its_record() {
    let world = World::written(100);
    let mut follower = follower(&world, 0);
    let (lines, missed) = rest(&mut follower);
    assert_eq!(missed, 0);
    let is_checkpoint = |line: &Vec<u8>| line.starts_with(br#"{"checkpoint""#);
    let (signed, plain): (Vec<Vec<u8>>, _) = lines.iter().cloned().partition(is_checkpoint);
    assert_eq!(plain, written(&world.audit()));
    let file = fs::read_to_string(world.audit().join("checkpoints.log")).unwrap();
    assert_eq!(signed, file.lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
    let mut last = 0;
    for line in &lines {
        match came(line) {
            Came::Record(seq) => last = seq,
            Came::Checkpoint { about, .. } => assert_eq!(about, last, "right behind its record"),
        }
    }
    let end = Place { seq: 100, checkpoint: signed.len() as u64 };
    assert_eq!((follower.place(), Follower::end(&world.audit()).unwrap()), (end, end));
    // Who knows all of it is told nothing.
    let mut other = Follower::new(world.audit(), end);
    assert_eq!(other.next(10, usize::MAX).unwrap(), Lot { place: end, ..Lot::default() });
}

#[test]
fn a_lot_has_as_many_lines_and_bytes_as_were_asked_for() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 30);
    let mut follower = follower(&world, 0);
    assert_eq!(follower.lag().unwrap(), 30);
    let lot = follower.next(4, usize::MAX).unwrap();
    assert_eq!((records(&lot), lot.place.seq), (vec![1, 2, 3, 4], 4));
    follower.arrived(&lot);
    assert_eq!(follower.lag().unwrap(), 26);
    // About so many bytes: the line that reaches them is the last.
    let all = written(&world.audit());
    let three: usize = all[4..7].iter().map(Vec::len).sum();
    let lot = follower.next(100, three).unwrap();
    assert_eq!(records(&lot), [5, 6, 7]);
    // It did not arrive, so it comes again; and what comes then is what follows.
    follower.again();
    let lot = follower.next(100, three + 1).unwrap();
    assert_eq!(records(&lot), [5, 6, 7, 8]);
    follower.arrived(&lot);
    assert_eq!(records(&follower.next(1, usize::MAX).unwrap()), [9]);
    assert!(records(&follower.next(0, usize::MAX).unwrap()).is_empty());
    assert!(records(&follower.next(10, 0).unwrap()).is_empty());
}

#[test]
fn it_goes_on_anywhere_and_as_the_log_grows() {
    let world = World::new();
    let log = world.open();
    write(&log, 60);
    for place in [0, 1, 17, 18, 19, 59] {
        let lot = follower(&world, place).next(1, usize::MAX).unwrap();
        assert_eq!((lot.place.seq, lot.missed), (place + 1, 0));
    }
    let mut follower = follower(&world, 60);
    for end in (65..=160).step_by(5) {
        assert!(records(&follower.next(10, usize::MAX).unwrap()).is_empty());
        write(&log, 5);
        // Segments are closed meanwhile.
        let lot = follower.next(100, usize::MAX).unwrap();
        assert_eq!(records(&lot), (end - 4..=end).collect::<Vec<_>>());
        assert_eq!(lot.missed, 0);
        follower.arrived(&lot);
    }
    assert!(segments(&world.audit()).len() > 5);
    log.close();
    // What is left is the signature that closed it, and those before it.
    let (lines, _) = rest(&mut follower);
    assert!(lines.iter().all(|line| matches!(came(line), Came::Checkpoint { .. })));
    assert_eq!(follower.place(), Follower::end(&world.audit()).unwrap());
}

#[test]
fn a_checkpoint_that_is_signed_later_comes_once() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 3);
    let mut follower = follower(&world, 0);
    assert_eq!(rest(&mut follower).0.len(), 3);
    log.close();
    let (lines, _) = rest(&mut follower);
    assert_eq!(lines.len(), 1);
    assert_eq!(came(&lines[0]), Came::Checkpoint { number: 1, about: 3 });
    let log = world.open();
    write(&log, 2);
    log.close();
    let came: Vec<Came> = rest(&mut follower).0.iter().map(|line| came(line)).collect();
    let expected = [Came::Record(4), Came::Record(5), Came::Checkpoint { number: 2, about: 5 }];
    assert_eq!(came, expected);
    // It has not come as long as it did not arrive.
    let mut other = Follower::new(world.audit(), Place { seq: 5, checkpoint: 1 });
    for _ in 0..2 {
        assert_eq!(other.next(5, usize::MAX).unwrap().lines.len(), 1);
        other.again();
    }
}

/// So many checkpoints, one record apart, as lines of one length.
fn signed(world: &World, count: usize) -> Vec<String> {
    for _ in 0..count {
        let log = world.open();
        write(&log, 1);
        log.close();
    }
    let text = fs::read_to_string(world.audit().join("checkpoints.log")).unwrap();
    let lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    assert!(lines.len() == count && lines.iter().all(|line| line.len() == lines[0].len()));
    lines
}

/// The numbers of the checkpoints that come, and go.
fn numbers(follower: &mut Follower) -> Vec<u64> {
    let numbers = |line: &Vec<u8>| match came(line) {
        Came::Checkpoint { number, .. } => number,
        Came::Record(seq) => panic!("record {seq} has come before"),
    };
    rest(follower).0.iter().map(numbers).collect()
}

#[test]
fn checkpoints_come_once_from_a_file_that_was_written_anew() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let lines = signed(&world, 6);
    let path = world.audit().join("checkpoints.log");
    let mut follower = follower(&world, 6);
    fs::write(&path, lines[..2].concat()).unwrap();
    assert_eq!(numbers(&mut follower), [1, 2]);
    // Another line stands where the second one was read, and ends where it did.
    fs::write(&path, lines[1..4].concat()).unwrap();
    assert_eq!(numbers(&mut follower), [3, 4]);
    fs::write(&path, lines[2..5].concat()).unwrap();
    fs::write(&path, lines[2..].concat()).unwrap();
    assert_eq!(numbers(&mut follower), [5, 6]);
}

#[test]
fn what_is_no_checkpoint_hides_none_behind_it() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let lines = signed(&world, 3);
    let path = world.audit().join("checkpoints.log");
    // Longer than what is read at once, and not a multiple of it.
    let garbage = "x".repeat(200_000);
    fs::write(&path, [&lines[0], garbage.as_str(), "\n", &lines[1], "torn\n", &lines[2]].concat())
        .unwrap();
    assert_eq!(numbers(&mut follower(&world, 3)), [1, 2, 3]);
}

#[test]
fn a_line_comes_once_it_is_whole() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 3);
    log.close();
    let path = segments(&world.audit()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let cut = whole.len() - 10;
    fs::write(&path, &whole[..cut]).unwrap();
    let mut follower = follower(&world, 0);
    assert_eq!(follower.lag().unwrap(), 2);
    let lot = follower.next(10, usize::MAX).unwrap();
    assert_eq!(records(&lot), [1, 2]);
    follower.arrived(&lot);
    assert!(records(&follower.next(10, usize::MAX).unwrap()).is_empty());
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&whole[cut..]).unwrap();
    let lot = follower.next(10, usize::MAX).unwrap();
    assert_eq!(records(&lot), [3]);
    assert_eq!(lot.lines[0], written(&world.audit())[2]);
}

#[test]
fn what_was_deleted_is_counted_as_missed() {
    let world = World { segment_bytes: 2048, ..World::new() };
    let log = world.open();
    write(&log, 100);
    log.close();
    let files = segments(&world.audit());
    let first_of = |path: &PathBuf| -> u64 {
        let name = path.file_stem().unwrap().to_str().unwrap();
        name.strip_prefix("segment-").unwrap().parse().unwrap()
    };
    let third = first_of(&files[2]);
    fs::remove_file(&files[0]).unwrap();
    fs::remove_file(&files[1]).unwrap();
    let (lines, missed) = rest(&mut follower(&world, 5));
    assert_eq!(missed, third - 1 - 5);
    let came: Vec<u64> = records(&Lot { lines, ..Lot::default() });
    assert_eq!(came, (third..=100).collect::<Vec<_>>());
    // One that goes while it is read costs nothing; the next one that is gone is missed.
    let mut follower = follower(&world, third - 1);
    let lot = follower.next(1, usize::MAX).unwrap();
    follower.arrived(&lot);
    fs::remove_file(&files[2]).unwrap();
    fs::remove_file(&files[3]).unwrap();
    let (lines, missed) = rest(&mut follower);
    let (fourth, fifth) = (first_of(&files[3]), first_of(&files[4]));
    assert_eq!(missed, fifth - fourth);
    let came: Vec<u64> = records(&Lot { lines, ..Lot::default() });
    assert_eq!(came, (third + 1..fourth).chain(fifth..=100).collect::<Vec<_>>());
}

/// Waits until all closed segments are compressed.
fn settle(directory: &Path) {
    let plain = || segments(directory).iter().filter(|p| p.extension().unwrap() == "jsonl").count();
    for _ in 0..6000 {
        if plain() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?}", segments(directory));
}

#[test]
fn compressed_segments_are_read_alike() {
    let plain = World::written(100);
    let world = World { compress: true, ..World::new() };
    let log = world.open();
    write(&log, 100);
    settle(&world.audit());
    let (lines, missed) = rest(&mut follower(&world, 0));
    let is_record = |line: &&Vec<u8>| matches!(came(line), Came::Record(_));
    let came: Vec<Vec<u8>> = lines.iter().filter(is_record).cloned().collect();
    assert_eq!((came, missed), (written(&plain.audit()), 0));
    for place in [1, 10, 30, 31, 50] {
        let lot = follower(&world, place).next(1, usize::MAX).unwrap();
        assert_eq!((lot.place.seq, lot.missed), (place + 1, 0));
    }
    // One that is changed by somebody is passed over as far as it does not open.
    let packed: Vec<PathBuf> = segments(&world.audit())
        .into_iter()
        .filter(|path| path.extension().unwrap() == "zst")
        .collect();
    fs::write(&packed[1], b"nothing that was ever compressed").unwrap();
    let (lines, missed) = rest(&mut follower(&world, 0));
    let came = records(&Lot { lines, ..Lot::default() });
    assert!(missed > 0);
    assert_eq!(came.len() as u64 + missed, 100);
    log.close();
}

#[test]
fn the_end_is_found_in_whatever_is_there() {
    let nowhere = tempfile::tempdir().unwrap();
    assert_eq!(Follower::end(nowhere.path()).unwrap(), Place::default());
    assert_eq!(rest(&mut Follower::new(nowhere.path(), Place::default())), (vec![], 0));
    // Far more than what is looked through for a last line.
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 1000);
    log.close();
    let path = segments(&world.audit()).pop().unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 128 << 10);
    assert_eq!(Follower::end(&world.audit()).unwrap().seq, 1000);
    // The next segment was begun just now.
    fs::write(world.audit().join(format!("segment-{:020}.jsonl", 1001)), b"").unwrap();
    assert_eq!(Follower::end(&world.audit()).unwrap().seq, 1000);
    // Only a compressed one is left: that it begins is all that is known without unpacking it.
    fs::write(world.audit().join(format!("segment-{:020}.jsonl.zst", 1001)), b"").unwrap();
    fs::remove_file(world.audit().join(format!("segment-{:020}.jsonl", 1001))).unwrap();
    assert_eq!(Follower::end(&world.audit()).unwrap().seq, 1001);
}

/// A follower from the beginning, and its own disk.
fn watched(world: &World) -> (Follower, Arc<Meddler>) {
    let disk = Arc::new(Meddler::default());
    (Follower::on(disk.clone(), world.audit(), Place::default()), disk)
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(5)
}

#[test]
fn a_disk_that_fails_is_told_and_nothing_is_passed_over() {
    let world = World::written(40);
    let audit = world.audit();
    let whole = rest(&mut follower(&world, 0));
    let is_of = |path: &Path, name: &str| path.to_str().unwrap().contains(name);
    for name in ["checkpoints", "segment-"] {
        for deed in ["open", "read"] {
            let (mut follower, disk) = watched(&world);
            disk.ask(move |done, path| {
                let asked = match done {
                    Deed::Open => "open",
                    Deed::Read(_) => "read",
                    _ => "",
                };
                if asked == deed && is_of(path, name) { Err(broken()) } else { Ok(()) }
            });
            let failed = follower.next(100, usize::MAX).map(|lot| records(&lot)).unwrap_err();
            assert_eq!(failed.raw_os_error(), Some(5), "{deed} {name}");
            assert_eq!(follower.place(), Place::default());
            assert_eq!(follower.lag().is_err(), name == "segment-", "{deed} {name}");
            disk.rest();
            follower.again();
            assert!(rest(&mut follower) == whole, "{deed} {name}");
        }
    }
    assert!(Follower::end(&audit).is_ok());
}

#[test]
fn what_is_deleted_between_being_listed_and_opened_is_missed_and_no_more() {
    let world = World::written(100);
    let files = segments(&world.audit());
    let behind = rest(&mut follower(&world, 0)).0.len();
    let (mut follower, disk) = watched(&world);
    let first = files[0].clone();
    disk.ask(move |done, path| {
        if done == Deed::Open && path == first {
            fs::remove_file(path).ok();
        }
        Ok(())
    });
    assert!(records(&follower.next(100, usize::MAX).unwrap()).is_empty(), "this time");
    disk.rest();
    let (lines, missed) = rest(&mut follower);
    assert!(missed > 0);
    assert_eq!(lines.len() as u64 + missed, behind as u64);
    // The newest one is gone: the one before it is the end, as far as can be told.
    let newest = files.last().unwrap().clone();
    let before = Follower::end(&world.audit()).unwrap().seq;
    disk.ask(move |done, path| {
        if done == Deed::Open && path == newest {
            fs::remove_file(path).ok();
        }
        Ok(())
    });
    let lag = watched_lag(&world, &disk);
    assert!(0 < lag && lag < before, "{lag}");
}

/// How far behind somebody is who has read nothing.
fn watched_lag(world: &World, disk: &Arc<Meddler>) -> u64 {
    Follower::on(disk.clone(), world.audit(), Place::default()).lag().unwrap()
}

#[test]
fn what_is_written_while_it_looks_for_the_next_segment_is_not_passed_over() {
    let world = World { segment_bytes: 1024, ..World::new() };
    let log = Arc::new(world.open());
    write(&log, 1);
    let (mut follower, disk) = watched(&world);
    let writer = Arc::clone(&log);
    let left = std::sync::atomic::AtomicU32::new(60);
    disk.ask(move |done, _| {
        use std::sync::atomic::Ordering::Relaxed;
        let more = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        // Now and then enough for a segment and the next one's beginning.
        if done == Deed::List && more {
            write(&writer, if left.load(Relaxed).is_multiple_of(3) { 7 } else { 1 });
        }
        Ok(())
    });
    let (lines, missed) = rest(&mut follower);
    disk.rest();
    let more = rest(&mut follower);
    assert_eq!((missed, more.1), (0, 0));
    let is_record = |line: &&Vec<u8>| matches!(came(line), Came::Record(_));
    let came: Vec<Vec<u8>> = lines.iter().chain(&more.0).filter(is_record).cloned().collect();
    assert!(came.len() > 50 && segments(&world.audit()).len() > 5);
    assert_eq!(came, written(&world.audit()));
    log.close();
}
