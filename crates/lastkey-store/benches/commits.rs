//! Durable commits and reads of the store, beside the bare floor: redb alone with one commit for
//! each write, and the same file system with nothing but writes and syncs.
//!
//! `cargo bench -p lastkey-store`; the directory is `LASTKEY_BENCH_DIR` or the temporary one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lastkey_store::{OpenOptions, RedbStore, Store, Transaction};
use redb::TableDefinition;

const TIME: Duration = Duration::from_secs(3);
const VALUE: usize = 500;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let parent = std::env::var_os("LASTKEY_BENCH_DIR").unwrap_or(std::env::temp_dir().into());
    let directory = tempfile::tempdir_in(parent).unwrap();
    let syncs = syncs(&directory.path().join("floor"));
    println!("4 KiB write + fdatasync     {syncs:9.0}/s   the disk's floor");
    let bare = bare_redb(&directory.path().join("bare.redb"));
    println!("redb alone, one caller      {bare:9.0}/s   {:.2} of the floor", bare / syncs);
    let started = Instant::now();
    let path = directory.path().join("store.redb");
    let store = Arc::new(RedbStore::open(&path, OpenOptions::default()).unwrap());
    println!("first start                 {:9.1} ms", started.elapsed().as_secs_f64() * 1e3);
    for callers in [1, 8, 64, 512] {
        let rate = runtime.block_on(commits(&store, callers));
        let (ratio, size) = (rate / bare, size(&path));
        println!(
            "store, {callers:3} callers          {rate:9.0}/s   {ratio:.2} of redb, {size:.1} MiB"
        );
    }
    runtime.block_on(reads(&store));
    drop(store);
    let started = Instant::now();
    drop(RedbStore::open(&path, OpenOptions::default()).unwrap());
    println!("open and close again        {:9.1} ms", started.elapsed().as_secs_f64() * 1e3);
}

fn size(path: &Path) -> f64 {
    std::fs::metadata(path).unwrap().len() as f64 / f64::from(1 << 20)
}

fn rate(mut one: impl FnMut(u64)) -> f64 {
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < TIME {
        one(done);
        done += 1;
    }
    done as f64 / started.elapsed().as_secs_f64()
}

fn syncs(path: &Path) -> f64 {
    let file = File::create(path).unwrap();
    file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    rate(|i| {
        file.write_all_at(&[1; 4096], i % 256 * 4096).unwrap();
        file.sync_data().unwrap();
    })
}

fn bare_redb(path: &Path) -> f64 {
    const TABLE: TableDefinition<&str, &[u8]> = TableDefinition::new("t");
    let database = redb::Database::create(path).unwrap();
    rate(|i| {
        let write = database.begin_write().unwrap();
        let path = format!("p/{:06}", i % 1_000);
        write.open_table(TABLE).unwrap().insert(path.as_str(), [1; VALUE].as_slice()).unwrap();
        write.commit().unwrap();
    })
}

async fn commits(store: &Arc<RedbStore>, callers: u64) -> f64 {
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut done = 0;
                while started.elapsed() < TIME {
                    let path = format!("p/{caller:03}/{:06}", done % 1_000);
                    store.commit(Transaction::new().put(path, vec![1; VALUE])).await.unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    f64::from(total) / started.elapsed().as_secs_f64()
}

async fn reads(store: &RedbStore) {
    const GETS: u32 = 200_000;
    let started = Instant::now();
    for i in 0..GETS {
        assert!(store.get(&format!("p/000/{:06}", i % 1_000)).await.unwrap().is_some());
    }
    println!("get                         {:9.2} µs", micros(started, GETS));
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(store.list("p/000/", None, 1_000).await.unwrap().len(), 1_000);
    }
    println!("list of 1000                {:9.2} µs", micros(started, 100));
}

fn micros(started: Instant, times: u32) -> f64 {
    started.elapsed().as_secs_f64() * 1e6 / f64::from(times)
}
