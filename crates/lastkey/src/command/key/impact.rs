//! What needs a key: shown, forgotten, and told where it stands in the way.

use lastkey_client::Client;
use lastkey_crypto::KeyId;
use serde_json::{Value, json};

use crate::output::{Column, DEPENDANTS, Exit, Failure, Output, cell, table};

/// The server's code for a key that something needs.
pub(super) const REFUSED: &str = "Rejected.HasDependants";
/// The kind of those who encrypted by themselves.
const CALLERS: &str = "callers";

/// What needs a key, written down or not.
fn needing(impact: &Value) -> impl Iterator<Item = &Value> {
    let of = |field: &str| impact[field].as_array().into_iter().flatten();
    of("dependants").chain(of("unwritten"))
}

/// The id of the key that was named.
pub(super) async fn id_of(client: &Client, key: &str) -> Result<KeyId, Failure> {
    if let Ok(id) = key.parse() {
        return Ok(id);
    }
    let answer = client.alibaba("DescribeKey", &[("KeyId", key)]).await?;
    let id = answer["KeyMetadata"]["KeyId"].as_str().and_then(|id| id.parse().ok());
    id.ok_or_else(|| Failure::failed("the server names no key id"))
}

/// Adds the list to a refusal of the guard.
pub(super) async fn explain(
    client: &Client,
    key: &str,
    done: Result<(), Failure>,
) -> Result<(), Failure> {
    let Err(failure) = done else { return Ok(()) };
    if failure.code() != Some(REFUSED) {
        return Err(failure);
    }
    let Ok(id) = id_of(client, key).await else { return Err(failure) };
    // Without the list the refusal is still what counts.
    let Ok(impact) = client.key_impact(id, None).await else { return Err(failure) };
    // Callers stand in nobody's way here: of theirs nobody would ever know that it is gone.
    let needs = needing(&impact).filter(|one| one["kind"] != CALLERS).cloned().collect();
    Err(failure.because_of(needs))
}

pub(super) async fn list(client: &Client, key: &str, output: &Output) -> Result<(), Failure> {
    let page = client.dependants(id_of(client, key).await?).await?;
    let live = [Column("LIVE", "live")];
    let columns: Vec<Column> = DEPENDANTS.into_iter().chain(live).collect();
    output.list(&page.items, &Value::Null, &columns);
    Ok(())
}

pub(super) async fn remove(
    client: &Client,
    (key, which): (&str, &str),
    reason: &str,
    output: &Output,
) -> Result<(), Failure> {
    let id = id_of(client, key).await?;
    if which.split('/').count() != 2 {
        return Err(Failure::new(
            Exit::Usage,
            "give KIND/ID, as `lastkey key dependants` has them",
        ));
    }
    client.remove_dependant(id, which, reason).await?;
    let said = json!({ "key_id": id, "removed": which });
    output.object(&said, || format!("{which} does not need {key} any more"));
    Ok(())
}

pub(super) async fn show(
    client: &Client,
    key: &str,
    version: Option<&str>,
    output: &Output,
) -> Result<(), Failure> {
    let impact = client.key_impact(id_of(client, key).await?, version).await?;
    output.object(&impact, || describe(key, &impact));
    Ok(())
}

const VERSIONS: [Column; 10] = [
    Column("VERSION", "key_version_id"),
    Column("PRIMARY", "primary"),
    Column("STATE", "state"),
    Column("ENCRYPTIONS", "encryptions"),
    Column("LAST USED", "used"),
    Column("BY", "used_by"),
    Column("OBJECTS", "objects"),
    Column("IN BACKUPS", "objects_until"),
    Column("NEEDED", "needed"),
    Column("NEEDED UNTIL", "needed_until"),
];

/// For a person: what, when, and how long that stays so.
fn describe(key: &str, impact: &Value) -> String {
    let empty = Vec::new();
    let unreadable = needing(impact).map(sentence).collect::<Vec<_>>().join("\n");
    let mut versions = impact["versions"].as_array().unwrap_or(&empty).clone();
    versions.iter_mut().for_each(show_use);
    let versions = table(&versions, &VERSIONS);
    if unreadable.is_empty() {
        return format!("{versions}\n\nnothing that is known of needs {key}");
    }
    format!("{versions}\n\nwithout {key}:\n{unreadable}")
}

/// When a version was used last, and by whom; also that it never was.
fn show_use(version: &mut Value) {
    let last = version["last_use"].clone();
    let used = match (last["at"].as_str(), version["never_used"] == true) {
        (Some(at), _) => at.to_owned(),
        (None, true) => "never".to_owned(),
        (None, false) => "unknown".to_owned(),
    };
    version["used"] = json!(used);
    version["used_by"] = last["by"].clone();
}

/// What becomes unreadable of a dependant, and when.
fn sentence(dependant: &Value) -> String {
    let (kind, name) = (cell(&dependant["kind"]), cell(&dependant["name"]));
    let name = if name.is_empty() { cell(&dependant["id"]) } else { name };
    if kind == CALLERS {
        return "- what callers encrypted by themselves, with files or an SDK, would become unreadable \
                at once; nobody can say what there is of it"
            .to_owned();
    }
    let objects = match dependant["objects"].as_u64() {
        None => "nobody has looked yet how many objects".to_owned(),
        Some(0) => "what its plugin used the key for since somebody looked".to_owned(),
        Some(1) => "1 object".to_owned(),
        Some(n) => format!("{n} objects"),
    };
    let when = match (kind.as_str(), dependant["until"].as_str()) {
        ("cluster", _) => {
            "new objects within three minutes; the others as each apiserver restarts".to_owned()
        }
        (_, Some(until)) => format!("at once, if it is restored; it is kept until {until}"),
        _ => "at once".to_owned(),
    };
    format!("- {kind} {name}: {objects} would become unreadable: {when}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nobody has written down is named all the same: else one would take the key for free.
    #[test]
    fn what_is_not_written_down_is_told() {
        let told = |dependants: Value, unwritten: Value| {
            let version = json!({ "key_version_id": "77ab", "never_used": false });
            let versions = [version];
            describe(
                "alias/k",
                &json!({
                    "versions": versions, "dependants": dependants, "unwritten": unwritten,
                }),
            )
        };
        let none = "nothing that is known of needs alias/k";
        assert!(told(json!([]), json!([])).contains(none));
        let cluster = json!({ "kind": "cluster", "id": "c", "name": "prod", "objects": null });
        let callers = json!({ "kind": "callers", "id": "direct", "name": "who", "objects": null });
        let text = told(json!([]), json!([cluster, callers]));
        assert!(!text.contains(none), "{text}");
        assert!(text.contains("- cluster prod: nobody has looked yet how many objects"), "{text}");
        assert!(text.contains("- what callers encrypted by themselves"), "{text}");
        // A server before this one says nothing of it.
        let older = json!({ "versions": [], "dependants": [cluster] });
        assert!(describe("alias/k", &older).contains("cluster prod"));
    }
}
