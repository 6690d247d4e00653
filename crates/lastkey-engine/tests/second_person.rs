//! Where that is set, an override takes two people.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use lastkey_engine::{
    Caller, ClusterName, Dependant, Engine, Error, Key, KeyState, Label, Principal, Source,
    command::*,
};
use support::{START, World, by_id, create_key, root};

fn local(engine: &Engine, uid: u32) -> Caller {
    Caller::new(Principal::Local { uid }, Source::Internal, engine.new_request_id())
}

fn other_key_of_root(engine: &Engine) -> Caller {
    let principal = Principal::Root { access_key_id: "LKother".into() };
    Caller::new(principal, Source::Internal, engine.new_request_id())
}

async fn needed_key(engine: &Engine) -> std::sync::Arc<Key> {
    let key = create_key(engine).await;
    let dependant = Dependant {
        kind: Label::parse("volume").unwrap(),
        id: Label::parse("v").unwrap(),
        name: String::new(),
        versions: BTreeMap::from([(key.primary.version, 3)]),
        until: None,
        seen_at: Some(START),
        used: BTreeMap::new(),
    };
    let put = PutDependant { key: by_id(&key), dependant, in_use: None };
    engine.execute(&root(engine), put).await.unwrap();
    key
}

fn disable(key: &Key) -> DisableKey {
    let overriding = Override { key: key.id.to_string(), reason: "it is gone".to_owned() };
    DisableKey { key: by_id(key), overriding: Some(overriding) }
}

async fn state(engine: &Engine, key: &Key) -> KeyState {
    engine.execute(&root(engine), DescribeKey { key: by_id(key) }).await.unwrap().state
}

async fn set(engine: &Engine, caller: &Caller, on: bool) -> Result<(), Error> {
    engine.execute(caller, SetSecondPerson { on, reason: "a rule".to_owned() }).await
}

fn waiting<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Label {
    let Err(Error::AwaitsSecondPerson { id, .. }) = outcome else { panic!("{outcome:?}") };
    Label::parse(&id).unwrap()
}

async fn confirm(engine: &Engine, caller: &Caller, id: &Label) -> Result<Confirmed, Error> {
    engine.execute(caller, ConfirmOverride { id: id.clone() }).await
}

async fn log(engine: &Engine) -> Vec<String> {
    let query = lastkey_engine::audit::Query { limit: 200, ..Default::default() };
    let page = engine.execute(&root(engine), QueryAudit { query }).await.unwrap();
    page.records.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn an_override_takes_two() {
    let world = World::new();
    let engine = world.start().await;
    let key = needed_key(&engine).await;
    set(&engine, &root(&engine), true).await.unwrap();
    // What nothing needs takes one, and so does what is refused anyway.
    let free = create_key(&engine).await;
    engine.execute(&root(&engine), disable(&free)).await.unwrap();
    let plain = DisableKey { overriding: None, ..disable(&key) };
    assert!(matches!(engine.execute(&root(&engine), plain).await, Err(Error::Depended(_))));

    let id = waiting(engine.execute(&root(&engine), disable(&key)).await);
    assert_eq!(state(&engine, &key).await, KeyState::Enabled);
    // Asked once more it is the same request.
    assert_eq!(waiting(engine.execute(&root(&engine), disable(&key)).await), id);
    let guard = engine.execute(&root(&engine), DescribeGuard).await.unwrap();
    assert!(guard.second_person.on && guard.requests.len() == 1);
    // The same person by another key of the account is still the same person.
    for same in [root(&engine), other_key_of_root(&engine)] {
        let refused = confirm(&engine, &same, &id).await;
        assert_eq!(refused, Err(Error::SamePerson { by: "root".to_owned() }));
    }
    assert_eq!(state(&engine, &key).await, KeyState::Enabled);
    // It waits over a restart.
    engine.shutdown().await;
    let engine = world.start().await;
    confirm(&engine, &local(&engine, 1000), &id).await.unwrap();
    assert_eq!(state(&engine, &key).await, KeyState::Disabled);
    // Once.
    assert!(confirm(&engine, &local(&engine, 1000), &id).await.is_err());

    // Both are in the log.
    let lines = log(&engine).await;
    let found = |parts: &[&str]| lines.iter().any(|l| parts.iter().all(|part| l.contains(part)));
    assert!(found(&[
        "\"DisableKey\"",
        "\"override\":\"it is gone\"",
        "\"outcome\":\"Rejected.AwaitsSecondPerson\"",
        id.as_str()
    ]));
    let both = ["\"ConfirmOverride\"", "local/1000", "\"requested_by\":\"root/LKtest\"", "\"ok\""];
    assert!(found(&both), "{lines:#?}");
    assert!(found(&["\"ConfirmOverride\"", "\"outcome\":\"Forbidden.SamePerson\""]));
}

#[tokio::test]
async fn two_local_users_are_two_people() {
    let world = World::new();
    let engine = world.start().await;
    let key = needed_key(&engine).await;
    set(&engine, &local(&engine, 0), true).await.unwrap();
    let delete = ScheduleKeyDeletion {
        key: by_id(&key),
        window_days: 7,
        overriding: disable(&key).overriding,
    };
    let id = waiting(engine.execute(&local(&engine, 0), delete).await);
    let refused = confirm(&engine, &local(&engine, 0), &id).await;
    assert_eq!(refused, Err(Error::SamePerson { by: "local/0".to_owned() }));
    confirm(&engine, &local(&engine, 1000), &id).await.unwrap();
    assert_eq!(state(&engine, &key).await, KeyState::PendingDeletion);
}

/// Taking away what stands in the way would be the same by another name.
#[tokio::test]
async fn there_is_no_way_around() {
    let world = World::new();
    let engine = world.start().await;
    let key = needed_key(&engine).await;
    set(&engine, &root(&engine), true).await.unwrap();
    let remove = RemoveDependant {
        key: by_id(&key),
        kind: Label::parse("volume").unwrap(),
        id: Label::parse("v").unwrap(),
        reason: "wiped".to_owned(),
    };
    let id = waiting(engine.execute(&root(&engine), remove).await);
    // Nor can one person end the setting.
    let off = waiting(set(&engine, &root(&engine), false).await);
    assert!(engine.execute(&root(&engine), DescribeGuard).await.unwrap().second_person.on);
    confirm(&engine, &local(&engine, 1000), &off).await.unwrap();
    assert!(!engine.execute(&root(&engine), DescribeGuard).await.unwrap().second_person.on);
    confirm(&engine, &local(&engine, 1000), &id).await.unwrap();
    engine.execute(&root(&engine), DisableKey { overriding: None, ..disable(&key) }).await.unwrap();
}

#[tokio::test]
async fn requests_end() {
    let world = World::new();
    let engine = world.start().await;
    let key = needed_key(&engine).await;
    set(&engine, &root(&engine), true).await.unwrap();
    let id = waiting(engine.execute(&root(&engine), disable(&key)).await);
    world.clock.advance(Duration::from_secs(24 * 60 * 60));
    assert!(matches!(confirm(&engine, &local(&engine, 7), &id).await, Err(Error::NotFound(_))));
    assert!(engine.execute(&root(&engine), DescribeGuard).await.unwrap().requests.is_empty());
    let id = waiting(engine.execute(&root(&engine), disable(&key)).await);
    engine.execute(&root(&engine), RejectOverride { id: id.clone() }).await.unwrap();
    assert!(matches!(confirm(&engine, &local(&engine, 7), &id).await, Err(Error::NotFound(_))));
    assert_eq!(state(&engine, &key).await, KeyState::Enabled);
    // What is confirmed is looked at anew: a key that is protected by then stays.
    let delete = ScheduleKeyDeletion {
        key: by_id(&key),
        window_days: 7,
        overriding: disable(&key).overriding,
    };
    let id = waiting(engine.execute(&root(&engine), delete).await);
    let protect = SetDeletionProtection { key: by_id(&key), enable: true, description: "".into() };
    engine.execute(&root(&engine), protect).await.unwrap();
    let refused = confirm(&engine, &local(&engine, 7), &id).await;
    assert_eq!(refused, Err(Error::DeletionProtected));
}

/// A cluster is forgotten with its plugins' rights; what needs its keys stands in the way.
#[tokio::test]
async fn a_cluster_is_forgotten() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let name = ClusterName::parse("prod").unwrap();
    let plugin = PluginRequest { name: name.clone(), fingerprint: "print".to_owned() };
    let add = AddCluster { name: Some(name), keys: vec![by_id(&key)], plugin: Some(plugin) };
    let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
    let access = lastkey_crypto::SecretBytes::new(b"{}".to_vec());
    engine.execute(&root(&engine), PutClusterAccess { cluster, access }).await.unwrap();
    let automatic = Some(lastkey_engine::Automatic { retire: false });
    let configure = ConfigureCluster { cluster, automatic };
    assert!(engine.execute(&root(&engine), configure).await.unwrap().automatic.is_some());

    // The access goes, what is needed stays guarded.
    let reason = || "moved".to_owned();
    let remove = RemoveClusterAccess { cluster, reason: reason() };
    engine.execute(&root(&engine), remove.clone()).await.unwrap();
    assert!(engine.execute(&root(&engine), remove).await.is_err());
    assert!(engine.execute(&root(&engine), GetClusterAccess { cluster }).await.is_err());
    let plain = DisableKey { overriding: None, ..disable(&key) };
    assert!(matches!(engine.execute(&root(&engine), plain).await, Err(Error::Depended(_))));
    let clusters = engine.execute(&root(&engine), ListClusters).await.unwrap();
    assert!(clusters[0].automatic.is_none(), "nobody could do it");

    let forget = |overriding: Option<&str>| ForgetCluster {
        cluster,
        overriding: overriding.map(str::to_owned),
        reason: reason(),
    };
    let refused = engine.execute(&root(&engine), forget(None)).await;
    assert!(matches!(refused, Err(Error::Depended(_))), "{refused:?}");
    let refused = engine.execute(&root(&engine), forget(Some("other"))).await;
    assert!(matches!(refused, Err(Error::InvalidParameter { .. })), "{refused:?}");
    let principal = Principal::Plugin { cluster, name: "prod".into(), fingerprint: "print".into() };
    let caller = Caller::new(principal, Source::Internal, engine.new_request_id());
    let encrypt = || PluginEncrypt {
        cluster,
        key: by_id(&key),
        pin: None,
        plaintext: support::secret("seed"),
    };
    engine.execute(&caller, encrypt()).await.unwrap();
    engine.execute(&root(&engine), forget(Some("prod"))).await.unwrap();
    assert_eq!(engine.execute(&caller, encrypt()).await, Err(Error::Denied));
    let plain = DisableKey { overriding: None, ..disable(&key) };
    engine.execute(&root(&engine), plain).await.unwrap();
    engine.shutdown().await;
    let engine = world.start().await;
    assert!(engine.execute(&root(&engine), ListClusters).await.unwrap().is_empty());
}
