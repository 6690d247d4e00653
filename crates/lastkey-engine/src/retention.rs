//! Deleting old audit segments, as the options of the log say: recorded first, then stated in a
//! signed checkpoint, then done.

use std::{io, sync::Arc, time::Duration};

use lastkey_store::disk::is_full;

use crate::{
    Caller, Timestamp,
    action::Action,
    audit::{AuditError, AuditSink, Deletion, Record, SIGNED_FOR, SIGNED_UNTIL},
    engine::Core,
    nonce::SKEW,
};

/// Why old records are still there.
#[derive(Debug, thiserror::Error)]
enum NotDeleted {
    #[error("what is to be deleted cannot be told, or not be stated: {0}")]
    Chosen(#[source] io::Error),
    #[error("the deletion cannot be recorded: {0}; make room in the data directory by other means")]
    NoRoom(#[source] AuditError),
    #[error("the deletion cannot be recorded: {0}")]
    Recorded(#[source] AuditError),
    #[error(
        "the deletion is recorded and waits for room: {0}; make some in the data directory by other \
         means"
    )]
    NoRoomToState(#[source] io::Error),
    #[error("the deletion is recorded and tried again: {0}")]
    Done(#[source] io::Error),
}

/// What a deletion that came to no end leaves to the next attempt.
#[derive(Default)]
pub(crate) struct Deleting {
    /// It was recorded, and is not recorded again.
    recorded: Option<Deletion>,
    /// Why nothing is deleted, which was said.
    said: Option<String>,
    /// The room that was kept for it was used, and is to be kept again.
    gave_room: bool,
}

impl Core {
    /// Looks for segments that are too old or too much. After a jump of the clock
    /// (`may_destroy`), age does not count.
    pub(crate) async fn delete_old_records(&self, may_destroy: bool) {
        let mut deleting = self.deleting.lock().await;
        let now = may_destroy.then(|| self.clock.now());
        match self.try_to_delete(now, &mut deleting).await {
            Ok(()) => deleting.said = None,
            Err(why) => {
                let why = why.to_string();
                if deleting.said.as_ref() != Some(&why) {
                    tracing::error!(why, "old audit records are not deleted");
                    deleting.said = Some(why);
                }
            }
        }
        let again = deleting.gave_room;
        match self.with_audit(move |audit| audit.keep_room(again)).await {
            Ok(kept) => deleting.gave_room &= !kept,
            Err(error) => tracing::debug!(%error, "no room is kept for a deletion on a full disk"),
        }
    }

    async fn try_to_delete(
        &self,
        now: Option<Timestamp>,
        deleting: &mut Deleting,
    ) -> Result<(), NotDeleted> {
        let chosen = self.with_audit(move |audit| audit.to_delete(now)).await;
        let Some(chosen) = chosen.map_err(NotDeleted::Chosen)? else { return Ok(()) };
        let deletion = match deleting.recorded.take() {
            Some(recorded) if recorded.through.seq <= chosen.through.seq => recorded,
            _ => {
                self.record_deletion(&chosen, deleting).await?;
                chosen
            }
        };
        deleting.recorded = Some(deletion.clone());
        let (through, segments) = (deletion.through.seq, deletion.segments);
        let delete = |deletion: Deletion| self.with_audit(move |audit| audit.delete(&deletion));
        let mut deleted = delete(deletion.clone()).await;
        if deleted.as_ref().is_err_and(is_full) && self.give_room(deleting).await {
            deleted = delete(deletion).await;
        }
        deleted.map_err(|error| match is_full(&error) {
            true => NotDeleted::NoRoomToState(error),
            false => NotDeleted::Done(error),
        })?;
        deleting.recorded = None;
        tracing::info!(through, segments, "old audit segments were deleted");
        Ok(())
    }

    async fn record_deletion(
        &self,
        chosen: &Deletion,
        deleting: &mut Deleting,
    ) -> Result<(), NotDeleted> {
        let (caller, now) = (Caller::system(&*self.entropy), self.clock.now());
        let mut record = Record::begin(Action::DeleteAudit.name(), &caller, now);
        record.number("through", chosen.through.seq);
        record.field("through_hash", hex::encode(chosen.through.hash));
        record.number("segments", chosen.segments);
        record.number("bytes", chosen.bytes);
        if !chosen.lost.is_empty() {
            record.field(SIGNED_FOR, &chosen.lost);
        }
        // Older releases refuse whatever was signed until then: for them, nothing that lies ahead.
        let latest = chosen.lost.latest_until(now.after(SKEW).as_seconds());
        if let Some(latest) = latest.and_then(|latest| u64::try_from(latest).ok()) {
            record.number(SIGNED_UNTIL, latest);
        }
        let body = record.finish("ok", Duration::ZERO);
        let mut recorded = self.audit.append(body.clone()).await;
        if recorded == Err(AuditError::Full) && self.give_room(deleting).await {
            recorded = self.audit.append(body).await;
        }
        match recorded {
            Ok(_) => Ok(()),
            Err(error @ AuditError::Full) => Err(NotDeleted::NoRoom(error)),
            Err(error) => Err(NotDeleted::Recorded(error)),
        }
    }

    /// Gives up the room that is kept for this; false where there is none.
    async fn give_room(&self, deleting: &mut Deleting) -> bool {
        let gave = self.with_audit(AuditSink::give_room).await.unwrap_or(false);
        deleting.gave_room |= gave;
        gave
    }

    /// Works on the log's files where that may take its time.
    async fn with_audit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn AuditSink) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let audit = Arc::clone(&self.audit);
        let worked = tokio::task::spawn_blocking(move || work(&*audit)).await;
        worked.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
