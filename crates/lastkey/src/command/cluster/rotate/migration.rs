//! Who writes the objects of a rotation anew, as the options and the registered access say.

use lastkey_client::{
    Client,
    native::{Rotation, RotationPhase},
};
use lastkey_kubernetes::{
    cluster::{Access, ApiServer, Migrate},
    coverage::resources_of,
    rotation::{Choice, RotateError, choose, delete_migrations, discover},
};

use super::{Resources, stopped};
use crate::{
    cli::RotateOptions,
    output::{Failure, Output, chain},
};

/// As the command says, else as it was registered.
pub(super) fn wanted(options: &RotateOptions, access: &Access) -> Migrate {
    options.migration.map_or(access.migrate, Migrate::from)
}

/// An option that was given and that the cluster's own way does not know.
pub(super) fn only_own(options: &RotateOptions) -> Option<&'static str> {
    match (options.rate, options.workers) {
        (Some(_), _) => Some("--rate"),
        (None, Some(_)) => Some("--workers"),
        (None, None) => None,
    }
}

/// Whether the objects can be written anew at all, before the key has a new version.
pub(super) async fn check(
    api: &ApiServer,
    access: &Access,
    options: &RotateOptions,
) -> Result<(), Failure> {
    let names = Resources::of(access, &options.resources).names;
    let served = discover(api, &names).await.map_err(|error| stopped(error.into()))?;
    let (resources, unknown) = resources_of(&names, &served);
    if !options.resources.is_empty() && !unknown.is_empty() {
        return Err(stopped(RotateError::NoSuchResource(unknown.join(", "))));
    }
    let chosen = options.resources.iter().filter(|name| !name.contains('*')).cloned();
    if let Some(why) = served.left_out(&chosen.collect::<Vec<_>>()).pop() {
        return Err(stopped(RotateError::LeftOut(why)));
    }
    let choice = Choice {
        wanted: wanted(options, access),
        resources: &resources,
        namespace: options.namespace.as_deref(),
        etcd: access.etcd.is_some(),
        only_own: only_own(options),
    };
    choose(api, &served, &choice).await.map(drop).map_err(stopped)
}

/// Whether the cluster itself writes its objects anew.
fn is_by_cluster(rotation: &Rotation) -> bool {
    rotation.state["by"] == "cluster"
}

/// What kube-controller-manager has begun does not rest.
pub(super) fn may_rest(name: &str, active: &Rotation, pause: bool) -> Result<(), Failure> {
    if !pause || !is_by_cluster(active) || active.phase != RotationPhase::Rewriting {
        return Ok(());
    }
    Err(Failure::failed(format_args!(
        "the cluster itself writes the objects of {name} anew, and a StorageVersionMigration cannot \
         be paused: let it come to its end, or give the rotation up with --cancel"
    )))
}

/// What was asked of the cluster is taken back where a rotation is given up; whoever works on it does
/// so too.
pub(super) async fn delete_if(client: &Client, active: &Rotation, cancel: bool) {
    if !cancel || !is_by_cluster(active) {
        return;
    }
    let left = match super::super::access::reach(client, active.cluster).await {
        Err(failure) => Some(failure.to_string()),
        Ok((_, api)) => delete_migrations(&api, active.cluster).await.err().map(|e| chain(&e)),
    };
    if let Some(why) = left {
        Output::note(&format!(
            "its StorageVersionMigrations (`kubectl delete storageversionmigrations -l \
             lastkey-cluster={}`) could not be deleted: {why}",
            active.cluster
        ));
    }
}
