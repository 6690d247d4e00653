//! How many shares come over the network, so that a stranger who sends shares keeps no keeper out.
//!
//! Everybody may send one: the share is the proof. So each address has a bucket of its own, and
//! two: one for shares of this server's set, and one for others. Which set that is strangers are
//! not told, so who shares an address with a keeper, behind a gateway say, empties only the other.
//! The buckets are a fixed number, found by a keyed hash: there is no table to fill, and whom one
//! shares a bucket with nobody can choose.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    time::Instant,
};

use parking_lot::Mutex;

/// So many at once, and so many a second after that.
const AT_ONCE: f64 = 20.0;
const A_SECOND: f64 = 2.0;
/// Of each kind.
const BUCKETS: u64 = 1024;

/// Whose shares are looked at now.
pub(super) struct ShareLimit {
    hasher: RandomState,
    /// Those of shares of this server's set after those of others.
    buckets: Mutex<Vec<(f64, Instant)>>,
}

impl ShareLimit {
    pub(super) fn new(now: Instant) -> Self {
        let buckets = Mutex::new((0..2 * BUCKETS).map(|_| (AT_ONCE, now)).collect());
        Self { hasher: RandomState::new(), buckets }
    }

    /// Whether one more share may come from there now; `ours` says that it is of this server's set.
    pub(super) fn admits(&self, (from, ours): (IpAddr, bool), now: Instant) -> bool {
        let at = self.hasher.hash_one(network_of(from)) % BUCKETS + u64::from(ours) * BUCKETS;
        let mut buckets = self.buckets.lock();
        let bucket = usize::try_from(at).ok().and_then(|at| buckets.get_mut(at));
        let Some((left, since)) = bucket else { return false };
        let passed = now.saturating_duration_since(*since).as_secs_f64();
        let grown = (*left + passed * A_SECOND).min(AT_ONCE);
        let admitted = grown >= 1.0;
        (*left, *since) = (if admitted { grown - 1.0 } else { grown }, now);
        admitted
    }
}

/// One host has as many IPv6 addresses of its network as it likes.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> u64::BITS << u64::BITS).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn admitted(limit: &ShareLimit, who: (&str, bool), (tries, now): (usize, Instant)) -> usize {
        let from = (who.0.parse().unwrap(), who.1);
        (0..tries).filter(|_| limit.admits(from, now)).count()
    }

    #[test]
    fn who_sends_many_shares_keeps_nobody_else_out() {
        let now = Instant::now();
        let limit = ShareLimit::new(now);
        let stranger = ("203.0.113.9", false);
        assert_eq!(admitted(&limit, stranger, (1000, now)), 20);
        // Neither keepers elsewhere nor one behind the same gateway; by chance a few elsewhere.
        assert_eq!(admitted(&limit, ("203.0.113.9", true), (20, now)), 20);
        let elsewhere = (0..100).filter(|host| {
            let address = format!("198.51.100.{host}");
            admitted(&limit, (&address, true), (3, now)) == 3
        });
        assert!(elsewhere.count() >= 90);
        // Two a second, for whoever it is.
        let later = now + Duration::from_secs(3);
        assert_eq!(admitted(&limit, stranger, (1000, later)), 6);
        assert_eq!(admitted(&limit, stranger, (1000, later + Duration::from_secs(3600))), 20);
    }

    #[test]
    fn a_host_is_known_by_its_network() {
        let now = Instant::now();
        let limit = ShareLimit::new(now);
        let of_one: usize = (0..100)
            .map(|host| admitted(&limit, (&format!("2001:db8::{host:x}"), true), (1, now)))
            .sum();
        assert_eq!(of_one, 20);
        assert_eq!(network_of("::ffff:192.0.2.1".parse().unwrap()).to_string(), "192.0.2.1");
        assert_eq!(network_of("2001:db8:1:2:3::4".parse().unwrap()).to_string(), "2001:db8:1:2::");
    }
}
