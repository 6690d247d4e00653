//! Checkpoints that were taken away, or changed: the store remembers that there were some.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod log;
mod support;

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::{KeyMaterial, mac, signing::SigningKey};
use lastkey_engine::{
    Engine, ManualClock, NoAnchor, Parts, StartError,
    audit::{
        AuditLog, AuditOptions, AuditSink, Checkpoint, CheckpointKind, Checkpointing, Recalled,
        Retention, Verification,
    },
    command::*,
};
use lastkey_store::{Store as _, Transaction};
use log::{Deed, segments, verify_by, write};
use support::{World, parts, root};

const PATH: &str = "meta/checkpoint";

/// Where the checkpoints are.
fn file(world: &World) -> PathBuf {
    world.audit_directory().join("checkpoints.log")
}

fn key() -> SigningKey {
    SigningKey::from_seed(KeyMaterial::from_slice(&[9; 32])).unwrap()
}

async fn start(world: &World, every: Duration) -> Engine {
    Engine::start(parts_of(world, every)).await.unwrap()
}

fn parts_of(world: &World, every: Duration) -> Parts {
    let (store, clock) = (world.store.clone(), world.clock.clone());
    let mut parts = parts(store, clock, world.directory.path(), "here", Arc::new(NoAnchor));
    let (audit, journal) = (world.audit_directory(), world.directory.path().join("journal"));
    let clock: Arc<ManualClock> = world.clock.clone();
    parts.audit = Box::new(move |sealed| {
        let by = Checkpointing { every, ..Checkpointing::new(key(), clock.clone()) };
        let options =
            AuditOptions { segment_bytes: 4096, checkpoints: Some(by), ..AuditOptions::default() };
        AuditLog::open_with(&audit, &journal, sealed, options).map(|log| Arc::new(log) as _)
    });
    parts
}

/// What a server says of its checkpoints that starts now, verifies its log and stops again.
async fn one_life(world: &World) -> (Option<String>, Verification) {
    let engine = start(world, Duration::from_secs(3600)).await;
    let status = engine.execute(&root(&engine), DescribeService).await.unwrap();
    let said = status.warnings.into_iter().find(|warning| warning.contains("checkpoints.log"));
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    engine.shutdown().await;
    (said, found)
}

/// The same of one that has nothing to say.
async fn is_fine(world: &World) {
    let (said, found) = one_life(world).await;
    assert_eq!((said, found.warnings.as_slice()), (None, [].as_slice()));
    assert!(found.ok, "{found:?}");
    let found = verify_by(&world.audit_directory(), key().public());
    assert!(found.ok && found.warnings.is_empty(), "{found:?}");
}

/// The same of one that misses something.
async fn misses(world: &World, what: &str) {
    let (said, found) = one_life(world).await;
    assert!(said.as_ref().is_some_and(|said| said.contains(what)), "{said:?}");
    assert!(found.problems.iter().any(|problem| problem.what == what), "{found:?}");
}

/// An installation that has signed, and stopped; and how many checkpoints there are.
async fn signed() -> (World, u64) {
    let world = World::new();
    let engine = start(&world, Duration::from_secs(3600)).await;
    for _ in 0..20 {
        let _ = engine.execute(&root(&engine), DescribeService).await.unwrap();
    }
    engine.shutdown().await;
    is_fine(&world).await;
    let count = fs::read_to_string(file(&world)).unwrap().lines().count();
    (world, u64::try_from(count).unwrap())
}

#[tokio::test]
async fn a_removed_file_is_missed_until_it_is_back() {
    let (world, count) = signed().await;
    let gone = fs::read(file(&world)).unwrap();
    fs::remove_file(file(&world)).unwrap();
    let what = format!("checkpoints 1 to {count} are missing");
    misses(&world, &what).await;

    // The new ones do not look whole, not even for somebody who has nothing but the files.
    let after = fs::read_to_string(file(&world)).unwrap();
    let first = Checkpoint::parse(after.lines().next().unwrap()).unwrap().statement;
    let last_gone = gone[..gone.len() - 1].split(|byte| *byte == b'\n').next_back().unwrap();
    assert_eq!((first.number, first.prev), (count + 1, mac::sha256(&[last_gone])));
    let outside = verify_by(&world.audit_directory(), key().public());
    assert_eq!(outside.problem.unwrap().what, what);
    assert_eq!(outside.problems.len(), 1, "{:?}", outside.problems);

    // Another start, which finds the new ones, misses the old ones as well.
    misses(&world, &what).await;

    // Put back before the new ones, they are as they were.
    let after = fs::read(file(&world)).unwrap();
    fs::write(file(&world), [gone, after].concat()).unwrap();
    is_fine(&world).await;
    is_fine(&world).await;
}

#[tokio::test]
async fn a_cut_end_and_another_line_in_its_place_are_missed() {
    let (world, count) = signed().await;
    let whole = fs::read_to_string(file(&world)).unwrap();
    let (before, newest) = whole.trim_end().rsplit_once('\n').unwrap();
    fs::write(file(&world), format!("{before}\n")).unwrap();
    misses(&world, &format!("checkpoint {count} is missing")).await;
    assert!(!verify_by(&world.audit_directory(), key().public()).ok, "nothing stands in its place");

    let (world, count) = signed().await;
    let mut other = Checkpoint::parse(newest).unwrap().statement;
    let whole = fs::read_to_string(file(&world)).unwrap();
    let (before, newest) = whole.trim_end().rsplit_once('\n').unwrap();
    let genuine = Checkpoint::parse(newest).unwrap().statement;
    (other.log, other.prev, other.number) = (genuine.log, genuine.prev, genuine.number);
    fs::write(file(&world), format!("{before}\n{}\n", other.sign(&key()).to_line())).unwrap();
    let what = format!("checkpoint {count} is another one than the store remembers");
    misses(&world, &what).await;
    assert!(!verify_by(&world.audit_directory(), key().public()).ok);
}

#[tokio::test]
async fn a_file_that_is_removed_under_the_running_server_is_missed() {
    let (world, count) = signed().await;
    let engine = start(&world, Duration::from_secs(3600)).await;
    fs::remove_file(file(&world)).unwrap();
    let found = engine.execute(&root(&engine), VerifyAudit).await.unwrap();
    assert_eq!(found.problem.unwrap().what, format!("checkpoints 1 to {count} are missing"));
    engine.shutdown().await;
    // Nothing was written to what has no name any more.
    misses(&world, &format!("checkpoints 1 to {count} are missing")).await;
}

/// Who puts lines back without a word to the server loses none of them.
#[tokio::test]
async fn nothing_is_written_over_lines_that_are_put_back_under_the_running_server() {
    for by_another_file in [false, true] {
        let (world, _) = signed().await;
        let gone = fs::read(file(&world)).unwrap();
        fs::remove_file(file(&world)).unwrap();
        let engine = start(&world, Duration::from_secs(3600)).await;
        if by_another_file {
            let another = world.directory.path().join("from-the-backup");
            fs::write(&another, &gone).unwrap();
            fs::rename(another, file(&world)).unwrap();
        } else {
            fs::write(file(&world), &gone).unwrap();
        }
        let _ = engine.execute(&root(&engine), DescribeService).await.unwrap();
        engine.shutdown().await;
        let now = fs::read(file(&world)).unwrap();
        assert!(now == gone, "by another file: {by_another_file}");
        is_fine(&world).await;
    }
}

#[tokio::test]
async fn that_records_are_not_signed_is_told_until_the_file_is_back() {
    let (world, _) = signed().await;
    let engine = start(&world, Duration::from_millis(10)).await;
    let told = async || {
        let status = engine.execute(&root(&engine), DescribeService).await.unwrap();
        status.warnings.into_iter().find(|warning| warning.contains("not signed"))
    };
    let tells = async |wanted: bool| {
        for _ in 0..1000 {
            let told = told().await;
            if told.is_some() == wanted {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a failure is told: {}", !wanted);
    };
    assert_eq!(told().await, None);
    let (aside, another) = (world.directory.path().join("aside"), world.directory.path().join("n"));
    fs::rename(file(&world), &aside).unwrap();
    let said = tells(true).await.unwrap();
    assert!(said.contains("checkpoints.log was removed"), "{said}");
    let genuine = fs::read(&aside).unwrap();
    fs::remove_file(&aside).unwrap();
    let put_back = |content: &[u8]| {
        fs::write(&another, content).unwrap();
        fs::rename(&another, file(&world)).unwrap();
    };
    // As long, and another one all the same.
    let mut other = genuine.clone();
    other[3] ^= 1;
    put_back(&other);
    for _ in 0..20 {
        assert!(told().await.is_some());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(fs::read(file(&world)).unwrap() == other);
    put_back(&genuine);
    tells(false).await;
    engine.shutdown().await;
    assert!(fs::read(file(&world)).unwrap().len() > genuine.len());
    is_fine(&world).await;
}

#[test]
fn a_deletion_writes_over_no_lines_that_were_put_back() {
    let retention = Retention { bytes: Some(8_000), age: None };
    let world = log::World { retention, ..log::World::new() };
    let log = world.open();
    write(&log, 200);
    let path = world.audit().join("checkpoints.log");
    let deletion = log.to_delete(None).unwrap().unwrap();
    let whole = fs::read(&path).unwrap();
    let longer = [b"put back\n", whole.as_slice()].concat();
    fs::write(&path, &longer).unwrap();
    // It is refused before it is recorded, and after.
    for refused in [log.to_delete(None).map(drop), log.delete(&deletion)] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("stop the server"), "{refused}");
    }
    assert!(fs::read(&path).unwrap() == longer);
    // One that is gone for good comes back with the statement.
    fs::write(&path, &whole).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(log.to_delete(None).unwrap().is_some());
    log.delete(&deletion).unwrap();
    log.close();
    assert!(world.verify().ok);
}

/// Whoever moves the whole log away begins a new one, which is whole by itself.
#[tokio::test]
async fn a_log_that_begins_anew_misses_its_checkpoints_once() {
    let (world, count) = signed().await;
    fs::remove_dir_all(world.audit_directory()).unwrap();
    fs::remove_dir_all(world.directory.path().join("journal")).unwrap();
    misses(&world, &format!("checkpoints 1 to {count} are missing")).await;
    let text = fs::read_to_string(file(&world)).unwrap();
    assert_eq!(Checkpoint::parse(text.lines().next().unwrap()).unwrap().statement.number, 1);
    is_fine(&world).await;
    // The new ones are missed like any others.
    fs::remove_file(file(&world)).unwrap();
    let (said, found) = one_life(&world).await;
    assert!(said.is_some() && !found.ok, "{said:?} {found:?}");
}

#[tokio::test]
async fn a_log_that_begins_anew_misses_them_once_even_if_its_first_life_ends_in_a_crash() {
    let (world, _) = signed().await;
    fs::remove_dir_all(world.audit_directory()).unwrap();
    fs::remove_dir_all(world.directory.path().join("journal")).unwrap();
    let engine = start(&world, Duration::from_secs(3600)).await;
    let status = engine.execute(&root(&engine), DescribeService).await.unwrap();
    assert!(status.warnings.iter().any(|said| said.contains("are missing")));
    assert!(world.store.get(PATH).await.unwrap().is_none());
    drop(engine);
    let (said, found) = one_life(&world).await;
    assert_eq!(said, None);
    let about_checkpoints =
        found.problems.iter().any(|problem| problem.what.contains("checkpoint"));
    assert!(!about_checkpoints, "{found:?}");
}

/// It is of no other use, so whoever accepts the store gets past it.
#[tokio::test]
async fn a_damaged_memory_of_the_store_is_replaced() {
    let (world, _) = signed().await;
    let mut damaged = world.store.get(PATH).await.unwrap().unwrap().value;
    *damaged.last_mut().unwrap() ^= 1;
    world.store.commit(Transaction::new().put(PATH, damaged)).await.unwrap();
    let every = Duration::from_secs(3600);
    let held = Engine::start(parts_of(&world, every)).await.err();
    assert!(matches!(held, Some(StartError::Held { .. })), "{held:?}");
    let engine = Engine::start_accepting(parts_of(&world, every), "the disk").await.unwrap();
    let status = engine.execute(&root(&engine), DescribeService).await.unwrap();
    assert!(status.warnings.iter().any(|said| said.contains(PATH)), "{:?}", status.warnings);
    engine.shutdown().await;
    is_fine(&world).await;
    // From here on they are missed again.
    fs::remove_file(file(&world)).unwrap();
    let (said, found) = one_life(&world).await;
    assert!(said.is_some() && !found.ok, "{said:?} {found:?}");
}

/// A disk that gives old lines no more keeps nobody from starting, and makes nobody forget.
#[test]
fn checkpoints_that_cannot_be_read_are_looked_for_again() {
    let world = log::World::written(50);
    let log = world.open();
    let lost = log.checkpoint_to_remember();
    drop(log);
    fs::remove_file(world.audit().join("checkpoints.log")).unwrap();
    let log = world.open();
    assert!(log.recall_checkpoint(lost).warning.is_some());
    write(&log, 50);
    log.close();
    let remembered = log.checkpoint_to_remember();
    assert!(remembered.is_some());
    drop(log);
    // Neither the newest can be looked for, or only the one that is lost.
    for readable in [0, 1] {
        let log = world.open();
        let count = AtomicUsize::new(0);
        world.disk.ask(move |deed, path| {
            let is_read = matches!(deed, Deed::Read(_)) && path.ends_with("checkpoints.log");
            if is_read && count.fetch_add(1, Ordering::Relaxed) >= readable {
                return Err(io::Error::from_raw_os_error(5));
            }
            Ok(())
        });
        let said = log.recall_checkpoint(remembered).warning.unwrap();
        assert!(said.contains("cannot be read"), "{said}");
        world.disk.rest();
        let before = world.checkpoints().len();
        write(&log, 50);
        log.close();
        let all = world.checkpoints();
        assert!(all.len() > before, "it signs");
        assert!(all.windows(2).all(|two| two[0].statement.number < two[1].statement.number));
        let kept = log.checkpoint_to_remember();
        assert_eq!(kept.is_some(), readable == 1, "what was not looked for stays remembered");
        drop(log);
        let log = world.open();
        let said = log.recall_checkpoint(kept.or(remembered)).warning;
        assert!(said.is_some_and(|said| said.contains("missing")), "the loss is remembered");
    }
}

/// Lines that anybody can write stand for none that the server signed.
#[test]
fn made_up_lines_hide_no_loss_however_many() {
    let world = log::World::written(50);
    let log = world.open();
    let remembered = log.checkpoint_to_remember();
    drop(log);
    let newest = world.checkpoints().pop().unwrap().statement;
    let stranger = SigningKey::from_seed(KeyMaterial::from_slice(&[8; 32])).unwrap();
    let mut made_up = String::new();
    for number in newest.number + 1.. {
        let mut statement = newest.clone();
        statement.number = number;
        made_up += &format!("{}\n", statement.sign(&stranger).to_line());
        if made_up.len() > 5 << 18 {
            break;
        }
    }
    let path = world.audit().join("checkpoints.log");
    let genuine = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{genuine}{made_up}")).unwrap();
    assert_eq!(world.open().recall_checkpoint(remembered), Recalled::default());
    fs::write(&path, made_up).unwrap();
    let said = world.open().recall_checkpoint(remembered).warning;
    assert!(said.is_some_and(|said| said.contains("missing")));
}

/// As after a crash, or a restore of the store alone: what it remembers is not the newest.
#[test]
fn an_older_store_and_one_of_an_older_release_raise_no_false_alarm() {
    let world = log::World::written(50);
    let log = world.open();
    let earlier = log.checkpoint_to_remember().unwrap();
    write(&log, 50);
    log.close();
    let newest = log.checkpoint_to_remember().unwrap();
    assert_ne!(newest, earlier);
    drop(log);
    for known in [None, Some(earlier), Some(newest)] {
        let log = world.open();
        assert_eq!(log.recall_checkpoint(known), Recalled::default());
        assert!(log.verify(&[]).unwrap().ok);
    }
    assert!(world.verify().ok);
}

/// A store of an older release remembers nothing.
#[test]
fn closed_segments_that_nothing_covers_are_worth_a_warning() {
    let world = log::World::written(100);
    let before_last = {
        let last = segments(&world.audit()).pop().unwrap();
        let name = last.file_stem().unwrap().to_str().unwrap().to_owned();
        name.trim_start_matches("segment-").parse::<u64>().unwrap() - 1
    };
    fs::remove_file(world.audit().join("checkpoints.log")).unwrap();
    let log = world.open();
    let said = log.recall_checkpoint(None).warning.unwrap();
    assert!(said.contains(&format!("records up to {before_last} ")), "{said}");
    let found = log.verify(&[]).unwrap();
    let what =
        format!("records 1 to {before_last} are in closed segments, and no checkpoint covers them");
    assert_eq!((found.ok, found.warnings.as_slice()), (true, [what].as_slice()));
    drop(log);

    // A cut file covers less than it did, which somebody outside is told.
    let world = log::World::written(100);
    let first = world.checkpoints().remove(0);
    let path = world.audit().join("checkpoints.log");
    fs::write(&path, format!("{}\n", first.to_line())).unwrap();
    let found = world.verify();
    let what = format!(
        "records {} to {before_last} are in closed segments, and no checkpoint covers them",
        first.statement.head.seq + 1
    );
    assert_eq!((found.ok, found.warnings.as_slice()), (true, [what].as_slice()));

    // A new log has nothing to cover.
    let world = log::World::new();
    let log = world.open();
    assert_eq!(log.recall_checkpoint(None), Recalled::default());
    write(&log, 3);
    assert!(log.verify(&[]).unwrap().warnings.is_empty());
}

#[test]
fn a_stated_deletion_takes_checkpoints_away_and_nobody_misses_them() {
    let retention = Retention { bytes: Some(14_000), age: None };
    for lost_before in [false, true] {
        let world = log::World { retention, ..log::World::new() };
        let log = world.open();
        write(&log, 50);
        log.close();
        let earlier = log.checkpoint_to_remember().unwrap();
        drop(log);
        if lost_before {
            fs::remove_file(world.audit().join("checkpoints.log")).unwrap();
        }
        let log = world.open();
        assert_eq!(log.recall_checkpoint(Some(earlier)).warning.is_some(), lost_before);
        write(&log, 20);
        log.close();
        let later = log.checkpoint_to_remember().unwrap();
        drop(log);
        // What was lost is remembered beside what was signed since.
        let log = world.open();
        assert_eq!(log.recall_checkpoint(Some(later)).warning.is_some(), lost_before);
        assert_eq!(log.verify(&[]).unwrap().ok, !lost_before);
        write(&log, 100);
        let deletion = log.to_delete(None).unwrap().unwrap();
        assert!(deletion.through.seq > 70, "all that they were about");
        log.delete(&deletion).unwrap();
        let found = log.verify(&[]).unwrap();
        assert!(found.ok, "{found:?}");
        log.close();
        let newest = log.checkpoint_to_remember();
        drop(log);
        let stated = |found: &Checkpoint| found.statement.kind == CheckpointKind::Retention;
        assert!(world.checkpoints().iter().any(stated));
        for known in [Some(earlier), Some(later), newest] {
            let log = world.open();
            assert_eq!(log.recall_checkpoint(known), Recalled::default());
            assert!(log.verify(&[]).unwrap().ok);
        }
        assert!(world.verify().ok);
        // Without that statement they are missed again.
        fs::remove_file(world.audit().join("checkpoints.log")).unwrap();
        assert!(world.open().recall_checkpoint(newest).warning.is_some());
    }
}

/// A crash costs the store a minute of what it remembers, not all of it.
#[tokio::test]
async fn the_store_follows_with_the_work_that_is_due() {
    let world = World::new();
    let engine = start(&world, Duration::from_millis(10)).await;
    let _ = engine.execute(&root(&engine), DescribeService).await.unwrap();
    while fs::metadata(file(&world)).map_or(0, |file| file.len()) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    engine.run_due_work().await.unwrap();
    let remembered = world.store.get(PATH).await.unwrap().unwrap();
    // Nothing new is nothing to write.
    engine.run_due_work().await.unwrap();
    let again = world.store.get(PATH).await.unwrap().unwrap();
    assert_eq!(again.revision, remembered.revision);
}
