//! Who sent a request: one function for every wire.
//!
//! A signature goes first, so that a request never acts as more than what it was signed as; then
//! the client certificate or the admin socket's peer. One of RPC v1 is none where path and body say
//! what is wanted, as on the native wire: it covers neither. There is no anonymous caller. A certificate of
//! a cluster's own CA makes its holder a kubelet that asks to enrol, and only where that is asked.

use lastkey_engine::{Caller, Engine, Principal};
use rustls_pki_types::CertificateDer;

use crate::{
    alibaba::{
        Refusal,
        signature::{Claim, SignatureError, SignedRequest},
    },
    exchange::Exchange,
    native::enrols_in,
    params::Params,
    tls::{KubeletCertificate, KubeletError, kubelet_of},
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
            None => match exchange.peer.foreign() {
                Some(chain) => by_kubelet(engine, exchange, chain),
                None if exchange.peer.has_ended(engine.clock().now()) => {
                    Err(Refusal::CertificateEnded)
                }
                None => Err(SignatureError::Unsigned.into()),
            },
        },
        Err(error) => Err(error.into()),
    }
}

/// A certificate of a cluster's own CA: good for a request to enrol in that very cluster, and for
/// nothing else.
fn by_kubelet(
    engine: &Engine,
    exchange: &Exchange<'_>,
    chain: &[CertificateDer<'_>],
) -> Result<Claimed, Refusal> {
    let cluster = enrols_in(exchange.path()).ok_or(KubeletError::Elsewhere)?;
    let roots = engine.node_roots(Some(cluster));
    let KubeletCertificate { node, certificate, key } =
        kubelet_of(chain, &roots, engine.clock().now())?;
    let principal = Principal::Kubelet { cluster, node, certificate, key };
    let caller = Caller::new(principal, exchange.peer.source(), exchange.request_id);
    Ok(Claimed { caller, by_headers: None })
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
