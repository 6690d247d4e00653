//! What is said about a run: a bar for people, events for scripts.
//!
//! Data and events never share a stream: while standard output carries data, events go to standard
//! error.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::jobs::{From, Job, Jobs};
use crate::output::{Exit, Failure, Output};

/// A bar appears after so long, and an event comes after each so long.
const BAR_AFTER: Duration = Duration::from_millis(500);
const EVENT_EVERY: Duration = Duration::from_secs(1);
/// How often a second a bar is drawn.
const DRAWS: u8 = 8;

/// The whole run.
pub(super) struct Report<'a> {
    output: &'a Output,
    /// Standard output carries data.
    data_out: bool,
    /// More than one file, or nobody knows how many.
    several: bool,
    files: u64,
    bytes: u64,
    failed: u64,
    first_failure: Option<Exit>,
}

impl<'a> Report<'a> {
    pub(super) fn new(output: &'a Output, jobs: &Jobs) -> Self {
        Self::of(output, jobs.known() != Some(1), jobs.write_output())
    }

    /// Of a run over so many files, none of which is written to standard output.
    pub(super) fn over(output: &'a Output, files: usize) -> Self {
        Self::of(output, files != 1, false)
    }

    fn of(output: &'a Output, several: bool, data_out: bool) -> Self {
        let (files, bytes, failed) = (0, 0, 0);
        Self { output, data_out, several, files, bytes, failed, first_failure: None }
    }

    /// Follows one file.
    pub(super) fn start(&self, job: &Job, total: Option<u64>) -> Tick<'a> {
        let file = match &job.from {
            From::File(path) => Some(path.display().to_string()),
            From::Input => None,
        };
        let began = Instant::now();
        let data_out = self.data_out;
        let bar = (!self.output.is_json()).then(|| bar(file.as_deref(), total));
        Tick { output: self.output, data_out, file, total, began, said: began, bar, shown: false }
    }

    /// Tells how a file ended. A failure of one among several does not stop the others.
    ///
    /// # Errors
    ///
    /// The failure, if it is the only file's.
    pub(super) fn done(&mut self, outcome: Result<Value, Failure>) -> Result<(), Failure> {
        match outcome {
            Ok(said) => {
                self.files += 1;
                self.bytes += said["plaintext_bytes"].as_u64().unwrap_or(0);
                self.say(if self.several { "file" } else { "report" }, said);
                Ok(())
            }
            Err(failure) if self.several => {
                self.failed += 1;
                self.first_failure.get_or_insert(failure.exit());
                // The exit code is the whole run's.
                let _ = self.output.fail(&failure);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Ends the run.
    ///
    /// # Errors
    ///
    /// If a file failed, with the exit code of the first that did.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if self.several {
            let said = json!({
                "files": self.files, "failed": self.failed, "plaintext_bytes": self.bytes,
            });
            self.say("report", said);
        }
        let all = self.files + self.failed;
        match self.first_failure {
            None => Ok(()),
            Some(exit) => {
                Err(Failure::new(exit, format_args!("{} of {all} files failed", self.failed)))
            }
        }
    }

    fn say(&self, event: &str, mut said: Value) {
        let human = match (&said["file"], &said["rewrapped"]) {
            (Value::String(path), _) => Some(format!("wrote {path}")),
            (_, Value::String(path)) => Some(format!("rewrapped {path}")),
            _ => None,
        };
        said["event"] = json!(event);
        self.output.event(&said, human.as_deref(), self.data_out);
    }
}

/// The progress of one file.
pub(super) struct Tick<'a> {
    output: &'a Output,
    data_out: bool,
    file: Option<String>,
    total: Option<u64>,
    began: Instant,
    said: Instant,
    /// Counts from the beginning, so that its speed is true once it is shown.
    bar: Option<ProgressBar>,
    shown: bool,
}

impl Tick<'_> {
    /// So many bytes are done.
    pub(super) fn at(&mut self, done: u64) {
        if self.output.is_json() {
            if self.said.elapsed() >= EVENT_EVERY {
                self.said = Instant::now();
                let said = json!({
                    "event": "progress", "file": self.file, "done": done, "total": self.total,
                });
                self.output.event(&said, None, self.data_out);
            }
            return;
        }
        let Some(bar) = &self.bar else { return };
        bar.set_position(done);
        if !self.shown && self.began.elapsed() >= BAR_AFTER {
            self.shown = true;
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS));
        }
    }

    /// Nothing more comes.
    pub(super) fn end(self) {
        drop(self);
    }
}

impl Drop for Tick<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Not shown yet. Later on standard error, and only if that is a terminal.
fn bar(file: Option<&str>, total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    let template = match total {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let name = file.map(Path::new).and_then(Path::file_name).unwrap_or_default();
    bar.with_message(name.to_string_lossy().into_owned())
}
