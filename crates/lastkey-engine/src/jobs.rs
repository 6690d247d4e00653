//! Long work that outlives whoever does it: the re-encryption of a cluster after a rotation.
//!
//! The engine keeps what is to be done, how far it has come, and who does it. Workers (the command
//! line, on any machine) claim it by a lease that they renew with each step they save; one that
//! dies lets it run out, and another goes on from the last step. A step saved under an older claim
//! is refused, so that a worker who was thought dead changes nothing any more.

use std::time::Duration;

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Label, Timestamp};

/// Where they are kept: `rotation/<cluster id>/<id>`.
pub(crate) const ROTATIONS: &str = "rotation/";
/// How long a claim lasts unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(30);
/// The most bytes of what a worker keeps for itself: under `*.*` that is about 200 for each kind.
pub(crate) const MAX_STATE: usize = 512 * 1024;
/// The most bytes of a report.
pub(crate) const MAX_REPORT: usize = 256 * 1024;
/// So many finished ones are kept of each cluster.
pub(crate) const KEPT: usize = 100;

/// Where a rotation is. [`Phase::may_become`] is its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Another provider shall write: it is made readable for every apiserver.
    Preparing,
    /// It is made the one that writes, at every apiserver.
    Switching,
    /// The version is there; not every apiserver uses it yet.
    Converging,
    /// Objects are written back.
    Rewriting,
    /// It is looked whether any is left.
    Verifying,
    /// Providers that nothing is under any more are taken out.
    Removing,
    /// It is over, and there is a report.
    Finished,
    /// It was given up; what was rewritten stays so.
    Cancelled,
}

impl Phase {
    /// Whether nothing follows.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled)
    }

    /// Whether `next` may come after this.
    ///
    /// Back to [`Phase::Converging`] because the key was rotated once more meanwhile, or an
    /// apiserver fell back; back to [`Phase::Rewriting`] because something was left.
    /// [`Rotation::may_become`] adds what a change of provider may and a mere rotation may not.
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{
            Cancelled, Converging, Finished, Preparing, Removing, Rewriting, Switching, Verifying,
        };
        match (self, next) {
            (Finished | Cancelled, _) => false,
            (_, Cancelled) => true,
            (Preparing, next) => matches!(next, Preparing | Switching),
            (Switching, next) => matches!(next, Preparing | Switching | Converging | Rewriting),
            (_, Converging | Preparing) => true,
            (Converging, next) => next == Rewriting,
            (Rewriting, next) => matches!(next, Rewriting | Verifying),
            (Verifying, next) => matches!(next, Rewriting | Verifying | Removing | Finished),
            (Removing, next) => matches!(next, Rewriting | Removing | Finished),
        }
    }

    /// Whether only a change of provider has it.
    pub fn is_of_a_change(self) -> bool {
        matches!(self, Self::Preparing | Self::Switching | Self::Removing)
    }

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Switching => "switching",
            Self::Converging => "converging",
            Self::Rewriting => "rewriting",
            Self::Verifying => "verifying",
            Self::Removing => "removing",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Which way a cluster's objects go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Under the cluster's key, from whatever they are under.
    Enable,
    /// Away from it: in clear, or under another provider.
    Disable,
}

impl Way {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enable => "enable",
            Self::Disable => "disable",
        }
    }
}

/// A change of the provider by which a cluster's objects are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Course {
    /// Which way.
    pub way: Way,
    /// What exactly is wanted, for the worker.
    pub goal: Value,
}

/// Who does it, and until when that is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What the worker calls itself.
    pub holder: String,
    /// When it runs out.
    pub until: Timestamp,
}

/// One rotation of a cluster's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Its id.
    pub id: Label,
    /// The cluster.
    pub cluster: ClusterId,
    /// The key.
    pub key: KeyId,
    /// The version that everything shall be under.
    pub target: KeyVersionId,
    /// Only this namespace; nothing becomes free then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What it changes besides; nothing for a mere rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub course: Option<Course>,
    /// Where it is.
    pub phase: Phase,
    /// Whether the worker shall rest.
    #[serde(default)]
    pub paused: bool,
    /// Counts the claims; a step has to name the newest.
    #[serde(default)]
    pub fence: u64,
    /// Who does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// What the worker keeps for itself: its cursor and its counts.
    #[serde(default)]
    pub state: Value,
    /// When it began.
    pub started: Timestamp,
    /// The last step.
    pub updated: Timestamp,
    /// Who began it.
    pub by: String,
    /// Whether the server began it by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    /// Whether the older versions are retired after it, once nothing needs them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retire: bool,
    /// How far it has come, for whoever looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it is at rest although nobody wanted it to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// What came of it, one signed line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
}

/// How far a rotation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Objects that were looked at in the pass under way.
    pub done: u64,
    /// As many as there are, as far as that is known.
    pub total: u64,
    /// Written anew, in all passes.
    pub rewritten: u64,
    /// Deleted meanwhile, in all passes.
    pub gone: u64,
    /// Written by somebody else first, in all passes.
    pub conflicts: u64,
    /// Refused, in the pass under way.
    pub refused: u64,
}

/// Why a rotation does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Since when.
    pub at: Timestamp,
    /// In the worker's words.
    pub why: String,
    /// How often in a row.
    pub attempts: u32,
}

impl Rotation {
    /// Whether it may go on with `next`.
    pub fn may_become(&self, next: Phase) -> bool {
        let own = match (&self.course, self.phase, next) {
            (None, _, next) => !next.is_of_a_change(),
            // What was taken out of the configuration has to have been looked for.
            (Some(_), Phase::Verifying, Phase::Finished) => false,
            (Some(_), ..) => true,
        };
        own && self.phase.may_become(next)
    }

    /// Whether everything leaves the key.
    pub fn leaves(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.way == Way::Disable)
    }

    /// The command that works on it.
    pub(crate) fn verb(&self) -> &'static str {
        self.course.as_ref().map_or("rotate", |course| course.way.name())
    }

    /// Claims it for `holder`.
    ///
    /// # Errors
    /// [`Error::Claimed`] while somebody else's lease runs, [`Error::NotFound`] if it is over.
    pub(crate) fn claim(&mut self, holder: &str, now: Timestamp) -> Result<(), Error> {
        if self.phase.is_over() {
            return Err(Error::StateConflict { state: self.phase.name() });
        }
        if let Some(lease) = &self.lease
            && lease.until > now
            && lease.holder != holder
        {
            return Err(Error::Claimed { by: lease.holder.clone(), until: lease.until });
        }
        self.fence += 1;
        self.lease = Some(Lease { holder: holder.to_owned(), until: now.after(LEASE) });
        Ok(())
    }

    /// Lets a step pass that was made under claim `fence`, and renews the lease.
    ///
    /// # Errors
    /// [`Error::Claimed`] if somebody else has claimed it since.
    pub(crate) fn step(&mut self, fence: u64, next: Phase, now: Timestamp) -> Result<(), Error> {
        if !self.may_become(next) {
            return Err(Error::StateConflict { state: self.phase.name() });
        }
        let lost = || Error::Claimed { by: "another worker".to_owned(), until: now };
        let lease = self.lease.as_mut().filter(|_| self.fence == fence).ok_or_else(lost)?;
        lease.until = now.after(LEASE);
        self.phase = next;
        self.updated = now;
        Ok(())
    }
}

/// Where a rotation is kept.
pub(crate) fn path_of(cluster: ClusterId, id: &str) -> String {
    format!("{ROTATIONS}{cluster}/{id}")
}

/// A report as one signed line.
///
/// ```text
/// {"report":1,"rotation":"<id>","time":"2026-01-31T12:00:00.000Z","content":{…},"key":"<16 hex>",
///  "signature":"<88 base64>"}
/// ```
/// (one line). The signature (Ed25519, RFC 8032) is over the line's bytes before `,"signature":`,
/// by the key of the audit log's checkpoints; those begin with `{"checkpoint":`, so that neither
/// can be taken for the other.
pub(crate) fn report_text(id: &str, time: Timestamp, content: &Value, key: &str) -> String {
    // an id is a label and a key's id is hexadecimal: nothing to escape
    format!(r#"{{"report":1,"rotation":"{id}","time":"{time}","content":{content},"key":"{key}""#)
}

const SIGNATURE: &str = r#","signature":""#;

/// The line with its signature.
pub(crate) fn signed(text: &str, signature: &[u8]) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    format!("{text}{SIGNATURE}{}\"}}", BASE64_STANDARD.encode(signature))
}

/// Why a report is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// It is no report.
    #[error("this is not a report that Lastkey has written")]
    Malformed,
    /// Another key signed it.
    #[error("the report bears the signature of another key")]
    OtherKey,
    /// It was changed, or never signed.
    #[error("the report's signature is not that of its content: it was changed")]
    Signature,
}

/// Checks a report's line against the public key, without any server. Answers with the report.
///
/// # Errors
/// [`ReportError`].
pub fn verify_report(
    line: &str,
    key: lastkey_crypto::signing::PublicKey,
) -> Result<Value, ReportError> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let line = line.trim_end_matches(['\r', '\n']);
    let report: Value = serde_json::from_str(line).map_err(|_| ReportError::Malformed)?;
    if report["report"] != 1 || !line.starts_with(r#"{"report":1,"#) {
        return Err(ReportError::Malformed);
    }
    if report["key"].as_str() != Some(&key.id()) {
        return Err(ReportError::OtherKey);
    }
    let (text, rest) = line.rsplit_once(SIGNATURE).ok_or(ReportError::Malformed)?;
    let signature = rest.strip_suffix("\"}").ok_or(ReportError::Malformed)?;
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| ReportError::Signature)?;
    match key.verify(text.as_bytes(), &signature) {
        true => Ok(report),
        false => Err(ReportError::Signature),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use lastkey_crypto::{SystemEntropy, signing::SigningKey};
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    pub(crate) fn example() -> Rotation {
        Rotation {
            id: Label::parse("r-1").unwrap(),
            cluster: ClusterId::from_bytes([1; 16]),
            key: KeyId::from_bytes([2; 16]),
            target: KeyVersionId::from_bytes([3; 16]),
            namespace: None,
            course: None,
            phase: Phase::Converging,
            paused: false,
            fence: 0,
            lease: None,
            state: Value::Null,
            started: at(0),
            updated: at(0),
            by: "root/x".to_owned(),
            automatic: false,
            retire: false,
            progress: None,
            problem: None,
            report: None,
        }
    }

    #[test]
    fn the_whole_life() {
        use Phase::{
            Cancelled, Converging, Finished, Preparing, Removing, Rewriting, Switching, Verifying,
        };
        let all =
            [Preparing, Switching, Converging, Rewriting, Verifying, Removing, Finished, Cancelled];
        let rotation = [
            (Converging, &[Converging, Rewriting, Cancelled][..]),
            (Rewriting, &[Converging, Rewriting, Verifying, Cancelled]),
            (Verifying, &[Converging, Rewriting, Verifying, Finished, Cancelled]),
            (Finished, &[]),
            (Cancelled, &[]),
        ];
        let change = [
            (Preparing, &[Preparing, Switching, Cancelled][..]),
            (Switching, &[Preparing, Switching, Converging, Rewriting, Cancelled]),
            (Converging, &[Preparing, Converging, Rewriting, Cancelled]),
            (Rewriting, &[Preparing, Converging, Rewriting, Verifying, Cancelled]),
            (Verifying, &[Preparing, Converging, Rewriting, Verifying, Removing, Cancelled]),
            (Removing, &[Preparing, Converging, Rewriting, Removing, Finished, Cancelled]),
            (Finished, &[]),
            (Cancelled, &[]),
        ];
        for (course, table) in [(None, &rotation[..]), (Some(Way::Enable), &change)] {
            let course = course.map(|way| Course { way, goal: Value::Null });
            for (from, allowed) in table {
                let work = Rotation { phase: *from, course: course.clone(), ..example() };
                for to in all {
                    assert_eq!(work.may_become(to), allowed.contains(&to), "{from:?} → {to:?}");
                }
            }
        }
    }

    #[test]
    fn one_worker_at_a_time() {
        let mut work = example();
        work.claim("one", at(0)).unwrap();
        assert!(matches!(work.claim("two", at(29)), Err(Error::Claimed { .. })));
        work.step(1, Phase::Rewriting, at(20)).unwrap();
        assert!(matches!(work.claim("two", at(49)), Err(Error::Claimed { .. })), "renewed");
        work.claim("two", at(50)).unwrap();
        // The one that was thought dead comes back.
        assert!(matches!(work.step(1, Phase::Verifying, at(51)), Err(Error::Claimed { .. })));
        work.step(2, Phase::Verifying, at(51)).unwrap();
        work.step(2, Phase::Finished, at(52)).unwrap();
        assert!(work.claim("two", at(53)).is_err());
    }

    #[test]
    fn reports_are_believed_only_as_they_were_signed() {
        let key = SigningKey::generate(&SystemEntropy);
        let content = json!({ "rewritten": 7, "note": "a \",\"signature\":\" inside" });
        let text = report_text("r-1", at(0), &content, &key.public().id());
        let line = signed(&text, &key.sign(text.as_bytes()));
        let report = verify_report(&format!("{line}\n"), key.public()).unwrap();
        assert_eq!(report["content"]["rewritten"], 7);
        let changed = line.replace(":7", ":8");
        assert_eq!(verify_report(&changed, key.public()), Err(ReportError::Signature));
        let other = SigningKey::generate(&SystemEntropy).public();
        assert_eq!(verify_report(&line, other), Err(ReportError::OtherKey));
        for bad in ["", "{}", "[1]", r#"{"checkpoint":1,"report":1}"#] {
            assert_eq!(verify_report(bad, key.public()), Err(ReportError::Malformed), "{bad}");
        }
        let cut = &line[..line.len() - 30];
        assert!(verify_report(cut, key.public()).is_err());
    }
}
