//! Why a call of the apiserver fails, and the one table that says with which gRPC code.
//!
//! The code becomes the `status` label of `apiserver_storage_transformation_operations_total`, so
//! it is what an operator sees first.

use lastkey_client::{Error as ClientError, native::Refusal};
use lastkey_crypto::{ClusterId, plugin_blob::PluginBlobError};
use tonic::Code;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("the plugin has not reached its server yet{}", after(.0.as_deref()))]
    Starting(Option<String>),
    #[error("the server is away for longer than its lease allows: {0}")]
    LeaseOver(String),
    #[error("the key must not be used: {} ({})", .0.message, .0.code)]
    Key(Refusal),
    #[error(transparent)]
    Server(ClientError),
    #[error("the server's answer contradicts itself: {0}")]
    Inconsistent(&'static str),
    #[error("the key was rotated during the call, twice")]
    Stale,
    #[error("the server did not answer in time")]
    Deadline,
    #[error("{0}, and the server is away")]
    Unkept(String),
    /// Another call with the same request failed.
    #[error(transparent)]
    Joined(std::sync::Arc<Problem>),
    #[error("too many calls at once; try again")]
    Overloaded,
    #[error("the plaintext is empty")]
    Empty,
    #[error("{what} has {bytes} bytes; at most {limit} are allowed")]
    TooLarge { what: &'static str, bytes: usize, limit: usize },
    #[error("this is no ciphertext of this plugin: {0}")]
    NotOurs(#[from] PluginBlobError),
    #[error("the key_id is not the one this ciphertext was made with")]
    KeyIdMismatch,
    #[error("the annotations are not the ones this ciphertext was made with")]
    AnnotationMismatch,
    #[error("the ciphertext belongs to cluster {0}, and this plugin to another")]
    ForeignCluster(ClusterId),
    #[error("this plugin speaks v1beta1, not {0:?}")]
    ApiVersion(String),
}

fn after(problem: Option<&str>) -> String {
    problem.map(|problem| format!(": {problem}")).unwrap_or_default()
}

impl Problem {
    /// The gRPC code; with [`server_code`], the whole table.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Starting(_) | Self::LeaseOver(_) => Code::Unavailable,
            Self::Key(refusal) => match server_code(&refusal.code) {
                Code::Unknown => Code::FailedPrecondition,
                code => code,
            },
            Self::Server(error) => client_code(error),
            Self::Inconsistent(_) => Code::Internal,
            Self::Stale => Code::Aborted,
            Self::Deadline => Code::DeadlineExceeded,
            Self::Overloaded | Self::Unkept(_) => Code::ResourceExhausted,
            Self::Joined(problem) => problem.code(),
            Self::Empty
            | Self::TooLarge { .. }
            | Self::NotOurs(_)
            | Self::KeyIdMismatch
            | Self::AnnotationMismatch
            | Self::ApiVersion(_) => Code::InvalidArgument,
            Self::ForeignCluster(_) => Code::PermissionDenied,
        }
    }
}

impl Problem {
    /// Whether the same request might be answered now if it is made once more.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Joined(problem) => problem.is_passing(),
            Self::Overloaded => true,
            other => other.code() == Code::DeadlineExceeded,
        }
    }

    /// Whether there was no server to answer.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self.code(), Code::Unavailable | Code::DeadlineExceeded)
    }
}

impl From<Problem> for tonic::Status {
    fn from(problem: Problem) -> Self {
        Self::new(problem.code(), problem.to_string())
    }
}

/// What the native API's codes mean to an apiserver.
pub(super) fn server_code(code: &str) -> Code {
    match code {
        "Rejected.Disabled" | "Rejected.PendingDeletion" | "Rejected.PendingImport" => {
            Code::FailedPrecondition
        }
        "Rejected.StateModifiedFailed" | "Rejected.UnsupportedOperation" => {
            Code::FailedPrecondition
        }
        "Rejected.StaleKeyVersion" => Code::Aborted,
        "Forbidden.NoPermission" | "Forbidden.AccessKey" => Code::PermissionDenied,
        "InvalidAccessKeyId.NotFound" | "InvalidAccessKeyId.Inactive" => Code::Unauthenticated,
        "SignatureDoesNotMatch" | "IncompleteSignature" | "IllegalTimestamp" => {
            Code::Unauthenticated
        }
        "SignatureNonceUsed" | CERTIFICATE_ENDED => Code::Unauthenticated,
        "Rejected.Throttling" | "Throttling" | "Rejected.LimitExceeded" => Code::ResourceExhausted,
        "ServiceUnavailableTemporary" => Code::Unavailable,
        "InvalidParameter" | "MissingParameter" => Code::InvalidArgument,
        "InternalFailure" => Code::Internal,
        // Forbidden.KeyNotFound, .KeyVersionNotFound, .AliasNotFound, .ResourceNotFound
        code if code.ends_with("NotFound") => Code::NotFound,
        _ => Code::Unknown,
    }
}

fn client_code(error: &ClientError) -> Code {
    match error {
        ClientError::Api(api) => match server_code(&api.code) {
            Code::Unknown => status_code(api.status.as_u16()),
            code => code,
        },
        ClientError::Timeout { .. } => Code::DeadlineExceeded,
        ClientError::Garbage { .. } => Code::Internal,
        // unreachable, broken, TLS
        _ => Code::Unavailable,
    }
}

/// What kind of failure it is, for the metric `lastkey_plugin_server_failures_total`.
pub(super) fn failure_kind(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Tls { .. } => "tls",
        ClientError::Broken { .. } => "broken",
        ClientError::Timeout { .. } => "timeout",
        ClientError::Garbage { .. } => "garbage",
        ClientError::Api(api) => match client_code(error) {
            // sealed, or stopping
            Code::Unavailable => "unavailable",
            Code::ResourceExhausted => "throttled",
            Code::Internal => "internal",
            _ if api.status.is_server_error() => "internal",
            _ => "refused",
        },
        _ => "unreachable",
    }
}

/// For a code of a newer server.
fn status_code(status: u16) -> Code {
    match status {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        409 => Code::FailedPrecondition,
        429 => Code::ResourceExhausted,
        502..=504 => Code::Unavailable,
        500..=599 => Code::Internal,
        _ => Code::Unknown,
    }
}

/// The server's code for our certificate once it has ended.
const CERTIFICATE_ENDED: &str = "Forbidden.CertificateEnded";
/// What a server of a release before says of it: that nobody asks.
const NOBODY_ASKS: &str = "MissingParameter";

/// Whether the server might say something else to another identity of ours.
pub(super) fn is_about_the_identity(error: &ClientError) -> bool {
    matches!(error.code(), Some("Forbidden.NoPermission" | CERTIFICATE_ENDED))
}

/// Whether the server, by this error, says that the key must not be used; anything else leaves
/// open what it would say. Who comes by a certificate that has ended is nobody to it, and learns
/// nothing about the key.
pub(super) fn refuses_the_key(error: &ClientError) -> Option<Refusal> {
    let api = error.api()?;
    if matches!(&*api.code, CERTIFICATE_ENDED | NOBODY_ASKS) {
        return None;
    }
    let refused = matches!(
        client_code(error),
        Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::InvalidArgument
    );
    refused.then(|| Refusal { code: api.code.clone(), message: api.message.clone() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use lastkey_client::ApiError;

    use super::*;

    fn api(status: u16, code: &str) -> Problem {
        Problem::Server(ClientError::Api(ApiError {
            status: StatusCode::from_u16(status).unwrap(),
            code: code.into(),
            message: String::new(),
            request_id: None,
            dependants: Vec::new(),
        }))
    }

    fn key(code: &str) -> Problem {
        Problem::Key(Refusal { code: code.into(), message: String::new() })
    }

    /// The table, row by row: every variant, and every code a server of ours sends.
    #[test]
    fn codes() {
        let server = || "https://s".to_owned();
        let rows = [
            (Problem::Starting(None), Code::Unavailable),
            (Problem::LeaseOver(String::new()), Code::Unavailable),
            (key("Rejected.Disabled"), Code::FailedPrecondition),
            (key("Rejected.PendingDeletion"), Code::FailedPrecondition),
            (key("Rejected.PendingImport"), Code::FailedPrecondition),
            (key("Forbidden.NoPermission"), Code::PermissionDenied),
            (key("Forbidden.KeyNotFound"), Code::NotFound),
            (key("Forbidden.AliasNotFound"), Code::NotFound),
            (key("Something.New"), Code::FailedPrecondition),
            (api(409, "Rejected.Disabled"), Code::FailedPrecondition),
            (api(409, "Rejected.StaleKeyVersion"), Code::Aborted),
            (api(403, "Forbidden.NoPermission"), Code::PermissionDenied),
            (api(404, "Forbidden.KeyVersionNotFound"), Code::NotFound),
            (api(404, "InvalidAccessKeyId.NotFound"), Code::Unauthenticated),
            (api(400, "SignatureDoesNotMatch"), Code::Unauthenticated),
            (api(401, "Forbidden.CertificateEnded"), Code::Unauthenticated),
            (api(400, "InvalidParameter"), Code::InvalidArgument),
            (api(429, "Rejected.Throttling"), Code::ResourceExhausted),
            (api(503, "ServiceUnavailableTemporary"), Code::Unavailable),
            (api(500, "InternalFailure"), Code::Internal),
            (api(403, "Something.New"), Code::PermissionDenied),
            (api(409, "Something.New"), Code::FailedPrecondition),
            (api(418, "Something.New"), Code::Unknown),
            (
                Problem::Server(ClientError::Unreachable {
                    server: server(),
                    reason: String::new(),
                }),
                Code::Unavailable,
            ),
            (
                Problem::Server(ClientError::Timeout { server: server(), after: Duration::ZERO }),
                Code::DeadlineExceeded,
            ),
            (Problem::Server(ClientError::Garbage { server: server(), what: "" }), Code::Internal),
            (Problem::Inconsistent(""), Code::Internal),
            (Problem::Stale, Code::Aborted),
            (Problem::Deadline, Code::DeadlineExceeded),
            (Problem::Unkept(String::new()), Code::ResourceExhausted),
            (Problem::Joined(Problem::Deadline.into()), Code::DeadlineExceeded),
            (Problem::Overloaded, Code::ResourceExhausted),
            (Problem::Empty, Code::InvalidArgument),
            (Problem::TooLarge { what: "", bytes: 2, limit: 1 }, Code::InvalidArgument),
            (Problem::NotOurs(PluginBlobError::TooShort), Code::InvalidArgument),
            (Problem::KeyIdMismatch, Code::InvalidArgument),
            (Problem::AnnotationMismatch, Code::InvalidArgument),
            (Problem::ForeignCluster(ClusterId::from_bytes([0; 16])), Code::PermissionDenied),
            (Problem::ApiVersion(String::new()), Code::InvalidArgument),
        ];
        for (problem, code) in rows {
            assert_eq!(problem.code(), code, "{problem:?}");
        }
    }

    #[test]
    fn only_a_verdict_about_the_key_refuses_it() {
        let refuses = |problem| match problem {
            Problem::Server(error) => refuses_the_key(&error).is_some(),
            _ => unreachable!("the rows below are the server's"),
        };
        assert!(refuses(api(403, "Forbidden.NoPermission")));
        assert!(refuses(api(404, "Forbidden.KeyNotFound")));
        assert!(refuses(api(409, "Rejected.Disabled")));
        assert!(!refuses(api(503, "ServiceUnavailableTemporary")));
        assert!(!refuses(api(429, "Rejected.Throttling")));
        assert!(!refuses(api(500, "InternalFailure")));
        // It says so of whoever asks.
        assert!(!refuses(api(401, "Forbidden.CertificateEnded")));
        assert!(!refuses(api(400, "MissingParameter")));
    }
}
