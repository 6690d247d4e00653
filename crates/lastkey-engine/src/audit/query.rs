//! Searching the log.

use std::{
    io::{self, BufRead, BufReader},
    path::Path,
};

use lastkey_store::disk::{Access, Disk, Reader};
use serde_json::Value;

use super::segment;
use crate::Timestamp;

/// What to look for. Everything that is set must match.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only records after this sequence number.
    pub after: u64,
    /// Only the newest so many records that match, instead of the oldest.
    pub newest: bool,
    /// At most so many records; 0 means 1.
    pub limit: usize,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// The principal's text, or a part of it.
    pub principal: Option<String>,
    /// The key's id.
    pub key: Option<String>,
    /// The action, in any case.
    pub action: Option<String>,
    /// The outcome: `ok` or a code.
    pub outcome: Option<String>,
    /// A name in the encryption context.
    pub context_key: Option<String>,
}

/// Records that matched.
#[derive(Clone, Debug, Default)]
pub struct QueryPage {
    /// The records as JSON objects, in the order of the log.
    pub records: Vec<Value>,
    /// Where to go on, as the next query's `after`; `None` at the end.
    pub next: Option<u64>,
}

impl Query {
    fn matches(&self, record: &Value) -> bool {
        let text = |name: &str| record[name].as_str().unwrap_or_default();
        let time = || Timestamp::parse(text("time")).ok();
        let wanted = |wanted: &Option<String>, found: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(found)
        };
        wanted(&self.key, &|key| text("key") == key)
            && wanted(&self.outcome, &|outcome| text("outcome") == outcome)
            && wanted(&self.action, &|action| text("action").eq_ignore_ascii_case(action))
            && wanted(&self.principal, &|principal| text("principal").contains(principal))
            && wanted(&self.context_key, &|key| {
                record["context"]
                    .as_array()
                    .is_some_and(|names| names.iter().any(|name| name.as_str() == Some(key)))
            })
            && self.from.is_none_or(|from| time().is_some_and(|time| time >= from))
            && self.to.is_none_or(|to| time().is_some_and(|time| time < to))
    }
}

/// Reads the segments up to record `last`.
pub(super) fn run(
    disk: &dyn Disk,
    directory: &Path,
    query: &Query,
    last: u64,
) -> io::Result<QueryPage> {
    let limit = query.limit.max(1);
    let segments = segment::list(disk, directory)?;
    let mut found = std::collections::VecDeque::new();
    for (index, (_, path)) in segments.iter().enumerate() {
        // The next segment's first record tells where this one ends.
        if let Some((next, next_path)) = segments.get(index + 1)
            && (*next <= query.after + 1 || begins_before(disk, next_path, query.from)?)
        {
            continue;
        }
        let file = Reader::new(disk.open(path, Access::Read)?);
        let mut lines = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        while {
            line.clear();
            lines.read_until(b'\n', &mut line)? > 0
        } {
            let Some(link) = segment::link(&line) else { continue };
            if link.seq <= query.after || link.seq > last {
                continue;
            }
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if !query.matches(&record) {
                continue;
            }
            if found.len() == limit {
                if !query.newest {
                    let next = found.back().map(|(seq, _)| *seq);
                    let records = found.into_iter().map(|(_, record)| record).collect();
                    return Ok(QueryPage { records, next });
                }
                found.pop_front();
            }
            found.push_back((link.seq, record));
        }
    }
    Ok(QueryPage { records: found.into_iter().map(|(_, record)| record).collect(), next: None })
}

/// Whether a segment's first record is older than `from`: then so is all before it.
fn begins_before(disk: &dyn Disk, path: &Path, from: Option<Timestamp>) -> io::Result<bool> {
    let Some(from) = from else { return Ok(false) };
    let mut line = Vec::new();
    let file = Reader::new(disk.open(path, Access::Read)?);
    BufReader::new(file).read_until(b'\n', &mut line)?;
    let record: Option<Value> = serde_json::from_slice(&line).ok();
    let time = record.and_then(|record| Timestamp::parse(record["time"].as_str()?).ok());
    Ok(time.is_some_and(|time| time < from))
}
