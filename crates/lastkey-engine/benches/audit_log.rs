//! A log of ten million records: how long verifying and searching it takes, beside bare tools on
//! the same files.
//!
//! ```sh
//! cargo bench -p lastkey-engine --bench audit_log -- [RECORDS] [DIRECTORY]
//! ```
//! It needs about 7 GB for ten million records, and `cat`, `zstd`, `sha256sum` and `wc`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot go on stops")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use lastkey_crypto::{KeyMaterial, signing::SigningKey};
use lastkey_engine::{
    SystemClock, Timestamp,
    audit::{AuditLog, AuditOptions, AuditSink, Checkpointing, Offline, Query, offline},
};
use lastkey_store::disk::FileSystem;

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;
const AT_ONCE: u64 = 8_000;
const KEYS: u64 = 1_000;
const ROUNDS: usize = 3;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let records: u64 = arguments.next().map_or(10_000_000, |text| text.parse().unwrap());
    let place = tempfile::Builder::new().prefix("lastkey-audit-bench").tempdir().unwrap();
    let root = arguments.next().map_or_else(|| place.path().to_owned(), PathBuf::from);
    let audit = root.join("audit");

    let log = open(&root, false);
    let started = Instant::now();
    write(&log, records);
    let took = started.elapsed();
    log.close();
    let plain = size(&audit, "jsonl");
    println!("{records} records, {:.2} GB, written in {took:.1?}", gigabytes(plain));
    println!("\nplain segments");
    verifications(&audit, plain, "cat segment-*.jsonl");
    drop(log);

    let log = open(&root, true);
    let started = Instant::now();
    while pending(&audit) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let packed = size(&audit, "zst") + size(&audit, "jsonl");
    println!(
        "\ncompressed in {:.1?}: {:.2} GB, indexes {:.1} MB",
        started.elapsed(),
        gigabytes(packed),
        size(&audit, "idx") as f64 / 1e6
    );
    verifications(&audit, plain, "{ zstd -dcq segment-*.zst; cat segment-*.jsonl; }");
    searches(&log, records);
    let started = Instant::now();
    let nonces = log.nonces(at(records - 300_000), 2_000_000).unwrap().seen;
    println!(
        "  {:<44} {:>8.1?}  {} nonces",
        "nonces of the last half hour",
        started.elapsed(),
        nonces.len()
    );
    log.close();
}

fn open(root: &Path, compress: bool) -> AuditLog {
    let by = Checkpointing::new(signing_key(), Arc::new(SystemClock));
    let options = AuditOptions { compress, checkpoints: Some(by), ..AuditOptions::default() };
    let key = KeyMaterial::from_slice(&[5; 32]);
    AuditLog::open_with(&root.join("audit"), &root.join("journal"), key, options).unwrap()
}

fn signing_key() -> SigningKey {
    SigningKey::from_seed(KeyMaterial::from_slice(&[9; 32])).unwrap()
}

/// Six milliseconds between records: ten million of them are sixteen hours.
fn at(n: u64) -> Timestamp {
    Timestamp::from_millis(START + i64::try_from(n * 6).unwrap())
}

/// Numbers that look drawn.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn key(n: u64) -> String {
    format!("01a202c1-0658-7404-ae88-{:012x}", mix(n % KEYS) & 0xffff_ffff_ffff)
}

fn body(n: u64) -> Vec<u8> {
    let drawn = mix(n);
    let action = ["Encrypt", "Decrypt", "GenerateDataKey", "DescribeKey"][(drawn % 4) as usize];
    let outcome = if n % 100_000 == 7 { "Rejected.Disabled" } else { "ok" };
    format!(
        r#""time":"{}","id":"{:016X}{:016X}","action":"{action}","principal":"plugin/{:08x}-0658-7404-ae88-77bbd5a799ea/node-{}","source":"10.0.{}.{}:{}","nonce":"{:016x}","signed":{},"target":"alias/k{}","key":"{}","key_version":"0193{:012x}-{:016x}","context":["tenant","t{}"],"outcome":"{outcome}","latency_us":{}"#,
        at(n), drawn, mix(drawn), drawn % 20, drawn % 200, drawn % 256, n % 256, 1024 + drawn % 60_000,
        mix(n + 1), at(n).as_seconds(), drawn % KEYS, key(drawn), drawn % KEYS, mix(drawn % KEYS),
        n / 50_000, 30 + drawn % 200,
    )
    .into_bytes()
}

fn write(log: &AuditLog, records: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for start in (0..records).step_by(usize::try_from(AT_ONCE).unwrap()) {
        let tickets: Vec<_> =
            (start..(start + AT_ONCE).min(records)).map(|n| log.append(body(n))).collect();
        runtime.block_on(async {
            for ticket in tickets {
                ticket.await.unwrap();
            }
        });
    }
}

fn files(audit: &Path, ending: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(audit).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

fn size(audit: &Path, ending: &str) -> u64 {
    files(audit, ending).iter().map(|path| path.metadata().unwrap().len()).sum()
}

fn pending(audit: &Path) -> bool {
    files(audit, "jsonl").len() > 1
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Ours and the bare tools, in turns; the best of each.
fn verifications(audit: &Path, plain: u64, cat: &str) {
    let key = signing_key().public();
    let ours = || {
        let trust = Offline { keys: &[key], witnesses: &[] };
        let found = offline(&FileSystem, audit, &trust, &Arc::default()).unwrap();
        assert!(found.ok && found.bytes == plain, "{found:?}");
    };
    let wc = format!("{cat} | wc -c");
    let sum = format!("{cat} | sha256sum");
    let mut best = [Duration::MAX; 3];
    for _ in 0..ROUNDS {
        let runs: [&dyn Fn(); 3] = [&ours, &|| shell(audit, &wc), &|| shell(audit, &sum)];
        for (best, run) in best.iter_mut().zip(runs) {
            let started = Instant::now();
            run();
            *best = (*best).min(started.elapsed());
        }
    }
    for (name, took) in ["audit verify --offline", &wc, &sum].iter().zip(best) {
        let speed = plain as f64 / 1e6 / took.as_secs_f64();
        let ratio = took.as_secs_f64() / best[0].as_secs_f64();
        println!("  {name:<60} {took:>7.2?}  {speed:>6.0} MB/s  {ratio:>5.2} × ours");
    }
}

fn shell(directory: &Path, command: &str) {
    let status = Command::new("sh")
        .args(["-c", command])
        .current_dir(directory)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

fn searches(log: &AuditLog, records: u64) {
    let some = |text: &str| Some(text.to_owned());
    let all = Query { limit: 100, ..Query::default() };
    let half = records / 2;
    let rare = key(0);
    let cases: [(&str, Query); 10] = [
        ("the newest 100", Query { newest: true, ..all.clone() }),
        ("100 after record 5 000 000", Query { after: half, ..all.clone() }),
        (
            "one minute in the middle",
            Query {
                from: Some(at(half)),
                to: Some(at(half + 10_000)),
                limit: 10_000,
                ..all.clone()
            },
        ),
        (
            "an outcome that is rare (100)",
            Query { outcome: some("Rejected.Disabled"), ..all.clone() },
        ),
        ("a name in the context, rare (100)", Query { context_key: some("t123"), ..all.clone() }),
        ("an action (100)", Query { action: some("encrypt"), ..all.clone() }),
        (
            "one key, one minute",
            Query {
                key: Some(rare.clone()),
                from: Some(at(half)),
                to: Some(at(half + 10_000)),
                ..all.clone()
            },
        ),
        (
            "one key of 1000, all of it (10 000)",
            Query { key: Some(rare), limit: 20_000, ..all.clone() },
        ),
        ("a principal that never called", Query { principal: some("nobody"), ..all.clone() }),
        ("an outcome that never was", Query { outcome: some("Never.Seen"), ..all }),
    ];
    println!("\nsearches, first and again");
    for (name, query) in cases {
        let mut times = Vec::new();
        let mut found = 0;
        for _ in 0..2 {
            let started = Instant::now();
            found = log.query(&query).unwrap().records.len();
            times.push(started.elapsed());
        }
        println!("  {name:<44} {:>8.1?} {:>8.1?}  {found} records", times[0], times[1]);
    }
}
