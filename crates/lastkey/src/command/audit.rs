//! `lastkey audit …`.

mod offline;
mod progress;

use std::time::Duration;

use lastkey_client::{Client, native::AuditQuery};
use lastkey_engine::Action;
use serde_json::{Value, json};

use self::progress::Watch;
use super::wire::key_id;
use crate::{
    cli::{AuditAction, AuditFilter, Connect},
    connect::{block_on, client},
    output::{Column, Failure, Output, line},
};

/// How long one request waits for something new.
const FOLLOW: Duration = Duration::from_secs(20);

pub(crate) fn run(connect: &Connect, action: AuditAction, output: &Output) -> Result<(), Failure> {
    if let AuditAction::Verify(options) = &action
        && let Some(directory) = &options.offline
    {
        return offline::verify(directory, options, output);
    }
    let client = client(connect)?;
    block_on(async {
        match action {
            AuditAction::Tail { lines, follow } => tail(&client, lines, follow, output).await,
            AuditAction::Query(filter) => query(&client, filter, output).await,
            AuditAction::Verify(_) => verify(&client, output).await,
            AuditAction::PublicKey => public_key(&client, output).await,
        }
    })
}

const COLUMNS: [Column; 7] = [
    Column("SEQ", "seq"),
    Column("TIME", "time"),
    Column("ACTION", "action"),
    Column("OUTCOME", "outcome"),
    Column("PRINCIPAL", "principal"),
    Column("SOURCE", "source"),
    Column("KEY", "key"),
];

async fn tail(client: &Client, lines: u32, follow: bool, output: &Output) -> Result<(), Failure> {
    let mut page = client.audit_tail(lines.max(1), None, Duration::ZERO).await?;
    if !follow {
        page.items.truncate(lines as usize);
        output.list(&page.items, &Value::Null, &COLUMNS);
        return Ok(());
    }
    let mut last = last_seq(&page.items).unwrap_or(0);
    page.items.truncate(lines as usize);
    let mut read = show_lines(&page.items, output);
    // Nothing is left to do for somebody who cannot read it; why, if it was not their wish, is
    // said at the end.
    while read {
        let after = last.to_string();
        let waited = client.audit_tail(1000, Some(&after), FOLLOW);
        let page = tokio::select! {
            page = waited => page?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        read = show_lines(&page.items, output);
        last = last_seq(&page.items).unwrap_or(last);
    }
    Ok(())
}

fn last_seq(items: &[Value]) -> Option<u64> {
    items.last().and_then(|record| record["seq"].as_u64())
}

/// One line a record: there is no table of what is still to come. Answers whether all were
/// written.
fn show_lines(items: &[Value], output: &Output) -> bool {
    items.iter().all(|record| {
        if output.is_json() {
            return line(&record.to_string());
        }
        let shown: Vec<String> = COLUMNS
            .iter()
            .map(|column| match &record[column.1] {
                Value::String(text) => text.clone(),
                Value::Null => "-".to_owned(),
                other => other.to_string(),
            })
            .collect();
        line(&shown.join("  "))
    })
}

async fn query(client: &Client, filter: AuditFilter, output: &Output) -> Result<(), Failure> {
    let key = match &filter.key {
        Some(key) => Some(key_id(client, key).await?.to_string()),
        None => None,
    };
    let is_ours =
        |name: &String| Action::ALL.iter().any(|action| action.name().eq_ignore_ascii_case(name));
    let strange = filter.action.clone().filter(|name| !is_ours(name));
    let query = AuditQuery {
        limit: Some(filter.limit),
        after: filter.after,
        from: filter.from,
        to: filter.to,
        principal: filter.principal,
        key,
        action: filter.action,
        outcome: filter.outcome,
        context_key: filter.context_key,
    };
    let page = client.audit(&query).await?;
    let next = page.next.unwrap_or(Value::Null);
    output.list(&page.items, &next, &COLUMNS);
    if !next.is_null() {
        output.hint(&format!("there is more: --after {next} goes on"));
    }
    if let Some(action) = strange.filter(|_| page.items.is_empty()) {
        output.hint(&format!(
            "warning: this release knows no action {action}; `lastkey audit tail` shows names"
        ));
    }
    Ok(())
}

async fn public_key(client: &Client, output: &Output) -> Result<(), Failure> {
    let pem = client.audit_public_key().await?;
    output.object(&json!({ "public_key_pem": pem }), || pem.trim_end().to_owned());
    Ok(())
}

async fn verify(client: &Client, output: &Output) -> Result<(), Failure> {
    let mut watch = Watch::new(output);
    let found = client.audit_verify_watched(|seen| watch.at(seen.done, seen.total)).await;
    watch.end();
    report(&serde_json::to_value(found?).map_err(Failure::failed)?, output)
}

/// Says what a verification found; one that found a problem is a failure.
fn report(found: &Value, output: &Output) -> Result<(), Failure> {
    let mut report = json!({ "event": "report" });
    if let (Some(report), Some(found)) = (report.as_object_mut(), found.as_object()) {
        report.extend(found.clone());
    }
    let ok = found["ok"] == true;
    if ok || output.is_json() {
        output.object(&report, || sound(found));
    }
    for warning in found["warnings"].as_array().into_iter().flatten() {
        output.hint(&format!("warning: {}", text(warning)));
    }
    if ok { Ok(()) } else { Err(Failure::failed(broken(found))) }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn sound(found: &Value) -> String {
    let number = |name: &str| found[name].as_u64().unwrap_or(0);
    let mut said = format!("{} records, all as they were written", number("records"));
    if number("deleted_through") > 0 {
        said.push_str(&format!(
            "\nrecords up to {} were deleted on purpose, as a checkpoint states",
            number("deleted_through")
        ));
    }
    if number("checkpoint_seq") > 0 {
        said.push_str(&format!(
            "\nrecords up to {} are signed for (checkpoint of {}); {} came later",
            number("checkpoint_seq"),
            text(&found["checkpoint_time"]),
            number("uncovered")
        ));
    }
    said
}

fn broken(found: &Value) -> String {
    let problem = &found["problem"];
    if problem.is_null() {
        return "the audit log is not as it was written".to_owned();
    }
    format!(
        "the audit log is not as it was written: {} ({}, line {})",
        text(&problem["what"]),
        text(&problem["segment"]),
        text(&problem["line"])
    )
}
