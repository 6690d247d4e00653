//! The outbox: audit records of changes, committed with the change itself.
//!
//! A change and its record are one store transaction. The record is then appended to the log,
//! and only when it is durable there is the change answered and its parcel swept. What a crash
//! leaves in the outbox is delivered at the next start, once.

use lastkey_store::{Revision, Transaction};
use parking_lot::Mutex;

use crate::{
    Error,
    audit::{AuditSink, Head, Query},
    barrier::Barrier,
    caller::RequestId,
};

const PREFIX: &str = "outbox/";
const HEAD_PATH: &str = "audit/head";
const FORMAT: u8 = 1;
/// Deletions in one sweep, with room for the head.
const SWEEP: usize = Transaction::MAX_OPERATIONS - 1;

/// A record on its way into the store.
pub(crate) struct Parcel {
    pub(crate) path: String,
    pub(crate) sealed: Vec<u8>,
}

/// A record found in the store at start.
struct Left {
    path: String,
    /// Where the log ended when the parcel was packed: its record is not before.
    after: u64,
    body: Vec<u8>,
}

#[derive(Default)]
struct Swept {
    /// In the log, and to be deleted from the store.
    delivered: Vec<String>,
    /// The newest head that the store remembers.
    remembered: Option<Head>,
    /// Committed, but the log could not take them; to be tried again.
    owed: Vec<(String, Vec<u8>)>,
}

#[derive(Default)]
pub(crate) struct Outbox {
    swept: Mutex<Swept>,
}

impl Outbox {
    /// Packs a record; the caller puts it into the change's transaction.
    ///
    /// Parcel (behind the barrier): `format 1 ‖ log head's seq 8 ‖ record body`, big-endian.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub(crate) fn parcel(
        &self,
        barrier: &Barrier,
        request: RequestId,
        body: &[u8],
        head: Head,
    ) -> Result<Parcel, Error> {
        let mut plain = Vec::with_capacity(9 + body.len());
        plain.push(FORMAT);
        plain.extend_from_slice(&head.seq.to_be_bytes());
        plain.extend_from_slice(body);
        let path = format!("{PREFIX}{request}");
        let sealed = barrier.seal(&path, 1, &plain)?;
        Ok(Parcel { path, sealed })
    }

    /// The parcel's record is in the log.
    pub(crate) fn delivered(&self, path: String) {
        self.swept.lock().delivered.push(path);
    }

    /// The parcel's change was made, but the log did not take its record.
    pub(crate) fn owe(&self, path: String, body: Vec<u8>) {
        self.swept.lock().owed.push((path, body));
    }

    /// Tries again to bring into the log what is owed to it.
    pub(crate) async fn pay(&self, audit: &dyn AuditSink) {
        let owed = std::mem::take(&mut self.swept.lock().owed);
        for (path, body) in owed {
            match audit.append(body.clone()).await {
                Ok(_) => self.delivered(path),
                Err(_) => self.owe(path, body),
            }
        }
    }

    /// The heads that the store remembers, for the log to be compared with.
    pub(crate) fn remembered(&self) -> Vec<Head> {
        self.swept.lock().remembered.into_iter().collect()
    }

    /// Deletes delivered parcels and lets the store remember where the log ends.
    pub(crate) async fn sweep(
        &self,
        barrier: &Barrier,
        audit: &dyn AuditSink,
    ) -> Result<(), Error> {
        loop {
            let batch: Vec<String> = {
                let delivered = &mut self.swept.lock().delivered;
                let count = delivered.len().min(SWEEP);
                delivered.drain(..count).collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            let head = audit.head();
            let mut plain = head.seq.to_be_bytes().to_vec();
            plain.extend_from_slice(&head.hash);
            let sealed = barrier.seal(HEAD_PATH, head.seq, &plain)?;
            let transaction = batch
                .iter()
                .fold(Transaction::new(), |transaction, path| transaction.delete(path.as_str()))
                .put(HEAD_PATH, sealed);
            let committed: Result<Revision, _> = barrier.store().commit(transaction).await;
            let mut swept = self.swept.lock();
            match committed {
                Ok(_) => swept.remembered = Some(head),
                Err(error) => {
                    swept.delivered.extend(batch);
                    return Err(error.into());
                }
            }
        }
    }

    /// Reads what the store remembers of the log's end.
    pub(crate) async fn recall(&self, barrier: &Barrier) -> Result<Option<Head>, Error> {
        let Some(stored) = barrier.read(HEAD_PATH).await? else { return Ok(None) };
        let corrupt = || Error::CorruptRecord { path: HEAD_PATH.to_owned() };
        let (seq, hash) = stored.value.expose().split_first_chunk::<8>().ok_or_else(corrupt)?;
        let hash = <[u8; 32]>::try_from(hash).map_err(|_| corrupt())?;
        let head = Head { seq: u64::from_be_bytes(*seq), hash };
        self.swept.lock().remembered = Some(head);
        Ok(Some(head))
    }

    /// Delivers what a crash has left: appends each record that the log does not have.
    pub(crate) async fn recover(
        &self,
        barrier: &Barrier,
        audit: &dyn AuditSink,
    ) -> Result<usize, Error> {
        let mut left = Vec::new();
        loop {
            let after = left.last().map(|left: &Left| left.path.clone());
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
        let query = Query { after, limit: usize::MAX, ..Query::default() };
        let page = audit.query(&query).map_err(|error| {
            Error::Unavailable(format!("the audit log cannot be read: {error}"))
        })?;
        let known: std::collections::HashSet<&str> =
            page.records.iter().filter_map(|record| record["id"].as_str()).collect();
        let mut delivered = 0;
        for parcel in left {
            let id = parcel.path.strip_prefix(PREFIX).unwrap_or_default();
            if !known.contains(id) {
                audit.append(parcel.body).await?;
                delivered += 1;
            }
            self.delivered(parcel.path);
        }
        Ok(delivered)
    }
}

fn unpack(path: &str, plain: &[u8]) -> Result<Left, Error> {
    let corrupt = || Error::CorruptRecord { path: path.to_owned() };
    let rest = plain.strip_prefix(&[FORMAT]).ok_or_else(corrupt)?;
    let (after, body) = rest.split_first_chunk::<8>().ok_or_else(corrupt)?;
    Ok(Left { path: path.to_owned(), after: u64::from_be_bytes(*after), body: body.to_vec() })
}

/// For the fuzz target: reads one parcel.
pub(crate) fn parse(plain: &[u8]) {
    let _ = unpack("outbox/fuzz", plain);
}
