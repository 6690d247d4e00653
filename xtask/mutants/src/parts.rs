//! The pieces of the code that are tested so, and a run from its beginning to its end.

use std::collections::HashMap;

use crate::{
    Error, Options, build,
    judge::Bench,
    list::{self, Mutant},
    outcomes::{Outcome, Outcomes},
    place::{self, Copy},
    suite::{self, Test},
};

/// A piece of the code, and the tests that have to notice a change of it.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    /// Only these files; all of the package when there are none.
    pub(crate) files: &'static [&'static str],
    /// The package's test targets that are tried first; all when there are none.
    tests: &'static [&'static str],
}

/// What a run works with.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) part: &'a Part,
    pub(crate) copy: &'a Copy,
    /// All mutants of the part; a number is a place in it, from 1.
    pub(crate) all: &'a [Mutant],
    pub(crate) outcomes: &'a Outcomes,
    /// The test targets beside the unit tests; all if there are none.
    pub(crate) targets: &'a [&'a str],
}

const PARTS: [Part; 3] = [
    Part { name: "crypto", package: "lastkey-crypto", files: &[], tests: &[] },
    Part { name: "store", package: "lastkey-store", files: &[], tests: &[] },
    Part {
        name: "audit",
        package: "lastkey-engine",
        files: &["crates/lastkey-engine/src/audit.rs", "crates/lastkey-engine/src/audit/**"],
        // Those that read or write a log; the others take longer and see little more of it.
        tests: &[
            "alone",
            "audit",
            "checkpoints",
            "deletion",
            "findings",
            "follow",
            "recovery",
            "retention",
            "search",
            "segments",
            "writer",
        ],
    },
];

/// Runs the parts one after the other, all of them, and says at the end which had survivors.
#[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let chosen = |part: &&Part| options.part.as_ref().is_none_or(|name| name == part.name);
    let wanted: Vec<&Part> = PARTS.iter().filter(chosen).collect();
    if wanted.is_empty() {
        return Err(Error::Refused("there are the parts crypto, store and audit".into()));
    }
    let (mut survived, mut chose) = (Vec::new(), false);
    for part in wanted {
        println!("── {}", part.name);
        let caught = run_part(part, options)?;
        chose |= caught.is_some();
        if caught == Some(false) {
            survived.push(part.name);
        }
    }
    if !chose {
        return Err(Error::Refused(
            "no mutant is what --re, --file and --shard choose; `--list` counts them at once"
                .into(),
        ));
    }
    if survived.is_empty() {
        return Ok(());
    }
    let parts = survived.join(", ");
    Err(Error::Refused(format!(
        "mutants survived, or are left to cargo-mutants, in {parts}: see \
         target/mutants/*/outcomes.txt; each needs a test, or its reason in docs/mutants.md"
    )))
}

/// Runs one part; whether no mutant is left of those that are chosen, if any is.
#[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
fn run_part(part: &Part, options: &Options) -> Result<Option<bool>, Error> {
    // All of the part are woven in, so that their numbers and the build stay; some are judged.
    let all = list::mutants(part, &Options::all_of(options))?;
    let chosen: Vec<String> =
        list::mutants(part, options)?.into_iter().map(|mutant| mutant.name).collect();
    if chosen.is_empty() {
        println!("0 mutants of {}", all.len());
        return Ok(None);
    }
    let outcomes =
        Outcomes::open(&place::root().join("target/mutants").join(part.name), options.fresh)?;
    if !options.list {
        let copy = Copy::new(&options.copy);
        let targets = if options.everything { &[] } else { part.tests };
        let work = Work { part, copy: &copy, all: &all, outcomes: &outcomes, targets };
        judge(&work, options, &chosen)?;
    }
    Ok(Some(sum_up(&all, &chosen, &outcomes)))
}

fn judge(work: &Work<'_>, options: &Options, chosen: &[String]) -> Result<(), Error> {
    let Work { all, outcomes, .. } = *work;
    let binaries = build::build(work)?;
    let tests = suite::survey(work, &binaries)?;
    let by_mutant = suite::by_mutant(&tests);
    let due = |name: &str| match outcomes.get(name) {
        None => true,
        Some(Outcome::Unwoven) => true,
        Some(outcome) => (options.survivors || options.everything) && outcome.lives(),
    };
    let (alone, numbers): (Vec<u32>, Vec<u32>) = (1..)
        .zip(all)
        .filter(|(_, mutant)| chosen.contains(&mutant.name) && due(&mutant.name))
        .map(|(number, _)| number)
        .partition(|number| outcomes.is_alone(&all[*number as usize - 1].name));
    let bench = Bench { work, tests: &by_mutant };
    bench.judge_all(numbers, options.jobs)?;
    let mut tests: Vec<&Test> = tests.iter().collect();
    tests.sort_by_key(|test| test.took);
    alone.into_iter().try_for_each(|number| bench.judge_alone(number, &tests))
}

/// Counts what became of them; whether each was caught, or does not compile.
#[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
fn sum_up(all: &[Mutant], chosen: &[String], outcomes: &Outcomes) -> bool {
    let mut counts: HashMap<Option<Outcome>, usize> = HashMap::new();
    for name in chosen {
        *counts.entry(outcomes.get(name)).or_default() += 1;
    }
    let of = |outcome| counts.get(&outcome).copied().unwrap_or(0);
    println!("{} mutants of {}", chosen.len(), all.len());
    for outcome in Outcome::ALL {
        println!("{:>6} {}", of(Some(outcome)), outcome.name());
    }
    println!("{:>6} not tested yet", of(None));
    [Some(Outcome::Survived), Some(Outcome::Unreached), Some(Outcome::Unwoven), None]
        .into_iter()
        .all(|left| of(left) == 0)
}
