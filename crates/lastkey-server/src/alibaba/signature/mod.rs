//! Who signed a request: RPC v1 (HMAC-SHA1 or -SHA256), ACS3-HMAC-SHA256 and ACS4-HMAC-SHA256.
//!
//! Verification in steps, each of which may refuse:
//! 1. [`Claim::parse`] tells the protocol apart and reads who signed, when, and with which nonce;
//! 2. it checks that the signature covers all that could change the request's meaning: for ACS3
//!    and ACS4 the host, every `x-acs-*` header that was sent, the hash of the body as it arrived
//!    and at `/` its content type. RPC v1 covers the method and all parameters by construction, and
//!    neither the path nor any body but a form: it is refused with either;
//! 3. [`Claim::verify`] recomputes the signature and compares in constant time;
//! 4. the caller of this module then admits the nonce, so that only holders of a secret can fill
//!    the table of nonces.
//!
//! It trusts nothing but the secret. The string to sign is never shown to anybody: it holds
//! plaintexts.

use http::HeaderMap;
use lastkey_engine::Timestamp;

pub mod canonical;
mod headers;
mod rpc;

use crate::params::Params;

/// The path of the API, where all that is wanted is in parameters.
const API_PATH: &str = "/";
/// Longest nonce in bytes; SDKs send 32 to 36.
const MAX_NONCE: usize = 128;

/// The parts of a request that signatures are about.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The path as sent.
    pub path: &'a str,
    /// The authority of an HTTP/2 request, which has no `host` header.
    pub authority: Option<&'a str>,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// Query and form.
    pub params: &'a Params<'a>,
    /// The body as it arrived.
    pub body: &'a [u8],
}

/// Why a signature was not accepted before the secret was even looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Neither an `Authorization` header nor a `Signature` parameter.
    #[error("the request is not signed: it has neither an Authorization header nor a Signature")]
    Unsigned,
    /// A part that every signature of this protocol has is missing.
    #[error(
        "the input parameter {0:?} that is mandatory for processing this request is not supplied"
    )]
    Missing(&'static str),
    /// The signature's form is not that of its protocol.
    #[error("the request signature does not conform to the protocol: {0}")]
    Incomplete(&'static str),
    /// A signature method that is not offered.
    #[error(
        "the signature method is not supported; use HMAC-SHA1, ACS3-HMAC-SHA256 or ACS4-HMAC-SHA256"
    )]
    Method,
    /// The time of signing cannot be read.
    #[error("the timestamp is not of the form 2026-01-31T12:00:00Z")]
    Timestamp,
    /// A session token; role sessions are not offered yet.
    #[error("security tokens are not supported; sign with an access key of this server")]
    SecurityToken,
}

/// What a signed request claims; nothing of it is proven before [`Claim::verify`].
#[derive(Debug)]
pub struct Claim<'a> {
    /// Whose secret is said to have signed.
    pub access_key_id: &'a str,
    /// When.
    pub timestamp: Timestamp,
    /// What this request never repeats.
    pub nonce: &'a str,
    proof: Proof<'a>,
}

#[derive(Debug)]
enum Proof<'a> {
    Rpc(rpc::Proof<'a>),
    Headers(headers::Proof<'a>),
}

impl<'a> Claim<'a> {
    /// Reads the claim of `request`.
    ///
    /// # Errors
    /// [`SignatureError`] if it is not signed, or not by a protocol and in a form we know.
    pub fn parse(request: &SignedRequest<'a>) -> Result<Self, SignatureError> {
        let mut authorization = request.headers.get_all(http::header::AUTHORIZATION).iter();
        match (authorization.next(), authorization.next()) {
            (None, _) => rpc::claim(request),
            (Some(value), None) => headers::claim(request, value),
            (Some(_), Some(_)) => {
                Err(SignatureError::Incomplete("there are two Authorization headers"))
            }
        }
    }

    /// Whether the signature stands in the headers; those of RPC v1 are parameters.
    pub fn is_in_headers(&self) -> bool {
        matches!(self.proof, Proof::Headers(_))
    }

    /// Whether `secret` signed `request`, the one this claim was read from.
    pub fn verify(&self, request: &SignedRequest<'_>, secret: &[u8]) -> bool {
        match &self.proof {
            Proof::Rpc(proof) => proof.verify(request, secret),
            Proof::Headers(proof) => proof.verify(request, secret),
        }
    }
}

/// `YYYY-MM-DDThh:mm:ssZ` and nothing else.
fn parse_timestamp(text: &str) -> Result<Timestamp, SignatureError> {
    if text.len() != 20 || !text.ends_with('Z') {
        return Err(SignatureError::Timestamp);
    }
    Timestamp::parse(text).map_err(|_| SignatureError::Timestamp)
}

fn parse_nonce(text: &str) -> Result<&str, SignatureError> {
    if text.is_empty() || text.len() > MAX_NONCE {
        return Err(SignatureError::Incomplete("the nonce has to have 1 to 128 bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
