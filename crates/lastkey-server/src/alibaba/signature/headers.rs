//! ACS3 and ACS4: the signature stands in the `Authorization` header and names the headers that it
//! covers.
//!
//! ```text
//! ACS3-HMAC-SHA256 Credential=<id>,SignedHeaders=a;b,Signature=<64 hex>
//! ACS4-HMAC-SHA256 Credential=<id>/<yyyymmdd>/<region>/<product>/aliyun_v4_request,SignedHeaders=…
//! ```
//!
//! Method, path, query and the hash of the body are covered by construction. Of the headers that
//! change a request's meaning, all have to be: the host, every `x-acs-*`, and at `/` the content type
//! of a body, which decides whether it is read as a form.

use http::HeaderValue;
use lastkey_crypto::mac;
use zeroize::Zeroizing;

use super::{
    API_PATH, Claim, SignatureError, SignedRequest,
    canonical::{Canonical, SignedHeader},
    parse_nonce, parse_timestamp,
};

const ACS3: &str = "ACS3-HMAC-SHA256";
const ACS4: &str = "ACS4-HMAC-SHA256";
const PREFIX: &str = "x-acs-";
/// SHA-256 of nothing: most requests have no body.
const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// SDKs sign about ten.
const MAX_SIGNED_HEADERS: usize = 64;

const DATE: &str = "x-acs-date";
const NONCE: &str = "x-acs-signature-nonce";
const CONTENT_HASH: &str = "x-acs-content-sha256";
const CONTENT_TYPE: &str = "content-type";
const ACCESS_KEY_ID: &str = "x-acs-accesskey-id";
const SECURITY_TOKEN: &str = "x-acs-security-token";

/// The region, product and day that an ACS4 key is derived for.
#[derive(Debug)]
struct Scope<'a> {
    date: &'a str,
    region: &'a str,
    product: &'a str,
}

#[derive(Debug)]
pub(super) struct Proof<'a> {
    /// `None` for ACS3.
    scope: Option<Scope<'a>>,
    signature: [u8; 32],
    signed_headers: &'a str,
    headers: Vec<SignedHeader<'a>>,
}

pub(super) fn claim<'a>(
    request: &SignedRequest<'a>,
    authorization: &'a HeaderValue,
) -> Result<Claim<'a>, SignatureError> {
    let parts = Authorization::parse(authorization)?;
    let headers = signed_headers(request, parts.signed_headers)?;
    require_payload_hash(request, &headers)?;
    require_content_type(request, &headers)?;

    let date = value(&headers, DATE).ok_or(SignatureError::Missing(DATE))?;
    if parts.scope.as_ref().is_some_and(|scope| !same_day(scope.date, date)) {
        return Err(SignatureError::Incomplete("the credential's date is not that of x-acs-date"));
    }
    if value(&headers, SECURITY_TOKEN).is_some_and(|token| !token.is_empty()) {
        return Err(SignatureError::SecurityToken);
    }
    if value(&headers, ACCESS_KEY_ID).is_some_and(|id| id != parts.access_key_id) {
        return Err(SignatureError::Incomplete("x-acs-accesskey-id is not the credential's"));
    }
    Ok(Claim {
        access_key_id: parts.access_key_id,
        timestamp: parse_timestamp(date)?,
        nonce: parse_nonce(value(&headers, NONCE).ok_or(SignatureError::Missing(NONCE))?)?,
        proof: super::Proof::Headers(Proof {
            scope: parts.scope,
            signature: parts.signature,
            signed_headers: parts.signed_headers,
            headers,
        }),
    })
}

struct Authorization<'a> {
    access_key_id: &'a str,
    scope: Option<Scope<'a>>,
    signed_headers: &'a str,
    signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a HeaderValue) -> Result<Self, SignatureError> {
        let text = header
            .to_str()
            .map_err(|_| SignatureError::Incomplete("the Authorization header is not text"))?;
        let (algorithm, fields) = text.split_once(' ').ok_or(SignatureError::Method)?;
        if algorithm != ACS3 && algorithm != ACS4 {
            return Err(SignatureError::Method);
        }
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',').map(str::trim) {
            let (name, value) = field.split_once('=').ok_or(SignatureError::Incomplete(
                "the Authorization header's fields are Credential, SignedHeaders and Signature",
            ))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(SignatureError::Incomplete("an Authorization field is unknown")),
            };
            if slot.replace(value).is_some() {
                return Err(SignatureError::Incomplete("an Authorization field occurs twice"));
            }
        }
        let credential = credential.ok_or(SignatureError::Missing("Credential"))?;
        let (access_key_id, scope) = if algorithm == ACS4 {
            let (id, scope) = parse_scope(credential)?;
            (id, Some(scope))
        } else {
            (credential, None)
        };
        if access_key_id.is_empty() {
            return Err(SignatureError::Missing("AccessKeyId"));
        }
        Ok(Self {
            access_key_id,
            scope,
            signed_headers: signed_headers.ok_or(SignatureError::Missing("SignedHeaders"))?,
            signature: parse_signature(signature.ok_or(SignatureError::Missing("Signature"))?)?,
        })
    }
}

fn parse_scope(credential: &str) -> Result<(&str, Scope<'_>), SignatureError> {
    let mut parts = credential.split('/');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    match (next(), next(), next(), next(), next(), next()) {
        (Some(id), Some(date), Some(region), Some(product), Some("aliyun_v4_request"), None) => {
            Ok((id, Scope { date, region, product }))
        }
        _ => Err(SignatureError::Incomplete(
            "an ACS4 credential is <id>/<yyyymmdd>/<region>/<product>/aliyun_v4_request",
        )),
    }
}

fn parse_signature(text: &str) -> Result<[u8; 32], SignatureError> {
    let mut signature = [0; 32];
    hex::decode_to_slice(text, &mut signature)
        .map_err(|_| SignatureError::Incomplete("the signature is not of 64 hexadecimal digits"))?;
    Ok(signature)
}

/// Looks up the headers named by `list`, which has to be sorted and without repetition: every SDK
/// sends it so, and no header can then be covered twice. The host, and every `x-acs-*` header that
/// was sent, has to be in it.
///
/// One pass over what was sent: looking up each name would hash it.
fn signed_headers<'a>(
    request: &SignedRequest<'a>,
    list: &'a str,
) -> Result<Vec<SignedHeader<'a>>, SignatureError> {
    let mut headers = named(list)?;
    let mut missing = headers.len();
    for (name, value) in request.headers {
        let name = name.as_str();
        let Ok(at) = headers.binary_search_by(|header| header.name.cmp(name)) else {
            if name.starts_with(PREFIX) {
                return Err(SignatureError::Incomplete(
                    "the signature does not cover every x-acs- header",
                ));
            }
            continue;
        };
        let header = &mut headers[at];
        if header.value.is_some() {
            return Err(SignatureError::Incomplete("a signed header was sent twice"));
        }
        let text = value
            .to_str()
            .map_err(|_| SignatureError::Incomplete("a signed header is not visible ASCII"))?;
        header.value = Some(text.trim());
        missing -= 1;
    }
    let host = headers
        .binary_search_by(|header| header.name.cmp("host"))
        .map_err(|_| SignatureError::Incomplete("the signature does not cover the host"))?;
    if headers[host].value.is_none() {
        let authority = request.authority;
        headers[host].value = Some(
            authority.ok_or(SignatureError::Incomplete("the host is signed, but was not sent"))?,
        );
        missing -= 1;
    }
    if missing > 0 {
        return Err(SignatureError::Incomplete("a signed header was not sent"));
    }
    Ok(headers
        .into_iter()
        .map(|Named { name, value }| SignedHeader { name, value: value.unwrap_or_default() })
        .collect())
}

/// A signed header's name, and its value once it was found.
struct Named<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

fn named(list: &str) -> Result<Vec<Named<'_>>, SignatureError> {
    let mut headers: Vec<Named<'_>> = Vec::with_capacity(16);
    for name in list.split(';') {
        if headers.len() == MAX_SIGNED_HEADERS {
            return Err(SignatureError::Incomplete("too many signed headers"));
        }
        if headers.last().is_some_and(|last| last.name >= name) {
            return Err(SignatureError::Incomplete("SignedHeaders is not sorted"));
        }
        headers.push(Named { name, value: None });
    }
    Ok(headers)
}

/// The signed hash has to be that of the body as it arrived.
fn require_payload_hash(
    request: &SignedRequest<'_>,
    headers: &[SignedHeader<'_>],
) -> Result<(), SignatureError> {
    let claimed = value(headers, CONTENT_HASH).ok_or(SignatureError::Missing(CONTENT_HASH))?;
    let matches = if request.body.is_empty() {
        claimed == EMPTY_HASH
    } else {
        let mut hash = [0; 32];
        hex::decode_to_slice(claimed, &mut hash).is_ok() && hash == mac::sha256(&[request.body])
    };
    matches.then_some(()).ok_or(SignatureError::Incomplete(
        "x-acs-content-sha256 is not the SHA-256 of the body in lower-case hexadecimal digits",
    ))
}

/// Whoever could take the content type of a form away would take its parameters away.
fn require_content_type(
    request: &SignedRequest<'_>,
    headers: &[SignedHeader<'_>],
) -> Result<(), SignatureError> {
    let decides = request.path == API_PATH && !request.body.is_empty();
    if decides && value(headers, CONTENT_TYPE).is_none() {
        return Err(SignatureError::Incomplete("the signature does not cover the content-type"));
    }
    Ok(())
}

fn value<'a>(headers: &[SignedHeader<'a>], name: &str) -> Option<&'a str> {
    let at = headers.binary_search_by(|header| header.name.cmp(name)).ok()?;
    Some(headers[at].value)
}

/// Whether `yyyymmdd` is the day of `yyyy-mm-dd…`.
fn same_day(compact: &str, date: &str) -> bool {
    let day = date.get(..10).unwrap_or_default();
    compact.bytes().eq(day.bytes().filter(|byte| *byte != b'-'))
}

impl Proof<'_> {
    pub(super) fn verify(&self, request: &SignedRequest<'_>, secret: &[u8]) -> bool {
        let Some(payload_hash) = value(&self.headers, CONTENT_HASH) else { return false };
        let canonical = Canonical {
            method: request.method,
            path: request.path,
            params: request.params,
            headers: &self.headers,
            signed_headers: self.signed_headers,
            payload_hash,
        };
        let mut digest = [0; 64];
        // 32 bytes are 64 digits.
        let _ = hex::encode_to_slice(mac::sha256(&[&canonical.text()]), &mut digest);
        let algorithm = if self.scope.is_some() { ACS4 } else { ACS3 };
        let text: [&[u8]; 3] = [algorithm.as_bytes(), b"\n", &digest];
        let expected = match &self.scope {
            None => mac::hmac_sha256(secret, &text),
            Some(scope) => mac::hmac_sha256(&*scope.signing_key(secret), &text),
        };
        mac::equal(&self.signature, &expected)
    }
}

impl Scope<'_> {
    /// `HMAC(HMAC(HMAC(HMAC("aliyun_v4" ‖ secret, date), region), product), "aliyun_v4_request")`.
    fn signing_key(&self, secret: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut seed = Zeroizing::new(Vec::with_capacity(9 + secret.len()));
        seed.extend_from_slice(b"aliyun_v4");
        seed.extend_from_slice(secret);
        let date = Zeroizing::new(mac::hmac_sha256(&seed, &[self.date.as_bytes()]));
        let region = Zeroizing::new(mac::hmac_sha256(&*date, &[self.region.as_bytes()]));
        let product = Zeroizing::new(mac::hmac_sha256(&*region, &[self.product.as_bytes()]));
        Zeroizing::new(mac::hmac_sha256(&*product, &[b"aliyun_v4_request"]))
    }
}
