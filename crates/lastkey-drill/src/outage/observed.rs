//! From what the probes were told to how long everything went on, and when it was well again.

use std::{collections::HashMap, time::Duration};

use lastkey_crypto::KeyVersionId;
use serde::Serialize;

use super::{
    Outage, Outages,
    expect::Expected,
    probing::{History, Probe, Probing},
};

const SIDES: [&str; 2] = ["one", "two"];

/// When what happened; since the probing began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    pub(super) began: Duration,
    pub(super) mended: Duration,
    pub(super) ended: Duration,
    /// All went well from then on; `None` if it did not in time.
    pub(super) healed: Option<Duration>,
}

/// The key's primary version before and after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Versions {
    pub(super) before: KeyVersionId,
    pub(super) after: KeyVersionId,
}

/// All outages that were played.
#[derive(Debug, Clone, Serialize)]
pub struct OutageReport {
    /// Whether everything healed and nothing was lost.
    pub ok: bool,
    /// The same in a sentence.
    pub verdict: String,
    /// How long each one lasted, in seconds.
    pub outage_seconds: u64,
    /// One by one.
    pub outages: Vec<Observed>,
    /// How long all of it took, in seconds.
    pub seconds: u64,
}

/// One outage.
#[derive(Debug, Clone, Serialize)]
pub struct Observed {
    /// Which.
    pub outage: Outage,
    /// What was done.
    pub done: &'static str,
    /// How it was undone.
    pub undone: &'static str,
    /// How long it lasted, in seconds.
    pub seconds: f64,
    /// What was to be expected.
    pub expected: String,
    /// Whether that is what happened.
    pub as_expected: bool,
    /// Whether all went well again by itself, once it was undone.
    pub healed: bool,
    /// How long after that, in seconds.
    pub healed_after: Option<f64>,
    /// Secrets whose writing was acknowledged.
    pub written: u64,
    /// Of them, those that cannot be read back on one side or the other.
    pub lost: u64,
    /// How many of them rest under the version from before a rotation, by apiserver; only where
    /// the key was rotated.
    pub under_old_version: Option<[u64; 2]>,
    /// What the probes saw.
    pub probes: Vec<Row>,
}

/// One probe of one apiserver.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `one` or `two`.
    pub apiserver: &'static str,
    /// What was tried.
    pub probe: Probe,
    /// How often it went well while the outage lasted.
    pub ok: u64,
    /// How often it did not.
    pub failed: u64,
    /// When it first failed, in seconds since the outage began; `None` if it went on throughout.
    pub stopped_after: Option<f64>,
    /// When it was well again for good, in seconds after the outage was undone; `None` if never.
    pub healed_after: Option<f64>,
    /// What was to be expected.
    pub expected: String,
    /// Whether that is what happened.
    pub as_expected: bool,
    /// What it was told.
    pub errors: Vec<ErrorText>,
}

/// An error, in the apiserver's words.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorText {
    /// The words, when they came first.
    pub text: String,
    /// Since the outage began, in seconds.
    pub first_after: f64,
    /// How often it came, apart from times and numbers in it.
    pub count: u64,
}

impl OutageReport {
    pub(super) fn new(drill: &Outages, outages: Vec<Observed>, took: Duration) -> Self {
        let lost: u64 = outages.iter().map(|one| one.lost).sum();
        let sick: Vec<&str> =
            outages.iter().filter(|one| !one.healed).map(|one| one.outage.name()).collect();
        let otherwise: Vec<&str> =
            outages.iter().filter(|one| !one.as_expected).map(|one| one.outage.name()).collect();
        let ok = lost == 0 && sick.is_empty();
        let mut verdict = match ok {
            true => format!("{} outages: everything healed, nothing was lost", outages.len()),
            false if lost > 0 => format!("{lost} acknowledged Secrets cannot be read back"),
            false => format!(
                "not well again within {} s after {}",
                drill.recovery.as_secs(),
                sick.join(", ")
            ),
        };
        if !otherwise.is_empty() {
            verdict += &format!("; other than expected: {}", otherwise.join(", "));
        }
        let (outage_seconds, seconds) = (drill.length.as_secs(), took.as_secs());
        Self { ok, verdict, outage_seconds, outages, seconds }
    }
}

impl Observed {
    pub(super) fn of(
        (outage, course): (Outage, &Course),
        probing: &Probing<'_>,
        (versions, under): (Versions, &HashMap<String, KeyVersionId>),
        (lost, expected): (u64, &Expected),
    ) -> Self {
        let histories = probing.histories();
        let mut probes = Vec::new();
        for (side, apiserver) in SIDES.into_iter().enumerate() {
            for probe in Probe::ALL {
                let Some(history) = histories.get(&(side, probe)) else { continue };
                let goes_on = expected.goes_on(side, probe);
                probes.push(Row::of((apiserver, probe), history, course, goes_on));
            }
        }
        let healed_after = course.healed.map(|at| at.saturating_sub(course.mended));
        let written = probing.written.borrow();
        let old = |side: usize| {
            let of_side = written.iter().filter(|one| one.side == side);
            // before the outage, everybody wrote under the old one
            let late = of_side.filter(|one| one.at >= course.began);
            let old = late.filter(|one| under.get(&one.name) == Some(&versions.before));
            old.count() as u64
        };
        let rotated = versions.before != versions.after;
        let (done, undone) = outage.done();
        let in_time = healed_after.is_some_and(|after| after <= expected.healed_within);
        Self {
            outage,
            done,
            undone,
            seconds: seconds(course.mended.saturating_sub(course.began)),
            expected: expected.words.clone(),
            as_expected: in_time && lost == 0 && probes.iter().all(|row| row.as_expected),
            healed: healed_after.is_some(),
            healed_after: healed_after.map(seconds),
            written: written.len() as u64,
            lost,
            under_old_version: rotated.then(|| [old(0), old(1)]),
            probes,
        }
    }
}

impl Row {
    fn of(
        (apiserver, probe): (&'static str, Probe),
        history: &History,
        course: &Course,
        goes_on: super::expect::GoesOn,
    ) -> Self {
        let &Course { began, mended, ended, .. } = course;
        let length = mended.saturating_sub(began);
        let during = || history.samples.iter().filter(|it| it.at >= began && it.at < mended);
        let stopped = during().find(|sample| !sample.ok).map(|sample| sample.at - began);
        // what was under way when it was undone may fail yet
        let after = history.samples.iter().filter(|it| it.at >= began && it.at <= ended);
        let last_bad =
            after.clone().filter(|sample| !sample.ok).map(|sample| sample.at).next_back();
        let well_from = match last_bad {
            None => Some(mended),
            Some(bad) => after.clone().find(|sample| sample.ok && sample.at > bad).map(|it| it.at),
        };
        let errors = history.errors.iter().filter(|seen| seen.last >= began);
        Self {
            apiserver,
            probe,
            ok: during().filter(|sample| sample.ok).count() as u64,
            failed: during().filter(|sample| !sample.ok).count() as u64,
            stopped_after: stopped.map(seconds),
            healed_after: well_from.map(|at| seconds(at.saturating_sub(mended))),
            expected: goes_on.in_words(length),
            as_expected: goes_on.fits(stopped, length),
            errors: errors
                .map(|seen| ErrorText {
                    text: seen.text.clone(),
                    first_after: seconds(seen.first.saturating_sub(began)),
                    count: seen.count,
                })
                .collect(),
        }
    }
}

/// To a tenth: nothing here is known better.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::{
        super::{expect::GoesOn, probing::Sample},
        *,
    };

    #[test]
    fn a_row_says_when_it_stopped_and_when_it_was_well() {
        let at = |second: u64, ok| Sample { at: Duration::from_secs(second), ok };
        let history = History {
            samples: vec![
                at(1, true),
                at(3, true),
                at(6, false),
                at(9, false),
                at(12, false),
                at(14, true),
            ],
            errors: Vec::new(),
        };
        let course = Course {
            began: Duration::from_secs(2),
            mended: Duration::from_secs(10),
            ended: Duration::from_secs(20),
            healed: Some(Duration::from_secs(14)),
        };
        let row = Row::of(("one", Probe::Write), &history, &course, GoesOn::Throughout);
        assert_eq!((row.ok, row.failed, row.stopped_after), (1, 2, Some(4.0)));
        assert_eq!((row.healed_after, row.as_expected), (Some(4.0), false));
        let well = History { samples: vec![at(3, true), at(15, true)], errors: Vec::new() };
        let row = Row::of(("one", Probe::Read), &well, &course, GoesOn::Throughout);
        assert_eq!((row.stopped_after, row.healed_after, row.as_expected), (None, Some(0.0), true));
        let never = History { samples: vec![at(3, true), at(15, false)], errors: Vec::new() };
        let row = Row::of(("one", Probe::Read), &never, &course, GoesOn::Throughout);
        assert_eq!(row.healed_after, None);
    }
}
