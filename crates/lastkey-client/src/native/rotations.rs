//! Rotations of clusters: what is stored of one, and what a worker tells.

use std::collections::BTreeMap;

use http::Method;
use lastkey_crypto::{ClusterId, KeyId, KeyVersionId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Client, Error};

/// Where a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationPhase {
    /// Another provider is made readable for every apiserver.
    Preparing,
    /// It is made the one that writes.
    Switching,
    /// Not every apiserver uses the version yet.
    Converging,
    /// Objects are written back.
    Rewriting,
    /// It is looked whether any is left.
    Verifying,
    /// Providers that nothing is under any more are taken out.
    Removing,
    /// It is over, and there is a report.
    Finished,
    /// It was given up.
    Cancelled,
}

/// Which way a cluster's objects go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Under the cluster's key.
    Enable,
    /// Away from it.
    Disable,
}

/// A change of the provider by which a cluster's objects are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Which way.
    pub way: Way,
    /// What exactly is wanted; the worker's own.
    pub goal: Value,
}

/// Who works on it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RotationLease {
    /// What they call themselves.
    pub holder: String,
    /// Until when (RFC 3339).
    pub until: String,
}

/// How far a rotation has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RotationProgress {
    /// Objects that were looked at in the pass under way.
    pub done: u64,
    /// As many as there are, as far as that is known.
    pub total: u64,
    /// Written anew, in all passes.
    pub rewritten: u64,
    /// Deleted meanwhile, in all passes.
    pub gone: u64,
    /// Written by somebody else first, in all passes.
    pub conflicts: u64,
    /// Refused, in the pass under way.
    pub refused: u64,
}

/// Why a rotation does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RotationProblem {
    /// Since when (RFC 3339).
    pub at: String,
    /// In the worker's words.
    pub why: String,
    /// How often in a row.
    #[serde(default)]
    pub attempts: u32,
}

/// A rotation as the server keeps it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Rotation {
    /// Its id.
    pub id: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The key.
    pub key: KeyId,
    /// The version that everything shall be under.
    pub target: KeyVersionId,
    /// Only this namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// What it changes besides; nothing for a mere rotation.
    #[serde(default)]
    pub course: Option<Course>,
    /// Where it is.
    pub phase: RotationPhase,
    /// Whether to rest.
    #[serde(default)]
    pub paused: bool,
    /// Whether the server began it by itself.
    #[serde(default)]
    pub automatic: bool,
    /// Whether the older versions are retired after it.
    #[serde(default)]
    pub retire: bool,
    /// How far it has come.
    #[serde(default)]
    pub progress: Option<RotationProgress>,
    /// Why it does not go on.
    #[serde(default)]
    pub problem: Option<RotationProblem>,
    /// The newest claim.
    #[serde(default)]
    pub fence: u64,
    /// Who works on it.
    #[serde(default)]
    pub lease: Option<RotationLease>,
    /// The worker's own.
    #[serde(default)]
    pub state: Value,
    /// When it began (RFC 3339).
    pub started: String,
    /// The last step (RFC 3339).
    pub updated: String,
    /// The report's line.
    #[serde(default)]
    pub report: Option<String>,
    /// The version that is primary now; only in answers about one rotation.
    #[serde(default)]
    pub primary: Option<KeyVersionId>,
    /// The key id that apiservers are told of it.
    #[serde(default)]
    pub plugin_key_id: String,
    /// The server's clock (RFC 3339).
    #[serde(default)]
    pub now: String,
}

impl Rotation {
    /// Which way it goes, if it changes the provider.
    pub fn way(&self) -> Option<Way> {
        self.course.as_ref().map(|course| course.way)
    }

    /// Whether nothing follows.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, RotationPhase::Finished | RotationPhase::Cancelled)
    }
}

/// Begins one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StartRotation {
    /// The key, where the cluster has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Bring everything under the present version.
    pub keep_version: bool,
    /// Only this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What it changes besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub course: Option<Course>,
    /// Have the older versions retired after it, once nothing needs them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retire: bool,
    /// The server begins it by itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
}

/// A step of a worker.
#[derive(Debug, Clone, Serialize)]
pub struct SaveRotation {
    /// Under which claim.
    pub fence: u64,
    /// Where it is.
    pub phase: RotationPhase,
    /// The worker's own.
    pub state: Value,
    /// Whether it stops here.
    pub release: bool,
    /// How far that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<RotationProgress>,
    /// Why it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The end.
#[derive(Debug, Clone, Serialize)]
pub struct FinishRotation {
    /// Under which claim.
    pub fence: u64,
    /// The report.
    pub content: Value,
    /// What is in the cluster now.
    pub found: Option<FoundObjects>,
}

/// What a cluster's objects are under.
#[derive(Debug, Clone, Serialize)]
pub struct FoundObjects {
    /// When the look began (RFC 3339).
    pub began: String,
    /// How many objects under each version.
    pub versions: BTreeMap<KeyVersionId, u64>,
}

impl Client {
    /// The rotations of a cluster, oldest first.
    pub async fn rotations(&self, of: ClusterId) -> Result<Vec<Rotation>, Error> {
        #[derive(Deserialize)]
        struct Items {
            items: Vec<Rotation>,
        }
        let request = self.request(Method::GET, format!("/v1/clusters/{of}/rotations"));
        Ok(request.answer::<Items>().await?.items)
    }

    /// Begins a rotation.
    pub async fn start_rotation(
        &self,
        of: ClusterId,
        start: &StartRotation,
    ) -> Result<Rotation, Error> {
        let request = self.request(Method::POST, format!("/v1/clusters/{of}/rotations"));
        request.json(start).answer().await
    }

    /// Claims one for this worker.
    pub async fn claim_rotation(&self, which: &Rotation, holder: &str) -> Result<Rotation, Error> {
        self.rotation(which, "claim", &json!({ "holder": holder })).await
    }

    /// Saves how far it has come, and renews the claim.
    pub async fn save_rotation(
        &self,
        which: &Rotation,
        save: &SaveRotation,
    ) -> Result<Rotation, Error> {
        self.rotation(which, "save", save).await
    }

    /// Has it rest, or go on.
    pub async fn pause_rotation(&self, which: &Rotation, paused: bool) -> Result<Rotation, Error> {
        self.rotation(which, "pause", &json!({ "paused": paused })).await
    }

    /// Gives it up.
    pub async fn cancel_rotation(&self, which: &Rotation) -> Result<Rotation, Error> {
        self.rotation(which, "cancel", &json!({})).await
    }

    /// Ends it with its report.
    pub async fn finish_rotation(
        &self,
        which: &Rotation,
        finish: &FinishRotation,
    ) -> Result<Rotation, Error> {
        self.rotation(which, "finish", finish).await
    }

    async fn rotation(
        &self,
        which: &Rotation,
        step: &str,
        body: &impl Serialize,
    ) -> Result<Rotation, Error> {
        let path = format!("/v1/clusters/{}/rotations/{}/{step}", which.cluster, which.id);
        self.request(Method::POST, path).json(body).answer().await
    }
}
