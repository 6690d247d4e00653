//! The outbox: audit records of changes, committed with the change itself.
//!
//! A change and its record are one store transaction. The record is then appended to the log,
//! and only when it is durable there is the change answered and its parcel swept. What a crash
//! leaves in the outbox is delivered at the next start, once.
//!
//! A parcel that somebody puts back, or takes away, no longer fits the counts of the heads
//! ([`crate::heads`]). And since a parcel leaves the outbox in the very transaction that lets the
//! store remember a later end of the log, a log that has a change behind the remembered end whose
//! parcel is not in the outbox belongs to a newer store ([`Outbox::newer_changes`]).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::OnceLock,
    time::Duration,
};

use lastkey_store::{CommitError, Transaction};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    Error,
    audit::{AuditError, AuditSink, Head, Query},
    barrier::{Barrier, Batch},
    caller::RequestId,
};

const PREFIX: &str = "outbox/";
/// Releases without heads: `format 1 ‖ log head's seq 8 ‖ record body`.
const OLD_FORMAT: u8 = 1;
const FORMAT: u8 = 2;
/// The store remembers the log's end once it is this many records further, also when nothing
/// changed: a start reads the log from there.
const REMEMBER_AFTER: u64 = 20_000;
/// Records of the log that are looked at together.
const LOG_PAGE: usize = 20_000;
/// A request that makes a second change waits so often, and so long each time, for the first one's
/// parcel to be gone.
const MAX_WAITS: usize = 100;
const WAIT: Duration = Duration::from_millis(10);
/// Deletions in one sweep, each with its compare, and with room for the mark.
const SWEEP: usize = Transaction::MAX_OPERATIONS - 1;

/// A record on its way into the store.
pub(crate) struct Parcel {
    pub(crate) path: String,
    request: RequestId,
    body: Vec<u8>,
    /// Where the log ended when it was packed: its record is not before.
    after: u64,
    /// The shards that its change touches, once that is known.
    shards: OnceLock<Vec<u8>>,
}

impl Parcel {
    pub(crate) fn new(request: RequestId, body: Vec<u8>, head: Head) -> Self {
        let path = format!("{PREFIX}{request}");
        Self { path, request, body, after: head.seq, shards: OnceLock::new() }
    }

    /// Addresses the parcel: what lies in the store for it.
    ///
    /// Parcel (behind the barrier, big-endian):
    /// ```text
    /// 00  1  format 2
    /// 01  8  the log's last record when it was packed
    /// 09  1  how many shards the change touches
    /// 0a  …  one byte for each, then the body of the record
    /// ```
    pub(crate) fn pack(&self, shards: Vec<u8>) -> Vec<u8> {
        let mut plain = Vec::with_capacity(10 + shards.len() + self.body.len());
        plain.push(FORMAT);
        plain.extend_from_slice(&self.after.to_be_bytes());
        // A transaction has at most 128 operations.
        plain.push(u8::try_from(shards.len()).unwrap_or(u8::MAX));
        plain.extend_from_slice(&shards);
        plain.extend_from_slice(&self.body);
        let _ = self.shards.set(shards);
        plain
    }

    fn addressed(self) -> (Address, Vec<u8>) {
        let shards = self.shards.into_inner().unwrap_or_default();
        (Address { path: self.path, request: Some(self.request), shards }, self.body)
    }
}

/// A parcel in the store.
struct Address {
    path: String,
    /// Whose it is; nobody's any more after a start.
    request: Option<RequestId>,
    shards: Vec<u8>,
}

/// A record found in the store at start.
struct Left {
    address: Address,
    /// Where the log ended when the parcel was packed: its record is not before.
    after: u64,
    body: Vec<u8>,
}

#[derive(Default)]
struct Swept {
    /// In the log, and to be deleted from the store.
    delivered: Vec<Address>,
    /// The newest head that the store remembers.
    remembered: Option<Head>,
    /// The one that it remembered when it was opened. Kept: a log that was cut before the start
    /// soon has another newest one.
    recalled: Option<Head>,
    /// Committed, but the log could not take them; to be tried again.
    owed: Vec<(Address, Vec<u8>)>,
    /// Perhaps committed: the store could not be asked.
    doubted: Vec<Parcel>,
}

#[derive(Default)]
pub(crate) struct Outbox {
    swept: Mutex<Swept>,
    /// Requests whose parcel is in the store, or may be.
    outstanding: Mutex<HashSet<RequestId>>,
}

impl Outbox {
    /// Lets a request begin a change.
    ///
    /// A parcel's place is named after its request. Few requests make more than one change; their
    /// next one waits until the parcel of the one before has left the store.
    ///
    /// # Errors
    /// [`Error::Busy`] if that takes too long, and what keeps the store from deleting.
    pub(crate) async fn begin(
        &self,
        request: RequestId,
        barrier: &Barrier,
        audit: &dyn AuditSink,
    ) -> Result<(), Error> {
        for _ in 0..MAX_WAITS {
            if self.outstanding.lock().insert(request) {
                return Ok(());
            }
            self.sweep(barrier, audit).await?;
            if self.outstanding.lock().contains(&request) {
                tokio::time::sleep(WAIT).await;
            }
        }
        Err(Error::Busy)
    }

    /// The request's parcel is not in the store.
    pub(crate) fn end(&self, request: RequestId) {
        self.outstanding.lock().remove(&request);
    }

    /// The parcel's record is in the log.
    pub(crate) fn delivered(&self, parcel: Parcel) {
        self.settle(parcel.addressed().0);
    }

    fn settle(&self, address: Address) {
        self.swept.lock().delivered.push(address);
    }

    /// The parcel's change was made, but the log did not take its record.
    pub(crate) fn owe(&self, parcel: Parcel) {
        self.swept.lock().owed.push(parcel.addressed());
    }

    /// Nobody knows whether the parcel's change was made.
    pub(crate) fn doubt(&self, parcel: Parcel) {
        self.swept.lock().doubted.push(parcel);
    }

    /// Tries again to bring into the log what is owed to it.
    pub(crate) async fn pay(&self, barrier: &Barrier, audit: &dyn AuditSink) {
        let doubted = std::mem::take(&mut self.swept.lock().doubted);
        for parcel in doubted {
            match barrier.store().get(&parcel.path).await {
                Ok(Some(_)) => self.owe(parcel),
                Ok(None) => self.end(parcel.request),
                Err(_) => self.doubt(parcel),
            }
        }
        let owed = std::mem::take(&mut self.swept.lock().owed);
        for (address, body) in owed {
            match audit.append(body.clone()).await {
                Ok(_) => self.settle(address),
                Err(_) => self.swept.lock().owed.push((address, body)),
            }
        }
    }

    /// The heads that the store remembers, for the log to be compared with.
    pub(crate) fn remembered(&self) -> Vec<Head> {
        let swept = self.swept.lock();
        swept.recalled.into_iter().chain(swept.remembered).collect()
    }

    /// Deletes the parcels that are delivered now, and lets the store remember where the log ends.
    /// What is delivered meanwhile is left to the next sweep: while changes go on, there is always
    /// more.
    pub(crate) async fn sweep(
        &self,
        barrier: &Barrier,
        audit: &dyn AuditSink,
    ) -> Result<(), Error> {
        let mut left = self.swept.lock().delivered.len();
        while left > 0 {
            let parcels: Vec<Address> = {
                let delivered = &mut self.swept.lock().delivered;
                let count = delivered.len().min(left).min(SWEEP);
                delivered.drain(..count).collect()
            };
            if parcels.is_empty() {
                break; // Another sweep has them.
            }
            left -= parcels.len();
            self.remember(barrier, parcels, audit.head()).await?;
        }
        let log = audit.head();
        let remembered = barrier.remembered().map_or(0, |head| head.seq);
        if log.seq >= remembered + REMEMBER_AFTER {
            self.remember(barrier, Vec::new(), log).await?;
        }
        Ok(())
    }

    /// Lets the store remember where the log ends, before everything stops.
    pub(crate) async fn remember_end(
        &self,
        barrier: &Barrier,
        audit: &dyn AuditSink,
    ) -> Result<(), Error> {
        self.sweep(barrier, audit).await?;
        let log = audit.head();
        if barrier.remembered() == Some(log) {
            return Ok(());
        }
        self.remember(barrier, Vec::new(), log).await
    }

    async fn remember(
        &self,
        barrier: &Barrier,
        parcels: Vec<Address>,
        log: Head,
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.sweep(parcels.iter().map(|to| (to.path.as_str(), to.shards.as_slice())), log);
        let committed = barrier.commit(&batch).await;
        let mut swept = self.swept.lock();
        match committed {
            Ok(_) => {
                swept.remembered = Some(log);
                let mut outstanding = self.outstanding.lock();
                for request in parcels.iter().filter_map(|parcel| parcel.request) {
                    outstanding.remove(&request);
                }
                Ok(())
            }
            Err(CommitError::Conflict { path }) if request_of(&path).is_some() => {
                // Somebody else has swept it.
                let (gone, rest): (Vec<_>, Vec<_>) =
                    parcels.into_iter().partition(|to| to.path == path);
                gone.iter()
                    .filter_map(|parcel| parcel.request)
                    .for_each(|request| self.end(request));
                swept.delivered.extend(rest);
                Ok(())
            }
            Err(error) => {
                swept.delivered.extend(parcels);
                Err(error.into())
            }
        }
    }

    /// Takes over what the store remembered of the log's end when it was opened.
    pub(crate) fn recall(&self, remembered: Option<Head>) {
        let mut swept = self.swept.lock();
        (swept.recalled, swept.remembered) = (remembered, remembered);
    }

    /// The first change behind the remembered end of the log whose parcel the store does not
    /// have: it was made in a newer store than this one.
    pub(crate) fn newer_changes(
        audit: &dyn AuditSink,
        remembered: u64,
        parcels: &BTreeSet<String>,
    ) -> Result<Option<u64>, Error> {
        let mut after = remembered;
        loop {
            let query = Query { after, limit: LOG_PAGE, ..Query::default() };
            let page = audit.query(&query).map_err(unreadable)?;
            for record in &page.records {
                let id = record["id"].as_str().unwrap_or_default();
                if record["writes"].is_u64() && !parcels.contains(id) {
                    return Ok(record["seq"].as_u64());
                }
            }
            match page.next {
                Some(next) if next > after => after = next,
                _ => return Ok(None),
            }
        }
    }

    /// Delivers what a crash has left: appends each record that the log does not have. What a full
    /// disk does not take is owed from now on, and its parcel stays in the store: nobody who could
    /// make room may be kept out by it.
    pub(crate) async fn recover(
        &self,
        barrier: &Barrier,
        audit: &dyn AuditSink,
    ) -> Result<usize, Error> {
        let mut left = Vec::new();
        loop {
            let after = left.last().map(|left: &Left| left.address.path.clone());
            let page = barrier.store().list(PREFIX, after.as_deref(), 1_000).await?;
            for entry in &page {
                let stored = barrier.open_entry(entry)?;
                left.push(unpack(&entry.path, stored.value.expose())?);
            }
            if page.len() < 1_000 {
                break;
            }
        }
        let Some(after) = left.iter().map(|left| left.after).min() else { return Ok(0) };
        let known = delivered_since(audit, after, &left)?;
        let (mut delivered, mut owed) = (0, 0);
        for parcel in left {
            let id = request_of(&parcel.address.path).unwrap_or_default();
            if known.get(id).is_none_or(|seq| *seq <= parcel.after) {
                match audit.append(parcel.body.clone()).await {
                    Ok(_) => delivered += 1,
                    Err(AuditError::Full) => {
                        self.swept.lock().owed.push((parcel.address, parcel.body));
                        owed += 1;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            self.settle(parcel.address);
        }
        if owed > 0 {
            tracing::error!(owed, "the disk is full: audit records of changes wait for room on it");
        }
        Ok(delivered)
    }
}

/// Which of these records the log has behind record `after`, by their requests: the last one of each,
/// for a request may have made several changes, and its parcel is that of the last.
fn delivered_since(
    audit: &dyn AuditSink,
    mut after: u64,
    left: &[Left],
) -> Result<HashMap<String, u64>, Error> {
    let asked: HashSet<&str> =
        left.iter().filter_map(|parcel| request_of(&parcel.address.path)).collect();
    // A change that was made although its caller was told of a failure has a record of that,
    // too, under the same id.
    let is_done = |record: &Value| record["outcome"] == "ok" || record["writes"].is_u64();
    let mut known = HashMap::new();
    loop {
        let query = Query { after, limit: LOG_PAGE, ..Query::default() };
        let page = audit.query(&query).map_err(unreadable)?;
        for record in page.records.iter().filter(|record| is_done(record)) {
            if let (Some(id), Some(seq)) = (record["id"].as_str(), record["seq"].as_u64())
                && asked.contains(id)
            {
                known.insert(id.to_owned(), seq);
            }
        }
        match page.next {
            Some(next) if next > after => after = next,
            _ => return Ok(known),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn unreadable(error: std::io::Error) -> Error {
    Error::Unavailable(format!("the audit log cannot be read: {error}"))
}

/// The request whose parcel lies at the path.
pub(crate) fn request_of(path: &str) -> Option<&str> {
    path.strip_prefix(PREFIX)
}

/// The shards that a parcel names.
pub(crate) fn shards_of(plain: &[u8]) -> Option<Vec<u8>> {
    open(plain).map(|(_, shards, _)| shards.to_vec())
}

/// The log's end when it was packed, the shards, the record's body.
fn open(plain: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (format, rest) = plain.split_first()?;
    let (after, rest) = rest.split_first_chunk::<8>()?;
    let (shards, body) = match *format {
        OLD_FORMAT => rest.split_at(0),
        FORMAT => {
            let (count, rest) = rest.split_first()?;
            rest.split_at_checked(usize::from(*count))?
        }
        _ => return None,
    };
    Some((u64::from_be_bytes(*after), shards, body))
}

fn unpack(path: &str, plain: &[u8]) -> Result<Left, Error> {
    let corrupt = || Error::CorruptRecord { path: path.to_owned() };
    let (after, shards, body) = open(plain).ok_or_else(corrupt)?;
    let address = Address { path: path.to_owned(), request: None, shards: shards.to_vec() };
    Ok(Left { address, after, body: body.to_vec() })
}

/// For the fuzz target: reads one parcel.
pub(crate) fn parse(plain: &[u8]) {
    let _ = unpack("outbox/fuzz", plain);
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::KeyMaterial;

    use super::*;
    use crate::audit::AuditLog;

    #[test]
    fn what_was_delivered_is_found_however_long_the_log_went_on() {
        let place = tempfile::tempdir().unwrap();
        let (audit, journal) = (place.path().join("audit"), place.path().join("journal"));
        let log = AuditLog::open(&audit, &journal, KeyMaterial::from_slice(&[5; 32])).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let last = LOG_PAGE as u64 + 20;
        for start in (1..=last).step_by(1000) {
            let tickets: Vec<_> = (start..(start + 1000).min(last + 1))
                .map(|n| {
                    // The first seven are of one request.
                    let id = if n == last { "last".to_owned() } else { format!("r{}", n.max(7)) };
                    let outcome = if n == 9 { "Busy" } else { "ok" };
                    log.append(format!(r#""id":"{id}","outcome":"{outcome}""#).into_bytes())
                })
                .collect();
            tickets.into_iter().for_each(|ticket| {
                runtime.block_on(ticket).unwrap();
            });
        }
        let left = ["r7", "r9", "r20000", "last", "never"].map(|request| Left {
            address: Address { path: format!("{PREFIX}{request}"), request: None, shards: vec![] },
            after: 0,
            body: Vec::new(),
        });
        let found = |after| {
            let mut known: Vec<_> =
                delivered_since(&log, after, &left).unwrap().into_iter().collect();
            known.sort_by_key(|(_, seq)| *seq);
            known
        };
        let some = |expected: &[(&str, u64)]| -> Vec<(String, u64)> {
            expected.iter().map(|(id, seq)| ((*id).to_owned(), *seq)).collect()
        };
        assert_eq!(found(0), some(&[("r7", 7), ("r20000", 20_000), ("last", last)]));
        assert_eq!(found(20_000), some(&[("last", last)]));
        assert_eq!(found(last), []);
    }
}
