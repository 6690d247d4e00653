//! Sets of seconds: those for which requests were signed whose nonces nobody knows any more.
//!
//! A set is kept as ranges, at most [`MAX_RANGES`] of them. What goes beyond that closes the smallest
//! gap: a second more is refused then, but the gap between two times that a clock showed far from
//! each other goes last, and whoever asks in between is admitted.

use std::fmt;

/// So many ranges are told apart; with more, the two that lie next to each other become one.
pub(super) const MAX_RANGES: usize = 64;

/// Seconds since 1970, as ranges.
///
/// As text, each range is its first and last second; in order, with something between them:
/// ```text
/// 1795342500..1795342780 2110875300..2110878000
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seconds(Vec<(i64, i64)>);

impl Seconds {
    /// Whether a second is among them.
    pub fn has(&self, second: i64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < second);
        self.0.get(at).is_some_and(|(first, _)| *first <= second)
    }

    /// Adds all from the first to the last.
    pub fn add(&mut self, first: i64, last: i64) {
        // Those that it overlaps or touches become one with it.
        let from = self.0.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = self.0.partition_point(|(begin, _)| *begin <= last.saturating_add(1));
        let one = self.0[from..to]
            .iter()
            .fold((first, last), |(first, last), (a, b)| (first.min(*a), last.max(*b)));
        self.0.splice(from..to, [one]);
        if self.0.len() > MAX_RANGES {
            self.close_a_gap();
        }
    }

    fn close_a_gap(&mut self) {
        let gap = |at: &usize| self.0[*at].0.saturating_sub(self.0[at - 1].1);
        if let Some(at) = (1..self.0.len()).min_by_key(gap) {
            let (_, last) = self.0.remove(at);
            self.0[at - 1].1 = last;
        }
    }

    /// Adds all of another set.
    pub fn join(&mut self, other: &Self) {
        other.iter().for_each(|(first, last)| self.add(first, last));
    }

    /// The ranges, each with its first and last second, in order.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.0.iter().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The latest of them that is not after `bound`.
    pub(crate) fn latest_until(&self, bound: i64) -> Option<i64> {
        self.iter().take_while(|(first, _)| *first <= bound).last().map(|(_, last)| last.min(bound))
    }

    /// Reads the text of a set; `None` for anything that is not exactly as it is written.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for range in text.split(' ').filter(|_| !text.is_empty()) {
            let (first, last) = range.split_once("..")?;
            let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
            let is_next = set.0.last().is_none_or(|(_, end)| end.saturating_add(1) < first);
            if first > last || !is_next || set.0.len() == MAX_RANGES {
                return None;
            }
            set.0.push((first, last));
        }
        // Signs and zeros in front of numbers are read, too.
        (set.to_string() == text).then_some(set)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.iter().enumerate() {
            let space = if at > 0 { " " } else { "" };
            write!(f, "{space}{first}..{last}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_what_was_added_to_them() {
        let mut ranges = Seconds::default();
        let steps = [
            ((5, 5), vec![(5, 5)]),
            ((7, 8), vec![(5, 5), (7, 8)]),
            ((6, 6), vec![(5, 8)]),
            ((10, 12), vec![(5, 8), (10, 12)]),
            ((11, 11), vec![(5, 8), (10, 12)]),
            ((i64::MIN, 3), vec![(i64::MIN, 3), (5, 8), (10, 12)]),
            ((4, 20), vec![(i64::MIN, 20)]),
            ((i64::MAX, i64::MAX), vec![(i64::MIN, 20), (i64::MAX, i64::MAX)]),
            ((i64::MIN, i64::MAX), vec![(i64::MIN, i64::MAX)]),
        ];
        for ((first, last), after) in steps {
            ranges.add(first, last);
            assert_eq!(ranges.0, after, "{first} to {last}");
        }
        let mut ranges = Seconds::default();
        let last = i64::try_from(MAX_RANGES).unwrap();
        // Ever further apart, but for the last.
        (0..last).for_each(|n| ranges.add(n * n + 100 * n, n * n + 100 * n));
        assert_eq!(ranges.0.len(), MAX_RANGES);
        ranges.add(1_000_000, 1_000_000);
        assert_eq!(ranges.0.len(), MAX_RANGES);
        assert!(ranges.has(0) && ranges.has(50) && ranges.has(101) && !ranges.has(102));
        assert!(ranges.has(1_000_000) && !ranges.has(999_999) && !ranges.has(-1));
    }

    #[test]
    fn the_latest_before_a_bound_is_one_of_them() {
        let ranges = Seconds::parse("5..8 10..12").unwrap();
        let found = [4, 5, 7, 8, 9, 10, 13].map(|bound| ranges.latest_until(bound));
        let expected = [None, Some(5), Some(7), Some(8), Some(8), Some(10), Some(12)];
        assert_eq!(found, expected);
        assert_eq!(Seconds::default().latest_until(i64::MAX), None);
    }

    #[test]
    fn only_what_is_written_so_is_read() {
        for good in ["", "5..5", "-7..-5 -3..0", "1795342500..1795342780 2110875300..2110878000"] {
            assert_eq!(Seconds::parse(good).map(|set| set.to_string()).as_deref(), Some(good));
        }
        for bad in [
            " ",
            "5",
            "5..",
            "..5",
            "5..4",
            "5..6 ",
            " 5..6",
            "5..6  8..9",
            "5..6 7..8",
            "8..9 5..6",
            "5..6,8..9",
            "+5..6",
            "05..6",
            "5...6",
            "5..99999999999999999999",
            "5..6\n",
            "a..b",
            "9223372036854775807..9223372036854775807 9223372036854775807..9223372036854775807",
        ] {
            assert_eq!(Seconds::parse(bad), None, "{bad:?}");
        }
        let text = |count: i64| {
            (0..count).map(|n| format!("{}..{}", n * 2, n * 2)).collect::<Vec<_>>().join(" ")
        };
        assert!(Seconds::parse(&text(64)).is_some());
        assert_eq!(Seconds::parse(&text(65)), None);
    }

    proptest! {
        #[test]
        fn a_set_is_read_as_it_is_written_and_loses_nothing(
            added in proptest::collection::vec((-5_000i64..5_000, 0i64..20), 0..200),
        ) {
            let mut set = Seconds::default();
            for (first, length) in &added {
                set.add(*first, first + length);
            }
            prop_assert!(set.0.len() <= MAX_RANGES);
            prop_assert!(set.0.is_sorted_by(|a, b| a.1 + 1 < b.0));
            for (first, length) in &added {
                prop_assert!((*first..=first + length).all(|second| set.has(second)));
            }
            prop_assert_eq!(Seconds::parse(&set.to_string()), Some(set));
        }

        /// Two times that a clock showed, further from each other than either lasted.
        #[test]
        fn the_gap_between_two_times_stays(
            added in proptest::collection::vec((any::<bool>(), 0i64..50_000), 2..300),
        ) {
            let mut set = Seconds::default();
            for (far, second) in &added {
                let second = second + if *far { 100_001 } else { 0 };
                set.add(second, second);
            }
            prop_assert!((50_000..100_001).all(|second| !set.has(second)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-0-9. ]{0,60}") {
            if let Some(set) = Seconds::parse(&text) {
                prop_assert_eq!(set.to_string(), text);
            }
        }
    }
}
