//! `lastkey cluster add`: a cluster is registered, and its plugin's identity is kept
//! ([`NewIdentity`]).
//!
//! A cluster is not registered twice, so where it is, or may be, without an identity, the failure
//! says how it gets one.

use std::path::Path;

use lastkey_client::{Client, native};
use serde_json::{Value, json};

use super::identity::{Files, NewIdentity, Reserved, did_nothing};
use crate::output::Failure;

/// The server's code for a cluster that is registered already.
const EXISTS: &str = "Rejected.ResourceExist";

/// What is to be registered, and on which terms the cluster's plugins have identities.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) key: &'a str,
    pub(super) node_ca_pem: Option<String>,
    pub(super) certificate_life_seconds: Option<u64>,
    /// What is done next.
    pub(super) next: String,
}

/// Registers a cluster. The plugin's key is made here and stays here; where the nodes enrol, none
/// is made.
///
/// # Errors
/// What the server refuses, and what becomes of the files; each says whether there is a cluster.
pub(super) async fn add(
    client: &Client,
    wanted: &Wanted<'_>,
    out: &Path,
) -> Result<(Value, String), Failure> {
    match wanted.node_ca_pem {
        Some(_) => add_for_nodes(client, wanted, out).await,
        None => add_with_identity(client, wanted, out).await,
    }
}

async fn add_with_identity(
    client: &Client,
    wanted: &Wanted<'_>,
    out: &Path,
) -> Result<(Value, String), Failure> {
    let name = wanted.name;
    let identity = NewIdentity::make(out)?;
    let way_on = format!(
        "`lastkey cluster certificate {name} --replace --out DIR` makes an identity for it, in \
         another directory"
    );
    let request = request(wanted, Some(identity.csr_pem.clone()));
    let added = match client.add_cluster(&request).await {
        Ok(added) => added,
        Err(error) => {
            let else_ = format_args!(
                "the cluster {name} may be registered with it: if `lastkey cluster list` shows the \
                 cluster, {way_on}; if not, remove that file and add the cluster again"
            );
            return Err(refused(identity.not_issued(error, else_), wanted));
        }
    };
    let is_there = format!("the cluster {name} is registered, with the id {}: {way_on}", added.id);
    let files = identity.keep(added.certificate_pem.as_deref(), &added.ca_pem, is_there)?;
    let said = json!({
        "id": added.id,
        "name": added.name,
        "key_id": added.key_id,
        "plugin_cert_file": files.certificate,
        "plugin_key_file": files.key,
        "ca_file": files.ca,
    });
    let text = format!(
        "the cluster {name} has the id {}\n\
         its plugin's identity lies in {}: plugin.pem, plugin.key and ca.pem\n\
         next: {}",
        added.id,
        files.directory.display(),
        wanted.next
    );
    Ok((said, text))
}

async fn add_for_nodes(
    client: &Client,
    wanted: &Wanted<'_>,
    out: &Path,
) -> Result<(Value, String), Failure> {
    let files = Files::in_directory(out)?;
    let ca = Reserved::make(&files.ca)?;
    let added = client.add_cluster(&request(wanted, None)).await.map_err(|error| {
        if did_nothing(&error) {
            return refused(error.into(), wanted);
        }
        Failure::from(error).and(format_args!(
            "the cluster {} may be registered all the same: `lastkey cluster list` shows it then, \
             and `lastkey ca print` prints its ca.pem",
            wanted.name
        ))
    })?;
    ca.keep(added.ca_pem.as_bytes()).map_err(|failure| {
        failure.and(format_args!(
            "the cluster {} is registered, with the id {}: `lastkey ca print` prints its ca.pem",
            wanted.name, added.id
        ))
    })?;
    Ok(how_to_enrol(&added, &files))
}

/// How a cluster that is registered already gets an identity is said with the refusal.
fn refused(failure: Failure, wanted: &Wanted<'_>) -> Failure {
    if failure.code() != Some(EXISTS) {
        return failure;
    }
    failure.and(format_args!(
        "`lastkey cluster certificate {} --out DIR` makes another identity for it",
        wanted.name
    ))
}

fn request(wanted: &Wanted<'_>, csr_pem: Option<String>) -> native::AddCluster {
    native::AddCluster {
        name: wanted.name.to_owned(),
        key: wanted.key.to_owned(),
        csr_pem,
        plugin: None,
        node_ca_pem: wanted.node_ca_pem.clone(),
        certificate_life_seconds: wanted.certificate_life_seconds,
    }
}

fn how_to_enrol(added: &native::AddedCluster, files: &Files) -> (Value, String) {
    let said = json!({
        "id": added.id, "name": added.name, "key_id": added.key_id, "ca_file": files.ca,
    });
    let text = format!(
        "the cluster {} has the id {}\n\
             its nodes may ask for identities; on each control-plane node, with {}:\n\
             \x20 lastkey kms-plugin --enrol --cluster {} --ca-file ca.pem --server URL …\n\
             next: lastkey cluster node approve NODE --cluster {}",
        added.name.as_deref().unwrap_or_default(),
        added.id,
        files.ca.display(),
        added.id,
        added.name.as_deref().unwrap_or_default()
    );
    (said, text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lastkey_client::Config;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    /// Registers at a server that answers with these bytes, and then closes the connection.
    async fn added(answer: &str, out: &Path) -> Result<(), String> {
        let socket = out.with_extension("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let _ = connection.read(&mut [0; 8192]).await;
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        let client = Client::new(Config::admin(socket)).unwrap();
        let wanted = Wanted {
            name: "prod",
            key: "alias/kubernetes",
            node_ca_pem: None,
            certificate_life_seconds: None,
            next: String::new(),
        };
        let added = add(&client, &wanted, out).await;
        server.abort();
        added.map(|_| ()).map_err(|failure| failure.to_string())
    }

    fn http(status: &str, body: &Value) -> String {
        let body = body.to_string();
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        )
    }

    fn refusal(status: &str, code: &str) -> String {
        http(status, &json!({ "code": code, "message": "no", "request_id": "r-1" }))
    }

    fn left_in(out: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_refused_cluster_leaves_no_files() {
        let scratch = tempfile::tempdir().unwrap();
        for (number, answer) in [
            refusal("409 Conflict", EXISTS),
            refusal("403 Forbidden", "Forbidden.NoPermission"),
            refusal("503 Service Unavailable", "Unavailable.Sealed"),
        ]
        .into_iter()
        .enumerate()
        {
            let out = scratch.path().join(number.to_string());
            let why = added(&answer, &out).await.unwrap_err();
            assert!(!why.contains("may be registered"), "{why}");
            assert_eq!(left_in(&out), [""; 0], "{answer}");
        }
    }

    /// Another name would make another cluster.
    #[tokio::test]
    async fn a_cluster_that_is_registered_gets_another_identity_by_another_command() {
        let scratch = tempfile::tempdir().unwrap();
        for (name, code, said) in [("a", EXISTS, true), ("b", "Rejected", false)] {
            let why = added(&refusal("409 Conflict", code), &scratch.path().join(name)).await;
            let why = why.unwrap_err();
            assert_eq!(why.contains("lastkey cluster certificate prod --out DIR"), said, "{why}");
        }
    }

    /// The cluster may be registered with that key, and nobody has another one of it.
    #[tokio::test]
    async fn an_answer_that_got_lost_loses_no_key() {
        let scratch = tempfile::tempdir().unwrap();
        for (number, answer) in [
            String::new(),
            refusal("504 Gateway Timeout", "Unavailable.Uncertain"),
            refusal("500 Internal Server Error", "InternalFailure"),
            http("200 OK", &json!("nonsense")),
        ]
        .into_iter()
        .enumerate()
        {
            let out = scratch.path().join(number.to_string());
            let why = added(&answer, &out).await.unwrap_err();
            assert!(why.contains("may be registered") && why.contains("plugin.key"), "{why}");
            assert_eq!(left_in(&out), ["plugin.key"], "{answer}");
            let key = fs::read_to_string(out.join("plugin.key")).unwrap();
            rcgen::KeyPair::from_pem(&key).unwrap();
        }
    }

    #[tokio::test]
    async fn a_cluster_without_a_certificate_is_said_to_be_registered() {
        let scratch = tempfile::tempdir().unwrap();
        let id = "83eb9abc-da3e-494e-b0e6-96b3c401cd15";
        let answer = json!({ "id": id, "name": "prod", "key_id": id, "ca_pem": "" });
        let out = scratch.path().join("out");
        let why = added(&http("200 OK", &answer), &out).await.unwrap_err();
        assert!(why.contains(&format!("is registered, with the id {id}")), "{why}");
        assert_eq!(left_in(&out), ["plugin.key"]);
    }
}
