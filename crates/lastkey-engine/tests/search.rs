//! Searching the log: how much is read for it, files that are large, gone or unreadable, and where
//! a page ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lastkey_engine::audit::{AuditLog, AuditSink, Query};
use log::{Deed, World, segments};

/// Appends records with these bytes of padding.
fn write(log: &AuditLog, numbers: std::ops::RangeInclusive<u64>, pad: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tickets: Vec<_> = numbers
        .map(|n| {
            let pad = "x".repeat(pad);
            let body = format!(
                r#""time":"2026-01-01T00:00:00.000Z","action":"Encrypt","principal":"p{}","key":"k{n}","outcome":"ok","pad":"{pad}""#,
                n % 5
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

/// What a query finds, on as many pages as it takes.
fn numbers(log: &AuditLog, query: &Query) -> Vec<u64> {
    let (mut found, mut query) = (Vec::new(), query.clone());
    loop {
        let page = log.query(&query).unwrap();
        found.extend(page.records.iter().map(|record| record["seq"].as_u64().unwrap()));
        match page.next {
            Some(next) if found.len() < query.limit => query.after = next,
            _ => return found,
        }
    }
}

fn all() -> Query {
    Query { limit: 1 << 20, ..Query::default() }
}

fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zst")
}

/// A log of small compressed segments and one that is open.
fn packed() -> (World, AuditLog, Vec<PathBuf>) {
    let world = World { compress: true, ..World::new() };
    let log = world.open();
    for start in (1..=100).step_by(10) {
        write(&log, start..=start + 9, 300);
    }
    let packed = settled(&world);
    (world, log, packed)
}

/// Waits until all closed segments are compressed; their files.
fn settled(world: &World) -> Vec<PathBuf> {
    for _ in 0..6000 {
        let files = segments(&world.audit());
        let of = |name: &str| files.iter().filter(|p| p.extension().unwrap() == name).count();
        if of("jsonl") == 1 && of("idx") == of("zst") {
            return files.into_iter().filter(|path| is_packed(path)).collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?}", segments(&world.audit()));
}

/// Counts the bytes that are asked for of files that `which` names.
fn count_reads(world: &World, which: fn(&Path) -> bool) -> Arc<AtomicU64> {
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    world.disk.ask(move |deed, path| {
        if let Deed::Read(length) = deed
            && which(path)
        {
            counted.fetch_add(length as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    bytes
}

#[test]
fn a_large_plain_segment_is_entered_near_where_the_search_begins() {
    let world = World { segment_bytes: 64 << 20, ..World::new() };
    let log = world.open();
    // 12 MiB: six pieces, which begin somewhere in a line.
    const RECORDS: u64 = 9000;
    for start in (1..=RECORDS).step_by(500) {
        write(&log, start..=start + 499, 1200);
    }
    assert_eq!(segments(&world.audit()).len(), 1);
    assert_eq!(numbers(&log, &all()), (1..=RECORDS).collect::<Vec<_>>());
    for after in [0, 1, 1500, 1501, 4499, 4500, 7001, RECORDS - 60, RECORDS - 1, RECORDS] {
        let query = Query { after, ..all() };
        assert_eq!(numbers(&log, &query), (after + 1..=RECORDS).collect::<Vec<_>>());
        let query = Query { after, limit: 3, ..all() };
        let found: Vec<u64> = (after + 1..=RECORDS).take(3).collect();
        assert_eq!(numbers(&log, &query), found);
    }
    // Near the end, a little is read and not all of it.
    let read = count_reads(&world, |path| !is_packed(path));
    assert_eq!(numbers(&log, &Query { after: RECORDS - 2, ..all() }), [RECORDS - 1, RECORDS]);
    let bytes = read.load(Ordering::Relaxed);
    assert!(bytes < 512 << 10, "{bytes}");
}

#[test]
fn lines_that_are_longer_than_what_is_peeked_at_are_found_too() {
    let world = World { segment_bytes: 64 << 20, ..World::new() };
    let log = world.open();
    for start in (1..=60).step_by(10) {
        write(&log, start..=start + 9, 100_000);
    }
    for after in [0, 1, 20, 21, 30, 58, 59, 60] {
        let query = Query { after, ..all() };
        assert_eq!(numbers(&log, &query), (after + 1..=60).collect::<Vec<_>>());
    }
    let newest = Query { newest: true, limit: 2, ..all() };
    assert_eq!(numbers(&log, &newest), [59, 60]);
}

#[test]
fn what_the_index_rules_out_is_not_read() {
    let (world, log, _) = packed();
    let read = count_reads(&world, is_packed);
    for nobody in [
        Query { principal: Some("nobody".into()), ..all() },
        Query { key: Some("no key".into()), outcome: Some("never".into()), ..all() },
        Query { context_key: Some("no name of a context".into()), ..all() },
        Query {
            from: Some(lastkey_engine::Timestamp::parse("2027-01-01T00:00:00Z").unwrap()),
            ..all()
        },
    ] {
        assert_eq!(numbers(&log, &nobody), [0; 0]);
        assert_eq!(read.load(Ordering::Relaxed), 0, "{nobody:?}");
    }
    // The newest few are in the open segment, or next to it.
    let newest = Query { newest: true, limit: 1, ..all() };
    assert_eq!(numbers(&log, &newest), [100]);
    // A part of a principal's name is enough.
    let some = Query { principal: Some("3".into()), ..all() };
    assert_eq!(numbers(&log, &some), (1..=100).filter(|n| n % 5 == 3).collect::<Vec<_>>());
    assert!(read.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_key_is_found_where_a_re_encryption_opened_with_it_too() {
    let world = World { compress: true, ..World::new() };
    let log = world.open();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let note = |action: &str, keys: &str| {
        let body = format!(r#""action":"{action}","principal":"p"{keys},"outcome":"ok""#);
        runtime.block_on(log.append(body.into_bytes())).unwrap();
    };
    note("ReEncrypt", r#","source_key":"from","key":"to""#);
    write(&log, 1..=30, 300);
    note("Decrypt", r#","key":"from""#);
    write(&log, 31..=60, 300);
    let of = |key: &str| numbers(&log, &Query { key: Some(key.into()), ..all() });
    let found = || assert_eq!((of("from"), of("to"), of("k7")), (vec![1, 32], vec![1], vec![8]));
    // Plain or not, with an index and without.
    found();
    let packed = settled(&world);
    found();
    for path in &packed {
        fs::remove_file(path.with_extension("").with_extension("idx")).unwrap();
    }
    found();
}

#[test]
fn each_of_several_keys_finds_the_record_of_them_all() {
    let world = World { compress: true, ..World::new() };
    let log = world.open();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body =
        br#""action":"TagResource","principal":"p","changed_keys":["one","two"],"outcome":"ok""#;
    runtime.block_on(log.append(body.to_vec())).unwrap();
    write(&log, 1..=60, 300);
    let of = |key: &str| numbers(&log, &Query { key: Some(key.into()), ..all() });
    let found = || {
        assert_eq!(
            (of("one"), of("two"), of("k7"), of("p")),
            ([1].into(), [1].into(), [8].into(), vec![])
        )
    };
    // Plain or not.
    found();
    settled(&world);
    found();
}

#[test]
fn a_page_ends_where_there_is_no_more() {
    let (_world, log, packed) = packed();
    for without_index in [false, true] {
        if without_index {
            for path in &packed {
                fs::remove_file(path.with_extension("").with_extension("idx")).unwrap();
            }
        }
        for (limit, next) in [(99, Some(99)), (100, None), (101, None), (1, Some(1)), (7, Some(7))]
        {
            let page = log.query(&Query { limit, ..all() }).unwrap();
            assert_eq!((page.records.len(), page.next), (limit.min(100), next));
        }
        // None at all are as many as one.
        assert_eq!(log.query(&Query { limit: 0, ..all() }).unwrap().records.len(), 1);
        let mut query = Query { limit: 3, principal: Some("p1".into()), ..all() };
        let mut found = Vec::new();
        loop {
            let page = log.query(&query).unwrap();
            found.extend(page.records.iter().map(|record| record["seq"].as_u64().unwrap()));
            let Some(next) = page.next else { break };
            query.after = next;
        }
        assert_eq!(found, (1..=100).filter(|n| n % 5 == 1).collect::<Vec<_>>());
        // The newest are all there is to a page of them.
        let newest = Query { newest: true, limit: 5, principal: Some("p1".into()), ..all() };
        let page = log.query(&newest).unwrap();
        assert_eq!((page.records.len(), page.next), (5, None));
        assert_eq!(numbers(&log, &newest), [76, 81, 86, 91, 96]);
    }
}

#[test]
fn the_newest_of_a_segment_without_an_index_are_its_last_ones() {
    let (world, log, _) = packed();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(log.append(br#""action":"Decrypt","key":"other""#.to_vec())).unwrap();
    // The segment in which the record above lies is the only one that is open.
    let packed = settled(&world);
    for path in &packed {
        fs::remove_file(path.with_extension("").with_extension("idx")).unwrap();
    }
    let newest =
        Query { newest: true, limit: 3, action: Some("encrypt".into()), ..Query::default() };
    assert_eq!(numbers(&log, &newest), [98, 99, 100]);
    assert_eq!(numbers(&log, &Query { newest: false, ..newest }), [1, 2, 3]);
}

/// Who is asked says this of every deed with that file.
fn refuse(world: &World, path: &Path, deed: fn(Deed) -> bool, kind: Option<io::ErrorKind>) {
    let of = path.to_owned();
    world.disk.ask(move |what, path| match kind {
        _ if path != of || !deed(what) => Ok(()),
        Some(kind) => Err(kind.into()),
        // EIO, as a disk says it.
        None => Err(io::Error::from_raw_os_error(5)),
    });
}

#[test]
fn a_segment_that_was_deleted_meanwhile_is_no_error_and_one_that_cannot_be_read_is() {
    let (world, log, packed) = packed();
    let open =
        segments(&world.audit()).into_iter().find(|p| p.extension().unwrap() == "jsonl").unwrap();
    let all_of_it = numbers(&log, &all());
    assert_eq!(all_of_it.len(), 100);
    let opened = |deed: Deed| deed == Deed::Open;
    let read = |deed: Deed| matches!(deed, Deed::Read(_));
    for path in [&packed[2], &open] {
        refuse(&world, path, opened, Some(io::ErrorKind::NotFound));
        let left = numbers(&log, &all());
        assert!(left.len() < 100 && !left.is_empty(), "{path:?}");
        for deed in [opened, read] {
            refuse(&world, path, deed, None);
            let refused = log.query(&all()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(5), "{path:?}");
            // A verification does not call that a log that was changed either.
            assert_eq!(log.verify(&[]).unwrap_err().raw_os_error(), Some(5));
        }
    }
    world.disk.rest();
    // Without an index the whole file is read, and the same is true of it.
    fs::remove_file(packed[2].with_extension("").with_extension("idx")).unwrap();
    assert_eq!(numbers(&log, &all()), all_of_it);
    refuse(&world, &packed[2], read, None);
    assert_eq!(log.query(&all()).unwrap_err().raw_os_error(), Some(5));
    world.disk.rest();
    // One that was changed is for a verification to tell; what opens is found.
    fs::write(&packed[2], b"no frames of anybody").unwrap();
    let left = numbers(&log, &all());
    assert!(left.len() < 100 && left.contains(&1) && left.contains(&100));
    assert!(!log.verify(&[]).unwrap().ok);
}

/// However many records are asked for, a page holds only so many of long ones, and says where to go
/// on.
#[test]
fn a_page_of_long_records_ends_early() {
    let world = World::new();
    let log = world.open();
    write(&log, 1..=400, 32 << 10);
    let bytes = |numbers: &[u64]| numbers.len() * (32 << 10);
    let (mut after, mut found, mut pages) = (0, Vec::new(), 0);
    loop {
        let page = log.query(&Query { after, ..all() }).unwrap();
        let seqs: Vec<_> = page.records.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
        assert!(bytes(&seqs) <= 8 << 20, "{} records", seqs.len());
        found.extend(seqs);
        pages += 1;
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert!(found.iter().copied().eq(1..=400), "none is left out, none comes twice");
    assert_eq!(pages, 2);
    let newest = numbers(&log, &Query { newest: true, ..all() });
    assert!(bytes(&newest) <= 8 << 20 && newest.len() > 200, "{} records", newest.len());
    assert!(newest.iter().copied().eq(401 - newest.len() as u64..=400), "they are the newest");
}
