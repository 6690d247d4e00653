//! `lastkey cluster node …`: which nodes' plugins have an identity, and who says so.

use lastkey_client::{Client, native};
use lastkey_crypto::ClusterId;
use serde_json::{Value, json};

use crate::{
    cli::{ApproveOptions, NodeAction},
    output::{Column, Exit, Failure, Output},
};

pub(super) async fn run(
    client: &Client,
    action: NodeAction,
    output: &Output,
) -> Result<(), Failure> {
    match action {
        NodeAction::List { cluster } => list(client, cluster.as_deref(), output).await,
        NodeAction::Approve(options) => approve(client, options, output).await,
        NodeAction::Revoke { node, cluster, plugin } => {
            let (cluster, _) = find(client, cluster.as_deref()).await?;
            let kind = if plugin { "plugin" } else { "node" };
            let revoked = client.revoke_node(cluster, (kind, &node)).await?;
            output.object(&revoked, || {
                let said = match plugin {
                    true => format!("the plugin {node} is refused from now on"),
                    false => format!(
                        "the plugin of {node} is refused from now on, and the node stays out until \
                         it is approved again"
                    ),
                };
                said + &still_held(&revoked)
            });
            Ok(())
        }
        NodeAction::Trust { cluster, ca, none, certificate_life } => {
            let ca_pem = match ca {
                Some(path) => Some(super::read_pem(&path)?),
                None => none.then(String::new),
            };
            let certificate_life_seconds = certificate_life.map(|life| life.as_secs());
            let (cluster, _) = find(client, cluster.as_deref()).await?;
            let trust = native::TrustNodes { ca_pem, certificate_life_seconds };
            let trusted = client.trust_nodes(cluster, &trust).await?;
            output.object(&trusted, || trusts(&trusted));
            Ok(())
        }
    }
}

/// Whether the plugin does not know yet, and until when that may matter.
fn still_held(revoked: &serde_json::Value) -> String {
    let ends = revoked["unconfirmed"][0]["lease_ends"].as_str();
    ends.map(|until| format!("\nit has not confirmed: it may go on reading until {until}"))
        .unwrap_or_default()
}

fn trusts(trusted: &Value) -> String {
    let name = trusted["name"].as_str().or(trusted["cluster"].as_str()).unwrap_or_default();
    let roots: Vec<&str> =
        trusted["roots"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let days = trusted["certificate_life_seconds"].as_u64().unwrap_or_default() as f64 / 86_400.0;
    let days = format!("{days:.3}");
    let days = days.trim_end_matches('0').trim_end_matches('.');
    if roots.is_empty() {
        return format!("no CA vouches for nodes of {name}: none can enrol");
    }
    format!(
        "nodes of {name} may ask to enrol by certificates of these CAs (SHA-256):\n{}\n\
         certificates of nodes that were approved are good for {days} days",
        roots.iter().map(|root| format!("  {root}")).collect::<Vec<_>>().join("\n")
    )
}

async fn list(client: &Client, cluster: Option<&str>, output: &Output) -> Result<(), Failure> {
    let cluster = match cluster {
        Some(named) => Some(find(client, Some(named)).await?.0),
        None => None,
    };
    let page = client.nodes(cluster).await?;
    let columns = [
        Column("CLUSTER", "cluster_name"),
        Column("NODE", "node"),
        Column("STATE", "state"),
        Column("KUBELET KEY", "kubelet_key"),
        Column("WAITING KEY", "waiting_key"),
        Column("CERTIFICATE ENDS", "not_after"),
        Column("CHANGED", "changed_at"),
    ];
    output.list(&page.items, &page.next.unwrap_or(Value::Null), &columns);
    Ok(())
}

async fn approve(client: &Client, options: ApproveOptions, output: &Output) -> Result<(), Failure> {
    let ApproveOptions { node, cluster, fingerprint, within } = options;
    let (cluster, roots) = find(client, cluster.as_deref()).await?;
    let request = native::ApproveNode { node, fingerprint, within_seconds: Some(within.as_secs()) };
    let approved = client.approve_node(cluster, &request).await?;
    output.object(&approved, || {
        let text = |name: &str| approved[name].as_str().unwrap_or_default();
        let who = match text("node") {
            "" => "whichever node comes",
            node => node,
        };
        let with = match (text("fingerprint"), text("until")) {
            ("", until) => format!("with the first kubelet key that comes until {until}"),
            (print, _) => format!("with the kubelet certificate or key {print}"),
        };
        let next = if approved["waits"] == json!(true) {
            "it waits already, and goes on within 15 seconds"
        } else {
            "nothing waits for this yet"
        };
        format!("{who} may enrol once, {with}\n{next}")
    });
    if !roots {
        output.hint(
            "warning: the cluster trusts no CA for its nodes yet; next: lastkey cluster node \
             trust --ca FILE",
        );
    }
    Ok(())
}

/// The cluster of that name or id, or the only one; and whether it trusts a CA.
pub(super) async fn find(
    client: &Client,
    named: Option<&str>,
) -> Result<(ClusterId, bool), Failure> {
    let clusters = client.clusters().await?.items;
    let is_it = |cluster: &&Value| match named {
        Some(named) => {
            let by_id = named.parse::<ClusterId>().is_ok_and(|id| cluster["id"] == json!(id));
            by_id || cluster["name"] == named
        }
        None => true,
    };
    let found: Vec<&Value> = clusters.iter().filter(is_it).collect();
    let one = match (&found[..], named) {
        ([one], _) => one,
        (_, Some(named)) => {
            let text = format!("there is no cluster {named}; `lastkey cluster list` shows them");
            return Err(Failure::new(Exit::NotFound, text));
        }
        ([], None) => {
            let text = "there is no cluster yet; make one with `lastkey cluster add`";
            return Err(Failure::new(Exit::NotFound, text));
        }
        _ => {
            let text = "there are several clusters; say which one (`lastkey cluster list`)";
            return Err(Failure::new(Exit::Usage, text));
        }
    };
    let id = one["id"].as_str().and_then(|id| id.parse().ok());
    let id = id.ok_or_else(|| Failure::failed("the server's list of clusters makes no sense"))?;
    let trusts = one["trusts_nodes"] == json!(true);
    Ok((id, trusts))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_certificates_life_in_days() {
        for (seconds, days) in [(30 * 86_400, "30"), (100 * 86_400, "100"), (3600, "0.042")] {
            let trusted =
                json!({"name": "prod", "roots": ["aa"], "certificate_life_seconds": seconds});
            let said = trusts(&trusted);
            assert!(said.ends_with(&format!(" are good for {days} days")), "{said}");
        }
    }
}
