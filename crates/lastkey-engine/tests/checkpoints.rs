//! Checkpoints, and what somebody can verify who has nothing but the files and the public key.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs, io,
    io::{Seek as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::{KeyMaterial, mac, signing::SigningKey};
use lastkey_engine::audit::{
    AuditSink, Checkpoint, CheckpointKind, Follower, Offline, Place, Retention, offline,
};
use lastkey_store::disk::FileSystem;
use log::{Deed, Meddler, World, segments, verify_by, write};

#[test]
fn a_closed_log_verifies_with_the_public_key_alone() {
    let world = World::written(100);
    assert!(segments(&world.audit()).len() > 3);
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(world.audit()).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let found = verify_by(copy.path(), world.signing_key().public());
    assert!(found.ok, "{found:?}");
    assert_eq!((found.records, found.head_seq, found.checkpoint_seq), (100, 100, 100));
    assert_eq!(found.uncovered, 0);
    assert!(found.bytes > 10_000);
}

#[test]
fn there_is_one_at_each_rotation_at_close_and_when_it_is_time() {
    let world = World::written(100);
    let segments = segments(&world.audit()).len();
    let kinds: Vec<CheckpointKind> =
        world.checkpoints().iter().map(|found| found.statement.kind).collect();
    let rotations = kinds.iter().filter(|kind| **kind == CheckpointKind::Rotation).count();
    assert_eq!(rotations, segments - 1);
    assert_eq!(kinds.last(), Some(&CheckpointKind::Close));

    let world = World { every: Duration::from_millis(50), segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 3);
    while world.checkpoints().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Without new records there are no new checkpoints.
    std::thread::sleep(Duration::from_millis(200));
    let found = world.checkpoints();
    assert!(found.len() <= 2, "{found:?}");
    assert_eq!(found.last().unwrap().statement.head.seq, 3);
    assert_eq!(found[0].statement.kind, CheckpointKind::Time);
    drop(log);
    // Another start goes on counting.
    let log = world.open();
    write(&log, 1);
    log.close();
    let numbers: Vec<u64> = world.checkpoints().iter().map(|c| c.statement.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!(world.verify().ok);
}

/// Somebody who owns the authentication key, and so the journal, rewrites a record and everything
/// behind it.
fn rewrite_from(world: &World, seq: u64) {
    let mut prev: Option<[u8; 32]> = None;
    for path in segments(&world.audit()) {
        let mut text = String::new();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let mut line = line.to_owned();
            if record["seq"] == seq {
                line = line.replace("Encrypt", "Decrypt");
            }
            if let Some(prev) = prev {
                let old = record["prev"].as_str().unwrap();
                line = line.replacen(old, &hex::encode(prev), 1);
            }
            prev = Some(mac::sha256(&[line.as_bytes()]));
            text.push_str(&line);
            text.push('\n');
        }
        fs::write(path, text).unwrap();
    }
}

#[test]
fn a_log_rewritten_without_the_checkpoint_key_is_found_out() {
    let world = World::written(100);
    rewrite_from(&world, 40);
    let found = world.verify();
    assert!(!found.ok);
    let first = found.problem.unwrap();
    assert_eq!(first.kind, "changed", "{first:?}");
    assert!(first.what.contains("checkpoint"), "{first:?}");
    assert!(found.checkpoint_seq < 40, "what came before is still vouched for");

    // Taking away the checkpoints that say so leaves what they said unvouched for, and a witness
    // that was kept elsewhere finds it out.
    let all = fs::read_to_string(world.audit().join("checkpoints.log")).unwrap();
    let before: String = all
        .lines()
        .filter(|line| Checkpoint::parse(line).unwrap().statement.head.seq < 40)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(world.audit().join("checkpoints.log"), before).unwrap();
    let found = world.verify();
    assert!(found.ok && found.checkpoint_seq < 40 && found.uncovered > 60, "{found:?}");
    let witness = vec![all.lines().last().unwrap().to_owned()];
    let trust = Offline { keys: &[world.signing_key().public()], witnesses: &witness };
    let found = offline(&FileSystem, &world.audit(), &trust, &Arc::default()).unwrap();
    assert!(!found.ok && found.problem.unwrap().what.contains("checkpoint"));
}

#[test]
fn signatures_by_another_key_and_signatures_that_do_not_hold_are_found_out() {
    let world = World::written(100);
    let stranger = SigningKey::from_seed(KeyMaterial::from_slice(&[1; 32])).unwrap();
    let found = verify_by(&world.audit(), stranger.public());
    assert!(!found.ok && found.problem.unwrap().kind == "unauthenticated");

    // A forger signs for the rewritten log by a key of their own, under our key's name.
    rewrite_from(&world, 40);
    let path = world.audit().join("checkpoints.log");
    let forged: String = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| {
            let statement = Checkpoint::parse(line).unwrap().statement;
            let by = statement.sign(&stranger).to_line();
            format!("{}\n", by.replace(&stranger.public().id(), &world.signing_key().public().id()))
        })
        .collect();
    fs::write(&path, forged).unwrap();
    let found = world.verify();
    assert!(!found.ok && found.checkpoint_seq == 0, "{found:?}");
    assert!(found.problems.iter().all(|problem| problem.kind == "unauthenticated"), "{found:?}");
}

#[test]
fn checkpoints_and_segments_that_were_taken_away_are_missed() {
    type Tamper = fn(&World);
    let cases: [(&str, Tamper, &str); 6] = [
        (
            "no checkpoints",
            |w| fs::remove_file(w.audit().join("checkpoints.log")).unwrap(),
            "unauthenticated",
        ),
        (
            "one out of the middle",
            |w| {
                let path = w.audit().join("checkpoints.log");
                let mut lines: Vec<String> =
                    fs::read_to_string(&path).unwrap().lines().map(|l| format!("{l}\n")).collect();
                lines.remove(1);
                fs::write(path, lines.concat()).unwrap();
            },
            "missing",
        ),
        ("the oldest segment", |w| fs::remove_file(&segments(&w.audit())[0]).unwrap(), "missing"),
        ("one in the middle", |w| fs::remove_file(&segments(&w.audit())[2]).unwrap(), "missing"),
        (
            "the newest segment",
            |w| fs::remove_file(segments(&w.audit()).last().unwrap()).unwrap(),
            "truncated",
        ),
        (
            "the end",
            |w| {
                let path = segments(&w.audit()).pop().unwrap();
                let text = fs::read(&path).unwrap();
                fs::write(path, &text[..text.len() - 20]).unwrap();
            },
            "truncated",
        ),
    ];
    for (name, tamper, kind) in cases {
        let world = World::written(100);
        tamper(&world);
        let found = world.verify();
        assert!(!found.ok, "{name}: {found:?}");
        assert_eq!(found.problem.unwrap().kind, kind, "{name}");
    }
}

#[test]
fn a_copy_of_a_running_log_may_end_in_the_middle() {
    let world = World { segment_bytes: 1 << 20, every: Duration::from_millis(20), ..World::new() };
    let log = world.open();
    write(&log, 10);
    while !world.audit().join("checkpoints.log").exists() || world.checkpoints().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    let copy = tempfile::tempdir().unwrap();
    fs::copy(world.audit().join("checkpoints.log"), copy.path().join("checkpoints.log")).unwrap();
    write(&log, 2);
    let newest = segments(&world.audit()).pop().unwrap();
    let bytes = fs::read(&newest).unwrap();
    fs::write(copy.path().join(newest.file_name().unwrap()), &bytes[..bytes.len() - 30]).unwrap();
    let found = verify_by(copy.path(), world.signing_key().public());
    assert!(found.ok, "{found:?}");
    assert_eq!((found.head_seq, found.checkpoint_seq, found.uncovered), (11, 10, 1));
}

#[test]
fn a_torn_last_checkpoint_is_written_again() {
    let world = World::written(50);
    let path = world.audit().join("checkpoints.log");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], br#"{"checkpoint":1,"lo"#].concat()).unwrap();
    let log = world.open();
    write(&log, 1);
    log.close();
    let found = world.verify();
    assert!(found.ok && found.checkpoint_seq == 51, "{found:?}");
}

/// Writes of several checkpoints in one place, none of which was synced, may have come to the disk in
/// pieces.
#[test]
fn what_a_crash_made_of_unsynced_checkpoints_is_written_again() {
    let world = World::written(50);
    let path = world.audit().join("checkpoints.log");
    let whole = fs::read(&path).unwrap();
    let start = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let last = &whole[start..];
    let mixed = [&last[..200], &[0; 100][..], &last[300..]].concat();
    let mut forged = last.to_vec();
    let digit = forged.windows(7).position(|text| text == b"\"seq\":5").unwrap() + 6;
    forged[digit] = b'4';
    for torn in [&mixed[..], b"=\"}\n", &[&mixed[..], b"=\"}\n"].concat(), &forged] {
        fs::write(&path, [&whole[..], torn].concat()).unwrap();
        let log = world.open();
        write(&log, 1);
        log.close();
        let found = world.verify();
        assert!(found.ok, "{found:?}");
        assert_eq!(found.checkpoint_seq, found.head_seq);
    }
    // No more than a crash makes goes: the rest is for a verification to show.
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"a\nb\nc\n"].concat()).unwrap();
    world.open().close();
    assert!(!world.verify().ok);
}

/// What was written and could not be synced may lie there, and be longer than what comes instead.
#[test]
fn nothing_stays_of_a_checkpoint_that_was_not_synced() {
    let world = World::new();
    let log = world.open();
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    world.disk.ask(move |deed, path| {
        let is_first = || count.fetch_add(1, Ordering::Relaxed) == 0;
        if deed == Deed::Sync && path.ends_with("checkpoints.log") && is_first() {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    });
    while segments(&world.audit()).len() < 2 {
        write(&log, 1);
    }
    while failed.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    write(&log, 1);
    log.close();
    let kinds: Vec<CheckpointKind> =
        world.checkpoints().iter().map(|found| found.statement.kind).collect();
    assert_eq!(kinds, [CheckpointKind::Close], "in place of the longer one of the rotation");
    assert!(world.verify().ok);
}

/// The newest checkpoint of another log, signed by the same key.
fn of_another_log(records: usize) -> String {
    let world = World::written(records);
    let mut statement = world.checkpoints().pop().unwrap().statement;
    statement.log[0] ^= 1;
    statement.sign(&world.signing_key()).to_line()
}

#[test]
fn a_witness_of_another_log_is_none_of_this_one() {
    let world = World::written(50);
    let trust = Offline { keys: &[world.signing_key().public()], witnesses: &[of_another_log(40)] };
    let found = offline(&FileSystem, &world.audit(), &trust, &Arc::default()).unwrap();
    assert_eq!(found.problems.len(), 1, "{found:?}");
    let problem = &found.problems[0];
    assert_eq!((problem.segment.as_str(), problem.kind), ("the witness", "unauthenticated"));
    assert!(problem.what.contains("another log"), "{problem:?}");
    assert_eq!(found.checkpoint_seq, 50, "it vouches for nothing");
}

#[test]
fn a_checkpoint_of_another_log_counts_for_nothing_when_it_is_found_among_ours() {
    let world = World::written(3);
    let path = world.audit().join("checkpoints.log");
    let ours = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{ours}{}\n", of_another_log(100))).unwrap();
    let log = world.open();
    write(&log, 1);
    log.close();
    let (first, last) = {
        let all = world.checkpoints();
        (all[0].clone(), all.last().unwrap().clone())
    };
    assert_eq!(last.statement.head.seq, 4, "what was written since is signed for");
    assert_eq!(last.statement.log, first.statement.log);
}

#[test]
fn checkpoints_that_the_disk_does_not_give_are_not_taken_for_none() {
    let world = World::written(20);
    let log = world.open();
    world.disk.ask(|deed, path| {
        let refused = deed == Deed::Open && path.ends_with("checkpoints.log");
        if refused { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    });
    assert_eq!(log.verify(&[]).unwrap_err().raw_os_error(), Some(5));
    let trust = Offline { keys: &[world.signing_key().public()], witnesses: &[] };
    let refused = offline(&*world.disk, &world.audit(), &trust, &Arc::default()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(5));
    world.disk.rest();
    assert!(log.verify(&[]).unwrap().ok);
}

/// A closed log of some records, with so many checkpoints more before its newest one, which alone
/// has a signature that holds. It stands behind the last of the others.
fn with_many(count: u64) -> World {
    let world = World::written(50);
    let newest = world.checkpoints().pop().unwrap();
    let (line, number) = (newest.to_line(), newest.statement.number);
    let mut text = String::new();
    let mut last = String::new();
    for n in 1..=count {
        last = line.replacen(&format!(r#""number":{number},"#), &format!(r#""number":{n},"#), 1);
        assert!(Checkpoint::parse(&last).is_some());
        text.push_str(&last);
        text.push('\n');
    }
    let prev = mac::sha256(&[last.as_bytes()]);
    let statement =
        lastkey_engine::audit::Statement { number: count + 1, prev, ..newest.statement };
    text.push_str(&statement.sign(&world.signing_key()).to_line());
    text.push('\n');
    fs::write(world.audit().join("checkpoints.log"), text).unwrap();
    world
}

/// Counts the bytes that are asked for of the file of checkpoints.
fn counted(disk: &Meddler) -> Arc<AtomicUsize> {
    let bytes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&bytes);
    disk.ask(move |deed, path| {
        if let Deed::Read(more) = deed
            && path.ends_with("checkpoints.log")
        {
            count.fetch_add(more, Ordering::Relaxed);
        }
        Ok(())
    });
    bytes
}

const MANY: u64 = 100_000;

#[test]
fn a_start_reads_the_end_of_the_checkpoints_however_many_there_are() {
    for (count, least) in [(3, 0), (MANY, 30 << 20)] {
        let world = with_many(count);
        let length = fs::metadata(world.audit().join("checkpoints.log")).unwrap().len();
        assert!(length > least, "{length}");
        let bytes = counted(&world.disk);
        let log = world.open();
        let read = bytes.load(Ordering::Relaxed);
        assert!(0 < read && read <= 256 << 10, "{read} bytes of {length}");
        assert_eq!(log.newest_checkpoint().unwrap().0, 50);
        write(&log, 1);
        log.close();
        world.disk.rest();
        // It goes on behind the last one.
        let text = fs::read_to_string(world.audit().join("checkpoints.log")).unwrap();
        let lines: Vec<&str> = text.lines().rev().take(2).collect();
        let statement = Checkpoint::parse(lines[0]).unwrap().statement;
        assert_eq!((statement.number, statement.head.seq), (count + 2, 51));
        assert_eq!(statement.prev, mac::sha256(&[lines[1].as_bytes()]));
    }
}

#[test]
fn a_follower_reads_what_is_new_of_the_checkpoints_however_many_there_are() {
    let world = with_many(MANY);
    let disk = Arc::new(Meddler::default());
    let bytes = counted(&disk);
    let mut follower = Follower::on(disk, world.audit(), Place { seq: 50, checkpoint: MANY - 1 });
    let mut numbers = |world: &World| {
        let lot = follower.next(100, usize::MAX).unwrap();
        follower.arrived(&lot);
        assert_eq!(lot.place, Follower::end(&world.audit()).unwrap());
        let read = lot.lines.iter().filter_map(|line| {
            let line = std::str::from_utf8(line).unwrap();
            Checkpoint::parse(line).map(|found| found.statement.number)
        });
        read.collect::<Vec<_>>()
    };
    assert_eq!(numbers(&world), [MANY, MANY + 1]);
    for n in 2..5 {
        let log = world.open();
        write(&log, 1);
        log.close();
        assert_eq!(numbers(&world), [MANY + n]);
        assert!(numbers(&world).is_empty());
    }
    let read = bytes.load(Ordering::Relaxed);
    assert!(read < 256 << 10, "{read} bytes");
}

#[test]
fn nothing_stops_because_the_checkpoints_are_over_a_gigabyte() {
    let world = World::written(50);
    let path = world.audit().join("checkpoints.log");
    let lines = fs::read(&path).unwrap();
    // A hole, which no disk has to hold.
    let mut file = fs::File::create(&path).unwrap();
    file.seek(io::SeekFrom::Start(5 << 28)).unwrap();
    file.write_all(&[&b"\n"[..], &lines].concat()).unwrap();
    let log = world.open();
    write(&log, 1);
    log.close();
    let end = Follower::end(&world.audit()).unwrap();
    assert_eq!(end.seq, 51);
    let place = Place { seq: 50, checkpoint: end.checkpoint - 1 };
    let lot = Follower::new(world.audit(), place).next(100, usize::MAX).unwrap();
    assert_eq!((lot.lines.len(), lot.place), (2, end));
}

#[test]
fn what_a_start_does_not_look_at_a_verification_still_finds() {
    let world = World::written(100);
    let path = world.audit().join("checkpoints.log");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let stranger = SigningKey::from_seed(KeyMaterial::from_slice(&[1; 32])).unwrap();
    let forged = Checkpoint::parse(lines[0]).unwrap().statement.sign(&stranger).to_line();
    let ours = world.signing_key().public().id();
    let forged = forged.replace(&stranger.public().id(), &ours);
    fs::write(&path, text.replacen(lines[0], &forged, 1)).unwrap();
    let log = world.open();
    write(&log, 1);
    for found in [log.verify(&[]).unwrap(), world.verify()] {
        assert!(!found.ok && found.problem.unwrap().kind == "unauthenticated");
    }
}

/// All checkpoints of a log leave, in their order, whatever is deleted while somebody follows.
#[test]
fn a_deletion_costs_a_follower_no_checkpoint() {
    let world = World { retention: Retention { bytes: Some(14_000), age: None }, ..World::new() };
    let log = world.open();
    write(&log, 100);
    let mut follower = Follower::new(world.audit(), Place::default());
    let mut came = Vec::new();
    let mut take = |follower: &mut Follower, lines: usize| {
        let lot = follower.next(lines, usize::MAX).unwrap();
        follower.arrived(&lot);
        let read = lot.lines.iter().filter_map(|line| {
            Checkpoint::parse(std::str::from_utf8(line).unwrap()).map(|c| c.statement.number)
        });
        came.extend(read);
        lot.lines.len()
    };
    // It has read some, and knows of checkpoints about what it has not read.
    take(&mut follower, 10);
    let deletion = log.to_delete(None).unwrap().unwrap();
    log.delete(&deletion).unwrap();
    // Those about what was deleted went with it.
    let kept = world.checkpoints();
    let (stated, others) = kept.split_last().unwrap();
    assert_eq!(stated.statement.kind, CheckpointKind::Retention);
    assert!(!others.is_empty());
    assert!(others.iter().all(|found| found.statement.head.seq > deletion.through.seq));
    take(&mut follower, 1);
    write(&log, 50);
    log.close();
    while take(&mut follower, 7) > 0 {}
    let newest = world.checkpoints().pop().unwrap().statement.number;
    assert_eq!(came, (1..=newest).collect::<Vec<_>>());
    assert!(world.verify().ok);
}

#[test]
fn more_checkpoints_than_are_held_come_one_after_the_other() {
    const COUNT: u64 = 10_000;
    let world = with_many(COUNT);
    let mut follower = Follower::new(world.audit(), Place { seq: 50, checkpoint: 0 });
    let mut next = 1;
    loop {
        let lot = follower.next(100, usize::MAX).unwrap();
        assert!(lot.lines.len() < 5000, "{}", lot.lines.len());
        if lot.lines.is_empty() {
            break;
        }
        for line in &lot.lines {
            let found = Checkpoint::parse(std::str::from_utf8(line).unwrap()).unwrap();
            assert_eq!(found.statement.number, next);
            next += 1;
        }
        follower.arrived(&lot);
    }
    assert_eq!(next, COUNT + 2);
}
