//! Overrides that wait for a second person: listed, confirmed, rejected.

use lastkey_client::Client;
use serde_json::{Value, json};

use crate::output::{Column, Failure, Output, cell};

const COLUMNS: [Column; 6] = [
    Column("REQUEST", "id"),
    Column("WHAT", "what"),
    Column("BY", "by"),
    Column("REASON", "reason"),
    Column("SINCE", "at"),
    Column("UNTIL", "until"),
];

pub(super) async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let guard = client.guard().await?;
    let mut items = guard["requests"].as_array().cloned().unwrap_or_default();
    if !output.is_json() {
        items.iter_mut().for_each(|item| item["what"] = json!(what(item)));
    }
    output.list(&items, &Value::Null, &COLUMNS);
    Ok(())
}

pub(super) async fn confirm(client: &Client, id: &str, output: &Output) -> Result<(), Failure> {
    let done = client.confirm_override(id).await?;
    output.object(&done, || {
        let held = super::still_held(&done["unconfirmed"]);
        format!(
            "done: {}, as {} wanted{held}",
            what(&done["confirmed"]),
            cell(&done["confirmed"]["by"])
        )
    });
    Ok(())
}

pub(super) async fn reject(client: &Client, id: &str, output: &Output) -> Result<(), Failure> {
    let done = client.reject_override(id).await?;
    output.object(&done, || format!("the request {id} is dropped; nothing was changed"));
    Ok(())
}

/// What somebody wants done.
fn what(request: &Value) -> String {
    let proposed = &request["proposed"];
    let field = |name: &str| cell(&proposed[name]);
    match proposed["action"].as_str().unwrap_or_default() {
        "disable_key" => format!("disable {}", field("key")),
        "schedule_key_deletion" => {
            format!("delete {} in {} days", field("key"), field("window_days"))
        }
        "retire_key_version" => format!("retire {} of {}", field("version"), field("key")),
        "remove_dependant" => {
            format!("forget that {}/{} needs {}", field("kind"), field("id"), field("key"))
        }
        "forget_cluster" => format!("forget the cluster {}", field("cluster")),
        "second_person_off" => "need no second person any more".to_owned(),
        other => other.to_owned(),
    }
}
