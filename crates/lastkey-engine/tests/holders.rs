//! A disable waits for those who hold the key, and names those who have not confirmed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::time::{Duration, Instant};

use lastkey_crypto::SpoolId;
use lastkey_engine::{
    AliasName, Caller, Cluster, ClusterName, Engine, Error, Key, KeyRef, Principal, Source, Taken,
    Unconfirmed, command::*,
};
use support::{World, by_id, create_key, root};

/// Longer than any test machine is busy; who is not waited for costs none of it.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(15 * 60);

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

/// As the front end asks for a plugin.
async fn ask(
    engine: &Engine,
    cluster: &Cluster,
    key: &Key,
    known: &str,
) -> Result<PluginState, Error> {
    let caller = plugin_of(engine, cluster);
    let ask = PluginStatus {
        cluster: cluster.id,
        key: by_id(key),
        known: known.to_owned(),
        wait: if known.is_empty() { Duration::ZERO } else { PATIENCE },
        instance: Some(SpoolId::from_bytes([1; 16])),
    };
    engine.heard_from(&caller, &ask);
    engine.execute(&caller, ask).await
}

async fn disable(engine: &Engine, key: &Key, patience: Duration) -> Vec<Unconfirmed> {
    let disable = DisableKey { key: by_id(key), overriding: None };
    engine.execute(&root(engine), disable).await.unwrap();
    engine.unconfirmed(&Taken::Key(by_id(key)), patience).await.unwrap()
}

#[tokio::test]
async fn a_connected_plugin_is_waited_for() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let polling = {
        let (engine, key, cluster) = (engine.clone(), key.clone(), cluster.clone());
        tokio::spawn(async move {
            let mut known = String::new();
            while let Ok(state) = ask(&engine, &cluster, &key, &known).await {
                known = state.token;
            }
        })
    };
    // It has been waiting for an answer for long when the key is taken.
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.clock.advance(Duration::from_secs(20));
    assert_eq!(disable(&engine, &key, PATIENCE).await, []);
    polling.abort();
}

#[tokio::test]
async fn one_that_does_not_confirm_is_named_with_the_end_of_its_lease() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let (silent, gone) =
        (add_cluster(&engine, "silent", &key).await, add_cluster(&engine, "gone", &key).await);
    ask(&engine, &gone, &key, "").await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    let told = ask(&engine, &silent, &key, "").await.unwrap();
    ask(&engine, &silent, &key, &told.token[..5]).await.unwrap();
    let until = engine.clock().now().after(LEASE);
    world.clock.advance(Duration::from_secs(1));
    // The one is waited for, the other has been gone for a minute.
    let held = disable(&engine, &key, Duration::from_millis(300)).await;
    let named: Vec<_> = held.iter().map(|it| (it.plugin.as_str(), it.cluster)).collect();
    assert_eq!(held.len(), 2, "{held:?}");
    for (name, cluster) in [("silent", &silent), ("gone", &gone)] {
        assert!(named.contains(&(name, cluster.id)), "{held:?}");
    }
    let silent_until = held.iter().find(|it| it.plugin == "silent").unwrap();
    assert_eq!(silent_until.until, until);
    assert_eq!(silent_until.cluster_name, silent.name);
    // Who is not connected is not waited for.
    world.clock.advance(Duration::from_secs(10));
    let begun = Instant::now();
    assert_eq!(disable(&engine, &key, PATIENCE).await.len(), 2);
    assert!(begun.elapsed() < PATIENCE / 2);
    // With the confirmation, or the end of the lease, it is over.
    let refused = ask(&engine, &silent, &key, "").await.unwrap();
    assert!(refused.refusal.is_some() && refused.usable.is_empty());
    let asks = ask(&engine, &silent, &key, &refused.token);
    let _ = tokio::time::timeout(Duration::from_millis(50), asks).await;
    let held = disable(&engine, &key, PATIENCE).await;
    assert_eq!(held.iter().map(|it| &*it.plugin).collect::<Vec<_>>(), ["gone"]);
    world.clock.advance(LEASE);
    assert_eq!(disable(&engine, &key, PATIENCE).await, []);
}

#[tokio::test]
async fn a_plugin_with_another_key_is_not_asked_but_one_that_was_granted_it_is() {
    let world = World::new();
    let engine = world.start().await;
    let (key, other) = (create_key(&engine).await, create_key(&engine).await);
    let cluster = add_cluster(&engine, "prod", &key).await;
    let unrelated = add_cluster(&engine, "unrelated", &other).await;
    ask(&engine, &unrelated, &other, "").await.unwrap();
    world.clock.advance(Duration::from_secs(10));
    assert_eq!(disable(&engine, &key, PATIENCE).await, []);
    // What it remembers may be of any key of its cluster.
    let before = ask(&engine, &unrelated, &other, "").await.unwrap();
    let grant = AddCluster {
        name: Some(ClusterName::parse("both").unwrap()),
        keys: vec![by_id(&key), by_id(&other)],
        plugin: Some(PluginRequest {
            name: ClusterName::parse("both").unwrap(),
            fingerprint: "both".into(),
        }),
    };
    let both = engine.execute(&root(&engine), grant).await.unwrap().cluster;
    let enable = EnableKey { key: by_id(&key) };
    engine.execute(&root(&engine), enable).await.unwrap();
    let told = ask(&engine, &both, &other, "").await.unwrap();
    assert_eq!(told.usable.len(), 2);
    world.clock.advance(Duration::from_secs(10));
    let held = disable(&engine, &key, PATIENCE).await;
    assert_eq!(held.iter().map(|it| &*it.plugin).collect::<Vec<_>>(), ["both"]);
    let now = ask(&engine, &both, &other, "").await.unwrap();
    assert!(now.refusal.is_none() && now.usable.len() == 1 && now.token != told.token);
    assert_eq!(ask(&engine, &unrelated, &other, "").await.unwrap().token, before.token);
    let _ = cluster;
}

/// A plugin that cannot read its own name yet asks without one.
#[tokio::test]
async fn one_that_finds_its_name_later_is_still_one() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let nameless = PluginStatus {
        cluster: cluster.id,
        key: by_id(&key),
        known: String::new(),
        wait: Duration::ZERO,
        instance: None,
    };
    engine.execute(&plugin_of(&engine, &cluster), nameless).await.unwrap();
    ask(&engine, &cluster, &key, "").await.unwrap();
    assert_eq!(disable(&engine, &key, Duration::from_millis(300)).await.len(), 1);
    let refused = ask(&engine, &cluster, &key, "").await.unwrap();
    let asks = ask(&engine, &cluster, &key, &refused.token);
    let _ = tokio::time::timeout(Duration::from_millis(50), asks).await;
    assert_eq!(disable(&engine, &key, PATIENCE).await, []);
}

#[tokio::test]
async fn a_revoked_identity_confirms_by_its_refusal() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    ask(&engine, &cluster, &key, "").await.unwrap();
    let replace = AddPlugin {
        cluster: cluster.id,
        plugin: PluginRequest {
            name: ClusterName::parse("prod").unwrap(),
            fingerprint: "another".into(),
        },
    };
    engine.execute(&root(&engine), replace).await.unwrap();
    let taken = Taken::Plugin { cluster: cluster.id, name: "prod".into() };
    let held = engine.unconfirmed(&taken, Duration::from_millis(300)).await.unwrap();
    assert_eq!(held.len(), 1);
    // It is denied at the door, and says so the next time.
    for known in ["", "!Forbidden.NoPermission"] {
        assert_eq!(ask(&engine, &cluster, &key, known).await.err(), Some(Error::Denied));
    }
    assert_eq!(engine.unconfirmed(&taken, PATIENCE).await.unwrap(), []);
}

#[tokio::test]
async fn after_a_restart_those_who_were_not_heard_since_may_hold_it() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    ask(&engine, &cluster, &key, "").await.unwrap();
    world.clock.advance(Duration::from_secs(5));
    engine.shutdown().await;
    let engine = world.start().await;
    let until = engine.clock().now().after(LEASE);
    let held = disable(&engine, &key, PATIENCE).await;
    assert_eq!((held.len(), held[0].until), (1, until));
    // One that knows better is not named.
    let refused = ask(&engine, &cluster, &key, "").await.unwrap();
    let asks = ask(&engine, &cluster, &key, &refused.token);
    let _ = tokio::time::timeout(Duration::from_millis(50), asks).await;
    assert_eq!(disable(&engine, &key, PATIENCE).await, []);
}

/// A server may give shorter leases; after a start it knows nothing of the process before, and so
/// names the usual end for those that were not heard.
#[tokio::test]
async fn leases_may_be_shorter() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let short = Duration::from_secs(60);
    engine.set_plugin_lease(short);
    let told = ask(&engine, &cluster, &key, "").await.unwrap();
    assert_eq!(told.lease, short);
    let now = engine.clock().now();
    let unconfirmed = disable(&engine, &key, Duration::ZERO).await;
    assert_eq!(unconfirmed.len(), 1);
    assert!(unconfirmed[0].until <= now.after(short), "{unconfirmed:?}");
    world.clock.advance(short + Duration::from_secs(1));
    let taken = Taken::Key(by_id(&key));
    assert_eq!(engine.unconfirmed(&taken, Duration::ZERO).await.unwrap(), [], "it is over");
    // Out of bounds is brought within them.
    engine.set_plugin_lease(Duration::ZERO);
    engine.execute(&root(&engine), EnableKey { key: by_id(&key) }).await.unwrap();
    let told = ask(&engine, &cluster, &key, "").await.unwrap();
    assert_eq!(told.lease, Duration::from_secs(30));
    engine.set_plugin_lease(LEASE * 4);
    let told = ask(&engine, &cluster, &key, "").await.unwrap();
    assert_eq!(told.lease, LEASE);
}

/// A plugin that reaches its key by a name would be without one.
#[tokio::test]
async fn a_name_that_plugins_use_stays_what_it_is() {
    let world = World::new();
    let engine = world.start().await;
    let (key, other) = (create_key(&engine).await, create_key(&engine).await);
    let name = |text: &str| AliasName::parse(text).unwrap();
    for alias in ["alias/kubernetes", "alias/spare"] {
        let create = CreateAlias { alias: name(alias), key: by_id(&key) };
        engine.execute(&root(&engine), create).await.unwrap();
    }
    let cluster = add_cluster(&engine, "prod", &key).await;
    let caller = plugin_of(&engine, &cluster);
    let ask = |alias: &str| PluginStatus {
        cluster: cluster.id,
        key: KeyRef::Alias(name(alias)),
        known: String::new(),
        wait: Duration::ZERO,
        instance: Some(SpoolId::from_bytes([1; 16])),
    };
    let delete = async |alias: &str| {
        engine.execute(&root(&engine), DeleteAlias { alias: name(alias) }).await
    };
    let give = async |to: &Key| {
        let update = UpdateAlias { alias: name("alias/kubernetes"), key: by_id(to) };
        engine.execute(&root(&engine), update).await
    };
    engine.execute(&caller, ask("alias/kubernetes")).await.unwrap();
    for refused in [delete("alias/kubernetes").await, give(&other).await] {
        let Err(error @ Error::AliasInUse(_)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.code(), "Rejected.HasDependants");
        assert!(error.to_string().contains("prod/prod (until "), "{error}");
    }
    // What changes nothing, and what nobody uses, may go.
    give(&key).await.unwrap();
    delete("alias/spare").await.unwrap();
    // Not for longer than it is told that it may.
    world.clock.advance(LEASE + Duration::from_secs(1));
    give(&other).await.unwrap();
    give(&key).await.unwrap();
    // Nor is it kept for an identity that was taken away.
    engine.execute(&caller, ask("alias/kubernetes")).await.unwrap();
    let fingerprint = "another".to_owned();
    let plugin = PluginRequest { name: ClusterName::parse("prod").unwrap(), fingerprint };
    engine.execute(&root(&engine), AddPlugin { cluster: cluster.id, plugin }).await.unwrap();
    delete("alias/kubernetes").await.unwrap();
}
