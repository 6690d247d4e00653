//! The three calls of a Kubernetes plugin: watch its key, encrypt, decrypt.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use lastkey_crypto::{
    ClusterId, Epoch, KeyId, KeyVersionId, Lineage, SecretBytes, SpoolId, plugin_blob::PluginKey,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::LONG_POLL_GRACE;
use crate::{Client, Error, api::Reply, transport::Repeat};

/// A question of the plugin's watch.
#[derive(Debug, Clone, Copy)]
pub struct PluginStatusRequest<'a> {
    /// The key: an id or `alias/…`.
    pub key: &'a str,
    /// The cluster it is for; a plugin's certificate names it already.
    pub cluster: Option<ClusterId>,
    /// The token of the last answer, or nothing.
    pub known: &'a str,
    /// How long the server may hold the answer back while nothing changes, at most a minute. With
    /// none, whichever server answers first is heard.
    pub wait: Duration,
    /// Tells the server which of several processes asks, and that a restarted one is the same.
    pub instance: Option<SpoolId>,
}

/// What a plugin needs to know of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginStatus {
    /// Changes whenever anything below changes.
    pub token: String,
    /// Whether the key may be used.
    pub usable: bool,
    /// Why it may not.
    #[serde(default)]
    pub refusal: Option<Refusal>,
    /// The cluster the caller belongs to.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// The key that was asked for.
    #[serde(default)]
    pub key_id: Option<KeyId>,
    /// The key's lineage.
    #[serde(default)]
    pub lineage: Option<Lineage>,
    /// Its primary version.
    #[serde(default)]
    pub key_version: Option<KeyVersionId>,
    /// Drawn with the change that made that version primary.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// What the server computes as the key id for the apiserver; check it, don't use it.
    #[serde(default)]
    pub plugin_key_id: Option<String>,
    /// For how long what was opened may be kept without asking again.
    #[serde(default)]
    pub lease_seconds: u64,
    /// The keys of which what was opened may be kept; `None` from a server that names none.
    #[serde(default)]
    pub usable_lineages: Option<Vec<Lineage>>,
    /// Changes whenever a version of these is retired, or that is taken back.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub retired: String,
    /// For the log, never for healthz.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The server's clock, RFC 3339.
    #[serde(default)]
    pub server_time: String,
}

/// Why a key may not be used, in the words of the call that would fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Such as `Rejected.Disabled`.
    pub code: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// The four values a plugin's key id is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PluginGeneration {
    /// The key's lineage.
    pub lineage: Lineage,
    /// The cluster it encrypts for.
    pub cluster: ClusterId,
    /// The version that encrypts.
    pub key_version: KeyVersionId,
    /// Drawn with the change that made it primary.
    pub epoch: Epoch,
}

/// Ties an encryption to the generation that Status announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PluginPin {
    /// The version.
    pub key_version: KeyVersionId,
    /// Its epoch.
    pub epoch: Epoch,
}

/// Encrypts for an apiserver.
#[derive(Debug, Clone, Copy)]
pub struct PluginEncrypt<'a> {
    /// The key: an id or `alias/…`.
    pub key: &'a str,
    /// The cluster it is for; a plugin's certificate names it already.
    pub cluster: Option<ClusterId>,
    /// The generation to use; without it, the primary.
    pub pin: Option<PluginPin>,
    /// What to encrypt.
    pub plaintext: &'a [u8],
}

/// A ciphertext for an apiserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginEncrypted {
    /// What it was made with.
    #[serde(flatten)]
    pub generation: PluginGeneration,
    /// What the server computes as the key id for the apiserver; check it, don't use it.
    pub plugin_key_id: String,
    /// The ciphertext blob.
    #[serde(serialize_with = "write_base64", deserialize_with = "read_base64")]
    pub blob: Vec<u8>,
    /// Whether the server has opened it again, as it would for a Decrypt of this caller;
    /// older servers don't.
    #[serde(default)]
    pub opened: bool,
}

/// Decrypts for an apiserver.
#[derive(Debug, Clone, Copy)]
pub struct PluginDecrypt<'a> {
    /// The key: an id or `alias/…`.
    pub key: &'a str,
    /// What the ciphertext says it was made with.
    pub generation: PluginGeneration,
    /// The ciphertext blob.
    pub blob: &'a [u8],
}

impl PluginStatus {
    /// What encrypts, and its key id, if the answer names both and they fit; else what is wrong.
    ///
    /// # Errors
    /// Where something is missing, or the server computes another key id than we do.
    pub fn plugin_key(&self) -> Result<(PluginKey, String), &'static str> {
        let key = self.generation().ok_or("the server names no key version")?;
        let key = PluginKey::from(key);
        let key_id = key.key_id();
        match self.plugin_key_id.as_deref() == Some(&*key_id) {
            true => Ok((key, key_id)),
            false => Err("the server's key id is not that of its key version"),
        }
    }

    /// The generation that encrypts, if the answer names one completely.
    pub fn generation(&self) -> Option<PluginGeneration> {
        Some(PluginGeneration {
            lineage: self.lineage?,
            cluster: self.cluster?,
            key_version: self.key_version?,
            epoch: self.epoch?,
        })
    }
}

impl PluginGeneration {
    /// What ties an encryption to this generation.
    pub fn pin(&self) -> PluginPin {
        PluginPin { key_version: self.key_version, epoch: self.epoch }
    }
}

/// Answers of one kind that a plugin gave from memory within a second or so: a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedAnswers {
    /// Its number in its spool; the first is 1.
    pub sequence: u64,
    /// The protocol: `v2` or `v1beta1`.
    pub api: String,
    /// The version that had made what was decrypted.
    pub key_version: KeyVersionId,
    /// How many there were.
    pub count: u64,
    /// When the first was given: milliseconds since 1970.
    pub first_ms: i64,
    /// When the last was given.
    pub last_ms: i64,
    /// The apiserver's names of the calls; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<String>,
}

/// Batches on their way into the server's audit log.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PluginRecords<'a> {
    /// The cluster they belong to.
    pub cluster: ClusterId,
    /// Which numbering.
    pub spool: SpoolId,
    /// At most 64, in order.
    pub batches: &'a [CachedAnswers],
}

#[derive(Deserialize)]
struct Delivered {
    delivered: u64,
}

#[derive(Serialize)]
struct StatusJson<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterId>,
    known: &'a str,
    wait_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<SpoolId>,
}

#[derive(Serialize)]
struct EncryptJson<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterId>,
    #[serde(flatten)]
    pin: Option<PluginPin>,
    plaintext: Zeroizing<String>,
}

#[derive(Serialize)]
struct DecryptJson<'a> {
    key: &'a str,
    #[serde(flatten)]
    generation: PluginGeneration,
    blob: String,
}

/// What an apiserver encrypts has a kilobyte: many of these calls are under way at a time, so whoever
/// answers without end shall not fill the memory.
const MAX_ANSWER: usize = 64 << 10;
/// A lineage of each key of the cluster's is in it.
const MAX_STATUS: usize = 1 << 20;
/// For an answer that need not be waited for; as a plugin's other calls have.
const AT_ONCE: Duration = Duration::from_millis(2500);
/// How much longer than its waiting time a plugin's long poll may take at least: less than
/// [`LONG_POLL_GRACE`] where leases are short, so that none ends while a server says nothing.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Decrypted {
    plaintext: Zeroizing<String>,
}

impl Client {
    /// What the key's state is now, or as soon as it differs from the `known` one.
    ///
    /// # Errors
    /// Any failure of the one server that a long poll goes to, which is given up soon after its
    /// `wait`; ask again, without a wait. An answer that contradicts itself is [`Error::Garbage`].
    pub async fn plugin_status(
        &self,
        question: PluginStatusRequest<'_>,
    ) -> Result<PluginStatus, Error> {
        let PluginStatusRequest { key, cluster, known, wait, instance } = question;
        let json = StatusJson { key, cluster, known, wait_seconds: wait.as_secs(), instance };
        let request = self.request(Method::POST, "/v1/plugin/status").json(&json);
        let request = match wait.is_zero() {
            true => request.timeout(AT_ONCE).repeat(Repeat::Hedged),
            false => {
                let grace = (wait / 2).clamp(SHORTEST_GRACE, LONG_POLL_GRACE);
                request.timeout(wait + grace).repeat(Repeat::Once)
            }
        };
        request.limit(MAX_STATUS).read(read_status).await
    }

    /// Encrypts for an apiserver, within `timeout`.
    pub async fn plugin_encrypt(
        &self,
        call: PluginEncrypt<'_>,
        timeout: Duration,
    ) -> Result<PluginEncrypted, Error> {
        let plaintext = Zeroizing::new(BASE64.encode(call.plaintext));
        let json = EncryptJson { key: call.key, cluster: call.cluster, pin: call.pin, plaintext };
        let request = self.request(Method::POST, "/v1/plugin/encrypt").json(&json);
        request.timeout(timeout).limit(MAX_ANSWER).repeat(Repeat::Hedged).read(read_answer).await
    }

    /// Decrypts for an apiserver, within `timeout`.
    pub async fn plugin_decrypt(
        &self,
        call: PluginDecrypt<'_>,
        timeout: Duration,
    ) -> Result<SecretBytes, Error> {
        let blob = BASE64.encode(call.blob);
        let json = DecryptJson { key: call.key, generation: call.generation, blob };
        let request = self.request(Method::POST, "/v1/plugin/decrypt").json(&json);
        let request = request.timeout(timeout).limit(MAX_ANSWER).repeat(Repeat::Hedged);
        request.read(read_plaintext).await
    }
}

/// A refusal empties the plugin's memory, or ends a call for good, so it has to be one of ours.
fn read_answer<T: DeserializeOwned>(reply: Reply) -> Result<T, Error> {
    reply.accepted_by_ours()?.json()
}

/// Says of a key that may be used what encrypts.
fn read_status(reply: Reply) -> Result<PluginStatus, Error> {
    let server = reply.server.clone();
    let status: PluginStatus = read_answer(reply)?;
    match status.plugin_key() {
        Err(what) if status.usable => Err(Error::Garbage { server: server.to_string(), what }),
        _ => Ok(status),
    }
}

fn read_plaintext(reply: Reply) -> Result<SecretBytes, Error> {
    let server = reply.server.clone();
    let answer: Decrypted = read_answer(reply)?;
    match BASE64.decode(answer.plaintext.as_bytes()) {
        Ok(plaintext) => Ok(SecretBytes::new(plaintext)),
        Err(_) => {
            let server = server.to_string();
            Err(Error::Garbage { server, what: "the plaintext is not base64" })
        }
    }
}

/// For the fuzz target: a plaintext.
pub(super) fn parse_answer(reply: crate::api::Reply) -> bool {
    crate::fuzzing::outcome(reply.json::<Decrypted>())
}

/// Bounded, because each batch is a durable change of the server's.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(20);

impl Client {
    /// Has the server record what was answered from memory. Answers with the number of the last
    /// batch that is in its log; a batch that came before is not recorded twice.
    pub async fn plugin_records(&self, records: PluginRecords<'_>) -> Result<u64, Error> {
        let request = self.request(Method::POST, "/v1/plugin/records").json(&records);
        let answer: Delivered =
            request.timeout(RECORDS_TIMEOUT).repeat(Repeat::WhenBroken).read(read_answer).await?;
        Ok(answer.delivered)
    }
}

fn write_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes))
}

fn read_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    BASE64.decode(text.as_bytes()).map_err(|_| de::Error::custom("not base64"))
}

impl From<PluginGeneration> for PluginKey {
    fn from(it: PluginGeneration) -> Self {
        let PluginGeneration { lineage, cluster, key_version, epoch } = it;
        Self { lineage, cluster, key_version, epoch }
    }
}

impl From<PluginKey> for PluginGeneration {
    fn from(it: PluginKey) -> Self {
        let PluginKey { lineage, cluster, key_version, epoch } = it;
        Self { lineage, cluster, key_version, epoch }
    }
}
