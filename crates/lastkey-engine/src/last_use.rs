//! When a key version was used last, by whom, and for what.
//!
//! Kept in memory while requests come in, and written down once a minute and at the end: what a
//! crash takes away is a minute of it. A use costs one load and one comparison, and once a second
//! for each version the short lock that holds the latest.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use lastkey_crypto::KeyVersionId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{Action, Timestamp, caller::Principal};

/// Where a key version's last use is kept.
pub(crate) fn path_of(version: KeyVersionId) -> String {
    format!("last-use/{version}")
}

/// The last use of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    /// When, to the second.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// What was done.
    pub action: String,
}

/// The latest use of one version in this process.
#[derive(Debug)]
pub(crate) struct Latest {
    second: AtomicI64,
    /// Whether it waits to be written down.
    queued: AtomicBool,
    known: Mutex<Option<(i64, Principal, Action)>>,
}

impl Default for Latest {
    fn default() -> Self {
        let second = AtomicI64::new(i64::MIN);
        Self { second, queued: AtomicBool::new(false), known: Mutex::new(None) }
    }
}

impl Latest {
    /// Notes a use; true if it has to be queued to be written down.
    pub(crate) fn note(&self, now: Timestamp, by: &Principal, action: Action) -> bool {
        let second = now.as_seconds();
        if self.second.load(Ordering::Relaxed) == second {
            return false;
        }
        // Whoever else is here notes the same second.
        let Some(mut known) = self.known.try_lock() else { return false };
        self.second.store(second, Ordering::Relaxed);
        *known = Some((second, by.clone(), action));
        !self.queued.swap(true, Ordering::Relaxed)
    }

    /// It is being written down: what is noted from now on is queued again.
    pub(crate) fn unqueue(&self) {
        self.queued.store(false, Ordering::Relaxed);
    }

    /// The latest use in this process, if there was one.
    pub(crate) fn get(&self) -> Option<LastUse> {
        let known = self.known.lock();
        let (second, by, action) = known.as_ref()?;
        let at = Timestamp::from_millis(second.saturating_mul(1000));
        Some(LastUse { at, by: by.to_string(), action: action.name().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_is_known_and_queued_once() {
        let (latest, root) = (Latest::default(), Principal::Root { access_key_id: "LK".into() });
        let at = |millis| Timestamp::from_millis(millis);
        assert_eq!(latest.get(), None);
        assert!(latest.note(at(1_000), &root, Action::Encrypt));
        assert!(!latest.note(at(1_999), &Principal::System, Action::Decrypt), "the same second");
        assert!(!latest.note(at(2_000), &root, Action::Decrypt), "queued already");
        let last = latest.get().unwrap();
        assert_eq!((last.at, &*last.by, &*last.action), (at(2_000), "root/LK", "Decrypt"));
        latest.unqueue();
        assert!(latest.note(at(3_000), &root, Action::Encrypt));
    }
}
