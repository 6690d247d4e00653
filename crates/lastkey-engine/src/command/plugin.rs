//! What a KMS plugin asks: what its key is, and to encrypt and decrypt for its cluster.
//!
//! Every ciphertext is bound to cluster, lineage and epoch by its encryption context, which the
//! server builds; the cluster is the one that the caller's identity was granted.

use std::time::Duration;

use lastkey_crypto::{
    ClusterId, Epoch, KeyId, KeyVersionId, Lineage, SecretBytes, SpoolId, mac,
    plugin_blob::PluginKey,
};

use super::{
    Command, Done, Scope,
    crypto::{self, By},
    dependants,
};
use crate::{
    Caller, Error, Timestamp,
    action::Action,
    audit::Record,
    engine::Core,
    holders::Asks,
    key::{Key, KeyRef},
    policy::Resource,
    retirement::VersionState,
};

/// A superseded version is still encrypted under, by who pinned it before, for this long: an
/// apiserver that was told the old key id just before a rotation gets what it was told.
const PIN_GRACE: Duration = Duration::from_secs(60);
/// A plugin may go on for this long with what it was told last, at most and unless the server was
/// told otherwise.
pub(crate) const LEASE: Duration = Duration::from_secs(15 * 60);
/// The shortest: a plugin asks three times in each, and may be late.
pub(crate) const SHORTEST_LEASE: Duration = Duration::from_secs(30);
/// The longest wait for something new.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The most bytes a plugin may have encrypted: far more than any apiserver's key.
const MAX_PLAINTEXT: usize = 64 * 1024;

/// Why a key must not be used at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginRefusal {
    /// The error's code.
    pub code: &'static str,
    /// What it says.
    pub message: String,
}

/// What a plugin has to know of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginState {
    /// Changes whenever anything below but the time changes.
    pub token: String,
    /// Why the key must not be used; `None` while it may.
    pub refusal: Option<PluginRefusal>,
    /// The cluster that is bound to every ciphertext.
    pub cluster: ClusterId,
    /// The key.
    pub key_id: KeyId,
    /// Its lineage.
    pub lineage: Lineage,
    /// The version that encrypts.
    pub key_version: KeyVersionId,
    /// The epoch in which it does.
    pub epoch: Epoch,
    /// The key id as the apiserver shall see it.
    pub plugin_key_id: String,
    /// The server's clock.
    pub server_time: Timestamp,
    /// For how long the plugin may go by this answer.
    pub lease: Duration,
    /// The keys of which it may keep what it opened: the cluster's, as far as they can be used.
    pub usable: Vec<Lineage>,
    /// Changes whenever a version of these is retired, or that is taken back: what was opened before
    /// is to be forgotten then. Empty while none is retired.
    pub retired: String,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Answers with the state of a plugin's key: at once if it is not the one the plugin knows,
/// else as soon as something changes or the wait ends.
#[derive(Clone, Debug)]
pub struct PluginStatus {
    /// The cluster the plugin acts for.
    pub cluster: ClusterId,
    /// Its key.
    pub key: KeyRef,
    /// The token of the state it knows; empty if it knows none.
    pub known: String,
    /// How long to wait for another; at most a minute.
    pub wait: Duration,
    /// Tells processes apart that share an identity, and a restarted one from another.
    pub instance: Option<SpoolId>,
}

impl PluginStatus {
    pub(crate) fn asks<'a>(&'a self, caller: &'a Caller) -> Asks<'a> {
        let Self { cluster, key, known, instance, .. } = self;
        let (cluster, instance) = (*cluster, *instance);
        Asks { principal: &caller.principal, cluster, instance, key, known }
    }
}

impl Command for PluginStatus {
    const ACTION: Action = Action::PluginStatus;
    type Output = PluginState;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        cluster_resource(core, record, &self.key, self.cluster)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<PluginState>, Error> {
        let deadline = tokio::time::Instant::now() + self.wait.min(MAX_WAIT);
        let mut changes = core.records.changes();
        let asks = self.asks(scope.caller);
        let _waits = core.holders.waits(asks, &*core.clock);
        loop {
            changes.mark_unchanged();
            let id = core.require(&self.key)?;
            let resource = Resource::ClusterKey { key: Some(id), cluster: self.cluster };
            if !core.policy.allows(&scope.caller.principal, Self::ACTION, resource) {
                return Err(Error::Denied);
            }
            let state = plugin_state(core, id, self.cluster).await?;
            if !state.usable.is_empty() {
                let until = core.clock.now().after(core.holders.lease());
                core.holders.allowed(asks, (core.clock.running(), until));
            }
            let over = tokio::time::timeout_at(deadline, async {
                state.token == self.known && changes.changed().await.is_ok()
            });
            // Something changed while we waited: look again. Otherwise this is the answer.
            if !matches!(over.await, Ok(true)) {
                scope.used(id, Some(state.key_version));
                return Ok(Done::read(state));
            }
        }
    }
}

/// What a plugin of the cluster has to know of a key.
pub(crate) async fn plugin_state(
    core: &Core,
    id: KeyId,
    cluster: ClusterId,
) -> Result<PluginState, Error> {
    let key = core.records.key(id).await?;
    let usable = usable_keys(core, cluster, id).await?;
    let mut state = state_of(core, &key.value, cluster, usable)?;
    state.retired = retired_mark(core, cluster, id).await?;
    if !state.retired.is_empty() {
        let token = mac::sha256(&[state.token.as_bytes(), b" ", state.retired.as_bytes()]);
        state.token = hex::encode(&token[..16]);
    }
    Ok(state)
}

/// Names the retired versions of the cluster's keys, and of the one it asks about.
async fn retired_mark(core: &Core, cluster: ClusterId, asked: KeyId) -> Result<String, Error> {
    let granted = core.records.cluster(cluster).map(|known| known.value.keys.clone());
    let mut retired = Vec::new();
    for id in granted.into_iter().flatten().chain([asked]) {
        let key = match core.records.key(id).await {
            Err(Error::KeyNotFound) => continue,
            other => other?,
        };
        let of = key.value.retirements.iter();
        let of = of.filter(|(_, known)| known.state == VersionState::Retired);
        retired.extend(of.map(|(version, _)| *version.as_bytes()));
    }
    if retired.is_empty() {
        return Ok(String::new());
    }
    retired.sort_unstable();
    retired.dedup();
    Ok(hex::encode(&mac::sha256(&[retired.as_flattened()])[..16]))
}

/// The lineages of the cluster's keys, and of the one it asks about, that can be used now; sorted,
/// so that the same keys always make the same token.
async fn usable_keys(core: &Core, cluster: ClusterId, asked: KeyId) -> Result<Vec<Lineage>, Error> {
    let granted = core.records.cluster(cluster).map(|known| known.value.keys.clone());
    let mut ids = granted.unwrap_or_default();
    if !ids.contains(&asked) {
        ids.push(asked);
    }
    let mut usable = Vec::with_capacity(ids.len());
    for id in ids {
        match core.records.key(id).await {
            Ok(key) if key.value.state.usable().is_ok() => usable.push(key.value.lineage),
            Ok(_) | Err(Error::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    usable.sort_unstable();
    Ok(usable)
}

fn state_of(
    core: &Core,
    key: &Key,
    cluster: ClusterId,
    usable: Vec<Lineage>,
) -> Result<PluginState, Error> {
    if core.records.cluster(cluster).is_none() {
        return Err(Error::NotFound("cluster"));
    }
    let refusal = key
        .state
        .usable()
        .err()
        .map(|error| PluginRefusal { code: error.code(), message: error.to_string() });
    let plugin_key = plugin_key(key, cluster, key.primary.version, key.primary.epoch);
    let plugin_key_id = plugin_key.key_id();
    let refused = refusal.as_ref().map_or("", |refusal| refusal.code);
    let lineages: Vec<u8> = usable.iter().flat_map(|it| *it.as_bytes()).collect();
    let token = mac::sha256(&[plugin_key_id.as_bytes(), b" ", refused.as_bytes(), b" ", &lineages]);
    Ok(PluginState {
        token: hex::encode(&token[..16]),
        refusal,
        cluster,
        key_id: key.id,
        lineage: key.lineage,
        key_version: key.primary.version,
        epoch: key.primary.epoch,
        plugin_key_id,
        server_time: core.clock.now(),
        lease: core.holders.lease(),
        usable,
        retired: String::new(),
        warnings: Vec::new(),
    })
}

/// What was encrypted for a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginEncrypted {
    /// Everything its key id is made of.
    pub key: PluginKey,
    /// The ciphertext blob, in binary.
    pub blob: Vec<u8>,
    /// Whether it was opened again, for a caller who may decrypt it: so it need not ask for that.
    pub opened: bool,
}

/// Encrypts for a cluster.
pub struct PluginEncrypt {
    /// The cluster.
    pub cluster: ClusterId,
    /// The key.
    pub key: KeyRef,
    /// The version and epoch that the apiserver was told; `None` for the present ones.
    pub pin: Option<(KeyVersionId, Epoch)>,
    /// What to encrypt.
    pub plaintext: SecretBytes,
}

impl Command for PluginEncrypt {
    const ACTION: Action = Action::PluginEncrypt;
    type Output = PluginEncrypted;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        cluster_resource(core, record, &self.key, self.cluster)
    }

    fn validate(&self) -> Result<(), Error> {
        if self.plaintext.expose().len() > MAX_PLAINTEXT {
            return Err(Error::invalid("plaintext", "give at most 65536 bytes"));
        }
        Ok(())
    }

    async fn act(
        &self,
        core: &Core,
        scope: &mut Scope<'_>,
    ) -> Result<Done<PluginEncrypted>, Error> {
        // What is encrypted for a cluster that was forgotten meanwhile, nobody could decrypt.
        if core.records.cluster(self.cluster).is_none() {
            return Err(Error::NotFound("cluster"));
        }
        let stored = core.records.key(core.require(&self.key)?).await?;
        let key = &stored.value;
        let (version, epoch) = pinned(key, self.pin, core.clock.now())?;
        scope.used(key.id, Some(version));
        let plugin_key = plugin_key(key, self.cluster, version, epoch);
        let plaintext = self.plaintext.expose();
        let context = plugin_key.context();
        let blob = crypto::seal_under(core, scope, (key, version, By::Plugin), &context, plaintext)
            .await?;
        // What does not open must never be stored.
        crypto::check_opens(core, &blob, (&context, plaintext)).await?;
        let made_by = Resource::ClusterKey { key: Some(key.id), cluster: self.cluster };
        let opened = core.policy.allows(&scope.caller.principal, Action::PluginDecrypt, made_by);
        let made = PluginEncrypted { key: plugin_key, blob, opened };
        // Durable before the answer: from then on something may be stored under this version.
        Ok(match dependants::mark_use(core, &stored, self.cluster, version) {
            Some(change) => Done::write(made, change),
            None => Done::read(made),
        })
    }
}

/// The version and epoch to encrypt under: the pinned ones while they may still be used.
fn pinned(
    key: &Key,
    pin: Option<(KeyVersionId, Epoch)>,
    now: Timestamp,
) -> Result<(KeyVersionId, Epoch), Error> {
    let primary = (key.primary.version, key.primary.epoch);
    match (pin, &key.superseded) {
        (None, _) => Ok(primary),
        (Some(pin), _) if pin == primary => Ok(primary),
        (Some(pin), Some((before, until)))
            if pin == (before.version, before.epoch) && now.since(*until) < PIN_GRACE =>
        {
            Ok(pin)
        }
        (Some(_), _) => Err(Error::StaleKeyVersion),
    }
}

/// Decrypts for a cluster.
pub struct PluginDecrypt {
    /// The cluster.
    pub cluster: ClusterId,
    /// The key the plugin works with; the blob may be of another one that was granted.
    pub key: KeyRef,
    /// What the blob's envelope says of it.
    pub envelope: PluginKey,
    /// The ciphertext blob, in binary.
    pub blob: Vec<u8>,
}

impl Command for PluginDecrypt {
    const ACTION: Action = Action::PluginDecrypt;
    type Output = SecretBytes;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        cluster_resource(core, record, &self.key, self.cluster)
    }

    fn validate(&self) -> Result<(), Error> {
        // What another cluster made is not ours to open, whatever the caller may otherwise do.
        if self.envelope.cluster != self.cluster {
            return Err(Error::InvalidCiphertext);
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<SecretBytes>, Error> {
        let opened = crypto::open(core, scope, &self.blob, &self.envelope.context()).await?;
        if opened.key_version != self.envelope.key_version {
            return Err(Error::InvalidCiphertext);
        }
        // The key that made it decides, not the one that was named.
        let made_by = Resource::ClusterKey { key: Some(opened.key_id), cluster: self.cluster };
        if !core.policy.allows(&scope.caller.principal, Self::ACTION, made_by) {
            return Err(Error::Denied);
        }
        let key = core.records.key(opened.key_id).await?;
        let found = (opened.key_version, core.clock.now());
        let noted = (key.value.id, self.cluster, opened.key_version);
        Ok(match dependants::mark_found(core, &key, self.cluster, found) {
            Some(change) => Done::note(opened.plaintext, change, noted),
            None => Done::read(opened.plaintext),
        })
    }
}

fn plugin_key(key: &Key, cluster: ClusterId, key_version: KeyVersionId, epoch: Epoch) -> PluginKey {
    PluginKey { lineage: key.lineage, cluster, key_version, epoch }
}

fn cluster_resource(
    core: &Core,
    record: &mut Record,
    key: &KeyRef,
    cluster: ClusterId,
) -> Resource {
    record.field("cluster", cluster);
    let _ = core.key_resource(key, record);
    Resource::ClusterKey { key: core.resolve(key), cluster }
}
