//! The audit log: search, follow, verify.

mod runs;

use std::time::Duration;

use lastkey_crypto::KeyId;
use lastkey_engine::{
    Error,
    audit::{Query, Verification},
    command::{QueryAudit, ReadCheckpointKey, VerifyAudit},
};
use serde::Serialize;
use serde_json::Value;

use self::runs::Run;
use super::{Answer, Body, Call, MAX_WAIT, Refusal, json};

/// Records in one answer, unless the caller says otherwise.
const DEFAULT_LIMIT: usize = 100;
/// Records in one answer, whatever the caller says.
const MAX_LIMIT: usize = 10_000;
/// What takes less is answered with its end at once.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// A look at a run waits at most this long.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// How often a follower looks for new records.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct Items {
    items: Vec<Value>,
    next: Option<u64>,
}

pub(super) async fn query(call: &Call<'_>) -> Answer {
    let query = Query { after: call.number("after")?.unwrap_or(0), ..filter(call)? };
    let page = call.execute(QueryAudit { query }).await?;
    json(&Items { items: page.records, next: page.next })
}

fn filter(call: &Call<'_>) -> Result<Query, Refusal> {
    let (from, to) = (call.time("from")?, call.time("to")?);
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(Error::invalid("to", "it has to be after `from`").into());
    }
    // An alias may have had other keys at other times; what no record can hold finds nothing, and
    // nothing is what somebody wants to be sure of.
    let key = call.text("key");
    let parsed = key.as_deref().map(str::parse::<KeyId>).transpose();
    parsed.map_err(|_| Error::invalid("key", "give the key's id"))?;
    Ok(Query {
        limit: call.number("limit")?.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT),
        from,
        to,
        principal: call.text("principal"),
        key: key.map(|key| key.to_ascii_lowercase()),
        action: call.text("action"),
        outcome: call.text("outcome").map(|outcome| match outcome.eq_ignore_ascii_case("ok") {
            true => "ok".to_owned(),
            false => outcome,
        }),
        context_key: call.text("context_key"),
        ..Query::default()
    })
}

/// The newest records; with `after`, those behind it. `next` is where to go on.
///
/// Every look at the log leaves a record of itself there. A follower's own last look is the one
/// record that surely stands behind its `after`, so it waits for a second one.
pub(super) async fn tail(call: &Call<'_>) -> Answer {
    let engine = call.context.engine;
    let after: Option<u64> = call.number("after")?;
    let wait = Duration::from_secs(call.number("wait")?.unwrap_or(0)).min(MAX_WAIT);
    let filter = filter(call)?;
    if let Some(after) = after {
        let news = async {
            while engine.audit_records() <= after.saturating_add(1) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(wait, news) => {}
            () = call.stopped() => {}
        }
    }
    let head = engine.audit_records();
    let query = Query { after: after.unwrap_or(0), newest: after.is_none(), ..filter };
    let page = call.execute(QueryAudit { query }).await?;
    let last = page.records.last().and_then(|record| record["seq"].as_u64()).unwrap_or(0);
    let next = page.next.unwrap_or(head.max(last));
    json(&Items { items: page.records, next: Some(next) })
}

/// Verifies. With `watch`, answers at once, and the run is looked at by [`look`].
pub(super) async fn verify(call: &Call<'_>) -> Answer {
    if call.text("watch").is_none_or(|watch| watch != "true") {
        return json(&call.execute(VerifyAudit).await?);
    }
    let run = runs::start(call)?;
    run.wait(FIRST_LOOK).await;
    look_at(&run)
}

/// How far a run has come, and what it found; waits a moment for that.
pub(super) async fn look(call: &Call<'_>) -> Answer {
    let id = call.text("run").unwrap_or_default();
    let run = runs::find(&id, &call.caller.principal)
        .ok_or_else(|| Error::invalid("run", "there is no such verification any more"))?;
    let wait = Duration::from_millis(call.number("wait_ms")?.unwrap_or(0)).min(LONGEST_LOOK);
    run.wait(wait).await;
    look_at(&run)
}

fn look_at(run: &Run) -> Answer {
    #[derive(Serialize)]
    struct Look<'a> {
        run: &'a str,
        done: u64,
        total: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<Verification>,
    }
    let report = run.take()?;
    let (done, total) = (run.progress.done(), run.progress.total());
    json(&Look { run: &run.id, done, total, report })
}

pub(super) async fn public_key(call: &Call<'_>) -> Answer {
    Ok(Body::Pem(call.execute(ReadCheckpointKey).await?.to_pem()))
}
