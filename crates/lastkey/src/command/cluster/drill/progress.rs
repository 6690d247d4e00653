//! How far a drill is, for people and for scripts; and what has to be asked of a person.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lastkey_drill::{Event, Operator};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    command::operator::read_share,
    output::{Output, line},
};

const BAR: &str = "{wide_bar} {pos} of {len}, {per_sec}, {eta} left";
const SECONDS: &str = "{wide_bar} {pos} of {len} s";

/// Tells on standard error; for scripts, a JSON object a line on standard output.
pub(super) struct Watcher {
    json: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Watcher {
    pub(super) fn new(output: &Output) -> Self {
        Self { json: output.is_json(), terminal: std::io::stderr().is_terminal(), bar: None }
    }

    fn say(&mut self, text: &str) {
        self.end_bar();
        if !self.json {
            Output::note(text);
        }
    }

    fn show(&mut self, template: &str, (done, total): (u64, u64)) {
        if !self.terminal {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
        if done == total {
            self.end_bar();
        }
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Operator for Watcher {
    fn tell(&mut self, event: &Event) {
        if self.json {
            let event = match event {
                Event::Step(what) => json!({ "event": "step", "step": what }),
                Event::Progress { done, total } => {
                    json!({ "event": "progress", "done": done, "total": total })
                }
                Event::Elapsed { elapsed, total } => json!({
                    "event": "progress", "unit": "seconds",
                    "done": elapsed.as_secs(), "total": total.as_secs(),
                }),
                Event::Plan { outages, about, at_most } => json!({
                    "event": "plan", "outages": outages,
                    "about_seconds": about.as_secs(), "at_most_seconds": at_most.as_secs(),
                }),
            };
            line(&event.to_string());
            return;
        }
        match event {
            Event::Step(what) => self.say(&format!("· {what}")),
            Event::Progress { done, total } => self.show(BAR, (*done, *total)),
            Event::Elapsed { elapsed, total } => {
                self.show(SECONDS, (elapsed.as_secs(), total.as_secs()));
            }
            Event::Plan { outages, about, at_most } => self.say(&plan(*outages, (about, at_most))),
        }
    }

    fn share(&mut self, status: &Value) -> Result<Zeroizing<String>, String> {
        self.end_bar();
        read_share(status).map_err(|failure| failure.to_string())
    }

    fn share_refused(&mut self, why: &str) -> bool {
        // who types may have mistyped; a script gives what it has, once
        let asks = std::io::stdin().is_terminal();
        if asks {
            self.say(why);
        }
        asks
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end_bar();
    }
}

fn plan(outages: usize, (about, at_most): (&Duration, &Duration)) -> String {
    let minutes = |time: &Duration| time.as_secs().div_ceil(60);
    let what = if outages == 1 { "1 outage".to_owned() } else { format!("{outages} outages") };
    format!(
        "· {what}: about {} min, {} at most. Ctrl-C ends it at any time, with a report of what was \
         seen",
        minutes(about),
        minutes(at_most)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_said_in_minutes() {
        let said = plan(1, (&Duration::from_secs(61), &Duration::from_secs(600)));
        assert!(said.starts_with("· 1 outage: about 2 min, 10 at most."), "{said}");
        assert!(plan(6, (&Duration::ZERO, &Duration::ZERO)).starts_with("· 6 outages:"));
    }
}
