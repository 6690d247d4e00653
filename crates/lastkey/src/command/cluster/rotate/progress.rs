//! How far a rotation has come, for people and for scripts.

use std::{
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lastkey_client::native::RotationPhase;
use lastkey_kubernetes::{
    rotation::{By, ConfigEvent, Event},
    transition::Stage,
};
use serde_json::json;

use crate::output::{Output, line};

/// Scripts hear of progress this often at most.
const TELL_EVERY: Duration = Duration::from_secs(1);
const BAR: &str = "{msg} {wide_bar} {pos} of {len}, {per_sec}, {eta} left";

/// A bar on a terminal; lines elsewhere.
pub(in super::super) struct Progress {
    name: String,
    verb: &'static str,
    json: bool,
    bar: Option<ProgressBar>,
    told: Mutex<Option<Instant>>,
}

impl Progress {
    pub(in super::super) fn new(output: &Output, name: &str) -> Self {
        let json = output.is_json();
        let shown = !json && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(BAR);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { name: name.to_owned(), verb: "rotate", json, bar, told: Mutex::default() }
    }

    /// The same for another command than `rotate`.
    pub(in super::super) fn of(mut self, verb: &'static str) -> Self {
        self.verb = verb;
        self
    }

    pub(in super::super) fn tell(&self, event: &Event) {
        match event {
            Event::Phase(phase) => self.phase(*phase),
            Event::Claimed { why } => {
                self.say(&json!({ "event": "claimed", "why": why }), why);
            }
            Event::Away { why } => self.say(
                &json!({ "event": "away", "why": why }),
                &format!("waiting for Lastkey's server: {why}"),
            ),
            Event::Behind(behind) => self.say(
                &json!({ "event": "waiting", "behind": behind }),
                &format!("waiting for every apiserver: {}", behind.join("; ")),
            ),
            Event::Migration { by, why } => {
                let used = *by == By::Cluster;
                let said = if used { "the cluster's own is used" } else { "not used" };
                self.say(
                    &json!({ "event": "migration", "used": used, "why": why }),
                    &format!("migration: {said}, because {why}"),
                );
            }
            Event::Migrating(migrations) => {
                let said = migrations.iter().map(|one| {
                    let more = if one.said.is_empty() { "" } else { ", " };
                    let state = format!("{:?}", one.state).to_lowercase();
                    format!("{}: {state}{more}{} ({})", one.resource, one.said, one.name)
                });
                self.say(
                    &json!({ "event": "migrating", "migrations": migrations }),
                    &said.collect::<Vec<_>>().join("\n"),
                );
            }
            Event::Paused => self.say(
                &json!({ "event": "paused" }),
                &format!(
                    "{0} rests; `lastkey cluster {1} {0} --resume` goes on",
                    self.name, self.verb
                ),
            ),
            Event::Config(config) => self.config(config),
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

    /// A step of a change of provider. The file itself is printed where somebody has to put it in
    /// place.
    fn config(&self, event: &ConfigEvent) {
        let stage = match event.stage {
            Stage::Readable => "the new provider can be read",
            Stage::Writing => "the new provider writes",
            Stage::Clean => "what nothing is under any more is gone",
        };
        let path = event.path.display();
        let mut said = match (&event.by_hand, &event.kept) {
            (Some((why, _)), _) => {
                format!("{why}: put this in place as {path} for every apiserver, so that {stage}:")
            }
            (None, Some(kept)) => format!(
                "{path} is replaced, so that {stage}; its predecessor is {}",
                kept.display()
            ),
            (None, None) => format!("{path} is written, so that {stage}"),
        };
        if event.comments_lost {
            said += " (comments are lost: it was not written in lines that can be moved)";
        }
        if event.holds_keys {
            said += " (it holds local keys: keep it out of logs)";
        }
        let content = event.by_hand.as_ref().map(|(_, content)| content.as_str());
        self.say(
            &json!({
                "event": "config", "stage": event.stage, "path": event.path, "hash": event.hash,
                "predecessor": event.kept, "by_hand": event.by_hand.as_ref().map(|(why, _)| why),
                "comments_lost": event.comments_lost, "local_keys": event.holds_keys,
                "content": content,
            }),
            &said,
        );
        if let (Some(content), false) = (content, self.json) {
            line(content.trim_end());
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
            (_, true) => {
                line(&event.to_string());
            }
            (Some(bar), false) => bar.println(said),
            (None, false) => Output::note(said),
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
