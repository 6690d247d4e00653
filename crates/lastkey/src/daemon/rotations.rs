//! The server's own worker: clusters that want it are brought under each new version of their key by
//! the server itself.
//!
//! It does what `lastkey cluster rotate --keep-version` does, as a client of this very server over
//! the admin socket, and claims a rotation like any other worker: one that a command has left goes
//! on here, and one that ends here goes on elsewhere.
//!
//! 1. Every few seconds the engine is asked what there is to do ([`lastkey_engine::Engine::rotation_work`]): nothing
//!    for a cluster that has not been registered for it.
//! 2. A rotation is begun, or claimed, and worked off. Its progress is kept with it.
//! 3. What fails is kept with it, too, and tried again after 30 seconds, then twice as long each
//!    time, up to an hour; one that something keeps from ever ending, by changing each object at each
//!    write, after a day.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lastkey_client::{
    Client, Config,
    native::{Rotation, SaveRotation, StartRotation},
};
use lastkey_crypto::ClusterId;
use lastkey_engine::{Instance, RotationWork};
use lastkey_kubernetes::rotation::{By, Event, Options, RotateError, Worker};
use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle};

use super::stopped;
use crate::{
    command::cluster::{Resources, holder, reach_to_rotate},
    output::{Failure, chain},
};

/// So often it is looked what there is to do.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What could not even be begun is tried again after this, and then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// What only somebody else can mend, and what writes every object to find out, is tried again after this.
const REST: Duration = Duration::from_secs(24 * 60 * 60);
/// Workers have this long to save where they are when the server stops.
const LAST_STEPS: Duration = Duration::from_secs(2);
/// As the command has them by default.
const WORKERS: usize = 16;
const PAGE: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// Works for all clusters until the server stops; ends before it does.
pub(super) async fn run(instance: Instance, admin_socket: PathBuf, stop: watch::Receiver<bool>) {
    let mut jobs = Jobs { socket: admin_socket, halt: Arc::default(), running: BTreeMap::new() };
    let look = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            jobs.look(&instance).await;
        }
    };
    tokio::select! {
        () = look => {}
        () = stopped(stop) => {}
    }
    jobs.end().await;
}

struct Jobs {
    socket: PathBuf,
    halt: Arc<AtomicBool>,
    running: BTreeMap<ClusterId, Job>,
}

/// What is done, or was tried, for one cluster.
struct Job {
    task: JoinHandle<Result<(), Halted>>,
    failures: u32,
    /// When it may be tried again, once it has ended.
    again: Option<Instant>,
}

/// Why one waits.
struct Halted {
    failure: Failure,
    /// Whether it would not end either if it was tried again soon.
    rests: bool,
}

impl<T: Into<Failure>> From<T> for Halted {
    fn from(failure: T) -> Self {
        Self { failure: failure.into(), rests: false }
    }
}

impl From<RotateError> for Halted {
    fn from(error: RotateError) -> Self {
        let rests = matches!(error, RotateError::NoEnd { .. });
        Self { failure: Failure::failed(chain(&error)), rests }
    }
}

impl Halted {
    /// How long, after so many failures before.
    fn pause(&self, failures: u32) -> Duration {
        match self.rests {
            true => REST,
            false => (FIRST_PAUSE * 2_u32.pow(failures.min(10))).min(LONGEST_PAUSE),
        }
    }
}

impl Jobs {
    async fn look(&mut self, instance: &Instance) {
        self.reap().await;
        // A sealed server has nothing to do.
        let Ok(engine) = instance.engine() else { return };
        let work = match engine.rotation_work().await {
            Ok(work) => work,
            Err(error) => return tracing::warn!(%error, "no rotation is begun"),
        };
        drop(engine);
        for work in work {
            let cluster = work.cluster();
            let failures = match self.running.get(&cluster) {
                Some(Job { again: None, .. }) => continue,
                Some(Job { again: Some(again), .. }) if *again > Instant::now() => continue,
                known => known.map_or(0, |job| job.failures),
            };
            let (socket, halt) = (self.socket.clone(), Arc::clone(&self.halt));
            let task = tokio::spawn(async move { carry_out(&socket, work, halt).await });
            self.running.insert(cluster, Job { task, failures, again: None });
        }
    }

    /// Hears of what has ended.
    async fn reap(&mut self) {
        let mut over = Vec::new();
        for (cluster, job) in &mut self.running {
            if job.again.is_some() || !job.task.is_finished() {
                continue;
            }
            let ended = (&mut job.task).await;
            match ended {
                Ok(Ok(())) => over.push(*cluster),
                Ok(Err(halted)) => {
                    let pause = halted.pause(job.failures);
                    tracing::warn!(
                        %cluster, error = %halted.failure, again_in = ?pause,
                        "the rotation of a cluster waits"
                    );
                    job.failures = job.failures.saturating_add(1);
                    job.again = Some(Instant::now() + pause);
                }
                Err(error) => {
                    tracing::error!(%cluster, %error, "the rotation of a cluster broke off");
                    job.again = Some(Instant::now() + LONGEST_PAUSE);
                }
            }
        }
        over.iter().for_each(|cluster| drop(self.running.remove(cluster)));
    }

    /// Lets all save where they are.
    async fn end(mut self) {
        self.halt.store(true, Ordering::Relaxed);
        let until = tokio::time::Instant::now() + LAST_STEPS;
        for job in self.running.values_mut() {
            if job.again.is_none() && tokio::time::timeout_at(until, &mut job.task).await.is_err() {
                job.task.abort();
            }
        }
    }
}

/// Begins or goes on with one.
async fn carry_out(socket: &Path, work: RotationWork, halt: Arc<AtomicBool>) -> Result<(), Halted> {
    let cluster = work.cluster();
    let client = &Client::new(Config::admin(socket.to_owned()))?;
    let rotation = match work {
        RotationWork::Begin { key, retire, .. } => {
            let start = StartRotation {
                key: Some(key.to_string()),
                keep_version: true,
                retire,
                automatic: true,
                ..StartRotation::default()
            };
            tracing::info!(%cluster, %key, "a cluster is brought under the new version of its key");
            client.start_rotation(cluster, &start).await?
        }
        RotationWork::GoOn { id, .. } => {
            tracing::info!(%cluster, rotation = %id, "going on with the rotation of a cluster");
            let known = client.rotations(cluster).await?;
            let found = known.into_iter().find(|one| one.id == id.as_str());
            found.ok_or_else(|| Failure::failed("the rotation is gone"))?
        }
    };
    match work_off((client, socket), &rotation, halt).await {
        Ok(()) => Ok(()),
        Err(halted) => {
            // What fails before a worker has claimed it would be seen nowhere else.
            note(client, &rotation, &halted.failure).await;
            Err(halted)
        }
    }
}

async fn work_off(
    (client, socket): (&Client, &Path),
    rotation: &Rotation,
    halt: Arc<AtomicBool>,
) -> Result<(), Halted> {
    let cluster = rotation.cluster;
    let (access, api) = reach_to_rotate(client, cluster).await?;
    let resources = Resources::of(&access, &[]);
    let worker = Worker {
        client: Client::new(Config::admin(socket.to_owned()))?,
        api,
        etcd: access.etcd.clone(),
        options: Options {
            resources: resources.names,
            whole: resources.whole,
            configured: resources.configured,
            workers: WORKERS,
            rate: None,
            page: PAGE,
            holder: holder(),
            migrate: access.migrate,
            only_own: None,
            patience: PATIENCE,
        },
        change: None,
        watch: Box::new(move |event| tell(cluster, event)),
        stop: Arc::clone(&halt),
    };
    drop(access);
    match worker.run(rotation).await {
        Ok(over) => {
            let report: Value = over
                .report
                .as_deref()
                .and_then(|line| serde_json::from_str(line).ok())
                .unwrap_or_default();
            let content = &report["content"];
            tracing::info!(
                %cluster, phase = ?over.phase, objects = %content["objects"],
                rewritten = %content["rewritten"], refused = %content["refused"],
                "the rotation of a cluster is over"
            );
            Ok(())
        }
        Err(_) if halt.load(Ordering::Relaxed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps with the rotation why it was not even claimed.
async fn note(client: &Client, rotation: &Rotation, failure: &Failure) {
    let known = client.rotations(rotation.cluster).await.unwrap_or_default();
    let now = known.into_iter().find(|one| one.id == rotation.id);
    let Some(now) = now.filter(|one| !one.is_over() && one.lease.is_none()) else { return };
    let said =
        now.problem.as_ref().is_some_and(|problem| failure.to_string().contains(&problem.why));
    if said {
        return;
    }
    let noted = async {
        let claimed = client.claim_rotation(&now, &holder()).await?;
        let save = SaveRotation {
            fence: claimed.fence,
            phase: claimed.phase,
            state: claimed.state.clone(),
            release: true,
            progress: claimed.progress,
            problem: Some(failure.to_string()),
        };
        client.save_rotation(&claimed, &save).await
    };
    if let Err(error) = noted.await {
        tracing::debug!(%error, "why a rotation waits was not kept");
    }
}

fn tell(cluster: ClusterId, event: &Event) {
    match event {
        Event::Phase(phase) => tracing::info!(%cluster, ?phase, "the rotation of a cluster"),
        Event::Behind(behind) => {
            tracing::info!(%cluster, waiting_for = behind.join("; "), "the rotation of a cluster");
        }
        Event::Migration { by: By::Cluster, why } => {
            tracing::info!(%cluster, why, "the cluster migrates by itself");
        }
        Event::Away { why } => tracing::warn!(%cluster, why, "a rotation waits for this server"),
        Event::Claimed { why } => tracing::info!(%cluster, why, "another worker is at it"),
        Event::Paused => tracing::info!(%cluster, "the rotation of a cluster rests"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_by_itself_rests_for_a_day() {
        let halted = Halted::from(RotateError::NoEnd { passes: 10, etcd: true });
        assert_eq!(halted.pause(0), REST);
        let halted = Halted::from(RotateError::Interrupted);
        assert_eq!((halted.pause(0), halted.pause(40)), (FIRST_PAUSE, LONGEST_PAUSE));
    }
}
