//! Servers that are dead, silent, cut off or mad: a plugin's call is answered by another, or by the
//! same over another connection, within the time the call has.
//!
//! No time is measured here: each call gets the plugin's own 2.5 seconds, and what takes longer fails.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lastkey_client::{
    Client, ClientCertificate, Config, Error,
    native::{PluginDecrypt, PluginGeneration},
};
use lastkey_crypto::{ClusterId, Epoch, KeyVersionId, Lineage};
use support::{FakeServer, Handler, Pki, handler};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

const BUDGET: Duration = Duration::from_millis(2500);

fn client(pki: &Pki, servers: &[String]) -> Client {
    let certificate =
        ClientCertificate { certificate: pki.file("client.pem"), key: pki.file("client.key") };
    let servers = servers.iter().map(|url| url.parse().unwrap()).collect();
    Client::new(Config::mutual_tls(servers, pki.file("ca.pem"), certificate)).unwrap()
}

async fn decrypt(client: &Client) -> Result<Vec<u8>, Error> {
    let generation = PluginGeneration {
        lineage: Lineage::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        key_version: KeyVersionId::from_bytes([3; 16]),
        epoch: Epoch::from_bytes([4; 16]),
    };
    let call = PluginDecrypt { key: "alias/k", generation, blob: b"blob" };
    client.plugin_decrypt(call, BUDGET).await.map(|opened| opened.expose().to_vec())
}

/// Answers with the plaintext `ok`, and counts.
fn good(calls: &Arc<AtomicUsize>) -> Handler {
    let calls = calls.clone();
    handler(move |_, _| {
        calls.fetch_add(1, Ordering::SeqCst);
        async { (200, r#"{"plaintext":"b2s="}"#.to_owned()) }
    })
}

fn fixed(status: u16, body: &'static str) -> Handler {
    handler(move |_, _| async move { (status, body.to_owned()) })
}

fn url(address: SocketAddr) -> String {
    format!("https://{address}")
}

/// What a network does with a connection.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    Open,
    /// Bytes go nowhere, and nobody says so.
    Silent,
    /// Both ends are told that it is over.
    Cut,
}

/// A network before a server; what it does with a connection is decided when that is made, and
/// can change for those that are there.
struct Network {
    address: SocketAddr,
    present: watch::Sender<Path>,
    _accept: JoinSet<()>,
}

impl Network {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (present, path) = watch::channel(Path::Open);
        let mut accept = JoinSet::new();
        accept.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                // those made from here on are not touched by what became of older ones
                let mut path = path.clone();
                path.mark_unchanged();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    let silent = tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => false,
                        _ = path.changed() => *path.borrow() == Path::Silent,
                    };
                    if silent {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, present, _accept: accept }
    }

    fn becomes(&self, path: Path) {
        self.present.send_replace(path);
    }
}

/// A port whose kernel drops every further attempt to connect, as a dead host does.
async fn dropping() -> (SocketAddr, Vec<TcpStream>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    // The queue of what was not accepted is short; once it is full, nothing is answered any more.
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
    {
        filling.push(stream);
        assert!(filling.len() < 100, "the queue never fills");
    }
    std::mem::forget(listener);
    (address, filling)
}

#[tokio::test]
async fn an_address_that_drops_packets_costs_no_call() {
    let pki = Pki::new();
    let (dead, _full) = dropping().await;
    let calls = Arc::default();
    let server = FakeServer::start(&pki, good(&calls)).await;
    let client = client(&pki, &[url(dead), server.url()]);
    for _ in 0..3 {
        assert_eq!(decrypt(&client).await.unwrap(), b"ok");
    }
    // Several such addresses before the good one are no worse.
    let (also_dead, _full_too) = dropping().await;
    let client = self::client(&pki, &[url(dead), url(also_dead), server.url()]);
    assert_eq!(decrypt(&client).await.unwrap(), b"ok");
}

#[tokio::test]
async fn a_host_that_fell_silent_costs_no_call() {
    let pki = Pki::new();
    let (first, second) = (Arc::default(), Arc::default());
    let one = FakeServer::start(&pki, good(&first)).await;
    let two = FakeServer::start(&pki, good(&second)).await;
    let network = Network::before(one.address).await;
    let client = client(&pki, &[url(network.address), two.url()]);
    decrypt(&client).await.unwrap();
    network.becomes(Path::Silent);
    for _ in 0..3 {
        assert_eq!(decrypt(&client).await.unwrap(), b"ok");
    }
    assert!(second.load(Ordering::SeqCst) >= 3, "the other one answered");
    let asked = first.load(Ordering::SeqCst);
    assert!(asked >= 1, "the first was there at first");
}

/// A firewall that lost its memory drops what belongs to old connections, and lets new ones in.
#[tokio::test]
async fn a_connection_that_nobody_remembers_costs_no_call() {
    let pki = Pki::new();
    let calls = Arc::default();
    let server = FakeServer::start(&pki, good(&calls)).await;
    let network = Network::before(server.address).await;
    let client = client(&pki, &[url(network.address)]);
    decrypt(&client).await.unwrap();
    network.becomes(Path::Silent);
    assert_eq!(decrypt(&client).await.unwrap(), b"ok");
}

#[tokio::test]
async fn a_reset_in_the_middle_costs_no_call() {
    let pki = Pki::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let server = FakeServer::start(
        &pki,
        handler(move |_, _| {
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                (200, r#"{"plaintext":"b2s="}"#.to_owned())
            }
        }),
    )
    .await;
    let network = Network::before(server.address).await;
    let client = client(&pki, &[url(network.address)]);
    let cut = async {
        while calls.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        network.becomes(Path::Cut);
    };
    let (opened, ()) = tokio::join!(decrypt(&client), cut);
    assert_eq!(opened.unwrap(), b"ok");
}

#[tokio::test]
async fn nonsense_and_a_seal_send_a_call_to_the_next() {
    let pki = Pki::new();
    let calls = Arc::default();
    let server = FakeServer::start(&pki, good(&calls)).await;
    let sealed = r#"{"code":"ServiceUnavailableTemporary","message":"sealed"}"#;
    let uncertain = r#"{"code":"Unavailable.Uncertain","message":"it took too long"}"#;
    for (status, body) in [
        (200, "<html>"),
        (500, "<html>"),
        (404, "{}"),
        (404, r#"{"code":"bad_route","message":"no such route"}"#),
        (502, r#"{"code":"bad_gateway","message":"no","request_id":"r"}"#),
        (200, ""),
        (200, "{}"),
        (200, r#"{"plaintext":"?"}"#),
        (503, sealed),
        (504, uncertain),
    ] {
        let bad = FakeServer::start(&pki, fixed(status, body)).await;
        let client = client(&pki, &[bad.url(), server.url()]);
        assert_eq!(decrypt(&client).await.unwrap(), b"ok", "{status} {body}");
    }
    // What is no TLS server at all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut mad = JoinSet::new();
    mad.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 16]).await;
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
        }
    });
    let client = client(&pki, &[url(address), server.url()]);
    assert_eq!(decrypt(&client).await.unwrap(), b"ok");
}

#[tokio::test]
async fn when_all_fail_the_most_telling_failure_is_told() {
    let pki = Pki::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let sealed = r#"{"code":"ServiceUnavailableTemporary","message":"sealed"}"#;
    let sealed = FakeServer::start(&pki, fixed(503, sealed)).await;
    let mad = FakeServer::start(&pki, fixed(200, "<html>hush")).await;
    let error = decrypt(&client(&pki, &[url(closed)])).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let error = decrypt(&client(&pki, &[url(closed), mad.url()])).await.unwrap_err();
    assert!(matches!(error, Error::Garbage { .. }), "{error:?}");
    assert!(!error.to_string().contains("hush"));
    let error = decrypt(&client(&pki, &[mad.url(), sealed.url(), url(closed)])).await.unwrap_err();
    assert_eq!(error.code(), Some("ServiceUnavailableTemporary"));
}

/// A refusal is an answer: nobody else is waited for, to overrule it.
#[tokio::test]
async fn a_refusal_is_final() {
    let pki = Pki::new();
    let never = handler(|_, _| std::future::pending());
    let other = FakeServer::start(&pki, never).await;
    for (status, code) in [(409, "Rejected.Disabled"), (403, "Forbidden.NoPermission")] {
        let refusal = handler(move |_, _| async move {
            (status, format!(r#"{{"code":"{code}","message":"no","request_id":"r"}}"#))
        });
        let refusing = FakeServer::start(&pki, refusal).await;
        let client = client(&pki, &[refusing.url(), other.url()]);
        assert_eq!(decrypt(&client).await.unwrap_err().code(), Some(code));
    }
}

/// What an address says of itself is told where nobody else does better, and soon.
#[tokio::test]
async fn an_address_that_is_overloaded_or_at_fault_does_not_hide_one_that_works() {
    let pki = Pki::new();
    let calls = Arc::default();
    let server = FakeServer::start(&pki, good(&calls)).await;
    let silent = FakeServer::start(&pki, handler(|_, _| std::future::pending())).await;
    for (status, code) in
        [(429, "Rejected.Throttling"), (500, "InternalFailure"), (408, "RequestTimeout")]
    {
        let asked: Arc<AtomicUsize> = Arc::default();
        let refusing = FakeServer::start(
            &pki,
            handler({
                let asked = asked.clone();
                move |_, _| {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let body = format!(r#"{{"code":"{code}","message":"no","request_id":"r"}}"#);
                    async move { (status, body) }
                }
            }),
        )
        .await;
        let both = client(&pki, &[refusing.url(), server.url()]);
        assert_eq!(decrypt(&both).await.unwrap(), b"ok", "{code}");
        assert_eq!(decrypt(&both).await.unwrap(), b"ok", "{code}");
        assert_eq!(
            asked.load(Ordering::SeqCst),
            1,
            "{code}: the other is asked first from then on"
        );
        let alone = client(&pki, &[refusing.url()]);
        assert_eq!(decrypt(&alone).await.unwrap_err().code(), Some(code));
        if status != 408 {
            assert_eq!(asked.load(Ordering::SeqCst), 2, "{code}: once is enough");
        }
        let begun = std::time::Instant::now();
        let worse = client(&pki, &[refusing.url(), silent.url()]);
        assert_eq!(decrypt(&worse).await.unwrap_err().code(), Some(code));
        assert!(begun.elapsed() < BUDGET + Duration::from_secs(1), "{code}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_asked_first_again() {
    let pki = Pki::new();
    let calls = Arc::default();
    let server = FakeServer::start(&pki, good(&calls)).await;
    // accepts, and never says a word
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let only = client(&pki, &[url(silent.local_addr().unwrap())]);
    let error = decrypt(&only).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. } | Error::Unreachable { .. }), "{error:?}");
    let client = client(&pki, &[url(silent.local_addr().unwrap()), server.url()]);
    for _ in 0..3 {
        assert_eq!(decrypt(&client).await.unwrap(), b"ok");
    }
}
