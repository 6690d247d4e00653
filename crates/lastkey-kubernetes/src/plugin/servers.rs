//! The task that asks each server whether it is ready. Calls ask the one that answered last, so
//! without it nobody would know that another is dead until it is needed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lastkey_client::{Client, Readiness};
use tokio::time::sleep;

use super::metrics::MemoryMetrics;

/// How often each is asked, and how long it has to answer.
const EVERY: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(3);

/// Runs until it is dropped.
pub(super) async fn look_after(client: Arc<Client>, metrics: Arc<MemoryMetrics>) {
    let mut known = BTreeMap::new();
    loop {
        let found = client.readiness(WITHIN).await;
        metrics.servers(found.iter().map(|one| (one.server.clone(), one.outcome.is_ok())));
        log_changes(&mut known, &found);
        sleep(EVERY).await;
    }
}

/// One line for each change. A server that is the only one is spoken of by whoever needs it.
fn log_changes(known: &mut BTreeMap<Arc<str>, bool>, found: &[Readiness]) {
    for Readiness { server, outcome } in found.iter().filter(|_| found.len() > 1) {
        let before = known.insert(server.clone(), outcome.is_ok());
        match outcome {
            Err(error) if before != Some(false) => {
                tracing::warn!(%server, %error, "one of the servers does not answer");
            }
            Ok(()) if before == Some(false) => tracing::info!(%server, "the server answers again"),
            _ => {}
        }
    }
}
