//! Verifying the audit log while one watches.

use std::time::Duration;

use http::Method;
use serde::Deserialize;

use super::{AuditVerification, LONG_POLL_GRACE};
use crate::{Client, Error, api::Reply};

/// How long one look waits for the end.
const LOOK: Duration = Duration::from_millis(500);

/// How far a verification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct AuditProgress {
    /// Bytes of the files that were read.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

#[derive(Deserialize)]
struct Watched {
    run: String,
    #[serde(flatten)]
    progress: AuditProgress,
    #[serde(default)]
    report: Option<AuditVerification>,
}

/// For the fuzz target: how far a verification is.
pub(super) fn parse_answer(reply: crate::api::Reply) -> bool {
    crate::fuzzing::outcome(reply.json::<Watched>())
}

impl Client {
    /// Checks the audit chain, and tells `watch` how far it has come.
    pub async fn audit_verify_watched(
        &self,
        mut watch: impl FnMut(AuditProgress),
    ) -> Result<AuditVerification, Error> {
        let start = self.request(Method::POST, "/v1/audit/verify");
        let start = start.query(vec![("watch".to_owned(), "true".to_owned())]);
        let mut seen: Watched = start.json(&serde_json::json!({})).answer().await?;
        loop {
            watch(seen.progress);
            if let Some(report) = seen.report {
                return Ok(report);
            }
            let query = vec![
                ("run".to_owned(), seen.run.clone()),
                ("wait_ms".to_owned(), LOOK.as_millis().to_string()),
            ];
            let look = self.request(Method::GET, "/v1/audit/verify").query(query);
            seen = look.timeout(LOOK + LONG_POLL_GRACE).answer().await?;
        }
    }

    /// The public key of the audit log's checkpoints, in PEM.
    pub async fn audit_public_key(&self) -> Result<String, Error> {
        self.request(Method::GET, "/v1/audit/public-key").read(Reply::text).await
    }
}
