//! What a plugin may do, what its key ids promise, and how two clusters are kept apart.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::HashSet, time::Duration};

use lastkey_crypto::{ClusterId, plugin_blob::PluginKey};
use lastkey_engine::{
    Caller, Cluster, ClusterName, Engine, Error, Key, KeyRef, Principal, Source, command::*,
};
use support::{World, by_id, context, create_key, root, secret};

fn plugin_of(engine: &Engine, cluster: &Cluster) -> Caller {
    let plugin = &cluster.plugins[0];
    let principal = Principal::Plugin {
        cluster: cluster.id,
        name: plugin.name.as_str().into(),
        fingerprint: plugin.fingerprint.as_str().into(),
    };
    Caller::new(principal, Source::Internal, engine.new_request_id())
}

async fn add_cluster(engine: &Engine, name: &str, key: &Key) -> Cluster {
    let add = AddCluster {
        name: Some(ClusterName::parse(name).unwrap()),
        keys: vec![by_id(key)],
        plugin: Some(PluginRequest {
            name: ClusterName::parse("p").unwrap(),
            fingerprint: format!("print of {name}"),
        }),
    };
    engine.execute(&root(engine), add).await.unwrap().cluster
}

async fn status(engine: &Engine, cluster: &Cluster, key: KeyRef) -> Result<PluginState, Error> {
    let ask = PluginStatus {
        cluster: cluster.id,
        key,
        known: String::new(),
        wait: Duration::ZERO,
        instance: None,
    };
    engine.execute(&plugin_of(engine, cluster), ask).await
}

fn encrypt(cluster: ClusterId, key: &Key) -> PluginEncrypt {
    PluginEncrypt { cluster, key: by_id(key), pin: None, plaintext: secret("seed") }
}

fn decrypt(cluster: ClusterId, key: &Key, made: &PluginEncrypted) -> PluginDecrypt {
    PluginDecrypt { cluster, key: by_id(key), envelope: made.key, blob: made.blob.clone() }
}

#[tokio::test]
async fn a_plugin_does_its_work_and_nothing_else() {
    let world = World::new();
    let engine = world.start().await;
    let (key, other) = (create_key(&engine).await, create_key(&engine).await);
    let cluster = add_cluster(&engine, "prod", &key).await;
    let plugin = || plugin_of(&engine, &cluster);

    let made = engine.execute(&plugin(), encrypt(cluster.id, &key)).await.unwrap();
    let opened = engine.execute(&plugin(), decrypt(cluster.id, &key, &made)).await.unwrap();
    assert_eq!(opened.expose(), b"seed");
    assert!(made.opened, "and it was opened before it was answered");

    // Not with another key, whether it exists or not; not by any other command.
    let denied = engine.execute(&plugin(), encrypt(cluster.id, &other)).await.err();
    assert_eq!(denied, Some(Error::Denied));
    let absent = KeyRef::parse("0193f1a2-0000-7000-8000-000000000001").unwrap();
    assert_eq!(status(&engine, &cluster, absent).await.err(), Some(Error::Denied));
    let describe = DescribeKey { key: by_id(&key) };
    assert_eq!(engine.execute(&plugin(), describe).await.err(), Some(Error::Denied));
    let plain = Encrypt { key: by_id(&key), plaintext: secret("x"), context: context(&[]) };
    assert_eq!(engine.execute(&plugin(), plain).await.err(), Some(Error::Denied));
    let disable = DisableKey { key: by_id(&key), overriding: None };
    assert_eq!(engine.execute(&plugin(), disable).await.err(), Some(Error::Denied));
    assert_eq!(engine.execute(&plugin(), ListClusters).await.err(), Some(Error::Denied));

    // Not with a certificate that was replaced.
    let replace = AddPlugin {
        cluster: cluster.id,
        plugin: PluginRequest {
            name: ClusterName::parse("p").unwrap(),
            fingerprint: "another".into(),
        },
    };
    engine.execute(&root(&engine), replace).await.unwrap();
    let denied = engine.execute(&plugin(), encrypt(cluster.id, &key)).await.err();
    assert_eq!(denied, Some(Error::Denied));
}

#[tokio::test]
async fn two_clusters_cannot_read_each_other() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let (one, two) =
        (add_cluster(&engine, "one", &key).await, add_cluster(&engine, "two", &key).await);
    let made = engine.execute(&plugin_of(&engine, &one), encrypt(one.id, &key)).await.unwrap();

    // As it is; claiming to be the other; with the envelope rewritten.
    let as_two = plugin_of(&engine, &two);
    let asked = engine.execute(&as_two, decrypt(two.id, &key, &made)).await.err();
    assert_eq!(asked, Some(Error::InvalidCiphertext));
    let claimed = engine.execute(&as_two, decrypt(one.id, &key, &made)).await.err();
    assert_eq!(claimed, Some(Error::Denied));
    let forged = PluginEncrypted { key: PluginKey { cluster: two.id, ..made.key }, ..made.clone() };
    let rewritten = engine.execute(&as_two, decrypt(two.id, &key, &forged)).await.err();
    assert_eq!(rewritten, Some(Error::InvalidCiphertext));
    // Nor can root, by the plain command, claim the names that the server binds.
    let decrypt_plainly = Decrypt { blob: made.blob.clone(), context: made.key.context() };
    let refused = engine.execute(&root(&engine), decrypt_plainly).await.err();
    assert!(matches!(refused, Some(Error::InvalidParameter { .. })));

    let ids = [&one, &two].map(|cluster| status(&engine, cluster, by_id(&key)));
    let ids = futures_util::future::join_all(ids).await;
    assert_ne!(ids[0].as_ref().unwrap().plugin_key_id, ids[1].as_ref().unwrap().plugin_key_id);
}

#[tokio::test]
async fn the_first_cluster_added_adopts_the_one_of_the_first_start() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let unnamed = AddCluster { name: None, keys: vec![by_id(&key)], plugin: None };
    let first = engine.execute(&root(&engine), unnamed).await.unwrap().cluster;
    let encrypt =
        PluginEncrypt { cluster: first.id, key: by_id(&key), pin: None, plaintext: secret("seed") };
    engine.execute(&root(&engine), encrypt).await.unwrap();
    let needs = async || {
        let list = ListDependants { key: by_id(&key) };
        let all = engine.execute(&root(&engine), list).await.unwrap();
        all.into_iter().map(|one| one.name).collect::<Vec<_>>()
    };
    assert_eq!(needs().await, [""]);
    let adopted = add_cluster(&engine, "prod", &key).await;
    assert_eq!(adopted.id, first.id);
    assert_eq!(needs().await, ["prod"], "what needs the key is called by its name");
    let second = add_cluster(&engine, "staging", &key).await;
    assert_ne!(second.id, first.id);
    let twice = AddCluster {
        name: Some(ClusterName::parse("prod").unwrap()),
        keys: vec![by_id(&key)],
        plugin: None,
    };
    assert_eq!(engine.execute(&root(&engine), twice).await.err(), Some(Error::Exists("cluster")));
}

#[tokio::test]
async fn a_key_id_never_comes_twice() {
    let world = World::new();
    let mut engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let mut seen = HashSet::new();
    let mut made = Vec::new();
    for round in 0..4 {
        let now = status(&engine, &cluster, by_id(&key)).await.unwrap();
        assert!(seen.insert(now.plugin_key_id.clone()), "round {round}");
        made.push(
            engine.execute(&plugin_of(&engine, &cluster), encrypt(cluster.id, &key)).await.unwrap(),
        );
        assert_eq!(made[round].key.key_id(), now.plugin_key_id);
        if round % 2 == 0 {
            engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
        } else {
            // The same version, on a medium restored from a backup.
            engine.shutdown().await;
            engine = world.try_start(&format!("restored {round}")).await.unwrap();
        }
    }
    for made in &made {
        let caller = plugin_of(&engine, &cluster);
        let opened = engine.execute(&caller, decrypt(cluster.id, &key, made)).await.unwrap();
        assert_eq!(opened.expose(), b"seed");
    }
    engine.shutdown().await;
    let before = seen.len();
    let engine = world.try_start("restored 3").await.unwrap();
    seen.insert(status(&engine, &cluster, by_id(&key)).await.unwrap().plugin_key_id);
    assert_eq!(seen.len(), before + 1);
    engine.shutdown().await;
    let engine = world.try_start("restored 3").await.unwrap();
    let again = status(&engine, &cluster, by_id(&key)).await.unwrap().plugin_key_id;
    assert!(seen.contains(&again), "an ordinary restart keeps the key id");
}

#[tokio::test]
async fn a_pin_is_honoured_until_its_grace_ends() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let told = status(&engine, &cluster, by_id(&key)).await.unwrap();
    engine.execute(&root(&engine), CreateKeyVersion { key: by_id(&key) }).await.unwrap();
    let pinned =
        || PluginEncrypt { pin: Some((told.key_version, told.epoch)), ..encrypt(cluster.id, &key) };
    let caller = || plugin_of(&engine, &cluster);
    let made = engine.execute(&caller(), pinned()).await.unwrap();
    assert_eq!(made.key.key_id(), told.plugin_key_id);
    world.clock.advance(Duration::from_secs(61));
    let stale = engine.execute(&caller(), pinned()).await.err();
    assert_eq!(stale, Some(Error::StaleKeyVersion));
}

#[tokio::test]
async fn a_waiting_plugin_hears_of_a_change_at_once() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key).await;
    let told = status(&engine, &cluster, by_id(&key)).await.unwrap();
    assert_eq!(told.refusal, None);
    let wait = {
        let (engine, cluster, key) = (engine.clone(), cluster.clone(), by_id(&key));
        tokio::spawn(async move {
            let ask = PluginStatus {
                cluster: cluster.id,
                key,
                known: told.token,
                wait: Duration::from_secs(30),
                instance: None,
            };
            engine.execute(&plugin_of(&engine, &cluster), ask).await
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Another key's change wakes nobody.
    create_key(&engine).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!wait.is_finished());
    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(2), wait).await.unwrap().unwrap().unwrap();
    assert_eq!(heard.refusal.unwrap().code, "Rejected.Disabled");
}
