//! The end of key versions: `/v1/keys/<id>/versions/<id>/retire` and `…/reinstate`.

use http::Method;
use lastkey_crypto::KeyVersionId;
use lastkey_engine::{
    Error, KeyRef, Timestamp, VersionState,
    command::{Override, ReinstateKeyVersion, RetireKeyVersion},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, Refusal, Route, dependants::Shown, json};

/// For so many days a retirement can be taken back, where nobody says otherwise.
const WINDOW_DAYS: u16 = 30;

/// The route in `/v1/keys/<id>/versions/<id>/…`, if it is one of these.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    let (_, _, step) = parts(path)?;
    let route = match step {
        "retire" => Route::RetireKeyVersion,
        "reinstate" => Route::ReinstateKeyVersion,
        _ => return None,
    };
    Some((*method == Method::POST).then_some(route).ok_or(Refusal::WrongMethod))
}

/// Key, version and step.
fn parts(path: &str) -> Option<(&str, &str, &str)> {
    let (key, rest) = path.strip_prefix("/v1/keys/")?.split_once("/versions/")?;
    let (version, step) = rest.split_once('/')?;
    (!key.contains('/') && !step.contains('/')).then_some((key, version, step))
}

fn which(path: &str) -> Result<(KeyRef, KeyVersionId), Refusal> {
    let (key, version, _) = parts(path).ok_or(Error::KeyNotFound)?;
    let version = version.parse().map_err(|_| Error::KeyVersionNotFound)?;
    Ok((KeyRef::parse(key)?, version))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retire {
    window_days: Option<u16>,
    #[serde(default)]
    when_free: bool,
    #[serde(rename = "override")]
    overriding: Option<String>,
    reason: Option<String>,
}

#[derive(Serialize)]
struct Retired<'a> {
    key_version_id: KeyVersionId,
    state: VersionState,
    /// When its material is destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    destroy_at: Option<Timestamp>,
    /// What it waits for, while it is scheduled.
    waits_for: Vec<Shown<'a>>,
}

pub(super) async fn retire(call: &Call<'_>, path: &str) -> Answer {
    let (key, version) = which(path)?;
    let Retire { window_days, when_free, overriding, reason } = call.read()?;
    let overriding = overriding.map(|key| Override { key, reason: reason.unwrap_or_default() });
    let window_days = window_days.unwrap_or(WINDOW_DAYS);
    let retire = RetireKeyVersion { key, version, window_days, when_free, overriding };
    let came = call.execute(retire).await?;
    let now = call.context.engine.clock().now();
    json(&Retired {
        key_version_id: version,
        state: came.state,
        destroy_at: came.destroy_at,
        waits_for: came.waits_for.iter().map(|one| Shown::new(one, now)).collect(),
    })
}

#[derive(Serialize)]
struct Reinstated {
    key_version_id: KeyVersionId,
    state: VersionState,
}

pub(super) async fn reinstate(call: &Call<'_>, path: &str) -> Answer {
    let (key, version) = which(path)?;
    call.execute(ReinstateKeyVersion { key, version }).await?;
    json(&Reinstated { key_version_id: version, state: VersionState::Active })
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Retire>(bytes);
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
        assert_eq!(found(Method::POST, "/v1/keys/k/versions/v/retire"), "RetireKeyVersion");
        assert_eq!(found(Method::POST, "/v1/keys/k/versions/v/reinstate"), "ReinstateKeyVersion");
        assert_eq!(found(Method::GET, "/v1/keys/k/versions/v/retire"), "refused");
        for other in
            ["/v1/keys/k/versions/v", "/v1/keys/k/versions/v/x", "/v1/keys/a/b/versions/v/retire"]
        {
            assert_eq!(found(Method::POST, other), "none", "{other}");
        }
    }
}
