//! `/v1/operator`: the life of the installation. These routes work while the server is sealed.
//!
//! | route | who |
//! |---|---|
//! | `GET status` | everybody; the set of shares is named to proven callers alone |
//! | `POST unseal` with a share | everybody: the share is the proof; over the network so many a second from an address |
//! | `POST unseal` without one, or to begin again | the admin socket |
//! | `POST init`, `POST accept-restore` | the admin socket: nobody else can be proven yet |
//! | `POST seal`, `rekey`, `confirm`, `cancel`, `migrate`, `rotate` | whom the policy allows |
//!
//! What changes something runs on a task of its own: a caller who hangs up leaves nothing half done.

use std::{path::PathBuf, sync::Arc};

use http::{Method, StatusCode};
use lastkey_crypto::share::Share;
use lastkey_engine::{
    Caller, Error, InstanceStatus, Life, NewShares, OperatorError, Order, Outcome, Principal,
    SealKind, SealSummary, ShareRefused, With, command::RotateKeyring,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{
    alibaba::Refusal,
    exchange::{Exchange, JSON, Peer, Reply},
    identity::identify,
    params::Params,
    sealing::Sealing,
};

const PREFIX: &str = "/v1/operator/";

/// Whether a path is one of these routes.
pub(crate) fn is_operator(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Answers one request of these routes.
pub(crate) async fn handle(sealing: &Arc<Sealing>, exchange: &Exchange<'_>) -> Reply {
    let (name, answer) = answer(sealing, exchange).await;
    match answer {
        Ok(body) => Reply {
            status: StatusCode::OK,
            content_type: JSON,
            body: body.into(),
            action: name,
            outcome: "ok",
        },
        Err(refusal) => super::refused(exchange.request_id, name, &refusal.told(false)),
    }
}

type Answer = Result<Vec<u8>, Refusal>;

async fn answer(sealing: &Arc<Sealing>, exchange: &Exchange<'_>) -> (&'static str, Answer) {
    let route = exchange.path().strip_prefix(PREFIX).unwrap_or_default();
    let wanted = if route == "status" { Method::GET } else { Method::POST };
    let name = match route {
        "status" => "InstanceStatus",
        "init" => "InitialiseServer",
        "unseal" => "UnsealServer",
        "seal" => "SealServer",
        "rekey" => "RekeySeal",
        "confirm" => "ConfirmSeal",
        "cancel" => "CancelSeal",
        "migrate" => "MigrateSeal",
        "rotate" => "RotateKey",
        "accept-restore" => "AcceptRestore",
        _ => return ("unknown", Err(Refusal::NoSuchPath)),
    };
    if exchange.head.method != wanted {
        return (name, Err(Refusal::WrongMethod));
    }
    let answer = match route {
        "status" => status(sealing, exchange),
        "init" => init(sealing, exchange).await,
        "unseal" => unseal(sealing, exchange).await,
        "seal" => seal(sealing, exchange).await,
        "accept-restore" => accept_restore(sealing, exchange).await,
        _ => order(sealing, exchange, route).await,
    };
    (name, answer)
}

fn status(sealing: &Sealing, exchange: &Exchange<'_>) -> Answer {
    told(sealing.instance.status(), is_proven(sealing, exchange))
}

/// What status says. Who has the set's name could make shares that fit it, and with them keep
/// others from unsealing; strangers are not told.
fn told(mut status: InstanceStatus, proven: bool) -> Answer {
    if !proven {
        for seal in [&mut status.seal, &mut status.pending].into_iter().flatten() {
            seal.set = None;
        }
        status.waiting = status.waiting.map(|_| "the seal cannot be reached".to_owned());
        status.target = None;
        status.held = status.held.map(|_| "the store is older than it should be".to_owned());
    }
    json(&status)
}

fn is_proven(sealing: &Sealing, exchange: &Exchange<'_>) -> bool {
    is_local(exchange) || caller(sealing, exchange).is_ok()
}

fn is_local(exchange: &Exchange<'_>) -> bool {
    matches!(exchange.peer, Peer::Admin { .. })
}

#[derive(Deserialize)]
struct Sharing {
    shares: u8,
    threshold: u8,
}

#[derive(Serialize)]
struct MadeShares {
    seal: SealSummary,
    shares: Vec<MadeShare>,
}

#[derive(Serialize)]
struct MadeShare {
    index: u8,
    share: Zeroizing<String>,
}

fn made(new: &NewShares) -> Answer {
    let shares = new
        .shares
        .iter()
        .map(|share| MadeShare { index: share.head().index, share: share.to_text() })
        .collect();
    json(&MadeShares { seal: new.seal.clone(), shares })
}

async fn init(sealing: &Arc<Sealing>, exchange: &Exchange<'_>) -> Answer {
    local_only(exchange)?;
    let Sharing { shares, threshold } = read(exchange)?;
    let instance = sealing.instance.clone();
    let new = detached(async move { instance.init(shares, threshold).await }).await?;
    made(&new)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Unseal {
    share: Option<Zeroizing<String>>,
    reset: bool,
}

async fn unseal(sealing: &Arc<Sealing>, exchange: &Exchange<'_>) -> Answer {
    let Unseal { share, reset } = read(exchange)?;
    let instance = sealing.instance.clone();
    // What is no share is refused before anything is counted: nobody's turn goes with it.
    let share = share.as_deref().map(|text| parse(text)).transpose()?;
    match (&share, &exchange.peer) {
        (Some(share), Peer::Tls { address, .. }) if !reset => {
            if !sealing.admits_share(share, address.ip()) {
                return Err(OperatorError::Busy.into());
            }
        }
        (Some(_), _) if !reset => {}
        _ => local_only(exchange)?,
    }
    let status = if reset {
        instance.reset().await
    } else {
        detached(async move { instance.unseal(share).await }).await?
    };
    told(status, is_local(exchange))
}

fn parse(text: &str) -> Result<Share, Refusal> {
    Ok(Share::parse(text).map_err(|error| OperatorError::Share(ShareRefused::Share(error)))?)
}

async fn seal(sealing: &Arc<Sealing>, exchange: &Exchange<'_>) -> Answer {
    let caller = caller(sealing, exchange)?;
    let instance = sealing.instance.clone();
    told(detached(async move { instance.seal(&caller).await }).await?, true)
}

#[derive(Deserialize)]
struct Reason {
    reason: String,
}

async fn accept_restore(sealing: &Arc<Sealing>, exchange: &Exchange<'_>) -> Answer {
    local_only(exchange)?;
    let Reason { reason } = read(exchange)?;
    if reason.trim().is_empty() || reason.len() > 1024 {
        return Err(Error::invalid("reason", "say why, in at most 1024 characters").into());
    }
    let instance = sealing.instance.clone();
    told(detached(async move { instance.accept_restore(&reason).await }).await?, true)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ordered {
    share: Option<Zeroizing<String>>,
    shares: Option<u8>,
    threshold: Option<u8>,
    to: Option<SealKind>,
    what: Option<String>,
    token: Option<TokenOptions>,
}

/// How a token is reached that the server was not started with.
#[derive(Deserialize)]
struct TokenOptions {
    module: PathBuf,
    token: String,
    key: String,
    pin_file: PathBuf,
}

async fn order(sealing: &Arc<Sealing>, exchange: &Exchange<'_>, route: &str) -> Answer {
    let caller = caller(sealing, exchange)?;
    let Ordered { share, shares, threshold, to, what, token } = read(exchange)?;
    let share = share.as_deref().map(|text| parse(text)).transpose()?;
    let splitting = match (shares, threshold) {
        (Some(shares), Some(threshold)) => Some((shares, threshold)),
        (None, None) => None,
        // Half of it is not what the one who began has said.
        _ => return Err(OperatorError::Splitting.into()),
    };
    let order = match route {
        "rekey" => Order::Rekey { splitting },
        "confirm" => Order::Confirm,
        "cancel" => Order::Cancel,
        "migrate" => {
            let to = to.ok_or(Error::MissingParameter("to"))?;
            Order::Migrate { to, splitting }
        }
        _ => match what.as_deref() {
            Some("root") => Order::RotateRoot,
            Some("keyring") => return rotate_keyring(sealing, &caller).await,
            _ => return Err(Error::invalid("what", "give root or keyring").into()),
        },
    };
    let token = match token {
        None => None,
        Some(options) => {
            // A module is code that this process runs: only who could run it anyway names one.
            local_only(exchange)?;
            let TokenOptions { module, token, key, pin_file } = options;
            Some(lastkey_engine::TokenSeal::new(lastkey_engine::TokenConfig {
                module,
                token,
                key,
                pin_file,
            }))
        }
    };
    let token = token.map(|token| Arc::new(token) as Arc<dyn lastkey_engine::Seal>);
    let (instance, sealing) = (sealing.instance.clone(), Arc::clone(sealing));
    let outcome = detached(async move {
        let outcome = instance.order(&caller, order, With { share, token }).await;
        sealing.seal_changed();
        outcome
    });
    match outcome.await? {
        Outcome::Shares(new) => made(&new),
        Outcome::Status(status) => told(*status, true),
    }
}

#[derive(Serialize)]
struct RotatedKeyring {
    keyring_key: u32,
}

async fn rotate_keyring(sealing: &Sealing, caller: &Caller) -> Answer {
    let open = sealing.open().ok_or(Error::Sealed(Life::Sealed))?;
    let keyring_key = open.engine.execute(caller, RotateKeyring).await?;
    json(&RotatedKeyring { keyring_key })
}

/// Who calls, as the engine knows them.
fn caller(sealing: &Sealing, exchange: &Exchange<'_>) -> Result<Caller, Refusal> {
    let Some(open) = sealing.open() else {
        let life = sealing.instance.life();
        let life = if life == Life::Unsealed { Life::Sealed } else { life };
        return Err(Error::Sealed(life).into());
    };
    let identified = Params::parse(exchange.query(), b"")
        .map_err(Refusal::from)
        .and_then(|params| identify(&open.engine, exchange, &params));
    match identified {
        Ok(claimed) => Ok(claimed.caller),
        Err(refusal) => {
            open.engine.refused(refusal.code(), exchange.peer.source());
            Err(refusal)
        }
    }
}

fn local_only(exchange: &Exchange<'_>) -> Result<(), Refusal> {
    let principal = match exchange.peer {
        Peer::Admin { uid, .. } => Some(Principal::Local { uid: *uid }),
        Peer::Tls { .. } => None,
    };
    principal.map(|_| ()).ok_or(Refusal::AdminSocketOnly)
}

fn read<T: DeserializeOwned>(exchange: &Exchange<'_>) -> Result<T, Refusal> {
    let body: &[u8] = if exchange.body.is_empty() { b"{}" } else { &exchange.body };
    serde_json::from_slice(body).map_err(|_| Refusal::NotJson)
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Sharing>(bytes);
    let _ = serde_json::from_slice::<Reason>(bytes);
    let _ = serde_json::from_slice::<Ordered>(bytes);
    if let Ok(Unseal { share: Some(share), .. }) = serde_json::from_slice(bytes) {
        let _ = parse(&share);
    }
}

fn json(value: &impl Serialize) -> Answer {
    serde_json::to_vec(value).map_err(|_| Error::Internal.into())
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, OperatorError>> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::spawn(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Error::Internal.into()),
    }
}
