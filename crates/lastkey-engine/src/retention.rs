//! Deleting old audit segments, as the options of the log say: recorded first, then stated in a
//! signed checkpoint, then done.

use std::{sync::Arc, time::Duration};

use crate::{
    Caller,
    action::Action,
    audit::{Record, SIGNED_UNTIL},
    engine::Core,
};

impl Core {
    /// Looks for segments that are too old or too much. After a jump of the clock
    /// (`may_destroy`), age does not count.
    pub(crate) async fn delete_old_records(&self, may_destroy: bool) {
        let now = may_destroy.then(|| self.clock.now());
        let audit = Arc::clone(&self.audit);
        let chosen = match tokio::task::spawn_blocking(move || audit.to_delete(now)).await {
            Ok(Ok(Some(chosen))) => chosen,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::error!(%error, "old audit segments are not deleted");
                return;
            }
        };
        let caller = Caller::system(&*self.entropy);
        let mut record = Record::begin(Action::DeleteAudit.name(), &caller, self.clock.now());
        record.number("through", chosen.through.seq);
        record.field("through_hash", hex::encode(chosen.through.hash));
        record.number("segments", chosen.segments);
        record.number("bytes", chosen.bytes);
        if let Some(second) = chosen.signed {
            record.number(SIGNED_UNTIL, u64::try_from(second).unwrap_or(0));
        }
        if self.audit.append(record.finish("ok", Duration::ZERO)).await.is_err() {
            return;
        }
        let audit = Arc::clone(&self.audit);
        match tokio::task::spawn_blocking(move || audit.delete(&chosen)).await {
            Ok(Ok(())) => tracing::info!(
                through = chosen.through.seq,
                segments = chosen.segments,
                "old audit segments were deleted"
            ),
            Ok(Err(error)) => tracing::warn!(%error, "old audit segments wait to be deleted"),
            Err(_) => {}
        }
    }
}
