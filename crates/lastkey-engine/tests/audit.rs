//! The log: what it holds, what it notices, what a crash leaves of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{fs, path::PathBuf, time::Duration};

use lastkey_engine::{Engine, Error, audit::Query, command::*};
use lastkey_store::Store;
use support::{World, by_id, context, create_key, root, secret};

fn segments(world: &World) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(world.audit_directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    files
}

fn lines(world: &World) -> Vec<String> {
    let text: String =
        segments(world).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(str::to_owned).collect()
}

fn rewrite(world: &World, change: impl FnOnce(&mut Vec<String>)) {
    let path = segments(world).pop().unwrap();
    let mut all: Vec<String> =
        fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    change(&mut all);
    fs::write(path, all.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

async fn encrypt_some(engine: &Engine, count: usize) {
    let key = create_key(engine).await;
    for _ in 0..count {
        let encrypt = Encrypt {
            key: by_id(&key),
            plaintext: secret("the plaintext"),
            context: context(&[("tenant", "the value")]),
        };
        engine.execute(&root(engine), encrypt).await.unwrap();
    }
}

#[tokio::test]
async fn every_command_leaves_one_record_without_secrets() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 1).await;
    let decrypt = Decrypt { blob: b"nonsense".to_vec(), context: context(&[]) };
    assert!(engine.execute(&root(&engine), decrypt).await.is_err());
    let records: Vec<serde_json::Value> =
        lines(&world).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = records
        .iter()
        .map(|r| (r["action"].as_str().unwrap(), r["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [("CreateKey", "ok"), ("Encrypt", "ok"), ("Decrypt", "InvalidParameter")]);
    assert_eq!(records[1]["principal"], "root/LKtest");
    assert_eq!(records[1]["context"], serde_json::json!(["tenant"]));
    assert!(records[1]["key"].is_string() && records[1]["latency_us"].is_u64());
    let text = lines(&world).concat();
    assert!(!text.contains("the plaintext") && !text.contains("the value"));
}

#[tokio::test]
async fn the_chain_can_be_recomputed_by_anybody() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 20).await;
    let mut prev = "0".repeat(64);
    for (index, line) in lines(&world).iter().enumerate() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["seq"], index + 1);
        assert_eq!(record["prev"], prev);
        prev = hex::encode(lastkey_crypto::mac::sha256(&[line.as_bytes()]));
    }
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok && found.records == 21, "{found:?}");
    assert_eq!(found.head, prev);
}

#[tokio::test]
async fn tampering_is_noticed_and_located() {
    type Tamper = fn(&mut Vec<String>);
    let cases: [(&str, Tamper, &str, u64); 7] = [
        ("changed", |l| l[4] = l[4].replace("Encrypt", "Decrypt"), "changed", 5),
        (
            "last changed",
            |l| {
                let n = l.len() - 1;
                l[n] = l[n].replace("Encrypt", "Decrypt");
            },
            "changed",
            11,
        ),
        (
            "removed",
            |l| {
                l.remove(6);
            },
            "missing",
            7,
        ),
        (
            "first removed",
            |l| {
                l.remove(0);
            },
            "missing",
            1,
        ),
        ("swapped", |l| l.swap(3, 4), "missing", 4),
        ("truncated", |l| l.truncate(8), "truncated", 9),
        ("garbage", |l| l[5] = "not a record".into(), "changed", 6),
    ];
    for (name, tamper, kind, seq) in cases {
        for while_running in [true, false] {
            let world = World::new();
            let mut engine = world.start().await;
            encrypt_some(&engine, 10).await;
            if !while_running {
                engine.shutdown().await;
            }
            rewrite(&world, tamper);
            if !while_running {
                engine = world.start().await;
            }
            let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
            assert!(!found.ok, "{name}, running {while_running}");
            let located = found.problems.iter().any(|p| p.kind == kind && p.seq == seq);
            assert!(located, "{name}, running {while_running}: {:?}", found.problems);
            if name == "changed" {
                assert_eq!(found.problem.unwrap().line, 5);
            }
        }
    }
}

#[tokio::test]
async fn a_forged_tail_and_a_missing_file_are_noticed() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 5).await;
    engine.shutdown().await;
    rewrite(&world, |lines| {
        let last = lines.last().unwrap().clone();
        let hash = hex::encode(lastkey_crypto::mac::sha256(&[last.as_bytes()]));
        lines.push(format!(r#"{{"seq":7,"prev":"{hash}","action":"Forged","outcome":"ok"}}"#));
    });
    let engine = world.start().await;
    encrypt_some(&engine, 2).await;
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(!found.ok, "{found:?}");
    engine.shutdown().await;

    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 5).await;
    engine.shutdown().await;
    fs::remove_file(segments(&world).pop().unwrap()).unwrap();
    let engine = world.start().await;
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(!found.ok, "{found:?}");
}

/// Segments, checkpoints and journal of an earlier time fit each other; the store knows better.
#[tokio::test]
async fn a_log_that_was_cut_with_its_journal_is_told_for_as_long_as_the_server_runs() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 3).await;
    engine.shutdown().await;
    let names = [world.audit_directory(), world.directory.path().join("journal")];
    let files = |directory: &PathBuf| -> Vec<(PathBuf, Vec<u8>)> {
        let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_file()).map(|p| (p.clone(), fs::read(p).unwrap())).collect()
    };
    let earlier: Vec<_> = names.iter().flat_map(files).collect();
    let engine = world.start().await;
    encrypt_some(&engine, 5).await;
    engine.shutdown().await;
    names.iter().flat_map(files).for_each(|(path, _)| fs::remove_file(path).unwrap());
    earlier.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());

    let engine = world.start().await;
    let status = engine.execute(&root(&engine), DescribeService).await.unwrap();
    assert!(status.warnings.iter().any(|w| w.contains("it was cut")), "{:?}", status.warnings);
    let problem = engine.execute(&root(&engine), VerifyAudit).await.unwrap().problem.unwrap();
    assert_eq!(problem.kind, "truncated", "{problem:?}");
    assert!(problem.what.contains("the store remembers"), "{problem:?}");
    // The log grows beyond what was cut off, and the store remembers its new end.
    encrypt_some(&engine, 30).await;
    let problem = engine.execute(&root(&engine), VerifyAudit).await.unwrap().problem.unwrap();
    assert_eq!(problem.kind, "changed", "{problem:?}");
    assert!(problem.what.contains("the store remembers"), "{problem:?}");
}

#[tokio::test]
async fn a_log_without_its_journal_is_refused() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 1).await;
    engine.shutdown().await;
    fs::remove_dir_all(world.directory.path().join("journal")).unwrap();
    let refused = world.try_start("here").await.err().unwrap().to_string();
    assert!(refused.contains("journal"), "{refused}");
}

#[tokio::test]
async fn what_a_power_cut_took_from_a_segment_comes_back_from_the_journal() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 30).await;
    let whole = fs::read(segments(&world).pop().unwrap()).unwrap();
    // A crash: the engine is gone without a clean end, and the file lost its unsynchronised tail.
    let copy = World::new();
    for name in ["journal/journal-0", "journal/journal-1", "root.key"] {
        let to = copy.directory.path().join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(world.directory.path().join(name), to).unwrap();
    }
    copy_store(&world, &copy).await;
    fs::create_dir_all(copy.audit_directory()).unwrap();
    let name = segments(&world).pop().unwrap().file_name().unwrap().to_owned();
    let mut torn = whole[..whole.len() / 2].to_vec();
    torn.extend(vec![0; 700]);
    fs::write(copy.audit_directory().join(&name), torn).unwrap();

    let engine = copy.start().await;
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok, "{found:?}");
    let restored = fs::read(copy.audit_directory().join(&name)).unwrap();
    assert!(restored.starts_with(&whole));
}

async fn copy_store(from: &World, to: &World) {
    for entry in from.store.list("", None, 10_000).await.unwrap() {
        let put = lastkey_store::Transaction::new().put(entry.path, entry.value);
        to.store.commit(put).await.unwrap();
    }
}

#[tokio::test]
async fn a_change_whose_record_missed_the_log_is_recorded_at_the_next_start_once() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 3).await;
    // The store as it is between the commit and the record: take the log back to before it.
    let snapshot = World::new();
    let copy_log = |to: &World| {
        for name in ["journal/journal-0", "journal/journal-1", "root.key"] {
            let to = to.directory.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(world.directory.path().join(name), to).unwrap();
        }
        fs::create_dir_all(to.audit_directory()).unwrap();
        for segment in segments(&world) {
            fs::copy(&segment, to.audit_directory().join(segment.file_name().unwrap())).unwrap();
        }
    };
    tokio::time::sleep(Duration::from_millis(600)).await; // the sweep is through
    copy_log(&snapshot);
    let key = create_key(&engine).await;
    copy_store(&world, &snapshot).await;

    let engine = snapshot.start().await;
    let creations = Query { action: Some("CreateKey".into()), limit: 100, ..Query::default() };
    let ask = || QueryAudit { query: creations.clone() };
    let page = engine.execute(&root(&engine), ask()).await.unwrap();
    let of_key = page.records.iter().filter(|r| r["key"] == key.id.to_string()).count();
    assert_eq!(of_key, 1);
    engine.shutdown().await;
    let engine = snapshot.start().await;
    let page = engine.execute(&root(&engine), ask()).await.unwrap();
    assert_eq!(page.records.len(), 2);
}

#[tokio::test]
async fn queries_find_what_they_ask_for_and_page() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 25).await;
    let encrypts = Query {
        action: Some("encrypt".into()),
        context_key: Some("tenant".into()),
        limit: 10,
        ..Query::default()
    };
    let mut seen = 0;
    let mut query = encrypts.clone();
    loop {
        let ask = QueryAudit { query: query.clone() };
        let page = engine.execute(&root(&engine), ask).await.unwrap();
        seen += page.records.len();
        match page.next {
            Some(next) => query.after = next,
            None => break,
        }
    }
    assert_eq!(seen, 25);
    let newest = Query { newest: true, limit: 2, ..encrypts };
    let page = engine.execute(&root(&engine), QueryAudit { query: newest }).await.unwrap();
    assert_eq!(
        page.records.iter().map(|r| r["seq"].as_u64().unwrap()).collect::<Vec<_>>(),
        [25, 26]
    );
}

#[tokio::test]
async fn a_replayed_nonce_is_refused_after_a_restart_too() {
    let world = World::new();
    let engine = world.start().await;
    let now = support::START;
    let mut caller = root(&engine);
    caller.nonce = Some(engine.admit_nonce("LKtest", "n1", now).unwrap());
    let _ = engine.execute(&caller, DescribeService).await.unwrap();
    assert!(engine.admit_nonce("LKtest", "n1", now).is_err());
    engine.shutdown().await;
    let engine = world.start().await;
    assert!(engine.admit_nonce("LKtest", "n1", now).is_err());
    assert!(engine.admit_nonce("LKtest", "n2", now).is_ok());
}

#[tokio::test]
async fn strangers_fill_no_disk() {
    let world = World::new();
    let engine = world.start().await;
    for _ in 0..100_000 {
        engine.refused("SignatureDoesNotMatch", lastkey_engine::Source::Internal);
    }
    engine.shutdown().await;
    let all = lines(&world);
    assert_eq!(all.len(), 1);
    assert!(all[0].contains(r#""count":100000"#), "{}", all[0]);
}

#[tokio::test]
async fn nothing_is_answered_after_the_log_is_closed() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    let refused = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.err();
    assert!(matches!(refused, Some(Error::Unavailable(_))), "{refused:?}");
}

#[tokio::test]
async fn the_journal_turns_over_and_over() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    // Some 40 000 records: about 14 MB, three turns of the journal.
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (engine, key) = (engine.clone(), by_id(&key));
            tokio::spawn(async move {
                for _ in 0..625 {
                    let describe = DescribeKey { key: key.clone() };
                    engine.execute(&root(&engine), describe).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok && found.records == 40_001, "{found:?}");
    engine.shutdown().await;
    let engine = world.start().await;
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert!(found.ok, "{found:?}");
}

/// What a store says when it does not know whether it made a change.
#[tokio::test]
async fn an_uncertain_commit_is_looked_up_and_nothing_is_left_half_done() {
    use lastkey_store::CommitFault;
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;

    world.store.fail_next_commit(CommitFault::UncertainMade);
    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    let describe = || DescribeKey { key: by_id(&key) };
    let now = engine.execute(&root(&engine), describe()).await.unwrap();
    assert_eq!(now.state, lastkey_engine::KeyState::Disabled);

    world.store.fail_next_commit(CommitFault::UncertainNotMade);
    let refused = engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.err();
    assert!(matches!(refused, Some(Error::Unavailable(_))), "{refused:?}");
    let now = engine.execute(&root(&engine), describe()).await.unwrap();
    assert_eq!(now.state, lastkey_engine::KeyState::Disabled);

    for fault in [CommitFault::Full, CommitFault::Busy, CommitFault::Unavailable] {
        world.store.fail_next_commit(fault);
        let refused = engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.err();
        assert!(refused.is_some());
    }
    world.store.fail_next_commit(CommitFault::Conflict);
    engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.unwrap();
    let changes = Query { action: Some("EnableKey".into()), limit: 100, ..Query::default() };
    let page = engine.execute(&root(&engine), QueryAudit { query: changes }).await.unwrap();
    let outcomes: Vec<_> = page.records.iter().map(|r| r["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes.last(), Some(&"ok"));
    assert_eq!(outcomes.len(), 5);
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_no_change_without_its_record() {
    let world = World::new();
    let engine = world.start().await;
    for n in 0..50 {
        let caller = root(&engine);
        let change = engine.execute(&caller, CreateKey::default());
        let _ = tokio::time::timeout(Duration::from_micros(20 * n), change).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let created = Query { action: Some("CreateKey".into()), limit: 100, ..Query::default() };
    let page = engine.execute(&root(&engine), QueryAudit { query: created }).await.unwrap();
    assert_eq!(page.records.len(), engine.key_count());
}

#[tokio::test]
async fn a_segment_replaced_under_the_writer_costs_no_later_record() {
    let world = World::new();
    let engine = world.start().await;
    encrypt_some(&engine, 5).await;
    // As an editor or `sed -i` does it: another file under the same name.
    let path = segments(&world).pop().unwrap();
    let copy = path.with_extension("copy");
    let changed = fs::read_to_string(&path).unwrap().replacen("Encrypt", "Decrypt", 1);
    fs::write(&copy, changed).unwrap();
    fs::rename(&copy, &path).unwrap();
    encrypt_some(&engine, 5).await;
    assert_eq!(lines(&world).len(), 12);
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert_eq!(found.problems.len(), 1, "{found:?}");
    assert_eq!((found.problems[0].kind, found.problems[0].seq), ("changed", 2));
}
