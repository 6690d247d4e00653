//! What a plugin answered from its own memory, on its way into the audit log: nothing twice,
//! nothing lost.
//!
//! A plugin numbers its batches, and sends each until it is acknowledged. The number of the last
//! one that arrived is kept in the store; it changes in the transaction that holds the batch's
//! audit record, so that a batch is recorded exactly once, whatever breaks in between.

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId, SpoolId};
use serde::{Deserialize, Serialize};

use super::{Command, Done, Scope, dependants};
use crate::{
    Error, Principal, Timestamp,
    action::Action,
    audit::Record,
    barrier::{Expect, Stored, to_json},
    engine::Core,
    policy::Resource,
    records::Change,
};

/// Of how many spools of one plugin the end is remembered: each has one, until its disk is lost.
const MAX_SPOOLS: usize = 16;
/// At most so many of the apiserver's uids in one record.
const MAX_UIDS: usize = 64;
/// The longest uid; an apiserver's has 36 characters.
const MAX_UID: usize = 64;

/// Answers of one kind that a plugin gave from memory within a second or so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedAnswers {
    /// The protocol: `v2` or `v1beta1`.
    pub api: &'static str,
    /// The version that had made what was decrypted.
    pub key_version: KeyVersionId,
    /// How many there were.
    pub count: u64,
    /// When the first was given, by the plugin's clock.
    pub first: Timestamp,
    /// When the last was given.
    pub last: Timestamp,
    /// The apiserver's names of the calls, as far as they were kept.
    pub uids: Vec<String>,
}

/// Records one batch, unless it is recorded already. Answers with the number of the last batch
/// that is.
#[derive(Clone, Debug)]
pub struct DeliverPluginRecord {
    /// The cluster the plugin acts for.
    pub cluster: ClusterId,
    /// Which numbering.
    pub spool: SpoolId,
    /// The batch's number; the first is 1.
    pub sequence: u64,
    /// What was answered.
    pub answers: CachedAnswers,
}

/// How far one spool was delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Delivered {
    spool: SpoolId,
    sequence: u64,
}

impl Command for DeliverPluginRecord {
    const ACTION: Action = Action::PluginCachedDecrypt;
    type Output = u64;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::ClusterKey { key: None, cluster: self.cluster }
    }

    fn validate(&self) -> Result<(), Error> {
        let CachedAnswers { count, uids, first, last, .. } = &self.answers;
        if self.sequence == 0 || *count == 0 || first > last {
            return Err(Error::invalid("batches", "number from 1, and count what there was"));
        }
        if uids.len() > MAX_UIDS || uids.iter().any(|uid| uid.chars().count() > MAX_UID) {
            return Err(Error::invalid("uids", "give at most 64, of 64 characters each"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<u64>, Error> {
        if core.records.cluster(self.cluster).is_none() {
            return Err(Error::NotFound("cluster"));
        }
        let path = path_of(self.cluster, &scope.caller.principal);
        let old: Option<Stored<Vec<Delivered>>> = core.records.barrier.read_json(&path).await?;
        let mut spools = old.as_ref().map(|old| old.value.clone()).unwrap_or_default();
        let known = spools.iter().position(|known| known.spool == self.spool);
        let delivered = known.map(|at| spools.remove(at).sequence).unwrap_or_default();
        scope.record.field("spool", self.spool);
        scope.record.number("batch", self.sequence);
        if self.sequence <= delivered {
            // Its record is in the log; this one says that it came once more.
            scope.record.number("recorded_up_to", delivered);
            return Ok(Done::read(delivered));
        }
        let change = self.write(core, scope).await?;
        spools.insert(0, Delivered { spool: self.spool, sequence: self.sequence });
        spools.truncate(MAX_SPOOLS);
        let expect = old.as_ref().map_or(Expect::Absent, Stored::expect);
        let change = change.put(path, to_json(&spools)?, expect);
        Ok(Done::write(self.sequence, change))
    }
}

impl DeliverPluginRecord {
    /// Fills the record. Answers what has to be written besides, because something is there that was
    /// encrypted under the version.
    async fn write(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Change, Error> {
        let CachedAnswers { api, key_version, count, first, last, uids } = &self.answers;
        let mut change = Change::new();
        match core.records.version(*key_version).await {
            Ok(version) => {
                scope.used(version.key_id, Some(*key_version));
                if may_be_of(core, self.cluster, version.key_id) {
                    let key = core.records.key(version.key_id).await?;
                    let found = (*key_version, *last);
                    let mark = dependants::mark_found(core, &key, self.cluster, found);
                    change = mark.unwrap_or(change);
                }
            }
            // It may be destroyed by now.
            Err(Error::KeyVersionNotFound) => scope.record.field("key_version", key_version),
            Err(error) => return Err(error),
        }
        scope.record.field("api", api);
        scope.record.number("count", *count);
        scope.record.field("first", first);
        scope.record.field("last", last);
        if !uids.is_empty() {
            scope.record.field("uids", uids.join(" "));
        }
        Ok(change)
    }
}

/// Whether the cluster was given that key, and it is there: a plugin tells what it likes.
fn may_be_of(core: &Core, cluster: ClusterId, key: KeyId) -> bool {
    let granted =
        core.records.cluster(cluster).is_some_and(|known| known.value.keys.contains(&key));
    granted && core.records.key_exists(key)
}

/// Where it is remembered how far a plugin's spools were delivered.
fn path_of(cluster: ClusterId, principal: &Principal) -> String {
    let name = match principal {
        Principal::Plugin { name, .. } => &**name,
        Principal::Root { access_key_id } => &**access_key_id,
        Principal::Local { .. } | Principal::Kubelet { .. } | Principal::System => "",
    };
    format!("plugin-spool/{cluster}/{}/{name}", principal.kind())
}
