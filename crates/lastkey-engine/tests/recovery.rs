//! What a start makes of a log that ended without a word: of which segments it puts something
//! back, and which it leaves alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lastkey_engine::audit::{AuditSink, Query, Retention};
use log::{Deed, World, segments, write};

/// The same log as a crash would leave it: without a clean end.
fn crashed(world: &World) -> World {
    let copy = World { compress: world.compress, retention: world.retention, ..World::new() };
    for directory in ["audit", "journal"] {
        let to = copy.place.path().join(directory);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(world.place.path().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

fn names(directory: &Path) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    segments(directory).iter().map(name).collect()
}

/// Waits until this is so.
fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..6000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still waiting for {what}");
}

fn count(directory: &Path, extension: &str) -> usize {
    segments(directory).iter().filter(|p| p.extension().unwrap() == extension).count()
}

#[test]
fn each_segment_gets_back_what_it_lost_of_its_own() {
    let world = World::new();
    let log = world.open();
    write(&log, 100);
    let copy = crashed(&world);
    let files = segments(&copy.audit());
    assert!(files.len() > 2);
    let whole: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, bytes) in files.iter().zip(&whole) {
        fs::write(path, &bytes[..bytes.len() / 3]).unwrap();
    }
    let log = copy.open();
    assert_eq!(files.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), whole);
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 100, "{found:?}");
}

#[test]
fn what_somebody_changed_stays_as_evidence() {
    let world = World::new();
    let log = world.open();
    write(&log, 60);
    let copy = crashed(&world);
    let path = segments(&copy.audit())[1].clone();
    let changed = fs::read_to_string(&path).unwrap().replacen("Encrypt", "Decrypt", 1);
    fs::write(&path, &changed).unwrap();
    let log = copy.open();
    assert_eq!(fs::read_to_string(&path).unwrap(), changed);
    assert!(!log.verify(&[]).unwrap().ok);
}

#[test]
fn segments_that_were_compressed_since_are_left_alone() {
    let world = World { compress: true, ..World::new() };
    let log = world.open();
    write(&log, 100);
    until("all to be compressed", || count(&world.audit(), "jsonl") == 1);
    let copy = crashed(&world);
    // Nobody compresses here, so that what came back would stay.
    let copy = World { compress: false, ..copy };
    let before = names(&copy.audit());
    let log = copy.open();
    assert_eq!(names(&copy.audit()), before);
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 100, "{found:?}");
}

#[test]
fn segments_that_were_deleted_on_purpose_stay_away() {
    let world = World { retention: Retention { bytes: Some(6_000), age: None }, ..World::new() };
    let log = world.open();
    write(&log, 100);
    let deletion = log.to_delete(None).unwrap().unwrap();
    log.delete(&deletion).unwrap();
    write(&log, 1);
    let copy = crashed(&world);
    let before = names(&copy.audit());
    let log = copy.open();
    assert_eq!(names(&copy.audit()), before);
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.deleted_through == deletion.through.seq, "{found:?}");
}

#[test]
fn a_segment_that_does_not_end_where_it_should_is_not_gone_on_with() {
    let world = World { segment_bytes: 1 << 20, ..World::new() };
    let log = world.open();
    write(&log, 10);
    log.close();
    let path = segments(&world.audit()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"something more\n");
    fs::write(&path, &bytes).unwrap();
    let log = world.open();
    write(&log, 2);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(names(&world.audit())[1], format!("segment-{:020}.jsonl", 11));
    let page = log.query(&Query { limit: 100, ..Query::default() }).unwrap();
    assert_eq!(page.records.len(), 12);
    let found = log.verify(&[]).unwrap();
    assert_eq!(found.problems.len(), 1, "{found:?}");
}

#[test]
fn a_closed_segment_that_is_not_there_for_once_holds_up_no_other() {
    let world = World { compress: true, ..World::written(100) };
    let files = segments(&world.audit());
    let of = files[1].clone();
    world.disk.ask(move |deed, path| {
        let gone = deed == Deed::Open && path == of;
        if gone { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    });
    let log = world.open();
    until("the others to be compressed", || !files[0].exists() && !files[2].exists());
    assert!(files[1].exists());
    // Closing ends every thread, and with them whoever holds the disk.
    log.close();
    drop(log);
    assert_eq!(Arc::strong_count(&world.disk), 1);
}

#[test]
fn what_could_not_be_compressed_is_tried_again_with_the_next() {
    let world = World { compress: true, ..World::new() };
    let failed = Arc::new(AtomicBool::new(false));
    let says = failed.clone();
    world.disk.ask(move |deed, path| {
        if deed == Deed::Rename && path.extension().is_some_and(|extension| extension == "zst") {
            says.store(true, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    });
    let log = world.open();
    write(&log, 40);
    until("an attempt", || failed.load(Ordering::Relaxed));
    assert_eq!(count(&world.audit(), "zst"), 0);
    world.disk.rest();
    write(&log, 100);
    until("all to be compressed", || count(&world.audit(), "jsonl") == 1);
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 140, "{found:?}");
}
