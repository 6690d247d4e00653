//! `lastkey cluster certificate`: another identity for a plugin of a registered cluster.
//!
//! The key is made here and stays here, as with `cluster add`. The server registers it in place of
//! the one that a plugin of that name had, which is refused from then on; so that nobody ends one
//! that works, this is refused while its certificate is good, unless it is wanted.

use jiff::Timestamp;
use lastkey_client::{Client, native};
use serde_json::{Value, json};

use super::{identity::NewIdentity, node};
use crate::{
    cli::CertificateOptions,
    output::{Failure, Output},
};

pub(super) async fn run(
    client: &Client,
    options: &CertificateOptions,
    output: &Output,
) -> Result<(), Failure> {
    let CertificateOptions { cluster, out, plugin, replace } = options;
    // 1. Which cluster, and whether somebody works by what would be replaced.
    let (id, _) = node::find(client, Some(cluster)).await?;
    let known = client.clusters().await?.items;
    let old = known.iter().find(|it| it["id"] == json!(id)).and_then(|it| named(it, plugin));
    if let Some(why) = old.filter(|_| !replace).and_then(|old| in_use(old, Timestamp::now())) {
        return Err(Failure::failed(format_args!(
            "the plugin {plugin} of {cluster} has a certificate {why}: --plugin NODE makes an identity \
             beside it, for one more node; --replace replaces it, and it is refused from then on \
             wherever a copy of it lies"
        )));
    }
    // 2. The private key is kept before anybody relies on it.
    let identity = NewIdentity::make(out)?;
    let request = native::AddPlugin { name: plugin.clone(), csr_pem: identity.csr_pem.clone() };
    let again = "run this again, with --replace, in another directory";
    let issued = match client.add_plugin(id, &request).await {
        Ok(issued) => issued,
        Err(error) => {
            return Err(identity.not_issued(
                error,
                format_args!(
                    "the plugin {plugin} may be registered with it, and the identity that it had \
                     be refused from now on: {again}"
                ),
            ));
        }
    };
    // 3. What was issued for it.
    let else_ = format_args!("the identity that the plugin had is refused from now on: {again}");
    let files = identity.keep(Some(&issued.certificate_pem), &issued.ca_pem, else_)?;
    let said = json!({
        "id": id,
        "plugin": plugin,
        "not_after": issued.not_after,
        "plugin_cert_file": files.certificate,
        "plugin_key_file": files.key,
        "ca_file": files.ca,
    });
    output.object(&said, || {
        let until = issued.not_after.as_deref().unwrap_or_default();
        let (which, next) = match old {
            Some(_) => (
                "another",
                "put them in place of the old ones on the node; a plugin that runs takes \
                 them up by itself",
            ),
            None => ("an", "copy them to its node, as `lastkey cluster config` says"),
        };
        format!(
            "the plugin {plugin} of the cluster {id} has {which} identity, good until {until}\n\
             it lies in {}: plugin.pem, plugin.key and ca.pem\n\
             next: {next}",
            files.directory.display()
        )
    });
    Ok(())
}

fn named<'a>(cluster: &'a Value, plugin: &str) -> Option<&'a Value> {
    cluster["plugins"].as_array()?.iter().find(|it| it["name"] == plugin)
}

/// Whether a plugin's certificate may be in use, and until when; one of an older server has no end.
fn in_use(plugin: &Value, now: Timestamp) -> Option<String> {
    let Some(shown) = plugin["not_after"].as_str() else { return Some("already".to_owned()) };
    let ends: Option<Timestamp> = shown.parse().ok();
    ends.is_none_or(|ends| ends > now).then(|| format!("until {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_in_use_is_not_replaced_unasked() {
        let now: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        for (not_after, used) in [
            (json!("2026-11-24T00:00:01Z"), true),
            (json!("2026-11-23T23:59:59.5Z"), false),
            (Value::Null, true),
            (json!("soon"), true),
        ] {
            assert_eq!(
                in_use(&json!({"not_after": not_after}), now).is_some(),
                used,
                "{not_after}"
            );
        }
    }
}
