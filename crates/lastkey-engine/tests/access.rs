//! How a cluster is reached: who may know it, and where it rests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use lastkey_crypto::ClusterId;
use lastkey_engine::{Caller, ClusterName, Engine, Error, Principal, Source, command::*};
use support::{World, by_id, create_key, root, secret};

const ACCESS: &str = r#"{"credential":"a-token-that-must-not-rest-in-clear"}"#;

async fn put(engine: &Engine, caller: &Caller, cluster: ClusterId) -> Result<(), Error> {
    engine.execute(caller, PutClusterAccess { cluster, access: secret(ACCESS) }).await
}

#[tokio::test]
async fn an_access_is_kept_for_administrators() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let name = Some(ClusterName::parse("prod").unwrap());
    let request =
        PluginRequest { name: ClusterName::parse("plugin").unwrap(), fingerprint: "00".repeat(32) };
    let add = AddCluster { name, keys: vec![by_id(&key)], plugin: Some(request) };
    let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
    let get = GetClusterAccess { cluster };
    // 1. Nothing yet; then what was put last, across a restart.
    let none = engine.execute(&root(&engine), get).await;
    assert!(matches!(none, Err(Error::NotFound(_))));
    put(&engine, &root(&engine), cluster).await.unwrap();
    put(&engine, &root(&engine), cluster).await.unwrap();
    drop(engine);
    let engine = world.start().await;
    let kept = engine.execute(&root(&engine), get).await.unwrap();
    assert_eq!(kept.expose(), ACCESS.as_bytes());
    // 2. A cluster's own plugin may neither read nor change it.
    let principal = Principal::Plugin {
        cluster,
        name: "plugin".into(),
        fingerprint: "00".repeat(32).as_str().into(),
    };
    let plugin = Caller::new(principal, Source::Internal, engine.new_request_id());
    assert!(matches!(engine.execute(&plugin, get).await, Err(Error::Denied)));
    assert!(matches!(put(&engine, &plugin, cluster).await, Err(Error::Denied)));
    // 3. Only of clusters that there are, and within bounds.
    let other = "00000000-0000-4000-8000-000000000000".parse().unwrap();
    assert!(matches!(put(&engine, &root(&engine), other).await, Err(Error::NotFound(_))));
    let huge = PutClusterAccess { cluster, access: secret(&"x".repeat(300_000)) };
    let huge = engine.execute(&root(&engine), huge).await;
    assert!(matches!(huge, Err(Error::LimitExceeded { .. })));
}
