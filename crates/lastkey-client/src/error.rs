//! What can go wrong between us and a server, told apart so that a caller can act on it: the server
//! refused, no server was reached, or what answered is not a server of ours.

use std::{io, path::PathBuf, time::Duration};

use http::StatusCode;

use crate::{CredentialsError, EndpointError};

/// The server's code for a change that was made, or may have been.
const UNCERTAIN: &str = "Unavailable.Uncertain";

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server understood and refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No connection could be made to any of the servers.
    #[error("cannot reach {server}: {reason}")]
    Unreachable {
        /// The address that was tried last.
        server: String,
        /// What the operating system says.
        reason: String,
    },
    /// The connection broke before the answer was complete; the call may have been carried out.
    #[error("the connection to {server} broke: {reason}")]
    Broken {
        /// The address that was asked.
        server: String,
        /// What the HTTP layer says.
        reason: String,
    },
    /// A server was reached but did not answer in time; the call may have been carried out.
    #[error("{server} did not answer within {after:?}")]
    Timeout {
        /// The address that was asked.
        server: String,
        /// How long we waited.
        after: Duration,
    },
    /// The TLS handshake failed: a server of another installation, or ours does not know us.
    #[error("TLS with {server} failed: {reason}")]
    Tls {
        /// The address that was asked.
        server: String,
        /// What rustls says.
        reason: String,
    },
    /// Something answered that does not speak our protocol.
    #[error("{server} sent an answer that makes no sense: {what}")]
    Garbage {
        /// The address that was asked.
        server: String,
        /// Which part is wrong; never the answer itself.
        what: &'static str,
    },
}

/// A refusal as the server worded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code}{})", request_suffix(.request_id.as_deref()))]
pub struct ApiError {
    /// The HTTP status it came with.
    pub status: StatusCode,
    /// The machine-readable name, such as `Forbidden.KeyNotFound`.
    pub code: String,
    /// What a person can do about it.
    pub message: String,
    /// Finds the call in the server's audit log.
    pub request_id: Option<String>,
    /// What stands in the way, as the server lists it.
    pub dependants: Vec<serde_json::Value>,
}

fn request_suffix(id: Option<&str>) -> String {
    id.map(|id| format!(", request {id}")).unwrap_or_default()
}

/// What a caller can do about an error: the command line's exit codes, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// The request itself is wrong, or the state does not allow it.
    Failed,
    /// The thing named does not exist.
    NotFound,
    /// The caller may not do this.
    Denied,
    /// Something still depends on it.
    Dependency,
    /// Sealed, overloaded or out of reach: the same call may work later.
    Unavailable,
}

impl Error {
    /// What the caller can do about it.
    pub fn category(&self) -> Category {
        match self {
            Self::Api(error) => error.category(),
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::Garbage { .. } => Category::Unavailable,
        }
    }

    /// The server's refusal, if it is one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            _ => None,
        }
    }

    /// The server's code, if the server answered.
    pub fn code(&self) -> Option<&str> {
        self.api().map(|error| error.code.as_str())
    }

    /// What stands in the way, as the server lists it.
    pub fn dependants(&self) -> &[serde_json::Value] {
        self.api().map_or(&[], |error| &error.dependants)
    }

    /// Whether no server can have seen the call, so that another may be asked.
    pub(crate) fn is_before_the_call(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Tls { .. } => true,
            // a sealed or draining node has done nothing
            Self::Api(error) => {
                error.status == StatusCode::SERVICE_UNAVAILABLE && error.code != UNCERTAIN
            }
            _ => false,
        }
    }

    /// Whether a server has begun the call, and nobody knows how far it came.
    pub(crate) fn is_in_the_call(&self) -> bool {
        matches!(self, Self::Broken { .. }) || self.code() == Some(UNCERTAIN)
    }
}

impl ApiError {
    /// What the caller can do about it: the code decides first, then the HTTP status.
    pub fn category(&self) -> Category {
        by_code(&self.code).unwrap_or_else(|| by_status(self.status))
    }
}

/// Codes whose HTTP status does not say enough, as the wire has them.
fn by_code(code: &str) -> Option<Category> {
    let category = match code {
        // an unknown access key is an unknown caller, not a missing thing
        "InvalidAccessKeyId.NotFound" | "InvalidAccessKeyId.Inactive" => Category::Denied,
        "SignatureDoesNotMatch" | "IncompleteSignature" | "IllegalTimestamp" => Category::Denied,
        "SignatureNonceUsed" => Category::Denied,
        "Rejected.HasDependants" | "Rejected.DeletionProtected" | "Rejected.AwaitsSecondPerson" => {
            Category::Dependency
        }
        "Throttling" | "Rejected.Throttling" | "ServiceUnavailableTemporary" | UNCERTAIN => {
            Category::Unavailable
        }
        code if code.starts_with("EntityNotExist") => Category::NotFound,
        _ => return None,
    };
    Some(category)
}

fn by_status(status: StatusCode) -> Category {
    match status.as_u16() {
        401 | 403 => Category::Denied,
        404 => Category::NotFound,
        429 | 502 | 503 | 504 => Category::Unavailable,
        _ => Category::Failed,
    }
}

/// Why a client could not be made at all: nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no server to talk to.
    #[error("no server address is given")]
    NoServer,
    /// An address cannot be parsed.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// TLS needs the CA of the installation.
    #[error("no CA file is given; the server's is {suggestion}")]
    NoCa {
        /// Where it usually lies.
        suggestion: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {expected}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// The certificates or the key do not fit TLS or each other.
    #[error("the TLS identity cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(status: u16, code: &str) -> ApiError {
        ApiError {
            status: StatusCode::from_u16(status).unwrap(),
            code: code.into(),
            message: "no".into(),
            request_id: Some("r-1".into()),
            dependants: Vec::new(),
        }
    }

    #[test]
    fn categories() {
        for (status, code, expected) in [
            (404, "Forbidden.KeyNotFound", Category::NotFound),
            (404, "InvalidAccessKeyId.NotFound", Category::Denied),
            (403, "Forbidden.NoPermission", Category::Denied),
            (400, "SignatureDoesNotMatch", Category::Denied),
            (409, "Rejected.HasDependants", Category::Dependency),
            (409, "Rejected.Disabled", Category::Failed),
            (503, "ServiceUnavailableTemporary", Category::Unavailable),
            (504, "Unavailable.Uncertain", Category::Unavailable),
            (429, "Rejected.Throttling", Category::Unavailable),
            (400, "Throttling", Category::Unavailable),
            (400, "InvalidParameter", Category::Failed),
            (500, "InternalFailure", Category::Failed),
        ] {
            assert_eq!(api(status, code).category(), expected, "{status} {code}");
        }
    }

    #[test]
    fn what_may_have_been_done_is_not_before_the_call() {
        for (status, code, before) in [
            (503, "ServiceUnavailableTemporary", true),
            (503, "Unavailable.Sealed", true),
            (504, "Unavailable.Uncertain", false),
            (503, "Unavailable.Uncertain", false),
            (429, "Rejected.Throttling", false),
        ] {
            let error = Error::from(api(status, code));
            assert_eq!(error.is_before_the_call(), before, "{status} {code}");
            assert_eq!(error.is_in_the_call(), code == UNCERTAIN, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_names_code_and_request() {
        assert_eq!(
            api(409, "Rejected.Disabled").to_string(),
            "no (Rejected.Disabled, request r-1)"
        );
    }
}
