//! Finding records in lines: first by what must stand in a matching line, only then as JSON.

use std::borrow::Cow;

use memchr::{memchr, memmem, memrchr};

use super::{
    Query,
    index::{Block, Field, Fields},
    record, segment,
};
use crate::action::Action;

/// What a query asks of lines and blocks.
pub(super) struct Matcher<'a> {
    query: &'a Query,
    /// The newest record that may be told of.
    last: u64,
    /// What every matching line contains; the longest first.
    needles: Vec<memmem::Finder<'static>>,
    /// As in the records, to be compared as text.
    from: Option<String>,
    to: Option<String>,
    action: Option<String>,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(query: &'a Query, last: u64) -> Self {
        let field = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!(r#""{name}":"{}""#, record::escaped(value)))
        };
        let action = query.action.as_deref().and_then(|wanted| {
            // Whatever is not one of ours was named by a front end, in a case that we don't know.
            Action::ALL.iter().find(|action| action.name().eq_ignore_ascii_case(wanted))
        });
        let mut needles: Vec<String> = [
            // The value of `key` or `source_key`, or one of `changed_keys`.
            query.key.as_ref().map(|key| format!(r#""{}""#, record::escaped(key))),
            field("outcome", &query.outcome),
            action.map(|action| format!(r#""action":"{action}""#)),
            query.context_key.as_ref().map(|name| format!(r#""{}""#, record::escaped(name))),
            query.principal.as_ref().map(|part| record::escaped(part)),
        ]
        .into_iter()
        .flatten()
        .filter(|needle| !needle.is_empty())
        .collect();
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
        Self {
            query,
            last,
            needles: needles
                .iter()
                .map(|needle| memmem::Finder::new(needle.as_bytes()).into_owned())
                .collect(),
            from: query.from.map(|time| time.to_string()),
            to: query.to.map(|time| time.to_string()),
            action: query.action.as_ref().map(|action| action.to_lowercase()),
        }
    }

    /// Whether a block may hold a match.
    pub(super) fn may_match(&self, block: &Block) -> bool {
        let query = self.query;
        let holds = |field, text: &Option<String>| {
            text.as_ref().is_none_or(|text| block.may_hold(field, text))
        };
        block.last > query.after
            && block.first <= self.last
            && query.from.is_none_or(|from| block.latest >= from.as_millis())
            && query.to.is_none_or(|to| block.earliest < to.as_millis())
            && (holds(Field::Key, &query.key)
                || block.may_hold(Field::Action, &Action::ReEncrypt.name().to_lowercase()))
            && holds(Field::Outcome, &query.outcome)
            && holds(Field::Context, &query.context_key)
            && holds(Field::Action, &self.action)
    }

    /// Tells `visit` of every line that matches, in order; it says whether to go on.
    pub(super) fn scan(&self, lines: &[u8], visit: &mut dyn FnMut(u64, &[u8]) -> bool) {
        match self.needles.split_first() {
            Some((rarest, others)) => self.leap(lines, rarest, others, visit),
            None => self.walk(lines, visit),
        }
    }

    /// From needle to needle.
    #[expect(clippy::too_many_arguments, reason = "the needle apart from the others")]
    fn leap(
        &self,
        lines: &[u8],
        needle: &memmem::Finder<'_>,
        others: &[memmem::Finder<'_>],
        visit: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) {
        let mut at = 0;
        while let Some(hit) = needle.find(&lines[at..]) {
            let hit = at + hit;
            let start = memrchr(b'\n', &lines[at..hit]).map_or(at, |before| at + before + 1);
            let end = memchr(b'\n', &lines[hit..]).map_or(lines.len(), |after| hit + after);
            let line = &lines[start..end];
            if others.iter().all(|other| other.find(line).is_some())
                && let Some(seq) = self.check(line)
                && !visit(seq, line)
            {
                return;
            }
            at = (end + 1).min(lines.len());
        }
    }

    /// From line to line.
    fn walk(&self, lines: &[u8], visit: &mut dyn FnMut(u64, &[u8]) -> bool) {
        for line in lines.split(|byte| *byte == b'\n') {
            if let Some(seq) = self.check(line)
                && !visit(seq, line)
            {
                return;
            }
        }
    }

    /// The number of a record that matches.
    fn check(&self, line: &[u8]) -> Option<u64> {
        let seq = segment::link(line)?.seq;
        if seq <= self.query.after || seq > self.last || !self.may_be_in_time(line) {
            return None;
        }
        let fields = serde_json::from_slice::<Fields<'_>>(line).ok()?;
        self.matches(&fields).then_some(seq)
    }

    /// Compares times as text, where they stand where we write them.
    fn may_be_in_time(&self, line: &[u8]) -> bool {
        if self.from.is_none() && self.to.is_none() {
            return true;
        }
        const NAME: &[u8] = br#""time":""#;
        const LENGTH: usize = 24;
        let Some(at) = memmem::find(&line[..line.len().min(160)], NAME) else { return true };
        let Some(time) = line.get(at + NAME.len()..at + NAME.len() + LENGTH) else { return true };
        self.from.as_ref().is_none_or(|from| time >= from.as_bytes())
            && self.to.as_ref().is_none_or(|to| time < to.as_bytes())
    }

    fn matches(&self, fields: &Fields<'_>) -> bool {
        let query = self.query;
        let is = |wanted: &Option<String>, found: &Cow<'_, str>| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        let contains =
            |part: &Option<String>| part.as_deref().is_none_or(|p| fields.principal.contains(p));
        // By their action alone the filters know where a source may be.
        let has_source = || fields.action.eq_ignore_ascii_case(Action::ReEncrypt.name());
        (is(&query.key, &fields.key)
            || fields.changed_keys.iter().any(|key| is(&query.key, key))
            || has_source() && is(&query.key, &fields.source_key))
            && is(&query.outcome, &fields.outcome)
            && query.action.as_ref().is_none_or(|a| a.eq_ignore_ascii_case(&fields.action))
            && contains(&query.principal)
            && query.context_key.as_ref().is_none_or(|key| fields.context.iter().any(|n| n == key))
            && (query.from.is_none() && query.to.is_none()
                || fields.millis().is_some_and(|time| {
                    query.from.is_none_or(|from| time >= from.as_millis())
                        && query.to.is_none_or(|to| time < to.as_millis())
                }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    fn lines() -> Vec<u8> {
        let mut out = b"no record\n".to_vec();
        for seq in 1..=20_u64 {
            let body = format!(
                r#""time":"2026-01-01T00:00:{seq:02}.000Z","action":"{}","principal":"plugin/c{}/n\"1","key":"k{}","context":["tenant","t{}"],"outcome":"ok""#,
                if seq % 2 == 0 { "Encrypt" } else { "Decrypt" },
                seq % 3,
                seq % 4,
                seq % 5
            );
            segment::write_line(&mut out, seq, &[0; 32], body.as_bytes());
        }
        out
    }

    fn found(query: &Query) -> Vec<u64> {
        let mut found = Vec::new();
        Matcher::new(query, 19).scan(&lines(), &mut |seq, line| {
            assert!(line.starts_with(b"{") && line.ends_with(b"}"));
            found.push(seq);
            true
        });
        found
    }

    #[test]
    fn every_condition_counts() {
        let some = |text: &str| Some(text.to_owned());
        let all = Query::default();
        assert_eq!(found(&all), (1..=19).collect::<Vec<_>>());
        assert_eq!(found(&Query { after: 17, ..all.clone() }), [18, 19]);
        assert_eq!(found(&Query { key: some("k0"), ..all.clone() }), [4, 8, 12, 16]);
        assert_eq!(found(&Query { key: some("k"), ..all.clone() }), [0; 0]);
        let encrypt = Query { action: some("enCRYPT"), after: 14, ..all.clone() };
        assert_eq!(found(&encrypt), [16, 18]);
        assert_eq!(found(&Query { action: some("Encryp"), ..all.clone() }), [0; 0]);
        let principal = Query { principal: some("/c1/n\"1"), after: 10, ..all.clone() };
        assert_eq!(found(&principal), [13, 16, 19]);
        assert_eq!(found(&Query { principal: some("ok"), ..all.clone() }), [0; 0]);
        assert_eq!(found(&Query { context_key: some("t3"), ..all.clone() }), [3, 8, 13, 18]);
        assert_eq!(found(&Query { context_key: some("k3"), ..all.clone() }), [0; 0]);
        assert_eq!(found(&Query { outcome: some("ok"), after: 17, ..all.clone() }), [18, 19]);
        assert_eq!(found(&Query { outcome: some("k3"), ..all.clone() }), [0; 0]);
        let second = |s: i64| Some(Timestamp::from_millis(1_767_225_600_000 + s * 1000));
        let times = Query { from: second(5), to: second(8), ..all.clone() };
        assert_eq!(found(&times), [5, 6, 7]);
        let both = Query { key: some("k2"), context_key: some("t0"), ..all };
        assert_eq!(found(&both), [10]);
    }

    #[test]
    fn the_key_that_was_opened_with_counts_in_re_encryptions_alone() {
        let mut lines = Vec::new();
        let records = [
            ("ReEncrypt", "a", "b"),
            ("ReEncrypt", "b", "a"),
            ("Encrypt", "a", "b"),
            ("ReEncrypt", "c", "d"),
        ];
        for (seq, (action, key, source)) in (1..).zip(records) {
            let body = format!(
                r#""action":"{action}","key":"{key}","source_key":"{source}","another_key":"b","outcome":"ok""#
            );
            segment::write_line(&mut lines, seq, &[0; 32], body.as_bytes());
        }
        let (query, mut found) = (Query { key: Some("b".into()), ..Query::default() }, Vec::new());
        Matcher::new(&query, 4).scan(&lines, &mut |seq, _| {
            found.push(seq);
            true
        });
        assert_eq!(found, [1, 2]);
    }

    #[test]
    fn it_stops_when_it_is_told_to() {
        for query in [Query::default(), Query { outcome: Some("ok".into()), ..Query::default() }] {
            let mut count = 0;
            Matcher::new(&query, 100).scan(&lines(), &mut |_, _| {
                count += 1;
                count < 3
            });
            assert_eq!(count, 3);
        }
    }
}
