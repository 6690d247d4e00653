//! The one task that asks the server about the key: a long poll, so that a change is known within
//! a round trip, and a quick retry while the server is away.
//!
//! 1. A question that need not wait goes to whichever address answers: the first one, and each after
//!    a failure.
//! 2. Only who has answered is asked to hold the next answer back until there is news.
//! 3. Where that fails, a question that need not wait follows at once; only if that fails, too, is
//!    the server away. A refusal is no failure: nobody else is asked. Where a question that need not
//!    wait is asked of several, a slow refusal may come after another address's answer, which only
//!    addresses that share no store can give.
//! 4. A refusal that is about our identity is believed once no other one lies ready to take up: a
//!    process that goes by the same files may have renewed them.
//!
//! Everything heard goes through this task, in order, so that an old answer never replaces a newer
//! one and no key id comes back after it was left, also where two servers of different memory answer
//! in turn ([`View`]).

use std::{sync::Arc, time::Duration};

use lastkey_client::{
    Client, Error as ClientError,
    native::{PluginStatus, PluginStatusRequest},
};
use lastkey_crypto::ClusterId;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    TakeUp,
    memory::Memory,
    metrics::Metrics,
    problem::{failure_kind, is_about_the_identity, refuses_the_key},
    view::{Doubt, Standing, Uptime, View, uptime},
};

/// How long the server holds an answer back while nothing changes.
const LONG_POLL: Duration = Duration::from_secs(30);
/// Answers come no faster than this, whatever the server does.
const PACE: Duration = Duration::from_millis(50);
/// The first pause after a failure, and the longest: with the time that one attempt to connect may
/// take, a server that is back is found within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// Keeps a [`View`] current.
pub(super) struct Watch {
    pub(super) client: Arc<Client>,
    pub(super) key: String,
    pub(super) cluster: Option<ClusterId>,
    pub(super) view: watch::Sender<Arc<View>>,
    /// Asks anew, without waiting for a change.
    pub(super) refresh: Arc<Notify>,
    pub(super) metrics: Arc<Metrics>,
    /// Forgets what must not be used any more.
    pub(super) memory: Option<Arc<Memory>>,
    /// What the server warned about last, so that each warning is logged once.
    pub(super) warnings: Vec<String>,
    /// Another identity, where one lies ready.
    pub(super) take_up: Option<TakeUp>,
}

impl Watch {
    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        // its name comes with the first question already
        if let Some(memory) = &self.memory {
            memory.prepare().await;
        }
        let mut pause = FIRST_PAUSE;
        let mut longest = LONG_POLL;
        loop {
            let next = Instant::now() + PACE;
            let wait = longest.min(self.view.borrow().patience(LONG_POLL));
            let (outcome, asked) = tokio::select! {
                heard = self.hear(wait) => heard,
                // the question under way may predate what the caller has seen
                () = self.refresh.notified() => {
                    longest = Duration::ZERO;
                    continue;
                }
            };
            longest = LONG_POLL;
            if self.take(outcome, asked) {
                pause = FIRST_PAUSE;
            } else {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = self.refresh.notified() => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            sleep_until(next).await;
        }
    }

    /// What a server answers, and when it was asked that.
    async fn hear(&self, wait: Duration) -> (Result<PluginStatus, ClientError>, Uptime) {
        let (asked, known) = (uptime(), self.view.borrow().token.clone());
        match self.ask(&known, wait).await {
            Err(error) if is_about_the_identity(&error) && self.has_another() => {
                tracing::info!(%error, "asking by the certificate that was put in place");
                let asked = uptime();
                (self.ask("", Duration::ZERO).await, asked)
            }
            Err(error) if !wait.is_zero() && self.may_hear_more(&error) => {
                tracing::debug!(%error, "asking whoever answers");
                self.metrics.memory().failed(failure_kind(&error));
                // without what is known, as after every failure
                let asked = uptime();
                (self.ask("", Duration::ZERO).await, asked)
            }
            outcome => (outcome, asked),
        }
    }

    fn has_another(&self) -> bool {
        self.take_up.as_ref().is_some_and(TakeUp::takes_up)
    }

    /// Whether another question might bring more at once. An only address that is overloaded has said
    /// enough.
    fn may_hear_more(&self, error: &ClientError) -> bool {
        let is_busy = error.api().is_some_and(|said| said.status.as_u16() == 429);
        says_nothing(error) && (!is_busy || self.client.servers().len() > 1)
    }

    async fn ask(&self, known: &str, wait: Duration) -> Result<PluginStatus, ClientError> {
        let instance = self.memory.as_ref().and_then(|memory| memory.id());
        let question =
            PluginStatusRequest { key: &self.key, cluster: self.cluster, known, wait, instance };
        self.client.plugin_status(question).await
    }

    /// Answers whether it was an answer that could be believed.
    fn take(&mut self, outcome: Result<PluginStatus, ClientError>, asked: Uptime) -> bool {
        let answered = outcome.is_ok();
        if let Err(error) = &outcome {
            self.metrics.memory().failed(failure_kind(error));
        }
        if let Ok(status) = &outcome
            && status.warnings != self.warnings
        {
            self.warnings.clone_from(&status.warnings);
            for warning in &self.warnings {
                tracing::warn!(%warning, "the server warns about the key");
            }
        }
        let old = self.view.borrow().clone();
        let new = Arc::new(old.after(outcome, (asked, uptime())));
        if let Some(doubt) = new.doubt {
            self.metrics.memory().failed(doubt.kind());
        }
        log_change(&old, &new);
        let key_id = new.key.map(|key| key.key_id());
        let usable = new.standing == Standing::Usable;
        self.metrics.heard(key_id.as_deref(), new.last_contact, usable);
        // The view goes first: what asks the server from here on is not kept by what it said before.
        self.view.send_replace(Arc::clone(&new));
        if let Some(memory) = &self.memory {
            memory.follow(&old, &new);
        }
        answered && new.doubt.is_none()
    }
}

/// Whether a failure says nothing of the key, but of who was asked.
fn says_nothing(error: &ClientError) -> bool {
    let is_at_fault = error.api().is_none_or(|said| {
        matches!(said.status.as_u16(), 408 | 429) || said.status.is_server_error()
    });
    is_at_fault && refuses_the_key(error).is_none()
}

/// One line for each change, none for what stays as it was.
fn log_change(old: &View, new: &View) {
    if old.key != new.key
        && let Some(key) = new.key
    {
        let (key_id, key_version) = (key.key_id(), key.key_version.to_string());
        tracing::info!(key_id, key_version, "the key version that encrypts");
    }
    if new.is_split && !old.is_split {
        tracing::error!(problem = %Doubt::Split, "the key id stays as it is");
    }
    let waiting = |view: &View| matches!(view.standing, Standing::Starting { problem: Some(_) });
    let same = std::mem::discriminant(&old.standing) == std::mem::discriminant(&new.standing);
    if same && waiting(old) == waiting(new) {
        return;
    }
    match &new.standing {
        Standing::Usable => tracing::info!("the server allows the key"),
        Standing::Starting { problem } => tracing::warn!(?problem, "waiting for the server"),
        // said above, and not each time that the wrong one answers
        Standing::Away { .. } if new.doubt == Some(Doubt::Split) => {}
        Standing::Away { problem } => tracing::warn!(problem, "the server is away"),
        Standing::Refused(refusal) => {
            tracing::error!(code = refusal.code, reason = refusal.message, "the key is refused");
        }
    }
}
