//! The second person: `/v1/guard`, its setting, and what waits for a confirmation.

use http::Method;
use lastkey_engine::{
    KeyRef, Label, OverrideRequest, Proposed, SecondPerson, Taken,
    command::{ConfirmOverride, DescribeGuard, RejectOverride, SetSecondPerson},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, Refusal, Route, json};
use crate::taken::unconfirmed;

/// The route in `/v1/guard…`, if it is one of these.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    let rest = path.strip_prefix("/v1/guard")?;
    let (route, wanted) = match rest {
        "" => (Route::DescribeGuard, Method::GET),
        "/second-person" => (Route::SetSecondPerson, Method::POST),
        rest => match request_in(rest)? {
            (_, "confirm") => (Route::ConfirmOverride, Method::POST),
            (_, "reject") => (Route::RejectOverride, Method::POST),
            _ => return None,
        },
    };
    Some((*method == wanted).then_some(route).ok_or(Refusal::WrongMethod))
}

/// Id and step in `/requests/<id>/<step>`.
fn request_in(rest: &str) -> Option<(&str, &str)> {
    rest.strip_prefix("/requests/")?.split_once('/')
}

fn id(path: &str) -> Result<Label, Refusal> {
    let found = path.strip_prefix("/v1/guard").and_then(request_in);
    let (id, _) = found.ok_or(Refusal::NoSuchPath)?;
    Ok(Label::parse(id)?)
}

#[derive(Serialize)]
struct Guard {
    second_person: SecondPerson,
    requests: Vec<OverrideRequest>,
}

pub(super) async fn describe(call: &Call<'_>) -> Answer {
    let state = call.execute(DescribeGuard).await?;
    json(&Guard { second_person: state.second_person, requests: state.requests })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    on: bool,
    reason: String,
}

#[derive(Serialize)]
struct Set {
    on: bool,
}

pub(super) async fn set(call: &Call<'_>) -> Answer {
    let Setting { on, reason } = call.read()?;
    call.execute(SetSecondPerson { on, reason }).await?;
    json(&Set { on })
}

#[derive(Serialize)]
struct Confirmed {
    confirmed: OverrideRequest,
    /// Plugins that may go on with what they remember, and until when.
    unconfirmed: Vec<Held>,
}

#[derive(Serialize)]
struct Held {
    plugin: String,
    lease_ends: lastkey_engine::Timestamp,
}

pub(super) async fn confirm(call: &Call<'_>, path: &str) -> Answer {
    let done = call.execute(ConfirmOverride { id: id(path)? }).await?;
    let held = match done.request.proposed {
        Proposed::DisableKey { key } | Proposed::ScheduleKeyDeletion { key, .. } => {
            unconfirmed(call.context.engine, &Taken::Key(KeyRef::Id(key))).await?
        }
        _ => Vec::new(),
    };
    let held = held.into_iter().map(|it| Held { plugin: it.plugin, lease_ends: it.until });
    json(&Confirmed { confirmed: done.request, unconfirmed: held.collect() })
}

#[derive(Serialize)]
struct Rejected {
    rejected: Label,
}

pub(super) async fn reject(call: &Call<'_>, path: &str) -> Answer {
    let id = id(path)?;
    call.execute(RejectOverride { id: id.clone() }).await?;
    json(&Rejected { rejected: id })
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Setting>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let found = |method, path| match route(&method, path) {
            Some(Ok(route)) => route.name(),
            Some(Err(_)) => "refused",
            None => "none",
        };
        assert_eq!(found(Method::GET, "/v1/guard"), "DescribeGuard");
        assert_eq!(found(Method::POST, "/v1/guard/second-person"), "SetSecondPerson");
        assert_eq!(found(Method::GET, "/v1/guard/second-person"), "refused");
        assert_eq!(found(Method::POST, "/v1/guard/requests/r/confirm"), "ConfirmOverride");
        assert_eq!(found(Method::POST, "/v1/guard/requests/r/reject"), "RejectOverride");
        assert_eq!(found(Method::POST, "/v1/guard/requests/r"), "none");
        assert_eq!(found(Method::POST, "/v1/guards"), "none");
    }
}
