//! How often each version has encrypted, counted ahead in the store.

use super::*;
use crate::{Action, LastUse, Timestamp, caller::Principal, key::KeyVersion};

/// At most so many versions wait for their last use to be written down.
const MAX_NOTED: usize = 4096;
/// A reservation of uses that lost a race is tried again this often.
const MAX_RESERVATIONS: usize = 8;

/// A version's uses as the store holds them, and what a change of that expects.
pub(super) struct StoredUses {
    pub(super) count: u64,
    /// Whether others than plugins have encrypted, or may have.
    pub(super) direct: bool,
    pub(super) expect: Expect,
}

impl Records {
    /// How often a version was used, as the store holds it.
    pub(super) async fn stored_uses(&self, id: KeyVersionId) -> Result<StoredUses, Error> {
        let path = uses::path_of(id);
        let Some(stored) = self.barrier.read(&path).await? else {
            return Ok(StoredUses { count: 0, direct: false, expect: Expect::Absent });
        };
        let read = uses::decode_of(stored.value.expose());
        let (count, direct) = read.ok_or(Error::CorruptRecord { path })?;
        Ok(StoredUses { count, direct, expect: stored.expect() })
    }

    /// Counts a use of a version, before it is used. That somebody else than a plugin uses it is
    /// durable before the first time.
    pub(crate) async fn count_use(
        &self,
        version: &Arc<Version>,
        direct: bool,
    ) -> Result<(), Error> {
        let counted = version.uses.count();
        if direct && !version.uses.is_direct() {
            return self.reserve_uses(version, true).await;
        }
        match counted {
            Counted::Ahead => Ok(()),
            Counted::RunningLow => {
                self.low.lock().push(Arc::clone(version));
                Ok(())
            }
            Counted::Beyond => self.reserve_uses(version, direct).await,
        }
    }

    /// Counts ahead where half of what was reserved is used. One version that fails keeps no other
    /// one from it; who uses that one when nothing is left reserves for it, and is told.
    pub(crate) async fn reserve_more(&self) -> Result<(), Error> {
        self.barrier.reserve_seals(false).await?;
        let mut low = std::mem::take(&mut *self.low.lock());
        while let Some(version) = low.pop() {
            if let Err(error) = self.reserve_uses(&version, false).await {
                let mut again = self.low.lock();
                // One that was destroyed meanwhile must not stay in memory.
                low.retain(|version| self.versions.peek(&version.id).is_some());
                again.append(&mut low);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Notes who uses a version, and for what. Costs next to nothing but once a second.
    pub(crate) fn note_use(
        &self,
        version: &Arc<Version>,
        (now, by): (Timestamp, &Principal),
        action: Action,
    ) {
        if version.latest.note(now, by, action) {
            let mut used = self.used.lock();
            // More than this wait for a minute only where nobody could read a list of them.
            if used.len() < MAX_NOTED {
                used.push(Arc::clone(version));
            } else {
                version.latest.unqueue();
            }
        }
    }

    /// Lets go of a version that was destroyed: nothing may keep its material in memory.
    pub(super) fn drop_version(&self, id: KeyVersionId) {
        self.versions.remove(&id);
        self.low.lock().retain(|version| version.id != id);
        self.used.lock().retain(|version| version.id != id);
    }

    /// What callers may know of a version, with its last use before this start too.
    pub(crate) async fn describe(&self, version: &Version) -> Result<KeyVersion, Error> {
        let mut described = version.describe();
        if described.last_use.is_none() {
            let stored = self.barrier.read_json::<LastUse>(&last_use::path_of(version.id)).await?;
            described.last_use = stored.map(|stored| stored.value);
        }
        Ok(described)
    }

    /// Writes down who used which version last, as many as there is time for, and until one fails;
    /// the others wait for the next time.
    pub(crate) async fn keep_last_uses(&self, patience: Duration) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + patience;
        let mut used = std::mem::take(&mut *self.used.lock());
        let mut kept = Ok(());
        while kept.is_ok() && tokio::time::Instant::now() <= until {
            let Some(version) = used.pop() else { return Ok(()) };
            kept = self.keep_last_use(&version).await;
        }
        // One that was destroyed meanwhile goes the next time.
        self.used.lock().append(&mut used);
        kept
    }

    async fn keep_last_use(&self, version: &Version) -> Result<(), Error> {
        version.latest.unqueue();
        let Some(last) = version.latest.get() else { return Ok(()) };
        // It may have been destroyed since it was used.
        if self.barrier.store().get(&version_path(version.id)).await?.is_none() {
            return Ok(());
        }
        let path = last_use::path_of(version.id);
        let expect = self.barrier.read(&path).await?.map_or(Expect::Absent, |old| old.expect());
        let mut batch = Batch::default();
        batch.put(&self.barrier, &path, &to_json(&last)?, expect)?;
        match self.barrier.commit(&batch).await {
            // Another server was faster; the next use is written down again.
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }

    /// Whether a version has encrypted as much as one may.
    pub(crate) fn is_worn(&self, version: &Version) -> bool {
        version.uses.used() >= self.limits.version.load(Ordering::Relaxed)
    }

    /// The keys whose primary versions have encrypted as much as one may.
    pub(crate) fn worn_keys(&self) -> Vec<KeyId> {
        std::mem::take(&mut *self.worn.lock()).into_iter().collect()
    }

    /// Counts uses of a version ahead, durably.
    async fn reserve_uses(&self, version: &Version, direct: bool) -> Result<(), Error> {
        let _alone = version.uses.reserving.lock().await;
        // Whoever was before us may have reserved enough for both.
        if !version.uses.runs_low() && (!direct || version.uses.is_direct()) {
            return Ok(());
        }
        for _ in 0..MAX_RESERVATIONS {
            let stored = self.stored_uses(version.id).await?;
            let count = version.uses.next().max(stored.count);
            let direct = direct || stored.direct || version.uses.is_direct();
            let new = StoredUses { count, direct, expect: stored.expect };
            if self.write_uses(version.id, new).await? {
                version.uses.reserved(count);
                if direct {
                    version.uses.set_direct();
                }
                self.counted.lock().insert(version.id, count);
                if self.is_worn(version) {
                    self.worn.lock().insert(version.key_id);
                }
                return Ok(());
            }
        }
        Err(Error::Busy)
    }

    /// False if somebody else was faster.
    async fn write_uses(&self, id: KeyVersionId, new: StoredUses) -> Result<bool, Error> {
        let mut batch = Batch::default();
        let value = uses::encode_of(new.count, new.direct);
        batch.put(&self.barrier, &uses::path_of(id), &value, new.expect)?;
        match self.barrier.commit(&batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    /// Leaves the exact counts of the versions that were used, as many as there is time for; the
    /// others stay a little too high. Nothing may be used afterwards.
    pub(crate) async fn end_counting(&self, patience: Duration) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + patience;
        let counted = std::mem::take(&mut *self.counted.lock());
        for (id, reserved) in counted {
            if tokio::time::Instant::now() > until {
                return Ok(());
            }
            // What was evicted from the cache meanwhile has no exact count any more.
            let Some(version) = self.versions.peek(&id) else { continue };
            let used = version.uses.close();
            let stored = self.stored_uses(id).await?;
            if stored.count == reserved && used < stored.count {
                self.write_uses(id, StoredUses { count: used, ..stored }).await?;
            }
        }
        Ok(())
    }
}
