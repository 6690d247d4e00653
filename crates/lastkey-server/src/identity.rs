//! Who sent a request: one function for every wire.
//!
//! A signature goes first, so that a request never acts as more than what it was signed as; then
//! the client certificate or the admin socket's peer. There is no anonymous caller.

use lastkey_engine::{Caller, Engine, Principal};

use crate::{
    alibaba::{
        Refusal,
        signature::{Claim, SignatureError, SignedRequest},
    },
    exchange::Exchange,
    params::Params,
};

/// An identified caller.
pub(crate) struct Claimed {
    pub(crate) caller: Caller,
    /// Whether the signature is in the headers; `None` without one.
    pub(crate) by_headers: Option<bool>,
}

/// Identifies the sender of `exchange`.
///
/// # Errors
/// Why it is nobody we know.
pub(crate) fn identify(
    engine: &Engine,
    exchange: &Exchange<'_>,
    params: &Params<'_>,
) -> Result<Claimed, Refusal> {
    let request = SignedRequest {
        method: exchange.head.method.as_str(),
        path: exchange.path(),
        authority: exchange.head.uri.authority().map(http::uri::Authority::as_str),
        headers: &exchange.head.headers,
        params,
        body: &exchange.body,
    };
    match Claim::parse(&request) {
        Ok(claim) => by_signature(engine, exchange, &request, &claim),
        Err(SignatureError::Unsigned) => match exchange.peer.principal(engine.clock().now()) {
            Some(principal) => {
                let source = exchange.peer.source();
                let caller = Caller::new(principal, source, exchange.request_id);
                Ok(Claimed { caller, by_headers: None })
            }
            None => Err(SignatureError::Unsigned.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn by_signature(
    engine: &Engine,
    exchange: &Exchange<'_>,
    request: &SignedRequest<'_>,
    claim: &Claim<'_>,
) -> Result<Claimed, Refusal> {
    let key = engine.access_key(claim.access_key_id).ok_or(Refusal::UnknownAccessKey)?;
    if !claim.verify(request, key.secret.expose()) {
        return Err(Refusal::SignatureMismatch);
    }
    let nonce = engine.admit_nonce(claim.access_key_id, claim.nonce, claim.timestamp)?;
    let principal = Principal::Root { access_key_id: key.id.clone() };
    let mut caller = Caller::new(principal, exchange.peer.source(), exchange.request_id);
    caller.nonce = Some(nonce);
    Ok(Claimed { caller, by_headers: Some(claim.is_in_headers()) })
}
