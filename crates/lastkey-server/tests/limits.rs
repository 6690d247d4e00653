//! Bounds: what is too much, too slow or not even a request.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use std::time::{Duration, Instant};

use lastkey_server::{BindError, Limits, Server, ServerConfig};
use support::{read_to_end, start, start_with};
use tokio::io::AsyncWriteExt as _;

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

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_are_let_go() {
    let limits = Limits {
        handshake: Duration::from_millis(300),
        first_request: Duration::from_millis(400),
        idle: Duration::from_millis(600),
        read_body: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = start_with(limits).await;

    // Nothing at all.
    let started = Instant::now();
    assert_eq!(read_to_end(&mut server.tcp().await).await, "");
    assert!(started.elapsed() < Duration::from_secs(3));

    // A head that never ends, a byte at a time.
    let mut stream = server.tls(server.client_config(None)).await.unwrap();
    let started = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
    while stream.write_all(b"a").await.is_ok() && stream.flush().await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(5), "a slow head is still open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A body that does not come.
    let body = server.raw(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc").await;
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");

    // Kept open without a further request.
    let started = Instant::now();
    let kept = server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(kept.starts_with("HTTP/1.1 200 "));
    assert!(started.elapsed() > Duration::from_millis(500));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_sheds() {
    let server = start_with(Limits { requests: 0, ..Limits::default() }).await;
    let busy = server.call("ListKeys", &[]).await;
    assert_eq!(busy.error(), (429, "Rejected.Throttling".to_owned()));
    assert_eq!(busy.headers["retry-after"], "1");
    assert!(server.raw(HEALTH).await.ends_with("ok\n"), "health needs no room");

    let server = start_with(Limits { connections: 1, ..Limits::default() }).await;
    let first = server.tls(server.client_config(None)).await.unwrap();
    assert_eq!(read_to_end(&mut server.tcp().await).await, "");
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.tls(server.client_config(None)).await.is_err() {
        assert!(Instant::now() < deadline, "room does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
