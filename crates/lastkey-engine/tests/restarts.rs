//! The log goes on after restarts, for longer than its journal holds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{path::Path, sync::mpsc, time::Duration};

use lastkey_crypto::KeyMaterial;
use lastkey_engine::audit::{AuditLog, AuditOptions, AuditSink};

/// A few of them fill one of the journal's two files of 4 MiB.
const RECORD: usize = 200 << 10;
/// More than both files hold.
const RECORDS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(120);

fn open(place: &Path) -> AuditLog {
    let key = KeyMaterial::from_slice(&[5; 32]);
    let (audit, journal) = (place.join("audit"), place.join("journal"));
    AuditLog::open_with(&audit, &journal, key, AuditOptions::default()).unwrap()
}

fn write(log: &AuditLog) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in 0..RECORDS {
        let filling = "x".repeat(RECORD);
        let body = format!(
            r#""time":"2026-01-01T00:00:00.000Z","action":"Encrypt","n":{n},"filling":"{filling}""#
        );
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    }
}

/// The journal's file is reused once the segments hold durably what was in it. A restart has made
/// all of that durable: nobody must wait for a synchronisation that was never begun.
#[test]
fn a_journal_that_was_full_before_a_restart_turns_after_it() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let place = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let log = open(place.path());
            write(&log);
            log.close();
        }
        let log = open(place.path());
        assert!(log.verify(&[]).unwrap().problem.is_none());
        assert_eq!(log.head().seq, 3 * RECORDS as u64);
        done.send(()).unwrap();
    });
    ended.recv_timeout(PATIENCE).expect("the log stands still, or is not whole");
}
