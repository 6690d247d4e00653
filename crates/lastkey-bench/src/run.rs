//! The run: one scenario after the other; in each, floor and ours take turns.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    allocations,
    error::Error,
    files,
    floor::shape::Shape,
    load::{Caller, Connection, Plan, PluginCaller, drive, pace},
    machine::{Machine, Noise, NoiseMeter},
    options::{Engine, Options},
    plugins::Subject,
    report::{Cell, Reporter, say},
    rotate,
    round::Round,
    scenario::{Kind, Scenario, Side},
    sides::{Floor, FloorPlan, Ours},
    start, worker,
};

/// The page that `--write-docs` writes.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks.md");
const HUNDRED_THOUSAND: u64 = 100_000;
const MILLION: u64 = 1_000_000;

/// Measures what the options ask for and reports it.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    // One thread: the servers need the other processors more.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let target = target_directory()?;
    let root = options.dir.clone().unwrap_or_else(|| target.join("bench"));
    std::fs::create_dir_all(&root)?;
    let stores = match &options.dir {
        Some(dir) => dir.join("stores"),
        None => target.join("bench-stores"),
    };
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&root)?;
    let mut reporter = Reporter::new(options, Machine::here(&root));
    let noise = runtime.block_on(all(options, (dir.path(), &stores), &mut reporter))?;
    reporter.finish(noise, options.write_docs.then_some(Path::new(PAGE)))
}

async fn all(
    options: &Options,
    (dir, stores): (&Path, &Path),
    reporter: &mut Reporter,
) -> Result<Noise, Error> {
    let meter = NoiseMeter::start();
    let ours = Ours::start(options, dir).await?;
    if let Some(seconds) = options.soak {
        soak(options, (&ours, dir), (seconds, reporter)).await?;
        drop(ours);
        return Ok(meter.stop());
    }
    let scenarios = scenarios(options);
    let shape = if scenarios.iter().any(|scenario| scenario.needs_shape()) {
        watch(dir, reporter).await?
    } else {
        Shape::default()
    };
    for &scenario in &scenarios {
        match scenario {
            Scenario::Allocations => allocations::count(options, &shape, dir, reporter).await?,
            Scenario::Files => files::measure(options, &ours, dir, reporter)?,
            Scenario::Rotate => rotate::measure(options, &ours, dir, reporter)?,
            Scenario::Start | Scenario::StartMillion => {}
            _ => {
                let shape = scenario.makes_keys().then_some(&shape);
                let bench = Bench::start(options, &ours, (scenario, shape), dir).await?;
                for callers in scenario.callers(&options.connections) {
                    bench.measure(callers, reporter).await?;
                }
            }
        }
    }
    // The server under load has to go before others are started and timed.
    drop(ours);
    for scenario in scenarios {
        match scenario {
            Scenario::Start => start::measure(options, HUNDRED_THOUSAND, stores, reporter).await?,
            Scenario::StartMillion => start::measure(options, MILLION, stores, reporter).await?,
            _ => {}
        }
    }
    Ok(meter.stop())
}

/// `target`, where the binary lies in `target/release`.
fn target_directory() -> Result<PathBuf, Error> {
    let binary = std::env::current_exe()?;
    let target = binary.parent().and_then(|dir| dir.parent());
    Ok(target.unwrap_or(&std::env::temp_dir()).to_owned())
}

fn scenarios(options: &Options) -> Vec<Scenario> {
    match &*options.only {
        _ if options.all => Scenario::ALL.to_vec(),
        [] => Scenario::USUAL.to_vec(),
        only => only.to_vec(),
    }
}

/// What one creation of a key writes.
async fn watch(dir: &Path, reporter: &mut Reporter) -> Result<Shape, Error> {
    let plan = Plan { warm_up: Duration::ZERO, measure: Duration::ZERO };
    let watched = worker::start((Engine::Watched, None), 1, plan, dir).await?;
    let shape = watched.shape.unwrap_or_default();
    reporter.creation(shape.describe());
    Ok(shape)
}

/// One scenario's sides.
struct Bench<'a> {
    options: &'a Options,
    scenario: Scenario,
    ours: &'a Ours,
    floor: Floor,
    /// In a plugin's scenario.
    subject: Option<Subject>,
    shape: Option<&'a Shape>,
    dir: &'a Path,
}

impl<'a> Bench<'a> {
    async fn start(
        options: &'a Options,
        ours: &'a Ours,
        (scenario, shape): (Scenario, Option<&'a Shape>),
        dir: &'a Path,
    ) -> Result<Self, Error> {
        let sizes = ours.sizes(options, scenario).await?;
        let plan = FloorPlan { scenario, sizes, shape, count: false };
        let floor = Floor::start(options, plan, &dir.join(scenario.name()))?;
        let subject = match scenario.kind() {
            Kind::Plugin => Some(Subject::of(options, ours, scenario, dir).await?),
            _ => None,
        };
        Ok(Self { options, scenario, ours, floor, subject, shape, dir })
    }

    /// One number of callers, all rounds and sides.
    async fn measure(&self, callers: usize, reporter: &mut Reporter) -> Result<(), Error> {
        let sides = self.scenario.sides();
        let mut cells: Vec<Cell> =
            sides.iter().map(|side| Cell::new(self.scenario, callers, *side)).collect();
        for round in 0..self.options.rounds {
            // Who goes first changes too, so that no side always follows the other's dirty pages.
            for turn in 0..sides.len() {
                let at = (turn + round) % sides.len();
                if round < sides[at].rounds(self.options.rounds) {
                    cells[at].add(self.once(callers, sides[at]).await?);
                }
            }
        }
        reporter.report(&cells)
    }

    /// One measurement of one side.
    async fn once(&self, callers: usize, side: Side) -> Result<Round, Error> {
        let plan = Plan {
            warm_up: Duration::from_secs_f64(self.options.warm_up),
            measure: Duration::from_secs_f64(self.options.seconds),
        };
        let ours = self.subject.as_ref().map_or(self.ours.pid(), |subject| subject.pid);
        let pid = if side == Side::Ours { ours } else { self.floor.pid() };
        match self.scenario.kind() {
            Kind::Https => warm(self.connections(callers, side).await?, plan, pid).await,
            Kind::Plugin => {
                let none = || Error::Answer { side: "ours", what: "there is no plugin".into() };
                let subject = self.subject.as_ref().ok_or_else(none)?;
                let socket = match side {
                    Side::Ours => &subject.socket,
                    Side::Floor => &self.floor.ready.backed_socket,
                    _ => &self.floor.ready.bare_socket,
                };
                let call = subject.call.clone();
                let caller = PluginCaller::open(socket, call, side.name()).await?;
                let callers = vec![caller; callers];
                match self.scenario.pace() {
                    None => warm(callers, plan, pid).await,
                    Some(rate) => Ok(Round::of(&pace(callers, (plan, rate), pid).await?)),
                }
            }
            Kind::Engine | Kind::Other => {
                let pair = self.shape.map(Shape::pair);
                let what = match side {
                    Side::Ours => (Engine::Ours, None),
                    Side::RedbPair => (Engine::Redb, pair.as_ref()),
                    _ => (Engine::Redb, self.shape),
                };
                rustix::fs::sync();
                Ok(worker::start(what, callers, plan, self.dir).await?.round)
            }
        }
    }

    async fn connections(&self, callers: usize, side: Side) -> Result<Vec<Connection>, Error> {
        let target = match side {
            Side::Ours => &self.ours.account.target,
            Side::Null => &self.floor.null,
            _ => &self.floor.target,
        };
        let template = self.ours.account.template(self.options, self.scenario);
        let mut connections = Vec::with_capacity(callers);
        for _ in 0..callers {
            connections.push(Connection::open(target, template.clone(), side.name()).await?);
        }
        Ok(connections)
    }
}

async fn warm<C: Caller>(callers: Vec<C>, plan: Plan, pid: u32) -> Result<Round, Error> {
    // The disk has settled before the clock starts.
    rustix::fs::sync();
    Ok(Round::of(&drive(callers, plan, pid).await?))
}

/// Load on ours alone, for somebody who looks at it with a profiler.
async fn soak(
    options: &Options,
    (ours, dir): (&Ours, &Path),
    (seconds, reporter): (f64, &mut Reporter),
) -> Result<(), Error> {
    let plan = Plan { warm_up: Duration::ZERO, measure: Duration::from_secs_f64(seconds) };
    let scenario = scenarios(options)[0];
    let callers = options.connections[0];
    let mut cell = Cell::new(scenario, callers, Side::Ours);
    say(&format!("load on process {}", ours.pid()));
    let sample = if scenario.kind() == Kind::Https {
        let template = ours.account.template(options, scenario);
        let mut connections = Vec::with_capacity(callers);
        for _ in 0..callers {
            let target = &ours.account.target;
            connections.push(Connection::open(target, template.clone(), "ours").await?);
        }
        drive(connections, plan, ours.pid()).await?
    } else {
        let subject = Subject::of(options, ours, scenario, dir).await?;
        let caller = PluginCaller::open(&subject.socket, subject.call.clone(), "ours").await?;
        drive(vec![caller; callers], plan, subject.pid).await?
    };
    cell.add(Round::of(&sample));
    reporter.report(&[cell])
}
