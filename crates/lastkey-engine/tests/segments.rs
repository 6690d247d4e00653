//! Closed segments: compressed, searched, deleted, and tampered with.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use lastkey_crypto::mac;
use lastkey_engine::{
    Timestamp,
    audit::{AuditLog, AuditSink, Query, Retention},
};
use log::{Deed, World, segments, verify_by, write};
use serde_json::Value;

fn compressing() -> World {
    World { compress: true, ..World::new() }
}

/// Appends records that differ in all that one can search for.
fn write_many(log: &AuditLog, numbers: std::ops::Range<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tickets: Vec<_> = numbers
        .map(|n| {
            let body = format!(
                r#""time":"{}","id":"id{n}","action":"{}","principal":"plugin/c{}/node","key":"key-{}","context":["tenant","t{}"],"outcome":"{}","latency_us":{n}"#,
                Timestamp::from_millis(1_767_225_600_000 + i64::try_from(n).unwrap() * 1000),
                if n % 2 == 0 { "Encrypt" } else { "Decrypt" },
                n % 7,
                n % 11,
                n % 13,
                if n % 17 == 0 { "Rejected.Disabled" } else { "ok" },
            );
            log.append(body.into_bytes())
        })
        .collect();
    runtime.block_on(async {
        for ticket in tickets {
            ticket.await.unwrap();
        }
    });
}

/// Waits until every closed segment is compressed and nothing else of it is left.
fn settle(directory: &Path) -> Vec<PathBuf> {
    for _ in 0..1000 {
        let files = segments(directory);
        let plain = files.iter().filter(|path| path.extension().unwrap() == "jsonl").count();
        let packed = files.iter().filter(|path| path.extension().unwrap() == "zst").count();
        let indexes = files.iter().filter(|path| path.extension().unwrap() == "idx").count();
        if plain == 1 && packed == indexes && packed + indexes + plain == files.len() {
            return files.into_iter().filter(|path| path.extension().unwrap() == "zst").collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?}", segments(directory));
}

/// What `zstdcat` gives back.
fn unpacked(path: &Path) -> Vec<u8> {
    let out = Command::new("zstd").args(["-dcq"]).arg(path).stderr(Stdio::inherit()).output();
    out.unwrap().stdout
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("zstd")
        .args(["-cq"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let out = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    out
}

#[test]
fn closed_segments_are_compressed_to_exactly_their_lines() {
    let plain = World::new();
    let log = plain.open();
    write_many(&log, 0..200);
    log.close();
    let world = compressing();
    let log = world.open();
    for start in (0..200).step_by(10) {
        write_many(&log, start..start + 10);
    }
    let files = settle(&world.audit());
    assert!(files.len() > 5);
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.records == 200, "{found:?}");
    log.close();
    let mut all: Vec<u8> = files.iter().flat_map(|path| unpacked(path)).collect();
    let open = segments(&world.audit()).pop().unwrap();
    all.extend(fs::read(open).unwrap());
    let bodies = |bytes: &[u8]| -> Vec<Value> {
        String::from_utf8(bytes.to_vec())
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let plain: Vec<u8> =
        segments(&plain.audit()).iter().flat_map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(bodies(&all), bodies(&plain));
    let offline = world.verify();
    assert!(offline.ok && offline.checkpoint_seq == 200, "{offline:?}");
}

#[test]
fn tampering_with_compressed_segments_is_noticed_as_with_plain_ones() {
    type Tamper = fn(&[PathBuf]);
    let cases: [(&str, Tamper, &str); 6] = [
        (
            "a byte",
            |files| {
                let mut bytes = fs::read(&files[2]).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x40;
                fs::write(&files[2], bytes).unwrap();
            },
            "changed",
        ),
        (
            "a record, packed again",
            |files| {
                let text = String::from_utf8(unpacked(&files[2])).unwrap();
                fs::write(&files[2], packed(text.replacen("Encrypt", "Decrypt", 1).as_bytes()))
                    .unwrap();
            },
            "changed",
        ),
        (
            "a record taken out, packed again",
            |files| {
                let text = String::from_utf8(unpacked(&files[2])).unwrap();
                let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
                lines.remove(3);
                fs::write(&files[2], packed(lines.concat().as_bytes())).unwrap();
            },
            "missing",
        ),
        (
            "cut",
            |files| {
                let bytes = fs::read(&files[2]).unwrap();
                fs::write(&files[2], &bytes[..bytes.len() / 2]).unwrap();
            },
            "changed",
        ),
        ("one segment removed", |files| fs::remove_file(&files[2]).unwrap(), "missing"),
        (
            "another put in its place",
            |files| {
                fs::copy(&files[1], &files[2]).unwrap();
            },
            "reordered",
        ),
    ];
    for (name, tamper, kind) in cases {
        let world = compressing();
        let log = world.open();
        for start in (0..200).step_by(10) {
            write_many(&log, start..start + 10);
        }
        let files = settle(&world.audit());
        tamper(&files);
        let live = log.verify(&[]).unwrap();
        log.close();
        for (found, how) in [(live, "live"), (world.verify(), "offline")] {
            assert!(!found.ok, "{name}, {how}");
            let located = found.problems.iter().any(|problem| problem.kind == kind);
            assert!(located, "{name}, {how}: {:?}", found.problems);
        }
    }
}

#[test]
fn a_crash_at_any_step_of_compressing_costs_nothing() {
    let world = compressing();
    let log = world.open();
    for start in (0..100).step_by(10) {
        write_many(&log, start..start + 10);
    }
    let files = settle(&world.audit());
    log.close();
    let packed = &files[1];
    let plain = packed.with_extension("");
    let index = plain.with_extension("idx");
    let bytes = unpacked(packed);
    let (whole, idx) = (fs::read(packed).unwrap(), fs::read(&index).unwrap());
    let temporary = PathBuf::from(format!("{}.new", packed.display()));
    type State<'a> = Box<dyn Fn() + 'a>;
    let states: [(&str, State<'_>); 5] = [
        (
            "half a temporary file",
            Box::new(|| {
                fs::write(&plain, &bytes).unwrap();
                fs::remove_file(packed).unwrap();
                let _ = fs::remove_file(&index);
                fs::write(&temporary, &whole[..whole.len() / 2]).unwrap();
            }),
        ),
        (
            "renamed, no index yet",
            Box::new(|| {
                fs::write(&plain, &bytes).unwrap();
                fs::write(packed, &whole).unwrap();
                let _ = fs::remove_file(&index);
            }),
        ),
        (
            "half an index",
            Box::new(|| {
                fs::write(&plain, &bytes).unwrap();
                fs::write(&index, &idx[..idx.len() / 2]).unwrap();
            }),
        ),
        ("plain not removed", Box::new(|| fs::write(&plain, &bytes).unwrap())),
        ("index lost", Box::new(|| fs::remove_file(&index).unwrap())),
    ];
    for (name, state) in states {
        state();
        let found = world.verify();
        assert!(found.ok && found.records == 100, "{name}: {found:?}");
        let log = world.open();
        settle(&world.audit());
        let all = log.query(&Query { limit: 1000, ..Query::default() }).unwrap();
        assert_eq!(all.records.len(), 100, "{name}");
        let found = log.verify(&[]).unwrap();
        assert!(found.ok && found.records == 100, "{name}: {found:?}");
        log.close();
        assert_eq!(unpacked(packed), bytes, "{name}");
        assert!(!temporary.exists(), "{name}");
    }
    // Two forms that differ: somebody changed one. Both stay, and it shows.
    let changed = String::from_utf8(bytes).unwrap().replacen("Encrypt", "Decrypt", 1);
    fs::write(&plain, changed).unwrap();
    let log = world.open();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!log.verify(&[]).unwrap().ok);
    log.close();
    assert!(plain.exists() && packed.exists());
}

/// The same search by reading everything.
fn naive(all: &[Value], query: &Query) -> Vec<u64> {
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let matches = |record: &&Value| {
        let time = Timestamp::parse(&text(record, "time")).unwrap();
        record["seq"].as_u64().unwrap() > query.after
            && query.from.is_none_or(|from| time >= from)
            && query.to.is_none_or(|to| time < to)
            && query.principal.as_ref().is_none_or(|part| text(record, "principal").contains(part))
            && query.key.as_ref().is_none_or(|key| text(record, "key") == *key)
            && query.action.as_ref().is_none_or(|a| text(record, "action").eq_ignore_ascii_case(a))
            && query.outcome.as_ref().is_none_or(|o| text(record, "outcome") == *o)
            && query.context_key.as_ref().is_none_or(|name| {
                record["context"].as_array().unwrap().iter().any(|n| n.as_str() == Some(name))
            })
    };
    let mut found: Vec<u64> =
        all.iter().filter(matches).map(|record| record["seq"].as_u64().unwrap()).collect();
    if query.newest {
        found.drain(..found.len().saturating_sub(query.limit));
    } else {
        found.truncate(query.limit);
    }
    found
}

#[test]
fn searches_find_what_reading_everything_finds() {
    const RECORDS: u64 = 1500;
    let second = |n: i64| Some(Timestamp::from_millis(1_767_225_600_000 + n * 1000));
    let some = |text: &str| Some(text.to_owned());
    let all = Query { limit: 10_000, ..Query::default() };
    let mut queries = vec![
        all.clone(),
        Query { key: some("key-3"), ..all.clone() },
        Query { key: some("key-99"), ..all.clone() },
        Query { action: some("DECRYPT"), outcome: some("Rejected.Disabled"), ..all.clone() },
        Query { principal: some("c3/"), ..all.clone() },
        Query { principal: some("c3/"), key: some("key-4"), ..all.clone() },
        Query { principal: some("nobody"), ..all.clone() },
        Query { context_key: some("t12"), from: second(200), to: second(1300), ..all.clone() },
        Query { from: second(1490), ..all.clone() },
        Query { to: second(7), ..all.clone() },
        Query { after: 1200, action: some("encrypt"), ..all.clone() },
    ];
    let plain = queries.clone();
    for limit in [1, 7, 100] {
        for newest in [false, true] {
            for query in &plain[..11] {
                queries.push(Query { limit, newest, ..query.clone() });
            }
        }
    }
    for compress in [false, true] {
        let world = World { compress, segment_bytes: 30_000, ..World::new() };
        let log = world.open();
        for start in (0..RECORDS).step_by(50) {
            write_many(&log, start..start + 50);
        }
        if compress {
            let files = settle(&world.audit());
            // One whose index somebody changed is searched all the same.
            let index = files[3].with_extension("").with_extension("idx");
            let mut bytes = fs::read(&index).unwrap();
            bytes[40] ^= 1;
            fs::write(index, bytes).unwrap();
        }
        let everything = log.query(&all).unwrap().records;
        assert_eq!(everything.len() as u64, RECORDS);
        for query in &queries {
            let page = log.query(query).unwrap();
            let found: Vec<u64> =
                page.records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
            assert_eq!(found, naive(&everything, query), "compress {compress}: {query:?}");
        }
        // Pages, one behind the other.
        let mut query = Query { limit: 13, outcome: some("Rejected.Disabled"), ..all.clone() };
        let mut paged = Vec::new();
        loop {
            let page = log.query(&query).unwrap();
            paged.extend(page.records.iter().map(|record| record["seq"].as_u64().unwrap()));
            let Some(next) = page.next else { break };
            query.after = next;
        }
        let whole = Query { outcome: some("Rejected.Disabled"), ..all.clone() };
        assert_eq!(paged, naive(&everything, &whole));
    }
}

#[test]
fn searches_while_segments_are_compressed_miss_nothing_and_find_nothing_twice() {
    const RECORDS: u64 = 4000;
    let world = World { compress: true, segment_bytes: 60_000, ..World::new() };
    let log = world.open();
    let all = Query { limit: 1 << 20, outcome: Some("ok".into()), ..Query::default() };
    let ok = |n: &u64| !n.is_multiple_of(17);
    for start in (0..RECORDS).step_by(100) {
        write_many(&log, start..start + 100);
        let page = log.query(&all).unwrap();
        let found: Vec<u64> =
            page.records.iter().map(|record| record["latency_us"].as_u64().unwrap()).collect();
        assert!(found == (0..start + 100).filter(ok).collect::<Vec<_>>(), "after {start}");
    }
}

/// torture, seed 2012: the disk was full between the making of a segment and its first record, and
/// the next start went on with the one before.
#[test]
fn a_segment_that_was_begun_and_never_used_hides_nothing() {
    let world = World::new();
    let log = world.open();
    write_many(&log, 0..4);
    log.close();
    drop(log);
    let unused = world.audit().join("segment-00000000000000000005.jsonl");
    fs::write(&unused, "").unwrap();
    let log = world.open();
    write_many(&log, 4..8);
    let found = log.query(&Query { after: 6, limit: 100, ..Query::default() }).unwrap();
    let found: Vec<_> = found.records.iter().map(|record| record["seq"].as_u64()).collect();
    assert_eq!(found, [Some(7), Some(8)]);
    assert!(!unused.exists());
}

/// The same, left behind by an earlier release: it is not compressed, and does not stop retention.
#[test]
fn a_closed_segment_without_a_record_goes() {
    let world = compressing();
    let log = world.open();
    for start in (0..40).step_by(10) {
        write_many(&log, start..start + 10);
    }
    settle(&world.audit());
    log.close();
    drop(log);
    let unused = world.audit().join("segment-00000000000000000002.jsonl");
    fs::write(&unused, "").unwrap();
    let log = world.open();
    settle(&world.audit());
    assert!(!unused.exists() && !unused.with_extension("jsonl.zst").exists());
    assert!(log.verify(&[]).unwrap().ok);
}

#[test]
fn nonces_come_back_from_compressed_segments_too() {
    let world = compressing();
    let log = world.open();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in 0..100 {
        let body = format!(
            r#""time":"2026-01-01T00:00:{:02}.000Z","nonce":"{n:016x}","signed":{n},"outcome":"ok""#,
            n / 2
        );
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    }
    settle(&world.audit());
    let from = Timestamp::parse("2026-01-01T00:00:20Z").unwrap();
    let found = log.nonces(from, 1000).unwrap().seen;
    assert_eq!(found, (40..100).map(|n| (n, i64::try_from(n).unwrap())).collect::<Vec<_>>());
    assert_eq!(log.nonces(from, 3).unwrap().seen, [(97, 97), (98, 98), (99, 99)]);
}

#[test]
fn what_is_deleted_is_stated_and_the_rest_verifies() {
    for compress in [false, true] {
        let retention = Retention { bytes: Some(6_000), age: None };
        let world = World { compress, retention, ..World::new() };
        let log = world.open();
        for start in (0..300).step_by(10) {
            write_many(&log, start..start + 10);
        }
        if compress {
            settle(&world.audit());
        }
        let deletion = log.to_delete(None).unwrap().unwrap();
        log.delete(&deletion).unwrap();
        assert_eq!(log.to_delete(None).unwrap(), None);
        let left: u64 = segments(&world.audit())
            .iter()
            .filter(|path| path.extension().unwrap() != "idx")
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(left <= 6_000 + 4_096, "{left}");
        let found = log.verify(&[]).unwrap();
        assert!(found.ok, "{found:?}");
        assert_eq!(found.deleted_through, deletion.through.seq);
        assert_eq!(found.records + found.deleted_through, 300);
        let page = log.query(&Query { limit: 1000, ..Query::default() }).unwrap();
        assert_eq!(page.records.len() as u64, found.records);
        log.close();
        let found = world.verify();
        assert!(found.ok && found.deleted_through == deletion.through.seq, "{found:?}");
        // A restart does not bring back what the journal still holds of it.
        let log = world.open();
        write_many(&log, 300..310);
        assert!(log.verify(&[]).unwrap().ok);
        log.close();
        assert!(world.verify().ok);
        // More is missing than was stated.
        let mut left = segments(&world.audit()).into_iter();
        let oldest = left.find(|path| path.extension().unwrap() != "idx").unwrap();
        fs::remove_file(oldest).unwrap();
        let found = world.verify();
        assert!(!found.ok && found.problem.as_ref().unwrap().kind == "missing", "{found:?}");
    }
}

#[test]
fn nothing_is_deleted_by_age_without_a_time_that_can_be_trusted() {
    let age = Some(Duration::from_secs(60));
    let world = World { retention: Retention { bytes: None, age }, ..World::new() };
    let log = world.open();
    for start in (0..200).step_by(10) {
        write_many(&log, start..start + 10);
    }
    assert_eq!(log.to_delete(None).unwrap(), None);
    let at = |second: i64| Some(Timestamp::from_millis(1_767_225_600_000 + second * 1000));
    assert_eq!(log.to_delete(at(50)).unwrap(), None);
    let some = log.to_delete(at(160)).unwrap().unwrap();
    assert!(some.through.seq < 101, "{some:?}");
    // Never the open one.
    let all = log.to_delete(at(1_000_000)).unwrap().unwrap();
    log.delete(&all).unwrap();
    let left = segments(&world.audit());
    assert_eq!(left.len(), 1);
    assert!(log.verify(&[]).unwrap().ok);
}

#[test]
fn a_log_that_was_changed_is_not_deleted() {
    let retention = Retention { bytes: Some(6_000), age: None };
    let world = World { retention, ..World::new() };
    let log = world.open();
    for start in (0..200).step_by(10) {
        write_many(&log, start..start + 10);
    }
    let deletion = log.to_delete(None).unwrap().unwrap();
    let through = deletion.through.seq;
    let last = segments(&world.audit())
        .into_iter()
        .rfind(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            name.strip_prefix("segment-").unwrap().parse::<u64>().unwrap() <= through
        })
        .unwrap();
    let text = fs::read_to_string(&last).unwrap();
    let at = text.trim_end().rfind("latency_us").unwrap();
    let changed = format!("{}{}", &text[..at], text[at..].replacen("latency_us", "latency_xx", 1));
    fs::write(&last, changed).unwrap();
    let refused = log.to_delete(None).unwrap_err().to_string();
    assert!(refused.contains("audit verify"), "{refused}");
}

#[test]
fn a_crash_while_files_are_deleted_leaves_a_log_that_verifies() {
    let retention = Retention { bytes: Some(6_000), age: None };
    let world = World { retention, ..World::new() };
    let log = world.open();
    for start in (0..300).step_by(10) {
        write_many(&log, start..start + 10);
    }
    let before: Vec<(PathBuf, Vec<u8>)> = segments(&world.audit())
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let deletion = log.to_delete(None).unwrap().unwrap();
    log.delete(&deletion).unwrap();
    log.close();
    // Put back all but the oldest two: the statement is there, the files were not all gone yet.
    for (path, bytes) in &before[2..] {
        if !path.exists() {
            fs::write(path, bytes).unwrap();
        }
    }
    let found = world.verify();
    assert!(found.ok, "{found:?}");
    // What comes back changed does not pass.
    let text = String::from_utf8(before[3].1.clone()).unwrap();
    fs::write(&before[3].0, text.replacen("Encrypt", "Decrypt", 1)).unwrap();
    assert!(!world.verify().ok);
    fs::write(&before[3].0, text).unwrap();
    let log = world.open();
    let again = log.to_delete(None).unwrap().unwrap();
    log.delete(&again).unwrap();
    assert!(log.verify(&[]).unwrap().ok);
    log.close();
    assert!(!before[2].0.exists());
}

/// Retention deletes a segment, and those behind it, when the keeper is about to give its compressed
/// form a name.
#[test]
fn compressing_brings_no_deleted_segment_back() {
    let retention = Retention { bytes: Some(1), age: None };
    let world = World { retention, ..compressing() };
    let (written, wait) = mpsc::channel::<()>();
    let (wait, asked) = (parking_lot::Mutex::new(wait), AtomicBool::new(false));
    let opened: Arc<OnceLock<Arc<AuditLog>>> = Arc::default();
    let log = Arc::clone(&opened);
    world.disk.ask(move |deed, path| {
        let is_packed = path.to_str().unwrap().ends_with(".zst.new");
        if deed == Deed::Sync && is_packed && !asked.swap(true, Ordering::Relaxed) {
            wait.lock().recv().unwrap();
            let log = log.get().unwrap();
            let deletion = log.to_delete(None).unwrap().unwrap();
            assert!(deletion.segments > 2, "{deletion:?}");
            log.delete(&deletion).unwrap();
        }
        Ok(())
    });
    let log = Arc::new(world.open());
    assert!(opened.set(Arc::clone(&log)).is_ok());
    write(&log, 100);
    written.send(()).unwrap();
    for _ in 0..1000 {
        let is_deleted = log.verify(&[]).unwrap().deleted_through > 0;
        if is_deleted && fs::read_dir(world.audit()).unwrap().count() == 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The keeper has ended, whatever it was at.
    log.close();
    let found = log.verify(&[]).unwrap();
    assert!(found.ok && found.deleted_through > 0, "{found:?}");
    assert_eq!(log.to_delete(None).unwrap(), None);
    let mut left: Vec<String> = fs::read_dir(world.audit())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left.len(), 2, "the checkpoints and the open segment: {left:?}");
    world.disk.rest();
    assert!(world.verify().ok);
}

#[test]
fn somebody_else_cannot_state_a_deletion() {
    let world = World::written(100);
    let stranger = World { seed: [1; 32], ..World::new() };
    let first = segments(&world.audit())[0].clone();
    let last = fs::read_to_string(&first).unwrap().lines().last().unwrap().to_owned();
    let seq = serde_json::from_str::<Value>(&last).unwrap()["seq"].as_u64().unwrap();
    let old = world.checkpoints().pop().unwrap();
    let statement = lastkey_engine::audit::Statement {
        kind: lastkey_engine::audit::CheckpointKind::Retention,
        head: lastkey_engine::audit::Head { seq, hash: mac::sha256(&[last.as_bytes()]) },
        number: old.statement.number + 1,
        prev: mac::sha256(&[old.to_line().as_bytes()]),
        ..old.statement
    };
    let line = statement.sign(&stranger.signing_key()).to_line();
    let path = world.audit().join("checkpoints.log");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str(&format!("{line}\n"));
    fs::write(&path, text).unwrap();
    fs::remove_file(first).unwrap();
    let found = verify_by(&world.audit(), world.signing_key().public());
    assert!(!found.ok, "{found:?}");
    let log = world.open();
    let found = log.verify(&[]).unwrap();
    assert!(!found.ok && found.problems.iter().any(|p| p.kind == "missing"), "{found:?}");
    write(&log, 1);
}
