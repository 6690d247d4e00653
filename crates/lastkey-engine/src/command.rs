//! Commands: everything that can be asked of the engine, and the one function they pass through.

mod aliases;
mod cluster_access;
mod cluster_end;
mod clusters;
mod crypto;
mod dependants;
mod detached;
mod guard;
mod identities;
mod keyring;
mod keys;
mod log;
mod nodes;
mod plugin;
mod plugin_records;
mod retire;
mod rotation;
mod rotations;
pub(crate) mod seal;
mod second_person;
mod service;
mod tags;

use std::{future::Future, sync::Arc, time::Duration};

pub use aliases::{
    AliasEntry, CreateAlias, DeleteAlias, ListAliases, ListAliasesByKeyId, UpdateAlias,
};
pub use cluster_access::{GetClusterAccess, PutClusterAccess};
pub use cluster_end::{ConfigureCluster, ForgetCluster, RemoveClusterAccess};
pub use clusters::{AddCluster, AddPlugin, AddedCluster, ListClusters, PluginRequest};
pub use crypto::{
    DataKey, Decrypt, Decrypted, Encoding, Encrypt, Encrypted, GenerateDataKey,
    GenerateDataKeyWithoutPlaintext, MAX_DATA_KEY, MAX_PLAINTEXT, ReEncrypt, data_key_length,
};
pub use dependants::{DescribeImpact, Impact, ListDependants, PutDependant, RemoveDependant};
pub use guard::{DisableKey, Override, ScheduleKeyDeletion};
pub use identities::{ConfirmPlugin, RenewPlugin};
pub(crate) use keyring::DropKeyringKeys;
pub use keyring::RotateKeyring;
pub use keys::{
    CancelKeyDeletion, CreateKey, DescribeKey, EnableKey, KeyFilter, ListKeys,
    SetDeletionProtection, UpdateKeyDescription,
};
pub use log::{ReadCheckpointKey, WatchedVerifyAudit};
pub use nodes::{
    AddClusterOnTerms, ApproveNode, Approved, EnrolNode, Enrolment, ListNodes, NodeTerms,
    Revocation, RevokeNode, TrustNodes,
};
pub(crate) use nodes::{SUM_UP_EVERY, VainRequests};
pub(crate) use plugin::{LEASE as PLUGIN_LEASE, SHORTEST_LEASE, plugin_state};
pub use plugin::{
    PluginDecrypt, PluginEncrypt, PluginEncrypted, PluginRefusal, PluginState, PluginStatus,
};
pub use plugin_records::{CachedAnswers, DeliverPluginRecord};
pub use retire::{ReinstateKeyVersion, RetireKeyVersion, Retiring};
pub(crate) use rotation::RotateDueKey;
pub use rotation::{CreateKeyVersion, DescribeKeyVersion, ListKeyVersions, UpdateRotationPolicy};
pub use rotations::{
    CancelRotation, ClaimRotation, FinishRotation, Found, ListRotations, PauseRotation,
    RotationNow, SaveRotation, StartRotation, Which,
};
pub use second_person::{
    ConfirmOverride, Confirmed, DescribeGuard, GuardState, RejectOverride, SetSecondPerson,
};
pub use service::{
    CreateAccessKey, DescribeService, QueryAudit, ReadCertificate, RenewCertificate, ServiceStatus,
    VerifyAudit, WriteSealed,
};
pub(crate) use service::{RedrawEpochs, sealed_path};
pub use tags::{
    ListResourceTags, ListTagResources, MAX_RESOURCES, TagResource, TagResources, TaggedKey,
    UntagResource, UntagResources, UntagWhich,
};

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId};

use self::detached::Detached;
use crate::{
    Caller, Error,
    action::Action,
    audit::Record,
    caller::RequestId,
    engine::Core,
    key::KeyRef,
    outbox::Parcel,
    policy::Resource,
    records::{Change, Conflict},
};

/// A lost race is run again at most this often, the second time after a millisecond, and each time
/// a millisecond later: whoever has won it may not have told the indexes yet.
const MAX_ATTEMPTS: u64 = 32;

/// What a command comes to.
pub struct Done<T> {
    /// What is answered; or why it was refused, once the change is durable.
    output: Result<T, Error>,
    change: Option<Change>,
    /// What the change notes, if the answer does not depend on it.
    noting: Option<Unnoted>,
}

/// A cluster's plugin has opened what was encrypted under that version of a key.
pub(crate) type Unnoted = (KeyId, ClusterId, KeyVersionId);

impl<T> Done<T> {
    /// Nothing to write.
    pub(crate) fn read(output: T) -> Self {
        Self { output: Ok(output), change: None, noting: None }
    }

    /// To be answered once this change is durable.
    pub(crate) fn write(output: T, change: Change) -> Self {
        Self { output: Ok(output), change: Some(change), noting: None }
    }

    /// To be answered once this change, which notes what was `found`, is durable or cannot be made:
    /// what is read has to be there when nothing can be written. Then it is noted later.
    pub(crate) fn note(output: T, change: Change, found: Unnoted) -> Self {
        Self { output: Ok(output), change: Some(change), noting: Some(found) }
    }

    /// To be refused once this change is durable.
    pub(crate) fn refuse(error: Error, change: Change) -> Self {
        Self { output: Err(error), change: Some(change), noting: None }
    }
}

/// What became of a command that was not refused before it did anything.
enum Settled<T> {
    /// Nothing was written; its record has yet to be.
    Read(T),
    /// What it wrote is durable, and its record with it.
    Committed(Result<T, Error>),
}

/// Something that can be asked of the engine.
///
/// A command says what it touches, checks what it was given, and acts; authorisation, durability
/// and audit are [`Core::execute`]'s, the same for all.
pub trait Command: Send + Sync {
    /// What it does.
    const ACTION: Action;
    /// What it answers with.
    type Output: Send;

    /// What it touches, for the decision and the record. Reads indexes only.
    #[doc(hidden)]
    fn resource(&self, core: &Core, record: &mut Record) -> Resource;

    /// Whether what it was given is allowed at all.
    ///
    /// # Errors
    /// The reason why not.
    #[doc(hidden)]
    fn validate(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Does it, or says what has to be written for it to be done. May be called again when a
    /// change lost a race.
    ///
    /// # Errors
    /// The reason why not.
    #[doc(hidden)]
    fn act(
        &self,
        core: &Core,
        scope: &mut Scope<'_>,
    ) -> impl Future<Output = Result<Done<Self::Output>, Error>> + Send;
}

/// What a running command may know of its caller, and where it notes what it found.
pub struct Scope<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) record: &'a mut Record,
    noted: bool,
}

impl Scope<'_> {
    /// Notes which key and version were used, once.
    pub(crate) fn used(&mut self, key: KeyId, version: Option<lastkey_crypto::KeyVersionId>) {
        if std::mem::replace(&mut self.noted, true) {
            return;
        }
        self.record.field("key", key);
        if let Some(version) = version {
            self.record.field("key_version", version);
        }
    }
}

impl Core {
    /// The one door: authorise → validate → act → audit → answer.
    pub(crate) async fn execute<C: Command>(
        self: &Arc<Self>,
        caller: &Caller,
        command: C,
    ) -> Result<C::Output, Error> {
        let started = self.clock.running();
        let mut record = Record::begin(C::ACTION.name(), caller, self.clock.now());
        let outcome = self.decide_and_act(caller, &command, &mut record, started).await;
        match outcome {
            // A change is committed with its record; the log has it already.
            Ok(Settled::Committed(output)) => output,
            Ok(Settled::Read(output)) => {
                let latency = self.clock.running().saturating_sub(started);
                self.record_end(caller, record, ("ok", latency)).await?;
                Ok(output)
            }
            Err(error) => {
                let latency = self.clock.running().saturating_sub(started);
                if let Error::Internal | Error::CorruptRecord { .. } = error {
                    tracing::error!(request_id = %caller.request_id, %error, "a command failed");
                }
                let recorded = self.record_end(caller, record, (error.code(), latency)).await;
                match (recorded, &error) {
                    // Its own record comes later; nobody may be told that nothing was done.
                    (_, Error::Uncertain(_)) | (Ok(_), _) => Err(error),
                    (Err(refused), _) => Err(refused),
                }
            }
        }
    }

    /// Authorises, validates and acts.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    async fn decide_and_act<C: Command>(
        self: &Arc<Self>,
        caller: &Caller,
        command: &C,
        record: &mut Record,
        started: Duration,
    ) -> Result<Settled<C::Output>, Error> {
        let resource = command.resource(self, record);
        if !self.policy.allows(&caller.principal, C::ACTION, resource) {
            return Err(Error::Denied);
        }
        command.validate()?;
        // Nothing is served from a store that somebody else has changed, not from caches either.
        self.records.barrier.trust()?;
        let mark = record.mark();
        for attempt in 0..MAX_ATTEMPTS {
            record.back_to(mark);
            let mut scope = Scope { caller, record, noted: false };
            let done = command.act(self, &mut scope).await?;
            if caller.dry_run {
                return Err(Error::DryRun);
            }
            let Some(change) = done.change else { return Ok(Settled::Read(done.output?)) };
            let latency = self.clock.running().saturating_sub(started);
            let mut changed = record.clone();
            // Tells the next start which records have to be known to the store.
            changed.number("writes", change.len() as u64);
            let outcome = done.output.as_ref().err().map_or("ok", Error::code);
            let body = changed.finish(outcome, latency);
            // A caller who hangs up must not leave half of it done.
            let (core, request) = (Arc::clone(self), caller.request_id);
            let committed = Detached::new(async move { core.commit(request, change, body).await });
            match committed.await.ok_or(Error::Internal)? {
                Ok(Ok(())) => return Ok(Settled::Committed(done.output)),
                Ok(Err(Conflict)) => tokio::time::sleep(Duration::from_millis(attempt)).await,
                Err(error) => {
                    use Error::{StorageFull, Unavailable, Uncertain};
                    let (Some(found), StorageFull | Unavailable(_) | Uncertain(_)) =
                        (done.noting, &error)
                    else {
                        return Err(error);
                    };
                    self.records.barrier.trust()?;
                    self.note_later(found, &error);
                    return Ok(Settled::Read(done.output?));
                }
            }
        }
        Err(Error::Busy)
    }

    /// Commits a change with its audit record in one transaction, then brings the record into the
    /// log before anything is answered.
    async fn commit(
        &self,
        request: RequestId,
        change: Change,
        body: Vec<u8>,
    ) -> Result<Result<(), Conflict>, Error> {
        // A log that cannot be written must not collect changes that are not in it.
        self.audit.health()?;
        self.outbox.begin(request, &self.records.barrier, &*self.audit).await?;
        let parcel = Parcel::new(request, body.clone(), self.audit.head());
        match self.records.commit(change, Some(&parcel)).await {
            Ok(Ok(())) => {}
            Ok(Err(conflict)) => {
                self.outbox.end(request);
                return Ok(Err(conflict));
            }
            Err(error) => {
                match error {
                    Error::Uncertain(_) => self.outbox.doubt(parcel),
                    _ => self.outbox.end(request),
                }
                return Err(error);
            }
        }
        match self.audit.append(body).await {
            Ok(_) => {
                self.outbox.delivered(parcel);
                Ok(Ok(()))
            }
            Err(error) => {
                // It was made, and nobody may be told that it was not.
                self.outbox.owe(parcel);
                Err(Error::Uncertain(error.to_string()))
            }
        }
    }

    /// The key a caller named, if it exists; for decisions.
    pub(crate) fn resolve(&self, key: &KeyRef) -> Option<KeyId> {
        match key {
            KeyRef::Id(id) => self.records.key_exists(*id).then_some(*id),
            KeyRef::Alias(name) => self.records.alias_target(name),
        }
    }

    /// The key a caller named, or the error that says it does not exist.
    pub(crate) fn require(&self, key: &KeyRef) -> Result<KeyId, Error> {
        self.resolve(key).ok_or(match key {
            KeyRef::Id(_) => Error::KeyNotFound,
            KeyRef::Alias(_) => Error::AliasNotFound,
        })
    }

    /// The resource of a command on one key. Notes an alias as the record's target.
    pub(crate) fn key_resource(&self, key: &KeyRef, record: &mut Record) -> Resource {
        match key {
            KeyRef::Id(id) => record.field("target", format_args!("key/{id}")),
            KeyRef::Alias(name) => record.field("target", name),
        }
        Resource::Key(self.resolve(key))
    }
}
