//! Answers as bytes, turned into values or errors.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{ApiError, Error};

/// What came back, from whom.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) server: Arc<str>,
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The value, or the refusal.
    pub(crate) fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let reply = self.accepted()?;
        serde_json::from_slice(&reply.body)
            .map_err(|_| reply.garbage("the JSON is not the expected"))
    }

    /// The text, or the refusal.
    pub(crate) fn text(self) -> Result<String, Error> {
        let reply = self.accepted()?;
        match String::from_utf8(reply.body.to_vec()) {
            Ok(text) => Ok(text),
            Err(_) => Err(reply.garbage("the text is not UTF-8")),
        }
    }

    /// Itself, unless the server refused. No server of ours has another one behind it, so 502 is a
    /// proxy's, whatever it says.
    pub(crate) fn accepted(self) -> Result<Self, Error> {
        if self.status.is_success() {
            return Ok(self);
        }
        if self.status == StatusCode::BAD_GATEWAY {
            return Err(self.garbage("a proxy's error"));
        }
        match serde_json::from_slice::<Refusal>(&self.body) {
            Ok(refusal) => Err(refusal.with(self.status).into()),
            Err(_) => Err(self.garbage("an error without a code")),
        }
    }

    /// The same, where somebody else's refusal must not be taken for ours: each of ours names its
    /// request.
    pub(crate) fn accepted_by_ours(self) -> Result<Self, Error> {
        let server = self.server.clone();
        match self.accepted() {
            Err(Error::Api(refusal)) if refusal.request_id.is_none() => Err(Error::Garbage {
                server: server.to_string(),
                what: "an error without a request id",
            }),
            outcome => outcome,
        }
    }

    pub(crate) fn garbage(&self, what: &'static str) -> Error {
        Error::Garbage { server: self.server.to_string(), what }
    }
}

/// Both spellings: `/v1` writes lower case, the Alibaba wire capitals.
#[derive(Deserialize)]
struct Refusal {
    #[serde(alias = "Code")]
    code: String,
    #[serde(alias = "Message", default)]
    message: String,
    #[serde(alias = "RequestId", default)]
    request_id: Option<String>,
    #[serde(default)]
    dependants: Vec<serde_json::Value>,
}

impl Refusal {
    fn with(self, status: StatusCode) -> ApiError {
        let Self { code, message, request_id, dependants } = self;
        ApiError { status, code, message, request_id, dependants }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &'static str) -> Reply {
        Reply {
            server: "https://s:1".into(),
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn both_spellings_of_a_refusal() {
        for body in [
            r#"{"code":"Rejected.Disabled","message":"m","request_id":"r"}"#,
            r#"{"Code":"Rejected.Disabled","Message":"m","RequestId":"r","HostId":"h"}"#,
        ] {
            let error = reply(409, body).json::<serde_json::Value>().unwrap_err();
            let api = error.api().unwrap();
            assert_eq!(
                (&*api.code, &*api.message, api.request_id.as_deref()),
                ("Rejected.Disabled", "m", Some("r"))
            );
        }
    }

    #[test]
    fn a_refusal_of_somebody_elses_is_none() {
        let ours = r#"{"code":"Rejected.Disabled","message":"m","request_id":"r"}"#;
        let theirs = r#"{"code":"bad_route","message":"m"}"#;
        for (status, body, is_refusal) in
            [(409, ours, true), (503, ours, true), (502, ours, false), (404, theirs, false)]
        {
            let error = reply(status, body).accepted_by_ours().unwrap_err();
            assert_eq!(error.api().is_some(), is_refusal, "{status} {body}");
        }
        assert!(reply(200, "").accepted_by_ours().is_ok());
        assert!(reply(502, theirs).accepted().unwrap_err().api().is_none());
    }

    #[test]
    fn garbage_is_not_repeated() {
        for (status, body) in [(200, "<html>hush"), (502, "<html>hush"), (200, "{\"hush\":1")] {
            let error = reply(status, body).json::<serde_json::Value>().unwrap_err();
            assert!(matches!(error, Error::Garbage { .. }));
            assert!(!format!("{error} {error:?}").contains("hush"));
        }
    }
}
