//! What the server keeps of a cluster's rotation, for `cluster status`.

use lastkey_client::{
    Client,
    native::{Rotation, RotationPhase},
};
use serde_json::{Value, json};

use super::access::Known;
use crate::output::Failure;

/// The rotation that is under way, else the newest one, as far as there is one.
pub(super) async fn of(client: &Client, cluster: &Known) -> Result<Value, Failure> {
    let known = client.rotations(cluster.id).await?;
    let active = known.iter().rev().find(|one| !one.is_over());
    Ok(active.or(known.last()).map_or(Value::Null, shown))
}

fn shown(rotation: &Rotation) -> Value {
    json!({
        "id": rotation.id,
        "way": rotation.way(),
        "phase": rotation.phase,
        "paused": rotation.paused,
        "automatic": rotation.automatic,
        "key_version_id": rotation.target,
        "started": rotation.started,
        "updated": rotation.updated,
        "holder": rotation.lease.as_ref().map(|lease| &lease.holder),
        "progress": rotation.progress,
        "problem": rotation.problem.as_ref().map(|problem| json!({
            "at": problem.at, "why": problem.why, "attempts": problem.attempts,
        })),
        "over": rotation.is_over(),
        "cancelled": rotation.phase == RotationPhase::Cancelled,
    })
}

/// The same in a line or two; nothing of one that is over.
pub(super) fn lines(rotation: &Value, automatic: bool) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = Vec::new();
    if automatic {
        lines.push("the server rotates it by itself".to_owned());
    }
    if rotation.is_null() || rotation["over"] == true {
        return lines;
    }
    let progress = &rotation["progress"];
    let count = |name: &str| progress[name].as_u64().unwrap_or(0);
    let rests = if rotation["paused"] == true { ", at rest" } else { "" };
    let who = match rotation["holder"].as_str() {
        Some(holder) => format!(", worked on by {holder}"),
        None => ", worked on by nobody".to_owned(),
    };
    let what = rotation["way"].as_str().unwrap_or("rotation");
    lines.push(format!(
        "{what}: {}{rests}, {} of {} objects, {} written anew, {} refused{who}, since {}",
        text(&rotation["phase"]),
        count("done"),
        count("total"),
        count("rewritten"),
        count("refused"),
        text(&rotation["started"]),
    ));
    let problem = &rotation["problem"];
    if !problem.is_null() {
        lines.push(format!(
            "note: at {} it stopped: {} ({} times in a row)",
            text(&problem["at"]),
            text(&problem["why"]),
            problem["attempts"],
        ));
    }
    lines
}
