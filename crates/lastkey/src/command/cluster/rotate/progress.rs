//! How far a rotation has come, for people and for scripts.

use std::{
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lastkey_client::native::RotationPhase;
use lastkey_kubernetes::rotation::Event;
use serde_json::json;

use crate::output::{Output, line};

/// Scripts hear of progress this often at most.
const TELL_EVERY: Duration = Duration::from_secs(1);
const BAR: &str = "{msg} {wide_bar} {pos} of {len}, {per_sec}, {eta} left";

/// A bar on a terminal; lines elsewhere.
pub(super) struct Progress {
    name: String,
    json: bool,
    bar: Option<ProgressBar>,
    told: Mutex<Option<Instant>>,
}

impl Progress {
    pub(super) fn new(output: &Output, name: &str) -> Self {
        let json = output.is_json();
        let shown = !json && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(BAR);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { name: name.to_owned(), json, bar, told: Mutex::default() }
    }

    pub(super) fn tell(&self, event: &Event) {
        match event {
            Event::Phase(phase) => self.phase(*phase),
            Event::Claimed { why } => {
                self.say(&json!({ "event": "claimed", "why": why }), why);
            }
            Event::Behind(behind) => self.say(
                &json!({ "event": "waiting", "behind": behind }),
                &format!("waiting for every apiserver: {}", behind.join("; ")),
            ),
            Event::Paused => self.say(
                &json!({ "event": "paused" }),
                &format!("{} rests; `lastkey cluster rotate {0} --resume` goes on", self.name),
            ),
            Event::Progress { done, total, counts } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(*total);
                    bar.set_position(*done);
                }
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                let due = told.is_none_or(|at| at.elapsed() >= TELL_EVERY) || done == total;
                if self.json && due {
                    *told = Some(Instant::now());
                    let event = json!({
                        "event": "progress", "done": done, "total": total,
                        "rewritten": counts.rewritten, "gone": counts.gone,
                        "conflicts": counts.conflicts, "refused": counts.refused,
                    });
                    line(&event.to_string());
                }
            }
        }
    }

    fn phase(&self, phase: RotationPhase) {
        let said = match phase {
            RotationPhase::Preparing => "having every apiserver read what the new provider writes",
            RotationPhase::Switching => "having every apiserver write by it",
            RotationPhase::Removing => "taking out what nothing is under any more",
            RotationPhase::Converging => "waiting until every apiserver uses the new key id",
            RotationPhase::Rewriting => "writing every object anew",
            RotationPhase::Verifying => "looking whether any is left",
            RotationPhase::Finished | RotationPhase::Cancelled => return,
        };
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_message(format!("{}: {phase:?}", self.name));
        }
        self.say(&json!({ "event": "phase", "phase": phase }), said);
    }

    /// An event for scripts, a sentence for people.
    fn say(&self, event: &serde_json::Value, said: &str) {
        match (&self.bar, self.json) {
            (_, true) => line(&event.to_string()),
            (Some(bar), false) => bar.println(said),
            (None, false) => tracing::warn!("{said}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
