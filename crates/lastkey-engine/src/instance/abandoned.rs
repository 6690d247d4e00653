//! Shares that nobody goes on with.
//!
//! K keepers are rarely at hand at the same minute, so shares wait for each other; but not for
//! ever: who steals the machine a week later must not find all but one of them in its memory.
//! Whatever was entered is dropped when no further share was taken for [`GIVEN_UP`], on a clock
//! that nobody can set and that counts suspend. A share that was refused is no progress.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Instance, Work};
use crate::{command::seal::ForgetShares, seal::Gathering};

/// So long shares wait for the next one.
pub const GIVEN_UP: Duration = Duration::from_secs(10 * 60);
/// How late they may go.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Work {
    /// What shares are being entered for, and how many were.
    fn waiting(&self) -> Option<(&'static str, usize)> {
        match &self.order {
            Some(begun) => Some((begun.order.name(), begun.gathering.held())),
            None => Some(("unseal", self.unsealing.held())).filter(|(_, shares)| *shares > 0),
        }
    }
}

impl Instance {
    /// Notes that another share was taken, or that an order was begun.
    pub(super) fn progressed(&self, work: &mut Work) {
        let Some(parts) = &self.inner.parts else { return };
        work.progress_at = parts.clock.running();
        if work.waiting().is_some() && !self.inner.watched.swap(true, Ordering::Relaxed) {
            self.watch();
        }
    }

    /// Looks after what waits until nothing does.
    fn watch(&self) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(inner) = inner.upgrade() else { return };
                let instance = Self { inner };
                let mut work = instance.work().await;
                instance.forget_abandoned(&mut work).await;
                if work.waiting().is_none() {
                    // Under the lock: who enters a share after this finds nobody who watches.
                    instance.inner.watched.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }

    /// Drops shares that have waited for too long.
    pub(super) async fn forget_abandoned(&self, work: &mut Work) {
        let Some(parts) = &self.inner.parts else { return };
        let Some((order, shares)) = work.waiting() else { return };
        if parts.clock.running().saturating_sub(work.progress_at) < GIVEN_UP {
            return;
        }
        work.unsealing = Gathering::default();
        work.order = None;
        tracing::warn!(order, shares, "nobody went on: the shares that were entered are forgotten");
        let counted = u64::try_from(shares).unwrap_or(u64::MAX);
        match self.engine() {
            Ok(engine) => {
                let record = ForgetShares { order, shares: counted };
                if let Err(error) = engine.execute(&engine.system_caller(), record).await {
                    tracing::error!(%error, "that shares were forgotten is not in the audit log");
                }
            }
            // There is no log while the server is sealed: the record of its unsealing tells.
            Err(_) => work.forgotten += counted,
        }
        if let Err(error) = self.show(work).await {
            tracing::error!(%error, "status is not up to date");
        }
    }
}
