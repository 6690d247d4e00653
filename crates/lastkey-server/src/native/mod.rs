//! The native `/v1` API: what the other wires have no words for.
//!
//! JSON both ways; errors are `{"code","message","request_id"}` with the engine's codes. Callers
//! are plugins (client certificate), the account root (ACS3 or ACS4 signature, which cover the real
//! path and the body; never RPC v1, which covers neither), kubelets that ask to enrol, and local
//! administrators (admin socket).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{Method, StatusCode};
use lastkey_engine::{Caller, Command, Dependant, Engine, Error, RequestId, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

mod access;
mod audit;
mod cluster_end;
mod clusters;
mod dependants;
mod guard;
mod nodes;
pub(crate) mod operator;
mod plugin;
mod rotations;
mod service;
mod versions;

use crate::{
    alibaba::{Refusal, Told},
    exchange::{Exchange, JSON, Reply},
    identity::{Claimed, identify},
    params::Params,
    pki::Pki,
    stopping::Stopping,
};

pub(crate) use nodes::enrols_in;

/// What a native operation answers with.
type Answer = Result<Body, Refusal>;

/// The body of an answer.
enum Body {
    Json(Vec<u8>),
    Pem(String),
}

fn json(value: &impl Serialize) -> Answer {
    // Most answers fit, and none of those is moved while it is written.
    let mut body = Vec::with_capacity(512);
    match serde_json::to_writer(&mut body, value) {
        Ok(()) => Ok(Body::Json(body)),
        Err(_) => Err(Error::Internal.into()),
    }
}

/// What the routes work with.
pub(crate) struct Context<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) pki: &'a Pki,
    /// Turns true when the server stops: whoever waits answers then.
    pub(crate) stopping: Stopping,
    /// How the audit log's sinks do.
    pub(crate) sinks: Option<&'a crate::SinkStatus>,
}

/// One identified call.
struct Call<'a> {
    context: &'a Context<'a>,
    caller: Caller,
    params: &'a Params<'a>,
    body: &'a [u8],
    /// Whether the engine was asked, and has therefore recorded what came of it.
    asked: AtomicBool,
}

impl Call<'_> {
    async fn execute<C: Command>(&self, command: C) -> Result<C::Output, Refusal> {
        let engine = self.context.engine;
        if !self.asked.swap(true, Ordering::Relaxed) {
            return Ok(engine.execute(&self.caller, command).await?);
        }
        // What a command changes is known by its request's id: each of several has one of its own.
        let caller = Caller { request_id: engine.new_request_id(), ..self.caller.clone() };
        Ok(engine.execute(&caller, command).await?)
    }

    /// The body as JSON.
    fn read<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(self.body).map_err(|_| Refusal::NotJson)
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, Refusal> {
        let Some(text) = self.params.non_empty(name) else { return Ok(None) };
        Ok(Some(text.parse().map_err(|_| Error::invalid(name, "give a whole number"))?))
    }

    fn time(&self, name: &'static str) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.params.non_empty(name) else { return Ok(None) };
        Ok(Some(Timestamp::parse(text).map_err(|e| Error::invalid(name, e.to_string()))?))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.params.non_empty(name).map(str::to_owned)
    }

    /// Resolves when the server stops.
    async fn stopped(&self) {
        self.context.stopping.clone().wait().await;
    }
}

/// The longest that any request may wait for something to happen.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);

/// Whether a request may wait, and needs room of another kind.
pub(crate) fn may_wait(path: &str) -> bool {
    matches!(path, "/v1/plugin/status" | "/v1/audit/tail")
}

/// Whether a request may take longer than others, because it reads all there is.
pub(crate) fn may_take_long(path: &str) -> bool {
    // An engine that opens reads what there is.
    reads_the_log(path) || may_wait(path) || operator::is_operator(path)
}

/// Whether a request reads all of the audit log, or as much as it may.
pub(crate) fn reads_the_log(path: &str) -> bool {
    matches!(path, "/v1/audit/verify" | "/v1/audit")
}

/// A route's name for metrics, what to do, and which method it takes.
#[derive(Clone, Copy)]
enum Route {
    Status,
    Ca,
    RenewCa,
    ListClusters,
    AddCluster,
    AddPlugin,
    Audit,
    AuditTail,
    AuditVerify,
    AuditVerifyLook,
    AuditPublicKey,
    PluginStatus,
    PluginEncrypt,
    PluginDecrypt,
    PluginRecords,
    ListNodes,
    TrustNodes,
    ApproveNode,
    RevokeNode,
    EnrolNode,
    RenewPlugin,
    ConfirmPlugin,
    GetClusterAccess,
    PutClusterAccess,
    ListDependants,
    PutDependant,
    RemoveDependant,
    DescribeImpact,
    ListRotations,
    StartRotation,
    StepRotation(rotations::Step),
    RetireKeyVersion,
    ReinstateKeyVersion,
    DescribeGuard,
    SetSecondPerson,
    ConfirmOverride,
    RejectOverride,
    RemoveClusterAccess,
    ForgetCluster,
    ConfigureCluster,
}

impl Route {
    fn find(method: &Method, path: &str) -> Result<Self, Refusal> {
        if let Some(of_a_version) = versions::route(method, path) {
            return of_a_version;
        }
        if let Some(of_a_key) = dependants::route(method, path) {
            return of_a_key;
        }
        if let Some(of_the_guard) = guard::route(method, path) {
            return of_the_guard;
        }
        if let Some(end) = cluster_end::route(method, path) {
            return end;
        }
        if let Some(of_a_cluster) = rotations::route(method, path) {
            return of_a_cluster;
        }
        if let Some(of_access) = access::route(method, path) {
            return of_access;
        }
        if let Some(of_nodes) = nodes::route(method, path) {
            return of_nodes;
        }
        let (get, post) = match path {
            "/v1/plugin/encrypt" => (None, Some(Self::PluginEncrypt)),
            "/v1/plugin/decrypt" => (None, Some(Self::PluginDecrypt)),
            "/v1/plugin/status" => (None, Some(Self::PluginStatus)),
            "/v1/plugin/records" => (None, Some(Self::PluginRecords)),
            "/v1/status" => (Some(Self::Status), None),
            "/v1/ca" => (Some(Self::Ca), None),
            "/v1/ca/renew" => (None, Some(Self::RenewCa)),
            "/v1/clusters" => (Some(Self::ListClusters), Some(Self::AddCluster)),
            "/v1/audit" => (Some(Self::Audit), None),
            "/v1/audit/tail" => (Some(Self::AuditTail), None),
            "/v1/audit/verify" => (Some(Self::AuditVerifyLook), Some(Self::AuditVerify)),
            "/v1/audit/public-key" => (Some(Self::AuditPublicKey), None),
            _ if clusters::plugins_of(path).is_some() => (None, Some(Self::AddPlugin)),
            _ => return Err(Refusal::NoSuchPath),
        };
        let route = match *method {
            Method::GET => get,
            Method::POST => post,
            _ => None,
        };
        route.ok_or(Refusal::WrongMethod)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Status => "DescribeService",
            Self::Ca => "ReadCertificate",
            Self::RenewCa => "RenewCertificate",
            Self::ListClusters => "ListClusters",
            Self::AddCluster => "AddCluster",
            Self::AddPlugin => "AddPlugin",
            Self::Audit => "QueryAudit",
            Self::AuditTail => "TailAudit",
            Self::AuditVerify | Self::AuditVerifyLook => "VerifyAudit",
            Self::AuditPublicKey => "ReadCheckpointKey",
            Self::PluginStatus => "PluginStatus",
            Self::PluginEncrypt => "PluginEncrypt",
            Self::PluginDecrypt => "PluginDecrypt",
            Self::PluginRecords => "PluginCachedDecrypt",
            Self::ListNodes => "ListNodes",
            Self::TrustNodes => "TrustNodes",
            Self::ApproveNode => "ApproveNode",
            Self::RevokeNode => "RevokeNode",
            Self::EnrolNode => "EnrolNode",
            Self::RenewPlugin => "RenewPlugin",
            Self::ConfirmPlugin => "ConfirmPlugin",
            Self::GetClusterAccess => "GetClusterAccess",
            Self::PutClusterAccess => "PutClusterAccess",
            Self::ListDependants => "ListDependants",
            Self::PutDependant => "PutDependant",
            Self::RemoveDependant => "RemoveDependant",
            Self::DescribeImpact => "DescribeImpact",
            Self::ListRotations => "ListRotations",
            Self::StartRotation => "StartRotation",
            Self::StepRotation(step) => step.name(),
            Self::RetireKeyVersion => "RetireKeyVersion",
            Self::ReinstateKeyVersion => "ReinstateKeyVersion",
            Self::DescribeGuard => "DescribeGuard",
            Self::SetSecondPerson => "SetSecondPerson",
            Self::ConfirmOverride => "ConfirmOverride",
            Self::RejectOverride => "RejectOverride",
            Self::RemoveClusterAccess => "RemoveClusterAccess",
            Self::ForgetCluster => "ForgetCluster",
            Self::ConfigureCluster => "ConfigureCluster",
        }
    }

    /// What apiservers wait for is worked on in place, the rest on the heap: the largest of them is
    /// several kilobytes, which each request would have to take from the heap and zero afterwards.
    async fn answer(self, call: &Call<'_>, path: &str) -> Answer {
        match self {
            Self::PluginEncrypt => plugin::encrypt(call).await,
            Self::PluginDecrypt => plugin::decrypt(call).await,
            other => Box::pin(other.answer_other(call, path)).await,
        }
    }

    async fn answer_other(self, call: &Call<'_>, path: &str) -> Answer {
        match self {
            Self::Status => service::status(call).await,
            Self::Ca => service::ca(call).await,
            Self::RenewCa => service::renew(call).await,
            Self::ListClusters => clusters::list(call).await,
            Self::AddCluster => clusters::add(call).await,
            Self::AddPlugin => clusters::add_plugin(call, path).await,
            Self::Audit => audit::query(call).await,
            Self::AuditTail => audit::tail(call).await,
            Self::AuditVerify => audit::verify(call).await,
            Self::AuditVerifyLook => audit::look(call).await,
            Self::AuditPublicKey => audit::public_key(call).await,
            Self::PluginStatus => plugin::status(call).await,
            Self::PluginEncrypt => plugin::encrypt(call).await,
            Self::PluginDecrypt => plugin::decrypt(call).await,
            Self::PluginRecords => plugin::records(call).await,
            Self::ListNodes => nodes::list(call, path).await,
            Self::TrustNodes => nodes::trust(call, path).await,
            Self::ApproveNode => nodes::approve(call, path).await,
            Self::RevokeNode => nodes::revoke(call, path).await,
            Self::EnrolNode => nodes::enrol(call, path).await,
            Self::RenewPlugin => nodes::renew(call).await,
            Self::ConfirmPlugin => nodes::confirm(call).await,
            Self::GetClusterAccess => access::get(call, path).await,
            Self::PutClusterAccess => access::put(call, path).await,
            Self::ListDependants => dependants::list(call, path).await,
            Self::PutDependant => dependants::put(call, path).await,
            Self::RemoveDependant => dependants::remove(call, path).await,
            Self::DescribeImpact => dependants::impact(call, path).await,
            Self::ListRotations => rotations::list(call, path).await,
            Self::StartRotation => rotations::start(call, path).await,
            Self::StepRotation(step) => rotations::step(call, (step, path)).await,
            Self::RetireKeyVersion => versions::retire(call, path).await,
            Self::ReinstateKeyVersion => versions::reinstate(call, path).await,
            Self::DescribeGuard => guard::describe(call).await,
            Self::SetSecondPerson => guard::set(call).await,
            Self::ConfirmOverride => guard::confirm(call, path).await,
            Self::RejectOverride => guard::reject(call, path).await,
            Self::RemoveClusterAccess => cluster_end::remove_access(call, path).await,
            Self::ForgetCluster => cluster_end::forget(call, path).await,
            Self::ConfigureCluster => cluster_end::configure(call, path).await,
        }
    }
}

/// For the fuzz target: finds a route, whose path may name a cluster.
pub(crate) fn parse_path(method: &Method, path: &str) {
    if let Ok(route) = Route::find(method, path) {
        assert!(!route.name().is_empty());
    }
    let _ = clusters::plugins_of(path).map(str::parse::<lastkey_crypto::ClusterId>);
}

/// For the fuzz target: reads a body as every route would.
pub(crate) fn parse_body(bytes: &[u8]) {
    cluster_end::parse_body(bytes);
    clusters::parse_body(bytes);
    guard::parse_body(bytes);
    versions::parse_body(bytes);
    dependants::parse_body(bytes);
    rotations::parse_body(bytes);
    nodes::parse_body(bytes);
    operator::parse_body(bytes);
    plugin::parse_body(bytes);
}

/// Answers one request of this wire.
pub(crate) async fn handle(context: &Context<'_>, exchange: &Exchange<'_>) -> Reply {
    let (name, answer) = answer(context, exchange).await;
    match answer {
        Ok(body) => {
            let (content_type, body) = match body {
                Body::Json(bytes) => (JSON, bytes),
                Body::Pem(text) => ("application/x-pem-file", text.into_bytes()),
            };
            let status = StatusCode::OK;
            Reply { status, content_type, body: body.into(), action: name, outcome: "ok" }
        }
        Err(refusal) => refused(exchange.request_id, name, &refusal.told(false)),
    }
}

async fn answer(context: &Context<'_>, exchange: &Exchange<'_>) -> (&'static str, Answer) {
    let refuse = |name, refusal: Refusal| {
        context.engine.refused(refusal.code(), exchange.peer.source());
        (name, Err(refusal))
    };
    let params = match exchange.query() {
        // What plugins ask has none, and needs no room for any.
        "" => Ok(Params::default()),
        query => Params::parse(query, b""),
    };
    let params = match params {
        Ok(params) => params,
        Err(error) => return refuse("unknown", error.into()),
    };
    // Strangers do not learn which paths there are.
    let Claimed { caller, .. } = match identify(context.engine, exchange, &params) {
        Ok(claimed) => claimed,
        Err(refusal) => return refuse("unknown", refusal),
    };
    let _turn = match exchange.gate.turn(&caller.principal, exchange.path()).await {
        Ok(turn) => turn,
        Err(refusal) => return refuse("unknown", refusal),
    };
    let (name, caller, refusal) = match Route::find(&exchange.head.method, exchange.path()) {
        Ok(route) => {
            let body = &exchange.body;
            let call = Call { context, caller, params: &params, body, asked: false.into() };
            match route.answer(&call, exchange.path()).await {
                Err(refusal) if !call.asked.into_inner() => (route.name(), call.caller, refusal),
                answer => return (route.name(), answer),
            }
        }
        Err(refusal) => ("unknown", caller, refusal),
    };
    // The engine never saw it, so it has no record of its own yet.
    let recorded = context.engine.record_refusal(&caller, name, refusal.code()).await;
    (name, Err(recorded.map_or_else(Refusal::from, |()| refusal)))
}

/// An error as this wire writes it.
pub(crate) fn refused(request_id: RequestId, action: &'static str, told: &Told) -> Reply {
    #[derive(Serialize)]
    struct Refused<'a> {
        code: &'a str,
        message: &'a str,
        request_id: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        dependants: Vec<Needing<'a>>,
    }
    #[derive(Serialize)]
    struct Needing<'a> {
        #[serde(flatten)]
        dependant: &'a Dependant,
        objects: Option<u64>,
    }
    let needing = told.dependants.iter().take(dependants::NAMED);
    let needing =
        needing.map(|dependant| Needing { dependant, objects: dependant.objects() }).collect();
    let refused = Refused {
        code: told.code,
        message: &told.message,
        request_id: request_id.to_string(),
        dependants: needing,
    };
    Reply {
        status: told.status,
        content_type: JSON,
        body: serde_json::to_vec(&refused).unwrap_or_default().into(),
        action,
        outcome: told.code,
    }
}
