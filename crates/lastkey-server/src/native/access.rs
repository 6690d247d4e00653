//! How a cluster is reached: kept, and given back to administrators.

use http::Method;
use lastkey_crypto::{ClusterId, SecretBytes};
use lastkey_engine::{
    Error,
    command::{GetClusterAccess, PutClusterAccess},
};
use serde::{Serialize, de::IgnoredAny};

use super::{Answer, Body, Call, Refusal, Route, json};

/// The route of `/v1/clusters/<id>/access`, if it is that.
pub(super) fn route(method: &Method, path: &str) -> Option<Result<Route, Refusal>> {
    cluster_in(path)?;
    Some(match *method {
        Method::GET => Ok(Route::GetClusterAccess),
        Method::PUT => Ok(Route::PutClusterAccess),
        _ => Err(Refusal::WrongMethod),
    })
}

fn cluster_in(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/v1/clusters/")?.strip_suffix("/access")?;
    (!id.contains('/')).then_some(id)
}

fn cluster(path: &str) -> Result<ClusterId, Refusal> {
    let id = cluster_in(path).and_then(|id| id.parse().ok());
    Ok(id.ok_or(Error::NotFound("cluster"))?)
}

#[derive(Serialize)]
struct Done {}

pub(super) async fn put(call: &Call<'_>, path: &str) -> Answer {
    // it is passed on as it is, but it has to be an object
    let _: IgnoredAny = call.read()?;
    if !call.body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::NotJson);
    }
    let access = SecretBytes::new(call.body.to_vec());
    call.execute(PutClusterAccess { cluster: cluster(path)?, access }).await?;
    json(&Done {})
}

pub(super) async fn get(call: &Call<'_>, path: &str) -> Answer {
    let access = call.execute(GetClusterAccess { cluster: cluster(path)? }).await?;
    Ok(Body::Json(access.expose().to_vec()))
}
