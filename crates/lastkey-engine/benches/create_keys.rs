//! Durable key creation by the engine's own command, over redb and a real log.
//!
//! `cargo bench -p lastkey-engine`; the directory is `LASTKEY_BENCH_DIR` or the temporary one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lastkey_crypto::SystemEntropy;
use lastkey_engine::{
    BuiltinPolicy, Caller, Engine, FileSeal, Parts, Principal, Source, SystemClock,
    audit::AuditLog, command::CreateKey,
};
use lastkey_store::{OpenOptions, RedbStore};

const TIME: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let parent = std::env::var_os("LASTKEY_BENCH_DIR").unwrap_or(std::env::temp_dir().into());
    for callers in [1, 64] {
        let mut rates: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let directory = tempfile::tempdir_in(&parent).unwrap();
                runtime.block_on(rate(directory.path(), callers))
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        println!("CreateKey, {callers:2} callers  {:8.0}/s   (of {rates:.0?})", rates[ROUNDS / 2]);
    }
}

async fn rate(directory: &std::path::Path, callers: usize) -> f64 {
    let engine = start(directory).await;
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let mut done = 0_u32;
                while started.elapsed() < TIME {
                    let principal = Principal::Root { access_key_id: "LKbench".into() };
                    let caller = Caller::new(principal, Source::Internal, engine.new_request_id());
                    engine.execute(&caller, CreateKey::default()).await.unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    let rate = f64::from(done) / started.elapsed().as_secs_f64();
    engine.shutdown().await;
    rate
}

async fn start(directory: &std::path::Path) -> Engine {
    let store = RedbStore::open(directory.join("store.redb"), OpenOptions::default()).unwrap();
    let (audit, journal) = (directory.join("audit"), directory.join("journal"));
    let parts = Parts {
        store: Arc::new(store),
        seal: Arc::new(FileSeal::new(directory.join("root.key"))),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        policy: Arc::new(BuiltinPolicy::default()),
        audit: Box::new(move |key| {
            AuditLog::open(&audit, &journal, key).map(|log| Arc::new(log) as _)
        }),
        anchor: Arc::new(lastkey_engine::FileAnchor::new(directory.join("anchor"))),
        incarnation: Box::new(|| Ok("bench".to_owned())),
    };
    Engine::start(parts).await.unwrap()
}
