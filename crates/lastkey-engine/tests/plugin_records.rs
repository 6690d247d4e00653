//! What a plugin answered from memory reaches the audit log: nothing twice, nothing lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use lastkey_crypto::{KeyVersionId, SpoolId};
use lastkey_engine::{
    CLUSTER_KIND, Caller, Clock, Cluster, ClusterName, Dependant, Engine, Error, Key, Label,
    Principal, Source, Timestamp, audit::Query, command::*,
};
use lastkey_store::CommitFault;
use serde_json::Value;
use support::{World, by_id, create_key, root};

const SPOOL: SpoolId = SpoolId::from_bytes([5; 16]);

async fn add_cluster(engine: &Engine, name: &str, key: &Key) -> Cluster {
    let name = ClusterName::parse(name).unwrap();
    let plugin = PluginRequest { name: name.clone(), fingerprint: format!("print of {name}") };
    let add = AddCluster { name: Some(name), keys: vec![by_id(key)], plugin: Some(plugin) };
    engine.execute(&root(engine), add).await.unwrap().cluster
}

fn plugin_of(engine: &Engine, cluster: &Cluster) -> Caller {
    let plugin = &cluster.plugins[0];
    let principal = Principal::Plugin {
        cluster: cluster.id,
        name: plugin.name.as_str().into(),
        fingerprint: plugin.fingerprint.as_str().into(),
    };
    Caller::new(principal, Source::Internal, engine.new_request_id())
}

fn batch(cluster: &Cluster, key_version: KeyVersionId, sequence: u64) -> DeliverPluginRecord {
    let answers = CachedAnswers {
        api: "v2",
        key_version,
        count: sequence,
        first: Timestamp::from_millis(1_000),
        last: Timestamp::from_millis(2_000),
        uids: vec![format!("uid-{sequence}")],
    };
    DeliverPluginRecord { cluster: cluster.id, spool: SPOOL, sequence, answers }
}

/// The records of answers, without those that only say that a batch came once more.
async fn recorded(engine: &Engine) -> Vec<Value> {
    let query =
        Query { action: Some("PluginCachedDecrypt".into()), limit: 1000, ..Query::default() };
    let page = engine.execute(&root(engine), QueryAudit { query }).await.unwrap();
    page.records
        .iter()
        .map(|record| serde_json::to_value(record).unwrap())
        .filter(|record| record["outcome"] == "ok" && record["count"].is_u64())
        .collect()
}

#[tokio::test]
async fn each_batch_is_recorded_once_over_repeats_failures_and_restarts() {
    let world = World::new();
    let mut engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let deliver = |engine: Engine, sequence| {
        let (caller, batch) =
            (plugin_of(&engine, &cluster), batch(&cluster, key.primary.version, sequence));
        async move { engine.execute(&caller, batch).await }
    };
    assert_eq!(deliver(engine.clone(), 1).await, Ok(1));
    // The answer was lost, and the plugin sends it again, also to a server that was restarted.
    assert_eq!(deliver(engine.clone(), 1).await, Ok(1));
    assert_eq!(deliver(engine.clone(), 2).await, Ok(2));
    engine.shutdown().await;
    engine = world.start().await;
    assert_eq!(deliver(engine.clone(), 1).await, Ok(2));
    assert_eq!(deliver(engine.clone(), 2).await, Ok(2));
    // A commit that lost a race is made again, and is one record all the same.
    world.store.fail_next_commit(CommitFault::Conflict);
    assert_eq!(deliver(engine.clone(), 3).await, Ok(3));
    let records = recorded(&engine).await;
    let counts: Vec<_> = records.iter().map(|record| record["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 2, 3]);
    let first = &records[0];
    assert_eq!(first["key"], key.id.to_string());
    assert_eq!(first["key_version"], key.primary.version.to_string());
    assert_eq!(first["cluster"], cluster.id.to_string());
    assert_eq!((&first["uids"], &first["batch"]), (&"uid-1".into(), &1.into()));
    assert_eq!(first["first"], "1970-01-01T00:00:01.000Z");
}

#[tokio::test]
async fn two_plugins_and_two_spools_count_apart() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let (one, two) =
        (add_cluster(&engine, "one", &key).await, add_cluster(&engine, "two", &key).await);
    for cluster in [&one, &two] {
        let caller = plugin_of(&engine, cluster);
        let mut batch = batch(cluster, key.primary.version, 7);
        assert_eq!(engine.execute(&caller, batch.clone()).await, Ok(7));
        // A plugin that lost its disk begins a numbering of its own.
        batch.spool = SpoolId::from_bytes([6; 16]);
        batch.sequence = 1;
        assert_eq!(engine.execute(&caller, batch).await, Ok(1));
    }
    assert_eq!(recorded(&engine).await.len(), 4);
}

#[tokio::test]
async fn only_for_its_own_cluster_but_also_of_a_key_that_is_gone() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let (one, two) =
        (add_cluster(&engine, "one", &key).await, add_cluster(&engine, "two", &key).await);
    let foreign = batch(&two, key.primary.version, 1);
    let denied = engine.execute(&plugin_of(&engine, &one), foreign).await;
    assert_eq!(denied, Err(Error::Denied));
    let mut stranger = plugin_of(&engine, &one);
    stranger.principal = Principal::Plugin {
        cluster: one.id,
        name: "one".into(),
        fingerprint: "of another certificate".into(),
    };
    let denied = engine.execute(&stranger, batch(&one, key.primary.version, 1)).await;
    assert_eq!(denied, Err(Error::Denied));

    let caller = plugin_of(&engine, &one);
    let unknown = KeyVersionId::from_bytes([9; 16]);
    assert_eq!(engine.execute(&caller, batch(&one, unknown, 1)).await, Ok(1));
    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    assert_eq!(engine.execute(&caller, batch(&one, key.primary.version, 2)).await, Ok(2));

    let wrong = DeliverPluginRecord { sequence: 0, ..batch(&one, unknown, 1) };
    assert!(matches!(engine.execute(&caller, wrong).await, Err(Error::InvalidParameter { .. })));
    let mut many = batch(&one, unknown, 3);
    many.answers.uids = vec!["u".into(); 65];
    assert!(matches!(engine.execute(&caller, many).await, Err(Error::InvalidParameter { .. })));
}

/// What was decrypted from memory tells as well that something is under the version, unless
/// somebody has looked since.
#[tokio::test]
async fn what_was_read_from_memory_is_there() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let old = key.primary.version;
    engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    world.clock.advance(Duration::from_secs(600));
    let dependant = Dependant {
        kind: Label::parse(CLUSTER_KIND).unwrap(),
        id: Label::parse(&cluster.id.to_string()).unwrap(),
        name: "prod".to_owned(),
        versions: BTreeMap::from([(old, 0)]),
        until: None,
        seen_at: Some(world.clock.now()),
        used: BTreeMap::new(),
    };
    let look = PutDependant { key: by_id(&key), dependant, in_use: None };
    engine.execute(&root(&engine), look).await.unwrap();
    let tell = async |sequence, last: Timestamp| {
        let mut batch = batch(&cluster, old, sequence);
        batch.answers.last = last;
        engine.execute(&plugin_of(&engine, &cluster), batch).await.unwrap();
        let impact = DescribeImpact { key: by_id(&key), version: Some(old) };
        engine.execute(&root(&engine), impact).await.unwrap().dependants.len()
    };
    // Read before, and delivered only now.
    assert_eq!(tell(1, support::START).await, 0);
    assert_eq!(tell(2, world.clock.now()).await, 1);
}
