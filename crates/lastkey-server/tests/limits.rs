//! Bounds: what is too much, too slow or not even a request.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use std::time::{Duration, Instant};

use http::Request;
use http_body_util::Full;
use lastkey_server::{BindError, Limits, Server, ServerConfig};
use serde_json::Value;
use support::{read_to_end, start, start_with};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// Before any bound that is not the one a test is about.
const SOON: Duration = Duration::from_secs(20);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_at_once() {
    let server = start_with(Limits { body: 1000, headers: 16, ..Limits::default() }).await;
    let big = server.raw(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n").await;
    assert!(big.starts_with("HTTP/1.1 413 "), "{big}");
    assert!(big.contains("RequestTooLarge"));

    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let chunked =
        format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunk}");
    let big = server.raw(chunked.as_bytes()).await;
    assert!(big.starts_with("HTTP/1.1 413 "), "{big}");

    let many: String = (0..17).map(|n| format!("h{n}: 1\r\n")).collect();
    let many = server.raw(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");

    let long = format!("GET /?a={} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    let long = server.raw(long.as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 414 ") || long.starts_with("HTTP/1.1 431 "), "{long}");

    let garbage = server.raw(b"\x00\x01\x02 nonsense\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 ") || garbage.is_empty(), "{garbage}");
    assert!(server.raw(HEALTH).await.ends_with("ok\n"));
}

/// Who has sent nonsense did not take too long.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_none_are_a_bad_request() {
    let server = start().await;
    let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    for chunks in
        ["ZZ\r\n", "FFFFFFFFFFFFFFFFF\r\n", "\r\n", "3\r\nabcd\r\n", "0\r\nx\x01: y\r\n\r\n"]
    {
        let refused = server.raw(format!("{head}{chunks}").as_bytes()).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{chunks:?}: {refused}");
        assert!(refused.contains("ParseRequestParameterException"), "{chunks:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_bounded_and_answers_heads_without_bodies() {
    let server = start_with(Limits { headers: 16, ..Limits::default() }).await;
    let ask = async |method: &str, path: &str, more: u32| {
        let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        for n in 0..more {
            request = request.header(format!("h{n}"), "1");
        }
        server.send_h2(request.body(Full::default()).unwrap()).await
    };
    // A body would be an error of the protocol.
    for path in ["/healthz", "/readyz", "/v1/status"] {
        let (head, get) = (ask("HEAD", path, 0).await, ask("GET", path, 0).await);
        assert_eq!((head.status, &*head.text), (get.status, ""), "{path}");
        assert!(!get.text.is_empty());
    }
    assert_eq!(ask("GET", "/healthz", 16).await.status, 200);
    assert_eq!(ask("GET", "/healthz", 17).await.status, 431);
    assert_eq!(ask("GET", "/v1/status", 17).await.status, 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_are_let_go() {
    let limits = Limits {
        handshake: Duration::from_millis(1500),
        first_request: Duration::from_millis(2000),
        idle: Duration::from_millis(2000),
        read_body: Duration::from_millis(1500),
        ..Limits::default()
    };
    let server = start_with(limits).await;

    // Nothing at all.
    let started = Instant::now();
    assert_eq!(read_to_end(&mut server.tcp().await).await, "");
    assert!(started.elapsed() < SOON);

    // A head that never ends, a byte at a time.
    let mut stream = server.tls(server.client_config(None)).await.unwrap();
    let started = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
    while stream.write_all(b"a").await.is_ok() && stream.flush().await.is_ok() {
        assert!(started.elapsed() < SOON, "a slow head is still open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A body that does not come.
    let body = server.raw(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc").await;
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");

    // Kept open without a further request.
    let started = Instant::now();
    let kept = server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(kept.starts_with("HTTP/1.1 200 "));
    assert!((Duration::from_millis(1900)..SOON).contains(&started.elapsed()));
}

/// Its body came after its head, and is not taken for the beginning of the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_body_leaves_the_connection_its_idle_time() {
    let read_head = Duration::from_millis(400);
    let server = start_with(Limits { read_head, ..Limits::default() }).await;
    let mut stream = server.tls(server.client_config(None)).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    let deadline = Instant::now() + SOON;
    while server.metric("lastkey_requests_under_way").await < 1 {
        assert!(Instant::now() < deadline, "the request does not begin");
    }
    stream.write_all(b"abcdef").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    tokio::time::sleep(4 * read_head).await;
    stream.write_all(HEALTH).await.unwrap();
    let answers = read_to_end(&mut stream).await;
    assert!(answers.ends_with("ok\n"), "{answers}");
    assert_eq!(server.shed("slow_head").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_sheds() {
    let server = start_with(Limits { requests: 0, queue: 0, ..Limits::default() }).await;
    let busy = server.call("ListKeys", &[]).await;
    assert_eq!(busy.error(), (429, "Rejected.Throttling".to_owned()));
    assert_eq!(busy.headers["retry-after"], "1");
    assert!(server.raw(HEALTH).await.ends_with("ok\n"), "health needs no room");
    assert_eq!(server.shed("queue_full").await, 1);

    let patience = Duration::from_millis(100);
    let server = start_with(Limits { requests: 0, patience, ..Limits::default() }).await;
    let started = Instant::now();
    let busy = server.native("GET", "/v1/status", &Value::Null).await;
    assert_eq!(busy.error(), (429, "Rejected.Throttling".to_owned()));
    assert_eq!(busy.headers["retry-after"], "1");
    assert!((patience..SOON).contains(&started.elapsed()));

    let server = start_with(Limits { under_way: 0, ..Limits::default() }).await;
    let busy = server.call("ListKeys", &[]).await;
    assert_eq!(busy.error(), (429, "Rejected.Throttling".to_owned()));
    assert!(server.raw(HEALTH).await.ends_with("ok\n"), "health needs no room");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_heads_share_what_there_is() {
    let server = start_with(Limits { bodies: 2048, heads: 1 << 10, ..Limits::default() }).await;
    // What is only announced takes nothing.
    let announced = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n";
    let mut waits = server.tls(server.client_config(None)).await.unwrap();
    waits.write_all(announced).await.unwrap();
    waits.flush().await.unwrap();
    let body = "x".repeat(2000);
    let fits = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n{body}");
    let fits = server.raw_answer(fits.as_bytes()).await;
    assert!(fits.starts_with("HTTP/1.1 400 ") && fits.contains("MissingParameter"), "{fits}");
    // What has come, does. A body whose answer was read may still hold its room for a moment, and
    // then it is this one that is sent away: another takes its place.
    let deadline = Instant::now() + Duration::from_secs(60);
    let request =
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{}", "x".repeat(1000));
    'held: loop {
        waits.write_all(body.as_bytes()).await.unwrap();
        waits.flush().await.unwrap();
        for _ in 0..10 {
            if server.raw_answer(request.as_bytes()).await.starts_with("HTTP/1.1 429 ") {
                break 'held;
            }
            assert!(Instant::now() < deadline, "bodies are not counted");
        }
        waits = server.tls(server.client_config(None)).await.unwrap();
        waits.write_all(announced).await.unwrap();
    }
    assert!(server.raw(HEALTH).await.ends_with("ok\n"));
    drop(waits);

    // Heads beyond 16 KiB: 1 KiB of them in all.
    let head = format!("GET /?a={} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(15_000));
    assert!(server.raw_answer(head.as_bytes()).await.starts_with("HTTP/1.1 400 "));
    let head = format!("GET /?a={} HTTP/1.1\r\nhost: x\r\n", "x".repeat(20_000));
    assert_eq!(server.raw(head.as_bytes()).await, "");
    assert_eq!(server.shed("heads").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_give_way_and_the_busy_do_not() {
    let limits = Limits { connections: 2, lobby: 1, ..Limits::default() };
    let server = start_with(limits).await;
    let mut oldest = server.tls(server.client_config(None)).await.unwrap();
    let _second = server.tls(server.client_config(None)).await.unwrap();
    // The third one is let in, and the oldest leaves.
    let third = server.raw(HEALTH).await;
    assert!(third.ends_with("ok\n"), "{third}");
    assert_eq!(read_to_end(&mut oldest).await, "");
    assert!(server.shed("idle").await >= 1);

    // All are busy: newcomers are told so, and health is answered.
    let busy = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc";
    let mut both = Vec::new();
    let deadline = Instant::now() + SOON;
    for count in 1..=2 {
        let mut stream = server.tls(server.client_config(None)).await.unwrap();
        stream.write_all(busy).await.unwrap();
        stream.flush().await.unwrap();
        both.push(stream);
        while server.metric("lastkey_requests_under_way").await < count {
            assert!(Instant::now() < deadline, "request {count} does not begin");
        }
    }
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    loop {
        let told = server.raw_answer(request).await;
        if told.starts_with("HTTP/1.1 429 ") {
            assert!(
                told.contains("retry-after: 1") && told.contains("connection: close"),
                "{told}"
            );
            assert!(told.contains("Rejected.Throttling"), "{told}");
            break;
        }
        assert!(Instant::now() < deadline, "{told}");
    }
    assert!(server.raw(HEALTH).await.ends_with("ok\n"));
    // The operator has a door of his own.
    server.native("GET", "/v1/status", &Value::Null).await.ok();
    // Whoever was busy is answered.
    for stream in &mut both {
        stream.write_all(b"123456").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answer_is_let_go() {
    let limits = Limits { stall: Duration::from_millis(400), ..Limits::default() };
    let server = start_with(limits).await;
    let mut stream = server.tls(server.client_config(None)).await.unwrap();
    // Answers to these fill whatever buffers there are, and nobody reads them.
    let asked = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    let started = Instant::now();
    while let Ok(Ok(())) =
        tokio::time::timeout(Duration::from_secs(20), stream.write_all(&asked)).await
    {
        assert!(started.elapsed() < Duration::from_secs(15), "a slow reader is still open");
    }
    assert_eq!(server.shed("slow_reader").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_while_waiting_frees_the_place() {
    let server = start_with(Limits { waiting: 1, ..Limits::default() }).await;
    let poll = "/v1/audit/tail?after=1000000&wait=60";
    let ask = async || {
        let mut waits = UnixStream::connect(&server.admin).await.unwrap();
        let request = format!("GET {poll} HTTP/1.1\r\nhost: x\r\n\r\n");
        waits.write_all(request.as_bytes()).await.unwrap();
        waits
    };
    let mut waits = ask().await;
    let deadline = Instant::now() + SOON;
    let full = loop {
        let path = "/v1/audit/tail?after=1000000&wait=0";
        let answer = server.native("GET", path, &Value::Null).await;
        if answer.status == 429 {
            break answer;
        }
        assert!(Instant::now() < deadline, "the seat is not taken");
        // The question above may have had the one seat just then: this one was told so.
        if waits.try_read(&mut [0; 64]).is_ok() {
            waits = ask().await;
        }
    };
    assert_eq!(full.error().1, "Rejected.Throttling");
    drop(waits);
    let left = Instant::now();
    while server.native("GET", "/v1/audit/tail?wait=0", &Value::Null).await.status != 200 {
        assert!(left.elapsed() < SOON, "the seat is still taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.shed("gone").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_was_begun_and_waits_for_nobody_else() {
    let mut server = start_with(Limits { drain: 3 * SOON, ..Limits::default() }).await;
    let silent = server.tcp().await;
    let idle = server.tls(server.client_config(None)).await.unwrap();
    let mut half = server.tls(server.client_config(None)).await.unwrap();
    half.write_all(b"GET /healthz HTT").await.unwrap();
    let mut begun = server.tls(server.client_config(None)).await.unwrap();
    begun.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc").await.unwrap();
    begun.flush().await.unwrap();
    let deadline = Instant::now() + SOON;
    while server.metric("lastkey_requests_under_way").await < 1 {
        assert!(Instant::now() < deadline, "the request does not begin");
    }
    let finish = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        begun.write_all(b"def").await.unwrap();
        read_to_end(&mut begun).await
    };
    let started = Instant::now();
    let (answer, ()) = tokio::join!(finish, server.stop());
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close"),
        "{answer}"
    );
    let took = started.elapsed();
    assert!(took < SOON, "it took {took:?}");
    drop((silent, idle, half));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_tls_learns_it() {
    let server = start().await;
    let mut stream = server.tcp().await;
    stream.write_all(HEALTH).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    let mut stream = server.tcp().await;
    stream.write_all(b"\x16\x03\x01\x00\x05hello").await.unwrap();
    read_to_end(&mut stream).await;
    assert!(server.raw(HEALTH).await.ends_with("ok\n"));
    let metrics =
        server.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(metrics.contains("lastkey_handshakes_failed_total 2"), "{metrics}");
    assert!(metrics.contains(r#"lastkey_requests_total{action="healthz",outcome="ok"}"#));
    assert!(metrics.contains("lastkey_ready 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_exchange_is_post_quantum_and_sessions_resume() {
    let server = start().await;
    let config = server.client_config(None);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut stream = server.tls(config.clone()).await.unwrap();
        stream.write_all(HEALTH).await.unwrap();
        read_to_end(&mut stream).await;
        let session = stream.get_ref().1;
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        kinds.push(session.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_open_says_what_to_do() {
    let server = start().await;
    let bind = async |config| match Server::bind(config, server.engine.clone()).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    };
    let taken = bind(ServerConfig::on(server.address.to_string())).await;
    assert!(matches!(taken, BindError::PortInUse { .. }));
    let text = taken.to_string();
    assert!(text.contains(&server.address.port().to_string()) && text.contains("--listen"));

    assert!(bind(ServerConfig::on("nonsense")).await.to_string().contains("HOST:PORT"));
    let foreign = bind(ServerConfig::on("203.0.113.1:0")).await;
    assert!(matches!(foreign, BindError::NotOurs { .. }), "{foreign}");

    let socket = |path: std::path::PathBuf| ServerConfig {
        admin_socket: Some(path),
        ..ServerConfig::on("127.0.0.1:0")
    };
    let long = bind(socket(server.directory.path().join("x".repeat(120)))).await;
    assert!(long.to_string().contains("107") && long.to_string().contains("--data-dir"), "{long}");
    let used = bind(socket(server.admin.clone())).await;
    assert!(used.to_string().contains("another server"), "{used}");
    let missing = bind(socket(server.directory.path().join("none/admin.sock"))).await;
    assert!(missing.to_string().contains("directory"), "{missing}");
    let file = server.directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(bind(socket(file)).await.to_string().contains("not a socket"));

    // A socket that a killed server left is taken over.
    let stale = server.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let bound = Server::bind(socket(stale.clone()), server.engine.clone()).await.unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(bound.admin_socket().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
