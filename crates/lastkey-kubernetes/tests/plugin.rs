//! The plugin between a real gRPC client and a fake key server: what an apiserver sees, story by
//! story.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below

mod support;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use lastkey_crypto::{ClusterId, KeyVersionId, plugin_blob::PluginBlob};
use lastkey_kubernetes::{
    plugin::{KEY_VERSION_ANNOTATION, Method, StatusVersion},
    proto::{
        v1beta1,
        v2::{
            DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
            key_management_service_client::KeyManagementServiceClient,
        },
    },
};
use support::{FakeKms, Mode, Running, connect, eventually};
use tonic::{Code, Status, transport::Channel};

type Kms = KeyManagementServiceClient<Channel>;

async fn status(kms: &Kms) -> Result<StatusResponse, Status> {
    kms.clone().status(StatusRequest {}).await.map(tonic::Response::into_inner)
}

async fn encrypt(kms: &Kms, plaintext: &[u8]) -> Result<EncryptResponse, Status> {
    let request = EncryptRequest { plaintext: plaintext.to_vec(), uid: "u-1".into() };
    kms.clone().encrypt(request).await.map(tonic::Response::into_inner)
}

fn request(sealed: &EncryptResponse) -> DecryptRequest {
    DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "u-2".into(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    }
}

async fn decrypt(kms: &Kms, request: DecryptRequest) -> Result<Vec<u8>, Status> {
    kms.clone().decrypt(request).await.map(|answer| answer.into_inner().plaintext)
}

fn code<T>(outcome: &Result<T, Status>) -> Code {
    outcome.as_ref().err().map_or(Code::Ok, Status::code)
}

#[tokio::test]
async fn an_apiserver_gets_back_what_it_stored() {
    let mut plugin = Running::start().await;
    let ready = plugin.ready().await;
    let key = plugin.kms.key();
    assert_eq!(ready.key_id.as_deref(), Some(key.key_id().as_str()));
    assert_eq!(ready.sockets, [plugin.socket.display().to_string()]);

    let kms = Kms::new(connect(plugin.socket.clone()).await);
    let said = status(&kms).await.unwrap();
    assert_eq!((said.version.as_str(), said.healthz.as_str()), ("v2beta1", "ok"));
    assert_eq!(said.key_id, key.key_id());

    let sealed = encrypt(&kms, &[7; 32]).await.unwrap();
    assert_eq!(sealed.key_id, said.key_id);
    assert!(sealed.ciphertext.len() <= 1024);
    let expected: HashMap<_, _> =
        [(KEY_VERSION_ANNOTATION.to_owned(), key.key_version.to_string().into_bytes())].into();
    assert_eq!(sealed.annotations, expected);
    assert_eq!(*PluginBlob::parse(&sealed.ciphertext).unwrap().key(), key);
    assert_eq!(decrypt(&kms, request(&sealed)).await.unwrap(), [7; 32]);

    let count = |method| plugin.metrics.calls(method, Code::Ok);
    assert_eq!([Method::Status, Method::Encrypt, Method::Decrypt].map(count), [1; 3]);
    assert!(plugin.metrics.is_usable());
    plugin.stop().await.unwrap();
}

#[tokio::test]
async fn version_1_stores_no_key_id() {
    let mut plugin = Running::start().await;
    let channel = plugin.connected().await;
    let mut kms = v1beta1::key_management_service_client::KeyManagementServiceClient::new(channel);
    let version = "v1beta1".to_owned();
    let said = kms.version(v1beta1::VersionRequest { version: version.clone() }).await.unwrap();
    assert_eq!(said.get_ref().version, "v1beta1");
    let request = v1beta1::EncryptRequest { version: version.clone(), plain: vec![7; 32] };
    let cipher = kms.encrypt(request).await.unwrap().into_inner().cipher;
    // a rotation is never noticed by v1, and old ciphertext opens
    plugin.kms.rotate(false, true);
    let request = v1beta1::DecryptRequest { version: version.clone(), cipher };
    assert_eq!(kms.decrypt(request).await.unwrap().into_inner().plain, [7; 32]);
    let other = v1beta1::DecryptRequest { version: "v3".into(), cipher: vec![] };
    assert_eq!(code(&kms.decrypt(other).await), Code::InvalidArgument);
}

#[tokio::test]
async fn the_version_is_configurable() {
    let mut plugin =
        Running::start_with(FakeKms::new(), |config| config.version = StatusVersion::V2).await;
    let kms = Kms::new(plugin.connected().await);
    assert_eq!(status(&kms).await.unwrap().version, "v2");
}

#[tokio::test]
async fn status_does_not_wait_for_the_server() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    plugin.kms.set(Mode::Slow(Duration::from_secs(30)));
    status(&kms).await.unwrap();
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(status(&kms).await.unwrap().healthz, "ok");
    }
    // a debug build on a busy machine; the answer itself takes microseconds
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_disabled_key_fails_the_call_and_heals() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let sealed = encrypt(&kms, &[7; 32]).await.unwrap();
    for (refusal, expected) in [
        ("Rejected.Disabled", Code::FailedPrecondition),
        ("Rejected.PendingDeletion", Code::FailedPrecondition),
        ("Forbidden.NoPermission", Code::PermissionDenied),
        ("Forbidden.KeyNotFound", Code::NotFound),
    ] {
        plugin.kms.set(Mode::Refused(refusal));
        let said = eventually(|| status(&kms), |said| said.is_err()).await;
        assert_eq!(code(&said), expected, "{refusal}");
        assert!(said.err().unwrap().message().contains(refusal));
        assert_eq!(code(&encrypt(&kms, &[1; 32]).await), expected);
        assert_eq!(code(&decrypt(&kms, request(&sealed)).await), expected);

        plugin.kms.set(Mode::Good);
        let said = eventually(|| status(&kms), |said| said.is_ok()).await.unwrap();
        assert_eq!((said.healthz.as_str(), &said.key_id), ("ok", &sealed.key_id));
        assert_eq!(decrypt(&kms, request(&sealed)).await.unwrap(), [7; 32]);
    }
}

#[tokio::test]
async fn access_withdrawn_at_the_door_fails_the_call() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    plugin.kms.set(Mode::Fails(403, "Forbidden.NoPermission"));
    let said = eventually(|| status(&kms), |said| said.is_err()).await;
    assert_eq!(code(&said), Code::PermissionDenied);
    plugin.kms.set(Mode::Good);
    eventually(|| status(&kms), |said| said.is_ok()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_shows_in_healthz_only() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let key_id = status(&kms).await.unwrap().key_id;
    let address = plugin.stop_server().await;
    let unhealthy = |said: &Result<StatusResponse, Status>| {
        said.as_ref().is_ok_and(|said| said.healthz != "ok")
    };
    let said = eventually(|| status(&kms), unhealthy).await.unwrap();
    assert!(said.healthz.starts_with("server unavailable: "), "{}", said.healthz);
    assert_eq!(said.key_id, key_id);
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::Unavailable);
    assert!(!plugin.metrics.is_usable());

    plugin.start_server(address).await;
    let healthy = |said: &Result<StatusResponse, Status>| !unhealthy(said);
    assert_eq!(eventually(|| status(&kms), healthy).await.unwrap().healthz, "ok");
    encrypt(&kms, &[1; 32]).await.unwrap();
}

/// A host that lost its power closes no connection; the plugin finds out by itself.
#[tokio::test]
async fn a_silent_network_shows_in_healthz_only() {
    let (mut plugin, network) = Running::start_behind(FakeKms::new()).await;
    let kms = Kms::new(plugin.connected().await);
    assert_eq!(status(&kms).await.unwrap().healthz, "ok");
    network.fall_silent(true);
    let start = Instant::now();
    let slow = encrypt(&kms, &[1; 32]).await;
    assert!(matches!(code(&slow), Code::DeadlineExceeded | Code::Unavailable));
    assert!(start.elapsed() < Duration::from_secs(20));
    let unhealthy = |said: &Result<StatusResponse, Status>| {
        said.as_ref().is_ok_and(|said| said.healthz != "ok")
    };
    eventually(|| status(&kms), unhealthy).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    network.fall_silent(false);
    eventually(|| status(&kms), |said| !unhealthy(said)).await.unwrap();
    encrypt(&kms, &[1; 32]).await.unwrap();
}

#[tokio::test]
async fn a_sealed_server_shows_in_healthz_only() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    plugin.kms.set(Mode::Fails(503, "ServiceUnavailableTemporary"));
    let said =
        eventually(|| status(&kms), |said| said.as_ref().is_ok_and(|said| said.healthz != "ok"));
    assert!(said.await.unwrap().healthz.contains("ServiceUnavailableTemporary"));
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::Unavailable);
}

#[tokio::test]
async fn beyond_the_lease_the_call_fails() {
    let kms = FakeKms::new();
    kms.state.lock().lease_seconds = 1;
    let mut plugin = Running::start_with(kms, |_| {}).await;
    let kms = Kms::new(plugin.connected().await);
    plugin.stop_server().await;
    let said = eventually(|| status(&kms), |said| said.is_err()).await;
    assert_eq!(code(&said), Code::Unavailable);
    assert!(said.err().unwrap().message().contains("lease"));
}

#[tokio::test]
async fn before_the_first_answer_the_plugin_is_unavailable() {
    let kms = FakeKms::new();
    kms.set(Mode::Fails(503, "ServiceUnavailableTemporary"));
    let mut plugin = Running::start_with(kms, |config| {
        config.budget = Duration::from_millis(300);
    })
    .await;
    let kms = Kms::new(connect(plugin.socket.clone()).await);
    assert_eq!(code(&status(&kms).await), Code::Unavailable);
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::Unavailable);
    plugin.kms.set(Mode::Good);
    plugin.ready().await;
    assert_eq!(status(&kms).await.unwrap().healthz, "ok");
}

#[tokio::test]
async fn whoever_dials_right_after_the_start_waits_for_the_first_answer() {
    let mut plugin = Running::start().await;
    let sealed = encrypt(&Kms::new(plugin.connected().await), &[7; 32]).await.unwrap();
    let kms = plugin.kms.clone();
    drop(plugin);
    kms.set(Mode::Slow(Duration::from_millis(300)));
    let restarted = Running::start_with(kms, |_| {}).await;
    let kms = Kms::new(connect(restarted.socket.clone()).await);
    assert_eq!(status(&kms).await.unwrap().healthz, "ok");
    assert_eq!(decrypt(&kms, request(&sealed)).await.unwrap(), [7; 32]);
}

#[tokio::test]
async fn a_key_refused_from_the_start_has_no_key_id() {
    let kms = FakeKms::new();
    kms.set(Mode::Refused("Rejected.Disabled"));
    let mut plugin = Running::start_with(kms, |_| {}).await;
    assert_eq!(plugin.ready().await.key_id, None);
    let kms = Kms::new(connect(plugin.socket.clone()).await);
    assert_eq!(code(&status(&kms).await), Code::FailedPrecondition);
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_rotation_changes_the_key_id_once() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let old = status(&kms).await.unwrap().key_id;
    let stored = encrypt(&kms, &[7; 32]).await.unwrap();

    plugin.kms.rotate(true, true);
    let new = plugin.kms.key().key_id();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // until Status tells this connection, Encrypt keeps to what it was told
    assert_eq!(encrypt(&kms, &[7; 32]).await.unwrap().key_id, old);
    assert_eq!(status(&kms).await.unwrap().key_id, new);
    for _ in 0..20 {
        assert_eq!(status(&kms).await.unwrap().key_id, new);
        assert_eq!(encrypt(&kms, &[7; 32]).await.unwrap().key_id, new);
    }
    assert_eq!(decrypt(&kms, request(&stored)).await.unwrap(), [7; 32]);
}

#[tokio::test]
async fn one_apiservers_status_does_not_move_anothers_encrypt() {
    let mut plugin = Running::start().await;
    let first = Kms::new(plugin.connected().await);
    let second = Kms::new(connect(plugin.socket.clone()).await);
    let old = status(&first).await.unwrap().key_id;
    status(&second).await.unwrap();
    plugin.kms.rotate(true, true);
    let new = plugin.kms.key().key_id();
    let moved =
        |said: &Result<StatusResponse, Status>| said.as_ref().is_ok_and(|said| said.key_id == new);
    eventually(|| status(&second), moved).await.unwrap();
    assert_eq!(encrypt(&second, &[1; 32]).await.unwrap().key_id, new);
    assert_eq!(encrypt(&first, &[1; 32]).await.unwrap().key_id, old);
}

#[tokio::test]
async fn a_pin_that_is_too_old_is_answered_with_the_new_generation() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    status(&kms).await.unwrap();
    plugin.kms.rotate(false, false); // the watch does not hear of it by itself
    let new = plugin.kms.key().key_id();
    let calls = (0..8).map(|_| encrypt(&kms, &[1; 32]));
    let ids: HashSet<_> = futures_util::future::join_all(calls)
        .await
        .into_iter()
        .map(|sealed| sealed.unwrap().key_id)
        .collect();
    assert_eq!(ids, HashSet::from([new.clone()]));
    assert_eq!(status(&kms).await.unwrap().key_id, new);
}

#[tokio::test]
async fn what_was_tampered_with_is_refused_here() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let sealed = encrypt(&kms, &[7; 32]).await.unwrap();
    let good = || request(&sealed);
    let changed_id = |id: &str| DecryptRequest { key_id: id.into(), ..good() };
    let annotated = |name: &str, value: &[u8]| {
        let mut request = good();
        request.annotations.insert(name.into(), value.to_vec());
        request
    };
    let ciphertext =
        |ciphertext: &[u8]| DecryptRequest { ciphertext: ciphertext.to_vec(), ..good() };
    let flipped = |at: usize| {
        let mut bytes = sealed.ciphertext.clone();
        bytes[at] ^= 1;
        ciphertext(&bytes)
    };
    let version = KeyVersionId::from_bytes([0; 16]).to_string();
    let rows = [
        changed_id(""),
        changed_id(&"0".repeat(64)),
        changed_id(&sealed.key_id.to_uppercase()),
        annotated("other.kms.lastkey.dev", b"x"),
        annotated(KEY_VERSION_ANNOTATION, version.as_bytes()),
        annotated(KEY_VERSION_ANNOTATION, b""),
        DecryptRequest { annotations: HashMap::new(), ..good() },
        ciphertext(b""),
        ciphertext(b"k8s:enc:"),
        ciphertext(&[1; 1025]),
        ciphertext(&sealed.ciphertext[..sealed.ciphertext.len() / 2]),
        flipped(0),  // format
        flipped(1),  // lineage
        flipped(17), // cluster
        flipped(33), // key version
        flipped(49), // epoch
        flipped(65), // the key version inside the blob
    ];
    for (at, row) in rows.into_iter().enumerate() {
        assert_eq!(code(&decrypt(&kms, row).await), Code::InvalidArgument, "row {at}");
    }
    assert_eq!(plugin.kms.state.lock().decrypts, 0);
    // the rest only the key can tell
    let last = sealed.ciphertext.len() - 1;
    assert_eq!(code(&decrypt(&kms, flipped(last)).await), Code::InvalidArgument);
    assert_eq!(plugin.kms.state.lock().decrypts, 1);
    assert_eq!(decrypt(&kms, good()).await.unwrap(), [7; 32]);
}

#[tokio::test]
async fn another_clusters_ciphertext_is_refused_here() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let sealed = encrypt(&kms, &[7; 32]).await.unwrap();
    let blob = PluginBlob::parse(&sealed.ciphertext).unwrap();
    let mut key = *blob.key();
    key.cluster = ClusterId::from_bytes([9; 16]);
    let foreign = DecryptRequest {
        ciphertext: PluginBlob::new(key, blob.blob_bytes()).unwrap().encode(),
        key_id: key.key_id(),
        ..request(&sealed)
    };
    assert_eq!(code(&decrypt(&kms, foreign).await), Code::PermissionDenied);
    assert_eq!(plugin.kms.state.lock().decrypts, 0);
}

#[tokio::test]
async fn sizes_are_checked_before_the_server_is_asked() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    for size in [0, 1024, 4096] {
        assert_eq!(code(&encrypt(&kms, &vec![1; size]).await), Code::InvalidArgument, "{size}");
    }
    assert_eq!(plugin.kms.state.lock().encrypts, 0);
    let too_large = encrypt(&kms, &vec![1; 1 << 20]).await;
    assert!(matches!(code(&too_large), Code::OutOfRange | Code::ResourceExhausted));

    let largest = vec![1; 879];
    let sealed = encrypt(&kms, &largest).await.unwrap();
    assert_eq!(sealed.ciphertext.len(), 1024);
    assert_eq!(decrypt(&kms, request(&sealed)).await.unwrap(), largest);
    assert_eq!(code(&encrypt(&kms, &[1; 880]).await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_server_that_contradicts_itself_is_not_believed() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let key_id = status(&kms).await.unwrap().key_id;
    plugin.kms.set(Mode::IgnoresPin);
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::Internal);
    plugin.kms.set(Mode::AlwaysStale);
    let stale = code(&encrypt(&kms, &[1; 32]).await);
    assert!(matches!(stale, Code::Aborted | Code::DeadlineExceeded), "{stale:?}");
    plugin.kms.set(Mode::WrongKeyId);
    let said =
        eventually(|| status(&kms), |said| said.as_ref().is_ok_and(|said| said.healthz != "ok"));
    assert_eq!(said.await.unwrap().key_id, key_id);
}

#[tokio::test]
async fn garbage_and_silence_have_their_codes() {
    let mut plugin = Running::start_with(FakeKms::new(), |config| {
        config.budget = Duration::from_secs(2);
    })
    .await;
    let kms = Kms::new(plugin.connected().await);
    status(&kms).await.unwrap();
    plugin.kms.set(Mode::Garbage);
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::Internal);
    plugin.kms.set(Mode::Slow(Duration::from_secs(30)));
    let start = Instant::now();
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(15));
    plugin.kms.set(Mode::Fails(429, "Rejected.Throttling"));
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::ResourceExhausted);
    plugin.kms.set(Mode::Fails(500, "InternalFailure"));
    assert_eq!(code(&encrypt(&kms, &[1; 32]).await), Code::Internal);
}

#[tokio::test]
async fn too_many_calls_are_refused_not_queued() {
    let mut plugin = Running::start_with(FakeKms::new(), |config| config.max_calls = 2).await;
    let kms = Kms::new(plugin.connected().await);
    status(&kms).await.unwrap();
    plugin.kms.set(Mode::Slow(Duration::from_secs(30)));
    let calls = (0..8).map(|_| encrypt(&kms, &[1; 32]));
    let outcomes = futures_util::future::join_all(calls).await;
    let refused = outcomes.iter().filter(|it| code(it) == Code::ResourceExhausted).count();
    assert_eq!(refused, 6);
    status(&kms).await.unwrap();
}

#[tokio::test]
async fn it_stops_soon_with_a_connection_open_and_leaves_no_socket() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    status(&kms).await.unwrap();
    let (socket, start) = (plugin.socket.clone(), Instant::now());
    plugin.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(!socket.exists());
}
