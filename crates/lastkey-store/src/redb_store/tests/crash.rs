//! Power cuts at every change to the disk: what was acknowledged is there, the rest whole or not.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    super::{RedbStore, committer::open_database, schema},
    Random,
    disk::{Change, Disk, write},
    formatted, options,
};
use crate::{Operation, Revision, Store, Transaction};

type Content = BTreeMap<String, (Vec<u8>, u64)>;

/// What a run did: its changes to the disk, and what its callers were told when.
struct Run {
    start: Vec<u8>,
    changes: Vec<Change>,
    /// Number of changes made when a revision was known to be acknowledged.
    acknowledged: Vec<(usize, u64)>,
    /// The content at each revision.
    states: Vec<Content>,
}

impl Run {
    fn must_have(&self, position: usize) -> u64 {
        let known = self.acknowledged.iter().filter(|(at, _)| *at <= position);
        known.map(|(_, revision)| *revision).max().unwrap_or(0)
    }
}

#[test]
fn every_power_cut_keeps_what_was_acknowledged() {
    let seed = Random::seed();
    println!("LASTKEY_STORE_SEED={seed}");
    let mut random = Random(seed);
    let run = run(&mut random);
    let mut synced = run.start.clone();
    let mut unsynced: Vec<&Change> = Vec::new();
    let mut cuts = 0;
    for position in 0..=run.changes.len() {
        let must_have = run.must_have(position);
        let mut images = vec![synced.clone(), all_of(&synced, &unsynced)];
        if !unsynced.is_empty() {
            images.extend((0..4).map(|_| some_of(&synced, &unsynced, &mut random)));
        }
        for (kind, image) in images.into_iter().enumerate() {
            check(image, &run.states, must_have, &format!("seed {seed}, cut {position}.{kind}"));
            cuts += 1;
        }
        match run.changes.get(position) {
            Some(Change::Sync) => {
                synced = all_of(&synced, &unsynced);
                unsynced.clear();
            }
            Some(change) => unsynced.push(change),
            None => {}
        }
    }
    println!("{cuts} power cuts, {} revisions", run.states.len() - 1);
}

/// Commits bursts of transactions of many sizes, so that the file grows, and closes cleanly.
fn run(random: &mut Random) -> Run {
    let start = formatted();
    let disk = Disk::of(start.clone());
    disk.record();
    let store = RedbStore::on(disk.clone(), Path::new("simulated"), options()).unwrap();
    let store = Arc::new(store);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut done = runtime.block_on(async {
        let mut done = Vec::new();
        for burst in 0..40 {
            let tasks: Vec<_> = (0..1 + random.below(4))
                .map(|_| {
                    let (store, disk) = (Arc::clone(&store), disk.clone());
                    let change = any_change(random, burst);
                    tokio::spawn(async move {
                        let operations = change.operations().to_vec();
                        let revision = store.commit(change).await.unwrap();
                        (revision.0, disk.position(), operations)
                    })
                })
                .collect();
            for task in tasks {
                done.push(task.await.unwrap());
            }
        }
        done
    });
    drop(store);
    done.sort_by_key(|(revision, ..)| *revision);
    let mut run = Run { start, changes: disk.recorded(), acknowledged: vec![], states: vec![] };
    run.states.push(Content::new());
    for (revision, position, operations) in done {
        run.acknowledged.push((position, revision));
        let mut next = run.states.last().unwrap().clone();
        apply(&mut next, operations, revision);
        assert_eq!(run.states.len() as u64, revision);
        run.states.push(next);
    }
    run
}

fn any_change(random: &mut Random, burst: usize) -> Transaction {
    // Something in each transaction has an effect, so that each has a revision of its own.
    let mut change = Transaction::new().put("always", random.0.to_be_bytes());
    for path in 0..random.below(4) {
        let path = format!("p/{}/{path}", random.below(8));
        let size = if burst % 5 == 4 { random.below(100_000) } else { random.below(300) };
        let fresh = !change.operations().iter().any(|operation| operation.path() == path);
        if fresh {
            change = match random.below(4) {
                0 => change.delete(path),
                _ => change.put(path, vec![u8::try_from(random.below(256)).unwrap(); size]),
            };
        }
    }
    change
}

fn apply(content: &mut Content, operations: Vec<Operation>, revision: u64) {
    for operation in operations {
        match operation {
            Operation::Put { path, value } => drop(content.insert(path, (value, revision))),
            Operation::Delete { path } => drop(content.remove(&path)),
        }
    }
}

fn all_of(synced: &[u8], unsynced: &[&Change]) -> Vec<u8> {
    let mut image = synced.to_vec();
    unsynced.iter().for_each(|change| change.apply(&mut image));
    image
}

/// Any of the changes, in any state of completion.
fn some_of(synced: &[u8], unsynced: &[&Change], random: &mut Random) -> Vec<u8> {
    let mut image = synced.to_vec();
    for change in unsynced {
        match (random.below(3), change) {
            (0, _) => {}
            (1, Change::Write { at, data }) => torn(&mut image, *at, data, random),
            _ => change.apply(&mut image),
        }
    }
    image
}

fn torn(image: &mut Vec<u8>, at: usize, data: &[u8], random: &mut Random) {
    if random.below(2) == 0 {
        return write(image, at, &data[..random.below(data.len() + 1)]);
    }
    for (i, sector) in data.chunks(512).enumerate() {
        if random.below(2) == 0 {
            write(image, at + i * 512, sector);
        }
    }
}

fn check(image: Vec<u8>, states: &[Content], must_have: u64, what: &str) {
    let disk = Disk::of(image);
    let database = open_database(&disk, options())
        .unwrap_or_else(|failure| panic!("{what}: does not open: {failure:?}"));
    let Ok(schema::Found::Ours(revision)) = schema::inspect(&database) else {
        panic!("{what}: not ours");
    };
    assert!(revision.0 >= must_have, "{what}: at {revision}, acknowledged {must_have}");
    assert_eq!(content(&database), states[usize::try_from(revision.0).unwrap()], "{what}");
    // It goes on from there.
    let more = [Transaction::new().put("more", "x")];
    let Ok((_, next)) = schema::apply(&database, revision, more.iter()) else {
        panic!("{what}: takes no more");
    };
    assert_eq!(next, Revision(revision.0 + 1), "{what}");
}

fn content(database: &redb::Database) -> Content {
    let listed = schema::Snapshot::of(database).unwrap().list("", None, usize::MAX).unwrap();
    listed.into_iter().map(|entry| (entry.path, (entry.value, entry.revision.0))).collect()
}
