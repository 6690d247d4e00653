//! Requests of the Alibaba wire, signed anew each time: all that does not change is laid out
//! beforehand, what remains is a nonce, a date, and the signature over them.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_crypto::mac;
use lastkey_engine::{Clock as _, SystemClock};
use serde::Deserialize;

use crate::options::Signature;

const VERSION: &str = "2016-01-20";
const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SIGNED: &str = "host;x-acs-action;x-acs-content-sha256;x-acs-date;\
                      x-acs-signature-nonce;x-acs-version";

/// What `credentials.json` holds, as far as a signature needs it.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) access_key_secret: String,
}

/// One request without nonce, date and signature.
#[derive(Clone)]
pub(crate) struct Template {
    secret: Arc<[u8]>,
    /// Unique to this run.
    nonce: Arc<Nonces>,
    form: Form,
    second: i64,
    date: String,
}

struct Nonces {
    run: String,
    next: AtomicU64,
}

#[derive(Clone)]
enum Form {
    Acs3 {
        /// The canonical request up to the date, and behind the nonce.
        canonical: [String; 2],
        /// The request up to the date, and between nonce and signature.
        request: [String; 2],
    },
    Rpc {
        /// The string to sign up to the nonce, from there to the date, and the rest.
        canonical: [String; 3],
        /// The request's parameters without nonce, date and signature; and its headers.
        request: [String; 2],
    },
}

impl Template {
    /// `action` with these parameters, for the server called `host`.
    pub(crate) fn new(
        signature: Signature,
        credentials: &Credentials,
        host: &str,
        (action, parameters): (&str, &[(&str, &str)]),
    ) -> Self {
        let secret = credentials.access_key_secret.as_bytes();
        let (secret, form) = match signature {
            Signature::Acs3 => (secret.to_vec(), acs3(credentials, host, (action, parameters))),
            Signature::Rpc => {
                ([secret, b"&"].concat(), rpc(credentials, host, (action, parameters)))
            }
        };
        let mut run = [0; 8];
        lastkey_crypto::Entropy::fill(&lastkey_crypto::SystemEntropy, &mut run);
        let nonce = Nonces { run: hex::encode(run), next: AtomicU64::new(0) };
        Self {
            secret: secret.into(),
            nonce: Arc::new(nonce),
            form,
            second: i64::MIN,
            date: String::new(),
        }
    }

    /// Appends the request as of now, with a nonce of its own.
    pub(crate) fn sign(&mut self, out: &mut Vec<u8>) {
        let now = SystemClock.now();
        if now.as_seconds() != self.second {
            self.second = now.as_seconds();
            self.date = now.to_seconds_text();
        }
        let mut nonce = [0; 32];
        self.nonce.draw(&mut nonce);
        match &self.form {
            Form::Acs3 { canonical, request } => {
                let (date, nonce) = (self.date.as_bytes(), nonce.as_slice());
                let dated: [&[u8]; 3] = [date, b"\nx-acs-signature-nonce:", nonce];
                let hash = mac::sha256(&[
                    canonical[0].as_bytes(),
                    &dated.concat(),
                    canonical[1].as_bytes(),
                ]);
                let hash = hex::encode(hash);
                let code =
                    mac::hmac_sha256(&self.secret, &[b"ACS3-HMAC-SHA256\n", hash.as_bytes()]);
                out.extend_from_slice(request[0].as_bytes());
                out.extend_from_slice(date);
                out.extend_from_slice(b"\r\nx-acs-signature-nonce: ");
                out.extend_from_slice(nonce);
                out.extend_from_slice(request[1].as_bytes());
                let mut digits = [0; 64];
                if hex::encode_to_slice(code, &mut digits).is_ok() {
                    out.extend_from_slice(&digits);
                }
                out.extend_from_slice(b"\r\n\r\n");
            }
            Form::Rpc { canonical, request } => {
                let once = self.date.replace(':', "%3A");
                let twice = self.date.replace(':', "%253A");
                let code = mac::hmac_sha1(
                    &self.secret,
                    &[
                        canonical[0].as_bytes(),
                        &nonce,
                        canonical[1].as_bytes(),
                        twice.as_bytes(),
                        canonical[2].as_bytes(),
                    ],
                );
                out.extend_from_slice(request[0].as_bytes());
                out.extend_from_slice(b"&SignatureNonce=");
                out.extend_from_slice(&nonce);
                out.extend_from_slice(b"&Timestamp=");
                out.extend_from_slice(once.as_bytes());
                out.extend_from_slice(b"&Signature=");
                out.extend_from_slice(escaped(&STANDARD.encode(code)).as_bytes());
                out.extend_from_slice(request[1].as_bytes());
            }
        }
    }
}

impl Nonces {
    fn draw(&self, out: &mut [u8; 32]) {
        let number = self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        out[..16].copy_from_slice(self.run.as_bytes());
        // Eight bytes are sixteen digits.
        let _ = hex::encode_to_slice(number, &mut out[16..]);
    }
}

/// What the current SDKs send: `POST`, parameters in the query, no body.
fn acs3(
    credentials: &Credentials,
    host: &str,
    (action, parameters): (&str, &[(&str, &str)]),
) -> Form {
    let query = query(parameters);
    let id = &credentials.access_key_id;
    let before = format!(
        "host:{host}\nx-acs-action:{action}\nx-acs-content-sha256:{EMPTY_HASH}\nx-acs-date:"
    );
    let after = format!("\nx-acs-version:{VERSION}\n\n{SIGNED}\n{EMPTY_HASH}");
    let head = format!(
        "POST /?{query} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n\
         user-agent: lastkey-bench\r\ncontent-length: 0\r\nx-acs-action: {action}\r\n\
         x-acs-content-sha256: {EMPTY_HASH}\r\nx-acs-version: {VERSION}\r\nx-acs-date: "
    );
    let proof = format!(
        "\r\nauthorization: ACS3-HMAC-SHA256 Credential={id},SignedHeaders={SIGNED},Signature="
    );
    Form::Acs3 { canonical: [format!("POST\n/\n{query}\n{before}"), after], request: [head, proof] }
}

/// What the older SDKs send: `GET`, everything in the query.
fn rpc(
    credentials: &Credentials,
    host: &str,
    (action, parameters): (&str, &[(&str, &str)]),
) -> Form {
    let common = [
        ("AccessKeyId", &*credentials.access_key_id),
        ("Action", action),
        ("Format", "JSON"),
        ("RegionId", "local"),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("Version", VERSION),
    ];
    let mut all: Vec<(&str, &str)> = common.iter().chain(parameters).copied().collect();
    let request = query(&all);
    // Marks that need no escaping and occur nowhere else, cut out again below.
    all.extend([("SignatureNonce", "\u{1}"), ("Timestamp", "\u{1}")]);
    let text = format!("GET&%2F&{}", escaped(&query(&all)));
    let mut parts = text.split("%2501").map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let canonical = [part(), part(), part()];
    let headers = format!(
        " HTTP/1.1\r\nhost: {host}\r\naccept-encoding: identity\r\nuser-agent: lastkey-bench\r\n\
         x-sdk-client: python/2.0.0\r\n\r\n"
    );
    Form::Rpc { canonical, request: [format!("GET /?{request}"), headers] }
}

/// Sorted and escaped.
fn query(parameters: &[(&str, &str)]) -> String {
    let mut sorted = parameters.to_vec();
    sorted.sort_unstable();
    let pairs: Vec<String> =
        sorted.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    pairs.join("&")
}

/// RFC 3986 §2.3: all but the unreserved characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(signature: Signature) -> Template {
        let credentials =
            Credentials { access_key_id: "LKid".into(), access_key_secret: "secret".into() };
        let parameters = [("KeyId", "alias/a"), ("Plaintext", "x y")];
        Template::new(signature, &credentials, "127.0.0.1:1", ("Encrypt", &parameters))
    }

    #[test]
    fn every_request_is_another() {
        for signature in [Signature::Acs3, Signature::Rpc] {
            let mut template = template(signature);
            let (mut first, mut second) = (Vec::new(), Vec::new());
            template.sign(&mut first);
            template.clone().sign(&mut second);
            assert_ne!(first, second);
            let text = String::from_utf8(first).unwrap();
            assert!(text.contains("KeyId=alias%2Fa&Plaintext=x%20y"), "{text}");
            assert!(text.ends_with("\r\n\r\n") && !text.contains('\u{1}'), "{text}");
        }
    }
}
