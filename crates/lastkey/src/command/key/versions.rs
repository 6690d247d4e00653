//! A key's versions: listed, retired, taken back.

use lastkey_client::{Client, native::RetireVersion};
use serde_json::{Value, json};

use super::{
    impact::{REFUSED, id_of},
    pages, snake,
};
use crate::{
    cli::{VersionAction, VersionsOptions},
    output::{Column, Failure, Output, cell},
};

const COLUMNS: [Column; 9] = [
    Column("VERSION", "key_version_id"),
    Column("CREATED", "creation_date"),
    Column("PRIMARY", "primary"),
    Column("STATE", "state"),
    Column("ENCRYPTIONS", "encryptions"),
    Column("LAST USED", "used"),
    Column("BY", "last_used_by"),
    Column("FOR", "last_used_for"),
    Column("DESTROYED AT", "destroy_date"),
];

pub(super) async fn run(
    client: &Client,
    options: VersionsOptions,
    output: &Output,
) -> Result<(), Failure> {
    match (options.action, options.key) {
        (None, key) => list(client, &key.unwrap_or_default(), output).await,
        (Some(VersionAction::Retire { key, version, in_days, when_free, twice }), _) => {
            let how = RetireVersion {
                window_days: in_days,
                when_free,
                overriding: twice.overriding,
                reason: twice.reason,
            };
            retire(client, (&key, &version), (&how, output)).await
        }
        (Some(VersionAction::Reinstate { key, version }), _) => {
            let id = id_of(client, &key).await?;
            let said = client.reinstate_version(id, &version).await?;
            output.object(&said, || format!("the version {version} of {key} decrypts again"));
            Ok(())
        }
    }
}

async fn list(client: &Client, key: &str, output: &Output) -> Result<(), Failure> {
    let described = client.alibaba("DescribeKey", &[("KeyId", key)]).await?;
    let id = described["KeyMetadata"]["KeyId"].as_str().unwrap_or_default().to_owned();
    let primary = described["KeyMetadata"]["PrimaryKeyVersion"].clone();
    let parameters = [("KeyId", &*id)];
    let found =
        pages(client, "ListKeyVersions", &parameters, ("KeyVersions", "KeyVersion")).await?;
    let mut items: Vec<Value> = found
        .into_iter()
        .map(|version| {
            let is_primary = version["KeyVersionId"] == primary;
            let mut item = snake(version);
            item["primary"] = json!(is_primary);
            item
        })
        .collect();
    if !output.is_json() {
        items.iter_mut().for_each(|item| item["used"] = json!(last_used(item)));
    }
    output.list(&items, &Value::Null, &COLUMNS);
    Ok(())
}

/// When a version was used last, for a person.
fn last_used(version: &Value) -> String {
    match (version["last_used_date"].as_str(), version["never_used"] == true) {
        (Some(at), _) => at.to_owned(),
        (None, true) => "never".to_owned(),
        (None, false) => "unknown".to_owned(),
    }
}

async fn retire(
    client: &Client,
    (key, version): (&str, &str),
    (how, output): (&RetireVersion, &Output),
) -> Result<(), Failure> {
    let id = id_of(client, key).await?;
    let said = match client.retire_version((id, version), how).await {
        Ok(said) => said,
        Err(error) => return Err(with_list(error)),
    };
    output.object(&said, || match said["state"].as_str() {
        Some("scheduled") => {
            let waits = said["waits_for"].as_array().into_iter().flatten().map(waits_for);
            let waits: Vec<String> = waits.collect();
            format!(
                "the version {version} of {key} is retired once nothing needs it; now that is:\n{}",
                waits.join("\n")
            )
        }
        _ => format!(
            "the version {version} of {key} decrypts no more; its material is destroyed at {}, \
             until then `lastkey key versions reinstate` takes that back",
            cell(&said["destroy_at"])
        ),
    });
    Ok(())
}

fn waits_for(dependant: &Value) -> String {
    let text = |field: &str| cell(&dependant[field]);
    let name = Some(text("name")).filter(|name| !name.is_empty()).unwrap_or_else(|| text("id"));
    let until = Some(text("until")).filter(|until| !until.is_empty());
    let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
    format!("- {} {name}{until}", text("kind"))
}

/// A refusal with what needs the version, as the server has listed it.
fn with_list(error: lastkey_client::Error) -> Failure {
    let listed = error.dependants().to_vec();
    let failure = Failure::from(error);
    match failure.code() {
        Some(REFUSED) => failure.because_of(listed),
        _ => failure,
    }
}
