//! What a restore drill found. Names of objects, never values.

use serde::Serialize;

use crate::etcd::SnapshotStatus;

/// The whole.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// Whether every object could be read.
    pub ok: bool,
    /// The same in a sentence.
    pub verdict: String,
    /// What was restored.
    pub snapshot: Snapshot,
    /// Beside what.
    pub state: State,
    /// How many objects the snapshot has.
    pub objects: u64,
    /// How many of them could be read.
    pub readable: u64,
    /// How many could not.
    pub unreadable: u64,
    /// Keys of the apiserver's own that are no objects, in clear, and objects of no resource that
    /// is served.
    pub not_objects: u64,
    /// By resource.
    pub resources: Vec<ResourceRow>,
    /// By what they rest under.
    pub under: Vec<UnderRow>,
    /// Versions that objects need and the backup does not have.
    pub missing_key_versions: Vec<MissingVersion>,
    /// Why objects cannot be read.
    pub reasons: Vec<ReasonRow>,
    /// Which; the first 10 000.
    pub unreadable_objects: Vec<Unreadable>,
    /// How many more there are.
    pub unreadable_not_named: u64,
    /// What has to be known beside it.
    pub remarks: Vec<String>,
    /// How long the drill took.
    pub seconds: u64,
}

/// The snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// As it was given.
    pub file: String,
    /// As etcdutl describes it.
    #[serde(flatten)]
    pub status: SnapshotStatus,
}

/// The backup of our state.
#[derive(Debug, Clone, Default, Serialize)]
pub struct State {
    /// As it was given.
    pub directory: String,
    /// How many bytes were copied.
    pub bytes: u64,
    /// The seal of its root key.
    pub seal: String,
    /// What unsealed the copy: the same is needed after a real restore.
    pub unsealed_by: String,
    /// How many clusters it knows.
    pub clusters: u64,
    /// How many versions its keys have, as far as they were looked at.
    pub key_versions: u64,
    /// When the newest of them was made.
    pub newest_key_version: Option<String>,
    /// Why a server would not serve from it before somebody accepts the restore.
    pub needs_acceptance: Option<String>,
}

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceRow {
    /// `secrets`, `widgets.example.org`.
    pub resource: String,
    /// How many objects.
    pub objects: u64,
    /// Of them readable.
    pub readable: u64,
    /// And not.
    pub unreadable: u64,
}

/// What objects rest under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnderRow {
    /// `clear`, `kms v2 lastkey`, `aescbc`.
    pub provider: String,
    /// The local key's name, or the alias or id of ours.
    pub key: Option<String>,
    /// Our key's version.
    pub key_version: Option<String>,
    /// When that was made, if the backup has it.
    pub created_at: Option<String>,
    /// The cluster it was encrypted for.
    pub cluster: Option<String>,
    /// How many objects.
    pub objects: u64,
    /// Of them readable.
    pub readable: u64,
    /// And not.
    pub unreadable: u64,
}

/// A version that the backup does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingVersion {
    /// Its id.
    pub key_version: String,
    /// The key it is of, where the backup has that.
    pub key: Option<String>,
    /// The cluster.
    pub cluster: String,
    /// How many objects need it.
    pub objects: u64,
}

/// Why objects cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonRow {
    /// The code.
    pub code: &'static str,
    /// In words.
    pub message: String,
    /// What to do.
    pub fix: &'static str,
    /// How many objects.
    pub objects: u64,
}

/// An object that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Of which resource.
    pub resource: String,
    /// Empty for what belongs to none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it rests under.
    pub provider: String,
    /// The local key, or the alias or id of ours.
    pub key: Option<String>,
    /// Our key's version.
    pub key_version: Option<String>,
    /// The code of the reason.
    pub reason: &'static str,
}
