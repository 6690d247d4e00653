//! A disk that hangs: it neither does what it is asked nor refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lastkey_crypto::KeyMaterial;
use lastkey_engine::audit::{AuditError, AuditLog, AuditOptions, AuditSink as _};
use lastkey_store::{OpenOptions, RedbStore, Store as _, StoreHealth, Transaction, disk::Disk};
use log::{Deed, Meddler};

/// A disk whose syncs wait while it is frozen.
fn hanging() -> (Arc<dyn Disk>, Arc<AtomicBool>) {
    let (disk, frozen) = (Meddler::default(), Arc::new(AtomicBool::new(false)));
    let is_frozen = Arc::clone(&frozen);
    disk.ask(move |deed, _| {
        while deed == Deed::Sync && is_frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
    (Arc::new(disk), frozen)
}

async fn eventually(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `is_said` of the frozen disk, which takes some seconds, and thaws it.
async fn thaw_once(frozen: &AtomicBool, is_said: impl Fn() -> bool) {
    let began = Instant::now();
    assert!(!is_said(), "a disk may take its time");
    eventually(is_said).await;
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    frozen.store(false, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_disk_hangs_is_not_well() {
    let (place, (disk, frozen)) = (tempfile::tempdir().unwrap(), hanging());
    let options = AuditOptions { disk, ..AuditOptions::default() };
    let key = KeyMaterial::from_slice(&[5; 32]);
    let (audit, journal) = (place.path().join("audit"), place.path().join("journal"));
    let log = AuditLog::open_with(&audit, &journal, key, options).unwrap();
    let append = || log.append(br#""time":"2026-01-01T00:00:00.000Z","action":"Encrypt""#.to_vec());
    append().await.unwrap();
    frozen.store(true, Ordering::SeqCst);
    let waiting = append();
    thaw_once(&frozen, || log.health() == Err(AuditError::Silent)).await;
    assert_eq!(waiting.await, Ok(2));
    eventually(|| log.health().is_ok()).await;
    assert!(log.verify(&[]).unwrap().ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_disk_hangs_is_not_well() {
    let (place, (disk, frozen)) = (tempfile::tempdir().unwrap(), hanging());
    let path = place.path().join("store.redb");
    let store = Arc::new(RedbStore::open_on(&*disk, path, OpenOptions::default()).unwrap());
    let put = || {
        let (store, change) =
            (Arc::clone(&store), Transaction::new().put("path", b"value".to_vec()));
        tokio::spawn(async move { store.commit(change).await })
    };
    put().await.unwrap().unwrap();
    frozen.store(true, Ordering::SeqCst);
    let waiting = put();
    let says = "the store's disk does not answer";
    let is_said = || matches!(store.health(), StoreHealth::Failed { reason } if reason == says);
    thaw_once(&frozen, is_said).await;
    waiting.await.unwrap().unwrap();
    eventually(|| store.health() == StoreHealth::Serving).await;
}
