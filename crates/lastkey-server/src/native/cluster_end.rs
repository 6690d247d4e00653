//! How a cluster is looked after, and its end: `/v1/clusters/<id>`, `…/access`, `…/settings`.

use http::Method;
use lastkey_crypto::ClusterId;
use lastkey_engine::{
    Automatic, Error,
    command::{ConfigureCluster, ForgetCluster, RemoveClusterAccess},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, Refusal, Route, json};

/// The route, if it is one of these.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    let (_, rest) = parts(path)?;
    match (rest, method) {
        ("", &Method::DELETE) => Some(Ok(Route::ForgetCluster)),
        ("access", &Method::DELETE) => Some(Ok(Route::RemoveClusterAccess)),
        ("settings", &Method::PUT) => Some(Ok(Route::ConfigureCluster)),
        ("" | "settings", _) => Some(Err(Refusal::WrongMethod)),
        _ => None,
    }
}

/// The cluster and the rest in `/v1/clusters/<id>[/<rest>]`.
fn parts(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v1/clusters/")?;
    Some(rest.split_once('/').unwrap_or((rest, "")))
}

fn cluster(path: &str) -> Result<ClusterId, Refusal> {
    let id = parts(path).and_then(|(id, _)| id.parse().ok());
    Ok(id.ok_or(Error::NotFound("cluster"))?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    reason: String,
    #[serde(rename = "override")]
    overriding: Option<String>,
}

#[derive(Serialize)]
struct Done {
    id: ClusterId,
}

pub(super) async fn remove_access(call: &Call<'_>, path: &str) -> Answer {
    let id = cluster(path)?;
    let End { reason, .. } = call.read()?;
    call.execute(RemoveClusterAccess { cluster: id, reason }).await?;
    json(&Done { id })
}

pub(super) async fn forget(call: &Call<'_>, path: &str) -> Answer {
    let id = cluster(path)?;
    let End { reason, overriding } = call.read()?;
    call.execute(ForgetCluster { cluster: id, overriding, reason }).await?;
    json(&Done { id })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    rotate_automatically: bool,
    #[serde(default)]
    retire: bool,
}

#[derive(Serialize)]
struct Shown {
    id: ClusterId,
    rotate_automatically: bool,
    retire: bool,
}

pub(super) async fn configure(call: &Call<'_>, path: &str) -> Answer {
    let cluster = cluster(path)?;
    let Settings { rotate_automatically, retire } = call.read()?;
    let automatic = rotate_automatically.then_some(Automatic { retire });
    let now = call.execute(ConfigureCluster { cluster, automatic }).await?;
    json(&Shown {
        id: now.id,
        rotate_automatically: now.automatic.is_some(),
        retire: now.automatic.is_some_and(|automatic| automatic.retire),
    })
}

/// For the fuzz target: reads a body.
pub(super) fn parse_body(bytes: &[u8]) {
    let _ = serde_json::from_slice::<End>(bytes);
    let _ = serde_json::from_slice::<Settings>(bytes);
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
        assert_eq!(found(Method::DELETE, "/v1/clusters/c"), "ForgetCluster");
        assert_eq!(found(Method::POST, "/v1/clusters/c"), "refused");
        assert_eq!(found(Method::DELETE, "/v1/clusters/c/access"), "RemoveClusterAccess");
        assert_eq!(found(Method::GET, "/v1/clusters/c/access"), "none");
        assert_eq!(found(Method::PUT, "/v1/clusters/c/settings"), "ConfigureCluster");
        assert_eq!(found(Method::GET, "/v1/clusters"), "none");
        assert_eq!(found(Method::POST, "/v1/clusters/c/plugins"), "none");
    }
}
