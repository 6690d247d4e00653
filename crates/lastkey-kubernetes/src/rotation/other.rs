//! Somebody else who works on the same rotation.

use std::time::{Duration, Instant};

use lastkey_client::native::RotationLease;

use super::{ASK_EVERY, RENEW_EVERY};

/// Whoever works on it has renewed its lease within this time.
const RENEWED_WITHIN: Duration = Duration::from_secs(RENEW_EVERY.as_secs() + ASK_EVERY.as_secs());

/// Who else works on it. That they do is told once, and while they renew their lease the server is
/// not asked for it: each refusal would be in the audit log.
#[derive(Default)]
pub(super) struct Other {
    told: Option<String>,
    lease: Option<RotationLease>,
    since: Option<Instant>,
}

impl Other {
    /// Whether a claim may succeed: the first time, without a lease, and once it was not renewed.
    pub(super) fn may_be_gone(&mut self, lease: Option<&RotationLease>) -> bool {
        if self.since.is_none() || self.lease.as_ref() != lease {
            let first = self.since.is_none();
            self.lease = lease.cloned();
            self.since = Some(Instant::now());
            return first || lease.is_none();
        }
        lease.is_none() || self.since.is_some_and(|since| since.elapsed() > RENEWED_WITHIN)
    }

    /// Whether nobody has been told of them yet.
    pub(super) fn is_news(&mut self, lease: Option<&RotationLease>) -> bool {
        let holder = lease.map(|lease| lease.holder.clone()).unwrap_or_default();
        let news = self.told.as_ref() != Some(&holder);
        self.told = Some(holder);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, until: &str) -> RotationLease {
        RotationLease { holder: holder.to_owned(), until: until.to_owned() }
    }

    #[test]
    fn who_renews_is_not_asked_and_told_once() {
        let mut other = Other::default();
        let (first, renewed, third) = (lease("a", "1"), lease("a", "2"), lease("b", "3"));
        assert!(other.may_be_gone(Some(&first)), "it may have run out long ago");
        assert!(other.is_news(Some(&first)));
        assert!(!other.may_be_gone(Some(&first)));
        assert!(!other.may_be_gone(Some(&renewed)));
        assert!(!other.is_news(Some(&renewed)));
        // Not renewed for long enough.
        other.since = Instant::now().checked_sub(2 * RENEWED_WITHIN);
        assert!(other.may_be_gone(Some(&renewed)));
        assert!(other.may_be_gone(None), "it was given back");
        assert!(!other.may_be_gone(Some(&third)));
        assert!(other.is_news(Some(&third)));
    }
}
