//! What an apiserver says when it does not do what it was asked.
//!
//! Its own words may quote the object that it refuses, and with it a Secret's value. So none of
//! them are kept: a refusal is told by its reason, the fields it is about, and who refused.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use super::packed;

/// Why a call to an apiserver failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// No connection: nothing was sent.
    #[error("{server} cannot be reached: {reason}")]
    Unreachable {
        /// Which apiserver.
        server: String,
        /// The connection's error.
        reason: String,
    },
    /// The connection broke, or no answer came in time. It may have been carried out.
    #[error("{server} gave no answer: {reason}")]
    NoAnswer {
        /// Which apiserver.
        server: String,
        /// How it broke.
        reason: String,
    },
    /// It answered with something that cannot be understood.
    #[error("{server} answered with {what}")]
    Garbage {
        /// Which apiserver.
        server: String,
        /// What it is.
        what: &'static str,
    },
    /// The answer is larger than a page may be: ask for fewer objects.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// How much is taken.
        limit: usize,
    },
    /// The credential is not known to it, or no longer (401).
    #[error("the apiserver does not accept the registered credential: register the cluster anew")]
    Unauthorized,
    /// The role does not allow it (403).
    #[error("the apiserver's policy does not allow this account to {what}")]
    Forbidden {
        /// Method and path, without a query.
        what: String,
    },
    /// There is no such object or resource (404).
    #[error("not found")]
    NotFound,
    /// A group that something wanted is of does not say what it serves: whether there is anything of
    /// it is not known.
    #[error(
        "the apiserver answers for {group_version} with the status {status}: what it serves there is \
         not known. `kubectl get apiservices` says whether another server has it, and what is wrong"
    )]
    Undiscovered {
        /// Group and version; the version alone for the core group.
        group_version: String,
        /// HTTP.
        status: u16,
    },
    /// The object is not what it was when it was read: another version, or another object (409).
    #[error("the object has changed since it was read")]
    Conflict,
    /// What a continue token or resource version stands for is gone (410).
    #[error("the list has expired while it was read")]
    Expired {
        /// Goes on after the last object, with the objects as they are now.
        next: Option<String>,
    },
    /// Too much at once (429), or it asks to come back later (503 with a time).
    #[error("the apiserver asks to wait{}", .retry_after.map(|t| format!(" {} s", t.as_secs())).unwrap_or_default())]
    TooMany {
        /// How long, where it says so.
        retry_after: Option<Duration>,
    },
    /// An admission webhook or policy refuses the object.
    #[error("refused by {by}")]
    Refused {
        /// Which one.
        by: String,
        /// The status code it came with.
        status: u16,
    },
    /// An admission webhook that must be asked could not be.
    #[error("the admission webhook {webhook} cannot be asked")]
    WebhookDown {
        /// Which one.
        webhook: String,
    },
    /// The object is not valid any more (422, 400).
    #[error("the object is not valid{}", fields_of(.fields))]
    Invalid {
        /// The fields that are not, as paths.
        fields: Vec<String>,
    },
    /// The apiserver itself failed.
    #[error("the apiserver answered with the status {status} ({reason})")]
    Failed {
        /// HTTP.
        status: u16,
        /// Kubernetes' word for it, such as `InternalError`; empty where it gave none.
        reason: String,
    },
}

fn fields_of(fields: &[String]) -> String {
    match fields.is_empty() {
        true => String::new(),
        false => format!(": {}", fields.join(", ")),
    }
}

impl ApiError {
    /// Whether the same call may do better a moment later, without anything having been changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } | Self::TooMany { .. } => true,
            Self::WebhookDown { .. } => true,
            Self::Failed { status, .. } | Self::Undiscovered { status, .. } => {
                matches!(status, 500 | 502..=504)
            }
            _ => false,
        }
    }

    /// Whether it is certain that nobody has carried out the call.
    pub(super) fn is_before_the_call(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Reads the answer of a refusal.
    pub(super) fn from_answer(
        status: StatusCode,
        wait: Option<Duration>,
        answer: &Answer<'_>,
    ) -> Self {
        let told = Told::read(answer.body).unwrap_or_default();
        if let Some(webhook) = quoted_after(&told.message, "failed calling webhook ") {
            return Self::WebhookDown { webhook };
        }
        if let Some(by) = refuser(&told.message) {
            return Self::Refused { by, status: status.as_u16() };
        }
        match status.as_u16() {
            401 => Self::Unauthorized,
            403 => Self::Forbidden { what: format!("{} {}", answer.method, answer.path) },
            404 => Self::NotFound,
            409 if told.reason != "AlreadyExists" => Self::Conflict,
            410 => Self::Expired { next: Some(told.next).filter(|next| !next.is_empty()) },
            413 => Self::Invalid { fields: vec!["the object is too large".to_owned()] },
            429 => Self::TooMany { retry_after: wait },
            503 if wait.is_some() => Self::TooMany { retry_after: wait },
            400 | 422 => Self::Invalid { fields: told.fields },
            code => Self::Failed { status: code, reason: told.reason },
        }
    }
}

/// What a refusal answered, and to what.
pub(super) struct Answer<'a> {
    pub(super) method: &'a http::Method,
    pub(super) path: &'a str,
    pub(super) body: &'a [u8],
}

/// The parts of a `metav1.Status` that are looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) reason: String,
    /// May quote what was sent: never shown.
    pub(super) message: String,
    /// Goes on with a list that has expired.
    pub(super) next: String,
    /// What is not valid.
    pub(super) fields: Vec<String>,
    /// The name of what it is about.
    pub(super) about: String,
}

impl Told {
    /// In JSON or protobuf: an apiserver chooses by what the call accepts, and by who of its parts
    /// answers.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        if packed::is_packed(body) {
            return packed::status(body);
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            reason: String,
            message: String,
            metadata: ListMeta,
            details: Details,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ListMeta {
            #[serde(rename = "continue")]
            next: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Details {
            name: String,
            causes: Vec<Cause>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Cause {
            field: String,
        }
        let Status { reason, message, metadata, details } = serde_json::from_slice(body).ok()?;
        let fields = details.causes.into_iter().map(|cause| cause.field).collect();
        Some(Self { reason, message, next: metadata.next, fields, about: details.name })
    }
}

/// Who refuses, as admission writes it.
fn refuser(message: &str) -> Option<String> {
    if let Some(webhook) = quoted_after(message, "admission webhook ") {
        return Some(format!("the admission webhook {webhook}"));
    }
    let (_, rest) = message.split_once("ValidatingAdmissionPolicy '")?;
    let (policy, _) = rest.split_once('\'')?;
    is_name(policy).then(|| format!("the ValidatingAdmissionPolicy {policy}"))
}

fn quoted_after(message: &str, words: &str) -> Option<String> {
    let (_, rest) = message.split_once(words)?;
    let (name, _) = rest.strip_prefix('"')?.split_once('"')?;
    is_name(name).then(|| name.to_owned())
}

/// Only names of objects are taken out of a message; anything else could be a value.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, wait: Option<u64>, body: &serde_json::Value) -> ApiError {
        let body = body.to_string();
        let answer = Answer { method: &http::Method::PUT, path: "/x", body: body.as_bytes() };
        let status = StatusCode::from_u16(status).unwrap();
        ApiError::from_answer(status, wait.map(Duration::from_secs), &answer)
    }

    #[test]
    fn refusals_are_told_apart() {
        let say = |reason: &str, message: &str| {
            serde_json::json!({
                "kind": "Status", "reason": reason, "message": message,
            })
        };
        assert_eq!(error(409, None, &say("Conflict", "modified")), ApiError::Conflict);
        assert_eq!(error(404, None, &say("NotFound", "")), ApiError::NotFound);
        assert_eq!(error(401, None, &say("Unauthorized", "")), ApiError::Unauthorized);
        let wait = Some(Duration::from_secs(3));
        assert_eq!(error(429, Some(3), &say("", "")), ApiError::TooMany { retry_after: wait });
        assert_eq!(error(503, Some(3), &say("", "")), ApiError::TooMany { retry_after: wait });
        let denied =
            say("Forbidden", "admission webhook \"no.example.org\" denied the request: s3cret");
        let refused = error(403, None, &denied);
        assert_eq!(refused.to_string(), "refused by the admission webhook no.example.org");
        let down = say("InternalError", "failed calling webhook \"w.example.org\": Post s3cret");
        assert_eq!(
            error(500, None, &down),
            ApiError::WebhookDown { webhook: "w.example.org".into() }
        );
        let policy = say(
            "Invalid",
            "secrets \"a\" is forbidden: ValidatingAdmissionPolicy 'frozen' with binding 'b' denied request: s3cret",
        );
        assert_eq!(
            error(422, None, &policy).to_string(),
            "refused by the ValidatingAdmissionPolicy frozen"
        );
        let gone = serde_json::json!({ "reason": "Expired", "metadata": { "continue": "abc" } });
        assert_eq!(error(410, None, &gone), ApiError::Expired { next: Some("abc".into()) });
        let invalid = serde_json::json!({ "reason": "Invalid", "message": "Invalid value: \"s3cret\"",
            "details": { "causes": [{ "field": "data[a]", "message": "s3cret" }] } });
        assert_eq!(error(422, None, &invalid).to_string(), "the object is not valid: data[a]");
    }
}
