//! Key creation inside a process of its own, so that its processor time is its own: lastkey's
//! engine, or bare redb. One measurement, one line of JSON.

mod engine;
pub(crate) mod server;
mod tally;

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    floor::{keeper::Keeper, shape::Shape},
    load::{Caller, Plan, drive},
    options::{Engine, WorkerOptions},
    round::Round,
};

/// What a worker says at its end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) round: Round,
    /// The records that one creation wrote, where that was the question.
    pub(crate) shape: Option<Shape>,
}

/// Measures once, and says what was measured.
pub(crate) fn run(options: &WorkerOptions) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(options))?;
    let text = serde_json::to_string(&measured).map_err(std::io::Error::from)?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

async fn measure(options: &WorkerOptions) -> Result<Measured, Error> {
    let plan = Plan {
        warm_up: Duration::from_secs_f64(options.warm_up),
        measure: Duration::from_secs_f64(options.seconds),
    };
    let (us, callers) = (std::process::id(), options.callers);
    match options.engine {
        Engine::Watched => {
            let shape = engine::watch(&options.dir).await?;
            Ok(Measured { round: Round::default(), shape: Some(shape) })
        }
        Engine::Ours => {
            let creator = engine::Creator::start(&options.dir).await?;
            let sample = drive(vec![creator.clone(); callers], plan, us).await?;
            creator.stop().await;
            Ok(Measured { round: Round::of(&sample), shape: None })
        }
        Engine::Redb => {
            let shape = options.shape.clone().unwrap_or_default();
            let keeper = Arc::new(Keeper::start(&options.dir.join("bare.redb"), shape)?);
            let sample = drive(vec![Bare(keeper); callers], plan, us).await?;
            Ok(Measured { round: Round::of(&sample), shape: None })
        }
    }
}

#[derive(Clone)]
struct Bare(Arc<Keeper>);

impl Caller for Bare {
    async fn call(&mut self) -> Result<(), Error> {
        self.0.create().await
    }
}

/// Starts a worker on a fresh directory and waits for its end.
pub(crate) async fn start(
    (engine, shape): (Engine, Option<&Shape>),
    callers: usize,
    plan: Plan,
    root: &Path,
) -> Result<Measured, Error> {
    let dir = tempfile::Builder::new().prefix("keys-").tempdir_in(root)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker").arg("--dir").arg(dir.path());
    command.args(["--engine", engine.name()]);
    command.args(["--callers", &callers.to_string()]);
    command.args(["--warm-up", &plan.warm_up.as_secs_f64().to_string()]);
    command.args(["--seconds", &plan.measure.as_secs_f64().to_string()]);
    if let Some(shape) = shape {
        let shape = serde_json::to_string(shape).map_err(std::io::Error::from)?;
        command.args(["--shape", &shape]);
    }
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Worker { status: output.status, said });
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|source| Error::Json { path: "the worker's line".into(), source })
}
