//! What the plugin remembers: reads without the server, identical Decrypts in one call, and what
//! the server's log gets to know of it.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below

mod support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lastkey_kubernetes::{
    plugin::{Leases, MemoryConfig, PluginConfig, TakeUp},
    proto::{
        v1beta1,
        v2::{
            DecryptRequest, EncryptRequest, EncryptResponse,
            key_management_service_client::KeyManagementServiceClient,
        },
    },
};
use support::{FakeKms, Mode, Running, eventually};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

type Kms = KeyManagementServiceClient<Channel>;

fn remembering(directory: &Path) -> impl FnOnce(&mut PluginConfig) {
    let directory = directory.to_owned();
    move |config| config.memory = Some(MemoryConfig { entries: 100, directory })
}

/// A plugin that remembers, and where it records.
async fn start() -> (Running, Kms, TempDir) {
    let state = tempfile::tempdir().unwrap();
    let mut plugin = Running::start_with(FakeKms::new(), remembering(state.path())).await;
    let kms = Kms::new(plugin.connected().await);
    (plugin, kms, state)
}

async fn encrypt(kms: &Kms, plaintext: &[u8]) -> EncryptResponse {
    let request = EncryptRequest { plaintext: plaintext.to_vec(), uid: "u-1".into() };
    kms.clone().encrypt(request).await.unwrap().into_inner()
}

async fn decrypt(kms: &Kms, sealed: &EncryptResponse, uid: &str) -> Result<Vec<u8>, Status> {
    let request = DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: uid.into(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    kms.clone().decrypt(request).await.map(|answer| answer.into_inner().plaintext)
}

fn code<T>(outcome: &Result<T, Status>) -> Code {
    outcome.as_ref().err().map_or(Code::Ok, Status::code)
}

/// Waits until the plugin remembers so many answers.
async fn remembered(plugin: &Running, count: u64) {
    let metrics = plugin.metrics.memory();
    eventually(async || metrics.remembered(), |now| *now == count).await;
}

fn decrypts(kms: &Arc<FakeKms>) -> usize {
    kms.state.lock().decrypts
}

#[tokio::test]
async fn what_was_opened_once_is_not_asked_for_again_and_every_answer_is_recorded() {
    let (plugin, kms, _state) = start().await;
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    let asked = decrypts(&plugin.kms);
    let uids: Vec<String> = (0..100).map(|number| format!("uid-{number}")).collect();
    for uid in &uids {
        assert_eq!(decrypt(&kms, &sealed, uid).await.unwrap(), [7; 32]);
    }
    assert_eq!(decrypts(&plugin.kms), asked, "answered from memory");
    assert_eq!(plugin.metrics.memory().answers(), (100, 0));
    let told = eventually(async || plugin.kms.recorded(), |(count, _)| *count == 100).await;
    assert_eq!(told.1, uids);
}

#[tokio::test]
async fn what_the_server_opened_when_it_made_it_costs_no_further_call() {
    let (plugin, kms, _state) = start().await;
    let mut sealed = Vec::new();
    for number in 0..50 {
        sealed.push(encrypt(&kms, &[number; 32]).await);
    }
    remembered(&plugin, 50).await;
    for (number, sealed) in sealed.iter().enumerate() {
        assert_eq!(decrypt(&kms, sealed, "u").await.unwrap(), [number as u8; 32]);
    }
    assert_eq!(decrypts(&plugin.kms), 0, "the server was asked to encrypt, and nothing else");
    eventually(async || plugin.kms.recorded().0, |count| *count == 50).await;
    // One that does not say so is asked, once somebody wants to know.
    plugin.kms.state.lock().opens = false;
    let sealed = encrypt(&kms, &[99; 32]).await;
    assert_eq!(plugin.metrics.memory().remembered(), 50);
    decrypt(&kms, &sealed, "u").await.unwrap();
    assert_eq!((decrypts(&plugin.kms), plugin.metrics.memory().remembered()), (1, 51));
}

#[tokio::test]
async fn reads_go_on_while_the_server_is_away_and_reach_its_log_once() {
    let (mut plugin, kms, _state) = start().await;
    let (seen, unseen) = (encrypt(&kms, &[7; 32]).await, encrypt(&kms, &[8; 32]).await);
    remembered(&plugin, 2).await;
    let address = plugin.stop_server().await;
    for sealed in [&seen, &unseen, &seen] {
        decrypt(&kms, sealed, "away").await.unwrap();
    }
    let refused = kms.clone().encrypt(EncryptRequest { plaintext: vec![1], uid: "w".into() }).await;
    assert_eq!(code(&refused), Code::Unavailable, "nothing is encrypted without the server");
    plugin.start_server(address).await;
    eventually(async || plugin.kms.recorded().0, |count| *count == 3).await;
    decrypt(&kms, &seen, "back").await.unwrap();
    let told = eventually(async || plugin.kms.recorded(), |(count, _)| *count == 4).await;
    assert_eq!(told.1, ["away", "away", "away", "back"]);
}

#[tokio::test]
async fn what_was_not_delivered_outlives_the_plugin() {
    let (mut plugin, kms, state) = start().await;
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    plugin.stop_server().await;
    decrypt(&kms, &sealed, "before").await.unwrap();
    let fake = plugin.kms.clone();
    plugin.stop().await.unwrap();
    let spool = std::fs::read_to_string(state.path().join("answers.spool")).unwrap();
    assert!(spool.contains("before") && spool.lines().count() == 2, "{spool}");

    let mut plugin = Running::start_with(fake.clone(), remembering(state.path())).await;
    let kms = Kms::new(plugin.connected().await);
    eventually(async || fake.recorded().0, |count| *count == 1).await;
    // It knows nothing any more, asks, and its numbers go on.
    let asked = decrypts(&fake);
    decrypt(&kms, &sealed, "asked").await.unwrap();
    assert_eq!(decrypts(&fake), asked + 1);
    let again = async || {
        decrypt(&kms, &sealed, "after").await.unwrap();
        fake.recorded().1
    };
    eventually(again, |uids| uids.contains(&"after".to_owned())).await;
    assert_eq!(fake.recorded().1[0], "before");
}

#[tokio::test]
async fn the_lease_ends_on_time() {
    let state = tempfile::tempdir().unwrap();
    let mut plugin = Running::start_with(FakeKms::new(), |config| {
        remembering(state.path())(config);
        config.leases = Leases { reads: Some(Duration::from_secs(10)), writes: None };
    })
    .await;
    let kms = Kms::new(plugin.connected().await);
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    // While the server is there, the lease is renewed for as long as it takes.
    let renewed = std::time::Instant::now() + Duration::from_secs(11);
    while std::time::Instant::now() < renewed {
        assert_eq!(plugin.metrics.memory().remembered(), 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let address = plugin.stop_server().await;
    let ended = eventually(async || decrypt(&kms, &sealed, "u").await, |it| it.is_err()).await;
    assert_eq!(code(&ended), Code::Unavailable);
    remembered(&plugin, 0).await;
    plugin.start_server(address).await;
    eventually(async || decrypt(&kms, &sealed, "u").await, |it| it.is_ok()).await.unwrap();
}

#[tokio::test]
async fn a_refused_key_empties_the_cache_at_once() {
    let (plugin, kms, _state) = start().await;
    let sealed = encrypt(&kms, &[7; 32]).await;
    for (refusal, expected) in [
        (Mode::Refused("Rejected.Disabled"), Code::FailedPrecondition),
        (Mode::Fails(403, "Forbidden.NoPermission"), Code::PermissionDenied),
    ] {
        // what is answered before Status knows that the key may be used again is not kept
        let metrics = plugin.metrics.memory();
        let asks = async || (decrypt(&kms, &sealed, "u").await.is_ok(), metrics.remembered());
        eventually(asks, |now| *now == (true, 1)).await;
        plugin.kms.set(refusal);
        remembered(&plugin, 0).await;
        assert_eq!(code(&decrypt(&kms, &sealed, "u").await), expected);
        plugin.kms.set(Mode::Good);
    }
}

/// A neighbour that goes by the same files has renewed them: this one takes that up before it believes
/// that it is refused.
#[tokio::test]
async fn a_refusal_that_another_certificate_cures_empties_nothing() {
    let state = tempfile::tempdir().unwrap();
    let (fake, taken) = (FakeKms::new(), Arc::new(AtomicUsize::new(0)));
    let take_up = {
        let (fake, taken) = (fake.clone(), taken.clone());
        move || {
            fake.set(Mode::Good);
            taken.fetch_add(1, Ordering::SeqCst) == 0
        }
    };
    let change = |config: &mut PluginConfig| {
        remembering(state.path())(config);
        config.take_up = Some(TakeUp::new(take_up));
    };
    let mut plugin = Running::start_with(fake, change).await;
    let kms = Kms::new(plugin.connected().await);
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    let refused = || plugin.metrics.memory().remembered() == 0;
    plugin.kms.set(Mode::Fails(403, "Forbidden.NoPermission"));
    eventually(async || taken.load(Ordering::SeqCst), |taken| *taken > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!refused(), "it remembers what it did");
    assert_eq!(decrypt(&kms, &sealed, "u").await.unwrap(), [7; 32]);
    // Where there is none, it is refused.
    plugin.kms.set(Mode::Fails(403, "Forbidden.NoPermission"));
    eventually(async || taken.load(Ordering::SeqCst), |taken| *taken > 1).await;
    remembered(&plugin, 0).await;
}

#[tokio::test]
async fn a_key_taken_from_the_cluster_goes_while_the_one_it_works_with_stays() {
    let (plugin, kms, _state) = start().await;
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    plugin.kms.keeps(false);
    remembered(&plugin, 0).await;
    let asked = decrypts(&plugin.kms);
    for round in 1..=2 {
        decrypt(&kms, &sealed, "u").await.unwrap();
        assert_eq!(decrypts(&plugin.kms), asked + round, "asked each time");
    }
}

#[tokio::test]
async fn identical_calls_under_way_are_one() {
    let (plugin, kms, _state) = start().await;
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    plugin.kms.keeps(false);
    remembered(&plugin, 0).await;
    let asked = decrypts(&plugin.kms);
    plugin.kms.set(Mode::Slow(Duration::from_millis(800)));
    let calls = (0..40).map(|_| decrypt(&kms, &sealed, "u"));
    for opened in futures_util::future::join_all(calls).await {
        assert_eq!(opened.unwrap(), [7; 32]);
    }
    let (_, joined) = plugin.metrics.memory().answers();
    // Whoever came too late to join asked by itself; a slow machine may have asked twice.
    assert!(joined >= 20, "{joined} of 40 joined");
    assert!(decrypts(&plugin.kms) - asked <= 20);
    // Whoever did not ask is in the log all the same.
    plugin.kms.set(Mode::Good);
    eventually(async || plugin.kms.recorded().0, |count| *count == joined).await;
}

#[tokio::test]
async fn without_records_nothing_is_answered_from_memory() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join("spool");
    std::fs::write(&directory, "a file where the directory should be").unwrap();
    let mut plugin = Running::start_with(FakeKms::new(), remembering(&directory)).await;
    let kms = Kms::new(plugin.connected().await);
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    let asked = decrypts(&plugin.kms);
    decrypt(&kms, &sealed, "u").await.unwrap();
    assert_eq!(decrypts(&plugin.kms), asked + 1, "the server was asked");
    assert_eq!(plugin.metrics.memory().answers(), (0, 0));
    plugin.stop_server().await;
    let refused = decrypt(&kms, &sealed, "u").await;
    assert_eq!(code(&refused), Code::ResourceExhausted);
    let text = refused.unwrap_err().message().to_owned();
    assert!(text.contains("cannot be recorded") && text.contains("spool"), "{text}");
    assert!(plugin.metrics.to_string().contains("lastkey_plugin_recording 0"));
    // It heals by itself.
    std::fs::remove_file(&directory).unwrap();
    eventually(async || decrypt(&kms, &sealed, "u").await, |it| it.is_ok()).await.unwrap();
}

#[tokio::test]
async fn one_protocols_answers_are_not_the_others() {
    let (plugin, kms, _state) = start().await;
    let sealed = encrypt(&kms, &[7; 32]).await;
    remembered(&plugin, 1).await;
    let channel = support::connect(plugin.socket.clone()).await;
    let mut v1 = v1beta1::key_management_service_client::KeyManagementServiceClient::new(channel);
    let request =
        v1beta1::DecryptRequest { version: "v1beta1".into(), cipher: sealed.ciphertext.clone() };
    let asked = decrypts(&plugin.kms);
    for _ in 0..3 {
        assert_eq!(v1.decrypt(request.clone()).await.unwrap().into_inner().plain, [7; 32]);
    }
    assert_eq!(decrypts(&plugin.kms), asked + 1, "asked once, for the other protocol");
    remembered(&plugin, 2).await;
    eventually(async || plugin.kms.recorded().0, |count| *count == 2).await;
    assert!(plugin.kms.state.lock().recorded.iter().all(|batch| batch["api"] == "v1beta1"));
}
