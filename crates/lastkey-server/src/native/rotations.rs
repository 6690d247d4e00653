//! Rotations of clusters: `/v1/clusters/<id>/rotations`, and what workers and operators do to one.

use std::collections::BTreeMap;

use http::Method;
use lastkey_crypto::{ClusterId, KeyVersionId};
use lastkey_engine::{
    Course, Error, KeyRef, Label, Phase, Progress, Rotation, Timestamp,
    command::{
        CancelRotation, ClaimRotation, FinishRotation, Found, ListRotations, PauseRotation,
        RotationNow, SaveRotation, StartRotation, Which,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answer, Call, Refusal, Route, json};

/// What can be done to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Claim,
    Save,
    Pause,
    Cancel,
    Finish,
}

impl Step {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "claim" => Self::Claim,
            "save" => Self::Save,
            "pause" => Self::Pause,
            "cancel" => Self::Cancel,
            "finish" => Self::Finish,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Claim => "ClaimRotation",
            Self::Save => "SaveRotation",
            Self::Pause => "PauseRotation",
            Self::Cancel => "CancelRotation",
            Self::Finish => "FinishRotation",
        }
    }
}

/// The route in `/v1/clusters/<id>/rotations…`, if it is one of these.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    let (_, rest) = parts(path)?;
    let route = match (rest, method) {
        ("", &Method::GET) => Ok(Route::ListRotations),
        ("", &Method::POST) => Ok(Route::StartRotation),
        ("", _) => Err(Refusal::WrongMethod),
        (rest, method) => {
            let step = Step::parse(rest.strip_prefix('/')?.split_once('/')?.1)?;
            let allowed = *method == Method::POST;
            allowed.then_some(Route::StepRotation(step)).ok_or(Refusal::WrongMethod)
        }
    };
    Some(route)
}

/// The cluster and the rest in `/v1/clusters/<id>/rotations<rest>`.
fn parts(path: &str) -> Option<(&str, &str)> {
    let (cluster, rest) = path.strip_prefix("/v1/clusters/")?.split_once("/rotations")?;
    let whole = rest.is_empty() || rest.starts_with('/');
    (whole && !cluster.contains('/')).then_some((cluster, rest))
}

fn cluster_of(path: &str) -> Result<ClusterId, Refusal> {
    let id = parts(path).and_then(|(cluster, _)| cluster.parse().ok());
    Ok(id.ok_or(Error::NotFound("cluster"))?)
}

fn which(path: &str) -> Result<Which, Refusal> {
    let id = parts(path).and_then(|(_, rest)| rest.strip_prefix('/')?.split_once('/'));
    let (id, _) = id.ok_or(Refusal::NoSuchPath)?;
    Ok(Which { cluster: cluster_of(path)?, id: Label::parse(id)? })
}

#[derive(Serialize)]
struct Items {
    items: Vec<Rotation>,
    next: Option<u64>,
}

pub(super) async fn list(call: &Call<'_>, path: &str) -> Answer {
    let items = call.execute(ListRotations { cluster: cluster_of(path)? }).await?;
    json(&Items { items, next: None })
}

#[derive(Serialize)]
struct Now {
    #[serde(flatten)]
    rotation: Rotation,
    primary: KeyVersionId,
    plugin_key_id: String,
    /// The server's clock: leases are by it.
    now: Timestamp,
}

fn shown(call: &Call<'_>, now: RotationNow) -> Answer {
    let RotationNow { rotation, primary, key_id } = now;
    let now = call.context.engine.clock().now();
    json(&Now { rotation, primary, plugin_key_id: key_id, now })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    key: Option<String>,
    #[serde(default)]
    keep_version: bool,
    namespace: Option<String>,
    course: Option<Course>,
    #[serde(default)]
    retire: bool,
    #[serde(default)]
    automatic: bool,
}

pub(super) async fn start(call: &Call<'_>, path: &str) -> Answer {
    let Start { key, keep_version, namespace, course, retire, automatic } = call.read()?;
    let key = key.as_deref().map(KeyRef::parse).transpose()?;
    let cluster = cluster_of(path)?;
    let start = StartRotation { cluster, key, keep_version, namespace, course, retire, automatic };
    let begun = call.execute(start).await?;
    shown(call, begun)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    holder: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Save {
    fence: u64,
    phase: Phase,
    state: Value,
    #[serde(default)]
    release: bool,
    progress: Option<Progress>,
    problem: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    paused: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Finish {
    fence: u64,
    content: Value,
    found: Option<FoundJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FoundJson {
    began: Timestamp,
    versions: BTreeMap<KeyVersionId, u64>,
}

pub(super) async fn step(call: &Call<'_>, (step, path): (Step, &str)) -> Answer {
    let which = which(path)?;
    let now = match step {
        Step::Claim => {
            let Claim { holder } = call.read()?;
            call.execute(ClaimRotation { which, holder }).await?
        }
        Step::Save => {
            let Save { fence, phase, state, release, progress, problem } = call.read()?;
            let save = SaveRotation { which, fence, phase, state, release, progress, problem };
            call.execute(save).await?
        }
        Step::Pause => {
            let Pause { paused } = call.read()?;
            call.execute(PauseRotation { which, paused }).await?
        }
        Step::Cancel => call.execute(CancelRotation { which }).await?,
        Step::Finish => {
            let Finish { fence, content, found } = call.read()?;
            let found = found.map(|FoundJson { began, versions }| Found { began, versions });
            call.execute(FinishRotation { which, fence, content, found }).await?
        }
    };
    shown(call, now)
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ =
        serde_json::from_slice::<Start>(bytes).map(|start| start.key.map(|k| KeyRef::parse(&k)));
    let _ = serde_json::from_slice::<Claim>(bytes);
    let _ = serde_json::from_slice::<Save>(bytes);
    let _ = serde_json::from_slice::<Finish>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let found = |method, path| match route(&method, path) {
            Some(Ok(Route::StepRotation(step))) => step.name(),
            Some(Ok(route)) => route.name(),
            Some(Err(_)) => "refused",
            None => "none",
        };
        assert_eq!(found(Method::GET, "/v1/clusters/c/rotations"), "ListRotations");
        assert_eq!(found(Method::POST, "/v1/clusters/c/rotations"), "StartRotation");
        assert_eq!(found(Method::DELETE, "/v1/clusters/c/rotations"), "refused");
        assert_eq!(found(Method::POST, "/v1/clusters/c/rotations/r/claim"), "ClaimRotation");
        assert_eq!(found(Method::GET, "/v1/clusters/c/rotations/r/claim"), "refused");
        assert_eq!(found(Method::POST, "/v1/clusters/c/rotations/r/other"), "none");
        assert_eq!(found(Method::POST, "/v1/clusters/c/plugins"), "none");
        assert_eq!(found(Method::GET, "/v1/clusters/c/rotationsx"), "none");
    }
}
