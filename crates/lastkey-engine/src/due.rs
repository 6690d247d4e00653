//! Which keys can fall due soon, so that nobody has to look at all of them every minute.
//!
//! A full look goes through the stored keys by pages, in the background, and remembers those whose
//! rotation or deletion falls within a day. Until half of that day has passed, only these are
//! looked at; every change of a key that passes through this process tells by itself. What is
//! remembered is a hint: whoever acts on it reads the key again.

use std::{collections::BTreeMap, time::Duration};

use lastkey_crypto::KeyId;
use parking_lot::Mutex;

use crate::{Timestamp, key::Key};

/// So far ahead a full look sees.
const HORIZON: Duration = Duration::from_secs(24 * 60 * 60);
/// Long before its end there is another one.
const LOOK_EVERY: Duration = Duration::from_secs(12 * 60 * 60);

/// Keys that can fall due before the next full look.
#[derive(Default)]
pub(crate) struct DueKeys {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What falls due before is remembered; `None` before the first full look.
    horizon: Option<Timestamp>,
    /// When the last full look began.
    looked: Option<Timestamp>,
    /// Seen under way, kept by key.
    soon: BTreeMap<KeyId, Timestamp>,
}

/// When something has to be done about a key: at once, if it was begun.
fn due(key: &Key) -> Option<Timestamp> {
    if key.destroying {
        return Some(Timestamp::from_millis(i64::MIN));
    }
    // One that waits until nothing needs it is looked at each time.
    let retirements = key
        .retirements
        .values()
        .map(|retirement| retirement.destroy_at.unwrap_or(Timestamp::from_millis(i64::MIN)));
    key.next_rotation().into_iter().chain(key.deletion_at).chain(retirements).min()
}

impl DueKeys {
    /// Whether a full look is due. One that is said to come yet was made by a clock that was wrong.
    pub(crate) fn needs_look(&self, now: Timestamp) -> bool {
        self.known.lock().looked.is_none_or(|at| now < at || at.after(LOOK_EVERY) <= now)
    }

    /// A full look begins: what is learnt from now on, from it and from changes, is kept.
    pub(crate) fn look_begins(&self, now: Timestamp) {
        self.known.lock().horizon = Some(now.after(HORIZON));
    }

    /// A full look that began at `began` has seen every key.
    pub(crate) fn look_ended(&self, began: Timestamp) {
        self.known.lock().looked = Some(began);
    }

    /// A key as it is, or as it was stored when a full look passed.
    pub(crate) fn learn(&self, key: &Key) {
        let mut known = self.known.lock();
        let Some(horizon) = known.horizon else { return };
        // It says that it was rotated later than in a day's time: a clock was wrong.
        let ahead = key.next_rotation().is_some() && key.rotated > horizon;
        let at_once = ahead.then_some(Timestamp::from_millis(i64::MIN));
        let Some(due) = at_once.or_else(|| due(key)) else { return };
        if due <= horizon {
            known.soon.entry(key.id).and_modify(|at| *at = due.min(*at)).or_insert(due);
        }
    }

    /// A key that another server changed: it is looked at the next time.
    pub(crate) fn suspect(&self, id: KeyId) {
        self.known.lock().soon.insert(id, Timestamp::from_millis(i64::MIN));
    }

    /// The keys that are due. They are forgotten with this: whoever looks at one and leaves it as
    /// it is lets [`DueKeys::learn`] know, or [`DueKeys::suspect`] if that failed.
    pub(crate) fn take(&self, now: Timestamp) -> Vec<KeyId> {
        let mut due = Vec::new();
        self.known.lock().soon.retain(|id, at| {
            let later = *at > now;
            if !later {
                due.push(*id);
            }
            later
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(day: u64) -> Timestamp {
        Timestamp::from_millis(0).after(Duration::from_secs(day * DAY))
    }

    /// A key whose deletion window ends on that day.
    fn key(id: u8, deletion: Option<u64>) -> Key {
        let mut key = crate::key::tests::example();
        key.id = KeyId::from_bytes([id; 16]);
        key.rotation.enabled = false;
        key.deletion_at = deletion.map(at);
        key
    }

    #[test]
    fn only_what_can_fall_due_soon_is_kept() {
        let due = DueKeys::default();
        assert!(due.needs_look(at(10)));
        due.learn(&key(1, Some(10)));
        assert!(due.take(at(20)).is_empty(), "before the first look nothing needs to be known");

        due.look_begins(at(10));
        for (id, deletion) in [(1, Some(10)), (2, Some(11)), (3, Some(12)), (4, None)] {
            due.learn(&key(id, deletion));
        }
        due.look_ended(at(10));
        assert!(!due.needs_look(at(10)));
        assert_eq!(due.take(at(10)), [KeyId::from_bytes([1; 16])]);
        assert!(due.take(at(10)).is_empty());
        assert_eq!(due.take(at(13)), [KeyId::from_bytes([2; 16])]);
        assert!(due.needs_look(at(11)), "before the horizon there is another look");
    }

    #[test]
    fn a_change_never_makes_a_key_forgotten() {
        let due = DueKeys::default();
        due.look_begins(at(10));
        due.look_ended(at(10));
        due.learn(&key(1, Some(11)));
        // What a full look read before the change.
        due.learn(&key(1, None));
        assert_eq!(due.take(at(11)), [KeyId::from_bytes([1; 16])]);
        due.suspect(KeyId::from_bytes([2; 16]));
        assert_eq!(due.take(at(0)), [KeyId::from_bytes([2; 16])]);
    }

    #[test]
    fn a_clock_that_was_ahead_keeps_nothing_from_being_looked_at() {
        let due = DueKeys::default();
        due.look_begins(at(4000));
        due.look_ended(at(4000));
        assert!(!due.needs_look(at(4000)));
        assert!(due.needs_look(at(10)), "it was set right");
        due.look_begins(at(10));
        due.look_ended(at(10));
        assert!(!due.needs_look(at(10)));
        // Rotated while it was ahead: else nothing would rotate it again for years.
        let mut ahead = key(1, None);
        ahead.rotation.enabled = true;
        ahead.rotated = at(4000);
        due.learn(&ahead);
        assert_eq!(due.take(at(10)), [ahead.id]);
        due.learn(&Key { rotated: at(10), ..ahead });
        assert_eq!(due.take(at(10)), []);
    }

    #[test]
    fn what_was_begun_is_due_at_once() {
        let due = DueKeys::default();
        due.look_begins(at(10));
        let begun = Key { destroying: true, ..key(1, Some(400)) };
        due.learn(&begun);
        assert_eq!(due.take(at(10)), [begun.id]);
    }
}
