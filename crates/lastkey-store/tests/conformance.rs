//! What each store promises, run against each store.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Fixture, Model, memory, redb};
use lastkey_store::{CommitError, Event, Revision, Store, StoreHealth, Transaction};
use proptest::{prelude::*, test_runner::TestRunner};

/// Runs the test against every store.
macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $test() { super::run(super::memory, super::$test); })*
        }
        mod in_redb {
            $(#[test] fn $test() { super::run(super::redb, super::$test); })*
        }
    };
}

conformance![
    values_come_back,
    lists_are_ordered_and_bounded,
    compares_decide,
    values_are_compared,
    transactions_are_judged_in_the_order_of_their_commits,
    refused_transactions_leave_nothing,
    changes_that_change_nothing_keep_the_revision,
    limits_hold,
    random_transactions_match_the_model,
    racing_increments_lose_nothing,
    lists_see_one_moment,
    watches_report_everything_in_order,
    slow_watchers_are_told,
    watches_end_with_the_store,
];

fn run<F: Future<Output = ()>>(fixture: fn() -> Fixture, test: impl Fn(fn() -> Fixture) -> F) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(4).enable_all().build().unwrap().block_on(test(fixture));
}

type New = fn() -> Fixture;

async fn values_come_back(new: New) {
    let fixture = new();
    let store = &fixture.store;
    assert_eq!(store.get("a").await.unwrap(), None);
    let first = store.commit(Transaction::new().put("a", "one").put("b", "")).await.unwrap();
    assert_eq!(first, Revision(1));
    let a = store.get("a").await.unwrap().unwrap();
    assert_eq!((a.path.as_str(), a.value.as_slice(), a.revision), ("a", b"one".as_slice(), first));
    assert_eq!(store.get("b").await.unwrap().unwrap().value, b"");
    let large = vec![7; Transaction::MAX_BYTES - 1];
    let second = store.commit(Transaction::new().put("a", large.clone())).await.unwrap();
    assert_eq!(second, Revision(2));
    assert_eq!(store.get("a").await.unwrap().unwrap().value, large);
    assert_eq!(store.get("b").await.unwrap().unwrap().revision, first);
    store.commit(Transaction::new().delete("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(store.health(), StoreHealth::Serving);
}

async fn lists_are_ordered_and_bounded(new: New) {
    let fixture = new();
    let store = &fixture.store;
    let paths = ["a", "k", "k/", "k/1", "k/10", "k/2", "k/\u{10ffff}", "k0", "l"];
    let mut model = Model::default();
    for path in paths {
        let change = Transaction::new().put(path, path);
        model.commit(&change).unwrap();
        store.commit(change).await.unwrap();
    }
    let afters =
        [None, Some(""), Some("a"), Some("k/"), Some("k/1"), Some("k/11"), Some("k/z"), Some("z")];
    for prefix in ["", "k", "k/", "k/1", "k/\u{10ffff}", "x"] {
        for after in afters {
            for limit in [0, 1, 2, 100, usize::MAX] {
                let listed = store.list(prefix, after, limit).await.unwrap();
                let expected = model.list(prefix, after, limit);
                assert_eq!(listed, expected, "{prefix:?} after {after:?}, at most {limit}");
            }
        }
    }
    // Longer than one piece of a long list, and exactly as long.
    for i in 0..1500 {
        let change = Transaction::new().put(format!("many/{i:04}"), "x");
        model.commit(&change).unwrap();
        if i % 100 == 99 {
            let batch = (i - 99..=i)
                .fold(Transaction::new(), |batch, i| batch.put(format!("many/{i:04}"), "x"));
            store.commit(batch).await.unwrap();
        }
    }
    for limit in [499, 500, 501, 1000, 1499, 1500, 1501, usize::MAX] {
        let listed = store.list("many/", None, limit).await.unwrap();
        let paths: Vec<_> = listed.into_iter().map(|entry| entry.path).collect();
        let expected = model.list("many/", None, limit).into_iter().map(|entry| entry.path);
        assert_eq!(paths, expected.collect::<Vec<_>>(), "{limit}");
    }
}

async fn compares_decide(new: New) {
    let fixture = new();
    let store = &fixture.store;
    let conflict = |result: Result<Revision, CommitError>| match result {
        Err(CommitError::Conflict { path }) => path,
        other => panic!("{other:?}"),
    };
    let r1 = store.commit(Transaction::new().expect_absent("a").put("a", "1")).await.unwrap();
    let again = store.commit(Transaction::new().expect_absent("a").put("a", "2")).await;
    assert_eq!(conflict(again), "a");
    let r2 = store.commit(Transaction::new().expect_revision("a", r1).put("a", "3")).await.unwrap();
    let stale = store.commit(Transaction::new().expect_revision("a", r1).put("a", "4")).await;
    assert_eq!(conflict(stale), "a");
    store.commit(Transaction::new().expect_exists("a").put("b", "5")).await.unwrap();
    let absent = Transaction::new().expect_revision("a", r2).expect_exists("c").put("a", "6");
    assert_eq!(conflict(store.commit(absent).await), "c");
    let zero = Transaction::new().expect_revision("c", Revision(0)).put("c", "7");
    assert_eq!(conflict(store.commit(zero).await), "c");
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"3");
}

async fn values_are_compared(new: New) {
    let fixture = new();
    let store = &fixture.store;
    let path_of = |result: Result<Revision, CommitError>| match result {
        Err(CommitError::Conflict { path }) => path,
        other => panic!("{other:?}"),
    };
    let absent = Transaction::new().expect_value("a", "").put("a", "1");
    assert_eq!(path_of(store.commit(absent).await), "a");
    store.commit(Transaction::new().put("a", "one")).await.unwrap();
    for wrong in ["", "on", "one ", "One"] {
        let change = Transaction::new().expect_value("a", wrong).put("a", "2");
        assert_eq!(path_of(store.commit(change).await), "a", "{wrong:?}");
    }
    store.commit(Transaction::new().expect_value("a", "one").put("a", "")).await.unwrap();
    store.commit(Transaction::new().expect_value("a", "").delete("a")).await.unwrap();
    let gone = Transaction::new().expect_value("a", "").put("b", "1");
    assert_eq!(path_of(store.commit(gone).await), "a");
}

/// Each transaction expects what the one before it writes, and none waits for an answer.
async fn transactions_are_judged_in_the_order_of_their_commits(new: New) {
    let fixture = new();
    let store = &fixture.store;
    store.commit(Transaction::new().put("n", 0u32.to_be_bytes())).await.unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut answers = Vec::new();
    for n in 0..600u32 {
        let mut change =
            Transaction::new().expect_value("n", n.to_be_bytes()).put("n", (n + 1).to_be_bytes());
        if n == 300 {
            // It fails, and with it all that were built on it.
            change = change.expect_exists("nothing");
        }
        let mut answer = store.commit(change);
        let polled = answer.as_mut().poll(&mut context);
        answers.push((n, polled, answer));
    }
    for (n, polled, answer) in answers {
        let found = match polled {
            std::task::Poll::Ready(found) => found,
            std::task::Poll::Pending => answer.await,
        };
        match (n, found) {
            (0..300, Ok(_)) => {}
            (300, Err(CommitError::Conflict { path })) => assert_eq!(path, "nothing"),
            (301.., Err(CommitError::Conflict { path })) => assert_eq!(path, "n"),
            (n, other) => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(store.get("n").await.unwrap().unwrap().value, 300u32.to_be_bytes());
}

async fn refused_transactions_leave_nothing(new: New) {
    let fixture = new();
    let store = &fixture.store;
    store.commit(Transaction::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("");
    let refused = Transaction::new().put("x", "1").delete("a").expect_absent("a");
    store.commit(refused).await.unwrap_err();
    let next = store.commit(Transaction::new().put("b", "2")).await.unwrap();
    assert_eq!(next, Revision(2));
    assert_eq!(store.list("", None, 10).await.unwrap().len(), 2);
    assert!(matches!(watch.next().await, Some(Event::Put(entry)) if entry.path == "b"));
}

async fn changes_that_change_nothing_keep_the_revision(new: New) {
    let fixture = new();
    let store = &fixture.store;
    assert_eq!(store.commit(Transaction::new()).await.unwrap(), Revision(0));
    store.commit(Transaction::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("");
    assert_eq!(store.commit(Transaction::new().delete("b")).await.unwrap(), Revision(1));
    let check = Transaction::new().expect_exists("a");
    assert_eq!(store.commit(check).await.unwrap(), Revision(1));
    // The same value again is a change, like in etcd.
    assert_eq!(store.commit(Transaction::new().put("a", "1")).await.unwrap(), Revision(2));
    assert!(matches!(watch.next().await, Some(Event::Put(entry)) if entry.revision == Revision(2)));
    // Of several changes only those are told that are any.
    let several = Transaction::new().delete("b").delete("a").delete("c").put("d", "1").delete("e");
    let revision = store.commit(several).await.unwrap();
    assert_eq!(watch.next().await, Some(Event::Delete { path: "a".into(), revision }));
    assert!(matches!(watch.next().await, Some(Event::Put(entry)) if entry.path == "d"));
    store.commit(Transaction::new().put("f", "1")).await.unwrap();
    assert!(matches!(watch.next().await, Some(Event::Put(entry)) if entry.path == "f"));
}

async fn limits_hold(new: New) {
    let fixture = new();
    let store = &fixture.store;
    let most = |n: usize| (0..n).fold(Transaction::new(), |t, i| t.put(format!("p{i}"), "x"));
    store.commit(most(Transaction::MAX_OPERATIONS)).await.unwrap();
    let over = store.commit(most(Transaction::MAX_OPERATIONS + 1)).await;
    assert!(matches!(over, Err(CommitError::TooLarge { .. })));
    let twice = store.commit(Transaction::new().put("p", "1").put("p", "2")).await;
    assert!(matches!(twice, Err(CommitError::Malformed { .. })));
}

/// Often one of a few, so that comparing values makes sense.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        (0..3usize).prop_map(|length| vec![7; length]),
    ]
}

/// A transaction over few paths, so that compares often hold and often fail.
fn any_transaction() -> impl Strategy<Value = Transaction> {
    let path = || (0..6u8).prop_map(|i| format!("p/{i}"));
    let compare = (path(), 0..4u8, 0..12u64);
    let operation = (path(), proptest::option::of(any_value()));
    let compares = proptest::collection::vec(compare, 0..3);
    (compares, proptest::collection::vec(operation, 0..5)).prop_map(|(compares, operations)| {
        let mut built = Transaction::new();
        for (path, kind, revision) in compares {
            built = match kind {
                0 => built.expect_absent(path),
                1 => built.expect_exists(path),
                2 => built.expect_value(path, vec![7; usize::try_from(revision % 3).unwrap()]),
                _ => built.expect_revision(path, Revision(revision)),
            };
        }
        let mut seen = std::collections::BTreeSet::new();
        for (path, value) in operations {
            if seen.insert(path.clone()) {
                built = match value {
                    Some(value) => built.put(path, value),
                    None => built.delete(path),
                };
            }
        }
        built
    })
}

async fn random_transactions_match_the_model(new: New) {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() };
    let strategy = proptest::collection::vec(any_transaction(), 1..30);
    let handle = tokio::runtime::Handle::current();
    let run = move || {
        TestRunner::new(config).run(&strategy, |transactions| {
            let fixture = new();
            let mut model = Model::default();
            handle.block_on(async {
                for transaction in transactions {
                    let expected = model.commit(&transaction);
                    let found = match fixture.store.commit(transaction).await {
                        Ok(revision) => Ok(revision),
                        Err(CommitError::Conflict { path }) => Err(path),
                        Err(other) => panic!("{other}"),
                    };
                    assert_eq!(found, expected);
                }
                let listed = fixture.store.list("", None, usize::MAX).await.unwrap();
                assert_eq!(listed, model.list("", None, usize::MAX));
            });
            Ok(())
        })
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap();
}

async fn racing_increments_lose_nothing(new: New) {
    const TASKS: usize = 32;
    const EACH: usize = 12;
    let fixture = new();
    let store = &fixture.store;
    store.commit(Transaction::new().put("n", 0u64.to_be_bytes())).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for i in 0..EACH {
                    increment(&*store, &format!("mine/{task}/{i}")).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let total = store.get("n").await.unwrap().unwrap();
    assert_eq!(total.value, ((TASKS * EACH) as u64).to_be_bytes());
    assert_eq!(total.revision, Revision((TASKS * EACH) as u64 + 1));
    assert_eq!(store.list("mine/", None, usize::MAX).await.unwrap().len(), TASKS * EACH);
}

async fn increment(store: &dyn Store, receipt: &str) {
    loop {
        let n = store.get("n").await.unwrap().unwrap();
        let next = u64::from_be_bytes(n.value.try_into().unwrap()) + 1;
        let change = Transaction::new()
            .expect_revision("n", n.revision)
            .expect_absent(receipt)
            .put("n", next.to_be_bytes())
            .put(receipt, next.to_be_bytes());
        match store.commit(change).await {
            Ok(_) => return,
            Err(CommitError::Conflict { path }) => assert_eq!(path, "n"),
            Err(other) => panic!("{other}"),
        }
    }
}

async fn lists_see_one_moment(new: New) {
    let fixture = new();
    let store = &fixture.store;
    let writer = {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            for i in 0..200u32 {
                let value = i.to_be_bytes();
                let both = Transaction::new().put("pair/a", value).put("pair/b", value);
                store.commit(both).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let pair = store.list("pair/", None, 10).await.unwrap();
        if let [a, b] = pair.as_slice() {
            assert_eq!((&a.value, a.revision), (&b.value, b.revision));
        }
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

async fn watches_report_everything_in_order(new: New) {
    const WRITERS: u32 = 8;
    const EACH: u32 = 50;
    let fixture = new();
    let store = &fixture.store;
    store.commit(Transaction::new().put("w/before", "x")).await.unwrap();
    let mut watch = store.watch("w/");
    let mut other = store.watch("nothing/");
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for i in 0..EACH {
                    let path = format!("w/{writer}");
                    let change = Transaction::new().put(format!("not-w/{writer}"), "x");
                    let change = if i % 5 == 4 {
                        change.delete(path)
                    } else {
                        change.put(path, i.to_be_bytes())
                    };
                    store.commit(change).await.unwrap();
                }
            })
        })
        .collect();
    let mut model = Model::default();
    let mut newest = Revision(1);
    for _ in 0..WRITERS * EACH {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap();
        let revision = match event.unwrap() {
            Event::Put(entry) => {
                // What was reported can be read.
                let read = store.get(&entry.path).await.unwrap();
                assert!(read.is_none_or(|read| read.revision >= entry.revision));
                model.entries.insert(entry.path, (entry.value, entry.revision.0));
                entry.revision
            }
            Event::Delete { path, revision } => {
                model.entries.remove(&path).unwrap();
                revision
            }
            Event::Lost => panic!("lost"),
        };
        assert!(revision > newest, "{revision} after {newest}");
        newest = revision;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    model.entries.insert("w/before".to_owned(), (b"x".to_vec(), 1));
    assert_eq!(store.list("w/", None, 100).await.unwrap(), model.list("w/", None, 100));
    let silent = tokio::time::timeout(Duration::from_millis(20), other.next()).await;
    assert!(silent.is_err());
}

async fn slow_watchers_are_told(new: New) {
    let fixture = new();
    let store = &fixture.store;
    let mut watch = store.watch("");
    let many = |from: usize| {
        (from..from + 128).fold(Transaction::new(), |t, i| t.put(format!("p{i:05}"), "x"))
    };
    for i in 0..9 {
        store.commit(many(i * 128)).await.unwrap();
    }
    assert_eq!(watch.next().await, Some(Event::Lost));
    let after = store.commit(Transaction::new().put("later", "y")).await.unwrap();
    let Some(Event::Put(entry)) = watch.next().await else { panic!("no event") };
    assert_eq!((entry.path.as_str(), entry.revision), ("later", after));
}

async fn watches_end_with_the_store(new: New) {
    let fixture = new();
    let mut watch = fixture.store.watch("");
    fixture.store.commit(Transaction::new().put("a", "1")).await.unwrap();
    drop(fixture);
    assert!(matches!(watch.next().await, Some(Event::Put(_))));
    assert_eq!(watch.next().await, None);
}
