//! How far a drill is, for people and for scripts; and what has to be asked of a person.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lastkey_drill::{Event, Operator};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    command::operator::read_share,
    output::{Output, line},
};

const BAR: &str = "{wide_bar} {pos} of {len}, {per_sec}, {eta} left";

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
            };
            line(&event.to_string());
            return;
        }
        match event {
            Event::Step(what) => self.say(&format!("· {what}")),
            Event::Progress { done, total } if self.terminal => {
                let bar = self.bar.get_or_insert_with(|| {
                    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                    let style = ProgressStyle::with_template(BAR);
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar
                });
                bar.set_length(*total);
                bar.set_position(*done);
                if done == total {
                    self.end_bar();
                }
            }
            Event::Progress { .. } => {}
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
