//! The keyring's life: another key seals, the old ones open until nothing needs them.
//!
//! 1. A new key is added to the keyring, and the keyring is stored, in the transaction of the
//!    command that asked for it.
//! 2. From the answer on, nothing that an older key sealed gets into the store any more: what was
//!    sealed before and not yet staged is sealed again ([`super::batch`]).
//! 3. All records are looked at, a few at a time, and those of an older key are sealed again.
//! 4. When a whole round finds none, the keys older than that round's newest are dropped from the
//!    keyring. Another rotation meanwhile begins the round anew: what an earlier page found in
//!    order is sealed by an older key now.
//!
//! A keyring key seals at most 2^30 records, far below the 2^32 of its nonces' birthday bound, and
//! for at most 90 days.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lastkey_store::{CommitError, Revision};

use super::{
    Barrier, Batch, Expect,
    keyring::{KEYRING_PATH, Keyring},
};
use crate::{
    Error, Timestamp,
    heads::{self, MARK_PATH, Sum},
    uses::{self, Uses},
};

/// A keyring key seals no more than this.
pub(crate) const MAX_USES: u64 = 1 << 30;
/// A keyring key seals no longer than this.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(90 * 86_400);
/// Keys in a keyring; more only if rounds cannot keep up.
const MAX_KEYS: usize = 32;
const USES_PATH: &str = "meta/keyring-uses";
/// What is sealed before the first reservation of a start can be durable.
const MARGIN: u64 = 1_024;
/// Records looked at in one step.
const STEP: usize = 500;
/// Records sealed again in one transaction, with room for as many heads.
const AT_ONCE: usize = 50;

/// A keyring to be stored in place of the present one.
#[derive(Clone)]
pub(crate) struct NextKeyring {
    pub(super) keyring: Keyring,
    pub(crate) wrapped: Vec<u8>,
    pub(crate) before: (Revision, Sum),
}

impl NextKeyring {
    /// The key that will seal.
    pub(crate) fn newest(&self) -> u32 {
        self.keyring.newest().map_or(0, |(id, _)| id)
    }
}

/// How far a round over the records has come.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// The keyring key that sealed last when it began.
    newest: u32,
    after: Option<String>,
    started: bool,
    found: bool,
}

/// What a step of a round came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The keyring has one key only.
    Idle,
    /// There is more to look at.
    More,
    /// A whole round found nothing that a key older than this one sealed.
    Clean(u32),
}

impl Barrier {
    /// How often the newest keyring key has sealed, at least; since when it seals; how many keys
    /// there are.
    pub(crate) fn keyring_state(&self) -> (u64, Timestamp, usize) {
        let keyring = self.keyring.read();
        let since = keyring.newest().map_or(Timestamp::default(), |(_, key)| key.created);
        (self.keyring_uses.read().used(), since, keyring.keys.len())
    }

    /// Begins to count from what the store holds.
    pub(crate) async fn begin_counting(&self) -> Result<(), Error> {
        let newest = self.newest_id()?;
        let stored = self.read(USES_PATH).await?;
        // The count of another key says nothing about this one.
        let count = stored.and_then(|stored| decode(newest, stored.value.expose())).unwrap_or(0);
        let used = count.saturating_add(MARGIN);
        // Room for the reservation itself; the margin covers starts that go no further.
        let uses = Uses::in_large_blocks(used, used.saturating_add(MARGIN));
        *self.keyring_uses.write() = Arc::new(uses);
        // A disk that is full now must not keep an operator out: it is tried again soon, and until
        // then the margin is all that can be sealed.
        if let Err(error) = self.reserve_seals(true).await {
            tracing::warn!(%error, "seals of the keyring could not be counted ahead");
        }
        Ok(())
    }

    /// Reserves more seals ahead, where few are left.
    pub(crate) async fn reserve_seals(&self, force: bool) -> Result<(), Error> {
        let uses = self.keyring_uses.read().clone();
        if !force && !uses.runs_low() {
            return Ok(());
        }
        let _alone = uses.reserving.lock().await;
        let count = uses.next();
        self.write_seals(count).await?;
        uses.reserved(count);
        Ok(())
    }

    /// Leaves the exact count, at a clean end. Little is sealed afterwards: what the outbox and the
    /// newest checkpoint leave for the next start.
    pub(crate) async fn end_counting(&self) -> Result<(), Error> {
        // That, and what sealing the count itself takes, is in the margin of the next start.
        let used = self.keyring_uses.read().used();
        self.write_seals(used).await
    }

    async fn write_seals(&self, count: u64) -> Result<(), Error> {
        let mut batch = Batch::that_reserves();
        self.stage_seals(&mut batch, self.newest_id()?, count).await?;
        self.commit(&batch).await?;
        Ok(())
    }

    async fn stage_seals(
        &self,
        batch: &mut Batch,
        keyring_key: u32,
        count: u64,
    ) -> Result<(), Error> {
        let expect = self.read(USES_PATH).await?.map_or(Expect::Absent, |stored| stored.expect());
        let mut plain = keyring_key.to_be_bytes().to_vec();
        plain.extend_from_slice(&uses::encode(count));
        batch.put(self, USES_PATH, &plain, expect)?;
        Ok(())
    }

    /// Adds the next keyring to a batch, with what its newest key may be used for until somebody
    /// reserves more.
    pub(crate) async fn stage_keyring(
        &self,
        batch: &mut Batch,
        next: &NextKeyring,
    ) -> Result<(), Error> {
        batch.put_clear(self, KEYRING_PATH, next.wrapped.clone(), Some(next.before))?;
        if next.newest() != self.newest_id()? {
            self.stage_seals(batch, next.newest(), uses::LARGEST_BLOCK).await?;
        }
        Ok(())
    }

    fn newest_id(&self) -> Result<u32, Error> {
        self.keyring.read().newest().map(|(id, _)| id).ok_or(Error::Internal)
    }

    /// The keyring with another key, which seals once this is stored.
    pub(crate) async fn with_new_key(&self, now: Timestamp) -> Result<NextKeyring, Error> {
        let (mut keyring, before) = self.stored_keyring().await?;
        if keyring.keys.len() >= MAX_KEYS {
            return Err(Error::LimitExceeded { what: "keys in the keyring", limit: MAX_KEYS });
        }
        keyring.add(&*self.entropy, now).ok_or(Error::Internal)?;
        Ok(self.next_keyring(keyring, before))
    }

    /// The keyring without the keys older than `clean`; `None` if it has none of them. Not without
    /// all but its newest: that may have come after the round that says what is needed.
    pub(crate) async fn without_keys_before(
        &self,
        clean: u32,
    ) -> Result<Option<NextKeyring>, Error> {
        let (mut keyring, before) = self.stored_keyring().await?;
        let old = keyring.keys.len();
        keyring.keys.retain(|id, _| *id >= clean);
        let left = keyring.keys.len();
        Ok((1..old).contains(&left).then(|| self.next_keyring(keyring, before)))
    }

    fn next_keyring(&self, keyring: Keyring, before: (Revision, Sum)) -> NextKeyring {
        let wrapped = keyring.wrap(&self.root(), &*self.entropy);
        NextKeyring { keyring, wrapped, before }
    }

    /// The keyring as it rests, under the root key that we hold.
    async fn stored_keyring(&self) -> Result<(Keyring, (Revision, Sum)), Error> {
        let corrupt = || Error::CorruptRecord { path: KEYRING_PATH.to_owned() };
        let entry = self.store.get(KEYRING_PATH).await?.ok_or_else(corrupt)?;
        // While the root key is being changed, the stored one may be the next already.
        let keyring = Keyring::unwrap(&self.root(), &entry.value).map_err(|_| Error::Busy)?;
        Ok((keyring, (entry.revision, self.code(KEYRING_PATH, &entry.value)?)))
    }

    /// The next keyring is stored: its newest key seals from now on. Who stored the one before may
    /// come here later, and is too late then.
    pub(crate) fn turn_keyring(&self, next: NextKeyring, revision: Revision) {
        let mut keyring = self.keyring.write();
        if self.keyring_turned.fetch_max(revision.0, Ordering::AcqRel) > revision.0 {
            return;
        }
        let turned = keyring.newest().map(|(id, _)| id) != next.keyring.newest().map(|(id, _)| id);
        *keyring = next.keyring;
        if turned {
            *self.keyring_uses.write() = Arc::new(Uses::in_large_blocks(0, uses::LARGEST_BLOCK));
        }
    }

    /// Looks at some records, and seals again those that an older keyring key sealed.
    pub(crate) async fn reseal_some(&self, round: &mut Round) -> Result<Step, Error> {
        if self.keyring.read().keys.len() < 2 {
            *round = Round::default();
            return Ok(Step::Idle);
        }
        let newest = self.newest_id()?;
        if round.newest != newest {
            *round = Round { newest, ..Round::default() };
        }
        if !std::mem::replace(&mut round.started, true) {
            // Everything that was staged before the newest key sealed is in the store, once this
            // is answered.
            let count = self.keyring_uses.read().held();
            self.write_seals(count).await?;
        }
        let page = self.store.list("", round.after.as_deref(), STEP).await?;
        let last = page.last().map(|entry| entry.path.clone());
        let old = page.iter().filter(|entry| {
            Self::sealed_with(&entry.value).is_some_and(|id| id != newest)
                && entry.path != KEYRING_PATH
        });
        let old: Vec<_> = old.filter(|entry| !is_clear(&entry.path)).collect();
        round.found |= !old.is_empty();
        for few in old.chunks(AT_ONCE) {
            let mut batch = Batch::default();
            for entry in few {
                if let Some(shard) = heads::shard_at(&entry.path) {
                    batch.touch(shard);
                } else if heads::is_covered(&entry.path) {
                    let stored = self.open_entry(entry)?;
                    batch.put(self, &entry.path, stored.value.expose(), stored.expect())?;
                } else {
                    // A parcel leaves by itself; the mark is sealed again with each batch.
                    debug_assert!(entry.path == MARK_PATH || entry.path.starts_with("outbox/"));
                    batch.touch(0);
                }
            }
            match self.commit(&batch).await {
                // A record that changed meanwhile was sealed again by whoever changed it.
                Ok(_) | Err(CommitError::Conflict { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        if page.len() == STEP {
            round.after = last;
            return Ok(Step::More);
        }
        let clean = !round.found;
        *round = Round::default();
        Ok(if clean { Step::Clean(newest) } else { Step::More })
    }
}

/// Whether what lies at the path only looks like a sealed record.
fn is_clear(path: &str) -> bool {
    path == "meta/seal" || path == KEYRING_PATH
}

fn decode(keyring_key: u32, plain: &[u8]) -> Option<u64> {
    let (id, count) = plain.split_first_chunk::<4>()?;
    (u32::from_be_bytes(*id) == keyring_key).then_some(())?;
    uses::decode(count)
}
