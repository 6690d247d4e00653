//! Who has shown no credential, and means it badly, keeps nobody out and takes no memory for long.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lastkey_server::Limits;
use rustls::pki_types::ServerName;
use support::{Running, start, start_with};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Before any bound that is not the one a test is about.
const SOON: Duration = Duration::from_secs(20);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// A body of which one byte comes, and then nothing.
struct Begun(Option<Bytes>);

impl Body for Begun {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |byte| Poll::Ready(Some(Ok(Frame::data(byte)))))
    }
}

type Requests = http2::SendRequest<BoxBody<Bytes, Infallible>>;

/// An HTTP/2 connection whose client takes so much of each answer unasked; it ends when the server
/// ends it.
async fn http2(server: &Running, window: u32) -> (Requests, JoinHandle<hyper::Result<()>>) {
    let mut config = server.client_config(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TokioIo::new(server.tls(config).await.unwrap());
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(stream)
        .await
        .unwrap();
    (requests, tokio::spawn(connection))
}

fn get(path: &str) -> Request<BoxBody<Bytes, Infallible>> {
    Request::get(format!("https://localhost{path}")).body(Full::default().boxed()).unwrap()
}

/// A request whose body does not end, with a header of so many bytes.
fn endless(head: usize) -> Request<BoxBody<Bytes, Infallible>> {
    Request::post("https://localhost/")
        .header("x-long", "x".repeat(head))
        .body(Begun(Some(Bytes::from_static(b"x"))).boxed())
        .unwrap()
}

async fn reach(server: &Running, under_way: u64) {
    let began = Instant::now();
    while server.metric("lastkey_requests_under_way").await != under_way {
        assert!(began.elapsed() < SOON, "there are never {under_way} requests under way");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A connection from another of this machine's addresses.
async fn from(server: &Running, address: &str) -> TlsStream<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let config = std::sync::Arc::new(server.client_config(None));
    TlsConnector::from(config).connect(name, stream).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_handshakes_and_goes_on_with_none_keeps_nobody_out() {
    let server = start().await;
    let mut begun = Vec::new();
    for _ in 0..600 {
        let mut stream = server.tcp().await;
        stream.write_all(b"\x16").await.unwrap();
        begun.push(stream);
    }
    let asked = Instant::now();
    for _ in 0..3 {
        assert!(server.raw(HEALTH).await.ends_with("ok\n"));
        assert_eq!(server.call("ListKeys", &[]).await.status, 200);
    }
    // They have ten seconds, each of them.
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    drop(begun);
}

/// A client that keeps one connection, such as the plugin, would be told to come back for ever.
#[tokio::test(flavor = "multi_thread")]
async fn who_came_into_the_lobby_over_http2_leaves_it_and_may_come_back() {
    let limits = Limits { connections: 1, lobby: 1, ..Limits::default() };
    let server = start_with(limits).await;
    let mut busy = server.tls(server.client_config(None)).await.unwrap();
    busy.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc").await.unwrap();
    busy.flush().await.unwrap();
    reach(&server, 1).await;

    let (mut requests, connection) = http2(&server, 1 << 16).await;
    assert_eq!(requests.send_request(get("/healthz")).await.unwrap().status(), 200);
    let told = requests.send_request(get("/v1/status")).await.unwrap();
    assert_eq!(told.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(told.headers()["retry-after"], "1");
    assert!(told.into_body().collect().await.unwrap().to_bytes().len() > 10);
    let ended = tokio::time::timeout(SOON, connection).await.expect("it stays in the lobby");
    ended.unwrap().unwrap();
    assert!(requests.send_request(get("/v1/status")).await.is_err());

    busy.write_all(b"def").await.unwrap();
    busy.read_exact(&mut [0; 12]).await.unwrap();
    let (mut requests, _connection) = http2(&server, 1 << 16).await;
    assert_eq!(requests.send_request(get("/v1/status")).await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answer_over_http2_is_let_go() {
    let limits = Limits { stall: Duration::from_secs(1), untaken: 20, ..Limits::default() };
    let server = start_with(limits).await;
    let (requests, connection) = http2(&server, 0).await;
    let mut asked = JoinSet::new();
    for _ in 0..60 {
        let mut requests = requests.clone();
        asked.spawn(async move { requests.send_request(get("/metrics")).await.unwrap() });
    }
    let answers: Vec<Response<Incoming>> = asked.join_all().await;
    assert!(answers.iter().all(|answer| answer.status() == 200));
    // While one has less than a quarter of what is left.
    let whole = answers.iter().filter(|answer| answer.headers().contains_key("content-length"));
    assert_eq!((whole.count(), server.shed("untaken").await), (4, 56));

    // Others are answered whole.
    let (mut other, _connection) = http2(&server, 1 << 16).await;
    let page = other.send_request(get("/metrics")).await.unwrap().into_body();
    assert!(page.collect().await.unwrap().to_bytes().ends_with(b"# EOF\n"));

    let ended = tokio::time::timeout(SOON, connection).await.expect("it is still open");
    assert!(ended.unwrap().is_err());
    assert_eq!(server.shed("slow_reader").await, 1);
}

/// It is never refused an answer, and takes nobody's place; it has less time the more are left.
#[tokio::test(flavor = "multi_thread")]
async fn a_proven_caller_that_takes_no_answers_is_let_go_sooner_where_many_are_left() {
    let limits = Limits { stall: Duration::from_secs(60), untaken_proven: 3, ..Limits::default() };
    let server = start_with(limits).await;
    let ask = async |requests: &mut Requests| {
        let (mut head, body) = server.signed("ListKeys", &[]).into_parts();
        head.uri = format!("https://localhost{}", head.uri).parse().unwrap();
        let request = Request::from_parts(head, body.boxed());
        let answer = requests.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("content-length"));
        answer
    };
    let (mut requests, mut connection) = http2(&server, 0).await;
    let mut left = Vec::new();
    for _ in 0..3 {
        left.push(ask(&mut requests).await);
    }
    assert!(tokio::time::timeout(Duration::from_secs(4), &mut connection).await.is_err());
    assert_eq!(server.metric("lastkey_requests_under_way").await, 0);
    left.push(ask(&mut requests).await);
    let ended = tokio::time::timeout(SOON, connection).await.expect("it is still open");
    assert!(ended.unwrap().is_err());
    assert_eq!(server.shed("slow_reader").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_head_has_its_room_until_its_request_is_answered() {
    let server = start_with(Limits { heads: 32 << 10, ..Limits::default() }).await;
    let (requests, _connection) = http2(&server, 1 << 16).await;
    let held = tokio::spawn(requests.clone().send_request(endless(40_000)));
    reach(&server, 1).await;
    // On the same connection, where heads are not told from bodies while they come.
    let told = requests.clone().send_request(endless(40_000)).await.unwrap();
    assert_eq!((told.status().as_u16(), server.shed("heads").await), (429, 1));
    // On another one.
    let long = "x".repeat(40_000);
    let head =
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nx-long: {long}\r\n\r\na");
    assert_eq!(server.raw(head.as_bytes()).await, "");
    assert_eq!(server.shed("heads").await, 2);
    // What fits into the free part needs none.
    let small = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(server.raw(small).await.starts_with("HTTP/1.1 400 "));
    held.abort();
    drop((held, requests, _connection));

    // Over HTTP/1.1, too: the next one finds no room while the first one's body is awaited.
    let server = start_with(Limits { heads: 32 << 10, ..Limits::default() }).await;
    let mut held = server.tls(server.client_config(None)).await.unwrap();
    held.write_all(head.as_bytes()).await.unwrap();
    held.flush().await.unwrap();
    reach(&server, 1).await;
    // Another byte of the body is read: the head is there all the same.
    held.write_all(b"b").await.unwrap();
    held.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.raw(head.as_bytes()).await, "");
    assert_eq!(server.shed("heads").await, 1);
    held.write_all(b"1234567").await.unwrap();
    held.read_exact(&mut [0; 12]).await.unwrap();
    reach(&server, 0).await;
    let whole = head.replace("content-length: 9", "content-length: 1");
    assert!(server.raw_answer(whole.as_bytes()).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_bodies_that_do_not_end_keeps_nobody_out() {
    let server = start_with(Limits { coming: 20, under_way: 60, ..Limits::default() }).await;
    let mut attack = Vec::new();
    let mut told = JoinSet::new();
    for _ in 0..8 {
        let (requests, connection) = http2(&server, 1 << 16).await;
        for _ in 0..10 {
            told.spawn(requests.clone().send_request(endless(1)));
        }
        attack.push((requests, connection));
    }
    for _ in 0..76 {
        let answer = tokio::time::timeout(Duration::from_secs(4), told.join_next()).await;
        let answer = answer.expect("they are still waited for").unwrap().unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    reach(&server, 4).await;
    assert!(server.shed("coming").await > 0);

    // Somebody else's body may come later than its head.
    let mut other = from(&server, "127.0.0.2").await;
    other.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n").await.unwrap();
    other.flush().await.unwrap();
    reach(&server, 5).await;
    other.write_all(b"abcdef").await.unwrap();
    let mut answer = [0; 12];
    other.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    // From the same address, one that comes with its head; and who has proven who it is.
    assert_eq!(server.call("ListKeys", &[]).await.status, 200);
    drop((attack, told));
}

/// Connections whose bodies do not come are few, and the others are idle.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_bodies_slowly_cannot_take_all_connections() {
    let limits = Limits { connections: 8, coming: 4, ..Limits::default() };
    let server = start_with(limits).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = server.tls(server.client_config(None)).await.unwrap();
        let begun = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\na";
        stream.write_all(begun).await.unwrap();
        stream.flush().await.unwrap();
        slow.push(stream);
    }
    reach(&server, 1).await;
    assert_eq!(server.call("ListKeys", &[]).await.status, 200);
    assert_eq!(server.shed("lobby").await, 0);
}
