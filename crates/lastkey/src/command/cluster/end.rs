//! `lastkey cluster set`, `remove-access` and `forget`.

use lastkey_client::Client;
use lastkey_kubernetes::cluster::{Access, Migrate};
use serde_json::json;

use super::access::{Known, NO_ETCD};
use crate::{
    cli::{ForgetOptions, RemoveAccessOptions, SetOptions, Switch},
    output::{Exit, Failure, Output},
};

/// The cluster of that name or id.
pub(super) async fn find(client: &Client, name: &str) -> Result<Known, Failure> {
    let mut known = Known::all(client).await?.into_iter();
    let found = known.find(|one| one.name == name || one.id.to_string() == name);
    let missing = || {
        let text =
            format_args!("there is no cluster {name}; `lastkey cluster list` shows which are")
                .to_string();
        Failure::new(Exit::NotFound, text)
    };
    found.ok_or_else(missing)
}

pub(super) async fn set(
    client: &Client,
    options: &SetOptions,
    output: &Output,
) -> Result<(), Failure> {
    let found = find(client, &options.name).await?;
    let on = options.rotate_automatically == Some(Switch::On);
    if options.retire && !on {
        let why = "--retire goes with --rotate-automatically on";
        return Err(Failure::new(Exit::Usage, why));
    }
    if let Some(migration) = options.migration {
        let mut access: Access = client.cluster_access(found.id).await?;
        access.migrate = migration.into();
        if access.migrate == Migrate::Cluster && access.etcd.is_none() {
            return Err(Failure::new(Exit::Usage, NO_ETCD));
        }
        client.put_cluster_access(found.id, &access).await?;
        if options.rotate_automatically.is_none() {
            let said = json!({ "id": found.id, "migration": access.migrate });
            output.object(&said, || {
                let way = access.migrate.name();
                format!("rotations of {} go the way `{way}` from now on", found.shown())
            });
            return Ok(());
        }
    }
    let said = client.configure_cluster(found.id, (on, options.retire)).await?;
    output.object(&said, || match on {
        true => format!(
            "the server brings {} under each new version of its key by itself; `lastkey cluster \
             status` shows how far it is",
            found.shown()
        ),
        false => format!("{} is rotated only when somebody does it", found.shown()),
    });
    Ok(())
}

pub(super) async fn remove_access(
    client: &Client,
    options: &RemoveAccessOptions,
    output: &Output,
) -> Result<(), Failure> {
    let found = find(client, &options.name).await?;
    let said = client.remove_cluster_access(found.id, &options.reason).await?;
    output.object(&said, || {
        format!(
            "how {0} is reached is forgotten here; its keys stay guarded as it was seen last. Its \
             account goes with: kubectl --namespace kube-system delete serviceaccount lastkey",
            found.shown()
        )
    });
    Ok(())
}

pub(super) async fn forget(
    client: &Client,
    options: &ForgetOptions,
    output: &Output,
) -> Result<(), Failure> {
    let found = find(client, &options.name).await?;
    let how = (options.overriding.as_deref(), &*options.reason);
    if let Err(error) = client.forget_cluster(found.id, how).await {
        let listed = error.dependants().to_vec();
        let advice = "name the cluster once more: --override NAME";
        return Err(match Failure::from(error) {
            failure if failure.code() == Some("Rejected.HasDependants") => {
                failure.because_of(listed).and(advice)
            }
            failure => failure,
        });
    }
    let said = json!({ "id": found.id, "name": found.name });
    output.object(&said, || {
        format!(
            "{} is forgotten: its plugins may nothing any more, and nobody opens again what was \
             encrypted for it, in its backups neither",
            found.shown()
        )
    });
    Ok(())
}
