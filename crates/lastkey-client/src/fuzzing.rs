//! What the fuzz targets call: each function reads arbitrary bytes as an answer of a server or as a
//! file, and panics only if a parser broke a promise.

use std::path::Path;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use crate::{
    Credentials, Endpoint, Error,
    api::Reply,
    kms,
    native::{self, AddedCluster, AuditVerification, Issued, Page, PluginEncrypted, PluginStatus},
};

/// The answer of a server, with this status, to the question of this kind.
pub fn answer(status: u16, kind: u8, body: &[u8]) {
    let Ok(status) = StatusCode::from_u16(status) else { return };
    let body = Bytes::copy_from_slice(body);
    let reply = Reply { server: "https://kms:7343".into(), status, body };
    let is_value = match kind {
        b'0' => outcome(reply.json::<Value>()),
        b'1' => outcome(reply.json::<Page>()),
        b'2' => outcome(reply.json::<AddedCluster>()),
        b'3' => outcome(reply.json::<Issued>()),
        b'4' => outcome(reply.json::<AuditVerification>()),
        b'5' => outcome(reply.json::<PluginStatus>()),
        b'6' => outcome(reply.json::<PluginEncrypted>()),
        b'7' => outcome(reply.text()),
        b'8' => kms::parse_answer(reply),
        other => native::parse_answer(other, reply),
    };
    assert!(status.is_success() || !is_value, "a refusal is no value");
}

/// Whether it is a value; an error can be shown, and has its place among the categories.
pub(crate) fn outcome<T>(result: Result<T, Error>) -> bool {
    result.map_err(|error| (error.to_string(), error.category())).is_ok()
}

/// The content of a credentials file.
pub fn credentials(bytes: &[u8]) {
    if let Ok(read) = Credentials::parse(Path::new("/d/credentials.json"), bytes) {
        assert!(read.ca_file.is_absolute());
        let shown = format!("{read:?}");
        let secret = read.access_key.secret.expose();
        let told = secret.len() > 40 && shown.as_bytes().windows(secret.len()).any(|w| w == secret);
        let (id, ca_file) = (read.access_key.id, read.ca_file.display().to_string());
        let public = [id, ca_file, read.endpoint.to_string()].concat();
        assert!(!told || public.as_bytes().windows(secret.len()).any(|w| w == secret));
    }
}

/// The address of a server: written and read again, it is the same.
pub fn endpoint(text: &str) {
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        let again: Endpoint = endpoint.to_string().parse().expect("it was accepted before");
        assert_eq!(again, endpoint);
    }
}
