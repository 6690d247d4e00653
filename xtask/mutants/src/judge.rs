//! Whether a test notices a mutant.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    Error, build,
    outcomes::Outcome,
    parts::Work,
    suite::{End, On, Runner, Test},
};

/// Tests that take so long together are tried at once; the next lot may take twice as long.
const FIRST_LOT: Duration = Duration::from_millis(800);
/// A busy machine stops a short test for a while.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many times as long as they took unchanged.
const FACTOR: u32 = 8;
/// Nothing is waited for longer.
const LONGEST_LOOK: Duration = Duration::from_secs(180);

/// What mutants are judged with.
pub(crate) struct Bench<'a> {
    pub(crate) work: &'a Work<'a>,
    /// Which tests reach which mutant.
    pub(crate) tests: &'a HashMap<u32, Vec<&'a Test>>,
}

impl Bench<'_> {
    /// Judges the mutants with these numbers, `jobs` at a time.
    pub(crate) fn judge_all(&self, numbers: Vec<u32>, jobs: usize) -> Result<(), Error> {
        let queue = Mutex::new(VecDeque::from(numbers));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs.max(1))
                .map(|worker| {
                    scope.spawn(move || -> Result<(), Error> {
                        let runner = Runner::new(self.work, &format!("job-{worker}"))?;
                        while let Some(number) = next() {
                            self.judge(&runner, number)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err(Error::Refused("a job panicked".into())))
            })
        })
    }

    #[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
    fn judge(&self, runner: &Runner, number: u32) -> Result<(), Error> {
        let name = &self.work.all[number as usize - 1].name;
        let (outcome, why) = self.outcome(runner, number)?;
        if outcome.lives() {
            println!("{}: {name}", outcome.name());
        }
        self.work.outcomes.put(name, outcome, &why)
    }

    /// The same for one that cannot be woven in: built on its own, and with every test.
    #[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
    pub(crate) fn judge_alone(&self, number: u32, tests: &[&Test]) -> Result<(), Error> {
        let mutant = &self.work.all[number as usize - 1];
        let (outcome, why) = match build::build_alone(self.work, mutant)? {
            Err(why) => (Outcome::Unbuildable, why),
            Ok(binaries) => {
                let tests: Vec<Test> =
                    tests.iter().filter_map(|t| t.in_one_of(&binaries)).collect();
                let runner = Runner::new(self.work, "alone")?;
                noticed(&runner, 0, &tests.iter().collect::<Vec<_>>())?
            }
        };
        if outcome.lives() {
            println!("{}: {}", outcome.name(), mutant.name);
        }
        self.work.outcomes.put_alone(&mutant.name, outcome, &why)
    }

    fn outcome(&self, runner: &Runner, number: u32) -> Result<(Outcome, String), Error> {
        match self.tests.get(&number) {
            Some(tests) => noticed(runner, number, tests),
            None => Ok((Outcome::Unreached, String::new())),
        }
    }
}

/// Runs `tests`, the shortest first, with the mutant `on` until one fails.
pub(crate) fn noticed(
    runner: &Runner,
    on: u32,
    tests: &[&Test],
) -> Result<(Outcome, String), Error> {
    for lot in lots(tests) {
        match patiently(runner, on, &lot)? {
            End::Passed => {}
            End::Failed(test) => return Ok((Outcome::Caught, test)),
            End::TooLong | End::Endless => {
                let of =
                    format!("{}: {} and {} more", lot[0].binary.name, lot[0].name, lot.len() - 1);
                return Ok((Outcome::Forever, of));
            }
        }
    }
    Ok((Outcome::Survived, format!("{} tests ran", tests.len())))
}

/// Runs a lot for as long as it may take. Where it takes longer, so may the unchanged program on a
/// machine that is busy by now: that is looked at, and the lot given as much more time.
fn patiently(runner: &Runner, on: u32, lot: &[&Test]) -> Result<End, Error> {
    let took: Duration = lot.iter().map(|test| test.took).sum();
    // What was built on its own cannot be switched off, so it is given more time at once.
    let mut limit = (PATIENCE + took * FACTOR) * if on == 0 { 4 } else { 1 };
    loop {
        let end = runner.run(lot, &On { number: on, limit, seen: None })?;
        if end != End::TooLong || on == 0 {
            return Ok(end);
        }
        let began = Instant::now();
        runner.run(lot, &On { number: 0, limit: LONGEST_LOOK, seen: None })?;
        let needed = began.elapsed() * FACTOR;
        if needed <= limit || limit >= LONGEST_LOOK {
            return Ok(End::TooLong);
        }
        limit = needed.min(LONGEST_LOOK);
    }
}

/// The tests in lots that one process each runs, the shortest first.
fn lots<'a>(tests: &[&'a Test]) -> Vec<Vec<&'a Test>> {
    let mut lots = Vec::new();
    let (mut room, mut left) = (FIRST_LOT, FIRST_LOT);
    let mut lot: BTreeMap<&str, Vec<&'a Test>> = BTreeMap::new();
    for test in tests {
        if test.took > left && !lot.is_empty() {
            lots.extend(std::mem::take(&mut lot).into_values());
            room *= 2;
            left = room;
        }
        left = left.saturating_sub(test.took);
        lot.entry(&test.binary.name).or_default().push(test);
    }
    lots.extend(lot.into_values());
    lots
}
