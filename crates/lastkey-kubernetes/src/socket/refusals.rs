//! What is said of connections that were refused: any user of the machine can make thousands a second,
//! and must not fill the log with them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// One line for each user in this time.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// So many users are told apart; all others together are as one.
const MAX_USERS: usize = 64;

/// Whose connections were refused lately.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Option<u32>, Lately>>);

#[derive(Debug)]
struct Lately {
    said: Instant,
    unsaid: u64,
}

impl Refusals {
    /// A connection of that user was refused. Answers whether to say so now, with how many of theirs
    /// nothing was said of since the last time.
    pub(super) fn add(&self, user: u32, now: Instant) -> Option<u64> {
        let mut users = self.0.lock();
        let known = Some(user).filter(|user| {
            if users.len() >= MAX_USERS && !users.contains_key(&Some(*user)) {
                users.retain(|_, lately| now.duration_since(lately.said) < SAY_EVERY);
            }
            users.len() < MAX_USERS || users.contains_key(&Some(*user))
        });
        let Some(lately) = users.get_mut(&known) else {
            users.insert(known, Lately { said: now, unsaid: 0 });
            return Some(0);
        };
        if now.duration_since(lately.said) < SAY_EVERY {
            lately.unsaid += 1;
            return None;
        }
        lately.said = now;
        Some(std::mem::take(&mut lately.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_user_and_minute() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.add(7, begin), Some(0));
        for _ in 0..1000 {
            assert_eq!(refusals.add(7, begin + SAY_EVERY / 2), None);
        }
        assert_eq!(refusals.add(8, begin), Some(0), "another user has a line of their own");
        assert_eq!(refusals.add(7, begin + SAY_EVERY), Some(1000));
        assert_eq!(refusals.add(7, begin + 2 * SAY_EVERY), Some(0));
    }

    #[test]
    fn the_users_that_are_told_apart_are_bounded() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let all = 5 * u32::try_from(MAX_USERS).unwrap();
        let lines = (0..all).filter(|user| refusals.add(*user, begin).is_some()).count();
        assert_eq!((lines, refusals.0.lock().len()), (MAX_USERS + 1, MAX_USERS + 1));
        // those of the last minute only
        assert_eq!(refusals.add(all, begin + SAY_EVERY), Some(0));
        assert_eq!(refusals.0.lock().len(), 1);
    }
}
