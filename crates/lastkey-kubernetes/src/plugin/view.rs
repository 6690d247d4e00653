//! What the plugin knows of its key, and what it may say to the apiserver because of it.
//!
//! A value without I/O or clock: the watch replaces it with each answer or failure, Status reads
//! it. The states and what moves between them:
//!
//! | state | answer: usable | answer: refused | server away |
//! |---|---|---|---|
//! | starting | usable | refused | starting |
//! | usable | usable | refused | away |
//! | away | usable | refused | away |
//! | refused | usable | refused | refused |
//!
//! A refused key stays refused while the server is away: silence takes nothing back.
//!
//! An answer that is not believed ([`Doubt`]) counts as none: the server is away. That goes above all
//! for a generation that was left for another one ([`left`]). It is believed again once nothing goes
//! on by the newer one, with the end of the leases that its server gave last. Until then it is said in
//! Status, and encryption goes on where the newer one's server answers. An alias that was moved away and
//! back, within one lease and with the same plugin running, looks the same and waits as long; the server
//! lets nobody move it while a plugin may go by it, so the key has been refused in between.

mod left;

use std::time::Duration;

use lastkey_client::{
    Error as ClientError,
    native::{PluginStatus, Refusal},
};
use lastkey_crypto::{ClusterId, KeyId, Lineage, plugin_blob::PluginKey};

use self::left::Left;
use super::problem::{Problem, refuses_the_key};

/// How long the plugin may go by an answer, where the server names no lease.
const DEFAULT_LEASE: Duration = Duration::from_secs(15 * 60);

/// Time since the machine started, sleep included.
pub(super) type Uptime = Duration;

/// What is known at one moment.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The generation that encrypts, as last heard; kept while the key is refused.
    pub(super) key: Option<PluginKey>,
    /// Its key id, which takes a hash to compute.
    pub(super) key_id: String,
    /// The key's own id, as last heard.
    pub(super) id: Option<KeyId>,
    pub(super) standing: Standing,
    /// Names the server's last answer; empty once a question had none.
    pub(super) token: String,
    /// When the server last answered.
    pub(super) last_contact: Option<Uptime>,
    /// The keys of which what was opened may be used again; sorted.
    pub(super) usable_lineages: Vec<Lineage>,
    /// Changes whenever a version of these is retired, or that is taken back.
    pub(super) retired: String,
    /// Why the last answer was not believed, if there was one and it was not.
    pub(super) doubt: Option<Doubt>,
    /// Whether a generation that was left was named again, since leases ended last.
    pub(super) is_split: bool,
    /// Who is asked, for people.
    servers: String,
    left: Left,
    /// When the server was asked what it last answered: the answer is no younger than that.
    leased_from: Option<Uptime>,
    lease: Duration,
    wanted: Leases,
}

/// For how long the plugin goes on while the server is away; never longer than the server allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leases {
    /// With reads, of what it remembers.
    pub reads: Option<Duration>,
    /// With telling the apiserver that writes may go on.
    pub writes: Option<Duration>,
}

/// Whether the key may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// No server has answered yet.
    Starting { problem: Option<String> },
    /// The server said so, and is there.
    Usable,
    /// It was usable; now the server cannot be asked.
    Away { problem: String },
    /// The server said no.
    Refused(Refusal),
}

/// Why an answer is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Doubt {
    #[error("{0}")]
    Contradicts(&'static str),
    #[error(
        "two of the servers do not share a store: one names a key id again that another one has \
         replaced; serve a data directory once, no copy and no earlier state of it beside it, and \
         name nobody else in --server"
    )]
    Split,
}

impl Doubt {
    /// The kind of failure as which it is counted.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Contradicts(_) => "garbage",
            Self::Split => "split",
        }
    }
}

impl Standing {
    /// Whether the server was there when it was last asked.
    pub(super) fn is_heard(&self) -> bool {
        matches!(self, Self::Usable | Self::Refused(_))
    }
}

/// What a Status call says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) healthz: String,
    pub(super) key: PluginKey,
    pub(super) key_id: String,
}

impl View {
    pub(super) fn starting(wanted: Leases) -> Self {
        Self {
            key: None,
            key_id: String::new(),
            id: None,
            standing: Standing::Starting { problem: None },
            token: String::new(),
            last_contact: None,
            usable_lineages: Vec::new(),
            retired: String::new(),
            doubt: None,
            is_split: false,
            servers: String::new(),
            left: Left::default(),
            leased_from: None,
            lease: DEFAULT_LEASE,
            wanted,
        }
    }

    /// Names who is asked, for as long as none of them has said a word.
    pub(super) fn asking(self, servers: String) -> Self {
        Self { servers, ..self }
    }

    /// The view after one more answer or failure, to a question of that time.
    pub(super) fn after(
        &self,
        outcome: Result<PluginStatus, ClientError>,
        (asked, now): (Uptime, Uptime),
    ) -> Self {
        match outcome {
            Ok(status) => self.after_answer(status, (asked, now)),
            Err(error) => match refuses_the_key(&error) {
                Some(refusal) => {
                    // tells the server that its refusal arrived
                    let token = format!("!{}", refusal.code);
                    self.refused(refusal, token, now)
                }
                None => self.away(error.to_string()),
            },
        }
    }

    /// How long what was opened may be used from now on, unless the server renews it.
    pub(super) fn reads_left(&self, now: Uptime) -> Duration {
        match self.standing {
            Standing::Usable | Standing::Away { .. } => self.left(now, self.wanted.reads),
            Standing::Starting { .. } | Standing::Refused(_) => Duration::ZERO,
        }
    }

    /// Whether nothing goes on any more by what the server said last.
    fn is_over(&self, now: Uptime) -> bool {
        let Leases { reads, writes } = self.wanted;
        [reads, writes].into_iter().all(|wanted| self.left(now, wanted).is_zero())
    }

    /// How long the server may hold its next answer back, in whole seconds, so that leases don't end
    /// meanwhile; not at all if it did not answer last.
    ///
    /// An answer that was held back is that old already when the next question begins. So with a third
    /// of a lease for each, and half of that more until a silent server is given up, there is time left
    /// to ask another one.
    pub(super) fn patience(&self, longest: Duration) -> Duration {
        if !self.standing.is_heard() || self.token.is_empty() {
            return Duration::ZERO;
        }
        let Leases { reads, writes } = self.wanted;
        let shortest = [reads, writes].into_iter().flatten().fold(self.lease, Duration::min);
        Duration::from_secs((shortest / 3).as_secs()).clamp(Duration::from_secs(1), longest)
    }

    fn left(&self, now: Uptime, wanted: Option<Duration>) -> Duration {
        let lease = wanted.map_or(self.lease, |wanted| wanted.min(self.lease));
        let used = self.leased_from.map(|from| now.saturating_sub(from));
        used.map_or(Duration::ZERO, |used| lease.saturating_sub(used))
    }

    /// What Status answers; its failures are for a key that must not be used, be it because nobody has
    /// said for a whole lease that it may.
    pub(super) fn announce(&self, now: Uptime) -> Result<Announcement, Problem> {
        let starting = || Problem::Starting(None);
        let key = self.key.ok_or_else(starting);
        let say = |healthz: String, key| Announcement { healthz, key, key_id: self.key_id.clone() };
        match &self.standing {
            Standing::Starting { problem } => {
                Err(Problem::Starting(Some(self.waits_for(problem.as_deref()))))
            }
            Standing::Refused(refusal) => Err(Problem::Key(refusal.clone())),
            // a question is under way, and for too long
            Standing::Usable if self.left(now, self.wanted.writes).is_zero() => {
                Err(Problem::LeaseOver("it has not answered since".to_owned()))
            }
            Standing::Usable => Ok(say("ok".to_owned(), key?)),
            Standing::Away { problem } if self.left(now, self.wanted.writes).is_zero() => {
                Err(Problem::LeaseOver(problem.clone()))
            }
            Standing::Away { problem } => Ok(say(["server unavailable: ", problem].concat(), key?)),
        }
    }

    /// Whom a plugin that starts asks, all of them: a failure is only one of theirs, and not every one
    /// says whose.
    fn waits_for(&self, problem: Option<&str>) -> String {
        match problem {
            None => format!("no answer from {} so far", self.servers),
            Some(problem) => format!("{problem}; asked: {}", self.servers),
        }
    }

    /// Whether this is that key's id; computed where it is not the present one's.
    pub(super) fn is_key_id_of(&self, key: &PluginKey, key_id: &str) -> bool {
        match self.key.as_ref() == Some(key) {
            true => self.key_id == key_id,
            false => key.key_id() == key_id,
        }
    }

    /// That key's id; computed where it is not the present one's.
    pub(super) fn key_id_of(&self, key: &PluginKey) -> String {
        match self.key.as_ref() == Some(key) {
            true => self.key_id.clone(),
            false => key.key_id(),
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.standing, Standing::Starting { .. })
    }

    /// Why the key must not be used, if the server said so.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match &self.standing {
            Standing::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    fn after_answer(&self, status: PluginStatus, (asked, now): (Uptime, Uptime)) -> Self {
        if !status.usable {
            let unnamed = || Refusal { code: String::new(), message: "the key is unusable".into() };
            return self.refused(status.refusal.unwrap_or_else(unnamed), status.token, now);
        }
        let known = self.until_over(now).within(status.cluster);
        match believed(&status, &known.left) {
            Ok(heard) => known.adopt(status, heard, (asked, now)),
            Err(doubt) => known.doubting(doubt),
        }
    }

    /// What was left is held against nobody once nothing goes on by what it was left for.
    fn until_over(&self, now: Uptime) -> Self {
        match self.is_over(now) {
            true => Self { left: Left::default(), is_split: false, ..self.clone() },
            false => self.clone(),
        }
    }

    /// What was left is of one cluster, as a key id is: another cluster's, which came with another
    /// certificate, contradicts nobody.
    fn within(self, cluster: Option<ClusterId>) -> Self {
        match self.key.is_some_and(|key| Some(key.cluster) != cluster) {
            true => Self { left: Left::default(), is_split: false, ..self },
            false => self,
        }
    }

    fn adopt(
        self,
        status: PluginStatus,
        (key, key_id): (PluginKey, String),
        (asked, now): (Uptime, Uptime),
    ) -> Self {
        let is_left = |old: &PluginKey| *old != key && old.cluster == key.cluster;
        let left = match self.key.filter(is_left) {
            Some(old) => self.left.and(old),
            None => self.left,
        };
        let lease = match status.lease_seconds {
            0 => DEFAULT_LEASE,
            seconds => Duration::from_secs(seconds),
        };
        // a server that names none speaks of the one key
        let usable_lineages = status.usable_lineages.unwrap_or_else(|| vec![key.lineage]);
        Self {
            key: Some(key),
            key_id,
            id: status.key_id,
            standing: Standing::Usable,
            token: status.token,
            last_contact: Some(now),
            usable_lineages,
            retired: status.retired,
            doubt: None,
            is_split: self.is_split,
            servers: self.servers,
            left,
            leased_from: Some(asked),
            lease,
            wanted: self.wanted,
        }
    }

    fn doubting(&self, doubt: Doubt) -> Self {
        let is_split = self.is_split || doubt == Doubt::Split;
        Self { is_split, doubt: Some(doubt), ..self.away(doubt.to_string()) }
    }

    fn refused(&self, refusal: Refusal, token: String, now: Uptime) -> Self {
        let standing = Standing::Refused(refusal);
        Self { standing, token, last_contact: Some(now), doubt: None, ..self.clone() }
    }

    /// The token goes, so that the next answer comes at once.
    fn away(&self, problem: String) -> Self {
        let standing = match &self.standing {
            Standing::Starting { .. } => Standing::Starting { problem: Some(problem) },
            Standing::Usable | Standing::Away { .. } => Standing::Away { problem },
            Standing::Refused(refusal) => Standing::Refused(refusal.clone()),
        };
        Self { standing, token: String::new(), doubt: None, ..self.clone() }
    }
}

/// The generation that an answer names, and its key id, if that is to be believed.
fn believed(status: &PluginStatus, left: &Left) -> Result<(PluginKey, String), Doubt> {
    let (key, key_id) = status.plugin_key().map_err(Doubt::Contradicts)?;
    match left.has(&key) {
        true => Err(Doubt::Split),
        false => Ok((key, key_id)),
    }
}

/// The clock of leases: it counts suspend, unlike `Instant`.
pub(super) fn uptime() -> Uptime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use lastkey_client::ApiError;
    use lastkey_crypto::{Epoch, KeyVersionId};
    use tonic::Code;

    use super::*;

    const NOW: Uptime = Duration::from_secs(1000);
    /// Asked and answered at once.
    const THEN: (Uptime, Uptime) = (NOW, NOW);

    fn key() -> PluginKey {
        PluginKey {
            lineage: Lineage::from_bytes([1; 16]),
            cluster: ClusterId::from_bytes([2; 16]),
            key_version: KeyVersionId::from_bytes([3; 16]),
            epoch: Epoch::from_bytes([4; 16]),
        }
    }

    fn usable() -> PluginStatus {
        let key = key();
        PluginStatus {
            token: "t".into(),
            usable: true,
            refusal: None,
            cluster: Some(key.cluster),
            key_id: None,
            lineage: Some(key.lineage),
            key_version: Some(key.key_version),
            epoch: Some(key.epoch),
            plugin_key_id: Some(key.key_id()),
            lease_seconds: 60,
            usable_lineages: None,
            retired: String::new(),
            warnings: vec![],
            server_time: String::new(),
        }
    }

    fn disabled() -> PluginStatus {
        let refusal = Refusal { code: "Rejected.Disabled".into(), message: "disabled".into() };
        PluginStatus { usable: false, refusal: Some(refusal), ..usable() }
    }

    fn unreachable() -> ClientError {
        ClientError::Unreachable { server: "https://s".into(), reason: "refused".into() }
    }

    fn denied() -> ClientError {
        ClientError::Api(ApiError {
            status: http::StatusCode::FORBIDDEN,
            code: "Forbidden.NoPermission".into(),
            message: "no".into(),
            request_id: None,
            dependants: Vec::new(),
        })
    }

    /// Every (state, event) pair of the table above.
    #[test]
    fn transitions() {
        let starting = View::starting(Leases::default());
        let good = starting.after(Ok(usable()), THEN);
        let away = good.after(Err(unreachable()), THEN);
        let refused = good.after(Ok(disabled()), THEN);
        let name = |view: &View| match view.standing {
            Standing::Starting { .. } => "starting",
            Standing::Usable => "usable",
            Standing::Away { .. } => "away",
            Standing::Refused(_) => "refused",
        };
        for (from, when_away) in
            [(&starting, "starting"), (&good, "away"), (&away, "away"), (&refused, "refused")]
        {
            assert_eq!(name(&from.after(Ok(usable()), THEN)), "usable");
            assert_eq!(name(&from.after(Ok(disabled()), THEN)), "refused");
            assert_eq!(name(&from.after(Err(denied()), THEN)), "refused");
            assert_eq!(name(&from.after(Err(unreachable()), THEN)), when_away);
        }
    }

    #[test]
    fn what_status_says() {
        let starting = View::starting(Leases::default());
        assert_eq!(starting.announce(NOW).unwrap_err().code(), Code::Unavailable);

        let good = starting.after(Ok(usable()), THEN);
        let said = good.announce(NOW).unwrap();
        assert_eq!((said.healthz.as_str(), said.key), ("ok", key()));

        let away = good.after(Err(unreachable()), THEN);
        let said = away.announce(NOW + Duration::from_secs(59)).unwrap();
        assert!(said.healthz.contains("cannot reach https://s"), "{}", said.healthz);
        let over = away.announce(NOW + Duration::from_secs(60)).unwrap_err();
        assert_eq!(over.code(), Code::Unavailable);

        let refused = away.after(Ok(disabled()), THEN);
        assert_eq!(refused.announce(NOW).unwrap_err().code(), Code::FailedPrecondition);
        let denied = away.after(Err(denied()), THEN);
        assert_eq!(denied.announce(NOW).unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_no_answer() {
        let good = View::starting(Leases::default()).after(Ok(usable()), THEN);
        for wrong in [
            PluginStatus { plugin_key_id: Some("0".repeat(64)), ..usable() },
            PluginStatus { plugin_key_id: None, ..usable() },
            PluginStatus { epoch: None, ..usable() },
        ] {
            let later = NOW + Duration::from_secs(9);
            let view = good.after(Ok(wrong), (later, later));
            assert!(matches!(view.standing, Standing::Away { .. }));
            assert_eq!((view.key, view.last_contact), (Some(key()), Some(NOW)));
        }
    }

    /// As the server answers once its key has another epoch.
    fn in_epoch(epoch: u8) -> PluginStatus {
        let key = PluginKey { epoch: Epoch::from_bytes([epoch; 16]), ..key() };
        PluginStatus { epoch: Some(key.epoch), plugin_key_id: Some(key.key_id()), ..usable() }
    }

    fn epoch(view: &View) -> u8 {
        view.key.unwrap().epoch.as_bytes()[0]
    }

    fn is_doubted(view: &View) -> bool {
        view.doubt == Some(Doubt::Split) && view.is_split && view.token.is_empty()
    }

    #[test]
    fn no_key_id_comes_back_after_it_was_left() {
        let before = View::starting(Leases::default()).after(Ok(in_epoch(1)), THEN);
        let rotated = before.after(Ok(in_epoch(2)), THEN);
        let view = rotated.after(Ok(in_epoch(3)), THEN);
        assert_eq!((epoch(&view), view.doubt, view.is_split), (3, None, false));
        for left in [1, 2] {
            let later = NOW + Duration::from_secs(9);
            let split = view.after(Ok(in_epoch(left)), (later, later));
            assert!(is_doubted(&split));
            // it goes on by what it heard before, and Status says why it does not work as it should
            assert_eq!((epoch(&split), split.last_contact), (3, Some(NOW)));
            assert_eq!(split.reads_left(later), view.reads_left(later));
            let said = split.announce(later).unwrap();
            assert_eq!(said.key_id, view.key_id);
            assert!(said.healthz.contains("do not share a store"), "{}", said.healthz);
            // the newer one is back, and what was seen stays seen
            let good = split.after(Ok(in_epoch(3)), THEN);
            assert_eq!((good.standing.clone(), good.doubt), (Standing::Usable, None));
            assert!(good.is_split);
            // other failures are what they are
            assert_eq!(split.after(Err(unreachable()), THEN).doubt, None);
        }
        // what has not been left is a rotation, as ever
        assert_eq!(view.after(Ok(in_epoch(3)), THEN).standing, Standing::Usable);
        assert_eq!(epoch(&view.after(Ok(in_epoch(4)), THEN)), 4);
    }

    #[test]
    fn what_was_left_is_taken_again_once_nothing_goes_on_by_what_came_after_it() {
        let at = |seconds| (NOW + Duration::from_secs(seconds), NOW + Duration::from_secs(seconds));
        for (wanted, over) in [
            (Leases::default(), 60),
            (Leases { reads: Some(Duration::from_secs(10)), writes: None }, 60),
            (
                Leases {
                    reads: Some(Duration::from_secs(10)),
                    writes: Some(Duration::from_secs(20)),
                },
                20,
            ),
        ] {
            let newer =
                View::starting(wanted).after(Ok(in_epoch(1)), at(0)).after(Ok(in_epoch(2)), at(0));
            let refused = newer.after(Ok(disabled()), at(1));
            for view in [&newer, &refused] {
                let split = view.after(Ok(in_epoch(1)), at(over - 1));
                assert!(is_doubted(&split) && epoch(&split) == 2, "{wanted:?}");
                let back = split.after(Ok(in_epoch(1)), at(over));
                assert_eq!((epoch(&back), &back.standing), (1, &Standing::Usable));
                assert!(!back.is_split && back.doubt.is_none());
                // from then on it is the other one that was left
                assert!(is_doubted(&back.after(Ok(in_epoch(2)), at(over + 1))));
            }
            // a refusal stays one, whoever else allows the key
            let split = refused.after(Ok(in_epoch(1)), at(2));
            assert!(split.refusal().is_some() && split.announce(NOW).is_err());
        }
    }

    /// A certificate of another cluster was put in place, and the right one again.
    #[test]
    fn what_was_left_for_another_cluster_is_held_against_nobody() {
        let other = || {
            let key = PluginKey { cluster: ClusterId::from_bytes([9; 16]), ..key() };
            let plugin_key_id = Some(key.key_id());
            PluginStatus { cluster: Some(key.cluster), plugin_key_id, ..usable() }
        };
        let first = View::starting(Leases::default()).after(Ok(usable()), THEN);
        let strange = first.after(Ok(other()), THEN);
        assert_ne!(strange.key, first.key);
        let back = strange.after(Ok(usable()), THEN);
        assert_eq!(
            (back.key, &back.standing, back.is_split),
            (first.key, &Standing::Usable, false)
        );
        // nor does it hide what one of the same cluster contradicts
        let newer = back.after(Ok(in_epoch(7)), THEN);
        assert!(is_doubted(&newer.after(Ok(usable()), THEN)));
    }

    /// The lease begins when the server was asked: what it says is no younger.
    #[test]
    fn leases_run_from_the_question() {
        let seconds = Duration::from_secs;
        let good = View::starting(Leases::default()).after(Ok(usable()), (NOW, NOW + seconds(20)));
        assert_eq!(good.reads_left(NOW + seconds(20)), seconds(40));
        let away = good.after(Err(unreachable()), (NOW + seconds(21), NOW + seconds(22)));
        assert_eq!(away.reads_left(NOW + seconds(59)), seconds(1));
        assert!(away.reads_left(NOW + seconds(60)).is_zero());
        assert!(away.announce(NOW + seconds(60)).is_err());
        // what is wanted can only be less than what the server allows
        for (wanted, left) in [(5, 5), (60, 60), (600, 60)] {
            let wanted = Leases { reads: Some(seconds(wanted)), writes: None };
            let view = View::starting(wanted).after(Ok(usable()), THEN);
            assert_eq!(view.reads_left(NOW), seconds(left));
            assert_eq!(view.patience(seconds(30)), seconds((left / 3).max(1)));
        }
        let short = Leases { reads: None, writes: Some(seconds(10)) };
        let away = View::starting(short).after(Ok(usable()), THEN).after(Err(unreachable()), THEN);
        let good = View::starting(short).after(Ok(usable()), THEN);
        for view in [away.clone(), good] {
            assert!(view.announce(NOW + seconds(9)).is_ok());
            assert!(view.announce(NOW + seconds(10)).is_err());
        }
        assert_eq!(away.reads_left(NOW + seconds(10)), seconds(50));
    }

    /// For a failure is that of one, or names none.
    #[test]
    fn a_plugin_that_starts_names_all_whom_it_asks() {
        let view = View::starting(Leases::default()).asking("https://s and https://t".to_owned());
        let said = |view: &View| view.announce(NOW).unwrap_err().to_string();
        let silent = said(&view);
        assert!(silent.ends_with(": no answer from https://s and https://t so far"), "{silent}");
        let sealed = ClientError::Api(ApiError {
            status: http::StatusCode::SERVICE_UNAVAILABLE,
            code: "ServiceUnavailableTemporary".into(),
            message: "sealed".into(),
            request_id: None,
            dependants: Vec::new(),
        });
        for failure in [unreachable(), sealed] {
            let failed = said(&view.after(Err(failure), THEN));
            assert!(failed.ends_with("; asked: https://s and https://t"), "{failed}");
        }
    }

    /// Whoever was not answered asks whom he can, and does not wait for news.
    #[test]
    fn only_a_server_that_answered_last_may_hold_its_answer_back() {
        let longest = Duration::from_secs(30);
        let starting = View::starting(Leases::default());
        let failed = starting.after(Err(unreachable()), THEN);
        for view in [&starting, &failed] {
            assert!(view.patience(longest).is_zero());
            for outcome in [Ok(usable()), Ok(disabled()), Err(denied())] {
                let heard = view.after(outcome, THEN);
                assert!(!heard.patience(longest).is_zero());
                assert!(heard.after(Err(unreachable()), THEN).patience(longest).is_zero());
            }
        }
    }

    #[test]
    fn nothing_is_left_of_a_lease_that_was_taken_back() {
        let good = View::starting(Leases::default()).after(Ok(usable()), THEN);
        assert!(!good.reads_left(NOW).is_zero());
        for outcome in [Ok(disabled()), Err(denied())] {
            let refused = good.after(outcome, THEN);
            assert!(refused.reads_left(NOW).is_zero());
            let silent = refused.after(Err(unreachable()), THEN);
            assert!(silent.reads_left(NOW).is_zero());
        }
        assert_eq!(good.after(Err(denied()), THEN).token, "!Forbidden.NoPermission");
    }
}
