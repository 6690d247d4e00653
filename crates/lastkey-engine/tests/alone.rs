//! A caller who is alone commits its records by itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use lastkey_crypto::KeyMaterial;
use lastkey_engine::audit::{AuditLog, AuditOptions, AuditSink, Query};
use lastkey_store::disk::{Disk, FileSystem};
use log::{Deed, Meddler};

fn open(place: &Path, alone: bool) -> AuditLog {
    open_on(Arc::new(FileSystem), place, alone)
}

fn open_on(disk: Arc<dyn Disk>, place: &Path, alone: bool) -> AuditLog {
    let options = AuditOptions { disk, alone, segment_bytes: 8192, ..AuditOptions::default() };
    let key = KeyMaterial::from_slice(&[5; 32]);
    AuditLog::open_with(&place.join("audit"), &place.join("journal"), key, options).unwrap()
}

/// A place whose disk is memory, and so fast, where there is one.
fn fast_place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn body(n: usize) -> Vec<u8> {
    format!(r#""time":"2026-01-01T00:00:00.000Z","action":"Encrypt","n":{n}"#).into_bytes()
}

fn append(log: &AuditLog, n: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(log.append(body(n))).unwrap()
}

#[test]
fn who_is_alone_has_its_answer_at_once_and_finds_it_in_the_log() {
    let place = fast_place();
    let log = open(place.path(), true);
    for n in 0..20 {
        append(&log, n);
    }
    let mut at_once = 0;
    for n in 20..2_000 {
        let Some(answer) = log.append(body(n)).now_or_never() else {
            // A machine that is busy makes a write slow now and then: so it goes by the thread.
            for _ in 0..5 {
                append(&log, n);
            }
            continue;
        };
        at_once += 1;
        let seq = answer.unwrap();
        let newest = Query { newest: true, limit: 1, ..Query::default() };
        let page = log.query(&newest).unwrap();
        assert_eq!(page.records[0]["seq"].as_u64(), Some(seq));
        assert_eq!(page.records[0]["n"].as_u64(), Some(n as u64));
        if at_once == 40 {
            break;
        }
    }
    assert!(at_once >= 40, "{at_once}");
    assert!(log.verify(&[]).unwrap().problem.is_none());

    let place = tempfile::tempdir().unwrap();
    let log = open(place.path(), false);
    for n in 0..20 {
        append(&log, n);
    }
    // The thread needs a moment, however short; what matters is that it is the thread's.
    let pending = (0..20).filter(|n| log.append(body(*n)).now_or_never().is_none()).count();
    assert!(pending > 0, "a log that was not told so never lets callers commit");
}

/// Whoever waits for a slow disk keeps no thread waiting that has other things to do.
#[test]
fn nobody_commits_alone_on_a_slow_disk() {
    let (place, disk) = (fast_place(), Meddler::default());
    let log = open_on(Arc::new(disk.clone()), place.path(), true);
    disk.ask(|deed, _| {
        if deed == Deed::Sync {
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    });
    for n in 0..20 {
        append(&log, n);
    }
    for n in 20..40 {
        assert!(log.append(body(n)).now_or_never().is_none());
        // Whatever comes behind it is committed later.
        append(&log, n);
    }
    disk.rest();
    assert!(log.verify(&[]).unwrap().problem.is_none());
}

#[test]
fn alone_and_together_make_one_chain() {
    let place = tempfile::tempdir().unwrap();
    let log = open(place.path(), true);
    let mut expected = 0;
    for _ in 0..3 {
        for n in 0..30 {
            append(&log, n);
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    (0..100).for_each(|n| {
                        append(&log, n);
                    });
                });
            }
        });
        expected += 30 + 8 * 100;
        assert_eq!(log.verify(&[]).unwrap().records, expected);
        assert!(log.verify(&[]).unwrap().problem.is_none());
    }
    log.close();
    let log = open(place.path(), true);
    assert_eq!(log.head().seq, expected);
    assert!(log.verify(&[]).unwrap().problem.is_none());
}
