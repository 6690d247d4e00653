//! Opening: all records compared with the heads, and the heads made where there are none.
//!
//! One pass over the store adds up what the heads should say. It holds a page of records at a time.

use std::collections::BTreeSet;

use lastkey_crypto::record;
use lastkey_store::{Entry, Revision, Transaction};

use super::{
    Barrier, BarrierError,
    batch::{Found, Pipeline},
    keyring::{Identity, KEYRING_PATH, Keyring},
};
use crate::{
    Error, Timestamp,
    anchor::{self, Anchor},
    audit,
    heads::{self, Counts, Head, MARK_PATH, Mark, SHARDS, Sum},
    outbox,
};

/// Records in memory at a time.
const PAGE: usize = 1_000;
/// Heads written in one transaction, when they are made.
const HEADS_AT_ONCE: usize = 100;
/// What is found is named up to this many times.
const FINDINGS: usize = 8;

/// What a store holds, beside what it should hold.
pub(crate) struct Inspection {
    /// Whether the store has heads. One that has none was never opened by a release with heads,
    /// or is new.
    pub(crate) has_heads: bool,
    /// What does not fit, in words for the operator; empty for a sound store.
    pub(crate) findings: Vec<String>,
    /// The sequences of the heads.
    pub(crate) sequences: Counts,
    /// The log's end, as the store remembers it.
    pub(crate) remembered: Option<audit::Head>,
    /// The requests whose parcels are in the outbox.
    pub(crate) parcels: BTreeSet<String>,
    found: Option<Found>,
}

/// What one pass adds up.
struct Tally {
    sums: Vec<Sum>,
    records: Counts,
    heads: Vec<Option<Vec<u8>>>,
    mark: Option<Vec<u8>>,
    /// Parcels that name the shard.
    outstanding: Counts,
    parcels: BTreeSet<String>,
    keyring: Option<Revision>,
    findings: Vec<String>,
}

impl Tally {
    fn new() -> Self {
        Self {
            sums: vec![Sum::default(); SHARDS],
            records: heads::zeros(),
            heads: vec![None; SHARDS],
            mark: None,
            outstanding: heads::zeros(),
            parcels: BTreeSet::new(),
            keyring: None,
            findings: Vec::new(),
        }
    }

    fn find(&mut self, what: String) {
        // One more than is shown tells that there is more.
        if self.findings.len() <= FINDINGS {
            self.findings.push(what);
        }
    }

    fn count(&mut self, shard: u8, code: Sum) {
        let shard = usize::from(shard);
        self.sums[shard] = self.sums[shard].plus(code);
        self.records[shard] += 1;
    }
}

impl Barrier {
    /// Compares everything in the store with the heads.
    ///
    /// # Errors
    /// The store cannot be read. What does not fit is no error, but a finding.
    pub(crate) async fn inspect(&self) -> Result<Inspection, Error> {
        let identity = self.identity();
        let mut tally = self.tally(identity.as_ref()).await?;
        let remembered = self.remembered_in(&tally);
        let mut sequences = heads::zeros();
        let mut found = None;
        if let Some(identity) = &identity {
            found = self.compare(&mut tally, identity, &mut sequences);
        }
        let mut findings = tally.findings;
        if findings.len() > FINDINGS {
            findings[FINDINGS] = "and more".to_owned();
        }
        let has_heads = identity.is_some();
        let parcels = tally.parcels;
        Ok(Inspection { has_heads, findings, sequences, remembered, parcels, found })
    }

    /// Goes on from an inspection that found nothing wrong.
    pub(crate) fn accept(&self, inspection: Inspection) -> Result<(), Error> {
        let found = inspection.found.ok_or(Error::Internal)?;
        self.pipeline.set(Pipeline::new(found)).map_err(|_| Error::Internal)
    }

    async fn tally(&self, identity: Option<&Identity>) -> Result<Tally, Error> {
        let mut tally = Tally::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list("", after.as_deref(), PAGE).await?;
            for entry in &page {
                self.look_at(&mut tally, identity, entry);
            }
            match page.into_iter().next_back() {
                Some(last) if after.as_ref() != Some(&last.path) => after = Some(last.path),
                _ => return Ok(tally),
            }
        }
    }

    fn look_at(&self, tally: &mut Tally, identity: Option<&Identity>, entry: &Entry) {
        let path = entry.path.as_str();
        if path == KEYRING_PATH {
            tally.keyring = Some(entry.revision);
        }
        if heads::is_covered(path) {
            if let Some(Identity { codes, .. }) = identity {
                tally.count(heads::shard_of(path), Sum::of(codes, path, &entry.value));
            }
        } else if let Some(shard) = heads::shard_at(path) {
            tally.heads[usize::from(shard)] = Some(entry.value.clone());
        } else if path == MARK_PATH {
            tally.mark = Some(entry.value.clone());
        } else if let Some(request) = outbox::request_of(path) {
            let opened = self.open_stored(path, &entry.value).ok();
            match opened.and_then(|(_, plain)| outbox::shards_of(plain.expose())) {
                Some(shards) => {
                    shards.iter().for_each(|shard| tally.outstanding[usize::from(*shard)] += 1);
                    tally.parcels.insert(request.to_owned());
                }
                None => tally.find(format!("{path} is not authentic")),
            }
        }
    }

    fn remembered_in(&self, tally: &Tally) -> Option<audit::Head> {
        let (_, plain) = self.open_stored(MARK_PATH, tally.mark.as_ref()?).ok()?;
        Mark::decode_log(plain.expose())
    }

    /// What the heads and the mark say, and where the tally says otherwise.
    fn compare(
        &self,
        tally: &mut Tally,
        identity: &Identity,
        sequences: &mut Counts,
    ) -> Option<Found> {
        let mark = tally.mark.take().and_then(|stored| Some((self.open_mark(&stored)?, stored)));
        if mark.is_none() {
            tally.find(format!("{MARK_PATH} is missing or not authentic"));
        }
        let mut found = Vec::with_capacity(SHARDS);
        for shard in 0..=u8::MAX {
            let index = usize::from(shard);
            let head = tally.heads[index]
                .take()
                .and_then(|stored| Some((self.open_head(shard, &stored)?, stored)));
            let Some((head, stored)) = head else {
                tally.find(format!("the head of shard {shard:02x} is missing or not authentic"));
                continue;
            };
            sequences[index] = head.sequence;
            let records = tally.records[index];
            if records != head.records {
                tally.find(format!(
                    "shard {shard:02x} has {records} records instead of {}",
                    head.records
                ));
            } else if tally.sums[index] != head.sum {
                tally.find(format!("a record of shard {shard:02x} is not its newest version"));
            }
            if let Some(((mark, _), _)) = &mark {
                let accounted = mark.settled[index].saturating_add(tally.outstanding[index]);
                if head.sequence < accounted {
                    tally.find(format!("shard {shard:02x} as a whole is older than the rest"));
                } else if head.sequence > accounted {
                    tally.find(format!("a change of shard {shard:02x} has lost its audit record"));
                }
            }
            found.push((head, stored));
        }
        let (mark, mark_stored) = mark?;
        (found.len() == SHARDS).then_some(Found {
            store: identity.store,
            heads: found,
            mark,
            mark_stored,
        })
    }

    /// Gives the store heads for what it holds, whatever that is: a new store, one of a release
    /// without heads, or one that the operator accepts as it is. It gets a new id and a new key
    /// for its codes, so that nothing from another history of it fits any more.
    ///
    /// The keyring is written last: until then, nothing has happened.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub(crate) async fn make_heads(
        &self,
        now: Timestamp,
        anchor: &dyn Anchor,
    ) -> Result<(), BarrierError> {
        let identity = Identity::new(&*self.entropy);
        let mut tally = self.tally(Some(&identity)).await.map_err(unreadable)?;
        let Some(revision) = tally.keyring else { return Err(BarrierError::Malformed) };
        // 1. The keyring as it will be. What an older release sealed was not counted, so another
        //    key seals from now on.
        let mut keyring = self.keyring.read().clone();
        let counted = keyring.identity.is_some();
        let used = tally.records.iter().sum::<u64>() > 1 || tally.mark.is_some();
        keyring.identity = Some(identity.clone());
        if used && !counted {
            keyring.add(&*self.entropy, now).ok_or(BarrierError::Malformed)?;
        } else if !used {
            keyring.keys.values_mut().for_each(|key| key.created = now);
        }
        let wrapped = keyring.wrap(&self.root(), &*self.entropy);
        self.replace_keyring_code(&mut tally, &identity, &wrapped).await?;
        // 2. The heads. Their sequences go on from the old ones, if there are any.
        let mut transaction = Transaction::new();
        let mut settled = heads::zeros();
        let mut made = Vec::with_capacity(SHARDS);
        for shard in 0..=u8::MAX {
            let index = usize::from(shard);
            let old =
                tally.heads[index].take().and_then(|stored| self.open_any_head(shard, &stored));
            settled[index] = old.map_or(0, |head| head.sequence) + 1;
            let head = Head {
                sequence: settled[index] + tally.outstanding[index],
                records: tally.records[index],
                sum: tally.sums[index],
            };
            let path = heads::path_of(shard);
            let stored =
                self.seal_under(&keyring, &path, head.sequence, &head.encode(&identity.store))?;
            transaction = transaction.put(path, stored.clone());
            made.push((head, stored));
            if transaction.operations().len() == HEADS_AT_ONCE {
                self.store.commit(std::mem::take(&mut transaction)).await?;
            }
        }
        self.store.commit(transaction).await?;
        // 3. The mark and, with it, the keyring that makes the heads valid.
        let log = self.remembered_in(&tally).unwrap_or(audit::Head::EMPTY);
        let counter =
            tally.mark.as_ref().and_then(|stored| self.open_stored(MARK_PATH, stored).ok());
        let counter = counter.map_or(0, |(counter, _)| counter) + 1;
        let mark = Mark { log, settled };
        let mark_stored = self.seal_under(&keyring, MARK_PATH, counter, &mark.encode())?;
        let last = Transaction::new()
            .expect_revision(KEYRING_PATH, revision)
            .put(KEYRING_PATH, wrapped)
            .put(MARK_PATH, mark_stored.clone());
        anchor::announce(anchor, &identity.witness(anchor::PURPOSE)).map_err(unreadable)?;
        self.store.commit(last).await?;
        *self.keyring.write() = keyring;
        let found =
            Found { store: identity.store, heads: made, mark: (mark, counter), mark_stored };
        let _ = self.pipeline.set(Pipeline::new(found));
        Ok(())
    }

    /// Counts the keyring as it will be instead of as it is.
    async fn replace_keyring_code(
        &self,
        tally: &mut Tally,
        identity: &Identity,
        wrapped: &[u8],
    ) -> Result<(), BarrierError> {
        let old = self.store.get(KEYRING_PATH).await?.ok_or(BarrierError::Malformed)?;
        let shard = usize::from(heads::shard_of(KEYRING_PATH));
        let (old, new) = (
            Sum::of(&identity.codes, KEYRING_PATH, &old.value),
            Sum::of(&identity.codes, KEYRING_PATH, wrapped),
        );
        tally.sums[shard] = tally.sums[shard].minus(old).plus(new);
        Ok(())
    }

    /// Opens a head of whatever history of the store.
    fn open_any_head(&self, shard: u8, stored: &[u8]) -> Option<Head> {
        let (_, plain) = self.open_stored(&heads::path_of(shard), stored).ok()?;
        Head::decode(plain.expose()).map(|(_, head)| head)
    }

    /// Seals under the newest key of a keyring that is not in force yet.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    fn seal_under(
        &self,
        keyring: &Keyring,
        path: &str,
        counter: u64,
        value: &[u8],
    ) -> Result<Vec<u8>, BarrierError> {
        let (id, key) = keyring.newest().ok_or(BarrierError::Malformed)?;
        Ok(record::seal(id, &key.material, path, counter, value, &*self.entropy))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn unreadable(error: Error) -> BarrierError {
    BarrierError::Unreadable(error.to_string())
}
