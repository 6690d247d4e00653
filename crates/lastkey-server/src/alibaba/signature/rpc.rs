//! RPC v1: everything is a parameter, and the signature covers all of them. It covers nothing else:
//! the text that is signed names the path `/` wherever the request goes, and of a body only the form.
//! So it is no signature of a request to another path, nor of one with another body.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_crypto::mac;
use zeroize::Zeroizing;

use super::{
    API_PATH, Claim, SignatureError, SignedRequest, canonical, parse_nonce, parse_timestamp,
};
use crate::params::Place;

#[derive(Clone, Copy, Debug)]
enum Method {
    HmacSha1,
    HmacSha256,
}

#[derive(Debug)]
pub(super) struct Proof<'a> {
    method: Method,
    signature: &'a str,
}

pub(super) fn claim<'a>(request: &SignedRequest<'a>) -> Result<Claim<'a>, SignatureError> {
    let params = request.params;
    let signature = params.get("Signature").ok_or(SignatureError::Unsigned)?;
    require_cover(request)?;
    let required = |name: &'static str| params.non_empty(name).ok_or(SignatureError::Missing(name));
    let method = match params.non_empty("SignatureMethod").unwrap_or("HMAC-SHA1") {
        "HMAC-SHA1" => Method::HmacSha1,
        "HMAC-SHA256" => Method::HmacSha256,
        _ => return Err(SignatureError::Method),
    };
    // The old SDK sends an empty SignatureType; any other names a scheme without a secret of ours.
    if params.non_empty("SignatureType").is_some() {
        return Err(SignatureError::Method);
    }
    if required("SignatureVersion")? != "1.0" {
        return Err(SignatureError::Incomplete("SignatureVersion has to be 1.0"));
    }
    if params.non_empty("SecurityToken").is_some() {
        return Err(SignatureError::SecurityToken);
    }
    Ok(Claim {
        access_key_id: required("AccessKeyId")?,
        timestamp: parse_timestamp(required("Timestamp")?)?,
        nonce: parse_nonce(required("SignatureNonce")?)?,
        proof: super::Proof::Rpc(Proof { method, signature }),
    })
}

/// Refuses what this protocol's signatures say nothing about.
fn require_cover(request: &SignedRequest<'_>) -> Result<(), SignatureError> {
    if request.path != API_PATH {
        return Err(SignatureError::Incomplete(
            "RPC v1 covers neither path nor JSON and is taken at / alone; sign by \
             ACS3-HMAC-SHA256, or use a client certificate or the admin socket",
        ));
    }
    let is_form = request.params.iter().any(|param| param.place == Place::Form);
    if !request.body.is_empty() && !is_form {
        return Err(SignatureError::Incomplete(
            "RPC v1 covers no body but a form; send application/x-www-form-urlencoded, or all \
             parameters in the query",
        ));
    }
    Ok(())
}

impl Proof<'_> {
    pub(super) fn verify(&self, request: &SignedRequest<'_>, secret: &[u8]) -> bool {
        let text = canonical::rpc(request.method, request.params);
        let mut key = Zeroizing::new(Vec::with_capacity(secret.len() + 1));
        key.extend_from_slice(secret);
        key.push(b'&');
        let mut given = [0; 48];
        let Ok(length) = STANDARD.decode_slice(self.signature, &mut given) else { return false };
        match self.method {
            Method::HmacSha1 => mac::equal(&given[..length], &mac::hmac_sha1(&key, &[&text])),
            Method::HmacSha256 => mac::equal(&given[..length], &mac::hmac_sha256(&key, &[&text])),
        }
    }
}
