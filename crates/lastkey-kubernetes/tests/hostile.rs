//! Somebody at the server's address who does everything wrong that can be done on a wire: each has
//! a precise code and a metric, Status answers all the while, and it ends by itself.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below

mod support;

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Request, Response, body::Frame, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use lastkey_kubernetes::proto::v2::{
    EncryptRequest, StatusRequest, key_management_service_client::KeyManagementServiceClient,
};
use support::{FakeKms, Running, connect, eventually, fake::Pki};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, transport::Channel};

type Kms = KeyManagementServiceClient<Channel>;

/// What is wrong with it.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    /// Hangs up on everybody, with a reset.
    HangsUp,
    /// Takes connections, and says nothing.
    Mute,
    /// Says something else than TLS.
    NoTls,
    /// TLS, and then noise.
    Noise,
    /// TLS for HTTP/2, and then HTTP/1.1.
    OldHttp,
    /// Resets the connection while a call is under way.
    Resets,
    /// The first half of an answer, and then a reset.
    Half,
    /// A byte of the answer now and then.
    Drips,
    /// An answer without end.
    Endless,
    /// This answer.
    Says(u16, &'static str),
}

use Wrong::*;

/// What it costs an apiserver's Encrypt, and how that is counted. Where two are given, it depends
/// on who notices first.
const TABLE: [(Wrong, &[Code], &[&str]); 16] = [
    (HangsUp, &[Code::Unavailable], &["unreachable"]),
    (Mute, &[Code::Unavailable], &["unreachable"]),
    (NoTls, &[Code::Unavailable], &["tls"]),
    (Noise, &[Code::Unavailable], &["broken"]),
    (OldHttp, &[Code::Unavailable], &["broken"]),
    (Resets, &[Code::Unavailable], &["broken"]),
    (Half, &[Code::Unavailable], &["broken"]),
    (Drips, &[Code::DeadlineExceeded], &["timeout"]),
    (Endless, &[Code::Internal], &["garbage"]),
    (Says(200, ""), &[Code::Internal], &["garbage"]),
    (Says(200, "{\"blob\": 7, \"key_version\": [[[[[[]]]]]]}"), &[Code::Internal], &["garbage"]),
    (Says(200, "\u{0}\u{1}\u{2}"), &[Code::Internal], &["garbage"]),
    (Says(301, "elsewhere"), &[Code::Internal], &["garbage"]),
    (Says(502, "<h1>Bad Gateway</h1>"), &[Code::Internal], &["garbage"]),
    (
        Says(
            503,
            "{\"code\": \"Unavailable.Sealed\", \"message\": \"sealed\", \"request_id\": \"r\"}",
        ),
        &[Code::Unavailable],
        &["unavailable"],
    ),
    (
        Says(500, "{\"code\": \"InternalFailure\", \"message\": \"no\", \"request_id\": \"r\"}"),
        &[Code::Internal],
        &["internal"],
    ),
];

/// What somebody else's server says, and what one of ours would not.
const NONSENSE: [Wrong; 10] = [
    Endless,
    Says(404, "<h1>Not Found</h1>"),
    Says(502, "<h1>Bad Gateway</h1>"),
    Says(200, "{}"),
    Says(404, "{\"kind\": \"Status\", \"status\": \"Failure\", \"code\": 404}"),
    Says(404, "{\"code\": \"bad_route\", \"message\": \"no such route\"}"),
    Says(403, "{\"code\": \"denied\", \"message\": \"no\", \"request_id\": null}"),
    Says(502, "{\"code\": \"bad_gateway\", \"message\": \"no\", \"request_id\": \"r\"}"),
    Says(200, "{\"token\": \"t\", \"usable\": true}"),
    Says(
        200,
        "{\"token\": \"t\", \"usable\": true, \"cluster\": \"00000000-0000-4000-8000-000000000001\", \
         \"lineage\": \"00000000000000000000000000000002\", \
         \"key_version\": \"00000000-0000-4000-8000-000000000003\", \
         \"epoch\": \"00000000000000000000000000000004\", \"plugin_key_id\": \"0\"}",
    ),
];

/// Somebody else at that address; gone when dropped.
struct Hostile(JoinHandle<()>);

impl Drop for Hostile {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Hostile {
    async fn start(address: SocketAddr, pki: &Pki, wrong: Wrong) -> Self {
        Self::at(TcpListener::bind(address).await.unwrap(), pki, wrong)
    }

    /// And where it is.
    async fn anywhere(pki: &Pki, wrong: Wrong) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        (Self::at(listener, pki, wrong), url)
    }

    fn at(listener: TcpListener, pki: &Pki, wrong: Wrong) -> Self {
        let acceptor = pki.acceptor();
        Self(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(receive(stream, acceptor.clone(), wrong));
            }
        }))
    }

    /// Once its port is free.
    async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

async fn receive(mut stream: TcpStream, acceptor: TlsAcceptor, wrong: Wrong) {
    match wrong {
        HangsUp => return reset(&stream),
        Mute => return std::future::pending().await,
        NoTls => {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7\r\n").await;
            return std::future::pending().await;
        }
        Half | Resets => {}
        _ => stream.set_nodelay(true).unwrap(),
    }
    // a second hold on the socket, to reset it from outside of TLS
    let stream = stream.into_std().unwrap();
    let hold = TcpStream::from_std(stream.try_clone().unwrap()).unwrap();
    let Ok(mut tls) = acceptor.accept(TcpStream::from_std(stream).unwrap()).await else { return };
    match wrong {
        Noise => {
            let _ = tls.write_all(&[0xa5; 4096]).await;
            let _ = tls.read(&mut [0; 1024]).await;
        }
        OldHttp => {
            let text = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            let _ = tls.write_all(text).await;
            let _ = tls.read(&mut [0; 1024]).await;
        }
        Resets => {
            let _ = tls.read(&mut [0; 1024]).await;
            reset(&hold);
        }
        Half => {
            tokio::select! {
                () = serve(tls, wrong) => {}
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            reset(&hold);
        }
        _ => serve(tls, wrong).await,
    }
}

/// The connection is gone, without a word of goodbye.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
}

async fn serve(stream: tokio_rustls::server::TlsStream<TcpStream>, wrong: Wrong) {
    let service = service_fn(move |_: Request<hyper::body::Incoming>| async move {
        let (status, body) = match wrong {
            Half => (200, slowly(Duration::from_secs(60), b"")),
            Drips => (200, slowly(Duration::from_millis(200), b" ")),
            Endless => (200, slowly(Duration::ZERO, &[b' '; 16 << 10])),
            Says(status, text) => (status, Full::from(text).boxed_unsync()),
            _ => (500, Full::default().boxed_unsync()),
        };
        Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
    });
    let connection = auto::Builder::new(TokioExecutor::new());
    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
}

/// The same piece for ever, each after a pause.
fn slowly(pause: Duration, piece: &'static [u8]) -> UnsyncBoxBody<Bytes, Infallible> {
    let pieces = futures_util::stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((Ok(Frame::data(Bytes::from_static(piece))), ()))
    });
    StreamBody::new(pieces).boxed_unsync()
}

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

#[tokio::test]
async fn whoever_answers_in_the_servers_place() {
    let mut tasks = JoinSet::new();
    for row in TABLE {
        tasks.spawn(one(row));
    }
    let mut wrong = Vec::new();
    while let Some(done) = tasks.join_next().await {
        wrong.extend(done.unwrap().err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn one((wrong, codes, kinds): (Wrong, &[Code], &[&str])) -> Result<(), String> {
    let mut plugin = Running::start().await;
    let kms = Kms::new(plugin.connected().await);
    assert_eq!(encrypt(&kms).await, Code::Ok);
    let address = plugin.stop_server().await;
    eventually(async || encrypt(&kms).await, |code| *code == Code::Unavailable).await;
    let metrics = plugin.metrics.memory();
    let count = || -> u64 { kinds.iter().map(|kind| metrics.failures(kind)).sum() };
    let before = count();
    let hostile = Hostile::start(address, &plugin.pki, wrong).await;
    // 1. The code, and the metric.
    let asked = async || (encrypt(&kms).await, count());
    let fits = |(code, now): &(Code, u64)| codes.contains(code) && *now > before;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let now = asked().await;
        if fits(&now) {
            seen.clear();
            break;
        }
        seen.push(now);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if !seen.is_empty() {
        return Err(format!("{wrong:?}: {seen:?} instead of {codes:?}\n{}", plugin.metrics));
    }
    // 2. Status tells the truth, from memory.
    eventually(async || healthz(&kms).await, |text| text.starts_with("server unavailable: ")).await;
    // 3. It ends by itself.
    hostile.stop().await;
    plugin.start_server(address).await;
    eventually(async || encrypt(&kms).await, |code| *code == Code::Ok).await;
    eventually(async || healthz(&kms).await, |text| text == "ok").await;
    Ok(())
}

/// Whoever has not asked the good address yet has nothing but Status to find it by: an apiserver that
/// waits for Status encrypts nothing.
#[tokio::test]
async fn a_good_address_is_found_past_one_that_is_none() {
    let mut tasks = JoinSet::new();
    let about_itself = [
        Says(429, r#"{"code":"Rejected.Throttling","message":"no","request_id":"r"}"#),
        Says(500, r#"{"code":"InternalFailure","message":"no","request_id":"r"}"#),
        Says(408, r#"{"code":"RequestTimeout","message":"no","request_id":"r"}"#),
    ];
    for wrong in NONSENSE.into_iter().chain([Mute, Drips]).chain(about_itself) {
        tasks.spawn(beside(wrong));
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

async fn beside(wrong: Wrong) {
    let pki = Pki::new();
    let (_hostile, url) = Hostile::anywhere(&pki, wrong).await;
    let mut plugin = Running::start_after(pki, &[url], FakeKms::new()).await;
    // 1. At the start.
    let connected = tokio::time::timeout(Duration::from_secs(10), plugin.connected()).await;
    let kms = Kms::new(connected.unwrap_or_else(|_| panic!("{wrong:?}: nobody was found")));
    assert_eq!(healthz(&kms).await, "ok", "{wrong:?}");
    // 2. When the good one was away, and the other was asked meanwhile.
    for _ in 0..2 {
        let address = plugin.stop_server().await;
        eventually(async || healthz(&kms).await, |text| text != "ok").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        plugin.start_server(address).await;
        let back = eventually(async || healthz(&kms).await, |text| text == "ok");
        let back = tokio::time::timeout(Duration::from_secs(10), back).await;
        assert!(back.is_ok(), "{wrong:?}: it stays with it\n{}", plugin.metrics);
    }
    assert_eq!(encrypt(&kms).await, Code::Ok, "{wrong:?}");
}

/// An apiserver gives Status 3 s, and cannot tell a plugin that waits from one that is dead.
#[tokio::test]
async fn status_tells_in_time_whom_a_plugin_that_starts_waits_for() {
    let pki = Pki::new();
    let (_first, one) = Hostile::anywhere(&pki, Drips).await;
    let (_second, two) = Hostile::anywhere(&pki, Drips).await;
    let mut plugin = Running::start_after(pki, &[one.clone(), two.clone()], FakeKms::new()).await;
    // not the good one, which it would hear
    plugin.stop_server().await;
    let mut kms = Kms::new(connect(plugin.socket.clone()).await);
    let asked = tokio::time::timeout(Duration::from_secs(3), kms.status(StatusRequest {}));
    let said = asked.await.expect("an apiserver waits no longer").map(|_| "an answer").unwrap_err();
    assert_eq!(said.code(), Code::Unavailable);
    assert!(said.message().contains("not reached its server yet"), "{}", said.message());
    // whether its first question is under way still, or has failed already
    for url in [one, two] {
        assert!(said.message().contains(&url), "{}", said.message());
    }
}
