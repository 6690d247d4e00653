//! What a worker keeps of a rotation: where it is, and what it has counted.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{By, change::Change, proof::Proof, steady::Writes};
use crate::cluster::Resource;

/// So many refusals are named; the others are counted.
const NAMED: usize = 40;

/// What became of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// An apiserver wrote them anew.
    pub rewritten: u64,
    /// There was nothing to write.
    pub current: u64,
    /// They were deleted meanwhile.
    pub gone: u64,
    /// Somebody else wrote them first.
    pub conflicts: u64,
    /// Something refuses to have them written.
    pub refused: u64,
}

impl Counts {
    /// Objects that are still there.
    pub fn seen(&self) -> u64 {
        self.rewritten + self.current + self.refused
    }

    fn add(&mut self, other: Self) {
        self.rewritten += other.rewritten;
        self.current += other.current;
        self.gone += other.gone;
        self.conflicts += other.conflicts;
        self.refused += other.refused;
    }
}

/// An object that cannot be written back; never what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its resource.
    pub resource: String,
    /// Its namespace, if it has one.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who refuses, and why as far as that says nothing of its content.
    pub reason: String,
}

/// A kind of which a list could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unlisted {
    /// Which one.
    pub(super) resource: String,
    /// What the apiserver said.
    pub(super) why: String,
    /// Whether it said that there is no such kind.
    #[serde(default)]
    pub(super) not_found: bool,
}

/// Where a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cursor {
    /// In which resource.
    pub(super) at: usize,
    /// Where in it; `None` for its first page.
    pub(super) next: Option<String>,
}

impl Cursor {
    /// Where the page begins that follows one with this token for it.
    pub(super) fn after(&self, next: Option<String>) -> Self {
        Self { at: self.at + usize::from(next.is_none()), next }
    }
}

/// All that has to be known to go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// In the order they are gone through.
    pub(super) resources: Vec<Resource>,
    /// Whether those are all that may be under the key: otherwise nothing becomes free.
    pub(super) whole: bool,
    /// The names that those stand for, of all workers that it has had: who goes on with it may know
    /// fewer of them.
    pub(super) names: Vec<String>,
    /// Whether a worker that goes through all of it has read the configuration: what was registered
    /// may be less than what is encrypted by now.
    pub(super) configured: bool,
    /// Why it is not known whether more is encrypted, where no configuration and no etcd says so.
    pub(super) not_known: Option<String>,
    /// What discovery does not tell of the names, and what is not written back, and why.
    pub(super) left_out: Vec<String>,
    /// What was among the resources and is not served any more.
    pub(super) dropped: Vec<String>,
    /// What could not be listed in this pass.
    pub(super) unlisted: Vec<Unlisted>,
    /// The page that comes next.
    #[serde(flatten)]
    pub(super) cursor: Cursor,
    /// How many passes have begun.
    pub(super) passes: u32,
    /// When this one did (RFC 3339, by the server's clock).
    pub(super) pass_began: String,
    /// What the apiservers had encrypted by then, as far as all of them say so.
    pub(super) writes: Option<Writes>,
    /// Of this pass.
    pub(super) pass: Counts,
    /// Of this pass.
    pub(super) refusals: Vec<Refusal>,
    /// Of all passes.
    pub(super) total: Counts,
    /// How long was worked on it.
    pub(super) seconds: f64,
    /// By whom objects are written anew.
    pub(super) by: By,
    /// And why.
    pub(super) migration: String,
    /// How many objects were not under the version, where the cluster migrates.
    pub(super) stale: Option<u64>,
    /// How often the cluster has had to migrate what was left.
    pub(super) rounds: u32,
    /// What shows that nothing is left.
    pub(super) proof: Proof,
    /// Of a change of provider.
    pub(super) change: Change,
}

impl State {
    /// Reads what was stored; a fresh one where nothing is.
    pub(super) fn read(stored: &Value) -> Option<Self> {
        match stored {
            Value::Null => Some(Self::default()),
            stored => serde_json::from_value(stored.clone()).ok(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Whether something is known not to have been written anew, or may not have been: it rests under
    /// whatever it did.
    pub(super) fn is_left(&self) -> bool {
        self.pass.refused > 0 || !self.all_left_out().is_empty()
    }

    /// What of the names is not gone through, each with the reason in a sentence: nothing becomes
    /// free then, unless etcd is the proof.
    pub(super) fn all_left_out(&self) -> Vec<String> {
        let unlisted = self.unlisted.iter().map(|one| {
            format!(
                "{} cannot be listed ({}): `kubectl get {}` says more; run this again once it can",
                one.resource, one.why, one.resource
            )
        });
        let dropped = self.dropped.iter().map(|name| {
            format!(
                "{name} is not served any more since this was begun: whether anything of it is left \
                 is not known. Once it is gone for good, run this again"
            )
        });
        self.left_out.iter().cloned().chain(unlisted).chain(dropped).collect()
    }

    /// The resources as they are from now on; what was left out before and is among them is not any
    /// more.
    pub(super) fn go_through(&mut self, resources: Vec<Resource>) {
        self.dropped.retain(|name| !resources.iter().any(|one| one.full_name() == *name));
        self.resources = resources;
    }

    /// Leaves out what is not served any more.
    pub(super) fn drop_those(&mut self, names: &[String]) {
        let is_one = |name: &String| names.contains(name);
        self.resources.retain(|one| !is_one(&one.full_name()));
        self.unlisted.retain(|one| !is_one(&one.resource));
        let new = names.iter().filter(|name| !self.dropped.contains(name));
        let new: Vec<String> = new.cloned().collect();
        self.dropped.extend(new);
    }

    /// Goes through everything from the beginning.
    pub(super) fn begin_pass(&mut self) {
        self.passes += 1;
        self.begin_anew();
    }

    /// Goes through everything from the beginning, in the same pass.
    pub(super) fn begin_anew(&mut self) {
        self.cursor = Cursor::default();
        self.unlisted.clear();
        self.pass_began = String::new();
        self.writes = None;
        self.pass = Counts::default();
        self.refusals.clear();
    }

    /// A page is done.
    pub(super) fn page(&mut self, counts: Counts, refusals: Vec<Refusal>, after: Cursor) {
        self.pass.add(counts);
        self.total.add(counts);
        let room = NAMED.saturating_sub(self.refusals.len());
        self.refusals.extend(refusals.into_iter().take(room));
        self.cursor = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_or_left_out_is_left() {
        assert!(!State::default().is_left());
        let refused = Counts { refused: 1, ..Counts::default() };
        assert!(State { pass: refused, ..State::default() }.is_left());
        let mut state = State { left_out: vec!["why".to_owned()], ..State::default() };
        state.begin_pass();
        assert!(state.is_left(), "another pass does not look at it either");
    }

    #[test]
    fn what_is_not_served_any_more_or_not_listed_is_left() {
        let resource = |name: &str| Resource {
            group: "example.org".to_owned(),
            version: "v1".to_owned(),
            name: name.to_owned(),
            kind: String::new(),
            namespaced: true,
            updatable: true,
        };
        let (a, b) = (resource("a"), resource("b"));
        let mut state = State { resources: vec![a.clone(), b.clone()], ..State::default() };
        let why = "the status 500".to_owned();
        state.unlisted.push(Unlisted { resource: a.full_name(), why, not_found: false });
        assert!(state.is_left() && state.all_left_out()[0].starts_with("a.example.org cannot"));
        assert_eq!(State::read(&state.to_json()), Some(state.clone()));
        state.begin_pass();
        assert!(!state.is_left(), "the next pass tries it again");
        state.drop_those(&[b.full_name()]);
        state.drop_those(&[b.full_name()]);
        state.begin_pass();
        assert!(state.is_left(), "another pass does not look at it either");
        assert_eq!((&state.resources[..], state.dropped.len()), (&[a.clone()][..], 1));
        state.go_through(vec![a, b]);
        assert!(!state.is_left(), "it is served again");
    }

    #[test]
    fn what_earlier_releases_have_stored_is_read() {
        let stored = serde_json::json!({ "resources": [], "whole": true, "at": 1, "passes": 2 });
        let state = State::read(&stored).unwrap();
        assert_eq!((state.whole, state.names.len(), state.configured), (true, 0, false));
    }

    #[test]
    fn what_is_stored_comes_back_and_stays_small() {
        let mut state = State::default();
        state.begin_pass();
        let refusal = Refusal {
            resource: "r".repeat(253),
            namespace: "n".repeat(63),
            name: "x".repeat(253),
            reason: "refused by ".repeat(20),
        };
        let counts = Counts { rewritten: 3, current: 2, gone: 1, conflicts: 1, refused: 500 };
        let after = state.cursor.after(Some("token".repeat(500)));
        state.page(counts, vec![refusal; 500], after);
        assert_eq!(State::read(&state.to_json()), Some(state.clone()));
        assert!(state.to_json().to_string().len() < 60 * 1024);
        assert_eq!((state.cursor.at, state.pass.seen()), (0, 505));
        let after = state.cursor.after(None);
        assert_eq!(after, Cursor { at: 1, next: None });
        state.page(counts, Vec::new(), after);
        assert_eq!((state.cursor.at, state.total.rewritten), (1, 6));
        // As earlier releases have stored it.
        assert_eq!(state.to_json()["at"], 1);
        state.begin_pass();
        assert_eq!((state.cursor.at, state.pass, state.passes), (0, Counts::default(), 2));
        assert_eq!(state.total.rewritten, 6);
        assert_eq!(State::read(&Value::Null), Some(State::default()));
        assert_eq!(State::read(&serde_json::json!([1])), None);
    }
}
