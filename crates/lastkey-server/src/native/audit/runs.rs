//! Verifications that somebody watches: they outlive the request that began them.
//!
//! Few at a time, for each reads the whole log; what one found is kept for a while, until whoever
//! began it has fetched it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lastkey_engine::{
    Caller, Engine, Error, Principal,
    audit::{Progress, Verification},
    command::WatchedVerifyAudit,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::{Call, Refusal};
use crate::stopping::Stopping;

/// At most so many run at once, in this process.
const MOST: usize = 2;
/// An end that nobody fetched is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// All runs of this process.
static RUNS: Mutex<Vec<Arc<Run>>> = Mutex::new(Vec::new());

/// One verification.
pub(super) struct Run {
    pub(super) id: String,
    pub(super) progress: Arc<Progress>,
    principal: Principal,
    found: Mutex<Option<Result<Verification, Error>>>,
    ended: watch::Sender<Option<Instant>>,
}

impl Run {
    /// Waits for the end.
    pub(super) async fn wait(&self, wait: Duration) {
        let mut ended = self.ended.subscribe();
        let _ = tokio::time::timeout(wait, ended.wait_for(Option::is_some)).await;
    }

    /// What was found, once; the run is forgotten then.
    pub(super) fn take(&self) -> Result<Option<Verification>, Refusal> {
        let Some(found) = self.found.lock().take() else { return Ok(None) };
        RUNS.lock().retain(|run| run.id != self.id);
        Ok(Some(found?))
    }

    fn is_old(&self) -> bool {
        self.ended.borrow().is_some_and(|at| at.elapsed() > FORGET_AFTER)
    }
}

/// The caller's own run of that id.
pub(super) fn find(id: &str, principal: &Principal) -> Option<Arc<Run>> {
    let runs = RUNS.lock();
    runs.iter().find(|run| run.id == id && run.principal == *principal).cloned()
}

/// Begins a run for a caller.
pub(super) fn start(call: &Call<'_>) -> Result<Arc<Run>, Refusal> {
    let engine = call.context.engine;
    let run = Arc::new(Run {
        id: engine.new_request_id().to_string(),
        progress: Arc::default(),
        principal: call.caller.principal.clone(),
        found: Mutex::default(),
        ended: watch::Sender::new(None),
    });
    {
        let mut runs = RUNS.lock();
        runs.retain(|run| !run.is_old());
        if runs.iter().filter(|run| run.ended.borrow().is_none()).count() >= MOST {
            return Err(Error::Busy.into());
        }
        runs.push(Arc::clone(&run));
    }
    call.asked.store(true, std::sync::atomic::Ordering::Relaxed);
    let work = work(engine.clone(), call.caller.clone(), Arc::clone(&run));
    tokio::spawn(until_stopped(work, call.context.stopping.clone(), Arc::clone(&run)));
    Ok(run)
}

async fn work(engine: Engine, caller: Caller, run: Arc<Run>) {
    let progress = Arc::clone(&run.progress);
    let found = engine.execute(&caller, WatchedVerifyAudit { progress }).await;
    *run.found.lock() = Some(found);
    run.ended.send_replace(Some(Instant::now()));
}

/// A server that stops, or is sealed, does not wait for a run.
async fn until_stopped(work: impl Future<Output = ()>, mut stopping: Stopping, run: Arc<Run>) {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = stopping.wait() => {
            run.progress.stop();
            work.await;
        }
    }
}
