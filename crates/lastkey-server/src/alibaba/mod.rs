//! The Alibaba Cloud KMS wire (API version 2016-01-20): `GET` or `POST /` with an action.
//!
//! A request goes through these steps:
//! 1. query and form are read ([`crate::params`]);
//! 2. the caller is identified ([`crate::identity`]): a signature, or on the admin socket the
//!    peer's user;
//! 3. it waits for its turn ([`crate::fair`]);
//! 4. the action is looked up, and its parameters become one engine command;
//! 5. the command's output, or the reason for its refusal, is written in JSON or XML.
//!
//! The official SDKs are the judges of everything here.

use lastkey_engine::{Caller, Engine, Listing, RequestId};

mod aliases;
mod call;
mod crypto;
pub mod document;
mod keys;
mod operations;
mod refusal;
mod service;
pub mod signature;
mod tags;
mod versions;

pub(crate) use call::Place;
pub(crate) use refusal::{Refusal, Told};

use self::{
    call::{Answer, Call, ROOT},
    document::{Document, Format},
};
use crate::{
    exchange::{Exchange, Reply},
    identity::{Claimed, identify},
    params::Params,
};

/// For the fuzz target: a parameter that has a form of its own.
pub(crate) fn parse_parameter(text: &str) {
    call::parse_parameter(text);
    keys::parse_parameter(text);
    tags::parse_parameter(text);
}

/// What metrics call a request whose action we do not know.
const UNKNOWN: &str = "unknown";

macro_rules! operations {
    (often { $($often:literal => $fast:path,)* } $($name:literal => $function:path,)*) => {
        /// The operations on offer.
        #[cfg(test)]
        const OFFERED: &[&str] = &[$($often,)* $($name),*];

        /// Does `action`; answers with its name as a constant.
        async fn dispatch(call: &Call<'_>, action: &str) -> Option<(&'static str, Answer)> {
            Some(match action {
                $($often => ($often, $fast(call).await),)*
                // In a box, so that the future of every request stays small.
                $($name => ($name, Box::pin($function(call)).await),)*
                _ => return None,
            })
        }
    };
}

operations! {
    often {
        "Encrypt" => crypto::encrypt,
        "Decrypt" => crypto::decrypt,
        "GenerateDataKey" => crypto::generate_data_key,
    }
    "GenerateDataKeyWithoutPlaintext" => crypto::generate_data_key_without_plaintext,
    "ReEncrypt" => crypto::re_encrypt,
    "DescribeKey" => keys::describe_key,
    "CreateKey" => keys::create_key,
    "ListKeys" => keys::list_keys,
    "UpdateKeyDescription" => keys::update_key_description,
    "EnableKey" => keys::enable_key,
    "DisableKey" => keys::disable_key,
    "ScheduleKeyDeletion" => keys::schedule_key_deletion,
    "CancelKeyDeletion" => keys::cancel_key_deletion,
    "SetDeletionProtection" => keys::set_deletion_protection,
    "CreateKeyVersion" => versions::create_key_version,
    "DescribeKeyVersion" => versions::describe_key_version,
    "ListKeyVersions" => versions::list_key_versions,
    "UpdateRotationPolicy" => versions::update_rotation_policy,
    "CreateAlias" => aliases::create_alias,
    "UpdateAlias" => aliases::update_alias,
    "DeleteAlias" => aliases::delete_alias,
    "ListAliases" => aliases::list_aliases,
    "ListAliasesByKeyId" => aliases::list_aliases_by_key_id,
    "TagResource" => tags::tag_resource,
    "UntagResource" => tags::untag_resource,
    "ListResourceTags" => tags::list_resource_tags,
    "TagResources" => tags::tag_resources,
    "UntagResources" => tags::untag_resources,
    "ListTagResources" => tags::list_tag_resources,
    "DescribeRegions" => service::describe_regions,
    "DescribeAccountKmsStatus" => service::describe_account_kms_status,
    "OpenKmsService" => service::open_kms_service,
}

/// Answers one request of this wire.
pub(crate) async fn handle(engine: &Engine, place: &Place, exchange: &Exchange<'_>) -> Reply {
    let params = match Params::parse(exchange.query(), exchange.form()) {
        Ok(params) => params,
        Err(error) => {
            let refusal = Refusal::from(error);
            engine.refused(refusal.code(), exchange.peer.source());
            return refused(exchange.request_id, Format::Json, UNKNOWN, &refusal.told(false));
        }
    };
    let format = Format::parse(params.get("Format"));
    let dry_run = matches!(dry_run(&params), Ok(true));
    match answer(engine, place, exchange, &params).await {
        (action, Ok(document)) => Reply {
            status: http::StatusCode::OK,
            content_type: format.content_type(),
            body: document.finish().into(),
            action,
            outcome: "ok",
        },
        (action, Err(refusal)) => {
            refused(exchange.request_id, format, action, &refusal.told(dry_run))
        }
    }
}

/// Identifies the caller and does what the action says; the name is for the metrics.
async fn answer(
    engine: &Engine,
    place: &Place,
    exchange: &Exchange<'_>,
    params: &Params<'_>,
) -> (&'static str, Answer) {
    let refuse = |refusal: Refusal| {
        engine.refused(refusal.code(), exchange.peer.source());
        (UNKNOWN, Err(refusal))
    };
    if exchange.head.method != http::Method::POST && exchange.head.method != http::Method::GET {
        return refuse(Refusal::HttpMethod);
    }
    let Claimed { mut caller, by_headers } = match identify(engine, exchange, params) {
        Ok(claimed) => claimed,
        Err(refusal) => return refuse(refusal),
    };
    let _turn = match exchange.gate.turn(&caller.principal, exchange.path()).await {
        Ok(turn) => turn,
        Err(refusal) => return refuse(refusal),
    };
    let answer = act(engine, place, params, (exchange, by_headers, &mut caller)).await;
    match answer {
        Asked::Engine(action, answer) => (action, answer),
        // The engine never saw it, so it has no record of its own yet.
        Asked::Nobody(action, refusal) => {
            let recorded = engine.record_refusal(&caller, action, refusal.code()).await;
            (action, Err(recorded.map_or_else(Refusal::from, |()| refusal)))
        }
    }
}

/// Who refused or answered an identified caller's request.
enum Asked {
    /// The engine, which has recorded it.
    Engine(&'static str, Answer),
    /// This wire, before there was a command.
    Nobody(&'static str, Refusal),
}

/// Does what the action says.
async fn act(
    engine: &Engine,
    place: &Place,
    params: &Params<'_>,
    (exchange, by_headers, caller): (&Exchange<'_>, Option<bool>, &mut Caller),
) -> Asked {
    let refuse = |refusal: Refusal| Asked::Nobody(UNKNOWN, refusal);
    let Some(action) = named(exchange, params, by_headers, ("x-acs-action", "Action")) else {
        return refuse(lastkey_engine::Error::MissingParameter("Action").into());
    };
    let version = named(exchange, params, by_headers, ("x-acs-version", "Version"));
    if version.is_some_and(|version| version != operations::VERSION) {
        return refuse(Refusal::Version);
    }
    caller.dry_run = match dry_run(params) {
        Ok(dry_run) => dry_run,
        Err(refusal) => return refuse(refusal),
    };
    let format = Format::parse(params.get("Format"));
    let call = Call { engine, caller, params, format, place, asked: false.into() };
    match dispatch(&call, action).await {
        Some((action, Err(refusal))) if !call.asked.into_inner() => Asked::Nobody(action, refusal),
        Some((action, answer)) => Asked::Engine(action, answer),
        None if operations::known(action) => refuse(Refusal::UnsupportedAction),
        None => refuse(Refusal::UnknownAction),
    }
}

/// Whether nothing is to happen. What is neither yes nor no must not be taken for a no.
fn dry_run(params: &Params<'_>) -> Result<bool, Refusal> {
    Ok(call::boolean(params, "DryRun")?.unwrap_or(false))
}

/// The action or version: what the signature covers is what counts, so a request that is signed
/// in its headers names them there, and one that is signed in its parameters there.
fn named<'a>(
    exchange: &'a Exchange<'_>,
    params: &'a Params<'_>,
    by_headers: Option<bool>,
    (header, param): (&str, &str),
) -> Option<&'a str> {
    match by_headers {
        Some(true) => exchange.header(header),
        Some(false) => params.non_empty(param),
        None => params.non_empty(param).or_else(|| exchange.header(header)),
    }
}

/// `PageNumber`, `PageSize` and `TotalCount` of a list.
fn paging<T>(answer: &mut Document, list: &Listing<T>) {
    answer.number("PageNumber", list.page.number);
    answer.number("PageSize", list.page.size);
    answer.number("TotalCount", list.total);
}

/// An error as this wire writes it.
pub(crate) fn refused(
    request_id: RequestId,
    format: Format,
    action: &'static str,
    told: &Told,
) -> Reply {
    let mut document = Document::begin(format, ROOT);
    document.number("HttpStatus", told.status.as_u16().into());
    document.plain("RequestId", request_id);
    document.plain("HostId", "lastkey");
    document.plain("Code", told.code);
    document.text("Message", &told.message);
    Reply {
        status: told.status,
        content_type: format.content_type(),
        body: document.finish().into(),
        action,
        outcome: told.code,
    }
}

#[cfg(test)]
mod tests;
