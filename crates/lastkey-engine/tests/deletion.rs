//! Which segments are deleted, exactly, and what becomes of a deletion that is disturbed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{fs, io, path::PathBuf, time::Duration};

use lastkey_crypto::mac;
use lastkey_engine::{
    Timestamp,
    audit::{AuditLog, AuditSink, Checkpoint, CheckpointKind, Head, Retention},
};
use log::{Deed, World, segments};

const START: i64 = 1_767_225_600_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(START + millis)
}

/// Appends a record a second, each of a request that was signed half a second before.
fn write(log: &AuditLog, numbers: std::ops::Range<i64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in numbers {
        let body = format!(
            r#""time":"{}","action":"Encrypt","nonce":"{n:016x}","signed":{n},"outcome":"ok""#,
            at(n * 1000)
        );
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    }
}

fn sizes(world: &World) -> Vec<u64> {
    segments(&world.audit()).iter().map(|path| fs::metadata(path).unwrap().len()).collect()
}

/// The last line of each segment: its number, its time in seconds, and its hash.
fn ends(world: &World) -> Vec<(Head, i64)> {
    let end = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().last().unwrap();
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let head =
            Head { seq: record["seq"].as_u64().unwrap(), hash: mac::sha256(&[line.as_bytes()]) };
        (head, record["signed"].as_i64().unwrap())
    };
    segments(&world.audit()).iter().map(end).collect()
}

/// A log of some segments, closed, and the world in which it is kept so.
fn kept(retention: Retention) -> World {
    let world = World::new();
    let log = world.open();
    write(&log, 0..120);
    log.close();
    World { retention, ..world }
}

fn by_bytes(bytes: u64) -> Retention {
    Retention { bytes: Some(bytes), age: None }
}

#[test]
fn as_few_segments_go_as_it_takes() {
    let world = kept(Retention::default());
    let (sizes, ends) = (sizes(&world), ends(&world));
    let all: u64 = sizes.iter().sum();
    assert!(sizes.len() > 4);
    for (bytes, gone) in [
        (all, 0),
        (all - 1, 1),
        (all - sizes[0], 1),
        (all - sizes[0] - 1, 2),
        (all - sizes[0] - sizes[1] - sizes[2], 3),
        // The open one stays in any case.
        (0, sizes.len() - 1),
    ] {
        let world = kept(by_bytes(bytes));
        let log = world.open();
        let deletion = log.to_delete(None).unwrap();
        assert_eq!(deletion.is_some(), gone > 0, "{bytes}");
        if let Some(deletion) = deletion {
            assert_eq!(deletion.segments, gone as u64);
            assert_eq!(deletion.bytes, sizes[..gone].iter().sum::<u64>());
            assert_eq!(deletion.through.seq, ends[gone - 1].0.seq);
        }
    }
}

#[test]
fn an_age_is_counted_from_the_newest_record_of_a_segment() {
    let age = Some(Duration::from_secs(60));
    let world = kept(Retention { bytes: None, age });
    let ends = ends(&world);
    let log = world.open();
    for (index, (head, second)) in ends[..ends.len() - 1].iter().enumerate() {
        let exactly = at((second + 60) * 1000);
        let before = log.to_delete(Some(exactly)).unwrap().map(|deletion| deletion.segments);
        assert_eq!(before.unwrap_or(0), index as u64, "it is not older than that");
        let after = log.to_delete(Some(exactly.after(Duration::from_millis(1)))).unwrap().unwrap();
        assert_eq!((after.segments, after.through), (index as u64 + 1, *head));
    }
}

/// Appends records of one time, with these nonces.
fn write_at(log: &AuditLog, time: Timestamp, signed: std::ops::Range<i64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in signed {
        let body = format!(
            r#""time":"{time}","action":"Encrypt","nonce":"{n:016x}","signed":{n},"outcome":"ok""#
        );
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    }
}

#[test]
fn the_seconds_of_the_nonces_that_go_are_told_and_no_others() {
    let world = kept(by_bytes(0));
    let ends = ends(&world);
    let (_, last) = ends[ends.len() - 2];
    let log = world.open();
    // A plain segment is read, however old it is.
    for now in [None, Some(at(last * 1000)), Some(at(last * 1000).after(400 * DAY))] {
        assert_eq!(log.to_delete(now).unwrap().unwrap().lost.to_string(), format!("0..{last}"));
    }
    // What an earlier deletion has told is told again, once its segments are gone.
    let told = |text: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let time = at(0);
        let body = format!(
            r#""time":"{time}","action":"DeleteAudit","signed_for":"{text}","outcome":"ok""#
        );
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    };
    told("7000..8000");
    told("5000..6000 2000000000..2000000001");
    let first = log.to_delete(None).unwrap().unwrap();
    assert_eq!(first.lost.to_string(), format!("0..{last}"));
    log.delete(&first).unwrap();
    write(&log, 1000..1120);
    let lost = log.to_delete(None).unwrap().unwrap().lost;
    let (mut ranges, end) = (lost.iter(), ends[ends.len() - 1].1);
    assert_eq!(ranges.next(), Some((last + 1, end)), "{lost}");
    assert!(ranges.next().is_some_and(|(first, last)| first == 1000 && last > 1080), "{lost}");
    assert!(lost.to_string().ends_with(" 5000..6000 2000000000..2000000001"), "{lost}");
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn a_segment_of_a_clock_that_was_ahead_is_told_together_with_an_older_one() {
    let world = World { retention: by_bytes(0), ..World::new() };
    let log = world.open();
    let far = 2_000_000_000;
    write_at(&log, Timestamp::from_millis(far * 1000), far..far + 40);
    write(&log, 0..60);
    let later = at(60_000).after(DAY);
    let lost = log.to_delete(Some(later)).unwrap().unwrap().lost;
    let ranges: Vec<_> = lost.iter().collect();
    assert_eq!((ranges.len(), ranges[0].0, ranges[1]), (2, 0, (far, far + 39)), "{lost}");
}

/// Waits until every segment but the open one is compressed.
fn settle(world: &World) {
    for _ in 0..1000 {
        let files = segments(&world.audit());
        if files.iter().filter(|path| path.extension().unwrap() == "jsonl").count() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("closed segments are not compressed");
}

#[test]
fn a_block_of_long_ago_is_told_as_its_index_has_it() {
    let world = World { compress: true, retention: by_bytes(0), ..World::new() };
    let log = world.open();
    // Each segment is one block. Ten minutes between two requests.
    let start = START / 1000;
    for n in 0..40 {
        write_at(&log, at(n * 600_000), start + n * 600..start + n * 600 + 1);
    }
    settle(&world);
    let last = start + 39 * 600;
    let exactly = log.to_delete(None).unwrap().unwrap();
    assert!(exactly.lost.iter().all(|(first, last)| first == last), "{}", exactly.lost);
    let (_, newest) = exactly.lost.iter().last().unwrap();
    let lost = |now: i64| log.to_delete(Some(at((now - start) * 1000))).unwrap().unwrap().lost;
    assert_eq!(lost(last), exactly.lost);
    let day = 24 * 60 * 60;
    assert_eq!(lost(newest + day + 1).to_string(), format!("{}..{}", start - 960, newest + 900));
    // The clock was ahead while one of them was written: it is read, and the gap stays.
    let far = start + 400 * day;
    write_at(&log, at((far - start) * 1000), far..far + 60);
    settle(&world);
    for now in [newest + day + 1, far + 2 * day] {
        let lost = lost(now);
        assert!(lost.has(start) && lost.has(newest) && lost.has(far), "{lost}");
        assert!(!lost.has(last + 901) && !lost.has(far - 961), "{lost}");
    }
}

/// Age would stop at it until that time has come.
#[test]
fn a_segment_dated_in_the_future_goes_with_the_next_that_is_old() {
    let age = Some(Duration::from_secs(60));
    let world = World { retention: Retention { bytes: None, age }, ..World::new() };
    let log = world.open();
    write(&log, 0..60);
    let far = 2_000_000_000;
    write_at(&log, Timestamp::from_millis(far * 1000), far..far + 60);
    let ahead = segments(&world.audit()).len();
    write(&log, 100..220);
    let (sizes, ends) = (sizes(&world), ends(&world));
    let chosen = |second: i64| log.to_delete(Some(at(second * 1000))).unwrap().unwrap();
    let at_least = ends.iter().position(|(_, second)| *second >= far).unwrap();
    // Nothing behind it is old yet.
    assert_eq!(chosen(161).segments, at_least as u64);
    let next = ends.iter().skip(ahead).find(|(_, second)| *second < far).unwrap();
    let deletion = chosen(next.1 + 61);
    assert_eq!((deletion.through, deletion.segments), (next.0, ahead as u64 + 1));
    assert_eq!(deletion.bytes, sizes[..=ahead].iter().sum::<u64>());
    assert!(deletion.lost.has(far) && deletion.lost.has(far + 59) && !deletion.lost.has(1_000));
    log.delete(&deletion).unwrap();
    assert!(log.verify(&[]).unwrap().ok);
    // The newest ones stay, whatever they say.
    let world = World { retention: Retention { bytes: None, age }, ..World::new() };
    let log = world.open();
    write_at(&log, Timestamp::from_millis(far * 1000), far..far + 60);
    assert_eq!(log.to_delete(Some(at(1_000_000_000))).unwrap(), None);
}

#[test]
fn an_open_segment_without_a_record_does_not_stand_in_the_way() {
    // Whether it comes directly behind what goes, or not.
    for bytes in [6_000, 0] {
        delete_beside_an_empty_one(bytes);
    }
}

fn delete_beside_an_empty_one(bytes: u64) {
    let world = World { retention: by_bytes(bytes), ..World::new() };
    let log = world.open();
    write(&log, 0..60);
    // The disk has no room for the next segment's first record.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    world.disk.ask(|deed, _| {
        if deed == Deed::Allocate { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let mut taken = 0;
    while runtime.block_on(log.append(br#""action":"Encrypt","outcome":"ok""#.to_vec())).is_ok() {
        taken += 1;
        assert!(taken < 1000, "a segment has some room reserved, and no more");
    }
    let empty = segments(&world.audit()).pop().unwrap();
    assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
    // Deleting makes room, even now.
    let before = segments(&world.audit());
    let deletion = log.to_delete(None).unwrap().unwrap();
    log.delete(&deletion).unwrap();
    assert_eq!(bytes == 0, segments(&world.audit()) == [empty]);
    assert_eq!(segments(&world.audit()).len() as u64, before.len() as u64 - deletion.segments);
    world.disk.rest();
    write(&log, 100..101);
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.deleted_through == deletion.through.seq, "{found:?}");
}

#[test]
fn checkpoints_go_with_the_records_that_they_were_about() {
    let world = kept(Retention::default());
    let (sizes, ends, before) = (sizes(&world), ends(&world), world.checkpoints());
    let all: u64 = sizes.iter().sum();
    let world = World { retention: by_bytes(all - sizes[0] - sizes[1]), ..world };
    let log = world.open();
    let deletion = log.to_delete(None).unwrap().unwrap();
    let (through, _) = ends[1];
    assert_eq!(deletion.through, through);
    log.delete(&deletion).unwrap();
    let seqs = |checkpoints: &[Checkpoint]| -> Vec<u64> {
        checkpoints.iter().map(|found| found.statement.head.seq).collect()
    };
    // One was signed at the end of each segment.
    assert!(seqs(&before).contains(&through.seq));
    let stay: Vec<u64> = seqs(&before).into_iter().filter(|seq| *seq > through.seq).collect();
    assert!(stay.len() > 2 && stay.len() < before.len());
    let after = world.checkpoints();
    assert_eq!(seqs(&after), [&stay[..], &[through.seq]].concat());
    assert_eq!(after.last().unwrap().statement.kind, CheckpointKind::Retention);
}

#[test]
fn a_closed_segment_without_a_record_is_no_log_as_it_was_written() {
    let world = kept(by_bytes(0));
    let files = segments(&world.audit());
    fs::write(&files[1], b"").unwrap();
    let world = World { retention: by_bytes(sizes(&world)[1..].iter().sum()), ..world };
    let log = world.open();
    let refused = log.to_delete(None).unwrap_err().to_string();
    assert!(refused.contains("audit verify"), "{refused}");
}

#[test]
fn files_that_the_disk_does_not_let_go_of_go_the_next_time() {
    let world = kept(by_bytes(0));
    let log = world.open();
    let files = segments(&world.audit());
    let deletion = log.to_delete(None).unwrap().unwrap();
    let second = files[1].clone();
    world.disk.ask(move |deed, path| {
        let held = deed == Deed::Remove && path == second;
        if held { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    });
    assert_eq!(log.delete(&deletion).unwrap_err().raw_os_error(), Some(5));
    assert!(!files[0].exists() && files[1].exists() && files[2].exists());
    assert!(log.verify(&[]).unwrap().ok, "it was stated before");
    world.disk.rest();
    log.delete(&deletion).unwrap();
    assert_eq!(segments(&world.audit()).len(), 1);
    assert!(log.verify(&[]).unwrap().ok);
}
