//! Many crashes in a row on one disk.

use std::time::Duration;

use crate::{
    Random, World,
    crash::Crash,
    disk::Lie,
    gate::{End, Pace, Plan, Threads},
    log::Log,
    model::Model,
    phase::{Course, Phase, Stop, Trouble},
};

/// Crashes in one history.
pub const CRASHES: usize = 12;
/// How long threads have to end after a crash.
const FAREWELL: Duration = Duration::from_secs(20);

/// What was done, and what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed that repeats it.
    pub seed: u64,
    /// Crashes so far.
    pub crashes: usize,
    /// Of them, in the middle of something.
    pub sudden: usize,
    /// Commands that were answered or refused, or never heard of.
    pub commands: usize,
    /// Changes of the disk.
    pub changes: u64,
    /// Lives in which something failed on purpose.
    pub troubles: usize,
    /// Segments of the log that retention has deleted.
    pub deleted: usize,
    /// Times the engine asked to be started anew.
    pub restarts: usize,
    /// What happened in which order, as a number: the same for the same seed.
    pub trace: u64,
    /// What is wrong, in the life before which crash.
    pub failure: Option<String>,
}

/// One history.
pub struct History {
    world: World,
    model: Model,
    log: Log,
    report: Report,
    /// Changes of the life before.
    length: u64,
}

impl History {
    /// An empty disk.
    pub fn new(seed: u64, lie: Option<Lie>) -> Self {
        let world = World::new(seed);
        world.disk.with(|state| state.lie = lie);
        let report = Report { seed, ..Report::default() };
        Self { world, model: Model::default(), log: Log::default(), report, length: 300 }
    }

    /// Crashes so often, and looks once more.
    pub fn run(mut self, crashes: usize) -> Report {
        for crash in 0..=crashes {
            let mut random = Random::fork(self.report.seed, crash);
            let last = crash == crashes;
            if let Err(failure) = self.life(&mut random, last) {
                self.report.failure = Some(failure);
                break;
            }
            if !last {
                Crash::any(&mut random).strike(&self.world.disk, &mut random);
                self.report.crashes += 1;
            }
        }
        self.report.commands = self.model.issued.len();
        self.report.deleted = self.log.deleted;
        self.report
    }

    fn life(&mut self, random: &mut Random, last: bool) -> Result<(), String> {
        let course = course(random, last);
        self.report.troubles += usize::from(course.trouble.is_some());
        let mut choices = Random::new(random.next());
        let crash_after = (!last && random.percent(85))
            .then(|| random.next() % (self.length + self.length / 4 + 20));
        let mut plan = Plan {
            random: &mut choices,
            pace: Pace { turn: 1 + random.below(12), change: 1 + random.below(8) },
            crash_after,
            changes: 0,
            trace: self.report.trace,
        };
        let outsiders = Threads::now().map_err(|error| error.to_string())?;
        let disk = self.world.disk.clone();
        disk.gate().open();
        let mut phase = Phase {
            world: self.world.clone(),
            model: std::mem::take(&mut self.model),
            log: std::mem::take(&mut self.log),
            course,
            random: Random::new(random.next()),
            restarts: 0,
            troubled: false,
        };
        let life = std::thread::Builder::new()
            .name("runtime".into())
            .spawn(move || {
                let ended = phase.live();
                (phase, ended)
            })
            .map_err(|error| error.to_string())?;
        let end = disk.gate().rule(&outsiders, &mut plan);
        disk.gate().kill();
        let (changes, trace) = (plan.changes, plan.trace);
        let joined = life.join();
        let alone = wait_for_threads(&outsiders);
        disk.gate().close();
        Trouble::end(&disk);
        let (phase, ended) = joined.map_err(|_| "something panicked".to_owned())?;
        self.take(phase, changes, trace);
        self.report.sudden += usize::from(end == End::Crashed);
        match (end, ended) {
            (End::Hung(who), _) => Err(format!("nothing goes on; asleep are {who}")),
            (_, Err(Stop::Wrong(what))) => Err(what),
            _ if !alone => Err("threads outlive the engine".to_owned()),
            _ => Ok(()),
        }
    }

    fn take(&mut self, phase: Phase, changes: u64, trace: u64) {
        self.report.restarts += phase.restarts;
        self.report.changes += changes;
        self.report.trace = trace;
        self.length = changes.max(40);
        self.model = phase.model;
        self.model.abandon();
        self.log = phase.log;
    }
}

fn course(random: &mut Random, last: bool) -> Course {
    let commands = if last { 0 } else { 5 + random.below(35) };
    let trouble = (!last && random.percent(35)).then(|| Trouble::any(random, commands));
    Course { commands, callers: 1 + random.below(10), trouble, fat: random.percent(2) }
}

fn wait_for_threads(outsiders: &Threads) -> bool {
    let since = std::time::Instant::now();
    while since.elapsed() < FAREWELL {
        if outsiders.are_all().unwrap_or(true) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}
