//! The `ACS3-HMAC-SHA256` request signature, client side.
//!
//! Pure: date and nonce are parameters. The server's verifier is separate code on purpose, so that
//! a slip in one shows against the other and against the vectors, which were computed with the
//! public SDK (PyPI `alibabacloud_tea_openapi` 0.4.6).
//!
//! ```text
//! canonical request = METHOD \n path \n sorted query \n (name:value \n)* \n signed names \n payload hash
//! string to sign    = "ACS3-HMAC-SHA256" \n hex(sha256(canonical request))
//! signature         = hex(hmac-sha256(access key secret, string to sign))
//! ```

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::AccessKey;

/// The algorithm's name on the wire.
pub const ALGORITHM: &str = "ACS3-HMAC-SHA256";
/// The header that carries the hash of the body.
pub const CONTENT_HASH: &str = "x-acs-content-sha256";
/// The header that carries the time, `2026-01-02T03:04:05Z`.
pub const DATE: &str = "x-acs-date";
/// The header that carries what makes the request unique.
pub const NONCE: &str = "x-acs-signature-nonce";

/// Everything but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is signed of a request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Upper case.
    pub method: &'a str,
    /// As sent, starting with a slash.
    pub path: &'a str,
    /// Decoded names and values.
    pub query: &'a [(String, String)],
    /// The headers to sign: lower-case names, each once. `host`, [`DATE`], [`NONCE`] and
    /// [`CONTENT_HASH`] must be among them.
    pub headers: &'a [(&'a str, String)],
    /// Lower-case hex of the body's SHA-256, as in [`CONTENT_HASH`].
    pub content_hash: &'a str,
}

/// The value of the `Authorization` header.
pub fn authorization(request: Request<'_>, key: &AccessKey) -> String {
    let signed = signed_names(request.headers);
    let canonical = canonical_request(request, &signed);
    let to_sign = format!("{ALGORITHM}\n{}", content_hash(canonical.as_bytes()));
    let signature = lastkey_crypto::mac::hmac_sha256(key.secret.expose(), &[to_sign.as_bytes()]);
    let signature = hex::encode(signature);
    format!("{ALGORITHM} Credential={},SignedHeaders={signed},Signature={signature}", key.id)
}

/// Lower-case hex of SHA-256, the form every part of the signature uses.
pub fn content_hash(body: &[u8]) -> String {
    hex::encode(lastkey_crypto::mac::sha256(&[body]))
}

/// A query string (or form body), its names sorted as the signature wants them.
pub fn encode_pairs(pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<_> = pairs.iter().collect();
    sorted.sort();
    let parts: Vec<_> = sorted
        .into_iter()
        .map(|(name, value)| {
            let name = utf8_percent_encode(name, ENCODED);
            format!("{name}={}", utf8_percent_encode(value, ENCODED))
        })
        .collect();
    parts.join("&")
}

fn canonical_request(request: Request<'_>, signed: &str) -> String {
    let mut headers: Vec<_> = request.headers.iter().collect();
    headers.sort();
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let Request { method, path, content_hash, .. } = request;
    let query = encode_pairs(request.query);
    format!("{method}\n{path}\n{query}\n{headers}\n{signed}\n{content_hash}")
}

fn signed_names(headers: &[(&str, String)]) -> String {
    let mut names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.join(";")
}
