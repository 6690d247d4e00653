//! Changes of provider without etcd: what an apiserver has to show before it is believed.

use super::*;
use crate::transition::Stage;

/// As 1.28.0 says which release it is; it counts no reloads.
const SILENT: &str = "kubernetes_build_info{major=\"1\",minor=\"28\"} 1\n";

/// A start after any file was written.
const LATER: f64 = 9e9;
/// A file that was put in place before, and whether it has the target first.
const SWITCHED: [&str; 2] = [CLEAR, KMS];
const READABLE: [&str; 2] = [KMS, CLEAR];

/// A change out of the KMS of an apiserver that names no file, begun over a file that is there already.
async fn begun_again(providers: [&str; 2], older: (f64, u32)) -> (Lab, Worker, std::path::PathBuf) {
    let world = World::with(&[("apps", "a", 2)]);
    let (lab, worker, path) = disable(world).await;
    std::fs::write(&path, configuration(&providers.concat())).unwrap();
    lab.world.lock().older = Some((older.0, older.1, ""));
    (lab, worker, path)
}

/// What it says first of those that it waits for, and in which phase; then it is interrupted.
async fn waits(lab: &Lab, worker: Worker) -> (String, Value) {
    let said = waiting::first_waited_for(lab, worker).await;
    let phase = lab.world.lock().rotation["phase"].clone();
    (said, phase)
}

/// A change was given up while its file was waited for, and is begun again: the apiserver still works
/// by the file before.
#[tokio::test]
async fn a_file_that_is_there_already_has_to_be_loaded_all_the_same() {
    for providers in [SWITCHED, READABLE] {
        let (lab, worker, path) = begun_again(providers, (5.0, 1)).await;
        lab.world.lock().lags = true;
        let (said, phase) = waits(&lab, worker).await;
        assert!(said.contains("has not loaded it yet"), "{said}");
        assert_eq!(phase, "preparing");
        let world = lab.world.lock();
        assert!(world.finished.is_none() && has_kms(&path));
        assert_eq!(world.kinds[&("apps", "a")].written.len(), 0);
    }
}

/// It was started since the file is there, or shows what it writes by.
#[tokio::test]
async fn what_shows_that_it_is_loaded_is_not_waited_for() {
    let (lab, worker, path) = begun_again(SWITCHED, (LATER, 0)).await;
    let replaced = Arc::clone(&worker.stop);
    let watch = move |event: &Event| match event {
        // The fake one loads nothing anew.
        Event::Config(_) => replaced.store(true, Ordering::Relaxed),
        Event::Behind(behind) => assert!(replaced.load(Ordering::Relaxed), "{behind:?}"),
        _ => {}
    };
    let worker = Worker { watch: Box::new(watch), ..worker };
    assert!(matches!(lab.run(&worker).await, Err(RotateError::Interrupted)));
    assert_eq!(lab.world.lock().rotation["phase"], "removing");
    assert!(!has_kms(&path), "the last step was put in place");
    // Started long before, but it writes nothing anew, and reads under the target.
    let (lab, mut worker, _) = begun_again(SWITCHED, (5.0, 0)).await;
    let stop = Arc::clone(&worker.stop);
    worker.watch = Box::new(move |event| match event {
        Event::Config(_) => stop.store(true, Ordering::Relaxed),
        Event::Behind(behind) => assert!(stop.load(Ordering::Relaxed), "{behind:?}"),
        _ => {}
    });
    assert!(matches!(lab.run(&worker).await, Err(RotateError::Interrupted)));
    assert_eq!(lab.world.lock().rotation["phase"], "removing");
}

/// Whatever is believed of files and times: nothing is taken out that an apiserver still reads by, and
/// nothing becomes free.
#[tokio::test]
async fn nothing_is_taken_out_that_is_still_read_by() {
    let (lab, worker, path) = disable(World::with(&[("apps", "a", 2)])).await;
    lab.world.lock().lags = true;
    let refused = lab.run(&worker).await.unwrap_err();
    assert!(matches!(refused, RotateError::OtherFile { .. }), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("a.apps under kms v2 lastkey") && said.contains("restart it"), "{said}");
    assert!(has_kms(&path) && lab.world.lock().finished.is_none());
    // Once it has loaded the file, the same command writes everything anew, and ends.
    lab.world.lock().lags = false;
    lab.run(&worker).await.unwrap();
    let mut world = lab.world.lock();
    assert_eq!(world.kind("a").written.len(), 2);
    assert!(world.is_free() && !has_kms(&path), "{}", world.report());
}

/// Nor what it may read by, as far as that shows.
#[tokio::test]
async fn what_cannot_be_told_from_others_stays() {
    let (lab, worker, path) = disable(World::with(&[("apps", "a", 2)])).await;
    lab.world.lock().blurs = true;
    lab.run(&worker).await.unwrap();
    let world = lab.world.lock();
    assert!(has_kms(&path) && !world.is_free(), "{}", world.report());
    let left = world.report()["left"].to_string();
    assert!(
        left.contains("may be under kms v2 lastkey") && left.contains("register etcd"),
        "{left}"
    );
}

/// What is shown last is what frees: a file from which somebody else has taken the provider shows
/// nothing by itself.
#[tokio::test]
async fn a_file_without_the_provider_frees_nothing_by_itself() {
    let (lab, worker, path) = disable(World::with(&[("apps", "a", 2)])).await;
    std::fs::write(&path, configuration(CLEAR)).unwrap();
    lab.world.lock().lags = true;
    let refused = lab.run(&worker).await.unwrap_err();
    assert!(matches!(refused, RotateError::OtherFile { .. }), "{refused}");
    assert!(lab.world.lock().finished.is_none());
}

/// Nor is anything free by what was shown before the last file was in place.
#[tokio::test]
async fn what_becomes_free_is_shown_by_the_last_file() {
    let (lab, worker, path) = disable(World::with(&[("apps", "a", 2)])).await;
    let world = Arc::clone(&lab.world);
    let watch = move |event: &Event| {
        let cleans = matches!(event, Event::Config(config) if config.stage == Stage::Clean);
        world.lock().lags |= cleans;
    };
    let worker = Worker { watch: Box::new(watch), ..worker };
    let refused = lab.run(&worker).await.unwrap_err();
    assert!(matches!(refused, RotateError::OtherFile { .. }), "{refused}");
    assert!(!has_kms(&path) && lab.world.lock().finished.is_none());
}

/// One that is away as a step begins is waited for like one that goes away later.
#[tokio::test]
async fn an_apiserver_that_is_away_as_a_step_begins_is_waited_for() {
    let (lab, worker, path) = disable(World::with(&[("apps", "a", 1)])).await;
    let before = std::fs::read_to_string(&path).unwrap();
    lab.world.lock().away = 1;
    let said = waiting::first_waited_for(&lab, worker).await;
    assert!(said.contains("cannot be asked"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    assert_eq!(lab.world.lock().away, 0);
}

/// A release that counts no reloads is not said to lack a flag.
#[tokio::test]
async fn a_release_that_counts_no_reloads_is_to_be_restarted() {
    let (lab, worker, _) = disable(World::with(&[("apps", "a", 1)])).await;
    lab.world.lock().older = Some((5.0, 0, SILENT));
    let said = waiting::first_waited_for(&lab, worker).await;
    assert!(said.contains("does not tell whether it has loaded"), "{said}");
    assert!(said.contains("restart it") && !said.contains("automatic-reload"), "{said}");
}
