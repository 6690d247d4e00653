//! The tables in the file, and the values in them.
//!
//! `meta` maps names to numbers: `format` (of this page) and `revision` (of the last commit,
//! written in the same redb transaction as the commit itself). `entries` maps paths to:
//!
//! ```text
//! 00000000  00 00 00 00 00 00 01 02  76 61 6c 75 65           |........value|
//!           revision, big endian     value
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use super::failure::Failure;
use crate::{Entry, Operation, Revision, Transaction};

pub(super) const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// The version of what this page describes.
const FORMAT: u64 = 1;
const REVISION_BYTES: usize = size_of::<u64>();

/// The entries as they were after one commit.
pub(super) struct Snapshot {
    entries: ReadOnlyTable<&'static str, &'static [u8]>,
}

/// What a database was found to be.
pub(super) enum Found {
    /// One of ours, at this revision.
    Ours(Revision),
    /// One of ours, in a format that we do not know.
    Newer(u64),
    /// A redb database that this program did not write.
    Foreign,
}

/// The verdict on one transaction of a batch.
pub(super) struct Judged {
    /// The revision after it, or the path of the compare that failed.
    pub(super) verdict: Result<Revision, String>,
    /// Bit *i* is set where operation *i* changed something.
    pub(super) effects: u128,
}

const _: () = assert!(Transaction::MAX_OPERATIONS <= u128::BITS as usize);

/// Writes the tables of an empty store.
pub(super) fn create(database: &Database) -> Result<(), Failure> {
    let write = database.begin_write()?;
    write.open_table(ENTRIES)?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", 0)?;
    }
    Ok(write.commit()?)
}

/// Reads the format and the revision.
pub(super) fn inspect(database: &Database) -> Result<Found, Failure> {
    let read = database.begin_read()?;
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Ok(Found::Foreign),
    };
    match meta.get("format")?.map(|format| format.value()) {
        None => Ok(Found::Foreign),
        Some(FORMAT) => match meta.get("revision")? {
            Some(revision) => Ok(Found::Ours(Revision(revision.value()))),
            None => Err(Failure::corrupt("the revision is missing")),
        },
        Some(other) => Ok(Found::Newer(other)),
    }
}

/// Applies the transactions in order, each to what the ones before it left, in one durable
/// commit; or nothing at all.
pub(super) fn apply<'a>(
    database: &Database,
    base: Revision,
    transactions: impl Iterator<Item = &'a Transaction>,
) -> Result<(Vec<Judged>, Revision), Failed> {
    let write = database.begin_write().map_err(Failed::before)?;
    let (judged, revision) = judge_all(&write, base, transactions).map_err(Failed::before)?;
    if revision == base {
        write.abort().map_err(Failed::before)?;
    } else {
        // One sync a commit; redb's checksums tell a commit that a crash cut short.
        write.commit().map_err(Failed::during)?;
    }
    Ok((judged, revision))
}

/// Makes a durable commit that changes nothing, to learn whether the medium takes it.
pub(super) fn probe(database: &Database, revision: Revision) -> Result<(), Failure> {
    let write = database.begin_write()?;
    write.open_table(META)?.insert("revision", revision.0)?;
    Ok(write.commit()?)
}

/// A failure of [`apply`].
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// Whether the commit itself had begun, so that the change may have reached the medium.
    pub(super) during_commit: bool,
}

impl Failed {
    fn before(failure: impl Into<Failure>) -> Self {
        Self { failure: failure.into(), during_commit: false }
    }

    fn during(failure: impl Into<Failure>) -> Self {
        Self { failure: failure.into(), during_commit: true }
    }
}

type Entries<'t> = redb::Table<'t, &'static str, &'static [u8]>;

fn judge_all<'a>(
    write: &redb::WriteTransaction,
    base: Revision,
    transactions: impl Iterator<Item = &'a Transaction>,
) -> Result<(Vec<Judged>, Revision), Failure> {
    let mut entries = write.open_table(ENTRIES)?;
    let mut revision = base;
    let mut judged = Vec::with_capacity(transactions.size_hint().0);
    for transaction in transactions {
        let one = judge(&mut entries, revision, transaction)?;
        if let Ok(after) = one.verdict {
            revision = after;
        }
        judged.push(one);
    }
    if revision != base {
        write.open_table(META)?.insert("revision", revision.0)?;
    }
    Ok((judged, revision))
}

fn judge(
    entries: &mut Entries<'_>,
    current: Revision,
    transaction: &Transaction,
) -> Result<Judged, Failure> {
    for compare in transaction.compares() {
        let raw = entries.get(compare.path())?;
        let found = raw.as_ref().map(|raw| decode(raw.value())).transpose()?;
        if !compare.holds(found) {
            return Ok(Judged { verdict: Err(compare.path().to_owned()), effects: 0 });
        }
    }
    let next = current.next();
    let mut effects = 0;
    for (i, operation) in transaction.operations().iter().enumerate() {
        if change(entries, next, operation)? {
            effects |= 1 << i;
        }
    }
    Ok(Judged { verdict: Ok(if effects == 0 { current } else { next }), effects })
}

fn change(
    entries: &mut Entries<'_>,
    revision: Revision,
    operation: &Operation,
) -> Result<bool, Failure> {
    match operation {
        Operation::Put { path, value } => {
            let mut raw = entries.insert_reserve(path.as_str(), REVISION_BYTES + value.len())?;
            encode(revision, value, raw.as_mut());
            Ok(true)
        }
        Operation::Delete { path } => Ok(entries.remove(path.as_str())?.is_some()),
    }
}

impl Snapshot {
    pub(super) fn of(database: &Database) -> Result<Self, Failure> {
        Ok(Self { entries: database.begin_read()?.open_table(ENTRIES)? })
    }

    pub(super) fn get(&self, path: &str) -> Result<Option<Entry>, Failure> {
        unpanicked(|| self.read(path))
    }

    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Failure> {
        unpanicked(|| self.read_all(prefix, after, limit))
    }

    fn read(&self, path: &str) -> Result<Option<Entry>, Failure> {
        let Some(raw) = self.entries.get(path)? else { return Ok(None) };
        let (revision, value) = decode(raw.value())?;
        Ok(Some(Entry { path: path.to_owned(), value: value.to_vec(), revision }))
    }

    fn read_all(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Failure> {
        let start = after.filter(|after| *after >= prefix);
        let mut found = Vec::new();
        for item in self.entries.range::<&str>(start.unwrap_or(prefix)..)? {
            let (path, raw) = item?;
            if found.len() == limit || !path.value().starts_with(prefix) {
                break;
            }
            if Some(path.value()) == start {
                continue;
            }
            let (revision, value) = decode(raw.value())?;
            let path = path.value().to_owned();
            found.push(Entry { path, value: value.to_vec(), revision });
        }
        Ok(found)
    }
}

/// redb trusts the pages of a file that it did not check, and panics over what makes no sense.
fn unpanicked<T>(read: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(Failure::corrupt("redb gave up")))
}

fn encode(revision: Revision, value: &[u8], raw: &mut [u8]) {
    let (head, tail) = raw.split_at_mut(REVISION_BYTES);
    head.copy_from_slice(&revision.0.to_be_bytes());
    tail.copy_from_slice(value);
}

fn decode(raw: &[u8]) -> Result<(Revision, &[u8]), Failure> {
    let (head, value) = raw
        .split_first_chunk::<REVISION_BYTES>()
        .ok_or_else(|| Failure::corrupt("an entry is shorter than its revision"))?;
    Ok((Revision(u64::from_be_bytes(*head)), value))
}

/// For the fuzz target: reads a value.
pub(super) fn parse_entry(raw: &[u8]) {
    if let Ok((revision, value)) = decode(raw) {
        let mut again = vec![0; REVISION_BYTES + value.len()];
        encode(revision, value, &mut again);
        assert_eq!(again, raw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_stored_as_documented() {
        let mut raw = vec![0; 13];
        encode(Revision(0x102), b"value", &mut raw);
        assert_eq!(raw, b"\0\0\0\0\0\0\x01\x02value");
        assert_eq!(decode(&raw).unwrap(), (Revision(0x102), b"value".as_slice()));
        assert!(decode(&raw[..7]).is_err());
    }
}
