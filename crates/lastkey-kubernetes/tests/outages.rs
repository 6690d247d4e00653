//! Each way in which a server can be away has a precise code and a metric, and ends by itself.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below

mod support;

use std::time::{Duration, Instant};

use lastkey_kubernetes::plugin::Leases;
use lastkey_kubernetes::proto::v2::{
    EncryptRequest, StatusRequest, StatusResponse,
    key_management_service_client::KeyManagementServiceClient,
};
use support::{
    FakeKms, Mode, Running, eventually,
    fake::{FakeServer, Pki, handler},
};
use tokio::sync::watch;
use tonic::{Code, transport::Channel};

type Kms = KeyManagementServiceClient<Channel>;

async fn encrypt(kms: &Kms) -> Code {
    let request = EncryptRequest { plaintext: vec![7; 32], uid: "u".into() };
    kms.clone().encrypt(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn healthz(kms: &Kms) -> String {
    match kms.clone().status(StatusRequest {}).await {
        Ok(said) => said.into_inner().healthz,
        Err(status) => format!("{:?}", status.code()),
    }
}

/// The failure is counted as what it is, and shown.
async fn counted(plugin: &Running, kind: &str) {
    let metrics = plugin.metrics.memory();
    eventually(async || metrics.failures(kind), |count| *count > 0).await;
    let line = format!("lastkey_plugin_server_failures_total{{kind=\"{kind}\"}} ");
    let text = plugin.metrics.to_string();
    assert!(text.contains(&line) && !text.contains(&format!("{line}0")), "{text}");
}

#[tokio::test]
async fn a_server_that_misbehaves() {
    for (mode, code, kind) in [
        (Mode::Slow(Duration::from_secs(30)), Code::DeadlineExceeded, "timeout"),
        (Mode::Garbage, Code::Internal, "garbage"),
        (Mode::Fails(503, "ServiceUnavailableTemporary"), Code::Unavailable, "unavailable"),
        (Mode::Fails(429, "Rejected.Throttling"), Code::ResourceExhausted, "throttled"),
        (Mode::Fails(500, "InternalFailure"), Code::Internal, "internal"),
        (Mode::Fails(403, "Forbidden.NoPermission"), Code::PermissionDenied, "refused"),
    ] {
        let mut plugin = Running::start().await;
        let kms = Kms::new(plugin.connected().await);
        assert_eq!(encrypt(&kms).await, Code::Ok);
        plugin.kms.set(mode);
        assert_eq!(encrypt(&kms).await, code, "{kind}");
        counted(&plugin, kind).await;
        plugin.kms.set(Mode::Good);
        eventually(async || encrypt(&kms).await, |code| *code == Code::Ok).await;
        eventually(async || healthz(&kms).await, |text| text == "ok").await;
    }
}

#[tokio::test]
async fn nobody_there_and_somebody_else_there() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let address = plugin.stop_server().await;
    eventually(async || encrypt(&kms).await, |code| *code == Code::Unavailable).await;
    counted(&plugin, "unreachable").await;
    // An installation of its own, on the same address.
    let stranger = FakeServer::start_on(address, &Pki::new(), FakeKms::new().handler()).await;
    let metrics = plugin.metrics.memory();
    let asked = async || (encrypt(&kms).await, metrics.failures("tls"));
    let (code, _) = eventually(asked, |(_, count)| *count > 0).await;
    assert_eq!(code, Code::Unavailable);
    eventually(async || healthz(&kms).await, |text| text.starts_with("server unavailable: ")).await;
    stranger.stop().await;
    plugin.start_server(address).await;
    eventually(async || encrypt(&kms).await, |code| *code == Code::Ok).await;
}

/// Calls go on by the other one, so nothing else would tell.
#[tokio::test]
async fn one_of_two_servers_is_away() {
    let other = FakeKms::new();
    let (mut plugin, first) = Running::start_beside(&other).await;
    let kms = Kms::new(plugin.connected().await);
    let metrics = plugin.metrics.clone();
    let up = async || -> Vec<bool> {
        metrics.memory().servers_up().into_iter().map(|(_, is_up)| is_up).collect()
    };
    eventually(up, |up| *up == [true, true]).await;
    // sealed, then dead, then back
    other.set(Mode::Fails(503, "ServiceUnavailableTemporary"));
    eventually(up, |up| *up == [false, true]).await;
    other.set(Mode::Good);
    eventually(up, |up| *up == [true, true]).await;
    let url = first.url();
    let address = first.stop().await;
    eventually(up, |up| *up == [false, true]).await;
    assert_eq!(healthz(&kms).await, "ok", "the other one answers");
    let line = format!("lastkey_plugin_server_up{{server=\"{url}\"}} 0");
    assert!(metrics.to_string().lines().any(|it| it == line), "{metrics}");
    let _first = FakeServer::start_on(address, &plugin.pki, other.handler()).await;
    eventually(up, |up| *up == [true, true]).await;
}

/// Its connections stay open and alive, so only the time tells: before a lease has ended, the other
/// address is asked.
#[tokio::test]
async fn an_address_that_falls_silent_costs_no_lease() {
    let pki = Pki::new();
    let store = FakeKms::new();
    let (hush, is_silent) = watch::channel(false);
    let answers = store.handler();
    let until_then = handler(move |parts, body| {
        let (answers, mut is_silent) = (answers.clone(), is_silent.clone());
        async move {
            let silence = async {
                let _ = is_silent.wait_for(|silent| *silent).await;
            };
            tokio::select! {
                () = silence => std::future::pending().await,
                answer = answers(parts, body) => answer,
            }
        }
    });
    let first = FakeServer::start(&pki, until_then).await;
    let shortest = Some(Duration::from_secs(5));
    let mut plugin = Running::start_after_with((pki, &[first.url()]), store, |config| {
        config.leases = Leases { reads: shortest, writes: shortest };
    })
    .await;
    let kms = Kms::new(plugin.connected().await);
    hush.send_replace(true);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        assert_eq!(healthz(&kms).await, "ok", "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(plugin.metrics.memory().failures("timeout") > 0, "it was asked, and said nothing");
}

/// An address that refuses the key has answered: another that would still allow it is not asked.
#[tokio::test]
async fn a_refusal_of_one_address_is_final() {
    let (original, other) = (FakeKms::new(), FakeKms::new());
    let (mut plugin, _first) = Running::start_both(&original, other.clone()).await;
    let kms = Kms::new(plugin.connected().await);
    assert_eq!(healthz(&kms).await, "ok");
    for (mode, code) in [
        (Mode::Refused("Rejected.Disabled"), "FailedPrecondition"),
        (Mode::Fails(403, "Forbidden.NoPermission"), "PermissionDenied"),
    ] {
        original.set(mode);
        eventually(async || healthz(&kms).await, |text| text == code).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert_eq!(healthz(&kms).await, code);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    original.set(Mode::Good);
    let said = async || kms.clone().status(StatusRequest {}).await.map(|said| said.into_inner());
    let allowed = eventually(said, |said| said.is_ok()).await.unwrap();
    assert_eq!(allowed.key_id, original.key().key_id(), "the other one was never asked");
}

/// Which nobody should do: what is encrypted under a version that the copy alone has is lost with it.
#[tokio::test]
async fn a_data_directory_was_copied_and_both_are_served() {
    const SEALED: Mode = Mode::Fails(503, "ServiceUnavailableTemporary");
    let original = FakeKms::new();
    let (mut plugin, _first) = Running::start_both(&original, original.copy()).await;
    let kms = Kms::new(plugin.connected().await);
    let copy = plugin.kms.clone();
    let status = async || kms.clone().status(StatusRequest {}).await.unwrap().into_inner();
    let is = |key_id: String| move |said: &StatusResponse| said.key_id == key_id;
    eventually(status, is(original.key().key_id())).await;
    // 1. The copy is not told from a restore, or a rotation, and has a version of its own.
    original.set(SEALED);
    eventually(status, is(copy.key().key_id())).await;
    copy.rotate(false, true);
    let newest = copy.key().key_id();
    eventually(status, is(newest.clone())).await;
    assert_eq!(encrypt(&kms).await, Code::Ok);
    // 2. The original answers again, and is not followed.
    original.set(Mode::Good);
    copy.set(SEALED);
    counted(&plugin, "split").await;
    let said = status().await;
    assert_eq!(said.key_id, newest);
    assert!(said.healthz.contains("do not share a store"), "{}", said.healthz);
    assert_eq!(
        encrypt(&kms).await,
        Code::DeadlineExceeded,
        "nothing is written under what was left"
    );
    // 3. The one that knows the newer version goes on.
    copy.set(Mode::Good);
    original.set(SEALED);
    let good = eventually(status, |said| said.healthz == "ok").await;
    assert_eq!(good.key_id, newest);
    assert_eq!(encrypt(&kms).await, Code::Ok);
}

#[tokio::test]
async fn a_connection_cut_in_the_middle() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    assert_eq!(encrypt(&kms).await, Code::Ok);
    plugin.kms.set(Mode::Slow(Duration::from_secs(30)));
    let (code, _) = tokio::join!(encrypt(&kms), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        plugin.stop_server().await
    });
    assert_eq!(code, Code::Unavailable);
    counted(&plugin, "broken").await;
}

#[tokio::test]
async fn a_network_that_fell_silent() {
    let (mut plugin, network) = Running::start_behind(FakeKms::new()).await;
    let kms = Kms::new(plugin.connected().await);
    assert_eq!(encrypt(&kms).await, Code::Ok);
    network.fall_silent(true);
    assert!(matches!(encrypt(&kms).await, Code::DeadlineExceeded | Code::Unavailable));
    // The open connection is given up, so that Status knows, and new ones get no answer either.
    eventually(async || healthz(&kms).await, |text| text.starts_with("server unavailable")).await;
    network.fall_silent(false);
    eventually(async || encrypt(&kms).await, |code| *code == Code::Ok).await;
}

/// On a machine that is busy with other things one try may take longer, but not every one.
#[tokio::test]
async fn a_server_that_is_back_is_found_within_a_second() {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let address = plugin.stop_server().await;
        eventually(async || healthz(&kms).await, |text| text != "ok").await;
        // long enough for the pauses between attempts to have grown as far as they do
        tokio::time::sleep(Duration::from_millis(1500)).await;
        plugin.start_server(address).await;
        let back = Instant::now();
        eventually(async || healthz(&kms).await, |text| text == "ok").await;
        fastest = fastest.min(back.elapsed());
        if fastest < Duration::from_secs(1) {
            return;
        }
    }
    panic!("the fastest of ten took {fastest:?}");
}
