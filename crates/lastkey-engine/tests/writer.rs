//! The writer of the log: its limits, a disk that refuses, its end, and what others may ask it
//! while it writes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lastkey_crypto::{KeyMaterial, mac};
use lastkey_engine::audit::{
    AuditError, AuditLog, AuditOptions, AuditSink, CheckpointKind, Head, Progress, Query, Ticket,
};
use lastkey_store::disk::{Access, Disk as _, FileSystem};
use log::{Deed, World, segments, verify_by, write};

fn answer(ticket: Ticket) -> Result<u64, AuditError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ticket)
}

/// A body of this many bytes.
fn body(bytes: usize) -> Vec<u8> {
    let (before, after) = (r#""time":"2026-01-01T00:00:00.000Z","pad":""#, "\"");
    let pad = "x".repeat(bytes - before.len() - after.len());
    format!("{before}{pad}{after}").into_bytes()
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

#[test]
fn the_largest_record_is_taken_and_a_larger_one_refused() {
    // A batch of a mebibyte, without the frame's fields and what a line adds.
    const MOST: usize = (1 << 20) - 112 - 128;
    let world = World::new();
    let log = world.open();
    assert_eq!(answer(log.append(body(MOST))), Ok(1));
    let refused = answer(log.append(body(MOST + 1))).unwrap_err();
    assert!(matches!(&refused, AuditError::Failed(why) if why.contains("too large")), "{refused}");
    assert_eq!(answer(log.append(body(100))), Ok(2));
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 2, "{found:?}");
}

#[test]
fn a_journal_that_is_filled_to_its_last_byte_is_closed_without_growing() {
    // A file's room for frames, and what each takes beside its line.
    const ROOM: usize = (4 << 20) - 4096;
    const FRAME: usize = 112;
    let other = World::new();
    let log = other.open();
    assert_eq!(answer(log.append(body(100))), Ok(1));
    log.close();
    let line = fs::metadata(&segments(&other.audit())[0]).unwrap().len() as usize;
    let world = World::new();
    let log = world.open();
    for number in 1..=4 {
        assert_eq!(answer(log.append(body(ROOM / 4 - FRAME - (line - 100)))), Ok(number));
    }
    log.close();
    for half in ["journal-0", "journal-1"] {
        let length = fs::metadata(world.place.path().join("journal").join(half)).unwrap().len();
        assert_eq!(length, 4 << 20, "{half}");
    }
    let log = world.open();
    assert_eq!(answer(log.append(body(100))), Ok(5));
    log.close();
    assert!(world.verify().ok);
}

#[test]
fn what_comes_together_is_numbered_in_its_order_over_many_batches() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    let tickets: Vec<Ticket> = (0..60).map(|n| log.append(body(100_000 + n))).collect();
    let numbers: Vec<u64> = tickets.into_iter().map(|ticket| answer(ticket).unwrap()).collect();
    assert_eq!(numbers, (1..=60).collect::<Vec<_>>());
    // Ten fit into a batch and are less than a segment; twenty are more.
    assert!(segments(&world.audit()).len() >= 3);
    let lengths: Vec<usize> = log
        .query(&Query { limit: 100, ..Query::default() })
        .unwrap()
        .records
        .iter()
        .map(|record| record["pad"].as_str().unwrap().len())
        .collect();
    assert!(lengths.windows(2).all(|pair| pair[1] == pair[0] + 1), "{lengths:?}");
    log.close();
    assert!(world.verify().ok);
}

#[test]
fn a_disk_without_room_is_said_and_over_when_there_is_some() {
    let world = World::new();
    let log = world.open();
    write(&log, 3);
    for (kind, expected) in [
        (io::ErrorKind::StorageFull, Some(AuditError::Full)),
        (io::ErrorKind::QuotaExceeded, Some(AuditError::Full)),
        (io::ErrorKind::Other, None),
    ] {
        let before = log.head();
        world.disk.ask(move |deed, path| {
            let journal = path.file_name().is_some_and(|name| name == "journal-1");
            if deed == Deed::Write && journal { Err(kind.into()) } else { Ok(()) }
        });
        let refused = answer(log.append(body(100))).unwrap_err();
        match expected {
            Some(expected) => assert_eq!(refused, expected),
            None => assert!(matches!(refused, AuditError::Failed(_)), "{refused:?}"),
        }
        assert_eq!((log.health(), log.head()), (Err(refused), before));
        world.disk.rest();
        assert_eq!(answer(log.append(body(100))), Ok(before.seq + 1));
        assert_eq!(log.health(), Ok(()));
    }
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 6, "{found:?}");
}

/// A disk with room for a few records, but not for a whole step of what is reserved ahead.
#[test]
fn where_there_is_no_room_for_a_step_what_is_needed_is_reserved() {
    let world = World::new();
    let log = world.open();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    world.disk.ask(move |deed, _| {
        let is_step =
            deed == Deed::Allocate && count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        if is_step { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    for number in 1..=3 {
        assert_eq!(answer(log.append(body(100))), Ok(number));
    }
    assert_eq!((log.health(), asked.load(Ordering::SeqCst)), (Ok(()), 6));
    world.disk.rest();
    log.close();
    assert!(world.verify().ok);
}

/// What is reserved ahead goes back to the disk with a segment's end; what an earlier release left
/// with closed ones, at a start.
#[test]
fn closed_segments_keep_no_more_of_the_disk_than_they_hold() {
    let world = World { segment_bytes: 16_384, ..World::new() };
    let log = world.open();
    write(&log, 1_000);
    let closed = || {
        let mut files = segments(&world.audit());
        files.pop();
        files
    };
    let kept =
        || -> u64 { closed().iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum() };
    let most = closed().len() as u64 * (16_384 + (64 << 10));
    assert!(closed().len() > 4 && kept() <= most, "{} of {most}", kept());
    log.close();
    drop(log);
    let before: Vec<Vec<u8>> = closed().iter().map(|path| fs::read(path).unwrap()).collect();
    for path in closed() {
        assert!(FileSystem.open(&path, Access::Write).unwrap().allocate(4 << 20).unwrap());
    }
    assert!(kept() > most);
    let log = world.open();
    assert!(kept() <= most, "{} of {most}", kept());
    let after: Vec<Vec<u8>> = closed().iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(before == after && log.verify(&[]).unwrap().ok);
}

#[test]
fn a_segment_that_could_not_be_synchronised_is_made_whole_at_the_next_start() {
    let world = World::new();
    let log = world.open();
    write(&log, 10);
    world.disk.ask(|deed, path| {
        if deed == Deed::Sync && is_segment(path) {
            Err(io::Error::from_raw_os_error(5))
        } else {
            Ok(())
        }
    });
    // The record at which the segment would have been closed is refused, the others are taken.
    let outcomes: Vec<bool> = (0..40).map(|_| answer(log.append(body(200))).is_ok()).collect();
    assert_eq!(outcomes.iter().filter(|ok| !**ok).count(), 1);
    world.disk.rest();
    let taken = log.head().seq;
    assert_eq!(segments(&world.audit()).len(), 1, "what may be incomplete is not closed");
    log.close();
    // The disk lost the end of it, as it had said.
    let path = segments(&world.audit()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let lost = bytes.len() / 2;
    bytes[lost..].fill(0);
    fs::write(&path, bytes).unwrap();
    let log = world.open();
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == taken, "{found:?}");
}

#[test]
fn a_log_that_goes_is_closed() {
    for close in [true, false] {
        let world = World::new();
        let log = world.open();
        write(&log, 10);
        if close {
            log.close();
            assert_eq!(log.health(), Err(AuditError::Closed));
            assert_eq!(answer(log.append(body(100))), Err(AuditError::Closed));
        }
        drop(log);
        let last = world.checkpoints().pop().unwrap().statement;
        assert_eq!((last.kind, last.head.seq), (CheckpointKind::Close, 10));
        // The segments had everything: what goes now was taken away, and is not put back.
        let path = segments(&world.audit()).pop().unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let log = world.open();
        assert!(!log.verify(&[]).unwrap().ok);
    }
}

#[test]
fn each_log_has_a_name_of_its_own_that_stays() {
    let world = World::written(3);
    let log = world.open();
    write(&log, 1);
    log.close();
    let names: Vec<_> = world.checkpoints().iter().map(|found| found.statement.log).collect();
    assert!(names.iter().all(|name| *name == names[0]));
    let code = mac::hmac_sha256(&[5; 32], &[b"lastkey audit log id"]);
    assert_eq!(names[0], code[..16]);
}

#[test]
fn the_key_of_the_checkpoints_signs_for_others_and_is_told() {
    let world = World::new();
    let log = world.open();
    assert_eq!(log.newest_checkpoint(), None);
    write(&log, 7);
    let public = world.signing_key().public();
    assert_eq!(log.checkpoint_key(), Some(public));
    assert!(public.verify(b"a statement", &log.sign(b"a statement").unwrap()));
    log.close();
    let last = world.checkpoints().pop().unwrap().statement;
    assert_eq!(log.newest_checkpoint(), Some((7, last.time)));
    // A start knows it too.
    assert_eq!(world.open().newest_checkpoint(), Some((7, last.time)));
    // A log without checkpoints has none of that, and deletes nothing.
    let place = tempfile::tempdir().unwrap();
    let key = KeyMaterial::from_slice(&[5; 32]);
    let log = AuditLog::open_on(
        world.disk.clone(),
        &place.path().join("a"),
        &place.path().join("j"),
        key,
    )
    .unwrap();
    write(&log, 2);
    assert!(log.sign(b"a statement").is_none() && log.checkpoint_key().is_none());
    assert_eq!((log.newest_checkpoint(), log.to_delete(None).unwrap()), (None, None));
    let lists = Arc::new(AtomicUsize::new(0));
    let counted = lists.clone();
    world.disk.ask(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    assert!(log.verify(&[]).unwrap().ok);
    assert!(lists.load(Ordering::Relaxed) > 0, "it is on the disk that was given");
}

#[test]
fn what_the_store_remembers_must_lie_on_the_chain() {
    let world = World::new();
    let log = world.open();
    write(&log, 40);
    let lines =
        segments(&world.audit()).iter().map(|p| fs::read_to_string(p).unwrap()).collect::<String>();
    let line = lines.lines().nth(24).unwrap();
    let right = Head { seq: 25, hash: mac::sha256(&[line.as_bytes()]) };
    assert!(log.verify(&[right, log.head()]).unwrap().ok);
    let found = log.verify(&[right, Head { seq: 41, hash: [9; 32] }]).unwrap();
    let problem = found.problem.unwrap();
    assert_eq!((problem.kind, problem.seq), ("truncated", 41));
    assert!(problem.what.contains("the store remembers record 41, the log ends at 40"));
    for seq in [25, 40] {
        let found = log.verify(&[Head { seq, hash: [9; 32] }]).unwrap();
        let problem = found.problem.unwrap();
        assert_eq!((problem.kind, problem.seq), ("changed", seq));
        assert!(problem.what.contains("the store remembers"), "{problem:?}");
    }
}

/// Whatever is listed, this is done right before; at most so often. How often it was asked for.
fn before_listing(
    world: &World,
    most: usize,
    act: impl Fn() + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let (lists, audit) = (Arc::new(AtomicUsize::new(0)), world.audit());
    let counted = lists.clone();
    world.disk.ask(move |deed, path| {
        if deed == Deed::List && path == audit && counted.fetch_add(1, Ordering::Relaxed) < most {
            act();
        }
        Ok(())
    });
    lists
}

#[test]
fn segments_that_are_begun_during_a_verification_are_no_problem() {
    let world = World::new();
    let log = Arc::new(world.open());
    write(&log, 20);
    let writer = log.clone();
    let lists = before_listing(&world, 1, move || write(&writer, 60));
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 80, "{found:?}");
    assert_eq!(lists.load(Ordering::Relaxed), 2);
    // It does not go on for ever: a log that is never the same twice is said to be so.
    let writer = log.clone();
    let lists = before_listing(&world, 10, move || write(&writer, 60));
    assert!(!log.verify(&[]).unwrap().ok);
    assert_eq!(lists.load(Ordering::Relaxed), 3);
    world.disk.rest();
    assert!(log.verify(&[]).unwrap().ok);
}

#[test]
fn a_verification_reads_a_log_that_stays_once() {
    let world = World::new();
    let log = world.open();
    write(&log, 60);
    let lists = before_listing(&world, 0, || {});
    assert!(log.verify(&[]).unwrap().ok);
    assert_eq!(lists.load(Ordering::Relaxed), 1);
    fs::remove_file(&segments(&world.audit())[0]).unwrap();
    assert!(!log.verify(&[]).unwrap().ok);
    assert_eq!(lists.load(Ordering::Relaxed), 2);
}

#[test]
fn a_verification_tells_how_far_it_is_and_can_be_stopped() {
    let world = World::written(60);
    let bytes: u64 = segments(&world.audit()).iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    let log = world.open();
    let progress = Arc::new(Progress::default());
    assert_eq!((progress.done(), progress.total()), (0, 0));
    let found = log.verify_watched(&[], &progress).unwrap();
    assert!(found.ok, "{found:?}");
    assert_eq!((progress.done(), progress.total(), found.bytes), (bytes, bytes, bytes));
    progress.stop();
    let stopped = log.verify_watched(&[], &progress).unwrap_err();
    assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    assert!(verify_by(&world.audit(), world.signing_key().public()).ok);
}

#[test]
fn a_first_start_that_was_cut_short_is_begun_again() {
    let place = tempfile::tempdir().unwrap();
    let (audit, journal) = (place.path().join("a"), place.path().join("j"));
    let name = audit.join(format!("segment-{:020}.jsonl", 1));
    let open = || {
        let options = AuditOptions { disk: Arc::new(FileSystem), ..AuditOptions::default() };
        AuditLog::open_with(&audit, &journal, KeyMaterial::from_slice(&[5; 32]), options)
    };
    fs::create_dir_all(&audit).unwrap();
    fs::write(&name, b"").unwrap();
    let log = open().unwrap();
    write(&log, 1);
    log.close();
    // Not so when a single byte was written.
    fs::remove_dir_all(&journal).unwrap();
    fs::write(&name, b"x").unwrap();
    assert!(open().err().unwrap().to_string().contains("journal"));
    // Nor when there is a compressed segment.
    fs::remove_file(&name).unwrap();
    fs::write(name.with_extension("jsonl.zst"), b"").unwrap();
    assert!(open().is_err());
}
