//! Who gets in, and as whom.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use std::time::Duration;

use http_body_util::BodyExt as _;
use lastkey_engine::Clock as _;
use serde_json::{Value, json};
use support::{Identity, Running, Signer, json_request, rpc, start};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_signature() {
    let server = start().await;
    for path in ["/", "/?Action=ListKeys", "/v1/status", "/v1/ca", "/v1/nothing"] {
        let answer = server.send(json_request("GET", path, &Value::Null)).await;
        assert_eq!(answer.error(), (400, "MissingParameter".to_owned()), "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = server.send(json_request("GET", path, &Value::Null)).await;
        assert!(answer.status.is_success(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_signatures_are_told_apart() {
    let server = start().await;
    let mut signer = Signer::new(&server, "ListKeys");
    signer.secret.push('x');
    let answer = server.send(signer.sign(("POST", "/"), &[], b"")).await;
    assert_eq!(answer.error(), (400, "SignatureDoesNotMatch".to_owned()));
    // The old Python SDK splits here; what follows must not be a string to sign.
    assert!(answer.json()["Message"].as_str().unwrap().contains(':'));
    assert!(!answer.text.contains("x-acs") && !answer.text.contains('\n'));

    let mut signer = Signer::new(&server, "ListKeys");
    signer.access_key_id.push('x');
    let answer = server.send(signer.sign(("POST", "/"), &[], b"")).await;
    assert_eq!(answer.error(), (404, "InvalidAccessKeyId.NotFound".to_owned()));

    let mut request = server.signed("ListKeys", &[]);
    request.headers_mut().insert("x-acs-extra", "1".parse().unwrap());
    assert_eq!(server.send(request).await.error(), (400, "IncompleteSignature".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_admitted_once_and_in_time() {
    let server = start().await;
    let now = server.clock.now();
    let request = || Signer::at(now, "ListKeys", "the-nonce").sign(("POST", "/"), &[], b"");
    server.send(request()).await.ok();
    assert_eq!(server.send(request()).await.error(), (400, "SignatureNonceUsed".to_owned()));

    // A nonce under a wrong signature is not burnt.
    let signer = || Signer::at(now, "ListKeys", "another");
    let mut forged = signer();
    forged.secret.push('x');
    server.send(forged.sign(("POST", "/"), &[], b"")).await;
    server.send(signer().sign(("POST", "/"), &[], b"")).await.ok();

    let late = Signer::at(now, "ListKeys", "late").sign(("POST", "/"), &[], b"");
    server.clock.advance(Duration::from_secs(901));
    assert_eq!(server.send(late).await.error(), (400, "IllegalTimestamp".to_owned()));
    let early = server.clock.now().after(Duration::from_secs(905));
    let early = Signer::at(early, "ListKeys", "early").sign(("POST", "/"), &[], b"");
    assert_eq!(server.send(early).await.error(), (400, "IllegalTimestamp".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_open_the_native_wire_too() {
    let server = start().await;
    let signed = Signer::new(&server, "").sign(("GET", "/v1/status"), &[], b"");
    let status = server.send(signed).await.ok();
    assert_eq!(status["ready"], true);
    // Signed for one path, sent to another.
    let mut moved = Signer::new(&server, "").sign(("GET", "/v1/status"), &[], b"");
    *moved.uri_mut() = "/v1/clusters".parse().unwrap();
    assert_eq!(server.send(moved).await.error(), (400, "SignatureDoesNotMatch".to_owned()));
}

/// The query of a request that was signed for `POST /`, as whoever sees it on its way has it.
async fn seen_on_its_way(server: &Running) -> String {
    let form = rpc(server, "POST", "ListKeys", &[]).into_body().collect().await.unwrap();
    String::from_utf8(form.to_bytes().to_vec()).unwrap()
}

/// RPC v1 signs neither path nor JSON: who has seen one request must not make another of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_signature_opens_the_alibaba_wire_alone() {
    let server = start().await;
    let created = server.call("CreateKey", &[]).await.ok();
    let key = created["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let (cluster, _) = add_cluster(&server, "one", &key).await;
    let incomplete = (400, "IncompleteSignature".to_owned());

    let seen = seen_on_its_way(&server).await;
    let (_, csr) = csr();
    let plugin = json!({ "name": "mine", "csr_pem": csr });
    for (path, body) in [
        (format!("/v1/clusters/{cluster}/plugins"), plugin),
        ("/v1/clusters".to_owned(), json!({ "name": "two", "key": key })),
        ("/v1/audit/verify".to_owned(), json!({})),
        ("/v1/operator/seal".to_owned(), json!({})),
        // Nor is it one of any body at its own path.
        ("/".to_owned(), json!({ "KeyId": key })),
    ] {
        let moved = json_request("POST", &format!("{path}?{seen}"), &body);
        let answer = server.send(moved).await;
        assert_eq!(answer.error(), incomplete, "{path}: {}", answer.text);
        let moved = json_request("POST", &format!("{path}?{seen}"), &body);
        assert_eq!(server.send_admin(moved).await.error(), incomplete, "{path}");
    }
    let mut get = rpc(&server, "GET", "ListKeys", &[]);
    let query = get.uri().query().unwrap().to_owned();
    for path in ["/v1/status", "/v1/ca", "/v1/clusters", "/v1/audit", "/v1/nothing"] {
        *get.uri_mut() = format!("{path}?{query}").parse().unwrap();
        let answer = server.send(get.clone()).await;
        assert_eq!(answer.error(), incomplete, "{path}");
        assert!(answer.text.contains("ACS3-HMAC-SHA256"), "it says what to do: {}", answer.text);
    }
    // Whoever signed it can still send it: what was refused has not used its nonce up.
    let meant = json_request("POST", &format!("/?{seen}"), &Value::Null);
    assert_eq!(server.send(meant).await.ok()["TotalCount"], 1);
    let clusters = server.native("GET", "/v1/clusters", &Value::Null).await.ok();
    assert_eq!(clusters["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.native("GET", "/v1/status", &Value::Null).await.ok()["ready"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_content_type_is_not_signed_is_refused() {
    let server = start().await;
    let mut request = Signer::new(&server, "CreateKey").sign(("POST", "/"), &[], b"DryRun=true");
    let form = "application/x-www-form-urlencoded".parse().unwrap();
    request.headers_mut().insert("content-type", form);
    assert_eq!(server.send(request).await.error(), (400, "IncompleteSignature".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_socket_vouches_for_its_peer() {
    let server = start().await;
    let created =
        server.send_admin(json_request("POST", "/?Action=CreateKey", &Value::Null)).await.ok();
    assert!(created["KeyMetadata"]["Creator"].as_str().unwrap().starts_with("local/"));
    let mut by_header = json_request("POST", "/", &Value::Null);
    by_header.headers_mut().insert("x-acs-action", "ListKeys".parse().unwrap());
    assert_eq!(server.send_admin(by_header).await.ok()["TotalCount"], 1);
    // A signature that is there has to be right.
    let mut signer = Signer::new(&server, "ListKeys");
    signer.secret.push('x');
    let answer = server.send_admin(signer.sign(("POST", "/"), &[], b"")).await;
    assert_eq!(answer.error(), (400, "SignatureDoesNotMatch".to_owned()));
}

fn csr() -> (rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["root.example".to_owned()]).unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

async fn add_cluster(server: &Running, name: &str, key: &str) -> (String, Identity) {
    let (pair, csr) = csr();
    let body = json!({ "name": name, "key": key, "csr_pem": csr });
    let added = server.native("POST", "/v1/clusters", &body).await.ok();
    let certificate_pem = added["certificate_pem"].as_str().unwrap().to_owned();
    assert_eq!(added["ca_pem"], server.ca_pem.as_str());
    (added["id"].as_str().unwrap().to_owned(), Identity { certificate_pem, key: pair })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_works_for_its_cluster_alone() {
    let server = start().await;
    let created = server.call("CreateKey", &[]).await.ok();
    let key = created["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let (one, plugin) = add_cluster(&server, "one", &key).await;
    let (two, neighbour) = add_cluster(&server, "two", &key).await;
    assert_ne!(one, two);

    let post = |path: &'static str, body: Value| json_request("POST", path, &body);
    let ask = json!({ "key": key, "known": "", "wait_seconds": 0 });
    let status = server.send_as(Some(&plugin), post("/v1/plugin/status", ask)).await.ok();
    assert_eq!(status["usable"], true);
    assert_eq!(status["cluster"], one.as_str());
    assert_eq!(status["lease_seconds"], 900);

    let encrypt = json!({
        "key": key, "key_version": status["key_version"], "epoch": status["epoch"],
        "plaintext": "c2VjcmV0",
    });
    let made = server.send_as(Some(&plugin), post("/v1/plugin/encrypt", encrypt)).await.ok();
    assert_eq!(made["plugin_key_id"], status["plugin_key_id"]);
    let decrypt = json!({
        "key": key, "cluster": made["cluster"], "lineage": made["lineage"],
        "key_version": made["key_version"], "epoch": made["epoch"], "blob": made["blob"],
    });
    let opened =
        server.send_as(Some(&plugin), post("/v1/plugin/decrypt", decrypt.clone())).await.ok();
    assert_eq!(opened["plaintext"], "c2VjcmV0");
    let stolen = server.send_as(Some(&neighbour), post("/v1/plugin/decrypt", decrypt)).await;
    assert_eq!(stolen.error(), (400, "InvalidParameter".to_owned()));

    // Nothing else is open to it, on either wire.
    for (method, path) in [("GET", "/v1/clusters"), ("GET", "/v1/audit"), ("GET", "/v1/ca")] {
        let answer = server.send_as(Some(&plugin), json_request(method, path, &Value::Null)).await;
        assert_eq!(answer.error(), (403, "Forbidden.NoPermission".to_owned()), "{path}");
    }
    let list = json_request("POST", "/?Action=ListKeys", &Value::Null);
    let answer = server.send_as(Some(&plugin), list).await;
    assert_eq!(answer.error(), (403, "Forbidden.NoPermission".to_owned()));

    // Its certificate is worth nothing once the name belongs to another key.
    let (_, csr) = csr();
    let path = format!("/v1/clusters/{one}/plugins");
    server.native("POST", &path, &json!({ "name": "plugin", "csr_pem": csr })).await.ok();
    let ask = json!({ "key": key, "known": "", "wait_seconds": 0 });
    let answer = server.send_as(Some(&plugin), post("/v1/plugin/status", ask)).await;
    assert_eq!(answer.error(), (403, "Forbidden.NoPermission".to_owned()));

    // An ended certificate is no identity, even if the clock is the server's alone.
    server.clock.advance(Duration::from_secs(366 * 86_400));
    let ask = json!({ "key": key, "known": "", "wait_seconds": 0 });
    let answer = server.send_as(Some(&neighbour), post("/v1/plugin/status", ask)).await;
    assert_eq!(answer.error(), (401, "Forbidden.CertificateEnded".to_owned()));
}

/// A node's kubelet, and the CA that vouches for it.
fn kubelet(node: &str) -> (Identity, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    (Identity { certificate_pem: certificate.pem(), key }, ca_pem)
}

/// It is heard before anybody has let it in.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_not_let_in_fills_no_disk() {
    let server = start().await;
    let created = server.call("CreateKey", &[]).await.ok();
    let key = created["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let (cluster, _) = add_cluster(&server, "one", &key).await;
    let (node, ca_pem) = kubelet("cp-1");
    let nodes = format!("/v1/clusters/{cluster}/nodes");
    server.native("POST", &format!("{nodes}/trust"), &json!({ "ca_pem": ca_pem })).await.ok();

    let stream = server.tls(server.client_config(Some(&node))).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let (_, csr) = csr();
    let enrol = format!("{nodes}/enrol");
    for _ in 0..1000 {
        for body in [json!("junk"), json!({ "csr_pem": "junk" }), json!({ "csr_pem": csr })] {
            sender.ready().await.unwrap();
            let answer = sender.send_request(json_request("POST", &enrol, &body)).await.unwrap();
            assert!(answer.status() == 400 || answer.status() == 200, "{}", answer.status());
            answer.into_body().collect().await.unwrap();
        }
    }
    server.native("POST", &format!("{nodes}/approve"), &json!({ "node": "cp-1" })).await.ok();
    let enrolled = json_request("POST", &enrol, &json!({ "csr_pem": csr }));
    assert_eq!(server.send_as(Some(&node), enrolled).await.ok()["state"], "enrolled");
    server.engine.shutdown().await;

    let text = server.audit_text();
    let records: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let by_kubelet = format!("kubelet/{cluster}/cp-1");
    let about = |outcome: &str, principal: &str| -> Vec<&Value> {
        let is_it = |record: &&Value| {
            record["principal"] == principal
                && record["action"] == "EnrolNode"
                && record["outcome"] == outcome
        };
        records.iter().filter(is_it).collect()
    };
    // It asked, was told to wait once more, and was let in.
    let decisions: Vec<_> = about("ok", &by_kubelet).iter().map(|it| &it["decision"]).collect();
    assert_eq!(decisions, ["waiting", "waiting", "enrolled"]);
    for (outcome, counted) in
        [("ok", 998), ("InvalidParameter", 999), ("ParseRequestParameterException", 999)]
    {
        assert_eq!(about(outcome, &by_kubelet).len(), if counted == 998 { 3 } else { 1 });
        let [summary] = about(outcome, "system")[..] else { panic!("{outcome}: {text}") };
        assert_eq!(summary["count"], counted, "{summary}");
        assert_eq!(summary["kubelets"], by_kubelet.as_str());
        assert_eq!(summary["sources"].as_str().unwrap().split(' ').count(), 1, "{summary}");
    }
    assert!(records.iter().any(|record| record["action"] == "ApproveNode"));
    assert!(records.len() < 30, "{}", records.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_others_do_not_shake_hands() {
    let server = start().await;
    let (pair, _) = csr();
    let stranger = rcgen::CertificateParams::new(["x.example".to_owned()]).unwrap();
    let certificate_pem = stranger.self_signed(&pair).unwrap().pem();
    let identity = Identity { certificate_pem, key: pair };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    // TLS 1.3 clients learn of the refusal when they read.
    if let Ok(mut stream) = server.tls(server.client_config(Some(&identity))).await {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(stream.read(&mut [0; 16]).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_watch_wakes_up_and_stops() {
    let mut server = start().await;
    let created = server.call("CreateKey", &[]).await.ok();
    let key = created["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let (_, plugin) = add_cluster(&server, "one", &key).await;
    let ask = |known: &str| {
        let body = json!({ "key": key, "known": known, "wait_seconds": 60 });
        json_request("POST", "/v1/plugin/status", &body)
    };
    let first = server.send_as(Some(&plugin), ask("")).await.ok();
    let token = first["token"].as_str().unwrap();
    let disable = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.call("DisableKey", &[("KeyId", &key)]).await.ok();
    };
    let (woken, ()) = tokio::join!(server.send_as(Some(&plugin), ask(token)), disable);
    let woken = woken.ok();
    assert_eq!(woken["usable"], false);
    assert_eq!(woken["refusal"]["code"], "Rejected.Disabled");

    // A stopping server does not wait for who waits.
    let stream = server.tls(server.client_config(Some(&plugin))).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let waiting = tokio::spawn(sender.send_request(ask(woken["token"].as_str().unwrap())));
    let started = std::time::Instant::now();
    while server.metric("lastkey_requests_under_way").await < 1 {
        assert!(started.elapsed() < Duration::from_secs(20), "the request does not begin");
    }
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(40));
    assert_eq!(waiting.await.unwrap().unwrap().status(), 503);
    assert!(!server.admin.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_searched_followed_and_verified() {
    let server = start().await;
    server.call("CreateKey", &[]).await.ok();
    let found = server.native("GET", "/v1/audit?action=createkey&limit=5", &Value::Null).await.ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!(found["items"][0]["principal"], "root/LKtest");

    let tail = server.native("GET", "/v1/audit/tail?limit=3", &Value::Null).await.ok();
    let next = tail["next"].as_u64().unwrap();
    let path = format!("/v1/audit/tail?after={next}&wait=30&limit=100");
    let act = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.call("ListKeys", &[]).await.ok();
    };
    let started = std::time::Instant::now();
    let (news, ()) = tokio::join!(server.native("GET", &path, &Value::Null), act);
    assert!((250..20_000).contains(&started.elapsed().as_millis()));
    let actions: Vec<_> =
        news.ok()["items"].as_array().unwrap().iter().map(|r| r["action"].clone()).collect();
    assert!(actions.contains(&json!("ListKeys")), "{actions:?}");

    let verified = server.native("POST", "/v1/audit/verify", &json!({})).await.ok();
    assert_eq!(verified["ok"], true);
    let bad = server.native("GET", "/v1/audit?limit=x", &Value::Null).await;
    assert_eq!(bad.error(), (400, "InvalidParameter".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_and_renewed_without_a_restart() {
    let server = start().await;
    let ca = server.native("GET", "/v1/ca", &Value::Null).await;
    assert_eq!(ca.text, server.ca_pem);
    let leaf = async || {
        let stream = server.tls(server.client_config(None)).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = leaf().await;
    let renewed = server.native("POST", "/v1/ca/renew", &json!({})).await.ok();
    assert!(renewed["not_after"].is_string());
    assert_ne!(leaf().await, before);
    let wrong = server.native("POST", "/v1/ca", &json!({})).await;
    assert_eq!(wrong.error(), (405, "UnsupportedHTTPMethod".to_owned()));
    let nowhere = server.native("GET", "/v1/nowhere", &Value::Null).await;
    assert_eq!(nowhere.error().0, 404);
    let garbage = server.native("POST", "/v1/clusters", &json!([1])).await;
    assert_eq!(garbage.error(), (400, "ParseRequestParameterException".to_owned()));
    let csr = json!({ "name": "x", "key": "alias/none", "csr_pem": "junk" });
    let refused = server.native("POST", "/v1/clusters", &csr).await;
    assert_eq!(refused.error(), (400, "InvalidParameter".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_keys_are_counted_and_no_key_is_named_to_strangers() {
    let server = start().await;
    let made = server.call("CreateKey", &[]).await.ok();
    let key = made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let encrypted =
        server.call("Encrypt", &[("KeyId", &key), ("Plaintext", "aGVsbG8=")]).await.ok();
    server.call("GenerateDataKey", &[("KeyId", &key)]).await.ok();
    let blob = encrypted["CiphertextBlob"].as_str().unwrap();
    server.call("Decrypt", &[("CiphertextBlob", blob)]).await.ok();
    // What does not open was no use.
    let other = format!("{}AAAA", &blob[..blob.len() - 4]);
    server.call("Decrypt", &[("CiphertextBlob", &other)]).await.error();
    let uses = |operation: &str| format!("lastkey_key_uses_total{{operation=\"{operation}\"}}");
    assert_eq!(server.metric(&uses("encrypt")).await, 2);
    assert_eq!(server.metric(&uses("decrypt")).await, 1);
    assert_eq!(server.metric("lastkey_keyring_keys").await, 1);
    assert!(server.metric("lastkey_keyring_uses").await > 0);
    let page = server.send(json_request("GET", "/metrics", &Value::Null)).await.text;
    assert!(!page.contains(&key), "{page}");
}
