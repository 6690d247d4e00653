//! One table from every reason for refusing a request to what this wire says about it.

use http::StatusCode;
use lastkey_engine::{Dependant, Error, ErrorKind, NonceRefusal, OperatorError};

use super::signature::SignatureError;
use crate::{
    params::ParamsError,
    tls::{AuthorityError, CertificateError, KubeletError},
};

/// Why a request is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The engine refused the command.
    #[error(transparent)]
    Engine(#[from] Error),
    /// The parameters could not be read.
    #[error("the request's parameters cannot be read: {0}")]
    Params(#[from] ParamsError),
    /// The signature could not be read, or does not cover enough.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// No such access key.
    #[error("the specified access key does not exist on this server")]
    UnknownAccessKey,
    // The old Python SDK takes the text after the colon for the string that we signed, and fails
    // with an IndexError where there is no colon. What we signed is nobody's business.
    /// The signature is not that of the access key's secret.
    #[error("the request signature does not match: check the access key secret")]
    SignatureMismatch,
    /// Too old, too new, or seen before.
    #[error(transparent)]
    Nonce(#[from] NonceRefusal),
    /// The action is not of this API.
    #[error("the specified action is not found; check its name and the API version")]
    UnknownAction,
    /// The action is of this API, but not offered here.
    #[error("the action is not supported by this server")]
    UnsupportedAction,
    /// Another version of the API.
    #[error("the specified parameter \"Version\" is not supported; use 2016-01-20")]
    Version,
    /// The HTTP method is neither GET nor POST.
    #[error("the HTTP method is not supported; use GET or POST")]
    HttpMethod,
    /// A plaintext that this wire cannot carry: it is made of texts.
    #[error(
        "the plaintext is not a text that this API can answer with; it was encrypted through \
         another one, decrypt it there"
    )]
    NotText,
    /// No such path.
    #[error("there is nothing at this address")]
    NoSuchPath,
    /// A path that takes another method.
    #[error("this address does not take this HTTP method")]
    WrongMethod,
    /// A native request's body.
    #[error("the body is not JSON of the documented form")]
    NotJson,
    /// The body is over the limit.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// The body did not arrive in time, or not whole.
    #[error("the body did not arrive")]
    Incomplete,
    /// The body's chunks are not as RFC 9112 §7.1 has them.
    #[error("the body's chunked transfer coding cannot be read; check what sends the request")]
    Malformed,
    /// An operator's order was not carried out.
    #[error("{message}")]
    Operator {
        /// The kind of refusal.
        kind: ErrorKind,
        /// Its stable code.
        code: &'static str,
        /// Why.
        message: String,
    },
    /// Over the network nobody can be proven for this.
    #[error(
        "this is answered on the admin socket alone; use --admin-socket on the server's machine"
    )]
    AdminSocketOnly,
    /// A plugin's certificate that was good once.
    #[error(
        "the client certificate has ended; put another one in its place, and the plugin takes it up \
         by itself: docs/tls.md, Plugin certificates"
    )]
    CertificateEnded,
    /// A certificate of a cluster's own CA that is not good for this.
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    /// The certificate authority did not issue.
    #[error("{message}")]
    Certificate {
        /// Whether the request is to blame.
        request: bool,
        /// Why.
        message: String,
    },
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        let request = matches!(error, AuthorityError::Request);
        Self::Certificate { request, message: error.to_string() }
    }
}

impl From<CertificateError> for Refusal {
    fn from(error: CertificateError) -> Self {
        Self::Certificate { request: false, message: error.to_string() }
    }
}

impl From<OperatorError> for Refusal {
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Engine(error) => Self::Engine(error),
            other => {
                let (kind, code) = (other.kind(), other.code());
                Self::Operator { kind, code, message: other.to_string() }
            }
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// What needs the key, where that is why; for the wire that has a place for a list.
    pub(crate) dependants: Vec<Dependant>,
}

impl Refusal {
    /// What a client is told; with `dry_run`, in the words that the wire has for dry runs.
    pub(crate) fn told(&self, dry_run: bool) -> Told {
        let (status, code) = match (self, dry_run) {
            (Self::Engine(error), true) => dry_run_code(error),
            _ => (self.status(), self.code()),
        };
        let dependants = match self {
            Self::Engine(Error::Depended(dependants)) => dependants.clone(),
            _ => Vec::new(),
        };
        Told { status, code, message: self.to_string(), dependants }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Engine(error) => engine_status(error),
            Self::Operator { kind, .. } => kind_status(*kind),
            Self::CertificateEnded => StatusCode::UNAUTHORIZED,
            Self::AdminSocketOnly | Self::Kubelet(_) => StatusCode::FORBIDDEN,
            Self::HttpMethod => StatusCode::FORBIDDEN,
            Self::UnknownAccessKey | Self::UnknownAction | Self::NoSuchPath => {
                StatusCode::NOT_FOUND
            }
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Certificate { request: false, .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Params(_)
            | Self::Signature(_)
            | Self::SignatureMismatch
            | Self::Nonce(_)
            | Self::UnsupportedAction
            | Self::Version
            | Self::NotJson
            | Self::Malformed
            | Self::Certificate { request: true, .. }
            | Self::NotText => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Engine(error) => error.code(),
            Self::Operator { code, .. } => code,
            Self::AdminSocketOnly => "Forbidden.AdminSocketOnly",
            Self::CertificateEnded => "Forbidden.CertificateEnded",
            Self::Kubelet(_) => "Forbidden.KubeletCertificate",
            Self::Params(_) => "ParseRequestParameterException",
            Self::Signature(SignatureError::Unsigned | SignatureError::Missing(_)) => {
                "MissingParameter"
            }
            Self::Signature(SignatureError::Incomplete(_)) => "IncompleteSignature",
            Self::Signature(SignatureError::Method) => "InvalidSignatureMethod",
            Self::Signature(SignatureError::Timestamp) | Self::Nonce(NonceRefusal::Skewed) => {
                "IllegalTimestamp"
            }
            Self::Signature(SignatureError::SecurityToken) => "InvalidSecurityToken",
            Self::UnknownAccessKey => "InvalidAccessKeyId.NotFound",
            Self::SignatureMismatch => "SignatureDoesNotMatch",
            Self::Nonce(NonceRefusal::Replayed) => "SignatureNonceUsed",
            Self::UnknownAction => "InvalidAction.NotFound",
            Self::UnsupportedAction => "Rejected.UnsupportedOperation",
            Self::Version => "InvalidVersion",
            Self::HttpMethod | Self::WrongMethod => "UnsupportedHTTPMethod",
            Self::NoSuchPath => "InvalidPath.NotFound",
            Self::NotJson | Self::Malformed => "ParseRequestParameterException",
            Self::TooLarge(_) => "RequestTooLarge",
            Self::Incomplete => "RequestTimeout",
            Self::NotText | Self::Certificate { request: true, .. } => "InvalidParameter",
            Self::Certificate { request: false, .. } => "InternalFailure",
        }
    }
}

/// The HTTP status of an engine's refusal on this wire and on the native one.
pub(crate) fn engine_status(error: &Error) -> StatusCode {
    match error {
        // The name is older than the habit of 409.
        Error::AliasExists => StatusCode::BAD_REQUEST,
        // 503 says that nothing was done, and that the same request may be sent again.
        Error::Uncertain(_) => StatusCode::GATEWAY_TIMEOUT,
        _ => kind_status(error.kind()),
    }
}

fn kind_status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Dependency => StatusCode::CONFLICT,
        ErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A dry run ends in one of three errors, unless the service itself failed.
fn dry_run_code(error: &Error) -> (StatusCode, &'static str) {
    match error.kind() {
        _ if *error == Error::DryRun => (StatusCode::BAD_REQUEST, "DryRunOperationError"),
        ErrorKind::Denied => (StatusCode::FORBIDDEN, "AccessDeniedError"),
        ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Internal => {
            (engine_status(error), error.code())
        }
        ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Dependency => {
            (StatusCode::BAD_REQUEST, "ValidationError")
        }
    }
}
