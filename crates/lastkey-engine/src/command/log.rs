//! Long work over the audit log, which somebody watches.

use std::sync::Arc;

use lastkey_crypto::signing::PublicKey;

use super::{Command, Done, Scope};
use crate::{
    Error,
    action::Action,
    audit::{Progress, Record, Verification},
    engine::Core,
    policy::Resource,
};

/// Recomputes the audit log's chain, while somebody watches how far it has come.
#[derive(Clone, Debug)]
pub struct WatchedVerifyAudit {
    /// What is counted up meanwhile.
    pub progress: Arc<Progress>,
}

impl Command for WatchedVerifyAudit {
    const ACTION: Action = Action::VerifyAudit;
    type Output = Verification;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Verification>, Error> {
        let (audit, known) = (core.audit.clone(), core.outbox.remembered());
        let progress = Arc::clone(&self.progress);
        tokio::task::spawn_blocking(move || audit.verify_watched(&known, &progress))
            .await
            .map_err(|_| Error::Internal)?
            .map(Done::read)
            .map_err(|error| Error::Unavailable(format!("the audit log cannot be read: {error}")))
    }
}

/// Reads the public key that audit checkpoints are verified with.
#[derive(Clone, Copy, Debug)]
pub struct ReadCheckpointKey;

impl Command for ReadCheckpointKey {
    const ACTION: Action = Action::ReadCheckpointKey;
    type Output = PublicKey;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<PublicKey>, Error> {
        let key = core.audit.checkpoint_key();
        key.map(Done::read)
            .ok_or_else(|| Error::Unavailable("this server signs no audit checkpoints".to_owned()))
    }
}
