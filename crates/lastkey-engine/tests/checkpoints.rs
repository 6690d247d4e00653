//! Checkpoints, and what somebody can verify who has nothing but the files and the public key.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{fs, io, sync::Arc, time::Duration};

use lastkey_crypto::{KeyMaterial, mac, signing::SigningKey};
use lastkey_engine::audit::{AuditSink, Checkpoint, CheckpointKind, Offline, offline};
use lastkey_store::disk::FileSystem;
use log::{Deed, World, segments, verify_by, write};

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
