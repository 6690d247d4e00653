//! The run: for every scenario and number of callers, floor and ours take turns.

use std::{path::PathBuf, time::Duration};

use crate::{
    error::Error,
    load::{Caller, Connection, Plan, PluginCaller, Sample, drive},
    options::Options,
    report::{Cell, Reporter},
    scenario::{Scenario, Side},
    sides::{Floor, Ours},
};

/// Measures what the options ask for and reports it.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    // One thread: the servers need the other processors more.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let root = match &options.dir {
        Some(dir) => dir.clone(),
        None => beside_the_binary()?,
    };
    std::fs::create_dir_all(&root)?;
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&root)?;
    runtime.block_on(async {
        let ours = Ours::start(options, dir.path()).await?;
        if let Some(seconds) = options.soak {
            return soak(options, &ours, seconds).await;
        }
        let mut reporter = Reporter::new(options);
        for scenario in scenarios(options) {
            let sizes = ours.sizes(options, scenario).await?;
            let floor = Floor::start(options, sizes, &dir.path().join(scenario.name()))?;
            for &callers in &options.connections {
                measure(options, (&floor, &ours), (scenario, callers), &mut reporter).await?;
            }
        }
        reporter.finish()
    })
}

/// `target/bench`, where the binary lies in `target/release`.
fn beside_the_binary() -> Result<PathBuf, Error> {
    let binary = std::env::current_exe()?;
    let target = binary.parent().and_then(|dir| dir.parent());
    Ok(target.unwrap_or(&std::env::temp_dir()).join("bench"))
}

fn scenarios(options: &Options) -> Vec<Scenario> {
    match &*options.only {
        _ if options.all => Scenario::ALL.to_vec(),
        [] => Scenario::USUAL.to_vec(),
        only => only.to_vec(),
    }
}

/// One scenario with one number of callers, all rounds and sides.
async fn measure(
    options: &Options,
    (floor, ours): (&Floor, &Ours),
    (scenario, callers): (Scenario, usize),
    reporter: &mut Reporter,
) -> Result<(), Error> {
    let plan = Plan {
        warm_up: Duration::from_secs_f64(options.warm_up),
        measure: Duration::from_secs_f64(options.seconds),
    };
    let sides = scenario.sides();
    let mut cells: Vec<Cell> =
        sides.iter().map(|side| Cell::new(scenario, callers, *side)).collect();
    for round in 0..options.rounds {
        // Who goes first changes too, so that no side always follows the other's dirty pages.
        for turn in 0..sides.len() {
            let at = (turn + round) % sides.len();
            let what = (scenario, callers, sides[at]);
            cells[at].add(&once(options, (floor, ours), what, plan).await?);
        }
    }
    reporter.report(&cells)
}

/// One measurement of one side.
async fn once(
    options: &Options,
    (floor, ours): (&Floor, &Ours),
    (scenario, callers, side): (Scenario, usize, Side),
    plan: Plan,
) -> Result<Sample, Error> {
    let pid = if side == Side::Ours { ours.pid() } else { floor.pid() };
    if scenario.is_https() {
        let target = if side == Side::Ours { &ours.target } else { &floor.target };
        let template = ours.template(options, scenario);
        let mut connections = Vec::with_capacity(callers);
        for _ in 0..callers {
            connections.push(Connection::open(target, template.clone(), side.name()).await?);
        }
        warm(connections, plan, pid).await
    } else {
        let socket = match side {
            Side::Ours => ours.plugin_socket(),
            Side::Floor => &floor.ready.backed_socket,
            Side::Bare => &floor.ready.bare_socket,
        };
        let call = ours.plugin_call(scenario);
        let caller = PluginCaller::open(socket, call, side.name()).await?;
        warm(vec![caller; callers], plan, pid).await
    }
}

async fn warm<C: Caller>(callers: Vec<C>, plan: Plan, pid: u32) -> Result<Sample, Error> {
    // The disk has settled before the clock starts.
    rustix::fs::sync();
    drive(callers, plan, pid).await
}

/// Load on ours alone, for somebody who looks at it with a profiler.
async fn soak(options: &Options, ours: &Ours, seconds: f64) -> Result<(), Error> {
    let plan = Plan { warm_up: Duration::ZERO, measure: Duration::from_secs_f64(seconds) };
    let scenario = scenarios(options)[0];
    let callers = options.connections[0];
    let mut cell = Cell::new(scenario, callers, Side::Ours);
    crate::report::say(&format!("load on process {}", ours.pid()));
    let call = ours.plugin_call(scenario);
    let sample = if scenario.is_https() {
        let template = ours.template(options, scenario);
        let mut connections = Vec::with_capacity(callers);
        for _ in 0..callers {
            connections.push(Connection::open(&ours.target, template.clone(), "ours").await?);
        }
        drive(connections, plan, ours.pid()).await?
    } else {
        let caller = PluginCaller::open(ours.plugin_socket(), call, "ours").await?;
        drive(vec![caller; callers], plan, ours.pid()).await?
    };
    cell.add(&sample);
    let mut reporter = Reporter::new(options);
    reporter.report(&[cell])?;
    reporter.finish()
}
