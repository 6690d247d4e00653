//! What the Kubernetes plugin asks.
//!
//! The cluster is that of the caller's certificate, whatever the body says. Callers without one
//! (the account root, a local administrator) may name it.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_crypto::{
    ClusterId, Epoch, KeyId, KeyVersionId, Lineage, SecretBytes, SpoolId, plugin_blob::PluginKey,
};
use lastkey_engine::{
    Error, KeyRef, Principal, Timestamp,
    command::{
        AddCluster, CachedAnswers, DeliverPluginRecord, ListClusters, PluginDecrypt, PluginEncrypt,
        PluginState, PluginStatus,
    },
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Answer, Call, Refusal, json};

/// The cluster a call is for. An administrator who names none means the installation's first,
/// which is made if there is none yet: a plugin with root's credentials beside a bare server.
async fn cluster_of(
    call: &Call<'_>,
    named: Option<ClusterId>,
    key: &KeyRef,
) -> Result<ClusterId, Refusal> {
    if let Principal::Plugin { cluster, .. } = &call.caller.principal {
        return Ok(*cluster);
    }
    if let Some(named) = named {
        return Ok(named);
    }
    let known = call.execute(ListClusters).await?;
    if let Some(first) = known.iter().min_by_key(|cluster| cluster.created) {
        return Ok(first.id);
    }
    let first = AddCluster { name: None, keys: vec![key.clone()], plugin: None };
    Ok(call.execute(first).await?.cluster.id)
}

#[derive(Deserialize)]
struct StatusRequest {
    key: String,
    #[serde(default)]
    known: String,
    #[serde(default)]
    wait_seconds: u64,
    cluster: Option<ClusterId>,
    instance: Option<SpoolId>,
}

#[derive(Serialize)]
struct Status {
    token: String,
    usable: bool,
    refusal: Option<StatusRefusal>,
    cluster: ClusterId,
    key_id: KeyId,
    lineage: Lineage,
    key_version: KeyVersionId,
    epoch: Epoch,
    plugin_key_id: String,
    server_time: Timestamp,
    lease_seconds: u64,
    usable_lineages: Vec<Lineage>,
    /// Changes whenever a version of these is retired, or that is taken back.
    #[serde(skip_serializing_if = "String::is_empty")]
    retired: String,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct StatusRefusal {
    code: &'static str,
    message: String,
}

impl From<PluginState> for Status {
    fn from(state: PluginState) -> Self {
        Self {
            usable: state.refusal.is_none(),
            refusal: state
                .refusal
                .map(|refusal| StatusRefusal { code: refusal.code, message: refusal.message }),
            token: state.token,
            cluster: state.cluster,
            key_id: state.key_id,
            lineage: state.lineage,
            key_version: state.key_version,
            epoch: state.epoch,
            plugin_key_id: state.plugin_key_id,
            server_time: state.server_time,
            lease_seconds: state.lease.as_secs(),
            usable_lineages: state.usable,
            retired: state.retired,
            warnings: state.warnings,
        }
    }
}

pub(super) async fn status(call: &Call<'_>) -> Answer {
    let request: StatusRequest = call.read()?;
    let key = KeyRef::parse(&request.key)?;
    let command = PluginStatus {
        cluster: cluster_of(call, request.cluster, &key).await?,
        key,
        known: request.known,
        wait: Duration::from_secs(request.wait_seconds),
        instance: request.instance,
    };
    call.context.engine.heard_from(&call.caller, &command);
    tokio::select! {
        state = call.execute(command) => json(&Status::from(state?)),
        () = call.stopped() => Err(Error::Unavailable("the server is stopping".into()).into()),
    }
}

#[derive(Deserialize)]
struct EncryptRequest {
    key: String,
    key_version: Option<KeyVersionId>,
    epoch: Option<Epoch>,
    plaintext: Zeroizing<String>,
    cluster: Option<ClusterId>,
}

#[derive(Serialize)]
struct Encrypted {
    cluster: ClusterId,
    lineage: Lineage,
    key_version: KeyVersionId,
    epoch: Epoch,
    plugin_key_id: String,
    blob: String,
    opened: bool,
}

pub(super) async fn encrypt(call: &Call<'_>) -> Answer {
    let request: EncryptRequest = call.read()?;
    let pin = match (request.key_version, request.epoch) {
        (None, None) => None,
        (Some(version), Some(epoch)) => Some((version, epoch)),
        (None, Some(_)) => return Err(Error::MissingParameter("key_version").into()),
        (Some(_), None) => return Err(Error::MissingParameter("epoch").into()),
    };
    let key = KeyRef::parse(&request.key)?;
    let encrypted = call
        .execute(PluginEncrypt {
            cluster: cluster_of(call, request.cluster, &key).await?,
            key,
            pin,
            plaintext: SecretBytes::new(unbase64("plaintext", &request.plaintext)?),
        })
        .await?;
    let key = encrypted.key;
    json(&Encrypted {
        plugin_key_id: key.key_id(),
        cluster: key.cluster,
        lineage: key.lineage,
        key_version: key.key_version,
        epoch: key.epoch,
        blob: STANDARD.encode(&encrypted.blob),
        opened: encrypted.opened,
    })
}

#[derive(Deserialize)]
struct DecryptRequest {
    key: String,
    cluster: ClusterId,
    lineage: Lineage,
    key_version: KeyVersionId,
    epoch: Epoch,
    blob: String,
}

#[derive(Serialize)]
struct Decrypted {
    plaintext: Zeroizing<String>,
}

pub(super) async fn decrypt(call: &Call<'_>) -> Answer {
    let request: DecryptRequest = call.read()?;
    let DecryptRequest { cluster, lineage, key_version, epoch, .. } = request;
    let key = KeyRef::parse(&request.key)?;
    let plaintext = call
        .execute(PluginDecrypt {
            cluster: cluster_of(call, Some(cluster), &key).await?,
            key,
            envelope: PluginKey { lineage, cluster, key_version, epoch },
            blob: unbase64("blob", &request.blob)?,
        })
        .await?;
    json(&Decrypted { plaintext: Zeroizing::new(STANDARD.encode(plaintext.expose())) })
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<StatusRequest>(bytes);
    if let Ok(request) = serde_json::from_slice::<EncryptRequest>(bytes) {
        let _ = (KeyRef::parse(&request.key), unbase64("plaintext", &request.plaintext));
    }
    if let Ok(request) = serde_json::from_slice::<DecryptRequest>(bytes) {
        let _ = unbase64("blob", &request.blob);
    }
}

/// Batches in one request; each is a change of its own.
const MAX_BATCHES: usize = 64;

#[derive(Deserialize)]
struct RecordsRequest {
    cluster: ClusterId,
    spool: SpoolId,
    batches: Vec<Batch>,
}

#[derive(Deserialize)]
struct Batch {
    sequence: u64,
    api: String,
    key_version: KeyVersionId,
    count: u64,
    first_ms: i64,
    last_ms: i64,
    #[serde(default)]
    uids: Vec<String>,
}

#[derive(Serialize)]
struct Delivered {
    delivered: u64,
}

/// Takes what a plugin answered from memory into the audit log, batch by batch, in order.
pub(super) async fn records(call: &Call<'_>) -> Answer {
    let RecordsRequest { cluster, spool, batches } = call.read()?;
    if batches.is_empty() || batches.len() > MAX_BATCHES {
        return Err(Error::invalid("batches", "give 1 to 64").into());
    }
    let mut delivered = 0;
    for batch in batches {
        let (sequence, answers) = (batch.sequence, batch.answers()?);
        delivered = call.execute(DeliverPluginRecord { cluster, spool, sequence, answers }).await?;
    }
    json(&Delivered { delivered })
}

impl Batch {
    fn answers(self) -> Result<CachedAnswers, Error> {
        let Self { key_version, count, uids, .. } = self;
        let api = match &*self.api {
            "v2" => "v2",
            "v1beta1" => "v1beta1",
            _ => return Err(Error::invalid("api", "give v2 or v1beta1")),
        };
        let (first, last) =
            (Timestamp::from_millis(self.first_ms), Timestamp::from_millis(self.last_ms));
        Ok(CachedAnswers { api, key_version, count, first, last, uids })
    }
}

fn unbase64(name: &'static str, text: &str) -> Result<Vec<u8>, Refusal> {
    Ok(STANDARD.decode(text).map_err(|_| Error::invalid(name, "it is not base64"))?)
}
