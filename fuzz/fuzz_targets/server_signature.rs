//! Signatures of all three protocols: never a panic, and never one that verifies without the
//! secret.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use lastkey_server::{
    alibaba::signature::{Claim, SignedRequest},
    params::Params,
};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 8] = [
    "authorization",
    "host",
    "x-acs-action",
    "x-acs-date",
    "x-acs-signature-nonce",
    "x-acs-content-sha256",
    "x-acs-security-token",
    "content-type",
];

fuzz_target!(|data: (&str, &[u8], Vec<(u8, &[u8])>)| {
    let (query, body, pairs) = data;
    let Ok(params) = Params::parse(query, body) else { return };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_static(NAMES[usize::from(name) % NAMES.len()]);
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let request = SignedRequest {
        method: "POST",
        path: "/",
        authority: None,
        headers: &headers,
        params: &params,
        body,
    };
    if let Ok(claim) = Claim::parse(&request) {
        assert!(!claim.verify(&request, b"a secret that no input can know: 7f1c"));
    }
});
