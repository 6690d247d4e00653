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
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Course {
    pub(super) began: Option<Duration>,
    pub(super) mended: Option<Duration>,
    pub(super) ended: Duration,
    /// All went well from then on; `None` if it did not in time.
    pub(super) healed: Option<Duration>,
}

/// What was looked at once an outage was over.
#[derive(Debug)]
pub(super) struct After {
    /// Acknowledged Secrets that cannot be read back.
    pub(super) lost: u64,
    pub(super) versions: Versions,
    /// The version that each Secret rests under, by name.
    pub(super) under: HashMap<String, KeyVersionId>,
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
    /// Why it ended before everything was played, if it did: somebody interrupted it, or something
    /// fell apart that nobody broke.
    pub cut_short: Option<String>,
    /// How long each one was to last, in seconds.
    pub outage_seconds: u64,
    /// One by one.
    pub outages: Vec<Observed>,
    /// Those that were to be played and were not: after one that did not heal, none is.
    pub not_played: Vec<Outage>,
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
    /// Whether that is what happened, as far as it was seen.
    pub as_expected: bool,
    /// Whether it was seen to its end.
    pub complete: bool,
    /// Whether all went well again by itself, once it was undone.
    pub healed: bool,
    /// How long after that, in seconds.
    pub healed_after: Option<f64>,
    /// Secrets whose writing was acknowledged.
    pub written: u64,
    /// Of them, those that cannot be read back on one side or the other; `None` if nobody looked.
    pub lost: Option<u64>,
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
    /// The longest that one took that went well, in seconds.
    pub slowest: f64,
    /// When it first failed, in seconds since the outage began; `None` if it went on throughout.
    pub stopped_after: Option<f64>,
    /// When it was well again for good, in seconds after the outage was undone (0 where it never
    /// failed, or was well before); `None` if that was not seen.
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
    pub(super) fn new(
        drill: &Outages,
        (outages, cut_short): (Vec<Observed>, Option<String>),
        took: Duration,
    ) -> Self {
        let played = |outage: &&Outage| outages.iter().any(|one| one.outage == **outage);
        let not_played: Vec<Outage> =
            drill.outages.iter().filter(|outage| !played(outage)).copied().collect();
        let (outage_seconds, seconds) = (drill.length.as_secs(), took.as_secs());
        let mut report = Self {
            ok: false,
            verdict: String::new(),
            cut_short,
            outage_seconds,
            outages,
            not_played,
            seconds,
        };
        (report.ok, report.verdict) = report.judge(drill.recovery);
        report
    }

    fn judge(&self, recovery: Duration) -> (bool, String) {
        let names = |which: &dyn Fn(&Observed) -> bool| {
            let found = self.outages.iter().filter(|one| which(one));
            found.map(|one| one.outage.name()).collect::<Vec<_>>().join(", ")
        };
        let lost: u64 = self.outages.iter().filter_map(|one| one.lost).sum();
        let complete = self.outages.iter().filter(|one| one.complete).count();
        let sick = names(&|one| one.complete && !one.healed);
        let otherwise = names(&|one| !one.as_expected);
        let mut said = Vec::new();
        if let Some(why) = &self.cut_short {
            // the rest of it is the end of a log
            let why = why.lines().next().unwrap_or_default();
            let why = why.strip_suffix("; its last words:").unwrap_or(why);
            let all = count(self.outages.len() + self.not_played.len());
            said.push(format!("{why}; {complete} of {all} were seen to their end"));
        }
        if lost > 0 {
            said.push(format!("{lost} acknowledged Secrets cannot be read back"));
        }
        if !sick.is_empty() {
            said.push(format!("not well again within {} s after {sick}", recovery.as_secs()));
        }
        let ok = said.is_empty();
        if ok {
            said.push(format!("{}: everything healed, nothing was lost", count(complete)));
        }
        if !otherwise.is_empty() {
            said.push(format!("other than expected: {otherwise}"));
        }
        (ok, said.join("; "))
    }
}

fn count(outages: usize) -> String {
    if outages == 1 { "1 outage".to_owned() } else { format!("{outages} outages") }
}

impl Observed {
    pub(super) fn of(
        (outage, course, expected): (Outage, &Course, &Expected),
        began: Duration,
        (probing, after): (&Probing<'_>, Option<&After>),
    ) -> Self {
        let histories = probing.histories();
        let mut probes = Vec::new();
        for (side, apiserver) in SIDES.into_iter().enumerate() {
            for probe in Probe::ALL {
                let Some(history) = histories.get(&(side, probe)) else { continue };
                let goes_on = expected.goes_on(side, probe);
                probes.push(Row::of((apiserver, probe), history, (course, began), goes_on));
            }
        }
        let mended = course.mended.unwrap_or(course.ended);
        let healed_after = course.healed.map(|at| at.saturating_sub(mended));
        let written = probing.written.borrow();
        let old = |side: usize, after: &After| {
            let of_side = written.iter().filter(|one| one.side == side);
            // before the outage, everybody wrote under the old one
            let late = of_side.filter(|one| one.at >= began);
            let before = Some(&after.versions.before);
            late.filter(|one| after.under.get(&one.name) == before).count() as u64
        };
        let rotated = after.filter(|after| after.versions.before != after.versions.after);
        let (done, undone) = outage.done();
        let lost = after.map(|after| after.lost);
        let in_time = healed_after.is_some_and(|after| after <= expected.healed_within);
        let complete = after.is_some();
        Self {
            outage,
            done,
            undone,
            seconds: seconds(mended.saturating_sub(began)),
            expected: expected.words.clone(),
            as_expected: (in_time && lost == Some(0) || !complete)
                && probes.iter().all(|row| row.as_expected),
            complete,
            healed: healed_after.is_some(),
            healed_after: healed_after.map(seconds),
            written: written.len() as u64,
            lost,
            under_old_version: rotated.map(|after| [old(0, after), old(1, after)]),
            probes,
        }
    }
}

impl Row {
    /// When it was well again, in words.
    #[must_use]
    pub fn healed_in_words(&self) -> String {
        match self.healed_after {
            _ if self.errors.is_empty() && self.failed == 0 => "-".to_owned(),
            Some(after) => format!("{after:.1} s"),
            None => "not seen".to_owned(),
        }
    }

    /// For how long it went on, in words.
    #[must_use]
    pub fn went_on_in_words(&self) -> String {
        let stopped = self.stopped_after.map(|after| format!("{after:.1} s"));
        stopped.unwrap_or_else(|| "throughout".to_owned())
    }

    fn of(
        (apiserver, probe): (&'static str, Probe),
        history: &History,
        (course, began): (&Course, Duration),
        goes_on: super::expect::GoesOn,
    ) -> Self {
        let ended = course.ended;
        let mended = course.mended.unwrap_or(ended);
        let length = mended.saturating_sub(began);
        let during = || history.samples.iter().filter(|it| it.at >= began && it.at < mended);
        let stopped = during().find(|sample| !sample.ok).map(|sample| sample.at - began);
        let slowest = during().filter(|sample| sample.ok).map(|sample| sample.took).max();
        // what was under way when it was undone may fail yet
        let after = history.samples.iter().filter(|it| it.at >= began && it.at <= ended);
        let last_bad =
            after.clone().filter(|sample| !sample.ok).map(|sample| sample.at).next_back();
        let well_from = course.mended.and_then(|mended| match last_bad {
            None => Some(mended),
            Some(bad) => after.clone().find(|sample| sample.ok && sample.at > bad).map(|it| it.at),
        });
        let errors = history.errors.iter().filter(|seen| seen.last >= began);
        Self {
            apiserver,
            probe,
            ok: during().filter(|sample| sample.ok).count() as u64,
            failed: during().filter(|sample| !sample.ok).count() as u64,
            slowest: (slowest.unwrap_or_default().as_secs_f64() * 1000.0).round() / 1000.0,
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
        let took = Duration::from_millis(200);
        let at = |second: u64, ok| Sample { at: Duration::from_secs(second), ok, took };
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
        let began = Duration::from_secs(2);
        let course = Course {
            began: Some(began),
            mended: Some(Duration::from_secs(10)),
            ended: Duration::from_secs(20),
            healed: Some(Duration::from_secs(14)),
        };
        let course = (&course, began);
        let row = Row::of(("one", Probe::Write), &history, course, GoesOn::Throughout);
        assert_eq!((row.ok, row.failed, row.stopped_after), (1, 2, Some(4.0)));
        assert!((row.slowest - 0.2).abs() < 0.01);
        assert_eq!((row.healed_after, row.as_expected), (Some(4.0), false));
        let well = History { samples: vec![at(3, true), at(15, true)], errors: Vec::new() };
        let row = Row::of(("one", Probe::Read), &well, course, GoesOn::Throughout);
        assert_eq!((row.stopped_after, row.healed_after, row.as_expected), (None, Some(0.0), true));
        let never = History { samples: vec![at(3, true), at(15, false)], errors: Vec::new() };
        let row = Row::of(("one", Probe::Read), &never, course, GoesOn::Throughout);
        assert_eq!(row.healed_after, None);
        // interrupted before it was undone: what was seen counts, and nothing has healed
        let cut = Course { mended: None, healed: None, ..*course.0 };
        let row = Row::of(("one", Probe::Write), &history, (&cut, began), GoesOn::Throughout);
        assert_eq!((row.ok, row.failed, row.stopped_after), (2, 3, Some(4.0)));
        assert_eq!(row.healed_after, None);
    }

    fn observed(outage: Outage, healed: bool) -> Observed {
        Observed {
            outage,
            done: "",
            undone: "",
            seconds: 30.0,
            expected: String::new(),
            as_expected: healed,
            complete: true,
            healed,
            healed_after: healed.then_some(2.0),
            written: 60,
            lost: Some(0),
            under_old_version: None,
            probes: Vec::new(),
        }
    }

    #[test]
    fn verdicts() {
        let drill = super::super::outages_of(
            &[Outage::ServerDown, Outage::Sealed],
            Duration::from_secs(30),
        );
        let report = |outages: Vec<Observed>, cut: Option<&str>| {
            OutageReport::new(&drill, (outages, cut.map(str::to_owned)), Duration::from_secs(90))
        };
        let well = || vec![observed(Outage::ServerDown, true), observed(Outage::Sealed, true)];
        let good = report(well(), None);
        assert!(good.ok && good.not_played.is_empty());
        assert_eq!(good.verdict, "2 outages: everything healed, nothing was lost");
        // other than expected is said, and no failure by itself
        let mut odd = well();
        odd[1].as_expected = false;
        let odd = report(odd, None);
        assert!(
            odd.ok && odd.verdict.ends_with("; other than expected: sealed"),
            "{}",
            odd.verdict
        );
        let sick = report(vec![observed(Outage::ServerDown, false)], None);
        assert!(!sick.ok && sick.not_played == [Outage::Sealed]);
        assert!(sick.verdict.contains("not well again within 30 s after server-down"));
        let mut lost = well();
        lost[0].lost = Some(3);
        let lost = report(lost, None);
        assert!(!lost.ok && lost.verdict.contains("3 acknowledged Secrets cannot be read back"));
        // an interrupted one says so first, and is neither healed nor sick
        let mut cut = well();
        cut[1] = Observed {
            complete: false,
            healed: false,
            healed_after: None,
            lost: None,
            ..observed(Outage::Sealed, true)
        };
        let cut = report(cut, Some("interrupted"));
        assert!(!cut.ok);
        assert_eq!(cut.verdict, "interrupted; 1 of 2 outages were seen to their end");
        let dead = report(Vec::new(), Some("etcd ended (signal: 9); its last words:\n{}"));
        assert_eq!(dead.verdict, "etcd ended (signal: 9); 0 of 2 outages were seen to their end");
        assert_eq!(dead.not_played, drill.outages);
    }
}
