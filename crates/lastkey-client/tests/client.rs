//! The client against real sockets: what works, and how each failure is told apart.

#![allow(clippy::unwrap_used)] // clippy sees no test in the helpers below

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, Version};
use lastkey_client::{
    AccessKey, Category, Client, ClientCertificate, Config, Error, Identity, Kms, Timeouts,
    native::{PluginRecords, PluginStatusRequest},
    signature::acs3::{Request, authorization, content_hash},
};
use lastkey_crypto::{ClusterId, EncryptionContext, SecretBytes, SpoolId};
use serde_json::json;
use support::{FakeServer, Handler, Pki, handler, serve_unix};
use tokio::{io::AsyncReadExt, net::TcpListener};

fn fixed(status: u16, body: &'static str) -> Handler {
    handler(move |_, _| async move { (status, body.to_owned()) })
}

fn config(pki: &Pki, servers: &[String]) -> Config {
    let certificate =
        ClientCertificate { certificate: pki.file("client.pem"), key: pki.file("client.key") };
    let servers = servers.iter().map(|url| url.parse().unwrap()).collect();
    Config::mutual_tls(servers, pki.file("ca.pem"), certificate)
}

fn client(pki: &Pki, servers: &[String]) -> Client {
    Client::new(config(pki, servers)).unwrap()
}

#[tokio::test]
async fn calls_share_one_http2_connection() {
    let pki = Pki::new();
    let versions = Arc::new(Mutex::new(Vec::new()));
    let seen = versions.clone();
    let server = FakeServer::start(
        &pki,
        handler(move |parts, _| {
            seen.lock().unwrap().push(parts.version);
            async { (200, r#"{"state":"unsealed"}"#.to_owned()) }
        }),
    )
    .await;
    let client = client(&pki, &[server.url()]);
    for _ in 0..3 {
        assert_eq!(client.status().await.unwrap()["state"], "unsealed");
    }
    assert_eq!(*versions.lock().unwrap(), [Version::HTTP_2; 3]);
}

#[tokio::test]
async fn a_refusal_carries_code_status_and_request() {
    let pki = Pki::new();
    let body = r#"{"code":"Rejected.Disabled","message":"disabled","request_id":"r-7"}"#;
    let server = FakeServer::start(&pki, fixed(409, body)).await;
    let error = client(&pki, &[server.url()]).status().await.unwrap_err();
    let api = error.api().unwrap();
    assert_eq!((api.status.as_u16(), api.request_id.as_deref()), (409, Some("r-7")));
    assert_eq!((error.code(), error.category()), (Some("Rejected.Disabled"), Category::Failed));
}

#[tokio::test]
async fn a_server_of_another_installation_is_not_trusted() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let server = FakeServer::start(&theirs, fixed(200, "{}")).await;
    let error = client(&ours, &[server.url()]).status().await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    assert!(error.to_string().contains("CA file"), "{error}");
    assert_eq!(error.category(), Category::Unavailable);
}

#[tokio::test]
async fn a_missing_client_certificate_is_a_tls_error() {
    let pki = Pki::new();
    let server = FakeServer::start(&pki, fixed(200, "{}")).await;
    let mut config = config(&pki, &[server.url()]);
    config.identity = Identity::Peer;
    let error = Client::new(config).unwrap().status().await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("client certificate"), "{error}");
}

#[tokio::test]
async fn a_dead_server_costs_little_and_only_once() {
    let pki = Pki::new();
    // accepts, and never says a word
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = FakeServer::start(&pki, fixed(200, "{}")).await;
    let dead = [silent.local_addr().unwrap(), closed].map(|address| format!("https://{address}"));
    let tried = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&tried);
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(silent.accept().await.unwrap());
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let servers = [dead.to_vec(), vec![server.url()]].concat();
    let client = client(&pki, &servers);

    let start = Instant::now();
    client.status().await.unwrap();
    // as long as the silent one would have been waited for
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    let before = tried.load(Ordering::SeqCst);
    assert!(before > 0);
    for _ in 0..5 {
        client.status().await.unwrap();
    }
    assert_eq!(tried.load(Ordering::SeqCst), before, "the one that answered is asked again");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let pki = Pki::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = client(&pki, &[format!("https://{closed}")]).status().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.category(), Category::Unavailable);
}

#[tokio::test]
async fn a_sealed_server_hands_over_to_the_next() {
    let pki = Pki::new();
    let body = r#"{"code":"ServiceUnavailableTemporary","message":"sealed"}"#;
    let sealed = FakeServer::start(&pki, fixed(503, body)).await;
    let open = FakeServer::start(&pki, fixed(200, "{}")).await;
    assert!(client(&pki, &[sealed.url(), open.url()]).status().await.is_ok());

    let error = client(&pki, &[sealed.url()]).status().await.unwrap_err();
    assert_eq!(error.code(), Some("ServiceUnavailableTemporary"));
    assert_eq!(error.category(), Category::Unavailable);
}

/// A change that may have been made is not made again elsewhere; what only asks is asked again.
#[tokio::test]
async fn a_server_that_does_not_know_hands_no_change_over() {
    let pki = Pki::new();
    let body = r#"{"code":"Unavailable.Uncertain","message":"look before you repeat it"}"#;
    for status in [504, 503] {
        let (asked, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = |calls: &Arc<AtomicUsize>, answer: (u16, &'static str)| {
            let calls = calls.clone();
            handler(move |_, _| {
                calls.fetch_add(1, Ordering::SeqCst);
                async move { (answer.0, answer.1.to_owned()) }
            })
        };
        let first = FakeServer::start(&pki, counted(&asked, (status, body))).await;
        let second = FakeServer::start(&pki, counted(&calls, (200, r#"{"token":1}"#))).await;
        let servers = [first.url(), second.url()];
        let error = client(&pki, &servers).alibaba("CreateKey", &[]).await.unwrap_err();
        assert_eq!(error.code(), Some("Unavailable.Uncertain"));
        assert_eq!(error.category(), Category::Unavailable);
        let error = client(&pki, &servers).post("/v1/clusters", &json!({})).await.unwrap_err();
        assert_eq!(error.code(), Some("Unavailable.Uncertain"));
        assert_eq!((asked.load(Ordering::SeqCst), calls.load(Ordering::SeqCst)), (2, 0));

        let question = PluginStatusRequest {
            key: "alias/k",
            cluster: None,
            known: "",
            wait: Duration::from_secs(0),
            instance: None,
        };
        let error = client(&pki, &servers).plugin_status(question).await.unwrap_err();
        assert_eq!(error.code(), Some("Unavailable.Uncertain"), "which says more than nonsense");
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_slow_server_times_out_and_is_not_asked_twice() {
    let pki = Pki::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let slow = handler(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            (200, "{}".to_owned())
        }
    });
    let (first, second) =
        (FakeServer::start(&pki, slow.clone()).await, FakeServer::start(&pki, slow).await);
    let mut config = config(&pki, &[first.url(), second.url()]);
    config.timeouts = Timeouts { call: Duration::from_millis(200), ..Timeouts::default() };
    let error = Client::new(config).unwrap().status().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nonsense_is_garbage_and_is_not_repeated() {
    let pki = Pki::new();
    for (status, body) in [(200, "<html>hush"), (500, "<html>hush"), (200, r#"{"token":1}"#)] {
        let server = FakeServer::start(&pki, fixed(status, body)).await;
        let question = PluginStatusRequest {
            key: "alias/k",
            cluster: None,
            known: "",
            wait: Duration::from_secs(0),
            instance: None,
        };
        let error = client(&pki, &[server.url()]).plugin_status(question).await.unwrap_err();
        assert!(matches!(error, Error::Garbage { .. }), "{error:?}");
        assert!(!error.to_string().contains("hush"));
    }
}

/// Whatever a call was for: the one after it goes to another address.
#[tokio::test]
async fn whoever_answered_nonsense_is_not_asked_first_again() {
    let pki = Pki::new();
    let open = FakeServer::start(&pki, fixed(200, r#"{"delivered":7}"#)).await;
    for (status, body) in [(200, "<html>"), (404, "<html>"), (502, "<html>"), (500, "{}")] {
        let mad = FakeServer::start(&pki, fixed(status, body)).await;
        let servers = [mad.url(), open.url()];
        let client = || self::client(&pki, &servers);
        // a change is not made again, for it may have been made
        let changing = client();
        let error = changing.post("/v1/clusters", &json!({})).await.unwrap_err();
        assert!(matches!(error, Error::Garbage { .. }), "{status} {body}: {error:?}");
        assert!(changing.post("/v1/clusters", &json!({})).await.is_ok(), "{status} {body}");
        // what comes twice without harm goes to the next at once
        let (cluster, spool) = (ClusterId::from_bytes([2; 16]), SpoolId::from_bytes([3; 16]));
        let records = PluginRecords { cluster, spool, batches: &[] };
        assert_eq!(client().plugin_records(records).await.unwrap(), 7, "{status} {body}");
        // a long poll tells of it, and another question goes elsewhere
        let patient = client();
        let question = PluginStatusRequest {
            key: "alias/k",
            cluster: None,
            known: "t",
            wait: Duration::from_secs(1),
            instance: None,
        };
        let error = patient.plugin_status(question).await.unwrap_err();
        assert!(error.to_string().starts_with(&mad.url()), "{error}");
        assert!(patient.get("/v1/clusters", &[]).await.is_ok(), "{status} {body}");
    }
}

#[tokio::test]
async fn something_that_is_not_tls_is_told() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 16]).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad\r\n\r\n").await;
    });
    let error = client(&pki, &[format!("https://{address}")]).status().await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let pki = Pki::new();
    let server = FakeServer::start(&pki, fixed(200, "{}")).await;
    let client = client(&pki, &[server.url()]);
    client.status().await.unwrap();
    let address = server.stop().await;
    assert!(client.status().await.is_err());
    let _server = FakeServer::start_on(address, &pki, fixed(200, "{}")).await;
    client.status().await.unwrap();
}

#[tokio::test]
async fn an_access_key_signs_every_header() {
    let pki = Pki::for_access_keys();
    let server = FakeServer::start(
        &pki,
        handler(|parts, body| async move {
            let header = |name: &str| parts.headers[name].to_str().unwrap().to_owned();
            let sent = header("authorization");
            let names = sent.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
            let headers: Vec<_> = names.split(';').map(|name| (name, header(name))).collect();
            for name in ["host", "x-acs-action", "x-acs-version", "content-type", "x-acs-date"] {
                assert!(names.split(';').any(|signed| signed == name), "{name} is not signed");
            }
            let request = Request {
                method: parts.method.as_str(),
                path: parts.uri.path(),
                query: &[],
                headers: &headers,
                content_hash: &content_hash(&body),
            };
            let secret = SecretBytes::new(b"hush".to_vec());
            let expected = authorization(request, &AccessKey { id: "AK".into(), secret });
            let same = sent == expected && parts.method == Method::POST;
            let body = String::from_utf8(body.to_vec()).unwrap();
            match same && body == "CiphertextBlob=AAEC&EncryptionContext=%7B%22a%22%3A%22b%22%7D" {
                true => (200, r#"{"KeyId":"k","KeyVersionId":"v","Plaintext":"aGk="}"#.to_owned()),
                false => (400, r#"{"Code":"SignatureDoesNotMatch","Message":":"}"#.to_owned()),
            }
        }),
    )
    .await;
    let text = format!(
        r#"{{"url":"{}","ca_file":"ca.pem","access_key_id":"AK","access_key_secret":"hush"}}"#,
        server.url()
    );
    std::fs::write(pki.file("credentials.json"), text).unwrap();
    let credentials = lastkey_client::Credentials::read(&pki.file("credentials.json")).unwrap();
    let client = Client::new(Config::from_credentials(credentials)).unwrap();
    let context = EncryptionContext::from_pairs([("a".to_owned(), "b".to_owned())]).unwrap();
    let plaintext = client.decrypt(&[0, 1, 2], &context).await.unwrap();
    assert_eq!(plaintext.expose(), b"hi");
}

#[tokio::test]
async fn the_admin_socket_needs_no_signature() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let server = serve_unix(
        socket.clone(),
        handler(|parts, body| async move {
            assert!(parts.headers.get("authorization").is_none());
            assert_eq!(parts.headers["x-acs-action"], "ListKeys");
            (200, format!(r#"{{"body":"{}"}}"#, String::from_utf8(body.to_vec()).unwrap()))
        }),
    );
    let client = Client::new(Config::admin(socket)).unwrap();
    let answer = client.alibaba("ListKeys", &[("PageSize", "5")]).await.unwrap();
    assert_eq!(answer["body"], "PageSize=5");
    server.abort();
}

#[tokio::test]
async fn configuration_mistakes_are_named_before_anything_is_sent() {
    let pki = Pki::new();
    let mut no_ca = config(&pki, &["https://127.0.0.1:1".to_owned()]);
    no_ca.ca_file = None;
    let mut not_pem = config(&pki, &["https://127.0.0.1:1".to_owned()]);
    not_pem.ca_file = Some(pki.file("client.key"));
    let mut missing = config(&pki, &["https://127.0.0.1:1".to_owned()]);
    missing.ca_file = Some(pki.file("none.pem"));
    let mut no_server = config(&pki, &[]);
    no_server.identity = Identity::Peer;
    for (config, words) in [
        (no_ca, "CA file"),
        (not_pem, "holds no certificate"),
        (missing, "cannot read"),
        (no_server, "no server"),
    ] {
        let error = Client::new(config).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
