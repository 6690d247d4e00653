//! How far a verification has come, for people and for scripts.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::output::{Output, line};

/// Scripts hear of it this often, and not at all of what takes less.
const TELL_EVERY: Duration = Duration::from_secs(1);
const BAR: &str = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// A bar on a terminal, or a line now and then.
pub(super) struct Watch {
    bar: Option<ProgressBar>,
    json: bool,
    told: Instant,
}

impl Watch {
    pub(super) fn new(output: &Output) -> Self {
        let json = output.is_json();
        let shown = !json && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(BAR);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, json, told: Instant::now() }
    }

    /// So many bytes of files were read.
    pub(super) fn at(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
        if self.json && self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            line(&json!({ "event": "progress", "done": done, "total": total }).to_string());
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
